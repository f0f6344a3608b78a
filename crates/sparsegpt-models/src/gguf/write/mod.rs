//! GGUF files written from a checkpoint, as llama.cpp's converter writes them.
//!
//! Matrices get the asked-for type, norms and biases stay f32, the rows of q and k are put in the order of llama.cpp's rotary
//! embedding where the architecture has one, and the tokenizer goes into the metadata. Tensors are read, converted and written one
//! at a time.

mod fields;
mod tokenizer;
mod values;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use self::fields::Fields;
use self::values::{convert, rows_as_pairs};
use super::config::{self, Architecture};
use super::{ROPE_FACTORS, names};
use crate::checkpoint::{Checkpoint, element_count};
use crate::decoder::{Activation, Positions, RopeScaling, RotaryConfig, TransformerConfig};
use crate::staging::StagedFile;
use crate::{Error, Result};

pub use self::values::GgufType;

/// Places of tensors are multiples of this (the format's default).
const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;

/// A GGUF file that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WrittenGguf {
    /// The file.
    pub path: PathBuf,
    /// Tensors in it.
    pub tensors: usize,
    /// Its bytes.
    pub bytes: u64,
}

/// A tensor to be written.
struct Planned {
    name: String,
    /// Its name in the checkpoint; `None` for the rotary factors.
    source: Option<String>,
    shape: Vec<usize>,
    stored: GgufType,
    /// Heads whose rows are put in pairs.
    pairs: Option<usize>,
    bytes: u64,
}

/// Writes a checkpoint as one GGUF file, which appears under its name when it is whole. Matrices are stored as `stored`,
/// in q8_0 those whose columns are no multiple of 32 as f16.
///
/// # Errors
/// For a model of a family that GGUF names otherwise or not at all, a tokenizer it has no name for, a value that the type
/// does not hold, [`Error::Stopped`] where `go_on` said so, and if the write fails.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    stored: GgufType,
    go_on: &dyn Fn() -> bool,
) -> Result<WrittenGguf> {
    let config = TransformerConfig::of(checkpoint)?;
    let architecture = architecture(checkpoint, &config)?;
    let factors = rope_factors(&config);
    let planned = plan(
        checkpoint,
        &config,
        architecture,
        stored,
        factors.as_deref(),
    )?;
    let mut fields = model_fields(checkpoint, &config, architecture, stored)?;
    tokenizer::add(checkpoint, &config, &mut fields)?;

    let mut head = b"GGUF".to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((planned.len() as u64).to_le_bytes());
    head.extend(fields.count().to_le_bytes());
    head.extend(fields.bytes());
    let mut offset = 0_u64;
    for tensor in &planned {
        fields::text(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        // The format counts from the innermost dimension.
        for &size in tensor.shape.iter().rev() {
            head.extend((size as u64).to_le_bytes());
        }
        head.extend(tensor.stored.number().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += tensor.bytes.next_multiple_of(ALIGNMENT);
    }
    let start = (head.len() as u64).next_multiple_of(ALIGNMENT);
    head.resize(start as usize, 0);

    let mut file = StagedFile::create(path)?;
    file.append(&head)?;
    let tensors = checkpoint.tensors();
    for tensor in &planned {
        if !go_on() {
            return Err(Error::Stopped);
        }
        let mut values = match &tensor.source {
            Some(name) => tensors.read_f32(name)?,
            None => factors.clone().unwrap_or_default(),
        };
        if let Some(heads) = tensor.pairs {
            values = rows_as_pairs(&values, heads, &tensor.shape);
        }
        let mut bytes = convert(&tensor.name, tensor.stored, &values)?;
        let padded = bytes.len().next_multiple_of(ALIGNMENT as usize);
        bytes.resize(padded, 0);
        file.append(&bytes)?;
    }
    let path = file.path().to_path_buf();
    file.finish()?;
    Ok(WrittenGguf {
        path,
        tensors: planned.len(),
        bytes: start + offset,
    })
}

/// What GGUF calls the model's architecture.
fn architecture(
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
) -> Result<&'static Architecture> {
    let refuse = |key: &str, reason: String| {
        Err(Error::config(key, reason).of_config(checkpoint.config_file()))
    };
    let model_type = config.family.model_type();
    let Some(architecture) = config::architecture_of(model_type) else {
        let known: Vec<&str> = config::model_types().collect();
        return refuse(
            "model_type",
            format!("{model_type:?} cannot be written as GGUF; it can be for {known:?}"),
        );
    };
    if config.activation != Activation::Silu {
        let found = format!("{:?}", config.activation);
        return refuse(
            "hidden_act",
            format!("GGUF has silu for this architecture, found {found}"),
        );
    }
    if let Some(angles) = rotary(config)
        && let Some(scaling) = refused_scaling(angles.scaling())
    {
        return refuse(
            "rope_scaling",
            format!("{scaling} cannot be written as GGUF; linear and llama3 can"),
        );
    }
    Ok(architecture)
}

/// The name of a scaling that is not written.
fn refused_scaling(scaling: &RopeScaling) -> Option<&'static str> {
    match scaling {
        RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => None,
        RopeScaling::Dynamic { .. } => Some("dynamic"),
        RopeScaling::Yarn { .. } => Some("yarn"),
        RopeScaling::LongRope { .. } => Some("longrope"),
    }
}

