//! Allocation over layers: how many zeros each layer of a model gets, for a budget of the whole model.
//!
//! An [`Allocator`] divides the budget; [`allocate`] asks it and makes a [`ModelPlan`] with a sparsity of its own for
//! each layer, which [`prune_model`](crate::prune_model) carries out. What an allocator needs to know of the model it
//! gets from a [`Survey`]: weights, inputs or losses, each a pass over the **dense** model.
//!
//! | allocator | what it looks at | cost beside the run itself |
//! |---|---|---|
//! | [`Uniform`] | nothing | none |
//! | [`GlobalMagnitude`] | weights | the weights are read three times, no forward pass |
//! | [`Owl`] | weights and norms of inputs | one calibration pass, nothing is solved |
//! | [`Exact`] | losses of each layer at several sparsities | one calibration pass, each layer solved once a sparsity from one factor |
//!
//! A list of the caller's own is [`ModelPlan::with_settings_per_layer`].
//!
//! Zeros are counted, not estimated: the layers' zeros add up to floor(p · weights) exactly. Where a pattern or
//! method has zeros only in larger portions (a row at a time in `row:50%` and Wanda, a block in `block:16:50%`) they
//! add up to as much of that as the portions allow.

mod exact;
mod magnitude;
mod owl;
mod room;
mod survey;
mod uniform;

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

pub use exact::{Exact, LossScale};
pub use magnitude::GlobalMagnitude;
pub use owl::{Owl, OwlUnit};
pub use room::{LayerRoom, apportion};
pub use survey::{LayerInputs, LayerLoss, Survey};
pub use uniform::Uniform;

use crate::driver::{ModelAdapter, ModelPlan, PlannedLayer, ProgressEvent, Selector};
use crate::error::{Error, Result};
use crate::mask::Sparsity;
use crate::report::{AllocationReport, LayerShare};
use crate::solver::{LayerPruner, LayerSettings};
use room::rooms;
use survey::ModelSurvey;

/// How many zeros a model gets in all, and how far a layer may be from that.
///
/// ```
/// use sparsegpt::allocate::Budget;
/// use sparsegpt::Sparsity;
/// let budget = Budget::new(Sparsity::new(0.5)?)
///     .with_floor(Sparsity::new(0.3)?)
///     .with_ceiling(Sparsity::new(0.7)?);
/// # let _ = budget;
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Budget {
    /// Zeros over weights, of all layers that the plan treats.
    pub sparsity: Sparsity,
    /// No layer gets fewer zeros than floor(this · its weights).
    pub floor: Sparsity,
    /// No layer gets more zeros than ceil(this · its weights).
    pub ceiling: Sparsity,
}

impl Budget {
    /// This sparsity of the whole model, from none to all of a layer.
    #[must_use]
    pub fn new(sparsity: Sparsity) -> Self {
        Self {
            sparsity,
            floor: Sparsity::NONE,
            ceiling: Sparsity::ALL,
        }
    }

    /// At least this sparsity in each layer.
    #[must_use]
    pub fn with_floor(mut self, floor: Sparsity) -> Self {
        self.floor = floor;
        self
    }

    /// At most this sparsity in each layer.
    #[must_use]
    pub fn with_ceiling(mut self, ceiling: Sparsity) -> Self {
        self.ceiling = ceiling;
        self
    }

    /// # Errors
    /// [`Error::InvalidSetting`] unless floor ≤ sparsity ≤ ceiling.
    pub fn validate(&self) -> Result<()> {
        if self.floor > self.sparsity || self.ceiling < self.sparsity {
            return Err(Error::setting(
                "sparsity of the whole model",
                format!(
                    "from {} to {}, the floor and ceiling of a layer",
                    self.floor, self.ceiling
                ),
                self.sparsity,
            ));
        }
        Ok(())
    }

    /// Zeros of the whole model: floor(sparsity · weights).
    #[must_use]
    pub fn zeros(&self, layers: &[LayerRoom]) -> u64 {
        self.sparsity
            .count(layers.iter().map(LayerRoom::weights).sum())
    }
}

