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

/// A policy's answer for a job.
#[derive(Debug)]
pub(super) enum Ask {
    Keep,
    Lowest(Counts),
    /// rows x width, without the protected weights.
    Fixed(Array2<bool>),
    /// By the policy itself, or where there are runs whole runs of them.
    ByScores(Option<Runs>),
}

/// Runs of consecutive weights to prune; see [`BlockMask::LowestRuns`].
#[derive(Debug)]
pub(super) struct Runs {
    pub(super) run: usize,
    target: u64,
    total: u64,
}

/// A [`SelectRule`] with its numbers.
#[derive(Debug)]
pub(super) enum Counts {
    All(usize),
    EachRow(Vec<usize>),
    Groups { zeros: usize, group: usize },
}

impl Counts {
    pub(super) fn rule(&self) -> SelectRule<'_> {
        match *self {
            Self::All(count) => SelectRule::Lowest { count },
            Self::EachRow(ref counts) => SelectRule::LowestPerRow { counts },
            Self::Groups { zeros, group } => SelectRule::NofM { zeros, group },
        }
    }
}

/// What is to be chosen among some columns, and where there is no choice (rows x width).
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ask: Ask,
    /// Without the protected weights.
    pub(super) forced: Option<Array2<bool>>,
    pub(super) protected: Option<Array2<bool>>,
}

/// Counts what has been pruned and turns a policy's answers into masks.
#[derive(Debug)]
pub(super) struct Chooser {
    /// The part of the policy's zeros that is pruned.
    share: f64,
    pruned: u64,
    pruned_in_row: Vec<usize>,
    /// Of each row, the weights without a choice that no block has asked about yet; counted at the first one.
    forced_later: Option<Vec<usize>>,
}

