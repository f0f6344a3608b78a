//! What an allocator may ask about a model.

use std::ops::ControlFlow;

use ndarray::ArrayView2;

use super::{LayerRoom, with_zeros};
use crate::driver::{
    ModelAdapter, ModelPlan, PlannedLayer, ProgressEvent, observe_model, prune_model_variants,
};
use crate::error::{Error, Result};
use crate::solver::{LayerPruner, LayerSettings, Method};

/// What a layer loses at one sparsity, its inputs being those of the dense model.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerLoss {
    /// Zeros asked for.
    pub zeros: u64,
    /// tr(ΔW H ΔWᵀ).
    pub error: f64,
    /// The same over tr(W H Wᵀ).
    pub relative: f64,
}

/// A layer's weights and what the calibration tokens say of its input.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LayerInputs<'a> {
    /// The layer: an index into [`Survey::layers`].
    pub layer: usize,
    /// Its weights, rows x cols.
    pub weights: ArrayView2<'a, f32>,
    /// ‖X_j‖ of each input feature over all tokens, up to a factor that is the same in the whole model.
    pub norms: &'a [f64],
}

/// A model as an [`Allocator`](super::Allocator) sees it. Every question but [`layers`](Self::layers) is a pass over
/// the dense model.
pub trait Survey {
    /// The layers that share the budget, in order.
    fn layers(&self) -> &[LayerRoom];

    /// Shows the weights (rows x cols) of every layer, one after the other, with its index in
    /// [`layers`](Self::layers). Needs no calibration.
    ///
    /// # Errors
    /// If a weight cannot be read, and what `see` returns.
    fn weights(
        &mut self,
        see: &mut dyn FnMut(usize, ArrayView2<'_, f32>) -> Result<()>,
    ) -> Result<()>;

    /// The same with the norms of each layer's input features. Layers of a block follow each other.
    ///
    /// # Errors
    /// If there are no calibration sequences, as [`weights`](Self::weights), and as a calibration pass.
    fn inputs(&mut self, see: &mut dyn FnMut(LayerInputs<'_>) -> Result<()>) -> Result<()>;

    /// Solves every layer at each of its numbers of zeros (as many for each layer), by the plan's method, from one
    /// factor.
    ///
    /// # Errors
    /// If the method runs without calibration and so knows no loss, and as a run.
    fn losses(&mut self, zeros: &[Vec<u64>]) -> Result<Vec<Vec<LayerLoss>>>;
}

/// The survey of a model behind an adapter.
pub(super) struct ModelSurvey<'a, A: ModelAdapter> {
    pub(super) adapter: &'a mut A,
    pub(super) pruner: &'a dyn LayerPruner,
    pub(super) sequences: &'a [A::Sequence],
    pub(super) plan: &'a ModelPlan,
    /// What it plans.
    pub(super) planned: &'a [Vec<PlannedLayer>],
    pub(super) layers: &'a [LayerRoom],
    pub(super) progress: &'a mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
}

impl<A: ModelAdapter> ModelSurvey<'_, A> {
    /// The planned layers with other settings for the treated ones.
    fn with_settings(
        &self,
        change: impl Fn(LayerSettings) -> LayerSettings,
    ) -> Vec<Vec<PlannedLayer>> {
        let mut planned = self.planned.to_vec();
        for layer in planned.iter_mut().flatten() {
            layer.settings = layer.settings.take().map(&change);
        }
        planned
    }

    /// A plan for a pass that only looks at the layers; the method says whether at their inputs too.
    fn plan_to_look(&self, method: Method) -> Result<ModelPlan> {
        let low: Vec<u64> = self.layers.iter().map(|layer| layer.low).collect();
        let planned = self.with_settings(|settings| settings.replaced_by(method));
        with_zeros(&planned, self.layers, &low)
    }

    /// For each layer of each block the index among the treated ones.
    fn indices(&self) -> Vec<Vec<Option<usize>>> {
        let mut next = 0;
        let mut index = |planned: &PlannedLayer| {
            planned.settings.as_ref().map(|_| {
                next += 1;
                next - 1
            })
        };
        self.planned
            .iter()
            .map(|layers| layers.iter().map(&mut index).collect())
            .collect()
    }
}

impl<A: ModelAdapter> Survey for ModelSurvey<'_, A> {
    fn layers(&self) -> &[LayerRoom] {
        self.layers
    }

