//! A config.json from GGUF metadata.

use std::f64::consts::PI;

use serde_json::{Value, json};

use super::metadata::Metadata;
use crate::{Error, Result};

/// An architecture that can be read.
#[derive(Debug)]
pub(super) struct Architecture {
    pub(super) gguf_name: &'static str,
    model_type: &'static str,
    class: &'static str,
    /// Whether llama.cpp's converter reorders the rows of q and k so that the two halves of each
    /// rotary pair become neighbours.
    pub(super) interleaved_rotary: bool,
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        gguf_name: "llama",
        model_type: "llama",
        class: "LlamaForCausalLM",
        interleaved_rotary: true,
    },
    Architecture {
        gguf_name: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        interleaved_rotary: false,
    },
];

/// Models with a sliding window and the layout of LLaMA.
const MISTRAL: (&str, &str) = ("mistral", "MistralForCausalLM");

/// The architecture under which GGUF has a model of this `model_type`.
pub(super) fn architecture_of(model_type: &str) -> Option<&'static Architecture> {
    let known = match model_type == MISTRAL.0 {
        true => "llama",
        false => model_type,
    };
    ARCHITECTURES.iter().find(|a| a.model_type == known)
}

/// Every `model_type` that there is one for.
pub(super) fn model_types() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES
        .iter()
        .map(|a| a.model_type)
        .chain([MISTRAL.0])
}

/// The sizes that the tensors are checked against.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) architecture: &'static Architecture,
    pub(super) blocks: usize,
    pub(super) heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) head_dim: usize,
}

impl Sizes {
    pub(super) fn read(metadata: &Metadata) -> Result<Self> {
        let name = metadata.architecture();
        let architecture = ARCHITECTURES
            .iter()
            .find(|known| known.gguf_name == name)
            .ok_or_else(|| {
                let known: Vec<_> = ARCHITECTURES.iter().map(|known| known.gguf_name).collect();
                let reason = format!("expected one of {known:?}, found {name:?}");
                metadata.refuse("general.architecture", &reason)
            })?;
        let positive = |suffix: &str| {
            let key = metadata.model_key(suffix);
            match metadata.required_integer(&key)? {
                0 => Err(metadata.refuse(&key, "expected at least 1")),
                value => Ok(value),
            }
        };
        let experts = metadata.model_key("expert_count");
        if metadata.integer(&experts)?.unwrap_or(0) > 0 {
            return Err(metadata.refuse(&experts, "mixtures of experts are not supported"));
        }
        let heads = positive("attention.head_count")?;
        let key_value_heads = metadata
            .integer(&metadata.model_key("attention.head_count_kv"))?
            .unwrap_or(heads);
        if key_value_heads == 0 || !heads.is_multiple_of(key_value_heads) {
            let reason =
                format!("expected a divisor of the {heads} heads, found {key_value_heads}");
            return Err(metadata.refuse(&metadata.model_key("attention.head_count_kv"), &reason));
        }
        let hidden = positive("embedding_length")?;
        let head_dim = metadata
            .integer(&metadata.model_key("attention.key_length"))?
            .unwrap_or(hidden / heads);
        let rotary = metadata.model_key("rope.dimension_count");
        let rotary_dim = metadata.integer(&rotary)?.unwrap_or(head_dim);
        if rotary_dim != head_dim || !head_dim.is_multiple_of(2) || head_dim == 0 {
            let reason = format!(
                "expected an even number equal to the head size {head_dim}, found {rotary_dim}"
            );
            return Err(metadata.refuse(&rotary, &reason));
        }
        Ok(Self {
            architecture,
            blocks: positive("block_count")?,
            heads,
            key_value_heads,
            head_dim,
        })
    }
}

/// What only the tensors tell.
#[derive(Debug)]
pub(super) struct TensorFacts {
    pub(super) vocab_size: usize,
    pub(super) tied: bool,
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
    /// The tensor `rope_freqs.weight`: by what each frequency is divided.
    pub(super) rope_factors: Option<Vec<f32>>,
}

/// config.json in the keys that transformers 4 and 5 both read.
pub(super) fn config(metadata: &Metadata, sizes: &Sizes, facts: &TensorFacts) -> Result<Value> {
    let key = |suffix: &str| metadata.model_key(suffix);
    let rope_theta = metadata.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let window = metadata
        .integer(&key("attention.sliding_window"))?
        .filter(|&window| window > 0);
    let architecture = sizes.architecture;
    let is_mistral = window.is_some() && architecture.model_type == "llama";
    let (model_type, class) = if is_mistral {
        MISTRAL
    } else {
        (architecture.model_type, architecture.class)
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": facts.vocab_size,
        "hidden_size": metadata.required_integer(&key("embedding_length"))?,
        "intermediate_size": metadata.required_integer(&key("feed_forward_length"))?,
        "num_hidden_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.required_integer(&key("context_length"))?,
        "rms_norm_eps": metadata.required_float(&key("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling(metadata, facts, sizes.head_dim, rope_theta)?,
        "tie_word_embeddings": facts.tied,
        "attention_bias": facts.attention_bias,
        "mlp_bias": facts.mlp_bias,
        "torch_dtype": "float32",
        "use_cache": true,
    });
    if let Some(window) = window {
        config["sliding_window"] = window.into();
    }
    if model_type == "qwen2" {
        config["use_sliding_window"] = window.is_some().into();
    }
    for (name, token) in TokenNumbers::read(metadata)?.entries() {
        config[name] = token.into();
    }
    Ok(config)
}

/// Special tokens by number.
pub(super) struct TokenNumbers {
    pub(super) bos: Option<usize>,
    pub(super) eos: Option<usize>,
    pub(super) padding: Option<usize>,
    /// The end of a turn of conversation, where it is another token than `eos`.
    end_of_turn: Option<usize>,
}

impl TokenNumbers {
    pub(super) fn read(metadata: &Metadata) -> Result<Self> {
        let number = |name: &str| metadata.integer(&format!("tokenizer.ggml.{name}_token_id"));
        Ok(Self {
            bos: number("bos")?,
            eos: number("eos")?,
            padding: number("padding")?,
            end_of_turn: number("eot")?,
        })
    }

    /// Keys and values for config.json.
    fn entries(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let pairs = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("pad_token_id", self.padding),
        ];
        pairs
            .into_iter()
            .filter_map(|(name, token)| Some((name, token?)))
    }

    /// generation_config.json: generation ends at an end of turn, too.
    pub(super) fn generation_config(&self) -> Value {
        let mut config: serde_json::Map<_, _> = self
            .entries()
            .map(|(name, token)| (name.to_owned(), token.into()))
            .collect();
        if let (Some(eos), Some(turn)) = (self.eos, self.end_of_turn)
            && eos != turn
        {
            config.insert("eos_token_id".to_owned(), json!([eos, turn]));
        }
        config.into()
    }
}

