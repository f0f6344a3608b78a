//! One decoder block.

use candle_core::Tensor;
use candle_nn::ops::rms_norm;
use candle_nn::rotary_emb::rope;
use ndarray::ArrayView2;
use sparsegpt::{Batch, Tap};

use super::attention::Causal;
use super::config::{Activation, LlamaConfig};
use super::product;
use super::weights::{
    ATTENTION_INPUT, ATTENTION_OUTPUT, LinearSpec, MLP_INPUT, MLP_OUTPUT, NORMS, block_name,
    linear_specs, read,
};
use crate::{Error, Result, TensorSource};

/// A linear layer: weight rows x cols, and a bias where the model has one.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn load(source: &dyn TensorSource, name: &str, spec: &LinearSpec) -> Result<Self> {
        let weight = read(source, &format!("{name}.weight"), &[spec.rows, spec.cols])?;
        let bias = spec
            .bias
            .then(|| read(source, &format!("{name}.bias"), &[spec.rows]))
            .transpose()?;
        Ok(Self { weight, bias })
    }

    /// `x` is tokens x cols, the result tokens x rows.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = product::times_transposed(x, &self.weight)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// Keys and values of the tokens seen so far, each batch x kv_heads x tokens x head_dim.
pub(super) type BlockCache = Option<(Tensor, Tensor)>;

/// Where a forward pass stands in its sequences.
#[derive(Debug)]
pub(super) struct Position<'a> {
    /// Tokens in the cache.
    pub(super) past: usize,
    /// Cosines and sines of the new tokens.
    pub(super) rotary: &'a (Tensor, Tensor),
}

/// One decoder block, weights in f32.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// In the order of [`linear_specs`].
    pub(super) linears: Vec<Linear>,
    norms: [Tensor; 2],
    window: Option<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f32,
    activation: Activation,
}

impl Block {
    pub(super) fn load(
        config: &LlamaConfig,
        source: &dyn TensorSource,
        block: usize,
    ) -> Result<Self> {
        let norm = |part: &str| {
            read(
                source,
                &block_name(block, &format!("{part}.weight")),
                &[config.hidden_size],
            )
        };
        Ok(Self {
            linears: linear_specs(config)
                .iter()
                .map(|spec| Linear::load(source, &block_name(block, spec.part), spec))
                .collect::<Result<_>>()?,
            norms: [norm(NORMS[0])?, norm(NORMS[1])?],
            window: config.sliding_windows[block],
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            eps: config.rms_norm_eps as f32,
            activation: config.activation,
        })
    }

    /// `hidden` is batch x time x width. The inputs of the linear layers go to `tap`.
    pub(super) fn forward(
        &self,
        hidden: &Tensor,
        position: &Position<'_>,
        cache: Option<&mut BlockCache>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let (batch, time, width) = hidden.dims3()?;
        let flat = hidden.reshape((batch * time, width))?;
        let [q, k, v, o, gate, up, down] = self.linears.as_slice() else {
            return Err(Error::tensor("(block)", "expected 7 linear layers"));
        };

        let x = rms_norm(&flat, &self.norms[0], self.eps)?;
        observe(tap, ATTENTION_INPUT, &x)?;
        let split = |y: Tensor, heads: usize| -> Result<Tensor> {
            Ok(y.reshape((batch, time, heads, self.head_dim))?
                .transpose(1, 2)?
                .contiguous()?)
        };
        let (cos, sin) = position.rotary;
        let queries = rope(&split(q.forward(&x)?, self.heads)?, cos, sin)?;
        let mut keys = rope(&split(k.forward(&x)?, self.kv_heads)?, cos, sin)?;
        let mut values = split(v.forward(&x)?, self.kv_heads)?;
        if let Some(cache) = cache {
            if let Some((past_keys, past_values)) = cache.take() {
                keys = Tensor::cat(&[&past_keys, &keys], 2)?;
                values = Tensor::cat(&[&past_values, &values], 2)?;
            }
            *cache = Some((keys.clone(), values.clone()));
        }
        let mixed = Causal {
            past: position.past,
            window: self.window,
        }
        .attend(&queries, &keys, &values)?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((batch * time, self.heads * self.head_dim))?;
        observe(tap, ATTENTION_OUTPUT, &mixed)?;
        let flat = (flat + o.forward(&mixed)?)?;

        let x = rms_norm(&flat, &self.norms[1], self.eps)?;
        observe(tap, MLP_INPUT, &x)?;
        let gate = gate.forward(&x)?;
        let gate = match self.activation {
            Activation::Silu => gate.silu()?,
            Activation::Gelu => gate.gelu_erf()?,
            Activation::GeluTanh => gate.gelu()?,
        };
        let inner = (gate * up.forward(&x)?)?;
        observe(tap, MLP_OUTPUT, &inner)?;
        Ok((flat + down.forward(&inner)?)?.reshape((batch, time, width))?)
    }

    /// Puts another weight in place of a linear layer's.
    pub(super) fn replace(&mut self, layer: usize, weight: Tensor) {
        self.linears[layer].weight = weight;
    }
}

/// Hands activations (tokens x features) to a tap without copying them.
fn observe(tap: &mut dyn Tap, input: usize, x: &Tensor) -> Result<()> {
    if !tap.wants(input) {
        return Ok(());
    }
    let (tokens, features) = x.dims2()?;
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let view = ArrayView2::from_shape((tokens, features), product::values(&storage, layout)?)
        .map_err(|error| Error::tensor("(activations)", error.to_string()))?;
    tap.observe(input, Batch::new(view));
    Ok(())
}
