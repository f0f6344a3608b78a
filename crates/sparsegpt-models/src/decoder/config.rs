//! `config.json` of the supported families, in both dialects.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::family::{
    Choice, ExpertSpec, FAMILIES, Family, FamilySpec, FeedForward, ModelKind, PositionKind,
    RotaryPart, Windows,
};
use super::rope::{RopeScaling, RotaryConfig};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Largest width, vocabulary or position count taken from a file: beyond it a config is nonsense.
const MAX_DIMENSION: u64 = 1 << 24;
/// Most blocks taken from a file.
const MAX_BLOCKS: u64 = 1 << 14;
/// Most linear layers that the numbers of blocks and experts may make together.
const MAX_LAYERS: u64 = 1 << 20;
/// Most weights that all sizes may make together: no product of some of them overflows below it.
const MAX_WEIGHTS: f64 = (1_u64 << 50) as f64;

/// The feed-forward layer's activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), exact.
    Gelu,
    /// x·Φ(x), by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x·σ(1.702 x).
    QuickGelu,
    /// tanh(x).
    Tanh,
}

/// What a block's parts read, and what their outputs are added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Residual {
    /// Attention reads the normalized input; feed-forward reads the normalized sum of the two.
    Sequential,
    /// As `Sequential`, with each sum on the normalized input instead of the input.
    Normalized,
    /// Each sum is normalized, not what a part reads.
    PostNorm,
    /// Attention and feed-forward read the block's input, each through its own norm.
    Parallel,
    /// Attention and feed-forward read the block's input through one norm.
    ParallelShared,
}

/// How positions enter.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Positions {
    /// Queries and keys are turned.
    Rotary {
        /// The angles.
        angles: RotaryConfig,
        /// The angles of blocks with a sliding window, where they are others.
        local: Option<RotaryConfig>,
        /// Dimensions of a head that are turned, the first ones.
        dimensions: usize,
        /// Whether pairs are neighbours, instead of half of `dimensions` apart.
        interleaved: bool,
    },
    /// A table is added to the embedding; position 0 stands in row `offset`.
    Learned {
        /// The row of position 0.
        offset: usize,
        /// A token that is not counted; it stands in the row before that of position 0.
        uncounted: Option<u32>,
    },
    /// Linear biases on the scores, at another slope in each head.
    Alibi,
    /// Learned biases on the scores, by bucket of distances.
    Relative {
        /// Buckets.
        buckets: usize,
        /// The distance from which on all fall into the last one.
        max_distance: usize,
    },
}

/// The experts of a model's feed-forward parts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Experts {
    /// Experts in a block.
    pub count: usize,
    /// Experts that a token goes to.
    pub active: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Width of the expert that all tokens go to, where there is one.
    pub shared_intermediate_size: Option<usize>,
    /// Whether the weights of a token's experts sum to 1; otherwise they are its probabilities.
    pub normalized: bool,
    /// The blocks that have experts; the others have a plain feed-forward part.
    pub blocks: Vec<bool>,
}

/// What the decoder needs to know, from `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TransformerConfig {
    /// The family.
    pub family: Family,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks, those of an encoder in front of a decoder included.
    pub blocks: usize,
    /// The encoder's blocks in front of a decoder's; the first ones.
    pub encoder_blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// The token that fills sequences up, for the families that know padding.
    pub padding: Option<u32>,
    /// The token that the decoder behind an encoder begins with.
    pub decoder_start: Option<u32>,
    /// Token types, for the families that have them; all tokens are of the first.
    pub token_types: Option<usize>,
    /// Longest sequence.
    pub max_positions: usize,
    /// Width of the embedding and the head; other than `hidden_size` only where two projections lead from one to
    /// the other.
    pub embedding_size: usize,
    /// ε of the norms.
    pub norm_eps: f64,
    /// Whether the norms have weights.
    pub norm_weights: bool,
    /// Whether the last block's output is normalized.
    pub final_norm: bool,
    /// How positions enter.
    pub positions: Positions,
    /// What a block's parts read.
    pub residual: Residual,
    /// What scores are multiplied by, per block.
    pub score_scales: Vec<f64>,
    /// Scores s become c·tanh(s/c).
    pub score_softcap: Option<f64>,
    /// Logits l become c·tanh(l/c).
    pub logit_softcap: Option<f64>,
    /// Keys a query sees, itself included, per block; `None` sees all before it.
    pub sliding_windows: Vec<Option<usize>>,
    /// Biases on query, key and value.
    pub qkv_bias: bool,
    /// Whether the heads of queries and keys are normalized, in the families that have norms for them.
    pub head_norms: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// The names of the head and of the table of embeddings, where config.json says that they are one (`tie_word_embeddings`), and
    /// the checkpoint holds a head that differs from the table and is used in its place. Not known from config.json alone.
    pub untied: Option<[String; 2]>,
    /// The feed-forward layer's activation.
    pub activation: Activation,
    /// Whether the feed-forward layer is gated, for the families that leave it open.
    pub gated: bool,
    /// What the head's input is multiplied by.
    pub head_scale: f64,
    /// Experts, for the families that have them.
    pub experts: Option<Experts>,
}

impl TransformerConfig {
    /// What the model reads and predicts.
    #[must_use]
    pub fn kind(&self) -> ModelKind {
        self.family.kind()
    }

    /// Refuses models that do not predict the token behind those they have seen.
    ///
    /// # Errors
    /// [`Error::Config`] that names the family and `purpose`, which is what a decoder is needed for.
    pub fn require_decoder(&self, purpose: &str) -> Result<()> {
        match self.kind() {
            ModelKind::Decoder => Ok(()),
            ModelKind::Encoder => Err(Error::config(
                "model_type",
                format!(
                    "{purpose} needs a decoder; {} is an encoder, which predicts masked tokens and not the next one",
                    self.family.model_type()
                ),
            )),
            ModelKind::EncoderDecoder => Err(Error::config(
                "model_type",
                format!(
                    "{purpose} needs a decoder alone; {} is an encoder with a decoder, for which this is not built",
                    self.family.model_type()
                ),
            )),
        }
    }

