//! `config.json` of the supported families, in both dialects.

use serde_json::{Map, Value};

use super::rope::{RopeScaling, RotaryConfig};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Largest width, vocabulary or position count taken from a file: beyond it a config is nonsense.
const MAX_DIMENSION: u64 = 1 << 24;
/// Most blocks taken from a file.
const MAX_BLOCKS: u64 = 1 << 14;

/// Model families that share the LLaMA decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// LLaMA 1 to 3 and models in its layout (SmolLM).
    Llama,
    /// Mistral: sliding window.
    Mistral,
    /// Qwen2: biases on query, key and value.
    Qwen2,
}

/// The gate's activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), exact.
    Gelu,
    /// x·Φ(x), by tanh.
    GeluTanh,
}

/// What the decoder needs to know, from `config.json`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// The family.
    pub family: Family,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub blocks: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_positions: usize,
    /// ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rotary: RotaryConfig,
    /// Keys a query sees, itself included, per block; `None` sees all before it.
    pub sliding_windows: Vec<Option<usize>>,
    /// Biases on query, key and value.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// The gate's activation.
    pub activation: Activation,
}

impl LlamaConfig {
    /// The configuration of a checkpoint.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), with the file's path.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::from_json(checkpoint.config())
            .map_err(|error| error.of_config(checkpoint.config_file()))
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
        let keys = Keys { object };
        let family = match keys.text("model_type")? {
            Some("llama") => Family::Llama,
            Some("mistral") => Family::Mistral,
            Some("qwen2") => Family::Qwen2,
            Some(other) => {
                return Err(Error::config(
                    "model_type",
                    format!("{other:?} is not supported; llama, mistral and qwen2 are"),
                ));
            }
            None => {
                return Err(Error::config(
                    "model_type",
                    "missing; expected llama, mistral or qwen2",
                ));
            }
        };
        if keys.present("quantization_config") {
            return Err(Error::config(
                "quantization_config",
                "the checkpoint is quantized already; start from the float checkpoint",
            ));
        }
        let hidden_size = keys.required("hidden_size")?;
        let heads = keys.required("num_attention_heads")?;
        let blocks = keys
            .in_range("num_hidden_layers", MAX_BLOCKS)?
            .ok_or_else(|| missing("num_hidden_layers"))?;
        // transformers' defaults of each family where the key is absent.
        let kv_heads = keys.count("num_key_value_heads")?.unwrap_or(match family {
            Family::Llama => heads,
            Family::Mistral => 8,
            Family::Qwen2 => 32,
        });
        if heads % kv_heads != 0 {
            return Err(Error::config(
                "num_key_value_heads",
                format!("{kv_heads} does not divide num_attention_heads = {heads}"),
            ));
        }
        let head_dim = match keys.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(Error::config(
                    "hidden_size",
                    format!(
                        "{hidden_size} is not a multiple of num_attention_heads = {heads}, and there is no head_dim"
                    ),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(Error::config(
                "head_dim",
                format!("{head_dim} is odd; rotary embedding needs pairs"),
            ));
        }
        let max_positions = keys
            .count("max_position_embeddings")?
            .unwrap_or(match family {
                Family::Llama => 2048,
                Family::Mistral => 131_072,
                Family::Qwen2 => 32_768,
            });
        let activation = match keys.text("hidden_act")?.unwrap_or("silu") {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            other => {
                return Err(Error::config(
                    "hidden_act",
                    format!("{other:?} is not supported; silu, gelu and gelu_pytorch_tanh are"),
                ));
            }
        };
        if keys
            .number("partial_rotary_factor")?
            .is_some_and(|factor| factor != 1.0)
        {
            return Err(Error::config(
                "partial_rotary_factor",
                "only 1 is supported for this family",
            ));
        }
        let attention_bias = keys.flag("attention_bias")?.unwrap_or(false);
        for key in ["attention_bias", "mlp_bias"] {
            if family != Family::Llama && keys.flag(key)? == Some(true) {
                return Err(Error::config(
                    key,
                    "true is known for model_type llama only",
                ));
            }
        }
        let rms_norm_eps = keys.number("rms_norm_eps")?.unwrap_or(1e-6);
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(Error::config(
                "rms_norm_eps",
                format!("expected a small positive number, found {rms_norm_eps}"),
            ));
        }
        Ok(Self {
            family,
            hidden_size,
            intermediate_size: keys.required("intermediate_size")?,
            blocks,
            heads,
            kv_heads,
            head_dim,
            vocab_size: keys.required("vocab_size")?,
            max_positions,
            rms_norm_eps,
            rotary: keys.rotary()?,
            sliding_windows: keys.sliding_windows(family, blocks)?,
            qkv_bias: family == Family::Qwen2 || (family == Family::Llama && attention_bias),
            output_bias: family == Family::Llama && attention_bias,
            mlp_bias: family == Family::Llama && keys.flag("mlp_bias")?.unwrap_or(false),
            tied: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            activation,
        })
    }
}

fn missing(key: &str) -> Error {
    Error::config(key, "missing")
}

/// Typed access to the keys; `null` counts as absent.
struct Keys<'a> {
    object: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
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
                key,
                format!("expected an integer from 1 to {limit}, found {value}"),
            )),
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.in_range(key, MAX_DIMENSION)
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| missing(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(Error::config(
                key,
                format!("expected a number, found {value}"),
            )),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| Error::config(key, format!("expected true or false, found {value}")))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| Error::config(key, format!("expected text, found {value}")))
    }

    /// `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before it.
    fn rotary(&self) -> Result<RotaryConfig> {
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
            return RotaryConfig::new(
                self.number("rope_theta")?.unwrap_or(10_000.0),
                RopeScaling::None,
            );
        };
        let object = scaling
            .as_object()
            .ok_or_else(|| Error::config(key, format!("expected an object, found {scaling}")))?;
        let inner = Keys { object };
        let theta = match inner.number("rope_theta")? {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(10_000.0),
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
        if inner
            .number("partial_rotary_factor")?
            .is_some_and(|factor| factor != 1.0)
        {
            return Err(Error::config(
                format!("{key}.partial_rotary_factor"),
                "only 1 is supported for this family",
            ));
        }
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: required("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_positions: required("original_max_position_embeddings")?,
            },
            other => {
                return Err(Error::config(
                    format!("{key}.rope_type"),
                    format!("{other:?} is not supported; default, linear and llama3 are"),
                ));
            }
        };
        RotaryConfig::new(theta, scaling)
    }

    /// As transformers decides: Mistral everywhere, Qwen2 where `layer_types` says so, or from
    /// `max_window_layers` on if `use_sliding_window`; LLaMA nowhere.
    fn sliding_windows(&self, family: Family, blocks: usize) -> Result<Vec<Option<usize>>> {
        let window = match (family, self.object.contains_key("sliding_window")) {
            (Family::Llama, _) => None,
            (_, true) => self.count("sliding_window")?,
            (_, false) => Some(4096),
        };
        if family != Family::Qwen2 {
            return Ok(vec![window; blocks]);
        }
        let sliding = self.flag("use_sliding_window")?.unwrap_or(false);
        let window = window.filter(|_| sliding);
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
            LlamaConfig::from_json(&old).unwrap(),
            LlamaConfig::from_json(&new).unwrap()
        );
    }

    #[test]
    fn windows_follow_the_family() {
        let windows = |changes| {
            LlamaConfig::from_json(&with(changes))
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
                json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
                "rope_type",
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
            let error = LlamaConfig::from_json(&with(changes.clone()))
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{changes}: {error}");
        }
    }
}