/// An allocator's answer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Shares {
    /// Zeros of each layer.
    pub zeros: Vec<u64>,
    /// What the allocator expects to lose, if it knows.
    pub prediction: Option<Prediction>,
}

/// Losses an allocator expects, in its own measure.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// Of each layer.
    pub layers: Vec<f64>,
    /// Of all layers with the same sparsity everywhere, on the same curves.
    pub uniform: f64,
}

impl Shares {
    /// Zeros of each layer.
    #[must_use]
    pub fn new(zeros: Vec<u64>) -> Self {
        Self {
            zeros,
            prediction: None,
        }
    }
}

/// A way of dividing a model's zeros among its layers.
///
/// ```
/// use sparsegpt::allocate::{Allocator, Budget, Shares, Survey, apportion};
///
/// /// Every block a little sparser than the one before it.
/// #[derive(Debug)]
/// struct Ramp(f64);
///
/// impl Allocator for Ramp {
///     fn describe(&self) -> String {
///         format!("ramp of {}", self.0)
///     }
///     fn allocate(&self, model: &mut dyn Survey, budget: &Budget) -> sparsegpt::Result<Shares> {
///         let layers = model.layers();
///         let ideal: Vec<f64> = layers.iter().map(|layer| self.0 * layer.block as f64).collect();
///         // Moved up or down as a whole until the budget is met, and made integers.
///         Ok(Shares::new(apportion(layers, &ideal, budget.zeros(layers))?))
///     }
/// }
/// ```
pub trait Allocator: Debug {
    /// One line for reports, as in `uniform`.
    fn describe(&self) -> String;

    /// Whether it needs calibration sequences.
    fn needs_calibration(&self) -> bool {
        false
    }

    /// Zeros for each of [`Survey::layers`]: between its `low` and `high`, multiples of its `step`, in all
    /// [`Budget::zeros`] or, where steps are larger than 1, as much of it as they allow.
    ///
    /// # Errors
    /// Settings out of range, and whatever the survey meets.
    fn allocate(&self, model: &mut dyn Survey, budget: &Budget) -> Result<Shares>;
}

/// A plan with a sparsity for each layer, found by an allocator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Allocation {
    /// Ready for [`prune_model`](crate::prune_model), whose report repeats the allocation.
    pub plan: ModelPlan,
    /// What each layer got.
    pub report: Arc<AllocationReport>,
}