    /// The configuration of a checkpoint, whose tensors say whether the head is [tied](Self::tied).
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), with the file's path, and if the head and the table of embeddings are both there and
    /// cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let mut config = Self::from_json(checkpoint.config())
            .map_err(|error| error.of_config(checkpoint.config_file()))?;
        config.settle_head(&*checkpoint.tensors())?;
        Ok(config)
    }

    /// Reads a `config.json`: transformers 5 (`rope_parameters`, `dtype`) or before (`rope_theta`,
    /// `rope_scaling`, `torch_dtype`).
    ///
    /// # Errors
    /// [`Error::Config`] for a missing key, a value out of range, or anything that this crate's forward pass
    /// would not honour.
    pub fn from_json(config: &Value) -> Result<Self> {
        let Some(object) = config.as_object() else {
            return Err(Error::config("(whole file)", "expected a JSON object"));
        };
        let spec = family_of(object)?;
        let keys = Keys {
            object,
            renamed: spec.keys,
        };
        if keys.present("quantization_config") {
            return Err(Error::config(
                "quantization_config",
                "the checkpoint is quantized already; start from the float checkpoint",
            ));
        }
        keys.refuse_unknown_flags(spec)?;
        let hidden_size = keys.required("hidden_size")?;
        let heads = keys.required("num_attention_heads")?;
        let stack = keys
            .in_range("num_hidden_layers", MAX_BLOCKS)?
            .ok_or_else(|| keys.missing("num_hidden_layers"))?;
        let (encoder_blocks, blocks) = match spec.kind {
            ModelKind::EncoderDecoder => {
                let decoder = keys.in_range("num_decoder_layers", MAX_BLOCKS)?;
                (stack, stack + decoder.unwrap_or(stack))
            }
            ModelKind::Decoder | ModelKind::Encoder => (0, stack),
        };
        let kv_heads = keys.count("num_key_value_heads")?;
        let kv_heads = kv_heads.or(spec.kv_heads).unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(Error::config(
                "num_key_value_heads",
                format!("{kv_heads} does not divide num_attention_heads = {heads}"),
            ));
        }
        let head_dim = match keys.count("head_dim")?.or(spec.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(Error::config(
                    keys.name("hidden_size"),
                    format!(
                        "{hidden_size} is not a multiple of {} = {heads}, and there is no head_dim",
                        keys.name("num_attention_heads")
                    ),
                ));
            }
        };
        let residual = keys.choose(spec.residual)?;
        let vocab_size = keys.required("vocab_size")?;
        let padding = match spec.padding {
            Some(default) => Some(keys.token("pad_token_id", vocab_size)?.unwrap_or(default)),
            None => None,
        };
        let (activation, gated) = keys.activation(spec)?;
        let rows = keys
            .count("max_position_embeddings")?
            .unwrap_or(spec.max_positions);
        let positions = keys.positions(spec, head_dim, rows, padding)?;
        let max_positions = match (spec.positions, &positions) {
            // Here the key counts the rows of the table.
            (PositionKind::LearnedBehindPadding, Positions::Learned { offset, .. }) => {
                rows.saturating_sub(*offset)
            }
            // And here it ends the context that this scaling goes beyond.
            (_, Positions::Rotary { angles, .. }) => match angles.scaling() {
                RopeScaling::Dynamic { factor, .. } => (rows as f64 * factor.max(1.0)) as usize,
                _ => rows,
            },
            _ => rows,
        };
        if max_positions == 0 {
            return Err(Error::config(
                keys.name("max_position_embeddings"),
                format!("{rows} rows leave no position behind that of pad_token_id"),
            ));
        }
        let intermediate_size = match keys.count("intermediate_size")? {
            Some(size) => size,
            None if spec.inner_is_four_times => 4 * hidden_size,
            None => return Err(keys.missing("intermediate_size")),
        };
        let norm_eps = keys.number("rms_norm_eps")?.unwrap_or(spec.norm_eps);
        if !(norm_eps > 0.0 && norm_eps < 1.0) {
            return Err(Error::config(
                keys.name("rms_norm_eps"),
                format!("expected a small positive number, found {norm_eps}"),
            ));
        }
        let config = Self {
            family: spec.family,
            hidden_size,
            intermediate_size,
            blocks,
            encoder_blocks,
            heads,
            kv_heads,
            head_dim,
            vocab_size,
            padding,
            decoder_start: match spec.kind {
                ModelKind::EncoderDecoder => keys
                    .token("decoder_start_token_id", vocab_size)?
                    .or(padding),
                ModelKind::Decoder | ModelKind::Encoder => None,
            },
            token_types: match spec.names.token_types {
                Some(_) => Some(keys.count("type_vocab_size")?.unwrap_or(2)),
                None => None,
            },
            max_positions,
            embedding_size: match spec.names.projections {
                Some(_) => keys.count("word_embed_proj_dim")?.unwrap_or(hidden_size),
                None => hidden_size,
            },
            norm_eps,
            norm_weights: keys.choose(spec.norm_weights)?,
            final_norm: residual != Residual::PostNorm
                && keys.flag("_remove_final_layer_norm")? != Some(true),
            positions,
            residual,
            score_scales: keys.score_scales(spec, head_dim, blocks)?,
            // Gemma 3 has the key too, and transformers does not use it there.
            score_softcap: match spec.softcaps[0] {
                None => None,
                default => keys.softcap("attn_logit_softcapping", default)?,
            },
            logit_softcap: keys.softcap("final_logit_softcapping", spec.softcaps[1])?,
            sliding_windows: keys.sliding_windows(spec.windows, blocks)?,
            qkv_bias: keys.choose(spec.qkv_bias)?,
            head_norms: keys.choose(spec.head_norms)?,
            output_bias: keys.choose(spec.output_bias)?,
            mlp_bias: keys.choose(spec.mlp_bias)?,
            tied: keys
                .flag("tie_word_embeddings")?
                .unwrap_or(spec.tied_by_default),
            untied: None,
            activation,
            gated,
            head_scale: keys.head_scale(spec, hidden_size)?,
            experts: match &spec.experts {
                Some(experts) => Some(keys.experts(experts, blocks)?),
                None => None,
            },
        };
        config.check_size()?;
        Ok(config)
    }

    /// Refuses sizes that are each within bounds and nonsense together.
    fn check_size(&self) -> Result<()> {
        // Of the layers that a block has beside its experts'.
        const OTHERS: u64 = 14;
        let experts = self.experts.as_ref().map_or(0, |experts| experts.count);
        let layers = self.blocks as u64 * (OTHERS + 3 * experts as u64);
        if layers > MAX_LAYERS {
            return Err(Error::config(
                "num_hidden_layers",
                format!(
                    "{} blocks with {experts} experts are about {layers} layers, expected at most {MAX_LAYERS}",
                    self.blocks
                ),
            ));
        }
        let hidden = self.hidden_size as f64;
        let heads = 2.0 * (self.heads + self.kv_heads) as f64 * self.head_dim as f64;
        let inner = self.experts.as_ref().map_or(0.0, |experts| {
            let shared = experts.shared_intermediate_size.unwrap_or(0);
            experts.count as f64 * experts.intermediate_size as f64 + shared as f64
        });
        let block = 2.0 * heads * hidden + 3.0 * hidden * (self.intermediate_size as f64 + inner);
        let rows = 2 * self.vocab_size + self.position_table().map_or(0, |(_, rows)| rows);
        let width = self.embedding_size.max(self.hidden_size) as f64;
        let weights = self.blocks as f64 * block + rows as f64 * width;
        if weights > MAX_WEIGHTS {
            return Err(Error::config(
                "hidden_size",
                format!(
                    "the sizes together make up to {weights:.1e} weights, expected at most {MAX_WEIGHTS:.1e}"
                ),
            ));
        }
        Ok(())
    }
}