impl Chooser {
    pub(super) fn new<B: Backend>(job: &Job<'_, B>) -> Self {
        Self {
            share: 1.0,
            pruned: 0,
            pruned_in_row: vec![0; job.rows],
            forced_later: None,
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
        let block = self.block(job, columns.clone(), &original);
        let Asked {
            ask,
            forced,
            protected,
        } = self.ask(job, &block)?;
        let rule = match &ask {
            Ask::Keep => return Ok(Chosen::Keep),
            Ask::Lowest(Counts::Groups { zeros, group }) if in_flight => {
                return Ok(Chosen::InFlight {
                    zeros: *zeros,
                    group: *group,
                });
            }
            Ask::Lowest(counts) => counts.rule(),
            Ask::Fixed(mask) => return Ok(Chosen::Mask(job.upload_mask(mask.view())?)),
            Ask::ByScores(runs) => {
                job.host_operation(Operation::Select);
                let current = job.download(weights)?;
                let scales = job.download(scales)?;
                let scores = BlockScores {
                    weights: current.slice(s![.., columns.clone()]),
                    scales: scales.slice(s![0, columns]),
                    protected: protected.as_ref().map(|protected| protected.view()),
                };
                let mask = self.by_scores(job, &block, &scores, runs.as_ref())?;
                return Ok(Chosen::Mask(job.upload_mask(mask.view())?));
            }
        };
        let share_of_groups = match rule {
            SelectRule::NofM { zeros, group } if self.share < 1.0 => {
                Some(self.part(job.rows * (columns.len() / group) * zeros))
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

    pub(super) fn block<'b, B: Backend>(
        &self,
        job: &Job<'b, B>,
        columns: Range<usize>,
        original: &'b [usize],
    ) -> MaskBlock<'b> {
        MaskBlock {
            layer: job.layer,
            rows: job.rows,
            cols: job.cols,
            columns,
            original_columns: original,
            pruned_before: self.pruned,
        }
    }

    /// Asks the policy, and counts what it answers as pruned.
    pub(super) fn ask<B: Backend>(
        &mut self,
        job: &Job<'_, B>,
        block: &MaskBlock<'_>,
    ) -> Result<Asked> {
        let (columns, original) = (&block.columns, block.original_columns);
        let answer = job.checked(job.settings.mask.choose(block)?, columns.len())?;
        let protected = job.protected_block(original);
        // A weight is forced where its input is dead or the policy says so; the caller's protection wins.
        let mut forced = job.forced_block(original);
        if let (Some(forced), Some(protected)) = (&mut forced, &protected) {
            forced.zip_mut_with(protected, |forced, &protected| *forced &= !protected);
        }
        let marked = |mask: &Option<Array2<bool>>, row: usize| {
            mask.as_ref().map_or(0, |mask| {
                mask.row(row).iter().filter(|&&marked| marked).count()
            })
        };
        let forced_later = self.forced_after(job, forced.as_ref());
        let count_of = |mask: &Option<Array2<bool>>| -> usize {
            mask.as_ref()
                .map_or(0, |mask| mask.iter().filter(|&&marked| marked).count())
        };
        let width = columns.len();
        let ask = match answer {
            BlockMask::Keep => Ask::Keep,
            BlockMask::Lowest { target, total } => {
                let available = job.rows * width - count_of(&protected);
                let later = job.unprotected_columns_from(columns.end) * job.unprotected_rows();
                let due = target.max(total.saturating_sub(later as u64));
                let wanted = usize::try_from(due.saturating_sub(self.pruned)).unwrap_or(usize::MAX);
                // What has no choice in later blocks counts too.
                let left =
                    total.saturating_sub(self.pruned + forced_later.iter().sum::<usize>() as u64);
                let most = usize::try_from(left).unwrap_or(usize::MAX);
                let count = self
                    .part(wanted)
                    .min(most)
                    .max(count_of(&forced))
                    .min(available);
                self.pruned += count as u64;
                Ask::Lowest(Counts::All(count))
            }
            BlockMask::LowestPerRow { target, total } => {
                let later = job.unprotected_columns_from(columns.end);
                let due = target.max(total.saturating_sub(later));
                let counts: Vec<usize> = (0..job.rows)
                    .map(|row| {
                        let available = width - marked(&protected, row);
                        let wanted = due.saturating_sub(self.pruned_in_row[row]);
                        let most =
                            total.saturating_sub(self.pruned_in_row[row] + forced_later[row]);
                        self.part(wanted)
                            .min(most)
                            .max(marked(&forced, row))
                            .min(available)
                    })
                    .collect();
                for (sum, count) in self.pruned_in_row.iter_mut().zip(&counts) {
                    *sum += count;
                }
                self.pruned += counts.iter().sum::<usize>() as u64;
                Ask::Lowest(Counts::EachRow(counts))
            }
            BlockMask::NofM { zeros, group } => {
                self.pruned += (job.unprotected_rows() * (width / group) * zeros) as u64;
                // Dead weights are zero and so come first by themselves.
                forced = None;
                Ask::Lowest(Counts::Groups { zeros, group })
            }
            BlockMask::Fixed(mask) => {
                Ask::Fixed(self.fixed(job, mask, protected.as_ref(), width)?)
            }
            BlockMask::ByScores => Ask::ByScores(None),
            BlockMask::LowestRuns { run, target, total } => {
                Ask::ByScores(Some(Runs { run, target, total }))
            }
        };
        Ok(Asked {
            ask,
            forced,
            protected,
        })
    }

    /// Of each row, the weights without a choice behind a block whose own are `forced`.
    fn forced_after<B: Backend>(
        &mut self,
        job: &Job<'_, B>,
        forced: Option<&Array2<bool>>,
    ) -> Vec<usize> {
        let later = self.forced_later.get_or_insert_with(|| forced_in_rows(job));
        if let Some(forced) = forced {
            for (later, row) in later.iter_mut().zip(forced.rows()) {
                *later -= row.iter().filter(|&&marked| marked).count();
            }
        }
        later.clone()
    }

    /// The choice for [`Ask::ByScores`].
    pub(super) fn by_scores<B: Backend>(
        &mut self,
        job: &Job<'_, B>,
        block: &MaskBlock<'_>,
        scores: &BlockScores<'_>,
        runs: Option<&Runs>,
    ) -> Result<Array2<bool>> {
        let mask = match runs {
            Some(asked) => {
                let count = self.runs(job, block, scores, asked)?;
                runs::lowest(scores, asked.run, count)
            }
            None => job.settings.mask.choose_by_scores(block, scores)?,
        };
        let protected = scores.protected.map(|protected| protected.to_owned());
        self.fixed(job, mask, protected.as_ref(), block.columns.len())
    }

    /// How many runs of a block to prune.
    pub(super) fn runs<B: Backend>(
        &self,
        job: &Job<'_, B>,
        block: &MaskBlock<'_>,
        scores: &BlockScores<'_>,
        &Runs { run, target, total }: &Runs,
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
        protected: Option<&Array2<bool>>,
        width: usize,
    ) -> Result<Array2<bool>> {
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
            mask.zip_mut_with(protected, |prune, &protected| *prune &= !protected);
        }
        self.pruned += mask.iter().filter(|&&pruned| pruned).count() as u64;
        Ok(mask)
    }
}

/// Of each row, the weights that are pruned whatever their saliency: their input is dead or the policy says so, and the caller
/// does not protect them.
fn forced_in_rows<B: Backend>(job: &Job<'_, B>) -> Vec<usize> {
    let by_policy = job.settings.mask.forced();
    let free = || (0..job.cols).filter(|&column| !job.protected_columns[column]);
    let dead = free().filter(|&column| job.is_dead(column)).count();
    let in_row = |row: usize| match &by_policy {
        _ if job.protected_rows[row] => 0,
        Some(forced) => free()
            .filter(|&column| job.is_dead(column) || forced[[row, column]])
            .count(),
        None => dead,
    };
    (0..job.rows).map(in_row).collect()
}
