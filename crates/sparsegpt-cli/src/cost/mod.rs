//! What a run takes: operations for progress and time, bytes of memory and on disk. Estimates all; `docs/scaling.md`
//! explains them and holds them against measured runs.

mod disk;
mod memory;
mod rates;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use serde::Serialize;
use sparsegpt::driver::PlannedLayer;
use sparsegpt::solver::{ColumnOrder, Refit, WeightSolver};
use sparsegpt::{LayerSettings, Starved};
use sparsegpt_models::decoder::TransformerConfig;

pub(crate) use disk::{Sizes, sizes};
pub(crate) use memory::{Files, Memory, memory};
pub(crate) use rates::{GivenRate, Machine, Measuring, Rates, StageTime};

/// The calibration set's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CalibrationSize {
    pub(crate) sequences: usize,
    /// Tokens in a sequence.
    pub(crate) length: usize,
}

impl CalibrationSize {
    pub(crate) fn tokens(self) -> f64 {
        self.sequences as f64 * self.length as f64
    }
}

/// The layers of a model under each of the plans, block by block.
pub(crate) type Variants = [Vec<Vec<PlannedLayer>>];

/// Operations of one block's steps, for the progress bar.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockCost {
    /// Running one sequence to collect the Hessians of a stage (the mean of the block's).
    pub(crate) calibrate: f64,
    /// Stages in which Hessians are collected: 1, or none, or with true-sequential runs more.
    pub(crate) stages: usize,
    /// Solving one layer (the mean of the block's).
    pub(crate) solve: f64,
    /// Layers to solve.
    pub(crate) layers: usize,
    /// Running one sequence to get the next block's input, where calibration does not give it.
    pub(crate) propagate: f64,
}

impl BlockCost {
    pub(crate) fn total(&self, sequences: usize) -> f64 {
        let calibrate = self.stages as f64 * self.calibrate;
        sequences as f64 * (calibrate + self.propagate) + self.layers as f64 * self.solve
    }
}

/// Operations of a run, by what decides how long they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Work {
    /// Products and attention of forward passes.
    pub(crate) forward_flops: f64,
    /// XᵀX, one triangle: tokens · columns².
    pub(crate) hessian_flops: f64,
    /// Activations shown to Hessians.
    pub(crate) observed_values: f64,
    /// columns³ / 3 for each factor.
    pub(crate) factor_flops: f64,
    pub(crate) factor_columns: f64,
    /// rows · columns² for each layer: the products behind the blocks of a sweep.
    pub(crate) trailing_flops: f64,
    pub(crate) swept_columns: f64,
    /// Twice as many: both energies of the reconstruction error.
    pub(crate) measure_flops: f64,
    /// Weights of the layers that are solved.
    pub(crate) weights: f64,
}

impl Work {
    pub(crate) fn flops(&self) -> f64 {
        self.forward_flops
            + self.hessian_flops
            + self.factor_flops
            + self.trailing_flops
            + self.measure_flops
    }

    /// The passes over the model alone.
    pub(crate) fn without_solving(&self) -> Self {
        Self {
            forward_flops: self.forward_flops,
            hessian_flops: self.hessian_flops,
            observed_values: self.observed_values,
            ..Self::default()
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.forward_flops += other.forward_flops;
        self.hessian_flops += other.hessian_flops;
        self.observed_values += other.observed_values;
        self.factor_flops += other.factor_flops;
        self.factor_columns += other.factor_columns;
        self.trailing_flops += other.trailing_flops;
        self.swept_columns += other.swept_columns;
        self.measure_flops += other.measure_flops;
        self.weights += other.weights;
    }
}

fn needs_hessian(layer: &PlannedLayer) -> bool {
    layer
        .settings
        .as_ref()
        .is_some_and(|settings| settings.needs_hessian())
}

/// Whether a layer is factored and swept, or at least moves its weights by some other way that begins so.
fn sweeps(layer: &PlannedLayer) -> bool {
    needs_hessian(layer)
        && layer.settings.as_ref().is_some_and(|settings| {
            let parts = settings.parts();
            parts.weights != WeightSolver::Keep || parts.refit != Refit::None
        })
}

/// Whether the operations here are all that a layer with these settings takes: one sweep, or none.
pub(crate) fn is_counted(settings: &LayerSettings) -> bool {
    let parts = settings.parts();
    matches!(parts.weights, WeightSolver::Keep | WeightSolver::Sweep)
        && parts.refit == Refit::None
        && parts.swaps == 0
        && settings.order != ColumnOrder::Best
        && settings.dense_targets == 0.0
}

fn block_count(variants: &Variants) -> usize {
    variants.first().map_or(0, Vec::len)
}

/// The treated layers of a block, one for each plan that treats it.
fn treated(variants: &Variants, block: usize) -> Vec<&PlannedLayer> {
    let layers = variants.iter().flat_map(|blocks| &blocks[block]);
    layers.filter(|layer| layer.settings.is_some()).collect()
}

/// An input of a block for which a Hessian is taken.
#[derive(Clone, Copy, Debug)]
struct Observed {
    input: usize,
    stage: usize,
    cols: f64,
}

fn observed(treated: &[&PlannedLayer]) -> Vec<Observed> {
    let inputs: BTreeMap<usize, Observed> = treated
        .iter()
        .filter(|layer| needs_hessian(layer))
        .map(|layer| {
            let observed = Observed {
                input: layer.layer.input,
                stage: layer.stage,
                cols: layer.layer.cols as f64,
            };
            (layer.layer.input, observed)
        })
        .collect();
    inputs.into_values().collect()
}

fn area(layer: &PlannedLayer) -> f64 {
    layer.layer.rows as f64 * layer.layer.cols as f64
}

/// The steps of one block, for one sequence where they depend on it.
#[derive(Clone, Copy, Debug, Default)]
struct BlockWork {
    /// A forward pass that shows inputs, for each of the stages.
    calibrate: f64,
    stages: usize,
    grams: f64,
    observed: f64,
    propagate: f64,
    /// Layers that are treated.
    layers: usize,
    /// What solving takes; of the rest nothing.
    solve: Work,
}

impl BlockWork {
    fn cost(&self) -> BlockCost {
        let shared = |whole: f64, parts: usize| whole / parts.max(1) as f64;
        BlockCost {
            calibrate: match self.stages {
                0 => 0.0,
                stages => self.calibrate + shared(self.grams, stages),
            },
            stages: self.stages,
            solve: shared(self.solve.flops(), self.layers),
            layers: self.layers,
            propagate: self.propagate,
        }
    }

