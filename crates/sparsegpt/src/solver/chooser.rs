//! From a policy's answer to a mask, with the exact count kept.

use std::ops::Range;

use ndarray::{Array2, s};

use super::job::Job;
use crate::backend::{Backend, Operation, Select, SelectRule};
use crate::error::{Error, Result, Stage};
use crate::mask::{BlockMask, BlockScores, MaskBlock, runs};

/// What a sweep is told to prune.
#[derive(Debug)]
pub(super) enum Chosen<B: Backend> {
    Keep,
    Mask(B::Mask),
    InFlight { zeros: usize, group: usize },
}

/// Counts what has been pruned and turns a policy's answers into masks.
#[derive(Debug)]
pub(super) struct Chooser {
    /// The part of the policy's zeros that is pruned.
    share: f64,
    pruned: u64,
    pruned_in_row: Vec<usize>,
}

impl Chooser {
    pub(super) fn new<B: Backend>(job: &Job<'_, B>) -> Self {
        Self {
            share: 1.0,
            pruned: 0,
            pruned_in_row: vec![0; job.rows],
        }
    }

    /// Prunes a part of what the policy asks for, the least salient of it. Fixed masks and policies that choose by
    /// scores are taken whole.
    pub(super) fn with_share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    fn part(&self, count: usize) -> usize {
        (self.share * count as f64) as usize
    }

    /// Asks the policy about `columns` (processing order) and chooses on current weights.
    /// `in_flight` allows to leave an N:M choice to the sweep.
    pub(super) fn choose<B: Backend>(
        &mut self,
        job: &mut Job<'_, B>,
        weights: &B::Matrix,
        scales: &B::Matrix,
        columns: Range<usize>,
        in_flight: bool,
    ) -> Result<Chosen<B>> {
        let original: Vec<usize> = columns.clone().map(|at| job.original(at)).collect();
        let block = MaskBlock {
            layer: job.layer,
            rows: job.rows,
            cols: job.cols,
            columns: columns.clone(),
            original_columns: &original,
            pruned_before: self.pruned,
        };
        let policy = job.settings.mask.clone();
        let answer = job.checked(policy.choose(&block)?, columns.len())?;
        let protected = job.protected_block(&original);
        // A weight is forced where its input is dead or the policy says so; the caller's protection wins.
        let mut forced = job.forced_block(&original);
        if let (Some(forced), Some(protected)) = (&mut forced, &protected) {
            forced.zip_mut_with(protected, |forced, &protected| *forced &= !protected);
        }
        let marked = |mask: &Option<Array2<bool>>, row: usize| {
            mask.as_ref().map_or(0, |mask| {
                mask.row(row).iter().filter(|&&marked| marked).count()
            })
        };
        let count_of = |mask: &Option<Array2<bool>>| -> usize {
            mask.as_ref()
                .map_or(0, |mask| mask.iter().filter(|&&marked| marked).count())
        };
        let width = columns.len();
        let counts: Vec<usize>;
        let rule = match answer {
            BlockMask::Keep => return Ok(Chosen::Keep),
            BlockMask::Lowest { target, total } => {
                let available = job.rows * width - count_of(&protected);
                let later = job.unprotected_columns_from(columns.end) * job.unprotected_rows();
                let due = target.max(total.saturating_sub(later as u64));
                let wanted = usize::try_from(due.saturating_sub(self.pruned)).unwrap_or(usize::MAX);
                let count = self.part(wanted).max(count_of(&forced)).min(available);
                self.pruned += count as u64;
                SelectRule::Lowest { count }
            }
            BlockMask::LowestPerRow { target, total } => {
                let later = job.unprotected_columns_from(columns.end);
                let due = target.max(total.saturating_sub(later));
                counts = (0..job.rows)
                    .map(|row| {
                        let available = width - marked(&protected, row);
                        let wanted = due.saturating_sub(self.pruned_in_row[row]);
                        self.part(wanted).max(marked(&forced, row)).min(available)
                    })
                    .collect();
                for (sum, count) in self.pruned_in_row.iter_mut().zip(&counts) {
                    *sum += count;
                }
                self.pruned += counts.iter().sum::<usize>() as u64;
                SelectRule::LowestPerRow { counts: &counts }
            }
            BlockMask::NofM { zeros, group } => {
                self.pruned += (job.unprotected_rows() * (width / group) * zeros) as u64;
                if in_flight {
                    return Ok(Chosen::InFlight { zeros, group });
                }
                // Dead weights are zero and so come first by themselves.
                forced = None;
                SelectRule::NofM { zeros, group }
            }
            BlockMask::Fixed(mask) => return self.fixed(job, mask, protected, width),
            BlockMask::LowestRuns { .. } | BlockMask::ByScores => {
                job.host_operation(Operation::Select);
                let current = job.download(weights)?;
                let scales = job.download(scales)?;
                let scores = BlockScores {
                    weights: current.slice(s![.., columns.clone()]),
                    scales: scales.slice(s![0, columns]),
                    protected: protected.as_ref().map(|protected| protected.view()),
                };
                let mask = match answer {
                    BlockMask::LowestRuns { run, target, total } => {
                        let count = self.runs(job, &block, &scores, (run, target, total))?;
                        runs::lowest(&scores, run, count)
                    }
                    _ => policy.choose_by_scores(&block, &scores)?,
                };
                return self.fixed(job, mask, protected, width);
            }
        };
        let share_of_groups = match rule {
            SelectRule::NofM { zeros, group } if self.share < 1.0 => {
                Some(self.part(job.rows * (width / group) * zeros))
            }
            _ => None,
        };
        job.uses(Operation::Select);
        let upload = |mask: Option<Array2<bool>>| {
            mask.map(|mask| job.backend.upload_mask(mask.view()))
                .transpose()
        };
        let forced = upload(forced).map_err(|e| job.failed(Stage::Transfer, e))?;
        let protected = upload(protected).map_err(|e| job.failed(Stage::Transfer, e))?;
        let select = Select::new(weights, scales, columns.clone(), rule)
            .constrained(forced.as_ref(), protected.as_ref());
        let mask = job
            .backend
            .select(select)
            .map_err(|e| job.failed(Stage::Select, e))?;
        let Some(count) = share_of_groups else {
            return Ok(Chosen::Mask(mask));
        };
        // The least salient of what the groups lose: all others are protected.
        let others = job.download_mask(&mask)?.mapv(|pruned| !pruned);
        let others = job.upload_mask(others.view())?;
        let select = Select::new(weights, scales, columns, SelectRule::Lowest { count })
            .constrained(None, Some(&others));
        let mask = job
            .backend
            .select(select)
            .map_err(|e| job.failed(Stage::Select, e))?;
        Ok(Chosen::Mask(mask))
    }

