//! Bytes of memory at a run's peak.

use std::collections::BTreeMap;

use serde::Serialize;
use sparsegpt_models::decoder::{BATCH_TOKENS, TransformerConfig};

use super::{
    CalibrationSize, Observed, Variants, area, block_count, needs_hessian, observed, treated,
};

const F32: f64 = 4.0;
const MIB: f64 = 1024.0 * 1024.0;
/// The process itself, its threads and a tokenizer, as measured on a small model; and of its executable, mapped.
const BASE: f64 = 20.0 * MIB;
const EXECUTABLE: f64 = 12.0 * MIB;
/// What the metadata of a GGUF file take beside that: a vocabulary, as measured on one of 49152 tokens.
const METADATA: f64 = 50.0 * MIB;
/// The most that the system's allocator holds of freed memory when the blocks are done; larger pieces go back at once.
const MOST_KEPT: f64 = 96.0 * MIB;
/// Matrices of a layer's size while it is solved: what is left to do, the result, its errors, the dense weights anew to measure
/// the error and the product with the Hessian, the copy that the model goes on with; and the mask, a byte a weight.
const LAYER_COPIES: f64 = 6.0 * F32 + 1.0;
/// The same on a device, where slices of rows are taken when they do not fit.
const DEVICE_COPIES: f64 = 4.0 * F32 + 1.0;
/// Activations on a device at a time.
const DEVICE_CHUNK: f64 = 64.0 * MIB;

/// What a run reads and writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files {
    /// Bytes of the weights it reads. So much is mapped at most: of several shards one at a time.
    pub(crate) source: f64,
    /// Bytes of the weights it writes, mapped when they are checked.
    pub(crate) result: f64,
    /// Whether a tensor that is read takes its size twice on the way (GGUF), or nothing beside its values.
    pub(crate) unpacked: bool,
    /// Whether tensors that are left as they are go through f32 into the result.
    pub(crate) cast: bool,
}

/// Where a run stands when it needs most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Making the first block's inputs.
    Embedding,
    /// Calibrating and solving a block.
    Blocks,
    /// Copying what was not pruned.
    Writing,
    /// Reading the result once more.
    Checking,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Embedding => "making the first block's inputs",
            Self::Blocks => "calibrating and solving a block",
            Self::Writing => "copying the tensors that are left as they are",
            Self::Checking => "checking the result",
        }
    }
}

/// Memory of the host, and of a device that solves. Pages of mapped files stand apart: the system takes them back when it
/// needs to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    /// Of the process at the peak, without mapped files.
    pub(crate) own: f64,
    pub(crate) phase: Phase,
    /// The calibration set between two blocks.
    pub(crate) hidden_states: f64,
    /// The table of embeddings, in f32, while the first block's inputs are made.
    pub(crate) embedding: f64,
    /// The largest block's weights, in f32.
    pub(crate) block_weights: f64,
    /// Its Hessians, where they are on the host.
    pub(crate) hessians: f64,
    /// What a forward pass works in.
    pub(crate) forward: f64,
    /// What solving a layer works in.
    pub(crate) solving: f64,
    /// Mapped files, those that are read and the result when it is checked.
    pub(crate) mapped: f64,
    /// The most that can be resident at a time, mapped files included, on a machine where nobody wants the memory.
    pub(crate) resident: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<DeviceMemory>,
}

/// Memory of a device that solves.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct DeviceMemory {
    /// A block's Hessians.
    pub(crate) hessians: f64,
    /// The largest layer and what solving it works in.
    pub(crate) layer: f64,
}

impl DeviceMemory {
    pub(crate) fn peak(&self) -> f64 {
        self.hessians + self.layer
    }
}