    fn work(&self, sequences: usize) -> Work {
        let sequences = sequences as f64;
        let passes = self.stages as f64 * self.calibrate + self.propagate;
        Work {
            forward_flops: sequences * passes,
            hessian_flops: sequences * self.grams,
            observed_values: sequences * self.observed,
            ..self.solve
        }
    }
}

/// The steps of each block, which are those of the driver.
fn block_works(
    variants: &Variants,
    config: &TransformerConfig,
    size: CalibrationSize,
) -> Vec<BlockWork> {
    let blocks = block_count(variants);
    let last_calibrated =
        (0..blocks).rposition(|block| !observed(&treated(variants, block)).is_empty());
    let tokens = size.length as f64;
    (0..blocks)
        .map(|block| {
            let layers = &variants[0][block];
            let share = |input: usize| config.token_share(input);
            let product = |l: &PlannedLayer| 2.0 * tokens * share(l.layer.input) * area(l);
            // A score and its product with a value, for each pair of tokens and feature of a head.
            let width = (config.heads * config.head_dim) as f64;
            let attention = 4.0 * config.score_pairs(block, size.length) * width;
            let forward = attention + layers.iter().map(product).sum::<f64>();
            let last: f64 = layers
                .iter()
                .filter(|l| config.is_last_input(l.layer.input))
                .map(product)
                .sum();
            let treated = treated(variants, block);
            let inputs = observed(&treated);
            // With several plans the block stays dense, and calibration gives the next block's inputs, unless experts may
            // share its own, for which they are needed once more.
            let shares = treated
                .iter()
                .any(|layer| layer.starved == Starved::Share && share(layer.layer.input) < 1.0);
            let needed = last_calibrated.is_some_and(|last| block < last);
            let goes_on = needed && variants.len() > 1 && !inputs.is_empty() && !shares;
            let stages: BTreeSet<usize> = inputs.iter().map(|input| input.stage).collect();
            let mut work = BlockWork {
                stages: stages.len(),
                calibrate: if goes_on { forward } else { forward - last },
                propagate: if needed && !goes_on { forward } else { 0.0 },
                layers: treated.len(),
                ..BlockWork::default()
            };
            for input in &inputs {
                let values = tokens * share(input.input) * input.cols;
                work.observed += values;
                work.grams += values * input.cols;
                let mut readers = treated.iter().filter(|l| l.layer.input == input.input);
                if readers.any(|layer| sweeps(layer)) {
                    // The factor and the inverses of its diagonal blocks.
                    work.solve.factor_flops += input.cols.powi(3) / 3.0;
                    work.solve.factor_columns += input.cols;
                }
            }
            for layer in treated.iter().filter(|layer| needs_hessian(layer)) {
                let cols = layer.layer.cols as f64;
                let settings = layer.settings.as_ref();
                work.solve.weights += area(layer);
                if sweeps(layer) {
                    // A product with half of R.
                    work.solve.trailing_flops += area(layer) * cols;
                    work.solve.swept_columns += cols;
                }
                if settings.is_some_and(|settings| settings.measure) {
                    work.solve.measure_flops += 2.0 * area(layer) * cols;
                }
            }
            work
        })
        .collect()
}

/// The cost of each block.
pub(crate) fn blocks(
    variants: &Variants,
    config: &TransformerConfig,
    size: CalibrationSize,
) -> Vec<BlockCost> {
    let works = block_works(variants, config, size);
    works.iter().map(BlockWork::cost).collect()
}

/// Columns of the widest layer that is solved with a Hessian; 0 where none is.
pub(crate) fn widest(variants: &Variants) -> usize {
    let layers = variants.iter().flatten().flatten();
    let calibrated = layers.filter(|layer| needs_hessian(layer));
    calibrated.map(|layer| layer.layer.cols).max().unwrap_or(0)
}

/// The work of the whole run.
pub(crate) fn work(variants: &Variants, config: &TransformerConfig, size: CalibrationSize) -> Work {
    let mut work = Work::default();
    for block in block_works(variants, config, size) {
        work += block.work(size.sequences);
    }
    work
}
