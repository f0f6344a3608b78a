//! The blocks of a layer, one after the other: masks and grids are decided, columns swept, updates gathered.

use std::ops::Range;

use ndarray::{Array2, s};

use super::chooser::{Chooser, Chosen};
use super::job::Job;
use super::levels::Levels;
use super::plan::Plan;
use super::schedule::Block;
use crate::backend::{Backend, Gemm, Operation, PruneRef, UpdateRows};
use crate::error::{Result, Stage};
use crate::threads::for_ranges;

/// A layer in the making.
#[derive(Debug)]
pub(super) struct State<B: Backend> {
    /// Updates gathered for columns ahead, current weights in the block, the result behind.
    pub(super) weights: B::Matrix,
    /// Dense weights ahead, dense weights less the result behind.
    pub(super) rest: B::Matrix,
    /// Errors of a block's columns, for updates inside the block.
    errors: B::Matrix,
    /// rows x 1.
    pub(super) losses: B::Matrix,
    pub(super) levels: Option<Levels<B>>,
    chooser: Chooser,
    /// The columns whose mask was chosen last.
    region: Option<(Range<usize>, Chosen<B>)>,
    /// Everything chosen before.
    masks: Vec<(Range<usize>, B::Mask)>,
}

impl<B: Backend> State<B> {
    /// Nothing decided yet. `rest` are the dense weights in processing order.
    pub(super) fn new(
        job: &mut Job<'_, B>,
        plan: &Plan,
        rest: B::Matrix,
        levels: Option<Levels<B>>,
    ) -> Result<Self> {
        Ok(Self {
            weights: job.timed(Stage::Transfer, |job| job.zeros(job.rows, job.cols))?,
            rest,
            errors: job.zeros(job.rows, plan.widest_block())?,
            losses: job.zeros(job.rows, 1)?,
            levels,
            chooser: Chooser::new(job),
            region: None,
            masks: Vec::new(),
        })
    }

    /// All blocks in turn. `factor` is in processing order, `scales` the diagonal of R.
    pub(super) fn solve(
        &mut self,
        job: &mut Job<'_, B>,
        plan: &Plan,
        factor: &B::Matrix,
        scales: &B::Matrix,
    ) -> Result<()> {
        for operation in [
            Operation::UpdateRows,
            Operation::Gemm,
            Operation::OpenBlock,
            Operation::CloseBlock,
        ] {
            job.uses(operation);
        }
        for (index, block) in plan.blocks.iter().enumerate() {
            self.solve_block(job, plan, block, factor, scales)?;
            if let Some((from, to)) = plan.update_after(index) {
                job.timed(Stage::Trailing, |job| {
                    let product = Gemm::new(
                        (&mut self.weights, to.clone()),
                        1.0,
                        (&self.rest, from.clone()),
                        (factor, from, to),
                    );
                    job.backend
                        .gemm(product)
                        .map_err(|e| job.failed(Stage::Trailing, e))
                })?;
            }
        }
        Ok(())
    }

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
    pub(super) fn kept(&mut self, job: &Job<'_, B>) -> Result<Array2<bool>> {
        if let Some((columns, Chosen::Mask(mask))) = self.region.take() {
            self.masks.push((columns, mask));
        }
        let blocks = self
            .masks
            .drain(..)
            .map(|(columns, pruned)| Ok((columns, job.download_mask(&pruned)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut kept = Array2::from_elem((job.rows, job.cols), false);
        for_ranges(&mut kept, |first, mut rows| {
            rows.fill(true);
            for (columns, pruned) in &blocks {
                let pruned = pruned.slice(s![first..first + rows.nrows(), ..]);
                if job.order.is_none() {
                    let mut block = rows.slice_mut(s![.., columns.clone()]);
                    block.zip_mut_with(&pruned, |kept, &pruned| *kept = !pruned);
                    continue;
                }
                for (at, pruned) in columns.clone().zip(pruned.columns()) {
                    let mut column = rows.column_mut(job.original(at));
                    column.zip_mut_with(&pruned, |kept, &pruned| *kept = !pruned);
                }
            }
        });
        Ok(kept)
    }
}