fn rotary(config: &TransformerConfig) -> Option<&RotaryConfig> {
    match &config.positions {
        Positions::Rotary { angles, .. } => Some(angles),
        _ => None,
    }
}

/// By what the llama3 scaling divides each frequency, which GGUF holds as a tensor.
fn rope_factors(config: &TransformerConfig) -> Option<Vec<f32>> {
    let angles = rotary(config)?;
    if !matches!(angles.scaling(), RopeScaling::Llama3 { .. }) {
        return None;
    }
    // This scaling does not ask how long a sequence is.
    let scaled = angles.frequencies(config.head_dim, config.max_positions);
    let scaled = scaled.into_iter();
    let factors = scaled.enumerate().map(|(pair, scaled)| {
        let plain = angles
            .theta()
            .powf(-2.0 * pair as f64 / config.head_dim as f64);
        (plain / scaled) as f32
    });
    Some(factors.collect())
}

fn plan(
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
    architecture: &Architecture,
    stored: GgufType,
    factors: Option<&[f32]>,
) -> Result<Vec<Planned>> {
    let tensors = checkpoint.tensors();
    let mut planned = Vec::new();
    let mut add = |name: String, source: Option<String>, shape: Vec<usize>, pairs| {
        let columns = shape.last().copied().unwrap_or(0);
        let stored = match shape.len() {
            0 | 1 => GgufType::F32,
            _ => stored.for_columns(columns),
        };
        let count = element_count(&shape).and_then(|count| stored.bytes(count));
        let Some(bytes) = count else {
            return Err(Error::tensor(name, format!("shape {shape:?} is too large")));
        };
        planned.push(Planned {
            name,
            source,
            shape,
            stored,
            pairs,
            bytes,
        });
        Ok(())
    };
    if let Some(factors) = factors {
        add(ROPE_FACTORS.to_owned(), None, vec![factors.len()], None)?;
    }
    for source in tensors.names() {
        if config.tied && source == "lm_head.weight" || source.ends_with(".rotary_emb.inv_freq") {
            continue;
        }
        // Some checkpoints leave out the prefix of all names but the head's.
        let whole = match source.starts_with("model.") || source.starts_with("lm_head.") {
            true => source.clone(),
            false => format!("model.{source}"),
        };
        let Some((name, part)) = names::to_gguf(&whole) else {
            return Err(Error::tensor(
                source,
                "GGUF names no such tensor for this architecture",
            ));
        };
        let info = tensors.info(&source);
        let shape = info.map_or_else(Vec::new, |info| info.shape);
        let heads = match part {
            Some("attn_q") => Some(config.heads),
            Some("attn_k") => Some(config.kv_heads),
            _ => None,
        };
        let pairs = heads.filter(|_| architecture.interleaved_rotary);
        add(name, Some(source), shape, pairs)?;
    }
    Ok(planned)
}

fn model_fields(
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
    architecture: &Architecture,
    stored: GgufType,
) -> Result<Fields> {
    let name = architecture.gguf_name;
    let key = |suffix: &str| format!("{name}.{suffix}");
    let mut fields = Fields::default();
    fields.text("general.architecture", name);
    let folder = checkpoint.path().file_name().unwrap_or_default();
    fields.text("general.name", &folder.to_string_lossy());
    fields.integer("general.alignment", ALIGNMENT as usize)?;
    fields.integer("general.file_type", stored.file_type())?;
    fields.integer("general.quantization_version", 2)?;
    for (suffix, value) in [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden_size),
        ("block_count", config.blocks),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        fields.integer(&key(suffix), value)?;
    }
    fields.float(&key("attention.layer_norm_rms_epsilon"), config.norm_eps);
    if let Some(angles) = rotary(config) {
        fields.float(&key("rope.freq_base"), angles.theta());
        if let RopeScaling::Linear { factor } = angles.scaling() {
            fields.text(&key("rope.scaling.type"), "linear");
            fields.float(&key("rope.scaling.factor"), *factor);
        }
    }
    if let Some(window) = config.sliding_windows.iter().flatten().next() {
        if config
            .sliding_windows
            .iter()
            .any(|other| other != &Some(*window))
        {
            return Err(Error::config(
                "sliding_window",
                "GGUF has one window for all blocks of this architecture",
            )
            .of_config(checkpoint.config_file()));
        }
        fields.integer(&key("attention.sliding_window"), *window)?;
    }
    if let Some(Value::Number(id)) = checkpoint.config().get("pad_token_id")
        && let Some(id) = id.as_u64()
    {
        fields.integer("tokenizer.ggml.padding_token_id", id as usize)?;
    }
    Ok(fields)
}