    fn weights(
        &mut self,
        see: &mut dyn FnMut(usize, ArrayView2<'_, f32>) -> Result<()>,
    ) -> Result<()> {
        // Magnitude needs no Hessian, and so no block is run.
        let plan = self.plan_to_look(Method::Magnitude)?;
        let index = self.indices();
        observe_model(
            self.adapter,
            self.pruner,
            &[],
            &plan,
            &mut |seen| match index[seen.block][seen.layer] {
                Some(index) => see(index, seen.weights),
                None => Ok(()),
            },
            self.progress,
        )
    }

    fn inputs(&mut self, see: &mut dyn FnMut(LayerInputs<'_>) -> Result<()>) -> Result<()> {
        // Any method with a Hessian will do; nothing is solved.
        let plan = self.plan_to_look(Method::SparseGpt)?;
        let index = self.indices();
        observe_model(
            self.adapter,
            self.pruner,
            self.sequences,
            &plan,
            &mut |seen| {
                let (Some(index), Some(statistics)) =
                    (index[seen.block][seen.layer], seen.statistics)
                else {
                    return Ok(());
                };
                let norms: Vec<f64> = statistics
                    .diagonal()?
                    .iter()
                    .map(|&square| f64::from(square).max(0.0).sqrt())
                    .collect();
                see(LayerInputs {
                    layer: index,
                    weights: seen.weights,
                    norms: &norms,
                })
            },
            self.progress,
        )
    }

    fn losses(&mut self, zeros: &[Vec<u64>]) -> Result<Vec<Vec<LayerLoss>>> {
        let points = zeros.iter().map(Vec::len).min().unwrap_or(0);
        let measured = self.with_settings(|settings| settings.with_measure(true));
        let plans = (0..points)
            .map(|point| {
                let of_point: Vec<u64> = zeros.iter().map(|zeros| zeros[point]).collect();
                let plan = with_zeros(&measured, self.layers, &of_point)?;
                Ok(plan.starving_as(self.plan))
            })
            .collect::<Result<Vec<_>>>()?;
        let index = self.indices();
        let mut losses: Vec<Vec<Option<LayerLoss>>> = vec![vec![None; points]; self.layers.len()];
        let mut unknown = None;
        prune_model_variants(
            self.adapter,
            self.pruner,
            self.sequences,
            &plans,
            &mut |finished| {
                let Some(layer) = index[finished.block][finished.layer] else {
                    return Ok(());
                };
                let report = &finished.pruned.report;
                match (report.reconstruction_error, report.relative_error) {
                    (Some(error), Some(relative)) => {
                        losses[layer][finished.variant] = Some(LayerLoss {
                            zeros: zeros[layer][finished.variant],
                            error,
                            relative,
                        });
                    }
                    _ => {
                        unknown
                            .get_or_insert_with(|| (report.layer.clone(), report.method.clone()));
                    }
                }
                Ok(())
            },
            self.progress,
        )?;
        let missing = || {
            let (layer, method) = unknown.clone().unwrap_or_default();
            Error::incompatible(
                &layer,
                format!("method {method} measured no loss here"),
                "allocate by losses with a method that is calibrated, or use another allocator",
            )
        };
        losses
            .into_iter()
            .map(|of_layer| {
                of_layer
                    .into_iter()
                    .collect::<Option<_>>()
                    .ok_or_else(missing)
            })
            .collect()
    }
}
