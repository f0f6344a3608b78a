//! What happened to a layer, and to a model.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Operation, Precision, Products};
use crate::driver::Starved;
use crate::error::Stage;
use crate::mask::Sparsity;
use crate::solver::ColumnOrder;

/// Seconds spent, stage by stage.
///
/// On a backend that works asynchronously a stage's seconds are those of the host; the total is right
/// everywhere.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StageSeconds {
    /// Copies to and from the device, permutations.
    pub transfer: f64,
    /// Factorization. For layers that share an input it stands with the first one.
    pub factor: f64,
    /// Choice of the weights to prune.
    pub select: f64,
    /// Fit of quantization grids.
    pub grid: f64,
    /// Sweeps over the blocks.
    pub update_rows: f64,
    /// Updates of the columns behind a block.
    pub trailing: f64,
    /// Improving the weights on the mask that came out.
    pub refit: f64,
    /// Measuring the reconstruction error.
    pub measure: f64,
    /// Everything, from validation to result.
    pub total: f64,
}

impl StageSeconds {
    pub(crate) fn add(&mut self, stage: Stage, time: Duration) {
        let slot = match stage {
            Stage::Factor => &mut self.factor,
            Stage::Select => &mut self.select,
            Stage::Grid => &mut self.grid,
            Stage::UpdateRows => &mut self.update_rows,
            Stage::Trailing => &mut self.trailing,
            Stage::Refit => &mut self.refit,
            Stage::Measure => &mut self.measure,
            Stage::Hessian | Stage::Transfer => &mut self.transfer,
        };
        *slot += time.as_secs_f64();
    }

    /// Adds the stages of a part; the total is the whole's own.
    pub(crate) fn take_in(&mut self, part: &Self) {
        self.transfer += part.transfer;
        self.factor += part.factor;
        self.select += part.select;
        self.grid += part.grid;
        self.update_rows += part.update_rows;
        self.trailing += part.trailing;
        self.refit += part.refit;
        self.measure += part.measure;
    }
}

/// How a factorization went.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FactorReport {
    /// Damping used, as a fraction of the mean diagonal.
    pub damping: f64,
    /// Precision of the one that succeeded.
    pub precision: Precision,
    /// Factorizations tried, 1 where the first one succeeded.
    pub attempts: u32,
}

/// What happened to one layer.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerReport {
    /// The layer's name.
    pub layer: String,
    /// Rows: output features.
    pub rows: usize,
    /// Columns: input features.
    pub cols: usize,
    /// The method, as in `sparsegpt`.
    pub method: String,
    /// The mask policy, as in `2:4`.
    pub pattern: String,
    /// The quantization scheme, if any.
    pub quantization: Option<String>,
    /// Weights the mask policy pruned.
    pub pruned: u64,
    /// Weights that are exactly zero in the result: the pruned ones, those of dead columns, and those a
    /// quantizer rounded to zero.
    pub zeros: u64,
    /// Input features that were zero for every calibration token.
    pub dead_columns: usize,
    /// ½ Σ err², what the reference implementation prints: ½ tr(ΔW (H + λI) ΔWᵀ). `None` without a
    /// Hessian, or where f32 overflows on the way.
    pub solver_loss: Option<f64>,
    /// tr(ΔW H ΔWᵀ) on the undamped H, measured on the result. `None` without a Hessian or where measuring
    /// was switched off, or where f32 overflows on the way.
    pub reconstruction_error: Option<f64>,
    /// [`Self::reconstruction_error`] over tr(W H Wᵀ).
    pub relative_error: Option<f64>,
    /// The relative error on data that were held out; `None` where none were.
    pub held_out_error: Option<f64>,
    /// Damping used, as a fraction of the mean diagonal of H; more than asked for where the factorization
    /// needed it. Where ADMM has set the weights, its own if that is larger, a fraction of each diagonal entry
    /// ([`Admm::damping`](crate::solver::Admm::damping)). 0 for methods without a factorization.
    pub damping: f64,
    /// Precision of the factorization that succeeded; `None` for methods without one.
    pub precision: Option<Precision>,
    /// Factorizations tried, 1 where the first one succeeded.
    pub factor_attempts: u32,
    /// The order in which the columns were swept: the natural one where another was asked for that moves none; `None` without a
    /// sweep.
    pub order: Option<ColumnOrder>,
    /// Calibration tokens behind the Hessian.
    pub tokens: u64,
    /// Calibration sequences behind the Hessian.
    pub sequences: u64,
    /// The backend.
    pub backend: String,
    /// What the backend's large products multiplied, the trailing updates' operands.
    pub products: Products,
    /// Operations that ran on the host because the backend or the policy has no native way.
    pub host_operations: Vec<Operation>,
    /// The inverse of H behind the targets that give the dense model's outputs
    /// ([`LayerSettings::dense_targets`](crate::LayerSettings::dense_targets)), which the layers with the same input share;
    /// `None` without such targets.
    #[cfg_attr(feature = "serde", serde(default))]
    pub dense_targets: Option<FactorReport>,
    /// Time spent.
    pub seconds: StageSeconds,
}

