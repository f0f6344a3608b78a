//! A whole model, block by block, over a [`ModelAdapter`].
//!
//! Blocks go in order. Block t sees the outputs of the already treated blocks; the Hessians of a block are
//! taken in one pass over the calibration set with that block still dense; then its layers are solved, and
//! the block is run once more with its new weights to give the next block's inputs (paper, section 4).
//! [`prune_model_variants`] treats a model under several plans in one pass, in which all blocks stay dense.

mod adapter;
mod block;
mod keep;
mod plan;
mod run;
mod tap;

use std::error::Error as StdError;
use std::fmt;
use std::ops::ControlFlow;
use std::slice;

use ndarray::ArrayView2;

pub use adapter::{BlockLayer, ModelAdapter, NoTap, Tap};
pub use keep::BlockKeeper;
pub use plan::{LeastTokens, ModelPlan, PlannedLayer, Rule, Selector, Starved};

use crate::error::{Error, Result};
use crate::hessian::Statistics;
use crate::report::{LayerReport, ModelReport};
use crate::solver::{LayerPruner, PrunedLayer};
use run::{Outlet, Run};

/// What a run is doing, for progress bars.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// A block begins.
    BlockStarted {
        /// The block.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
        /// Layers to treat in it.
        layers: usize,
    },
    /// A block that an earlier run has finished has been taken over from it.
    BlockRestored {
        /// The block.
        block: usize,
    },
    /// One or some more sequences have gone through a block to collect its Hessians.
    Calibrated {
        /// The block.
        block: usize,
        /// Sequences done.
        done: usize,
        /// Sequences in all.
        of: usize,
    },
    /// A layer is finished.
    LayerDone {
        /// Its report.
        report: &'a LayerReport,
    },
    /// One or some more sequences have gone through a treated block.
    Propagated {
        /// The block.
        block: usize,
        /// Sequences done.
        done: usize,
        /// Sequences in all.
        of: usize,
    },
    /// A block is finished and handed to the adapter.
    BlockDone {
        /// The block.
        block: usize,
    },
}

/// A run that ended early: the error, and what was finished before it.
///
/// Finished layers have been handed on, to the adapter or to the caller, and stay there.
#[derive(Debug)]
pub struct Interrupted<R = ModelReport> {
    /// What went wrong.
    pub error: Error,
    /// The layers finished before: one report, or one a variant.
    pub finished: R,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ended_early(f, &self.error, slice::from_ref(&self.finished))
    }
}

impl fmt::Display for Interrupted<Vec<ModelReport>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ended_early(f, &self.error, &self.finished)
    }
}

fn ended_early(f: &mut fmt::Formatter<'_>, error: &Error, finished: &[ModelReport]) -> fmt::Result {
    let layers: usize = finished.iter().map(|report| report.layers.len()).sum();
    write!(f, "{error} ({layers} layers were finished)")
}

impl<R: fmt::Debug> StdError for Interrupted<R>
where
    Self: fmt::Display,
{
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        StdError::source(&self.error)
    }
}

impl<R> From<Box<Interrupted<R>>> for Error {
    fn from(interrupted: Box<Interrupted<R>>) -> Self {
        interrupted.error
    }
}

/// A layer that is finished, as [`prune_model_variants`] hands it on and a [`BlockKeeper`] keeps it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FinishedLayer {
    /// The plan it was treated under: an index into the plans.
    pub variant: usize,
    /// The block.
    pub block: usize,
    /// The layer: an index into [`ModelAdapter::layers`] of the block.
    pub layer: usize,
    /// The calibration tokens that have reached it where they were too few, and it was treated as
    /// [`ModelPlan::with_starved`] says.
    pub starved: Option<u64>,
    /// The layer after treatment.
    pub pruned: PrunedLayer,
}

impl FinishedLayer {
    /// A layer that was finished before, to be restored.
    #[must_use]
    pub fn new(
        variant: usize,
        block: usize,
        layer: usize,
        starved: Option<u64>,
        pruned: PrunedLayer,
    ) -> Self {
        Self {
            variant,
            block,
            layer,
            starved,
            pruned,
        }
    }
}

/// Prunes a model: every layer the plan names, block by block.
///
/// `sequences` may be empty if no planned method needs a Hessian. `progress` is called often; returning
/// [`ControlFlow::Break`] stops the run before the next step.
///
/// # Errors
/// The first failure, with the report of the layers finished before it: settings that do not fit a layer
/// (found before any work is done), a failing adapter, NaN in activations, a layer that cannot be solved.
pub fn prune_model<A: ModelAdapter>(
    adapter: &mut A,
    pruner: &dyn LayerPruner,
    sequences: &[A::Sequence],
    plan: &ModelPlan,
    progress: &mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
) -> Result<ModelReport, Box<Interrupted>> {
    with_one_plan(
        Run::new(adapter, pruner, Outlet::Model, progress),
        sequences,
        plan,
    )
}

