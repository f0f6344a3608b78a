//! One block under all plans of a run.

use super::{BlockLayer, PlannedLayer};
use crate::quant::Granularity;
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
                })
            })
    }

    pub(super) fn needs_hessian(&self) -> bool {
        self.treatments().any(Treatment::needs_hessian)
    }

    /// Inputs of treated layers, ascending.
    pub(super) fn inputs(&self) -> Vec<usize> {
        let mut inputs: Vec<usize> = self.treatments().map(|t| t.layer.input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        inputs
    }

    /// What is done to the layers that read one input. Those that can share a factor, of which the solver
    /// keeps the last, follow each other.
    pub(super) fn reading(&self, input: usize) -> Vec<Treatment<'p>> {
        let mut group: Vec<_> = self
            .treatments()
            .filter(|treatment| treatment.layer.input == input)
            .collect();
        group.sort_by_key(|treatment| factor_key(treatment.settings));
        group
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
        self.settings.method.needs_hessian()
    }
}

/// Settings with the same key ask for the same factor of a Hessian: damping, order, and what the column blocks
/// follow from. Different keys may, too, so those that are most likely to are neighbours.
fn factor_key(settings: &LayerSettings) -> impl Ord + use<> {
    let granularity = settings.quantizer.as_ref().map(|q| q.granularity());
    let grid = match granularity {
        Some(Granularity::Group { size, fixed: false }) => size,
        _ => 0,
    };
    (
        settings.method == Method::SparseGpt,
        settings.damping.to_bits(),
        settings.act_order,
        settings.block_size,
        settings.mask_block_size,
        settings.mask.group(),
        grid,
    )
}
