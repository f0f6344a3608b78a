//! What a run takes: floating-point operations for progress and time, bytes for memory. Estimates all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ndarray::Array2;
use sparsegpt::driver::PlannedLayer;
use sparsegpt::{Batch, LayerPruner, Starved};
use sparsegpt_models::decoder::TransformerConfig;

use crate::failure::Failure;

/// The calibration set's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CalibrationSize {
    pub(crate) sequences: usize,
    /// Tokens in a sequence.
    pub(crate) length: usize,
}

/// Operations of one block's steps.
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

fn needs_hessian(layer: &PlannedLayer) -> bool {
    layer
        .settings
        .as_ref()
        .is_some_and(|settings| settings.needs_hessian())
}

/// The layers of a model under each of the plans, block by block.
pub(crate) type Variants = [Vec<Vec<PlannedLayer>>];

fn block_count(variants: &Variants) -> usize {
    variants.first().map_or(0, Vec::len)
}

/// The treated layers of a block, one for each plan that treats it.
fn treated(variants: &Variants, block: usize) -> Vec<&PlannedLayer> {
    let layers = variants.iter().flat_map(|blocks| &blocks[block]);
    layers.filter(|layer| layer.settings.is_some()).collect()
}

/// Each input of a block for which a Hessian is taken, and its columns.
fn hessians(treated: &[&PlannedLayer]) -> Vec<(usize, f64)> {
    let inputs: BTreeMap<usize, usize> = treated
        .iter()
        .filter(|layer| needs_hessian(layer))
        .map(|layer| (layer.layer.input, layer.layer.cols))
        .collect();
    let columns = inputs.into_iter();
    columns.map(|(input, cols)| (input, cols as f64)).collect()
}

fn area(layer: &PlannedLayer) -> f64 {
    (layer.layer.rows * layer.layer.cols) as f64
}

/// The cost of each block, with the same steps that the driver takes.
pub(crate) fn blocks(
    variants: &Variants,
    config: &TransformerConfig,
    size: CalibrationSize,
) -> Vec<BlockCost> {
    let blocks = block_count(variants);
    let last_calibrated =
        (0..blocks).rposition(|block| !hessians(&treated(variants, block)).is_empty());
    let tokens = size.length as f64;
    // Scores and their product with the values, over all pairs of tokens.
    let attention = 4.0 * tokens * tokens * (config.heads * config.head_dim) as f64;
    (0..blocks)
        .map(|block| {
            let layers = &variants[0][block];
            let share = |layer: &PlannedLayer| config.token_share(layer.layer.input);
            let forward = attention
                + layers
                    .iter()
                    .map(|l| 2.0 * tokens * share(l) * area(l))
                    .sum::<f64>();
            let treated = treated(variants, block);
            let inputs = hessians(&treated);
            let mut cost = BlockCost::default();
            if !inputs.is_empty() {
                let calibrated = treated.iter().filter(|layer| needs_hessian(layer));
                let stages: BTreeSet<usize> = calibrated.map(|layer| layer.stage).collect();
                cost.stages = stages.len();
                let grams = inputs
                    .iter()
                    .map(|(input, cols)| tokens * config.token_share(*input) * cols * cols);
                cost.calibrate = forward + grams.sum::<f64>() / cost.stages as f64;
            }
            // With several plans the block stays dense, and calibration gives the next block's inputs, unless experts may
            // share its own, for which they are needed once more.
            let shares = treated.iter().any(|layer| {
                let is_of_expert = config.token_share(layer.layer.input) < 1.0;
                layer.starved == Starved::Share && is_of_expert
            });
            let goes_on = variants.len() > 1 && !inputs.is_empty() && !shares;
            if last_calibrated.is_some_and(|last| block < last) && !goes_on {
                cost.propagate = forward;
            }
            cost.layers = treated.len();
            // Factor and inverse of the factor (n³ together), the sweep (one product with half of R), and
            // two products with the Hessian to measure the error.
            let factors: f64 = inputs.iter().map(|(_, cols)| cols.powi(3)).sum();
            let sweeps: f64 = treated
                .iter()
                .filter(|layer| needs_hessian(layer))
                .map(|layer| 5.0 * area(layer) * layer.layer.cols as f64)
                .sum();
            cost.solve = (factors + sweeps) / cost.layers.max(1) as f64;
            cost
        })
        .collect()
}

/// Bytes in memory at the peak: the hidden states of the calibration set, and either the embedding or the
/// most demanding block with its Hessians. Pages of the mapped checkpoint are not counted. Results are
/// written as they come, so that more plans take no more.
pub(crate) fn peak_bytes(
    variants: &Variants,
    config: &TransformerConfig,
    size: CalibrationSize,
) -> f64 {
    const F32: f64 = 4.0;
    let calibrated = variants.iter().flatten().flatten().any(needs_hessian);
    let tokens = size.length as f64;
    let one_hidden = tokens * config.hidden_size as f64 * F32;
    let hidden = if calibrated {
        size.sequences as f64 * one_hidden
    } else {
        0.0
    };
    let embedding = if calibrated {
        (config.vocab_size * config.hidden_size) as f64 * F32
    } else {
        0.0
    };
    let running = if calibrated {
        let widest = (3 * config.intermediate_size + 6 * config.hidden_size) as f64;
        tokens * (widest + 2.0 * config.heads as f64 * tokens) * F32
    } else {
        0.0
    };
    let block = (0..block_count(variants))
        .map(|block| {
            let weights: f64 = variants[0][block].iter().map(area).sum();
            let treated = treated(variants, block);
            let inputs = hessians(&treated);
            let squares: f64 = inputs.iter().map(|(_, cols)| cols * cols).sum();
            let largest_square = inputs
                .iter()
                .map(|(_, cols)| cols * cols)
                .fold(0.0, f64::max);
            let largest = treated.iter().map(|layer| area(layer)).fold(0.0, f64::max);
            // A layer is held dense, in work, as a result and as a mask; a group that shares an input is
            // read at once.
            let solving = 6.0 * largest + 2.0 * largest_square;
            (weights + squares) * F32 + (solving * F32).max(running)
        })
        .fold(0.0, f64::max);
    hidden + block.max(embedding + one_hidden)
}

/// Operations a second of the backend, measured on a small product XᵀX.
pub(crate) fn measure_speed(pruner: &dyn LayerPruner) -> Result<f64, Failure> {
    const TOKENS: usize = 512;
    const COLS: usize = 768;
    const REPEATS: usize = 3;
    let activations =
        Array2::from_shape_fn((TOKENS, COLS), |(t, c)| ((t * 7 + c * 3) % 11) as f32 - 5.0);
    let mut statistics = pruner.statistics("(speed)", COLS)?;
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        statistics.update(Batch::new(activations.view()))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok((TOKENS * COLS * COLS) as f64 / best.max(1e-9))
}
