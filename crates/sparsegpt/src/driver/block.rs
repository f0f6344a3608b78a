//! One block under all plans of a run.

use std::collections::{BTreeMap, BTreeSet};

use super::{BlockLayer, PlannedLayer, Starved};
use crate::error::{Error, Result};
use crate::solver::{ColumnOrder, LayerSettings, Method};

/// One block under all plans: the layers are the same, what is done to them is not.
#[derive(Clone, Debug)]
pub(super) struct PlannedBlock<'p> {
    /// Its layers under each plan.
    variants: Vec<&'p [PlannedLayer]>,
}

/// One layer and what one of the plans does to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Treatment<'p> {
    pub(super) variant: usize,
    /// The layer's index in its block.
    pub(super) index: usize,
    pub(super) layer: &'p BlockLayer,
    pub(super) settings: &'p LayerSettings,
    pub(super) starved: Starved,
    stage: usize,
}

impl<'p> PlannedBlock<'p> {
    /// The blocks of a model, from what each plan says about them.
    pub(super) fn all(plans: &'p [Vec<Vec<PlannedLayer>>]) -> Vec<Self> {
        let blocks = plans.first().map_or(0, Vec::len);
        (0..blocks)
            .map(|block| Self {
                variants: plans.iter().map(|plan| &*plan[block]).collect(),
            })
            .collect()
    }

    /// Everything that is done in this block.
    pub(super) fn treatments(&self) -> impl Iterator<Item = Treatment<'p>> {
        let planned = self.variants.iter().enumerate();
        planned
            .flat_map(|(variant, layers)| {
                let layers = layers.iter().enumerate();
                layers.map(move |(index, planned)| (variant, index, planned))
            })
            .filter_map(|(variant, index, planned)| {
                Some(Treatment {
                    variant,
                    index,
                    layer: &planned.layer,
                    settings: planned.settings.as_ref()?,
                    starved: planned.starved,
                    stage: planned.stage,
                })
            })
    }

    pub(super) fn needs_hessian(&self) -> bool {
        self.treatments().any(Treatment::needs_hessian)
    }

    /// Whether any layer aims at the dense model's outputs.
    pub(super) fn has_dense_targets(&self) -> bool {
        self.treatments()
            .any(|treatment| treatment.settings.dense_targets > 0.0)
    }

    /// Inputs of treated layers, ascending.
    pub(super) fn inputs(&self) -> Vec<usize> {
        let mut inputs: Vec<usize> = self.treatments().map(|t| t.layer.input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        inputs
    }

    /// The same, stage by stage.
    pub(super) fn stages(&self) -> Vec<Vec<usize>> {
        let mut stages: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for treatment in self.treatments() {
            let inputs = stages.entry(treatment.stage).or_default();
            inputs.insert(treatment.layer.input);
        }
        let stages = stages.into_values();
        stages.map(|inputs| inputs.into_iter().collect()).collect()
    }

    /// What is done to the layers that read one input.
    pub(super) fn reading(&self, input: usize) -> Vec<Treatment<'p>> {
        self.treatments()
            .filter(|treatment| treatment.layer.input == input)
            .collect()
    }

    /// The names of the layers that read one input, for errors.
    pub(super) fn shared_name(&self, input: usize) -> String {
        let layers = self.variants.first().copied().unwrap_or_default();
        let names: Vec<&str> = layers
            .iter()
            .filter(|planned| planned.layer.input == input)
            .map(|planned| planned.layer.name.as_str())
            .collect();
        names.join(", ")
    }
}

impl Treatment<'_> {
    pub(super) fn needs_hessian(self) -> bool {
        self.settings.needs_hessian()
    }

    /// What is done without a calibration token.
    pub(super) fn uncalibrated(self) -> Result<LayerSettings> {
        match self.starved {
            Starved::Magnitude => Ok(LayerSettings {
                method: Method::Magnitude,
                mask_source: None,
                refit: None,
                order: ColumnOrder::Natural,
                ..self.settings.clone()
            }),
            Starved::Error => Err(Error::incompatible(
                &self.layer.name,
                "no calibration token has reached its input",
                "calibrate on more or other text, or let such layers be pruned by magnitude (Starved::Magnitude)",
            )),
        }
    }
}
