//! The methods of [`rowwise`](crate::rowwise) as parts of a layer's treatment: they run on the host, whatever the backend.

use ndarray::{Array2, ArrayView2};

use super::chooser::{Ask, Asked, Chooser};
use super::job::Job;
use super::levels::Levels;
use super::prepare::{Diagonal, ladder};
use super::settings::no_swaps;
use super::{Solved, in_processing_order};
use crate::backend::{Backend, Operation, Precision};
use crate::error::{Error, Result, Stage};
use crate::hessian::Hessian;
use crate::mask::BlockScores;
use crate::report::FactorReport;
use crate::rowwise::{self, Bounds, Swaps};

/// The best weights where `pruned` leaves any, on the damped H, and how much damping that took.
pub(super) fn exact_refit<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    (hessian, diagonal): (&Hessian<B>, &Diagonal),
    pruned: ArrayView2<'_, bool>,
) -> Result<(Array2<f32>, FactorReport)> {
    job.host_operation(Operation::Refit);
    let start = in_processing_order(job, dense);
    let refitted = damped_enough(job, hessian, diagonal, |h| {
        rowwise::exact_refit(start.view(), pruned, h)
    })?;
    let factored = refitted.factored();
    Ok((refitted.value, factored))
}

/// ExactOBS for one layer: the mask, and the best weights on it.
pub(super) fn obc<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &Hessian<B>,
) -> Result<Solved> {
    let diagonal = Diagonal::of(hessian, job.layer)?;
    job.dead.clone_from(&diagonal.dead);
    let start = in_processing_order(job, dense);
    let inverse = job.timed(Stage::Factor, |job| {
        job.host_operation(Operation::Inverse);
        damped_enough(job, hessian, &diagonal, rowwise::inverse)
    })?;
    let pruned = job.timed(Stage::Select, |job| {
        job.host_operation(Operation::Select);
        obc_mask(job, start.view(), inverse.value.view())
    })?;
    let weights = job.timed(Stage::UpdateRows, |job| {
        job.host_operation(Operation::UpdateRows);
        rowwise::exact_refit(start.view(), pruned.view(), inverse.h.view())
            .map_err(|error| error.for_layer(job.layer))
    })?;
    let mut solved = Solved {
        weights,
        mask: pruned.mapv(|pruned| !pruned),
        ..Solved::nothing()
    };
    solved.also_factored(inverse.factored());
    Ok(solved)
}

/// OBQ for one layer: `target` on the grids of the job's quantizer, zero where `kept` says so. `None` without a quantizer.
pub(super) fn obq<B: Backend>(
    job: &mut Job<'_, B>,
    target: ArrayView2<'_, f32>,
    hessian: &Hessian<B>,
    kept: ArrayView2<'_, bool>,
) -> Result<Option<Solved>> {
    let diagonal = Diagonal::of(hessian, job.layer)?;
    job.dead.clone_from(&diagonal.dead);
    let start = in_processing_order(job, target);
    let levels = job.timed(Stage::Grid, |job| {
        let device = job.upload(start.view())?;
        Levels::fitted(job, start.view(), &device)
    })?;
    let Some(levels) = levels else {
        return Ok(None);
    };
    let inverse = job.timed(Stage::Factor, |job| {
        job.host_operation(Operation::Inverse);
        damped_enough(job, hessian, &diagonal, rowwise::inverse)
    })?;
    let weights = job.timed(Stage::UpdateRows, |job| {
        job.host_operation(Operation::UpdateRows);
        let pruned = kept.mapv(|kept| !kept);
        levels.on_host(job, |grid| {
            rowwise::obq(start.view(), pruned.view(), inverse.value.view(), grid)
                .map_err(|error| error.for_layer(job.layer))
        })
    })?;
    let mut solved = Solved {
        quantized: Some(levels.finish(job, weights.view())?),
        weights,
        mask: kept.to_owned(),
        ..Solved::nothing()
    };
    solved.also_factored(inverse.factored());
    Ok(Some(solved))
}

/// What the policy asks for, of all columns at once.
fn obc_mask<B: Backend>(
    job: &Job<'_, B>,
    start: ArrayView2<'_, f32>,
    inverse: ArrayView2<'_, f64>,
) -> Result<Array2<bool>> {
    let original: Vec<usize> = (0..job.cols).collect();
    let mut chooser = Chooser::new(job);
    let block = chooser.block(job, 0..job.cols, &original);
    let Asked {
        ask,
        forced,
        protected,
    } = chooser.ask(job, &block)?;
    let counts = match ask {
        Ask::Keep => return Ok(Array2::from_elem(start.dim(), false)),
        Ask::Fixed(mask) => return Ok(mask),
        Ask::ByScores(runs) => {
            // The price of a weight that goes alone is (w / scale)².
            let scales = inverse.diag().mapv(|entry| entry.sqrt() as f32);
            let protected = protected.as_ref().map(|mask| mask.view());
            let scores = BlockScores {
                weights: start,
                scales: scales.view(),
                protected,
            };
            let Some(runs) = runs else {
                return chooser.by_scores(job, &block, &scores, None);
            };
            let count = chooser.runs(job, &block, &scores, &runs)?;
            return rowwise::obc_runs(start, inverse, (runs.run, count), protected)
                .map_err(|error| error.for_layer(job.layer));
        }
        Ask::Lowest(counts) => counts,
    };
    let bounds = Bounds {
        forced: forced.as_ref().map(|mask| mask.view()),
        protected: protected.as_ref().map(|mask| mask.view()),
    };
    rowwise::obc_mask(start, inverse, counts.rule(), bounds)
        .map_err(|error| error.for_layer(job.layer))
}