impl LayerReport {
    /// Zeros over weights.
    #[must_use]
    pub fn zero_fraction(&self) -> f64 {
        self.zeros as f64 / (self.rows * self.cols) as f64
    }
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} x {}, {} {}",
            self.layer, self.rows, self.cols, self.method, self.pattern
        )?;
        if let Some(quantization) = &self.quantization {
            write!(f, " + {quantization}")?;
        }
        write!(f, ", {:.2} % zeros", 100.0 * self.zero_fraction())?;
        if let Some(relative) = self.relative_error {
            write!(f, ", relative error {relative:.3e}")?;
        }
        if let Some(held_out) = self.held_out_error {
            write!(f, ", held out {held_out:.3e}")?;
        }
        if let Some(precision) = self.precision {
            write!(f, ", damping {} ({precision})", self.damping)?;
        }
        if let Some(FactorReport {
            damping, precision, ..
        }) = self.dense_targets
        {
            write!(f, ", dense targets with damping {damping} ({precision})")?;
        }
        if self.products != Products::F32 {
            write!(f, ", {} products", self.products)?;
        }
        if !self.host_operations.is_empty() {
            write!(f, ", on the host: {:?}", self.host_operations)?;
        }
        write!(f, ", {:.3} s", self.seconds.total)
    }
}

/// What the blocks of a model behind the first were calibrated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Propagation {
    /// On the outputs of the treated blocks before them, so that they make up for those blocks' errors.
    Pruned,
    /// On the outputs of the dense blocks before them: errors were not propagated. So it is where several
    /// variants share one pass.
    Dense,
}

/// Seconds of a whole run. Where several variants shared the run, all but the solving is what they shared.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ModelSeconds {
    /// Loading and writing blocks.
    pub blocks: f64,
    /// Forward passes that collect Hessians, Hessians included. Where all blocks stay dense, they give the
    /// next block's inputs too.
    pub calibrate: f64,
    /// Hessian accumulation alone, a part of `calibrate`.
    pub hessian: f64,
    /// Solving layers; a factor that variants share stands with the first of them.
    pub solve: f64,
    /// Forward passes that only give the next block's inputs: with the new weights, or, where all blocks
    /// stay dense, through blocks that need no Hessian.
    pub propagate: f64,
    /// Everything.
    pub total: f64,
}

/// What one layer got of a budget of zeros.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerShare {
    /// The layer's name.
    pub layer: String,
    /// Its weights.
    pub weights: u64,
    /// Its zeros.
    pub zeros: u64,
    /// The loss that the allocator expects, in the allocator's measure, if it has one.
    pub predicted_loss: Option<f64>,
}

/// How a budget of zeros was divided among the layers of a model.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct AllocationReport {
    /// The allocator, as in `uniform`.
    pub allocator: String,
    /// The sparsity of the whole model that was asked for.
    pub sparsity: Sparsity,
    /// Least sparsity of a layer.
    pub floor: Sparsity,
    /// Largest sparsity of a layer.
    pub ceiling: Sparsity,
    /// Weights of the layers.
    pub weights: u64,
    /// Zeros of the layers: floor(sparsity · weights), or as much of that as their patterns allow.
    pub zeros: u64,
    /// The sum of the losses that the allocator expects, if it has a measure.
    pub predicted_loss: Option<f64>,
    /// The same for a uniform sparsity.
    pub uniform_loss: Option<f64>,
    /// What each layer got, in order.
    pub layers: Vec<LayerShare>,
    /// Seconds it took to find out.
    pub seconds: f64,
}

/// A layer that too few calibration tokens have reached: an expert's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct StarvedLayer {
    /// Its name.
    pub layer: String,
    /// Tokens that have reached it.
    pub tokens: u64,
    /// Tokens that were asked for.
    pub least_tokens: u64,
    /// What was done with it.
    pub treatment: Starved,
}

/// What happened to a model.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ModelReport {
    /// The backend.
    pub backend: String,
    /// Its device, in words.
    pub device: String,
    /// What its large products multiply, the trailing updates' operands.
    pub products: Products,
    /// Blocks of the model.
    pub blocks: usize,
    /// Calibration sequences.
    pub sequences: usize,
    /// What blocks behind the first were calibrated on.
    pub propagation: Propagation,
    /// One report a layer, in the order they were treated.
    pub layers: Vec<LayerReport>,
    /// Layers left as they were, by rule.
    pub skipped: Vec<String>,
    /// How zeros were divided among the layers, where an allocator did it.
    #[cfg_attr(
        feature = "serde",
        serde(default, skip_serializing_if = "Option::is_none", with = "shared")
    )]
    pub allocation: Option<Arc<AllocationReport>>,
    /// Layers that too few calibration tokens have reached, and what was done with them.
    #[cfg_attr(feature = "serde", serde(default))]
    pub starved: Vec<StarvedLayer>,
    /// Time spent.
    pub seconds: ModelSeconds,
}

impl ModelReport {
    /// Weights in the treated layers.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.layers
            .iter()
            .map(|layer| (layer.rows * layer.cols) as u64)
            .sum()
    }

    /// Zeros in the treated layers.
    #[must_use]
    pub fn zeros(&self) -> u64 {
        self.layers.iter().map(|layer| layer.zeros).sum()
    }

    /// Zeros over weights of the treated layers; 0 where there is none.
    #[must_use]
    pub fn zero_fraction(&self) -> f64 {
        match self.weights() {
            0 => 0.0,
            weights => self.zeros() as f64 / weights as f64,
        }
    }
}

/// What several reports share is written as if each had its own.
#[cfg(feature = "serde")]
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::AllocationReport;

    pub(super) fn serialize<S: Serializer>(
        report: &Option<Arc<AllocationReport>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        report.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<AllocationReport>>, D::Error> {
        Ok(Option::deserialize(deserializer)?.map(Arc::new))
    }
}