/// The memory of a run. With more plans it takes no more, as results are written as they come.
pub(crate) fn memory(
    variants: &Variants,
    config: &TransformerConfig,
    size: CalibrationSize,
    files: Files,
    on_device: bool,
) -> Memory {
    let calibrated = variants.iter().flatten().flatten().any(needs_hessian);
    let aims_at_dense = variants.iter().flatten().flatten().any(|layer| {
        let settings = layer.settings.as_ref();
        settings.is_some_and(|settings| settings.dense_targets > 0.0)
    });
    let if_calibrated = |bytes: f64| if calibrated { bytes } else { 0.0 };
    // A decoder behind an encoder carries the other side's states along.
    let sides = if config.encoder_blocks > 0 { 2.0 } else { 1.0 };
    let models = if aims_at_dense { 2.0 } else { 1.0 };
    let states = size.tokens() * config.hidden_size as f64 * F32;
    let hidden_states = if_calibrated(sides * models * states);
    let table = config.vocab_size as f64 * config.embedding_size as f64 * F32;
    let embedding = if_calibrated(table);
    let forward = if_calibrated(forward_bytes(config, size));

    let mut largest = (0.0, 0.0, 0.0);
    let mut device = DeviceMemory::default();
    for block in 0..block_count(variants) {
        let weights: f64 = variants[0][block].iter().map(area).sum::<f64>() * F32;
        let treated = treated(variants, block);
        let of_stages = hessian_bytes(&observed(&treated), aims_at_dense);
        let mut groups: BTreeMap<usize, f64> = BTreeMap::new();
        // Those of one plan: the others have the same.
        for layer in variants[0][block].iter().filter(|l| l.settings.is_some()) {
            *groups.entry(layer.layer.input).or_default() += area(layer);
        }
        let group = groups.into_values().fold(0.0, f64::max);
        let layer = treated.iter().map(|layer| area(layer)).fold(0.0, f64::max);
        let (hessians, solving) = match on_device {
            true => (0.0, F32 * group + (2.0 * F32 + 1.0) * layer),
            false => (of_stages, F32 * group + LAYER_COPIES * layer),
        };
        let sum = weights + hessians + solving;
        if sum > largest.0 + largest.1 + largest.2 {
            largest = (weights, hessians, solving);
        }
        // The next layer's weights come beside this one's.
        let layer = (DEVICE_COPIES + F32) * layer + DEVICE_CHUNK;
        if of_stages + layer > device.peak() {
            device = DeviceMemory {
                hessians: of_stages,
                layer,
            };
        }
    }
    let (block_weights, hessians, solving) = largest;

    let (base, reading) = match files.unpacked {
        true => (BASE + METADATA, 2.0),
        false => (BASE, 1.0),
    };
    let of_blocks = block_weights + hessians + forward + solving;
    let kept = of_blocks.min(MOST_KEPT);
    let copied = if files.cast { table } else { 0.0 };
    let phases = [
        (
            Phase::Embedding,
            (reading * embedding).max(embedding + hidden_states),
            files.source,
        ),
        (Phase::Blocks, hidden_states + of_blocks, files.source),
        // Values in f32, and as they are written.
        (Phase::Writing, kept + 2.0 * copied, files.source),
        (Phase::Checking, kept + copied, files.source + files.result),
    ];
    let mut most = (Phase::Embedding, 0.0);
    let mut resident = 0.0_f64;
    for (phase, own, mapped) in phases {
        if own > most.1 {
            most = (phase, own);
        }
        resident = resident.max(base + EXECUTABLE + own + mapped);
    }
    let (phase, peak) = most;
    Memory {
        own: base + peak,
        phase,
        hidden_states,
        embedding,
        block_weights,
        hessians,
        forward,
        solving,
        mapped: files.source + files.result,
        resident,
        device: on_device.then_some(device),
    }
}

/// The Hessians that are there at a time: those of a stage. Targets that aim at the dense model take as much again.
fn hessian_bytes(inputs: &[Observed], aims_at_dense: bool) -> f64 {
    let mut stages: BTreeMap<usize, f64> = BTreeMap::new();
    for input in inputs {
        *stages.entry(input.stage).or_default() += input.cols * input.cols;
    }
    let copies = if aims_at_dense { 2.0 } else { 1.0 };
    copies * F32 * stages.into_values().fold(0.0, f64::max)
}

/// The matrices of a forward pass over one batch.
fn forward_bytes(config: &TransformerConfig, size: CalibrationSize) -> f64 {
    let sequences = (BATCH_TOKENS / size.length.max(1)).clamp(1, size.sequences.max(1));
    let tokens = (sequences * size.length) as f64;
    let query = (config.heads * config.head_dim) as f64;
    let key = (config.kv_heads * config.head_dim) as f64;
    // The stream, its norm and the next one; queries, keys, values, and what attention makes of them.
    let attention = 4.0 * config.hidden_size as f64 + 2.0 * query + 2.0 * key;
    let feed_forward = match &config.experts {
        None => 2.0 * config.intermediate_size as f64,
        Some(experts) => {
            let share = experts.active as f64 / experts.count as f64;
            let own = 2.0 * (experts.intermediate_size + config.hidden_size) as f64;
            let shared = 2.0 * experts.shared_intermediate_size.unwrap_or(0) as f64;
            experts.count as f64 + (share * own).max(shared)
        }
    };
    tokens * (attention + feed_forward) * F32
}
