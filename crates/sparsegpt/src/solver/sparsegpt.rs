//! The paper's Algorithm 1, with Eq. 7 where a quantizer is given, block by block, looking back.
//!
//! With H = UUᵀ, W the dense weights and Ŵ the result, the current weights of a block B, after all columns
//! before it are final, are W_B + (W − Ŵ)_{<B} U_{<B,B} U_BB⁻¹: the form of QuIP's LDLQ (Chee et al. 2023), equal
//! to the paper's lazy updates by R = U⁻¹ in exact arithmetic. It needs no inverse of more than the diagonal blocks,
//! and two matrices of the layer's size: one gathers (W − Ŵ)U and then holds Ŵ, one holds W and then W − Ŵ.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

use super::chooser::{Chooser, Chosen};
use super::job::Job;
use super::levels::{self, Levels};
use super::prepare::{Diagonal, FactorSettings, Factored};
use super::schedule::{Block, Cuts, WIDEST_SWEEP};
use super::{Solved, in_original_order, in_processing_order, measure, slices};
use crate::backend::{Backend, Gemm, Operation, PruneRef, UpdateRows};
use crate::error::{Error, Result, Stage};
use crate::hessian::Hessian;

/// Solves one layer.
pub(super) fn sparsegpt<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &mut Hessian<B>,
    factored: &mut Option<Factored<B>>,
) -> Result<Solved> {
    let diagonal = Diagonal::of(hessian, job.layer)?;
    let settings = job.settings;
    job.order = settings
        .act_order
        .then(|| diagonal.descending(settings.mask.group().max(1)));
    job.dead.clone_from(&diagonal.dead);

    let start = in_processing_order(job, dense);
    let plan = Plan::new(job, levels::dynamic(job));

    let asked = FactorSettings {
        damping: settings.damping,
        order: job.order.clone(),
        blocks: plan.blocks.iter().map(|block| block.columns.end).collect(),
    };
    if !factored.as_ref().is_some_and(|known| known.suits(&asked)) {
        // Drop the old one first: its matrix may be as large as the Hessian.
        *factored = None;
        *factored = Some(job.timed(Stage::Factor, |job| {
            if asked.order.is_some() {
                job.uses(Operation::PermuteHessian);
            }
            Factored::new(job.backend, hessian, &diagonal, asked, job.layer)
        })?);
    }
    let Some(factored) = factored.as_ref() else {
        return Err(Error::NothingToPrune {
            reason: "no factor was made".to_owned(),
        });
    };
    let made = Made {
        factor: factored.own.as_ref().unwrap_or_else(|| hessian.matrix()),
        scales: &factored.scales,
        diagonal: diagonal.ordered(job.order.as_deref()),
    };
    let solved = match slices::of(job, plan.widest_block())? {
        None => solve_rows(job, start.view(), &plan, &made)?,
        Some(slices) => {
            let mut whole = slices::Whole::new(job);
            for rows in slices {
                let mut part = job.of_rows(rows.clone());
                let solved =
                    solve_rows(&mut part, start.slice(s![rows.clone(), ..]), &plan, &made)?;
                job.merge(part);
                whole.put(rows, solved);
            }
            whole.finish()
        }
    };
    Ok(Solved {
        damping: factored.damping,
        precision: Some(factored.precision),
        attempts: factored.attempts,
        ..solved
    })
}

/// What all rows of a layer share.
#[derive(Debug)]
struct Made<'a, B: Backend> {
    factor: &'a B::Matrix,
    /// The diagonal of R, 1 x cols.
    scales: &'a B::Matrix,
    /// That of H, in the order of processing.
    diagonal: Vec<f32>,
}