/// A mask (`true` = kept) that loses less than `kept` if nothing makes up for its zeros, on the undamped H.
pub(super) fn swap_refine<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &Hessian<B>,
    kept: ArrayView2<'_, bool>,
    limit: usize,
) -> Result<Array2<bool>> {
    job.host_operation(Operation::Select);
    let original: Vec<usize> = (0..job.cols).collect();
    let mut chooser = Chooser::new(job);
    let block = chooser.block(job, 0..job.cols, &original);
    let pruned = kept.mapv(|kept| !kept);
    let mut forced = job.forced_block(&original);
    if let Ask::ByScores(_) = chooser.ask(job, &block)?.ask {
        let Some(fixed) = job.settings.mask.fixed_zeros(pruned.view()) else {
            return Err(no_swaps(job.layer, &*job.settings.mask));
        };
        match &mut forced {
            Some(forced) => forced.zip_mut_with(&fixed, |forced, &fixed| *forced |= fixed),
            None => forced = Some(fixed),
        }
    }
    let protected = job.protected_block(&original);
    let bounds = Bounds {
        forced: forced.as_ref().map(|mask| mask.view()),
        protected: protected.as_ref().map(|mask| mask.view()),
    };
    let swaps = Swaps {
        limit,
        group: match job.settings.mask.group() {
            0 | 1 => job.cols,
            group => group,
        },
    };
    let start = in_processing_order(job, dense);
    let h = symmetric(hessian)?;
    let refined = rowwise::swap_refine(start.view(), pruned.view(), h.view(), swaps, bounds)
        .map_err(|error| error.for_layer(job.layer))?;
    Ok(refined.mapv(|pruned| !pruned))
}

/// What came out with the first damping for which H is positive definite.
#[derive(Debug)]
struct Damped<T> {
    value: T,
    /// H + λI.
    h: Array2<f64>,
    /// λ as a fraction of the mean diagonal.
    damping: f64,
    attempts: u32,
}

impl<T> Damped<T> {
    fn factored(&self) -> FactorReport {
        FactorReport {
            damping: self.damping,
            precision: Precision::F64,
            attempts: self.attempts,
        }
    }
}

/// Runs `step` on H + λI, and again with the dampings of the ladder while that is not positive definite.
fn damped_enough<B: Backend, T>(
    job: &Job<'_, B>,
    hessian: &Hessian<B>,
    diagonal: &Diagonal,
    step: impl Fn(ArrayView2<'_, f64>) -> Result<T>,
) -> Result<Damped<T>> {
    let mut h = symmetric(hessian)?;
    let mut last = (0, job.settings.damping);
    let dampings = ladder(job.settings.damping).filter(|&(_, p)| p == Precision::F64);
    for (attempts, (damping, _)) in (1..).zip(dampings) {
        damp(&mut h, diagonal, damping);
        match step(h.view()) {
            Ok(value) => {
                return Ok(Damped {
                    value,
                    h,
                    damping,
                    attempts,
                });
            }
            Err(Error::NotPositiveDefinite { column, .. }) => last = (column, damping),
            Err(error) => return Err(error.for_layer(job.layer)),
        }
    }
    Err(Error::NotPositiveDefinite {
        layer: job.layer.to_owned(),
        column: last.0,
        damping: last.1,
        precision: Precision::F64,
    })
}

/// Puts the damped diagonal in the place of H's.
pub(super) fn damp(h: &mut Array2<f64>, diagonal: &Diagonal, damping: f64) {
    let entries = diagonal.damped(damping, None);
    for (to, &entry) in h.diag_mut().iter_mut().zip(&entries) {
        *to = f64::from(entry);
    }
}

/// Both triangles of H, in f64.
pub(super) fn symmetric<B: Backend>(hessian: &Hessian<B>) -> Result<Array2<f64>> {
    let lower = hessian.to_array()?;
    Ok(Array2::from_shape_fn(lower.dim(), |(row, col)| {
        f64::from(lower[[row.max(col), row.min(col)]])
    }))
}