    /// How many runs of a block to prune.
    fn runs<B: Backend>(
        &self,
        job: &Job<'_, B>,
        block: &MaskBlock<'_>,
        scores: &BlockScores<'_>,
        (run, target, total): (usize, u64, u64),
    ) -> Result<usize> {
        if run == 0
            || !block.columns.len().is_multiple_of(run)
            || !block.columns.start.is_multiple_of(run)
        {
            return Err(Error::incompatible(
                job.layer,
                format!(
                    "mask policy {:?} asks for runs of {run} in columns {} to {}",
                    job.settings.mask.describe(),
                    block.columns.start,
                    block.columns.end
                ),
                "implement MaskPolicy::group and refuse layers whose columns it does not divide",
            ));
        }
        let later = (block.columns.end..job.cols)
            .step_by(run)
            .filter(|&first| {
                (first..first + run).all(|at| !job.protected_columns[job.original(at)])
            })
            .count()
            * run
            * job.unprotected_rows();
        let due = target.max(total.saturating_sub(later as u64));
        let wanted = usize::try_from(due.saturating_sub(self.pruned)).unwrap_or(usize::MAX) / run;
        let available = runs::free(scores, run).count();
        if later == 0 && wanted > available {
            return Err(Error::incompatible(
                job.layer,
                format!(
                    "pattern {} needs {} more runs of {run} weights than protected rows and columns leave",
                    job.settings.mask.describe(),
                    wanted - available
                ),
                "protect less or ask for fewer zeros",
            ));
        }
        Ok(wanted.min(available))
    }

    fn fixed<B: Backend>(
        &mut self,
        job: &Job<'_, B>,
        mut mask: Array2<bool>,
        protected: Option<Array2<bool>>,
        width: usize,
    ) -> Result<Chosen<B>> {
        if mask.dim() != (job.rows, width) {
            return Err(Error::Shape {
                layer: job.layer.to_owned(),
                what: "the mask of a block",
                expected: format!("{} x {width}", job.rows),
                found_rows: mask.nrows(),
                found_cols: mask.ncols(),
            });
        }
        if let Some(protected) = protected {
            mask.zip_mut_with(&protected, |prune, &protected| *prune &= !protected);
        }
        self.pruned += mask.iter().filter(|&&pruned| pruned).count() as u64;
        let mask = job
            .backend
            .upload_mask(mask.view())
            .map_err(|e| job.failed(Stage::Transfer, e))?;
        Ok(Chosen::Mask(mask))
    }
}
