//! One decoder block.

use candle_core::Tensor;
use faer::Accum;
use ndarray::{Array2, Array3, ArrayView2, Axis, concatenate};
use sparsegpt::{Batch, Tap};

use super::attention::Causal;
use super::config::{Activation, LlamaConfig};
use super::elementwise::{gate, rms_norm, rotate};
use super::product::products;
use super::rope::RotaryTables;
use super::scratch::{Scrap, Scratch};
use super::tensors::{tensor, with_rows};
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

    /// Adds the bias to each row.
    fn add_bias(&self, sum: &mut Array2<f32>) -> Result<()> {
        if let Some(bias) = &self.bias {
            with_rows(bias, |bias| {
                *sum += &bias;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Adds what the layer makes of `x` (tokens x cols) to `sum` (tokens x rows).
    fn add_output(&self, sum: &mut Array2<f32>, x: &Array2<f32>) -> Result<()> {
        self.add_bias(sum)?;
        products(x.view(), vec![(sum, Accum::Add, &self.weight)])
    }
}

/// What some layers make of the same input (tokens x cols): tokens x rows each.
fn outputs<'s, const N: usize>(
    scratch: &'s Scratch,
    x: &Array2<f32>,
    linears: [&Linear; N],
) -> Result<[Scrap<'s>; N]> {
    let mut outputs = std::array::from_fn(|_| scratch.matrix(0, 0));
    let mut pairs = Vec::with_capacity(N);
    for (output, linear) in outputs.iter_mut().zip(linears) {
        *output = scratch.matrix(x.nrows(), linear.weight.dims2()?.0);
        let mut accum = Accum::Replace;
        if linear.bias.is_some() {
            output.fill(0.0);
            linear.add_bias(output)?;
            accum = Accum::Add;
        }
        pairs.push((&mut **output, accum, &linear.weight));
    }
    products(x.view(), pairs)?;
    Ok(outputs)
}

/// Keys and values of the tokens seen so far, each batch x tokens x kv_heads·head_dim.
pub(super) type BlockCache = Option<[Array3<f32>; 2]>;

/// Where a forward pass stands in its sequences.
#[derive(Debug)]
pub(super) struct Position<'a> {
    /// Tokens in the cache.
    pub(super) past: usize,
    /// The angles of the new tokens.
    pub(super) rotary: &'a RotaryTables,
    /// Memory for the pass.
    pub(super) scratch: &'a Scratch,
}

/// One decoder block, weights in f32.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// In the order of [`linear_specs`].
    pub(super) linears: Vec<Linear>,
    norms: [Tensor; 2],
    window: Option<usize>,
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
        let (mut sum, inner) = self.up_to_last(hidden, position, cache, tap)?;
        let [.., down] = self.linears();
        down.add_output(&mut sum, &inner)?;
        tensor(sum, hidden.dims3()?)
    }

    /// The inputs of the linear layers alone: [`forward`](Self::forward) without the last product.
    pub(super) fn observe(
        &self,
        hidden: &Tensor,
        position: &Position<'_>,
        tap: &mut dyn Tap,
    ) -> Result<()> {
        self.up_to_last(hidden, position, None, tap).map(|_| ())
    }

    /// q, k, v, o, gate, up, down.
    fn linears(&self) -> [&Linear; 7] {
        std::array::from_fn(|index| &self.linears[index])
    }

    /// The residual stream before the last layer's output is added to it, and that layer's input.
    fn up_to_last<'s>(
        &self,
        hidden: &Tensor,
        position: &Position<'s>,
        cache: Option<&mut BlockCache>,
        tap: &mut dyn Tap,
    ) -> Result<(Array2<f32>, Scrap<'s>)> {
        let batch = hidden.dims3()?.0;
        let scratch = position.scratch;
        let mut sum = with_rows(hidden, |hidden| Ok(hidden.to_owned()))?;
        let [q, k, v, o, gate_layer, up, _] = self.linears();

        let x = normalized(scratch, &sum, &self.norms[0], self.eps)?;
        observe(tap, ATTENTION_INPUT, batch, &x);
        let [mut queries, mut keys, new_values] = outputs(scratch, &x, [q, k, v])?;
        rotate(&mut queries, self.head_dim, position.rotary);
        rotate(&mut keys, self.head_dim, position.rotary);
        let causal = Causal {
            past: position.past,
            window: self.window,
            head_dim: self.head_dim,
        };
        let mut mixed = scratch.matrix(queries.nrows(), queries.ncols());
        match cache {
            None => causal.attend(batch, &queries, keys.view(), new_values.view(), &mut mixed),
            Some(cache) => {
                let [keys, values] = extend(cache, batch, [&keys, &new_values])?;
                causal.attend(batch, &queries, flat(keys)?, flat(values)?, &mut mixed);
            }
        }
        observe(tap, ATTENTION_OUTPUT, batch, &mixed);
        o.add_output(&mut sum, &mixed)?;

        let x = normalized(scratch, &sum, &self.norms[1], self.eps)?;
        observe(tap, MLP_INPUT, batch, &x);
        let [mut inner, up] = outputs(scratch, &x, [gate_layer, up])?;
        gate(self.activation, &mut inner, &up);
        observe(tap, MLP_OUTPUT, batch, &inner);
        Ok((sum, inner))
    }

    /// Puts another weight in place of a linear layer's.
    pub(super) fn replace(&mut self, layer: usize, weight: Tensor) {
        self.linears[layer].weight = weight;
    }
}

/// RMS normalization of each token.
pub(super) fn normalized<'s>(
    scratch: &'s Scratch,
    x: &Array2<f32>,
    weight: &Tensor,
    eps: f32,
) -> Result<Scrap<'s>> {
    let mut normalized = scratch.matrix(x.nrows(), x.ncols());
    with_rows(weight, |weight| {
        rms_norm(
            x,
            weight.as_slice().unwrap_or_default(),
            eps,
            &mut normalized,
        );
        Ok(())
    })?;
    Ok(normalized)
}

/// Hands the activations (tokens x features) of some sequences to a tap without copying them.
fn observe(tap: &mut dyn Tap, input: usize, sequences: usize, x: &Array2<f32>) {
    if tap.wants(input) {
        tap.observe(input, Batch::new(x.view()).sequences(sequences as u64));
    }
}

/// Puts new keys and values (batch·time x width) behind those of the tokens before.
fn extend<'c>(
    cache: &'c mut BlockCache,
    batch: usize,
    new: [&Array2<f32>; 2],
) -> Result<&'c [Array3<f32>; 2]> {
    let mut past = cache.take().map(|pair| pair.map(Some)).unwrap_or_default();
    let mut extended = std::array::from_fn(|_| Array3::zeros((0, 0, 0)));
    for ((extended, new), past) in extended.iter_mut().zip(new).zip(&mut past) {
        let shape = (batch, new.nrows() / batch, new.ncols());
        let new = new.view().into_shape_with_order(shape).map_err(unshaped)?;
        *extended = match past.take() {
            Some(past) => concatenate(Axis(1), &[past.view(), new]).map_err(unshaped)?,
            None => new.to_owned(),
        };
    }
    Ok(cache.insert(extended))
}

/// The tokens of all sequences after each other.
fn flat(cached: &Array3<f32>) -> Result<ArrayView2<'_, f32>> {
    let (batch, tokens, width) = cached.dim();
    let flat = cached.view().into_shape_with_order((batch * tokens, width));
    flat.map_err(unshaped)
}

fn unshaped(error: ndarray::ShapeError) -> Error {
    Error::tensor("(keys and values)", error.to_string())
}