/// Solves the rows of a job, dense weights in the order of processing.
fn solve_rows<B: Backend>(
    job: &mut Job<'_, B>,
    start: ArrayView2<'_, f32>,
    plan: &Plan,
    made: &Made<'_, B>,
) -> Result<Solved> {
    let factor = made.factor;
    let rest = job.timed(Stage::Transfer, |job| job.upload(start))?;
    let levels = job.timed(Stage::Grid, |job| {
        Levels::new(job, in_original_order(job, start.into()).view(), &rest)
    })?;
    let mut state = State {
        weights: job.timed(Stage::Transfer, |job| job.zeros(job.rows, job.cols))?,
        rest,
        errors: job.zeros(job.rows, plan.widest_block())?,
        losses: job.zeros(job.rows, 1)?,
        levels,
        chooser: Chooser::new(job),
        region: None,
        masks: Vec::new(),
    };
    for operation in [
        Operation::UpdateRows,
        Operation::Gemm,
        Operation::OpenBlock,
        Operation::CloseBlock,
    ] {
        job.uses(operation);
    }
    for (index, block) in plan.blocks.iter().enumerate() {
        state.solve_block(job, plan, block, factor, made.scales)?;
        if let Some((from, to)) = plan.update_after(index) {
            job.timed(Stage::Trailing, |job| {
                let product = Gemm::new(
                    (&mut state.weights, to.clone()),
                    1.0,
                    (&state.rest, from.clone()),
                    (factor, from, to),
                );
                job.backend
                    .gemm(product)
                    .map_err(|e| job.failed(Stage::Trailing, e))
            })?;
        }
    }

    let squares = job.download(&state.losses)?;
    let solver_loss = 0.5 * squares.iter().map(|&square| f64::from(square)).sum::<f64>();
    let error = job.timed(Stage::Measure, |job| {
        measure(job, start, &state.rest, factor, &made.diagonal)
    })?;
    let mask = job.timed(Stage::Transfer, |job| state.kept(job))?;
    let weights = job.timed(Stage::Transfer, |job| job.download_owned(state.weights))?;
    let weights = in_original_order(job, weights.into()).into_owned();
    let quantized = state
        .levels
        .map(|levels| levels.finish(job, weights.view()))
        .transpose()?;
    Ok(Solved {
        weights,
        mask,
        quantized,
        solver_loss: Some(solver_loss).filter(|loss| loss.is_finite()),
        error,
        damping: 0.0,
        precision: None,
        attempts: 0,
    })
}

/// Which columns are decided and swept together.
#[derive(Debug)]
struct Plan {
    blocks: Vec<Block>,
    /// Whether the sweep chooses the N:M groups itself.
    in_flight: bool,
    /// Columns whose mask is chosen together before they are swept.
    mask_region: Option<usize>,
}

impl Plan {
    fn new<B: Backend>(job: &Job<'_, B>, grid_region: Option<usize>) -> Self {
        let settings = job.settings;
        let group = settings.mask.group().max(1);
        let in_flight = group > 1
            && group <= settings.block_size.min(WIDEST_SWEEP)
            && settings.protected_columns.is_empty()
            && settings.protected_rows.is_empty()
            && grid_region.is_none_or(|size| size % group == 0);
        let mask_region = match () {
            () if in_flight || !settings.mask.prunes() => None,
            () if group > 1 => Some(group),
            () => Some(settings.mask_block_size),
        };
        let cuts = Cuts {
            cols: job.cols,
            block: settings.block_size,
            mask_region,
            grid_region,
            unit: if in_flight { group } else { 1 },
        };
        Self {
            blocks: cuts.blocks(),
            in_flight,
            mask_region,
        }
    }

    fn widest_block(&self) -> usize {
        let widths = self.blocks.iter().map(|block| block.columns.len());
        widths.max().unwrap_or(0)
    }

    /// The product that follows a block: from which columns to which. Halving the columns recursively and
    /// updating the second half when the first is final makes few, large products.
    fn update_after(&self, index: usize) -> Option<(Range<usize>, Range<usize>)> {
        let done = index + 1;
        let span = 1 << done.trailing_zeros();
        let last = (done + span).min(self.blocks.len()) - 1;
        (done < self.blocks.len()).then(|| {
            let end = self.blocks[index].columns.end;
            (
                self.blocks[done - span].columns.start..end,
                end..self.blocks[last].columns.end,
            )
        })
    }
}

/// A layer in the making.
#[derive(Debug)]
struct State<B: Backend> {
    /// Updates gathered for columns ahead, current weights in the block, the result behind.
    weights: B::Matrix,
    /// Dense weights ahead, dense weights less the result behind.
    rest: B::Matrix,
    /// Errors of a block's columns, for updates inside the block.
    errors: B::Matrix,
    /// rows x 1.
    losses: B::Matrix,
    levels: Option<Levels<B>>,
    chooser: Chooser,
    /// The columns whose mask was chosen last.
    region: Option<(Range<usize>, Chosen<B>)>,
    /// Everything chosen before.
    masks: Vec<(Range<usize>, B::Mask)>,
}

