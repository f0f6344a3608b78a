//! A layer's treatment put together from the parts of its method.

use ndarray::{Array2, ArrayView2};

use super::admm::{Inverse, admm};
use super::ahead::Ahead;
use super::job::Job;
use super::method::{MaskSource, Method, Parts, Refit, Rounding, WeightSolver};
use super::order::ColumnOrder;
use super::own;
use super::prepare::{Diagonal, Factored};
use super::refit::Judge;
use super::rows;
use super::settings::LayerSettings;
use super::sparsegpt::sparsegpt;
use super::target::Recentring;
use super::{Solved, energies, measure, on_mask, without_update};
use crate::backend::Backend;
use crate::error::{Error, Result, Stage};
use crate::hessian::Hessian;
use crate::mask::GivenMask;

/// What layers with the same input share, each made when it is first asked for and kept until another is.
#[derive(Debug)]
pub(super) struct Shared<'t, B: Backend> {
    pub(super) factored: Option<Factored<B>>,
    pub(super) inverse: Option<Inverse<B>>,
    pub(super) recentring: Option<Recentring<B>>,
    pub(super) ahead: Ahead<'t, B>,
}

impl<B: Backend> Default for Shared<'_, B> {
    fn default() -> Self {
        Self {
            factored: None,
            inverse: None,
            recentring: None,
            ahead: Ahead::default(),
        }
    }
}

/// Solves one layer.
pub(super) fn solve<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: Option<&mut Hessian<B>>,
    shared: &mut Shared<'_, B>,
) -> Result<Solved> {
    let parts = job.settings.parts();
    let Some(hessian) = hessian else {
        if job.settings.reads_hessian() {
            return Err(Error::incompatible(
                job.layer,
                format!(
                    "method {} needs calibration statistics",
                    job.settings.describe_method()
                ),
                "accumulate a Hessian for this layer and prune with it",
            ));
        }
        return without_update(job, dense, None);
    };
    if job.settings.method == Method::Best {
        return best(job, dense, hessian, shared);
    }
    if parts.swaps > 0 && job.settings.mask.prunes() {
        return with_swaps(job, dense, hessian, shared, parts);
    }
    // What one pass does by itself.
    match (parts.mask, parts.weights, parts.refit) {
        (MaskSource::Solver, WeightSolver::Sweep, Refit::None) => {
            return sweep(job, dense, hessian, shared);
        }
        (_, WeightSolver::Keep, Refit::None) => {
            return without_update(job, dense, Some(hessian));
        }
        _ => {}
    }
    in_stages(job, dense, hessian, shared, parts)
}

/// All candidates of [`Method::Best`], and the one that loses least.
fn best<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &mut Hessian<B>,
    shared: &mut Shared<'_, B>,
) -> Result<Solved> {
    let mut best: Option<(f64, Solved)> = None;
    for method in Method::CANDIDATES {
        let settings = LayerSettings {
            method,
            measure: true,
            ..job.settings.clone()
        };
        let mut solved = job.stage(dense, &settings, |stage| {
            solve(stage, dense, Some(&mut *hessian), shared)
        })?;
        solved.method = Some(method);
        let held_out = held_out_error(job, dense, &solved.weights, hessian)?;
        let on_calibration = solved.error.map(|(error, _)| error);
        // Where an error overflows, any that is known is better.
        let error = held_out.or(on_calibration).unwrap_or(f64::INFINITY);
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, solved));
        }
    }
    best.map(|(_, solved)| solved)
        .ok_or_else(|| Error::setting("method", "at least one candidate", job.settings.method))
}

/// tr(ΔW H ΔWᵀ) over tr(W H Wᵀ) for the H of what was held out.
pub(super) fn held_out_error<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    weights: &Array2<f32>,
    hessian: &Hessian<B>,
) -> Result<Option<f64>> {
    let Some(held_out) = hessian.held_out() else {
        return Ok(None);
    };
    let diagonal = held_out.diagonal()?;
    let error = job.timed(Stage::Measure, |job| {
        let difference = job.upload_owned(&dense - weights)?;
        energies(job, dense, &difference, held_out.matrix(), &diagonal)
    })?;
    Ok(error.map(|(error, total)| if total > 0.0 { error / total } else { 0.0 }))
}

/// A mask that is chosen and refined, and then whatever the other parts make of it.
fn with_swaps<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &mut Hessian<B>,
    shared: &mut Shared<'_, B>,
    parts: Parts,
) -> Result<Solved> {
    let choosing = LayerSettings {
        quantizer: None,
        measure: false,
        swaps: 0,
        refit: Some(Refit::None),
        ..job.settings.clone()
    };
    let by_solver = parts.mask == MaskSource::Solver && !job.mask_is_given()?;
    let chosen = job.stage(dense, &choosing, |stage| match by_solver {
        true => solve(stage, dense, Some(&mut *hessian), shared),
        false => without_update(stage, dense, Some(&mut *hessian)),
    })?;
    let mask = job.timed(Stage::Select, |job| {
        rows::swap_refine(job, dense, hessian, chosen.mask.view(), parts.swaps)
    })?;
    let settings = LayerSettings {
        mask: std::sync::Arc::new(GivenMask::keeping(mask.view())),
        swaps: 0,
        ..job.settings.clone()
    };
    job.stage(dense, &settings, |stage| {
        solve(stage, dense, Some(hessian), shared)
    })
}