fn family_of(object: &Map<String, Value>) -> Result<&'static FamilySpec> {
    let all = || Family::model_types().collect::<Vec<_>>().join(", ");
    match object.get("model_type") {
        None | Some(Value::Null) => Err(Error::config(
            "model_type",
            format!("missing; expected one of {}", all()),
        )),
        Some(value) => {
            let found = FAMILIES
                .iter()
                .find(|spec| value.as_str() == Some(spec.model_type));
            found.copied().ok_or_else(|| {
                Error::config(
                    "model_type",
                    format!("{value} is not supported; these are: {}", all()),
                )
            })
        }
    }
}

/// Switches of one family or another. Where a family does not know one, on is refused.
const FLAGS: [&str; 10] = [
    "attention_bias",
    "mlp_bias",
    "use_qkv_bias",
    "enable_bias",
    "qk_layernorm",
    "apply_residual_connection_post_layernorm",
    "add_cross_attention",
    "is_decoder",
    "is_encoder_decoder",
    "use_bidirectional_attention",
];

/// Keys that transformers takes by this name in families that have another for it (`attribute_map`, and BLOOM's width).
/// Others it does not read by a name that is not the family's.
const COMMON_NAMES: [&str; 6] = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "head_dim",
    "num_experts",
];

/// What a rotary embedding is where the file does not say.
#[derive(Clone, Copy)]
struct RotaryDefaults {
    theta: f64,
    /// The longest sequence.
    positions: usize,
    /// Of the context that was trained on; `None`: the longest sequence.
    original_positions: Option<usize>,
}

/// Typed access to the keys by LLaMA's names; `null` counts as absent.
struct Keys<'a> {
    object: &'a Map<String, Value>,
    /// This family's names of LLaMA's keys.
    renamed: &'static [(&'static str, &'static str)],
}

