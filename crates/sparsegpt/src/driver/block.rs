//! One block under all plans of a run.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::{BlockLayer, PlannedLayer, Starved};
use crate::error::{Error, Result};
use crate::report::StarvedLayer;
use crate::solver::{LayerSettings, Method};

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
    /// Tokens below which it counts as starved, where its input may be.
    pub(super) least_tokens: u64,
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
                    least_tokens: planned.least_tokens,
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

impl<'p> Treatment<'p> {
    pub(super) fn needs_hessian(self) -> bool {
        self.settings.needs_hessian()
    }

    /// Whether so many tokens are too few for it. None at all are, whatever the plan asks for.
    pub(super) fn starves_at(self, tokens: u64) -> bool {
        self.needs_hessian() && tokens < self.least_tokens.max(1)
    }

    /// What the report says of it where only `tokens` have reached its input.
    pub(super) fn starved_layer(self, tokens: u64) -> StarvedLayer {
        StarvedLayer {
            layer: self.layer.name.clone(),
            tokens,
            least_tokens: self.least_tokens,
            treatment: self.starved,
        }
    }

    /// What is done although only `tokens` have reached the input; `shared` counts those of the block's other experts
    /// that stand in for them.
    pub(super) fn starved(self, tokens: u64, shared: u64) -> Result<Cow<'p, LayerSettings>> {
        let refused = |reached: String| {
            Err(Error::incompatible(
                &self.layer.name,
                reached,
                "calibrate on more or other text, or choose what becomes of such layers (Starved::Magnitude, Starved::Share)",
            ))
        };
        match self.starved {
            Starved::Magnitude => Ok(Cow::Owned(LayerSettings {
                measure_always: false,
                ..self.settings.clone().replaced_by(Method::Magnitude)
            })),
            Starved::Share if shared > 0 => Ok(Cow::Borrowed(self.settings)),
            Starved::Share => {
                refused("no calibration token of the whole block has been shown to it".to_owned())
            }
            Starved::Error => refused(match tokens {
                0 => "no calibration token has reached its input".to_owned(),
                tokens => format!(
                    "{tokens} calibration tokens have reached its input, fewer than the {} asked for",
                    self.least_tokens
                ),
            }),
        }
    }
}
