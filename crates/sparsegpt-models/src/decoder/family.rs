//! The families: each one a short table of names, keys and choices over the one decoder.

use super::config::{Activation, Residual};

/// Model families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// LLaMA 1 to 3 and models in its layout (SmolLM).
    Llama,
    /// Mistral: sliding window.
    Mistral,
    /// Qwen2: biases on query, key and value.
    Qwen2,
    /// GPT-NeoX and Pythia: fused query, key and value, partial rotary embedding, parallel residual.
    GptNeoX,
    /// Gemma 1: norms around 1, scaled embedding, gated GELU.
    Gemma,
    /// Gemma 2: norms on what the parts add too, bounded scores and logits, windows in every other block.
    Gemma2,
    /// Gemma 3 (text): as Gemma 2, norms on the heads of queries and keys, another rotary base where there are windows.
    Gemma3,
    /// Qwen3: norms on the heads of queries and keys.
    Qwen3,
    /// OPT: learned positions; the 350M form normalizes sums and projects from and to a narrower embedding.
    Opt,
    /// BLOOM: ALiBi, norm behind the embedding.
    Bloom,
    /// GPT-2: learned positions, weights stored as cols x rows.
    Gpt2,
    /// GPT-J: interleaved partial rotary embedding, attention and feed-forward side by side, bias on the head.
    GptJ,
    /// StableLM: LayerNorm, partial rotary embedding, gated feed-forward, parallel or not.
    StableLm,
    /// Phi-3: fused query, key and value, fused gate and up.
    Phi3,
    /// Mixtral: experts.
    Mixtral,
    /// Qwen2-MoE: experts, and one shared by all tokens.
    Qwen2Moe,
    /// Qwen3-MoE: experts, norms on the heads of queries and keys.
    Qwen3Moe,
    /// BERT: an encoder that normalizes sums, with a head for masked tokens.
    Bert,
    /// RoBERTa: as BERT, positions counted from behind the padding's on.
    Roberta,
    /// XLM-RoBERTa: RoBERTa under another name.
    XlmRoberta,
    /// T5: an encoder and a decoder, biases by relative position, feed-forward gated or not.
    T5,
    /// mT5: T5 whose logits are not scaled.
    Mt5,
}

/// What a family's models read and predict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelKind {
    /// A token sees itself and those before it, and predicts the next one.
    Decoder,
    /// A token sees all others, and predicts what stood in its place (masked language modelling).
    Encoder,
    /// A decoder whose blocks see the output of an encoder besides.
    EncoderDecoder,
}

/// How activations are normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormKind {
    /// Over the root mean square, times the weight.
    Rms,
    /// Over the root mean square, times one more than the weight.
    RmsOffset,
    /// Less the mean, over the standard deviation, times the weight, plus the bias.
    Layer,
}

/// What a family always does, or what a key of `config.json` decides.
#[derive(Clone, Copy, Debug)]
pub(super) enum Choice<T> {
    Always(T),
    Key {
        name: &'static str,
        default: bool,
        on: T,
        off: T,
    },
}

impl<T> Choice<T> {
    /// The key that decides, where one does.
    pub(super) fn key(&self) -> Option<&'static str> {
        match self {
            Self::Always(_) => None,
            Self::Key { name, .. } => Some(name),
        }
    }
}

impl Choice<bool> {
    /// A flag that is off where it is absent.
    const fn flag(name: &'static str) -> Self {
        Self::Key {
            name,
            default: false,
            on: true,
            off: false,
        }
    }

    /// A flag that is on where it is absent.
    const fn flag_on(name: &'static str) -> Self {
        Self::Key {
            name,
            default: true,
            on: true,
            off: false,
        }
    }
}