impl<'a> Keys<'a> {
    /// The family's name of a key; its common name where transformers takes that too and the family's is absent.
    fn name<'k>(&self, key: &'k str) -> &'k str {
        let Some((_, own)) = self.renamed.iter().find(|(common, _)| *common == key) else {
            return key;
        };
        let by_common_name = COMMON_NAMES.contains(&key)
            && !own.is_empty()
            && !self.object.contains_key(*own)
            && self.object.contains_key(key);
        if by_common_name { key } else { own }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        let value = self.object.get(self.name(key));
        value.filter(|value| !value.is_null())
    }

    fn missing(&self, key: &str) -> Error {
        Error::config(self.name(key), "missing")
    }

    fn choose<T>(&self, choice: Choice<T>) -> Result<T> {
        Ok(match choice {
            Choice::Always(value) => value,
            Choice::Key {
                name,
                default,
                on,
                off,
            } => match self.flag(name)?.unwrap_or(default) {
                true => on,
                false => off,
            },
        })
    }

    fn refuse_unknown_flags(&self, spec: &FamilySpec) -> Result<()> {
        let known = [
            spec.qkv_bias.key(),
            spec.head_norms.key(),
            spec.output_bias.key(),
            spec.mlp_bias.key(),
            spec.norm_weights.key(),
            spec.residual.key(),
        ];
        for flag in FLAGS {
            let two_stacks = flag == "is_encoder_decoder" && spec.kind == ModelKind::EncoderDecoder;
            if !known.contains(&Some(flag)) && !two_stacks && self.flag(flag)? == Some(true) {
                return Err(Error::config(
                    flag,
                    format!("true is not supported for model_type {}", spec.model_type),
                ));
            }
        }
        if self.flag("slow_but_exact")? == Some(true) && self.count("pretraining_tp")? > Some(1) {
            return Err(Error::config(
                "slow_but_exact",
                "true with pretraining_tp above 1 is not supported: transformers computes such layers without their bias",
            ));
        }
        match self.text("position_embedding_type")? {
            None | Some("absolute") => Ok(()),
            Some(other) => Err(Error::config(
                "position_embedding_type",
                format!("{other:?} is not supported; absolute is"),
            )),
        }
    }

    /// A token of the vocabulary.
    fn token(&self, key: &str, vocab_size: usize) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
        match token {
            Some(token) if (token as usize) < vocab_size => Ok(Some(token)),
            _ => Err(Error::config(
                key,
                format!("expected a token below vocab_size = {vocab_size}, found {value}"),
            )),
        }
    }

    fn head_scale(&self, spec: &FamilySpec, hidden_size: usize) -> Result<f64> {
        if !spec.scaled_head {
            return Ok(1.0);
        }
        let scaled = match self.flag("scale_decoder_outputs")? {
            Some(scaled) => scaled,
            // What is no number scales nothing.
            None if self.object.contains_key("scale_decoder_outputs") => false,
            None => self.flag("tie_word_embeddings")? != Some(false),
        };
        Ok(match scaled {
            true => (hidden_size as f64).sqrt().recip(),
            false => 1.0,
        })
    }

    /// The activation, and whether it gates, where `feed_forward_proj` says both.
    fn activation(&self, spec: &FamilySpec) -> Result<(Activation, bool)> {
        let both = matches!(spec.names.feed_forward, FeedForward::GatedOrPlain { .. });
        let key = match both {
            true => "feed_forward_proj",
            false => "hidden_act",
        };
        let name = self.text(key)?.unwrap_or(spec.activation);
        let (mut name, mut gated) = match (both, name.strip_prefix("gated-")) {
            // transformers takes "gelu" for its approximation here.
            (true, Some("gelu")) => ("gelu_new", true),
            (true, Some(name)) => (name, true),
            _ => (name, false),
        };
        if both {
            // Written beside it by transformers, which goes by them where they differ.
            name = self.text("dense_act_fn")?.unwrap_or(name);
            gated = self.flag("is_gated_act")?.unwrap_or(gated);
        }
        let activation = match name {
            // transformers takes "gelu" for a slip of old Gemma files.
            "gelu" if spec.family == Family::Gemma => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "quick_gelu" => Activation::QuickGelu,
            "tanh" => Activation::Tanh,
            other => {
                return Err(Error::config(
                    self.name(key),
                    format!(
                        "{other:?} is not supported; silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu and tanh are"
                    ),
                ));
            }
        };
        Ok((activation, gated))
    }

    fn experts(&self, spec: &ExpertSpec, blocks: usize) -> Result<Experts> {
        let count = self.required(spec.count)?;
        let active = self.count("num_experts_per_tok")?.unwrap_or(spec.active);
        if active > count {
            return Err(Error::config(
                "num_experts_per_tok",
                format!("{active} is more than {} = {count}", spec.count),
            ));
        }
        let step = self.count("decoder_sparse_step")?.unwrap_or(1);
        let mut plain = BTreeSet::new();
        if let Some(list) = self.get("mlp_only_layers") {
            let known = || Error::config("mlp_only_layers", "expected a list of block numbers");
            for block in list.as_array().ok_or_else(known)? {
                plain.insert(block.as_u64().ok_or_else(known)? as usize);
            }
        }
        Ok(Experts {
            count,
            active,
            intermediate_size: self.required(spec.width)?,
            shared_intermediate_size: match spec.shared {
                Some(_) => Some(self.required("shared_expert_intermediate_size")?),
                None => None,
            },
            normalized: self.choose(spec.normalized)?,
            blocks: (0..blocks)
                .map(|block| (block + 1) % step == 0 && !plain.contains(&block))
                .collect(),
        })
    }

    /// A bound; `null` in the file means none, an absent key the family's.
    fn softcap(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        let cap = match self.object.contains_key(key) {
            true => self.number(key)?,
            false => default,
        };
        match cap {
            Some(cap) if cap <= 0.0 => Err(Error::config(
                key,
                format!("expected a positive number, found {cap}"),
            )),
            cap => Ok(cap),
        }
    }

    /// What scores are multiplied by: 1/√d, unless GPT-2's switches or Gemma's scalar say otherwise.
    fn score_scales(&self, spec: &FamilySpec, head_dim: usize, blocks: usize) -> Result<Vec<f64>> {
        let square = match spec.query_scalar {
            Some(default) => self.number("query_pre_attn_scalar")?.unwrap_or(default),
            None => head_dim as f64,
        };
        if square <= 0.0 {
            return Err(Error::config(
                "query_pre_attn_scalar",
                format!("expected a positive number, found {square}"),
            ));
        }
        let scale = match (spec.positions, self.flag("scale_attn_weights")?) {
            // T5 has it in the initialization of the weights.
            (PositionKind::Relative, _) | (_, Some(false)) => 1.0,
            _ => square.sqrt().recip(),
        };
        let by_depth = self.flag("scale_attn_by_inverse_layer_idx")? == Some(true);
        let scale_of = |block| match by_depth {
            true => scale / (block + 1) as f64,
            false => scale,
        };
        Ok((0..blocks).map(scale_of).collect())
    }

    fn positions(
        &self,
        spec: &FamilySpec,
        head_dim: usize,
        rows: usize,
        padding: Option<u32>,
    ) -> Result<Positions> {
        let (part, interleaved) = match spec.positions {
            PositionKind::Learned { offset } => {
                return Ok(Positions::Learned {
                    offset,
                    uncounted: None,
                });
            }
            PositionKind::LearnedBehindPadding => {
                return Ok(Positions::Learned {
                    offset: padding.map_or(0, |padding| padding as usize + 1),
                    uncounted: padding,
                });
            }
            PositionKind::Alibi => return Ok(Positions::Alibi),
            PositionKind::Relative => return self.relative_positions(),
            PositionKind::Rotary { part, interleaved } => (part, interleaved),
        };
        if spec.local_theta.is_none() && self.kinds_of_rotary() {
            return Err(Error::config(
                "rope_parameters.full_attention",
                "parameters that differ between layers are not supported for this family",
            ));
        }
        let given = RotaryDefaults {
            theta: spec.theta,
            positions: rows,
            original_positions: spec.original_positions,
        };
        let (angles, fraction) = self.rotary_of("full_attention", given)?;
        let local = match spec.local_theta {
            None => None,
            Some((key, default)) => match self.kinds_of_rotary() {
                true => {
                    let given = RotaryDefaults {
                        theta: default,
                        ..given
                    };
                    Some(self.rotary_of("sliding_attention", given)?.0)
                }
                false => {
                    let theta = self.number(key)?.unwrap_or(default);
                    Some(RotaryConfig::new(theta, RopeScaling::None)?)
                }
            },
        };
        let (key, dimensions) = match part {
            RotaryPart::Whole => match fraction.unwrap_or(1.0) {
                1.0 => ("head_dim", head_dim),
                _ => {
                    return Err(Error::config(
                        "partial_rotary_factor",
                        "only 1 is supported for this family",
                    ));
                }
            },
            RotaryPart::Fraction { key, default } => {
                let fraction = match fraction {
                    Some(fraction) => fraction,
                    None => self.number(key)?.unwrap_or(default),
                };
                if !(fraction > 0.0 && fraction <= 1.0) {
                    return Err(Error::config(
                        key,
                        format!("expected a fraction of a head above 0 up to 1, found {fraction}"),
                    ));
                }
                (key, (head_dim as f64 * fraction) as usize)
            }
            RotaryPart::Dimensions { key, default } => (key, self.count(key)?.unwrap_or(default)),
        };
        let rotary = [Some(&angles), local.as_ref()];
        for divisors in rotary.into_iter().flatten().filter_map(RotaryConfig::pairs) {
            if divisors != [dimensions / 2; 2] {
                return Err(Error::config(
                    "short_factor and long_factor",
                    format!(
                        "expected {} entries each, one for each pair of dimensions that turn, found {divisors:?}",
                        dimensions / 2
                    ),
                ));
            }
        }
        if dimensions % 2 != 0 || dimensions == 0 || dimensions > head_dim {
            return Err(Error::config(
                key,
                format!(
                    "turns {dimensions} of {head_dim} dimensions; rotary embedding needs whole pairs"
                ),
            ));
        }
        Ok(Positions::Rotary {
            angles,
            local,
            dimensions,
            interleaved,
        })
    }

    fn relative_positions(&self) -> Result<Positions> {
        let buckets = self.count("relative_attention_num_buckets")?.unwrap_or(32);
        let max_distance = self
            .count("relative_attention_max_distance")?
            .unwrap_or(128);
        // An encoder has half of them for each direction, and half of these for single distances.
        if buckets < 4 || buckets % 2 != 0 {
            return Err(Error::config(
                "relative_attention_num_buckets",
                format!("expected an even number from 4 on, found {buckets}"),
            ));
        }
        if max_distance <= buckets / 2 {
            return Err(Error::config(
                "relative_attention_max_distance",
                format!(
                    "expected more than half of relative_attention_num_buckets = {buckets}, found {max_distance}"
                ),
            ));
        }
        Ok(Positions::Relative {
            buckets,
            max_distance,
        })
    }

    /// Whether `rope_parameters` are given by kind of attention.
    fn kinds_of_rotary(&self) -> bool {
        let parameters = self.get("rope_parameters");
        parameters.is_some_and(|parameters| parameters.get("full_attention").is_some())
    }

    /// The rotary embedding of one kind of attention, or the only one.
    fn rotary_of(&self, kind: &str, given: RotaryDefaults) -> Result<(RotaryConfig, Option<f64>)> {
        if !self.kinds_of_rotary() {
            return self.rotary(given);
        }
        let parameters = self.get("rope_parameters").and_then(|all| all.get(kind));
        let mut object = Map::new();
        object.extend(parameters.map(|own| ("rope_parameters".to_owned(), own.clone())));
        let of_kind = Keys {
            object: &object,
            renamed: &[],
        };
        of_kind.rotary(given)
    }

    fn present(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn in_range(&self, key: &str, limit: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(count) if (1..=limit).contains(&count) => Ok(Some(count as usize)),
            _ => Err(Error::config(
                self.name(key),
                format!("expected an integer from 1 to {limit}, found {value}"),
            )),
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.in_range(key, MAX_DIMENSION)
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(Error::config(
                self.name(key),
                format!("expected a number, found {value}"),
            )),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value.as_bool().map(Some).ok_or_else(|| {
            Error::config(
                self.name(key),
                format!("expected true or false, found {value}"),
            )
        })
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| Error::config(self.name(key), format!("expected text, found {value}")))
    }

    /// `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before it; and `partial_rotary_factor`
    /// in either place.
    fn rotary(&self, given: RotaryDefaults) -> Result<(RotaryConfig, Option<f64>)> {
        let outer_fraction = self.number("partial_rotary_factor")?;
        let (key, scaling) = match (self.get("rope_parameters"), self.get("rope_scaling")) {
            (Some(parameters), Some(scaling)) if parameters != scaling => {
                return Err(Error::config(
                    "rope_scaling",
                    "contradicts rope_parameters; keep the one that the model was trained with",
                ));
            }
            (Some(parameters), _) => ("rope_parameters", Some(parameters)),
            (None, scaling) => ("rope_scaling", scaling),
        };
        let Some(scaling) = scaling else {
            let theta = self.number("rope_theta")?.unwrap_or(given.theta);
            return Ok((RotaryConfig::new(theta, RopeScaling::None)?, outer_fraction));
        };
        let object = scaling
            .as_object()
            .ok_or_else(|| Error::config(key, format!("expected an object, found {scaling}")))?;
        let inner = Keys {
            object,
            renamed: &[],
        };
        let theta = match inner.number("rope_theta")? {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(given.theta),
        };
        let kind = match (inner.text("rope_type")?, inner.text("type")?) {
            (Some(new), Some(old)) if new != old => {
                return Err(Error::config(
                    format!("{key}.rope_type"),
                    format!("{new:?} contradicts type = {old:?}"),
                ));
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) if inner.present("factor") => {
                return Err(Error::config(
                    format!("{key}.rope_type"),
                    "missing beside a factor",
                ));
            }
            (None, None) => "default",
        };
        if let Some((name, _)) = object.iter().find(|(_, value)| value.is_object()) {
            return Err(Error::config(
                format!("{key}.{name}"),
                "parameters that differ between layers are not supported for this family",
            ));
        }
        let required = |name: &str| {
            inner
                .number(name)?
                .ok_or_else(|| Error::config(format!("{key}.{name}"), "missing"))
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: required("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_positions: self.original_positions(&inner, given)?,
            },
            "dynamic" => RopeScaling::Dynamic {
                factor: required("factor")?,
                original_positions: given.positions as f64,
            },
            "yarn" | "longrope" | "su" => self.stretched((kind, key), &inner, given)?,
            other => {
                return Err(Error::config(
                    format!("{key}.rope_type"),
                    format!(
                        "{other:?} is not supported; default, linear, dynamic, llama3, yarn and longrope are"
                    ),
                ));
            }
        };
        let fraction = inner.number("partial_rotary_factor")?.or(outer_fraction);
        Ok((RotaryConfig::new(theta, scaling)?, fraction))
    }

    /// The context that was trained on: beside the parameters, as Phi-3 has it, before within them, as in `modeling_rope_utils` of
    /// transformers.
    fn original_positions(&self, inner: &Keys<'_>, given: RotaryDefaults) -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        let beside = match (self.number(KEY)?, given.original_positions) {
            (None, Some(default)) => Some(default as f64),
            (beside, _) => beside,
        };
        let within = inner.number(KEY)?;
        Ok(beside.or(within).unwrap_or(given.positions as f64))
    }

    /// YaRN and LongRoPE, whose parameters have defaults, as in `modeling_rope_utils` of transformers.
    fn stretched(
        &self,
        (kind, key): (&str, &str),
        inner: &Keys<'_>,
        given: RotaryDefaults,
    ) -> Result<RopeScaling> {
        let original_positions = self.original_positions(inner, given)?;
        let factor = match inner.number("factor")? {
            Some(factor) => factor,
            None => given.positions as f64 / original_positions,
        };
        let given = inner.number("attention_factor")?;
        // Phi-3 has called LongRoPE so.
        if kind == "yarn" && !inner.present("short_factor") {
            let grown = |scale: f64| match factor <= 1.0 {
                true => 1.0,
                false => 0.1 * scale * factor.ln() + 1.0,
            };
            let scales = (inner.number("mscale")?, inner.number("mscale_all_dim")?);
            let positive = |number: Option<f64>| number.filter(|number| *number != 0.0);
            return Ok(RopeScaling::Yarn {
                factor,
                beta_fast: positive(inner.number("beta_fast")?).unwrap_or(32.0),
                beta_slow: positive(inner.number("beta_slow")?).unwrap_or(1.0),
                truncate: inner.flag("truncate")?.unwrap_or(true),
                attention_factor: match (given, positive(scales.0), positive(scales.1)) {
                    (Some(given), ..) => given,
                    (None, Some(scale), Some(all)) => grown(scale) / grown(all),
                    _ => grown(1.0),
                },
                original_positions,
            });
        }
        let divisors = |name: &str| {
            let wrong = || Error::config(format!("{key}.{name}"), "expected a list of numbers");
            let list = inner
                .get(name)
                .and_then(Value::as_array)
                .ok_or_else(wrong)?;
            list.iter()
                .map(|divisor| divisor.as_f64().ok_or_else(wrong))
                .collect::<Result<Vec<f64>>>()
        };
        Ok(RopeScaling::LongRope {
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            attention_factor: given.unwrap_or_else(|| match factor <= 1.0 {
                true => 1.0,
                false => (1.0 + factor.ln() / original_positions.ln()).sqrt(),
            }),
            original_positions,
        })
    }

    /// As transformers decides. `null` in the file means none, an absent key the family's default.
    fn sliding_windows(&self, windows: Windows, blocks: usize) -> Result<Vec<Option<usize>>> {
        let (default, flagged) = match windows {
            Windows::Never => return Ok(vec![None; blocks]),
            Windows::Always(default) | Windows::AlwaysOrListed(default) => (default, false),
            Windows::AlwaysFlagged(default) => (default, true),
            Windows::Flagged | Windows::Listed => (Some(4096), true),
            Windows::Every { .. } => (Some(4096), false),
        };
        let off = flagged && self.flag("use_sliding_window")? != Some(true);
        // Where windows are off, transformers writes a size of 0.
        let window = match self.object.contains_key("sliding_window") {
            _ if off => None,
            true => self.count("sliding_window")?,
            false => default,
        };
        if matches!(windows, Windows::Always(_) | Windows::AlwaysFlagged(_)) {
            return Ok(vec![window; blocks]);
        }
        if let Some(types) = self.get("layer_types") {
            let types = types
                .as_array()
                .filter(|types| types.len() == blocks)
                .ok_or_else(|| {
                    Error::config(
                        "layer_types",
                        format!("expected a list of {blocks} entries"),
                    )
                })?;
            return types
                .iter()
                .map(|kind| match kind.as_str() {
                    Some("full_attention") => Ok(None),
                    Some("sliding_attention") if window.is_some() => Ok(window),
                    Some("sliding_attention") => Err(Error::config(
                        "layer_types",
                        "has sliding_attention without use_sliding_window and a sliding_window",
                    )),
                    _ => Err(Error::config(
                        "layer_types",
                        format!("{kind} is not supported"),
                    )),
                })
                .collect();
        }
        if matches!(windows, Windows::AlwaysOrListed(_)) {
            return Ok(vec![window; blocks]);
        }
        if windows == Windows::Listed && window.is_some() {
            return Err(Error::config(
                "layer_types",
                "missing beside use_sliding_window; transformers has read that in more than one way",
            ));
        }
        if let Windows::Every { key, default } = windows {
            let run = self.count(key)?.unwrap_or(default);
            return Ok((0..blocks)
                .map(|block| window.filter(|_| (block + 1) % run != 0))
                .collect());
        }
        let first = match self.get("max_window_layers") {
            None => 28,
            Some(value) => value.as_u64().ok_or_else(|| {
                Error::config(
                    "max_window_layers",
                    format!("expected an integer, found {value}"),
                )
            })? as usize,
        };
        Ok((0..blocks)
            .map(|block| window.filter(|_| block >= first))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 160,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256,
        })
    }

    fn with(changes: Value) -> Value {
        let mut config = base();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    #[test]
    fn gemma_3_caps_logits_and_no_scores() {
        let config = |model_type: &str| {
            let config = with(json!({
                "model_type": model_type, "head_dim": 16, "num_key_value_heads": 4,
                "attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0,
            }));
            TransformerConfig::from_json(&config).unwrap()
        };
        let (second, third) = (config("gemma2"), config("gemma3_text"));
        assert_eq!(
            (second.score_softcap, second.logit_softcap),
            (Some(4.0), Some(8.0))
        );
        assert_eq!(
            (third.score_softcap, third.logit_softcap),
            (None, Some(8.0))
        );
    }

    #[test]
    fn t5_goes_by_the_activation_that_is_written_beside() {
        let config = |changes: Value| {
            let mut config = json!({
                "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
                "num_heads": 4, "vocab_size": 64,
            });
            for (key, value) in changes.as_object().unwrap() {
                config[key] = value.clone();
            }
            let config = TransformerConfig::from_json(&config).unwrap();
            (config.activation, config.gated)
        };
        let gated = json!({"feed_forward_proj": "gated-gelu"});
        assert_eq!(config(gated), (Activation::GeluTanh, true));
        let beside = json!({"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"});
        assert_eq!(config(beside), (Activation::Relu, true));
        let alone = json!({"dense_act_fn": "gelu_new", "is_gated_act": true});
        assert_eq!(config(alone), (Activation::GeluTanh, true));
    }

    #[test]
    fn both_dialects_say_the_same() {
        let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
        let mut old = scaling.clone();
        old["type"] = json!("llama3");
        let mut new = scaling;
        new["rope_type"] = json!("llama3");
        new["rope_theta"] = json!(500_000.0);
        let old = with(json!({"rope_theta": 500_000.0, "rope_scaling": old}));
        let new = with(json!({"rope_parameters": new}));
        assert_eq!(
            TransformerConfig::from_json(&old).unwrap(),
            TransformerConfig::from_json(&new).unwrap()
        );
    }

    #[test]
    fn windows_follow_the_family() {
        let windows = |changes| {
            TransformerConfig::from_json(&with(changes))
                .unwrap()
                .sliding_windows
        };
        assert_eq!(windows(json!({"sliding_window": 16})), [None, None]);
        assert_eq!(
            windows(
                json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 16})
            ),
            [Some(16), Some(16)]
        );
        assert_eq!(
            windows(
                json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": null})
            ),
            [None, None]
        );
        let qwen = |changes: Value| {
            let mut all =
                json!({"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 16});
            for (key, value) in changes.as_object().unwrap() {
                all[key] = value.clone();
            }
            windows(all)
        };
        assert_eq!(qwen(json!({})), [None, None]);
        assert_eq!(
            qwen(json!({"use_sliding_window": true, "max_window_layers": 1})),
            [None, Some(16)]
        );
        assert_eq!(
            qwen(
                json!({"use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"]})
            ),
            [Some(16), None]
        );
    }

    #[test]
    fn a_mistral_with_layer_types_is_a_ministral() {
        let types = json!(["full_attention", "sliding_attention"]);
        let config = with(json!({
            "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 16, "layer_types": types,
        }));
        let config = TransformerConfig::from_json(&config).unwrap();
        assert_eq!(config.sliding_windows, [None, Some(16)]);
    }

    #[test]
    fn keys_of_other_families_are_not_read() {
        let same = |with_it: Value, without: Value| {
            let read = |changes| TransformerConfig::from_json(&with(changes)).unwrap();
            assert_eq!(read(with_it.clone()), read(without), "{with_it}");
        };
        let gpt2 = json!({"model_type": "gpt2", "n_embd": 64, "activation_function": "relu"});
        let mut stray = gpt2.clone();
        stray["hidden_act"] = json!("silu");
        stray["rms_norm_eps"] = json!(0.1);
        stray["intermediate_size"] = json!(1000);
        same(stray, gpt2);
        // But these it has under both names.
        let common = with(json!({"model_type": "gpt2"}));
        assert_eq!(TransformerConfig::from_json(&common).unwrap().blocks, 2);
        let neox = json!({"model_type": "gpt_neox", "rotary_emb_base": 500, "rotary_pct": 0.5});
        let mut stray = neox.clone();
        stray["rope_theta"] = json!(7);
        stray["partial_rotary_factor"] = json!(1.0);
        same(stray, neox);
        let opt = json!({"model_type": "opt", "ffn_dim": 100});
        let mut stray = opt.clone();
        stray["hidden_act"] = json!("silu");
        same(stray, opt);
    }

    #[test]
    fn the_trained_context_stands_beside_the_parameters_first() {
        let scaling = |model_type: &str, kind: &str, beside: Option<u32>, within: Option<u32>| {
            let ones = vec![1.0; 8];
            let mut parameters = json!({
                "rope_type": kind, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            });
            if kind == "longrope" {
                parameters = json!({"rope_type": kind, "short_factor": ones, "long_factor": ones});
            }
            if let Some(within) = within {
                parameters["original_max_position_embeddings"] = json!(within);
            }
            let mut config = with(json!({
                "model_type": model_type, "rope_parameters": parameters, "max_position_embeddings": 512,
            }));
            if let Some(beside) = beside {
                config["original_max_position_embeddings"] = json!(beside);
            }
            match TransformerConfig::from_json(&config).unwrap().positions {
                Positions::Rotary { angles, .. } => match angles.scaling() {
                    RopeScaling::Llama3 {
                        original_positions, ..
                    }
                    | RopeScaling::LongRope {
                        original_positions, ..
                    } => *original_positions,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            }
        };
        for (model_type, kind, beside, within, expected) in [
            ("llama", "llama3", Some(64), Some(16), 64.0),
            ("llama", "llama3", Some(64), None, 64.0),
            ("llama", "llama3", None, Some(16), 16.0),
            ("llama", "llama3", None, None, 512.0),
            ("llama", "longrope", None, Some(16), 16.0),
            // Phi-3's own default is always beside them.
            ("phi3", "longrope", None, Some(16), 4096.0),
            ("phi3", "longrope", Some(32), Some(16), 32.0),
        ] {
            let found = scaling(model_type, kind, beside, within);
            assert_eq!(
                found, expected,
                "{model_type}, {kind}, {beside:?}, {within:?}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (changes, key) in [
            (json!({"model_type": "mamba"}), "model_type"),
            (json!({"model_type": null}), "model_type"),
            (json!({"hidden_size": -1}), "hidden_size"),
            (json!({"hidden_size": 1e18}), "hidden_size"),
            (json!({"hidden_size": null}), "hidden_size"),
            (json!({"num_attention_heads": 0}), "num_attention_heads"),
            (json!({"num_attention_heads": 7}), "hidden_size"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            (json!({"head_dim": 15}), "head_dim"),
            (json!({"hidden_act": "relu6"}), "hidden_act"),
            (
                json!({"rope_scaling": {"type": "spiral", "factor": 2.0}}),
                "rope_type",
            ),
            (
                json!({"rope_scaling": {"type": "dynamic", "factor": -2.0}}),
                "factor",
            ),
            (
                json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "original_max_position_embeddings": 16}}),
                "8 entries",
            ),
            (
                json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "original_max_position_embeddings": 16}}),
                "long_factor",
            ),
            (json!({"rope_scaling": {"type": "linear"}}), "factor"),
            (
                json!({"rope_parameters": {"rope_theta": -5.0}}),
                "rope_theta",
            ),
            (json!({"rms_norm_eps": "small"}), "rms_norm_eps"),
            (json!({"rope_scaling": {"factor": 4.0}}), "rope_type"),
            (
                json!({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 4.0}}),
                "rope_type",
            ),
            (
                json!({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}),
                "full_attention",
            ),
            (
                json!({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2.0}}),
                "rope_scaling",
            ),
            (
                json!({"model_type": "qwen2", "num_key_value_heads": 2, "layer_types": ["sliding_attention", "full_attention"]}),
                "layer_types",
            ),
            (
                json!({"model_type": "mistral", "num_key_value_heads": 2, "attention_bias": true}),
                "attention_bias",
            ),
            (
                json!({"quantization_config": {"bits": 4}}),
                "quantization_config",
            ),
        ] {
            let error = TransformerConfig::from_json(&with(changes.clone()))
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{changes}: {error}");
        }
    }

    #[test]
    fn sizes_that_are_nonsense_together_are_refused() {
        let most = 1 << 24;
        for (changes, named) in [
            (
                json!({"hidden_size": most, "intermediate_size": most, "num_hidden_layers": 1 << 14}),
                "weights",
            ),
            (
                json!({"head_dim": most, "num_attention_heads": most, "hidden_size": most}),
                "weights",
            ),
            (
                json!({
                    "model_type": "mixtral", "num_local_experts": most, "num_experts_per_tok": 2,
                    "num_key_value_heads": 2, "num_hidden_layers": 1,
                }),
                "layers",
            ),
        ] {
            let error = TransformerConfig::from_json(&with(changes.clone()))
                .unwrap_err()
                .to_string();
            assert!(error.contains(named), "{changes}: {error}");
            assert!(error.contains("expected at most"), "{error}");
        }
    }
}