/// [`prune_model`], in which finished blocks go to a keeper, and blocks that it has from an earlier run are not treated
/// again.
///
/// # Errors
/// As [`prune_model`], and what the keeper returns.
pub fn prune_model_resumable<A: ModelAdapter>(
    adapter: &mut A,
    pruner: &dyn LayerPruner,
    sequences: &[A::Sequence],
    plan: &ModelPlan,
    keeper: &mut dyn BlockKeeper,
    progress: &mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
) -> Result<ModelReport, Box<Interrupted>> {
    let run = Run::new(adapter, pruner, Outlet::Model, progress).keeping(keeper);
    with_one_plan(run, sequences, plan)
}

fn with_one_plan<A: ModelAdapter>(
    run: Run<'_, A>,
    sequences: &[A::Sequence],
    plan: &ModelPlan,
) -> Result<ModelReport, Box<Interrupted>> {
    run.all(sequences, slice::from_ref(plan))
        .map(only)
        .map_err(|interrupted| {
            let Interrupted { error, finished } = *interrupted;
            Box::new(Interrupted {
                error,
                finished: only(finished),
            })
        })
}

/// The report of a run with one plan: there are as many reports as plans.
fn only(mut reports: Vec<ModelReport>) -> ModelReport {
    reports.swap_remove(0)
}

/// Prunes a model under several plans in one pass: other sparsities, patterns or bits of the same model.
///
/// Each block runs once for each sequence, dense. That one run fills the Hessians and gives the next block's
/// inputs; layers are read once, and plans that agree in damping, order and column blocks share a factor.
/// What [`prune_model`] does differently: there a block sees the outputs of the treated blocks before it, so
/// that it can make up for their errors. Here it sees those of the dense ones, whatever the plan, and so the
/// results differ from those of single runs, except where no Hessian is needed. The reports say so in
/// [`ModelReport::propagation`].
///
/// The model is not changed ([`ModelAdapter::replace_weight`] is never called): finished layers go to
/// `finished`, of each block in no particular order. All else is as in [`prune_model`]. Reports come in the
/// order of the plans, one each.
///
/// # Errors
/// As [`prune_model`], with one report a plan; if there is no plan; and what `finished` returns.
pub fn prune_model_variants<A: ModelAdapter>(
    adapter: &mut A,
    pruner: &dyn LayerPruner,
    sequences: &[A::Sequence],
    plans: &[ModelPlan],
    finished: &mut dyn FnMut(FinishedLayer) -> Result<(), Box<dyn StdError + Send + Sync>>,
    progress: &mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
) -> Result<Vec<ModelReport>, Box<Interrupted<Vec<ModelReport>>>> {
    Run::new(adapter, pruner, Outlet::Caller(finished), progress).all(sequences, plans)
}

/// [`prune_model_variants`] with a keeper, as in [`prune_model_resumable`]. Restored layers go to `finished` too.
///
/// # Errors
/// As [`prune_model_variants`], and what the keeper returns.
pub fn prune_model_variants_resumable<A: ModelAdapter>(
    adapter: &mut A,
    pruner: &dyn LayerPruner,
    sequences: &[A::Sequence],
    plans: &[ModelPlan],
    keeper: &mut dyn BlockKeeper,
    finished: &mut dyn FnMut(FinishedLayer) -> Result<(), Box<dyn StdError + Send + Sync>>,
    progress: &mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
) -> Result<Vec<ModelReport>, Box<Interrupted<Vec<ModelReport>>>> {
    Run::new(adapter, pruner, Outlet::Caller(finished), progress)
        .keeping(keeper)
        .all(sequences, plans)
}

/// A layer of the dense model, as [`observe_model`] shows it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ObservedLayer<'a> {
    /// The block.
    pub block: usize,
    /// The layer: an index into [`ModelAdapter::layers`] of the block.
    pub layer: usize,
    /// The layer's name.
    pub name: &'a str,
    /// Its weights, rows x cols.
    pub weights: ArrayView2<'a, f32>,
    /// The statistics of its input, where the planned method needs some.
    pub statistics: Option<&'a dyn Statistics>,
}

/// Runs the dense model over the calibration set and shows the weights and statistics of every layer that the plan
/// names, of each block in no particular order. Nothing is solved and nothing changed.
///
/// Blocks are run as in [`prune_model_variants`], and not at all if no planned method needs a Hessian.
///
/// # Errors
/// As [`prune_model`], and what `seen` returns.
pub fn observe_model<A: ModelAdapter>(
    adapter: &mut A,
    pruner: &dyn LayerPruner,
    sequences: &[A::Sequence],
    plan: &ModelPlan,
    seen: &mut dyn FnMut(&ObservedLayer<'_>) -> Result<()>,
    progress: &mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
) -> Result<()> {
    Run::new(adapter, pruner, Outlet::Observer(seen), progress)
        .all(sequences, slice::from_ref(plan))
        .map(drop)
        .map_err(|interrupted| interrupted.error)
}