/// The norms of heads, of those of queries and of those of keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum QkNorms {
    /// One for all heads.
    One([&'static str; 2]),
    /// One for each head, whose number stands behind the name, without a bias.
    ByHead([&'static str; 2]),
}

/// How positions enter.
#[derive(Clone, Copy, Debug)]
pub(super) enum PositionKind {
    /// Queries and keys are turned, in pairs of dimensions half a head apart, or next to each other
    /// (`interleaved`).
    Rotary { part: RotaryPart, interleaved: bool },
    /// A table of learned positions is added to the embedding, from this row on.
    Learned { offset: usize },
    /// The same from the row behind the padding token's number on; padding is not counted and has that row itself.
    LearnedBehindPadding,
    /// Scores fall with the distance, at another slope in each head.
    Alibi,
    /// Scores are shifted by learned biases, by bucket of distances. They stand in the first block of each stack.
    Relative,
}

/// How many of a head's dimensions are turned.
#[derive(Clone, Copy, Debug)]
pub(super) enum RotaryPart {
    Whole,
    /// A fraction of them, by default this one; under this key in old files.
    Fraction {
        key: &'static str,
        default: f64,
    },
    /// So many, by default this many; under this key.
    Dimensions {
        key: &'static str,
        default: usize,
    },
}

/// Which blocks have a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    Never,
    /// All, of this size where the key is absent.
    Always(Option<usize>),
    /// Those that `layer_types` names, without it all; of this size where the key is absent. (transformers takes a Mistral with
    /// `layer_types` for a Ministral.)
    AlwaysOrListed(Option<usize>),
    /// All, of this size where the key is absent, if `use_sliding_window`.
    AlwaysFlagged(Option<usize>),
    /// Those that `layer_types` names, or from `max_window_layers` on, if `use_sliding_window`.
    Flagged,
    /// Those that `layer_types` names, if `use_sliding_window`.
    Listed,
    /// Those that `layer_types` names; without it, all but the last of each run of so many blocks, or of what the
    /// key says.
    Every {
        key: &'static str,
        default: usize,
    },
}

/// Query, key and value layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Qkv {
    Split([&'static str; 3]),
    /// One layer. Its rows are query, key and value of each head in turn (`by_head`), or of all heads.
    Fused {
        name: &'static str,
        by_head: bool,
    },
}

/// The layers of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FeedForward {
    /// down(activation(gate(x))·up(x)).
    Gated {
        gate: &'static str,
        up: &'static str,
        down: &'static str,
    },
    /// As `Gated`, gate and up in one layer, the gate's rows first.
    FusedGated {
        gate_up: &'static str,
        down: &'static str,
    },
    /// down(activation(up(x))).
    Plain {
        up: &'static str,
        down: &'static str,
    },
    /// As `Gated` or as `Plain`, as `feed_forward_proj` says.
    GatedOrPlain {
        gated: [&'static str; 2],
        plain: &'static str,
        down: &'static str,
    },
}

/// Attention of a decoder's block over the encoder's output: its norm, query, key, value and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CrossAttention {
    pub(super) norm: &'static str,
    pub(super) qkv: [&'static str; 3],
    pub(super) output: &'static str,
}

/// The experts of a feed-forward part: names within the block, and keys of `config.json`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertSpec {
    pub(super) router: &'static str,
    /// In front of an expert's number.
    pub(super) experts: &'static str,
    /// Gate, up and down of an expert.
    pub(super) parts: [&'static str; 3],
    /// An expert for all tokens (its gate, up and down are the `feed_forward` names behind this), and what weighs
    /// it.
    pub(super) shared: Option<[&'static str; 2]>,
    /// The key of their number.
    pub(super) count: &'static str,
    /// Experts of a token where the key is absent.
    pub(super) active: usize,
    /// The key of an expert's width.
    pub(super) width: &'static str,
    /// Whether the weights of a token's experts are made to sum to 1.
    pub(super) normalized: Choice<bool>,
}

/// What a head does before it compares with the vocabulary: activation(dense(x)), normalized.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadTransform {
    /// With a bias; outside the prefix.
    pub(super) dense: &'static str,
    pub(super) norm: &'static str,
    /// `None`: that of the feed-forward layers.
    pub(super) activation: Option<Activation>,
}

/// Names in the checkpoint, without `.weight`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// In front of all but the head's; a checkpoint of the bare model leaves it out.
    pub(super) prefix: &'static str,
    pub(super) embedding: &'static str,
    /// The table of learned positions.
    pub(super) positions: Option<&'static str>,
    /// The table of token types, of which the first is added to every token.
    pub(super) token_types: Option<&'static str>,
    pub(super) embedding_norm: Option<&'static str>,
    /// Between the embedding's width and the blocks', on the way in and on the way out.
    pub(super) projections: Option<[&'static str; 2]>,
    /// In front of a block's number.
    pub(super) blocks: &'static str,
    /// Of attention and feed-forward.
    pub(super) norms: [&'static str; 2],
    /// Of what attention and feed-forward add.
    pub(super) branch_norms: Option<[&'static str; 2]>,
    pub(super) qkv: Qkv,
    /// Of the heads of queries and of keys.
    pub(super) qk_norms: Option<QkNorms>,
    pub(super) output: &'static str,
    /// The table of relative positions, in the first block.
    pub(super) relative_bias: Option<&'static str>,
    pub(super) cross: Option<CrossAttention>,
    pub(super) feed_forward: FeedForward,
    pub(super) final_norm: &'static str,
    pub(super) head_transform: Option<HeadTransform>,
    pub(super) head: &'static str,
    /// Whole names of the head's bias, where it has one; the first that the checkpoint holds counts.
    pub(super) head_bias: &'static [&'static str],
    /// Endings of tensors that old checkpoints carry and nothing reads.
    pub(super) ignored: &'static [&'static str],
}

/// One family.
#[derive(Clone, Copy, Debug)]
pub(super) struct FamilySpec {
    pub(super) family: Family,
    pub(super) model_type: &'static str,
    pub(super) kind: ModelKind,
    /// The token that fills sequences up, where its key is absent; `None`: the family's models know no padding.
    pub(super) padding: Option<u32>,
    /// This family's names of LLaMA's keys, where they differ; an empty name: it has no such key.
    pub(super) keys: &'static [(&'static str, &'static str)],
    pub(super) max_positions: usize,
    /// Whether the feed-forward width is four times the hidden one where the key is absent.
    pub(super) inner_is_four_times: bool,
    /// Width of a head where the key is absent; `None`: the heads share the hidden width.
    pub(super) head_dim: Option<usize>,
    /// Key and value heads where the key is absent; `None`: as many as query heads.
    pub(super) kv_heads: Option<usize>,
    pub(super) activation: &'static str,
    pub(super) theta: f64,
    /// The context that LongRoPE and its kin go out from, where the key beside their parameters is absent and does not stand for the
    /// longest sequence.
    pub(super) original_positions: Option<usize>,
    /// Rotary base of blocks with a window, where it is another: its key, and the base where that is absent.
    pub(super) local_theta: Option<(&'static str, f64)>,
    /// Where `query_pre_attn_scalar` stands for the width of a head: its value where it is absent.
    pub(super) query_scalar: Option<f64>,
    /// Bounds of scores and logits where their keys are absent.
    pub(super) softcaps: [Option<f64>; 2],
    pub(super) norm: NormKind,
    pub(super) norm_eps: f64,
    /// Whether norms have weights.
    pub(super) norm_weights: Choice<bool>,
    /// Whether embeddings are multiplied by the root of their width.
    pub(super) scaled_embedding: bool,
    pub(super) positions: PositionKind,
    pub(super) residual: Choice<Residual>,
    pub(super) qkv_bias: Choice<bool>,
    /// Whether the norms of heads are there, for the families that name some.
    pub(super) head_norms: Choice<bool>,
    pub(super) output_bias: Choice<bool>,
    pub(super) mlp_bias: Choice<bool>,
    pub(super) tied_by_default: bool,
    /// Whether the checkpoint holds the linear layers of blocks as cols x rows (Conv1D of transformers).
    pub(super) transposed: bool,
    pub(super) windows: Windows,
    pub(super) experts: Option<ExpertSpec>,
    /// Whether the head is the embedding only where the checkpoint has no head, whatever the key says.
    pub(super) tied_unless_stored: bool,
    /// Whether what the head reads is divided by the root of its width, unless `scale_decoder_outputs`, or in its absence
    /// `tie_word_embeddings`, says no.
    pub(super) scaled_head: bool,
    pub(super) names: Names,
    /// Those of the encoder in front of a decoder.
    pub(super) encoder_names: Option<Names>,
}

const LLAMA_NAMES: Names = Names {
    prefix: "model.",
    embedding: "embed_tokens",
    positions: None,
    token_types: None,
    embedding_norm: None,
    projections: None,
    blocks: "layers",
    norms: ["input_layernorm", "post_attention_layernorm"],
    branch_norms: None,
    qkv: Qkv::Split(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    qk_norms: None,
    output: "self_attn.o_proj",
    relative_bias: None,
    cross: None,
    feed_forward: FeedForward::Gated {
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
    },
    final_norm: "norm",
    head_transform: None,
    head: "lm_head",
    head_bias: &[],
    ignored: &[".rotary_emb.inv_freq"],
};

const LLAMA: FamilySpec = FamilySpec {
    family: Family::Llama,
    model_type: "llama",
    kind: ModelKind::Decoder,
    padding: None,
    keys: &[],
    max_positions: 2048,
    inner_is_four_times: false,
    head_dim: None,
    kv_heads: None,
    activation: "silu",
    theta: 10_000.0,
    original_positions: None,
    local_theta: None,
    query_scalar: None,
    softcaps: [None, None],
    norm: NormKind::Rms,
    norm_eps: 1e-6,
    norm_weights: Choice::Always(true),
    scaled_embedding: false,
    positions: PositionKind::Rotary {
        part: RotaryPart::Whole,
        interleaved: false,
    },
    residual: Choice::Always(Residual::Sequential),
    qkv_bias: Choice::flag("attention_bias"),
    head_norms: Choice::Always(true),
    output_bias: Choice::flag("attention_bias"),
    mlp_bias: Choice::flag("mlp_bias"),
    tied_by_default: false,
    transposed: false,
    windows: Windows::Never,
    experts: None,
    tied_unless_stored: false,
    scaled_head: false,
    names: LLAMA_NAMES,
    encoder_names: None,
};

/// LLaMA without optional biases.
const UNBIASED: FamilySpec = FamilySpec {
    qkv_bias: Choice::Always(false),
    output_bias: Choice::Always(false),
    mlp_bias: Choice::Always(false),
    ..LLAMA
};

const MISTRAL: FamilySpec = FamilySpec {
    family: Family::Mistral,
    model_type: "mistral",
    max_positions: 131_072,
    kv_heads: Some(8),
    windows: Windows::AlwaysOrListed(Some(4096)),
    ..UNBIASED
};

const QWEN2: FamilySpec = FamilySpec {
    family: Family::Qwen2,
    model_type: "qwen2",
    max_positions: 32_768,
    kv_heads: Some(32),
    qkv_bias: Choice::Always(true),
    windows: Windows::Flagged,
    ..UNBIASED
};

const GPT_NEOX: FamilySpec = FamilySpec {
    family: Family::GptNeoX,
    model_type: "gpt_neox",
    keys: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("rope_theta", "rotary_emb_base"),
        ("partial_rotary_factor", "rotary_pct"),
    ],
    max_positions: 2048,
    activation: "gelu",
    norm: NormKind::Layer,
    norm_eps: 1e-5,
    positions: PositionKind::Rotary {
        part: RotaryPart::Fraction {
            key: "partial_rotary_factor",
            default: 0.25,
        },
        interleaved: false,
    },
    residual: Choice::Key {
        name: "use_parallel_residual",
        default: true,
        on: Residual::Parallel,
        off: Residual::Sequential,
    },
    qkv_bias: Choice::flag_on("attention_bias"),
    output_bias: Choice::flag_on("attention_bias"),
    mlp_bias: Choice::Always(true),
    names: Names {
        prefix: "gpt_neox.",
        embedding: "embed_in",
        blocks: "layers",
        norms: ["input_layernorm", "post_attention_layernorm"],
        qkv: Qkv::Fused {
            name: "attention.query_key_value",
            by_head: true,
        },
        output: "attention.dense",
        feed_forward: FeedForward::Plain {
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
        },
        final_norm: "final_layer_norm",
        head: "embed_out",
        ignored: &[
            ".attention.bias",
            ".attention.masked_bias",
            ".rotary_emb.inv_freq",
        ],
        ..LLAMA_NAMES
    },
    ..LLAMA
};

const GEMMA: FamilySpec = FamilySpec {
    family: Family::Gemma,
    model_type: "gemma",
    max_positions: 8192,
    head_dim: Some(256),
    kv_heads: Some(16),
    activation: "gelu_pytorch_tanh",
    norm: NormKind::RmsOffset,
    scaled_embedding: true,
    mlp_bias: Choice::Always(false),
    tied_by_default: true,
    ..LLAMA
};

const QWEN3: FamilySpec = FamilySpec {
    family: Family::Qwen3,
    model_type: "qwen3",
    head_dim: Some(128),
    qkv_bias: Choice::flag("attention_bias"),
    output_bias: Choice::flag("attention_bias"),
    names: Names {
        qk_norms: Some(QkNorms::One(["self_attn.q_norm", "self_attn.k_norm"])),
        ..LLAMA_NAMES
    },
    ..QWEN2
};

/// LayerNorm, biases and GELU by tanh, as GPT-2 has them.
const GPT: FamilySpec = FamilySpec {
    activation: "gelu_new",
    inner_is_four_times: true,
    norm: NormKind::Layer,
    norm_eps: 1e-5,
    qkv_bias: Choice::Always(true),
    output_bias: Choice::Always(true),
    mlp_bias: Choice::Always(true),
    tied_by_default: true,
    ..LLAMA
};

const OPT: FamilySpec = FamilySpec {
    family: Family::Opt,
    model_type: "opt",
    keys: &[
        ("hidden_act", "activation_function"),
        ("intermediate_size", "ffn_dim"),
        ("rms_norm_eps", ""),
    ],
    activation: "relu",
    inner_is_four_times: false,
    norm_weights: Choice::flag_on("layer_norm_elementwise_affine"),
    positions: PositionKind::Learned { offset: 2 },
    residual: Choice::Key {
        name: "do_layer_norm_before",
        default: true,
        on: Residual::Sequential,
        off: Residual::PostNorm,
    },
    qkv_bias: Choice::flag_on("enable_bias"),
    output_bias: Choice::flag_on("enable_bias"),
    mlp_bias: Choice::flag_on("enable_bias"),
    names: Names {
        prefix: "model.",
        embedding: "decoder.embed_tokens",
        positions: Some("decoder.embed_positions"),
        projections: Some(["decoder.project_in", "decoder.project_out"]),
        blocks: "decoder.layers",
        norms: ["self_attn_layer_norm", "final_layer_norm"],
        output: "self_attn.out_proj",
        feed_forward: FeedForward::Plain {
            up: "fc1",
            down: "fc2",
        },
        final_norm: "decoder.final_layer_norm",
        ..LLAMA_NAMES
    },
    ..GPT
};

const BLOOM: FamilySpec = FamilySpec {
    family: Family::Bloom,
    model_type: "bloom",
    keys: &[
        ("hidden_size", "n_embed"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("intermediate_size", ""),
        ("hidden_act", ""),
        // ALiBi has no longest sequence.
        ("max_position_embeddings", ""),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    max_positions: 1 << 24,
    positions: PositionKind::Alibi,
    residual: Choice::Key {
        name: "apply_residual_connection_post_layernorm",
        default: false,
        on: Residual::Normalized,
        off: Residual::Sequential,
    },
    names: Names {
        prefix: "transformer.",
        embedding: "word_embeddings",
        embedding_norm: Some("word_embeddings_layernorm"),
        blocks: "h",
        qkv: Qkv::Fused {
            name: "self_attention.query_key_value",
            by_head: true,
        },
        output: "self_attention.dense",
        feed_forward: FeedForward::Plain {
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
        },
        final_norm: "ln_f",
        ..LLAMA_NAMES
    },
    ..GPT
};

/// GPT-2's names of the keys, GPT-J's too.
const GPT_KEYS: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("intermediate_size", "n_inner"),
    ("max_position_embeddings", "n_positions"),
    ("hidden_act", "activation_function"),
    ("rms_norm_eps", "layer_norm_epsilon"),
];

const GPT2: FamilySpec = FamilySpec {
    family: Family::Gpt2,
    model_type: "gpt2",
    keys: GPT_KEYS,
    max_positions: 1024,
    positions: PositionKind::Learned { offset: 0 },
    transposed: true,
    names: Names {
        prefix: "transformer.",
        embedding: "wte",
        positions: Some("wpe"),
        blocks: "h",
        norms: ["ln_1", "ln_2"],
        qkv: Qkv::Fused {
            name: "attn.c_attn",
            by_head: false,
        },
        output: "attn.c_proj",
        feed_forward: FeedForward::Plain {
            up: "mlp.c_fc",
            down: "mlp.c_proj",
        },
        final_norm: "ln_f",
        ignored: &[".attn.bias", ".attn.masked_bias"],
        ..LLAMA_NAMES
    },
    ..GPT
};

const GPT_J: FamilySpec = FamilySpec {
    family: Family::GptJ,
    model_type: "gptj",
    keys: GPT_KEYS,
    max_positions: 2048,
    positions: PositionKind::Rotary {
        part: RotaryPart::Dimensions {
            key: "rotary_dim",
            default: 64,
        },
        interleaved: true,
    },
    residual: Choice::Always(Residual::ParallelShared),
    qkv_bias: Choice::Always(false),
    output_bias: Choice::Always(false),
    tied_by_default: false,
    names: Names {
        prefix: "transformer.",
        embedding: "wte",
        blocks: "h",
        norms: ["ln_1", ""],
        qkv: Qkv::Split(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
        output: "attn.out_proj",
        feed_forward: FeedForward::Plain {
            up: "mlp.fc_in",
            down: "mlp.fc_out",
        },
        final_norm: "ln_f",
        head_bias: &["lm_head.bias"],
        ignored: &[".attn.bias", ".attn.masked_bias"],
        ..LLAMA_NAMES
    },
    ..GPT
};

const STABLE_LM: FamilySpec = FamilySpec {
    family: Family::StableLm,
    model_type: "stablelm",
    keys: &[("rms_norm_eps", "layer_norm_eps")],
    max_positions: 4096,
    kv_heads: Some(32),
    norm: NormKind::Layer,
    norm_eps: 1e-5,
    positions: PositionKind::Rotary {
        part: RotaryPart::Fraction {
            key: "partial_rotary_factor",
            default: 0.25,
        },
        interleaved: false,
    },
    residual: Choice::Key {
        name: "use_parallel_residual",
        default: false,
        on: Residual::ParallelShared,
        off: Residual::Sequential,
    },
    qkv_bias: Choice::flag("use_qkv_bias"),
    head_norms: Choice::flag("qk_layernorm"),
    names: Names {
        qk_norms: Some(QkNorms::ByHead([
            "self_attn.q_layernorm.norms",
            "self_attn.k_layernorm.norms",
        ])),
        ..LLAMA_NAMES
    },
    ..UNBIASED
};

const PHI3: FamilySpec = FamilySpec {
    family: Family::Phi3,
    model_type: "phi3",
    max_positions: 4096,
    norm_eps: 1e-5,
    positions: PositionKind::Rotary {
        part: RotaryPart::Fraction {
            key: "partial_rotary_factor",
            default: 1.0,
        },
        interleaved: false,
    },
    original_positions: Some(4096),
    windows: Windows::Always(None),
    names: Names {
        qkv: Qkv::Fused {
            name: "self_attn.qkv_proj",
            by_head: false,
        },
        feed_forward: FeedForward::FusedGated {
            gate_up: "mlp.gate_up_proj",
            down: "mlp.down_proj",
        },
        ..LLAMA_NAMES
    },
    ..UNBIASED
};

const MIXTRAL: FamilySpec = FamilySpec {
    family: Family::Mixtral,
    model_type: "mixtral",
    max_positions: 131_072,
    kv_heads: Some(8),
    norm_eps: 1e-5,
    theta: 1_000_000.0,
    windows: Windows::Always(None),
    experts: Some(ExpertSpec {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        parts: ["w1", "w3", "w2"],
        shared: None,
        count: "num_local_experts",
        active: 2,
        width: "intermediate_size",
        normalized: Choice::Always(true),
    }),
    ..UNBIASED
};

const QWEN_EXPERTS: ExpertSpec = ExpertSpec {
    router: "mlp.gate",
    experts: "mlp.experts",
    parts: ["gate_proj", "up_proj", "down_proj"],
    shared: None,
    count: "num_experts",
    active: 8,
    width: "moe_intermediate_size",
    normalized: Choice::flag("norm_topk_prob"),
};

const QWEN2_MOE: FamilySpec = FamilySpec {
    family: Family::Qwen2Moe,
    model_type: "qwen2_moe",
    kv_heads: Some(16),
    qkv_bias: Choice::flag_on("qkv_bias"),
    windows: Windows::Listed,
    experts: Some(ExpertSpec {
        shared: Some(["mlp.shared_expert", "mlp.shared_expert_gate"]),
        active: 4,
        ..QWEN_EXPERTS
    }),
    ..QWEN2
};

const QWEN3_MOE: FamilySpec = FamilySpec {
    family: Family::Qwen3Moe,
    model_type: "qwen3_moe",
    keys: &[("num_experts", "num_local_experts")],
    head_dim: None,
    kv_heads: Some(4),
    windows: Windows::AlwaysFlagged(Some(4096)),
    experts: Some(QWEN_EXPERTS),
    ..QWEN3
};

const GEMMA2_NAMES: Names = Names {
    norms: ["input_layernorm", "pre_feedforward_layernorm"],
    branch_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    ..LLAMA_NAMES
};

const GEMMA2: FamilySpec = FamilySpec {
    family: Family::Gemma2,
    model_type: "gemma2",
    keys: &[("hidden_act", "hidden_activation")],
    kv_heads: Some(4),
    query_scalar: Some(256.0),
    softcaps: [Some(50.0), Some(30.0)],
    windows: Windows::Every {
        key: "",
        default: 2,
    },
    names: GEMMA2_NAMES,
    ..GEMMA
};

const GEMMA3: FamilySpec = FamilySpec {
    family: Family::Gemma3,
    model_type: "gemma3_text",
    max_positions: 131_072,
    theta: 1_000_000.0,
    local_theta: Some(("rope_local_base_freq", 10_000.0)),
    softcaps: [None, None],
    windows: Windows::Every {
        key: "sliding_window_pattern",
        default: 6,
    },
    names: Names {
        qk_norms: Some(QkNorms::One(["self_attn.q_norm", "self_attn.k_norm"])),
        ..GEMMA2_NAMES
    },
    ..GEMMA2
};

/// What is not read of checkpoints that were trained on more than masked tokens.
const BERT_IGNORED: &[&str] = &[
    ".position_ids",
    "pooler.dense.weight",
    "pooler.dense.bias",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
    "cls.predictions.bias",
    "lm_head.bias",
];

const BERT: FamilySpec = FamilySpec {
    family: Family::Bert,
    model_type: "bert",
    kind: ModelKind::Encoder,
    padding: Some(0),
    keys: &[("rms_norm_eps", "layer_norm_eps")],
    max_positions: 512,
    inner_is_four_times: false,
    activation: "gelu",
    norm_eps: 1e-12,
    positions: PositionKind::Learned { offset: 0 },
    residual: Choice::Always(Residual::PostNorm),
    names: Names {
        prefix: "bert.",
        embedding: "embeddings.word_embeddings",
        positions: Some("embeddings.position_embeddings"),
        token_types: Some("embeddings.token_type_embeddings"),
        embedding_norm: Some("embeddings.LayerNorm"),
        blocks: "encoder.layer",
        norms: ["attention.output.LayerNorm", "output.LayerNorm"],
        qkv: Qkv::Split([
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
        ]),
        output: "attention.output.dense",
        feed_forward: FeedForward::Plain {
            up: "intermediate.dense",
            down: "output.dense",
        },
        head_transform: Some(HeadTransform {
            dense: "cls.predictions.transform.dense",
            norm: "cls.predictions.transform.LayerNorm",
            activation: None,
        }),
        head: "cls.predictions.decoder",
        head_bias: &["cls.predictions.decoder.bias", "cls.predictions.bias"],
        ignored: BERT_IGNORED,
        ..LLAMA_NAMES
    },
    ..GPT
};

const ROBERTA: FamilySpec = FamilySpec {
    family: Family::Roberta,
    model_type: "roberta",
    padding: Some(1),
    positions: PositionKind::LearnedBehindPadding,
    names: Names {
        prefix: "roberta.",
        head_transform: Some(HeadTransform {
            dense: "lm_head.dense",
            norm: "lm_head.layer_norm",
            activation: Some(Activation::Gelu),
        }),
        head: "lm_head.decoder",
        head_bias: &["lm_head.decoder.bias", "lm_head.bias"],
        ..BERT.names
    },
    ..BERT
};

const XLM_ROBERTA: FamilySpec = FamilySpec {
    family: Family::XlmRoberta,
    model_type: "xlm-roberta",
    ..ROBERTA
};

const T5_NAMES: Names = Names {
    prefix: "",
    embedding: "shared",
    blocks: "decoder.block",
    norms: ["layer.0.layer_norm", "layer.2.layer_norm"],
    qkv: Qkv::Split([
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
    ]),
    output: "layer.0.SelfAttention.o",
    relative_bias: Some("layer.0.SelfAttention.relative_attention_bias"),
    cross: Some(CrossAttention {
        norm: "layer.1.layer_norm",
        qkv: [
            "layer.1.EncDecAttention.q",
            "layer.1.EncDecAttention.k",
            "layer.1.EncDecAttention.v",
        ],
        output: "layer.1.EncDecAttention.o",
    }),
    feed_forward: FeedForward::GatedOrPlain {
        gated: ["layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_1"],
        plain: "layer.2.DenseReluDense.wi",
        down: "layer.2.DenseReluDense.wo",
    },
    final_norm: "decoder.final_layer_norm",
    ignored: &[
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        ".EncDecAttention.relative_attention_bias.weight",
    ],
    ..LLAMA_NAMES
};

const T5: FamilySpec = FamilySpec {
    family: Family::T5,
    model_type: "t5",
    kind: ModelKind::EncoderDecoder,
    padding: Some(0),
    keys: &[
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "num_layers"),
        ("num_attention_heads", "num_heads"),
        ("num_key_value_heads", ""),
        ("head_dim", "d_kv"),
        ("intermediate_size", "d_ff"),
        ("hidden_act", ""),
        // Relative positions have no longest sequence.
        ("max_position_embeddings", ""),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ],
    max_positions: 1 << 24,
    head_dim: Some(64),
    activation: "relu",
    positions: PositionKind::Relative,
    tied_by_default: true,
    tied_unless_stored: true,
    scaled_head: true,
    names: T5_NAMES,
    encoder_names: Some(Names {
        blocks: "encoder.block",
        norms: ["layer.0.layer_norm", "layer.1.layer_norm"],
        cross: None,
        feed_forward: FeedForward::GatedOrPlain {
            gated: ["layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"],
            plain: "layer.1.DenseReluDense.wi",
            down: "layer.1.DenseReluDense.wo",
        },
        final_norm: "encoder.final_layer_norm",
        ..T5_NAMES
    }),
    ..UNBIASED
};

const MT5: FamilySpec = FamilySpec {
    family: Family::Mt5,
    model_type: "mt5",
    activation: "gated-gelu",
    scaled_head: false,
    ..T5
};

/// All of them.
pub(super) const FAMILIES: &[&FamilySpec] = &[
    &LLAMA,
    &MISTRAL,
    &QWEN2,
    &QWEN3,
    &GEMMA,
    &GEMMA2,
    &GEMMA3,
    &GPT_NEOX,
    &OPT,
    &BLOOM,
    &GPT2,
    &GPT_J,
    &STABLE_LM,
    &PHI3,
    &MIXTRAL,
    &QWEN2_MOE,
    &QWEN3_MOE,
    &BERT,
    &ROBERTA,
    &XLM_ROBERTA,
    &T5,
    &MT5,
];

impl Family {
    /// The family's table.
    pub(super) fn spec(self) -> &'static FamilySpec {
        FAMILIES
            .iter()
            .find(|spec| spec.family == self)
            .unwrap_or(&&LLAMA)
    }

    /// `model_type` of `config.json`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        self.spec().model_type
    }

    /// What its models read and predict.
    #[must_use]
    pub fn kind(self) -> ModelKind {
        self.spec().kind
    }

    /// All `model_type`s that are taken.
    pub fn model_types() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|spec| spec.model_type)
    }
}