/// `rope_scaling` of config.json.
fn rope_scaling(
    metadata: &Metadata,
    facts: &TensorFacts,
    head_dim: usize,
    rope_theta: f64,
) -> Result<Value> {
    if let Some(factors) = &facts.rope_factors {
        return llama3_scaling(factors, head_dim, rope_theta);
    }
    let type_key = metadata.model_key("rope.scaling.type");
    let factor_key = metadata.model_key("rope.scaling.factor");
    // Written by old converters, and meaning linear scaling.
    let old_factor = metadata.float(&metadata.model_key("rope.scale_linear"))?;
    match (metadata.text(&type_key)?, old_factor) {
        (None | Some("none"), None) => Ok(Value::Null),
        (None | Some("none"), Some(1.0)) => Ok(Value::Null),
        (Some("linear"), _) => {
            let factor = metadata.required_float(&factor_key)?;
            Ok(json!({ "rope_type": "linear", "type": "linear", "factor": factor }))
        }
        (None | Some("none"), Some(factor)) => {
            Ok(json!({ "rope_type": "linear", "type": "linear", "factor": factor }))
        }
        (Some(other), _) => {
            let reason = format!("expected none or linear, found {other:?}");
            Err(metadata.refuse(&type_key, &reason))
        }
    }
}

/// Settings of the llama3 scaling that all its models share; GGUF stores only their outcome.
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_CONTEXT: f64 = 8192.0;

/// Recovers the llama3 scaling from its factors: the largest is the factor itself, and with it all
/// others must come out.
fn llama3_scaling(factors: &[f32], head_dim: usize, rope_theta: f64) -> Result<Value> {
    let refuse = |reason: &str| Err(Error::tensor("rope_freqs.weight", reason));
    if factors.len() != head_dim / 2 {
        return refuse(&format!(
            "expected {} values, found {}",
            head_dim / 2,
            factors.len()
        ));
    }
    let factor = factors
        .iter()
        .fold(1.0_f32, |largest, &value| largest.max(value));
    if factors.iter().all(|&value| value == 1.0) {
        return Ok(Value::Null);
    }
    let expected = llama3_factors(f64::from(factor), head_dim, rope_theta);
    let agrees = factors
        .iter()
        .zip(&expected)
        .all(|(&found, expected)| (f64::from(found) - expected).abs() <= 1e-4 * expected);
    if !agrees {
        return refuse(
            "the factors are not those of the llama3 scaling with low 1, high 4 and original \
             context 8192, the only one that is supported",
        );
    }
    Ok(json!({
        "rope_type": "llama3",
        "factor": f64::from(factor),
        "low_freq_factor": LLAMA3_LOW,
        "high_freq_factor": LLAMA3_HIGH,
        "original_max_position_embeddings": LLAMA3_CONTEXT as u64,
    }))
}

/// By what the llama3 scaling divides each frequency: short wavelengths stay, long ones are
/// stretched by `factor`, between them it is blended.
fn llama3_factors(factor: f64, head_dim: usize, rope_theta: f64) -> Vec<f64> {
    (0..head_dim / 2)
        .map(|pair| {
            let frequency = rope_theta.powf(-2.0 * pair as f64 / head_dim as f64);
            let wavelength = 2.0 * PI / frequency;
            if wavelength < LLAMA3_CONTEXT / LLAMA3_HIGH {
                1.0
            } else if wavelength > LLAMA3_CONTEXT / LLAMA3_LOW {
                factor
            } else {
                let blend = (LLAMA3_CONTEXT / wavelength - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW);
                1.0 / ((1.0 - blend) / factor + blend)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn llama3_scaling_is_recovered_from_its_factors() {
        let stored: Vec<f32> = llama3_factors(32.0, 64, 500_000.0)
            .into_iter()
            .map(|f| f as f32)
            .collect();
        let scaling = llama3_scaling(&stored, 64, 500_000.0).unwrap();
        assert_eq!(scaling["rope_type"], "llama3");
        assert_eq!(scaling["factor"], 32.0);
        let mut other = stored;
        other[20] *= 1.5;
        assert!(llama3_scaling(&other, 64, 500_000.0).is_err());
        assert!(llama3_scaling(&other[1..], 64, 500_000.0).is_err());
        assert_eq!(
            llama3_scaling(&[1.0; 32], 64, 500_000.0).unwrap(),
            Value::Null
        );
    }
}
