//! A model without its weights: what `config.json` alone tells of its tensors and layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::Value;

use super::TransformerConfig;
use super::weights::{Weights, expert_of, linear_specs};
use crate::checkpoint::parse_dtype;
use crate::{Error, Result, TensorInfo, TensorSource};

/// A linear layer of a model, as its configuration calls for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutlinedLayer {
    /// The name in the checkpoint, without `.weight`.
    pub name: String,
    /// The block, counted from 0 (those of an encoder in front of a decoder included).
    pub block: usize,
    /// Output features.
    pub rows: usize,
    /// Input features, rows and columns of the Hessian.
    pub cols: usize,
    /// Which of the block's inputs it reads; layers of a block with the same number share a Hessian.
    pub input: usize,
    /// The expert that it is a layer of, where that sees the tokens routed to it alone.
    pub expert: Option<usize>,
    /// Bytes of its weight in the type that `config.json` names.
    pub bytes: u64,
}

/// A model as `config.json` calls for it: names, shapes and type of all tensors, and no values.
///
/// It is a [`TensorSource`] whose tensors cannot be read, so that whatever looks at names and shapes alone, as
/// [`TransformerAdapter::new`](super::TransformerAdapter::new) and a plan over it do, works without weights.
///
/// ```
/// use sparsegpt_models::TensorSource;
/// use sparsegpt_models::decoder::Outline;
///
/// let config = serde_json::json!({
///     "model_type": "llama", "dtype": "bfloat16", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
/// });
/// let outline = Outline::new(&config)?;
/// let layers = outline.layers();
/// assert_eq!(layers.len(), 2 * 7);
/// assert_eq!(layers[1].name, "model.layers.0.self_attn.k_proj");
/// assert_eq!((layers[1].rows, layers[1].cols, layers[1].bytes), (32, 64, 32 * 64 * 2));
/// // Query, key and value read the same.
/// assert_eq!(layers[0].input, layers[1].input);
/// assert!(outline.info("lm_head.weight").is_some());
/// # Ok::<(), sparsegpt_models::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Outline {
    weights: Weights,
    dtype: Dtype,
    tensors: BTreeMap<String, Vec<usize>>,
}

impl Outline {
    /// The model of a `config.json`. Weights have the type that `dtype` (`torch_dtype` before transformers 5) names,
    /// f32 where it names none.
    ///
    /// # Errors
    /// As [`TransformerConfig::from_json`], and for a type that is none of f32, f16 and bf16.
    pub fn new(config: &Value) -> Result<Self> {
        let dtype = ["dtype", "torch_dtype"]
            .into_iter()
            .find_map(|key| Some((key, config.get(key).filter(|value| !value.is_null())?)));
        let dtype = match dtype {
            None => Dtype::F32,
            Some((key, value)) => value
                .as_str()
                .and_then(|name| parse_dtype(name).ok())
                .ok_or_else(|| {
                    Error::config(
                        key,
                        format!("expected float32, float16 or bfloat16, found {value}"),
                    )
                })?,
        };
        let weights = Weights::without_tensors(TransformerConfig::from_json(config)?);
        let mut tensors = BTreeMap::new();
        weights.each(&mut |name, shape| {
            tensors.insert(name, shape.to_vec());
            Ok(())
        })?;
        Ok(Self {
            weights,
            dtype,
            tensors,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.weights.config
    }

    /// The linear layers of all blocks, in the order in which a run goes through them.
    #[must_use]
    pub fn layers(&self) -> Vec<OutlinedLayer> {
        let config = self.config();
        let of_block = |block| {
            let specs = linear_specs(config, block);
            specs.into_iter().map(move |spec| OutlinedLayer {
                name: self.weights.block_name(block, &spec.part),
                block,
                rows: spec.rows,
                cols: spec.cols,
                input: spec.input,
                expert: expert_of(spec.input),
                bytes: (spec.rows * spec.cols * self.dtype.bitsize() / 8) as u64,
            })
        };
        (0..config.blocks).flat_map(of_block).collect()
    }
}

impl TensorSource for Outline {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(TensorInfo {
            dtype: self.dtype,
            shape: self.tensors.get(name)?.clone(),
        })
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        Err(unread(name))
    }
}

/// What reading a tensor of an outline gives.
pub(crate) fn unread(name: &str) -> Error {
    Error::tensor(
        name,
        "cannot be read: there is a config.json and no weights; put the checkpoint's weight files beside it",
    )
}

/// A source without tensors: names are then those that checkpoints are written with today.
#[derive(Debug)]
struct NoTensors;

impl TensorSource for NoTensors {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn info(&self, _name: &str) -> Option<TensorInfo> {
        None
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        Err(unread(name))
    }
}

/// See [`Weights::without_tensors`].
pub(super) fn no_tensors() -> Arc<dyn TensorSource> {
    Arc::new(NoTensors)
}