/// Divides a budget of zeros among the layers that a plan treats.
///
/// The plan says which layers are treated, by which method and with which kind of pattern; its sparsities are replaced.
/// The model is not changed. `sequences` may be empty if the allocator needs none. `progress` is as in
/// [`prune_model`](crate::prune_model).
///
/// ```
/// use std::ops::ControlFlow;
/// use sparsegpt::allocate::{Budget, Owl, allocate};
/// use sparsegpt::{
///     LayerPruner, LayerSettings, ModelAdapter, ModelPlan, Pattern, ProgressEvent, Sparsity, prune_model,
/// };
/// fn prune<A: ModelAdapter>(
///     model: &mut A,
///     pruner: &dyn LayerPruner,
///     sequences: &[A::Sequence],
/// ) -> sparsegpt::Result<()> {
///     let plan = ModelPlan::new(LayerSettings::new(Pattern::unstructured(0.5)?));
///     let budget = Budget::new(Sparsity::new(0.5)?);
///     let mut go_on = |_: &ProgressEvent<'_>| ControlFlow::Continue(());
///     let owl = Owl::default();
///     let found = allocate(model, pruner, sequences, &plan, &budget, &owl, &mut go_on)?;
///     for share in &found.report.layers {
///         println!("{}: {} of {} weights", share.layer, share.zeros, share.weights);
///     }
///     prune_model(model, pruner, sequences, &found.plan, &mut go_on)?;
///     Ok(())
/// }
/// ```
///
/// # Errors
/// If a treated layer's pattern has no free sparsity (N:M, V:N:M, dense, a given mask), the budget cannot be met within
/// floor and ceiling, the settings are out of range, or the survey fails; as [`prune_model`](crate::prune_model) otherwise.
pub fn allocate<A: ModelAdapter>(
    adapter: &mut A,
    pruner: &dyn LayerPruner,
    sequences: &[A::Sequence],
    plan: &ModelPlan,
    budget: &Budget,
    allocator: &dyn Allocator,
    progress: &mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
) -> Result<Allocation> {
    let start = Instant::now();
    budget.validate()?;
    let planned = plan.resolve(adapter)?;
    let layers = rooms(&planned, budget)?;
    let mut survey = ModelSurvey {
        adapter,
        pruner,
        sequences,
        plan,
        planned: &planned,
        layers: &layers,
        progress,
    };
    let shares = allocator.allocate(&mut survey, budget)?;
    check(allocator, &layers, budget, &shares)?;
    let predicted = |at: usize| Some(*shares.prediction.as_ref()?.layers.get(at)?);
    let report = Arc::new(AllocationReport {
        allocator: allocator.describe(),
        sparsity: budget.sparsity,
        floor: budget.floor,
        ceiling: budget.ceiling,
        weights: layers.iter().map(LayerRoom::weights).sum(),
        zeros: shares.zeros.iter().sum(),
        predicted_loss: shares.prediction.as_ref().map(|p| p.layers.iter().sum()),
        uniform_loss: shares.prediction.as_ref().map(|p| p.uniform),
        layers: layers
            .iter()
            .zip(&shares.zeros)
            .enumerate()
            .map(|(at, (layer, &zeros))| LayerShare {
                layer: layer.name.clone(),
                weights: layer.weights(),
                zeros,
                predicted_loss: predicted(at),
            })
            .collect(),
        seconds: start.elapsed().as_secs_f64(),
    });
    let plan = with_zeros(&planned, &layers, &shares.zeros)?
        .calibrated_as(plan)
        .with_allocation(report.clone());
    Ok(Allocation { plan, report })
}

/// Holds a stranger's allocator to its contract.
fn check(
    allocator: &dyn Allocator,
    layers: &[LayerRoom],
    budget: &Budget,
    shares: &Shares,
) -> Result<()> {
    let wanted = budget.zeros(layers);
    let given = shares
        .zeros
        .iter()
        .try_fold(0_u64, |sum, &zeros| sum.checked_add(zeros));
    let largest_step = layers.iter().map(|layer| layer.step).max().unwrap_or(1);
    let fits = shares.zeros.len() == layers.len()
        && layers
            .iter()
            .zip(&shares.zeros)
            .all(|(layer, &zeros)| layer.takes(zeros))
        && given.is_some_and(|given| given <= wanted && wanted - given < largest_step);
    if fits {
        return Ok(());
    }
    Err(Error::incompatible(
        "",
        format!(
            "allocator {:?} gave {} layers {given:?} zeros, where {} layers share {wanted}",
            allocator.describe(),
            shares.zeros.len(),
            layers.len()
        ),
        "keep to low, high and step of each LayerRoom and to Budget::zeros, as allocate::apportion does",
    ))
}

/// A plan for the same layers, each treated one with this many zeros.
pub(super) fn with_zeros(
    planned: &[Vec<PlannedLayer>],
    layers: &[LayerRoom],
    zeros: &[u64],
) -> Result<ModelPlan> {
    let mut shares = layers.iter().zip(zeros);
    let mut settings = Vec::new();
    let mut dense = Vec::new();
    for (index, planned) in planned.iter().flatten().enumerate() {
        settings.push(match &planned.settings {
            None => {
                dense.push(index);
                LayerSettings::new(crate::Pattern::Dense)
            }
            Some(settings) => match shares.next() {
                Some((layer, &zeros)) => LayerSettings {
                    mask: settings
                        .mask
                        .with_zeros(zeros, layer.rows, layer.cols)
                        .ok_or_else(|| room::no_choice(&layer.name, settings))?,
                    ..settings.clone()
                },
                None => settings.clone(),
            },
        });
    }
    let plan =
        ModelPlan::new(LayerSettings::new(crate::Pattern::Dense)).with_settings_per_layer(settings);
    Ok(dense
        .into_iter()
        .fold(plan, |plan, index| plan.skipping(Selector::Index(index))))
}