impl<B: Backend> State<B> {
    fn solve_block(
        &mut self,
        job: &mut Job<'_, B>,
        plan: &Plan,
        block: &Block,
        factor: &B::Matrix,
        scales: &B::Matrix,
    ) -> Result<()> {
        let columns = &block.columns;
        job.timed(Stage::Trailing, |job| {
            job.backend
                .open_block(&mut self.weights, &self.rest, factor, columns.clone())
                .map_err(|e| job.failed(Stage::Trailing, e))
        })?;
        for sweep in &block.sweeps {
            self.decide(job, plan, sweep, scales)?;
            self.sweep(job, columns, sweep, factor)?;
        }
        job.timed(Stage::Trailing, |job| {
            job.backend
                .close_block(&mut self.rest, &self.weights, columns.clone())
                .map_err(|e| job.failed(Stage::Trailing, e))
        })
    }

    /// Mask and grid, where they are decided at this sweep.
    fn decide(
        &mut self,
        job: &mut Job<'_, B>,
        plan: &Plan,
        sweep: &Range<usize>,
        scales: &B::Matrix,
    ) -> Result<()> {
        let starts_region = plan
            .mask_region
            .map_or(plan.in_flight, |size| sweep.start.is_multiple_of(size));
        if starts_region && job.settings.mask.prunes() {
            let columns = match plan.mask_region {
                Some(size) => sweep.start..(sweep.start + size).min(job.cols),
                None => sweep.clone(),
            };
            let chosen = job.timed(Stage::Select, |job| {
                let weights = &self.weights;
                self.chooser
                    .choose(job, weights, scales, columns.clone(), plan.in_flight)
            })?;
            if let Some((columns, Chosen::Mask(mask))) = self.region.replace((columns, chosen)) {
                self.masks.push((columns, mask));
            }
        }
        if let Some(levels) = &mut self.levels {
            job.timed(Stage::Grid, |job| {
                levels.enter(job, &self.weights, sweep.start)
            })?;
        }
        Ok(())
    }

    fn sweep(
        &mut self,
        job: &mut Job<'_, B>,
        block: &Range<usize>,
        sweep: &Range<usize>,
        factor: &B::Matrix,
    ) -> Result<()> {
        let prune = match &self.region {
            Some((columns, Chosen::Mask(mask))) => PruneRef::Fixed {
                mask,
                offset: sweep.start - columns.start,
            },
            Some((_, Chosen::InFlight { zeros, group })) => PruneRef::NofM {
                zeros: *zeros,
                group: *group,
            },
            _ => PruneRef::Keep,
        };
        let (first, end) = (sweep.start - block.start, sweep.end - block.start);
        let chosen_on_the_way = job.timed(Stage::UpdateRows, |job| {
            let levels = self.levels.as_ref();
            let args = UpdateRows::new(
                &mut self.weights,
                factor,
                (&mut self.errors, first),
                &mut self.losses,
                sweep.clone(),
            )
            .pruning(prune)
            .rounding(levels.map(|levels| levels.grid(sweep.clone())));
            job.backend
                .update_rows(args)
                .map_err(|e| job.failed(Stage::UpdateRows, e))
        })?;
        if let Some(mask) = chosen_on_the_way {
            self.masks.push((sweep.clone(), mask));
        }
        if sweep.end == block.end {
            return Ok(());
        }
        // The rest of the block: W −= E·R.
        job.timed(Stage::Trailing, |job| {
            let behind = sweep.end..block.end;
            let product = Gemm::new(
                (&mut self.weights, behind.clone()),
                -1.0,
                (&self.errors, first..end),
                (factor, sweep.clone(), behind),
            );
            job.backend
                .gemm(product)
                .map_err(|e| job.failed(Stage::Trailing, e))
        })
    }

    /// What was kept, in the original order.
    fn kept(&mut self, job: &Job<'_, B>) -> Result<Array2<bool>> {
        let mut kept = Array2::from_elem((job.rows, job.cols), true);
        if let Some((columns, Chosen::Mask(mask))) = self.region.take() {
            self.masks.push((columns, mask));
        }
        for (columns, pruned) in self.masks.drain(..) {
            let pruned = job
                .backend
                .download_mask(&pruned)
                .map_err(|e| job.failed(Stage::Transfer, e))?;
            if job.order.is_none() {
                let mut block = kept.slice_mut(s![.., columns]);
                block.zip_mut_with(&pruned, |kept, &pruned| *kept = !pruned);
                continue;
            }
            for (at, pruned) in columns.zip(pruned.columns()) {
                let mut column = kept.column_mut(job.original(at));
                column.zip_mut_with(&pruned, |kept, &pruned| *kept = !pruned);
            }
        }
        Ok(kept)
    }
}