/// The sweep in the order that was asked for.
fn sweep<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &mut Hessian<B>,
    shared: &mut Shared<'_, B>,
) -> Result<Solved> {
    if job.settings.order != ColumnOrder::Best {
        return sparsegpt(job, dense, hessian, shared);
    }
    let diagonal = Diagonal::of(hessian, job.layer)?;
    let moves = |order: ColumnOrder| {
        let columns = order.columns(job.settings, job.layer, dense, &diagonal);
        matches!(columns, Ok(Some(_)))
    };
    let others: Vec<ColumnOrder> = ColumnOrder::OTHERS
        .into_iter()
        .filter(|&order| moves(order))
        .collect();
    let mut in_order = |order| {
        let settings = LayerSettings {
            order,
            measure: true,
            ..job.settings.clone()
        };
        job.stage(dense, &settings, |stage| {
            sparsegpt(stage, dense, hessian, shared)
        })
    };
    // Where an error overflows, any that is known is better.
    let error = |solved: &Solved| solved.error.map_or(f64::INFINITY, |(error, _)| error);
    let mut best = in_order(ColumnOrder::Natural)?;
    for order in others {
        let solved = in_order(order)?;
        if error(&solved) < error(&best) {
            best = solved;
        }
    }
    Ok(best)
}

/// Mask, weights, refit and rounding one after the other. Each stage is a job of its own, with what the others do taken
/// out of its settings.
fn in_stages<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &mut Hessian<B>,
    shared: &mut Shared<'_, B>,
    parts: Parts,
) -> Result<Solved> {
    let mut settings = LayerSettings {
        quantizer: None,
        measure: false,
        mask_source: Some(MaskSource::Solver),
        refit: Some(Refit::None),
        ..job.settings.clone()
    };
    let mut solved = Solved {
        mask: Array2::from_elem(dense.dim(), true),
        weights: dense.to_owned(),
        ..Solved::nothing()
    };
    if job.settings.mask.prunes() {
        if parts.mask != MaskSource::Solver {
            let mut choosing = settings.clone();
            choosing.mask_source = Some(parts.mask);
            solved = job.stage(dense, &choosing, |stage| {
                without_update(stage, dense, Some(&mut *hessian))
            })?;
            settings.mask = std::sync::Arc::new(GivenMask::keeping(solved.mask.view()));
        }
        let choice = solved.factored();
        match parts.weights {
            WeightSolver::Keep => {}
            WeightSolver::Sweep => {
                solved = job.stage(dense, &settings, |stage| {
                    sweep(stage, dense, hessian, shared)
                })?;
            }
            WeightSolver::Admm(_) | WeightSolver::Obc | WeightSolver::Own => {
                solved = job.stage(dense, &settings, |stage| match parts.weights {
                    WeightSolver::Admm(settings) => {
                        admm(stage, dense, hessian, settings, &mut shared.inverse)
                    }
                    WeightSolver::Own => own::solve(stage, dense, hessian),
                    _ => rows::obc(stage, dense, hessian),
                })?;
                // Never above what its own mask leaves without any update.
                let mut masked = dense.to_owned();
                on_mask(&mut masked, solved.mask.view());
                job.timed(Stage::Refit, |job| {
                    let judge = Judge::new(job, dense, hessian)?;
                    judge.take_better_rows(job, &mut solved.weights, masked.view())
                })?;
            }
        }
        let refitted = job.timed(Stage::Refit, |job| {
            let judge = Judge::new(job, dense, hessian)?;
            judge.refit(job, &mut solved.weights, solved.mask.view(), parts.refit)
        })?;
        for factored in [choice, refitted].into_iter().flatten() {
            solved.also_factored(factored);
        }
    }
    if job.settings.quantizer.is_some() {
        settings.quantizer.clone_from(&job.settings.quantizer);
        settings.mask = std::sync::Arc::new(GivenMask::keeping(solved.mask.view()));
        let (target, kept) = (solved.weights.view(), solved.mask.view());
        let rounded = job.stage(target, &settings, |stage| match parts.rounding {
            Rounding::Sweep => sweep(stage, target, hessian, shared).map(Some),
            Rounding::Greedy => rows::obq(stage, target, hessian, kept),
        })?;
        if let Some(mut rounded) = rounded {
            rounded.damping = rounded.damping.max(solved.damping);
            solved = rounded;
        }
    }
    solved.error = job.timed(Stage::Measure, |job| {
        let difference = job.upload_owned(&dense - &solved.weights)?;
        let diagonal = hessian.diagonal()?;
        measure(job, dense, &difference, hessian.matrix(), &diagonal)
    })?;
    solved.solver_loss = solved.error.map(|(error, _)| 0.5 * error);
    Ok(solved)
}
