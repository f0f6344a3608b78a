//! One block.

use candle_core::Tensor;
use ndarray::Array2;
use sparsegpt::{Batch, Tap};

use super::config::{Activation, Residual};
use super::cross_attention::{self, CrossAttention};
use super::experts::Router;
use super::feed_forward::inner;
use super::hidden::Side;
use super::linear::{Linear, outputs};
use super::norm::Norm;
use super::rope::AllTables;
use super::scratch::{Scrap, Scratch};
use super::self_attention::{BlockCache, SelfAttention};
use super::tensors::{tensor, with_rows};
use super::weight::Weight;
use super::weights::{
    ATTENTION_INPUT, ATTENTION_OUTPUT, MLP_INPUT, MLP_OUTPUT, Weights, linear_specs,
};
use crate::{Error, Result};

/// Where a forward pass stands in its sequences.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position<'a> {
    /// Tokens in the cache.
    pub(super) past: usize,
    /// The angles of the new tokens, for rotary families.
    pub(super) rotary: Option<&'a AllTables>,
    /// `true` for every new token that counts, sequence by sequence; `None`: all count.
    pub(super) counts: Option<&'a [bool]>,
    /// The encoder's output, for a decoder behind one.
    pub(super) memory: Option<&'a Side>,
    /// Memory for the pass.
    pub(super) scratch: &'a Scratch,
}

/// One block, weights in f32.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// In the order of [`linear_specs`].
    pub(super) linears: Vec<Linear>,
    /// Of attention and feed-forward; one where they share it.
    norms: Vec<Norm>,
    /// Of what attention and feed-forward add, where that is normalized.
    branch_norms: Option<[Norm; 2]>,
    attention: SelfAttention,
    cross: Option<CrossAttention>,
    /// Of the stack's output, in the last block of an encoder in front of a decoder.
    closing: Option<Norm>,
    residual: Residual,
    activation: Activation,
    /// Where the feed-forward part is one of experts.
    router: Option<Router>,
}

impl Block {
    pub(super) fn load(weights: &Weights, block: usize) -> Result<Self> {
        let config = &weights.config;
        let norms = config.block_norms(block).iter();
        Ok(Self {
            linears: linear_specs(config, block)
                .iter()
                .map(|spec| Linear::load(weights, &weights.block_name(block, &spec.part), spec))
                .collect::<Result<_>>()?,
            norms: norms
                .map(|part| weights.norm(&weights.block_name(block, part), config.hidden_size))
                .collect::<Result<_>>()?,
            branch_norms: match config.family.spec().names.branch_norms {
                Some(parts) => {
                    let norm =
                        |part| weights.norm(&weights.block_name(block, part), config.hidden_size);
                    Some([norm(parts[0])?, norm(parts[1])?])
                }
                None => None,
            },
            attention: SelfAttention::load(weights, block)?,
            cross: CrossAttention::load(weights, block)?,
            closing: match config.last_encoder_block() == Some(block) {
                true => {
                    let name = weights.name(config.names_of(block).final_norm);
                    Some(weights.norm(&name, config.hidden_size)?)
                }
                false => None,
            },
            residual: config.residual,
            activation: config.activation,
            router: Router::load(weights, block)?,
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
        let mut sum = self.run(hidden, position, cache, tap, true)?;
        if self.residual == Residual::PostNorm {
            sum = self.norm(1)?.apply(position.scratch, &sum).clone();
        }
        if let Some(closing) = &self.closing {
            sum = closing.apply(position.scratch, &sum).clone();
        }
        tensor(sum, hidden.dims3()?)
    }

    /// The inputs of the linear layers alone: [`forward`](Self::forward) without the last products.
    pub(super) fn observe(
        &self,
        hidden: &Tensor,
        position: &Position<'_>,
        tap: &mut dyn Tap,
    ) -> Result<()> {
        self.run(hidden, position, None, tap, false).map(drop)
    }

    /// The residual stream behind the block, before a norm of the sum; without `finish`, before the last layers'
    /// outputs are added to it.
    fn run(
        &self,
        hidden: &Tensor,
        position: &Position<'_>,
        cache: Option<&mut BlockCache>,
        tap: &mut dyn Tap,
        finish: bool,
    ) -> Result<Array2<f32>> {
        let batch = hidden.dims3()?.0;
        let scratch = position.scratch;
        let mut sum = with_rows(hidden, |hidden| Ok(hidden.to_owned()))?;
        let (qkv, rest) = self.linears.split_at(self.attention.layers());
        let (output, rest) = rest.split_first().ok_or_else(|| incomplete(self))?;
        let of_cross = self.cross.as_ref().map_or(0, |_| cross_attention::LAYERS);
        let (cross, feed_forward) = rest
            .split_at_checked(of_cross)
            .ok_or_else(|| incomplete(self))?;

        let x = match self.residual {
            Residual::PostNorm => copy(scratch, &sum),
            _ => self.norm(0)?.apply(scratch, &sum),
        };
        observe(tap, ATTENTION_INPUT, batch, &x, position.counts);
        let mixed = self.attention.mixed(qkv, &x, batch, position, cache)?;
        observe(tap, ATTENTION_OUTPUT, batch, &mixed, position.counts);
        // What the feed-forward part reads, where that is not a sum with the attention's output.
        let beside = match self.residual {
            Residual::Parallel => Some(self.norm(1)?.apply(scratch, &sum)),
            Residual::ParallelShared => Some(x),
            Residual::Normalized => {
                sum.assign(&x);
                None
            }
            Residual::Sequential | Residual::PostNorm => None,
        };
        self.add(scratch, &mut sum, 0, output, &mixed)?;
        if let Some(of_block) = &self.cross {
            of_block.add_output(cross, &mut sum, batch, position, tap)?;
        }

        let x = match (beside, self.residual) {
            (Some(x), _) => x,
            (None, Residual::PostNorm) => {
                sum = self.norm(0)?.apply(scratch, &sum).clone();
                copy(scratch, &sum)
            }
            (None, _) => self.norm(1)?.apply(scratch, &sum),
        };
        if self.residual == Residual::Normalized {
            sum.assign(&x);
        }
        if let Some(router) = &self.router {
            let sum = finish.then_some(&mut sum);
            router.add_output(feed_forward, position, &x, batch, tap, sum)?;
        } else {
            match self.residual {
                // Seen already, as the attention's input.
                Residual::ParallelShared => {}
                _ => observe(tap, MLP_INPUT, batch, &x, position.counts),
            }
            let inner = inner(feed_forward, self.activation, scratch, &x)?;
            observe(tap, MLP_OUTPUT, batch, &inner, position.counts);
            if finish {
                let last = feed_forward.last().ok_or_else(|| incomplete(self))?;
                self.add(scratch, &mut sum, 1, last, &inner)?;
            }
        }
        Ok(sum)
    }

    /// Adds what the last layer of attention (part 0) or feed-forward (1) makes of `x`, normalized where the family
    /// does so.
    fn add(
        &self,
        scratch: &Scratch,
        sum: &mut Array2<f32>,
        part: usize,
        layer: &Linear,
        x: &Array2<f32>,
    ) -> Result<()> {
        let Some(norms) = &self.branch_norms else {
            return layer.add_output(sum, x);
        };
        let [made] = outputs(scratch, x, [layer])?;
        *sum += &*norms[part].apply(scratch, &made);
        Ok(())
    }

    fn norm(&self, index: usize) -> Result<&Norm> {
        self.norms.get(index).ok_or_else(|| incomplete(self))
    }

    /// Puts another weight in place of a linear layer's.
    pub(super) fn replace(&mut self, layer: usize, weight: Tensor) {
        self.linears[layer].weight = Weight::Tensor(weight);
    }
}

fn incomplete(block: &Block) -> Error {
    Error::tensor(
        "(block)",
        format!(
            "has {} layers and {} norms, too few for {:?}",
            block.linears.len(),
            block.norms.len(),
            block.residual
        ),
    )
}

fn copy<'s>(scratch: &'s Scratch, x: &Array2<f32>) -> Scrap<'s> {
    let mut copied = scratch.matrix(x.nrows(), x.ncols());
    copied.assign(x);
    copied
}

/// Hands the activations (tokens x features) of some sequences to a tap without copying them, and which of the tokens
/// count.
pub(super) fn observe(
    tap: &mut dyn Tap,
    input: usize,
    sequences: usize,
    x: &Array2<f32>,
    counts: Option<&[bool]>,
) {
    if !tap.wants(input) {
        return;
    }
    let batch = Batch::new(x.view()).sequences(sequences as u64);
    let batch = match counts {
        Some(counts) => batch.token_mask(counts),
        None => batch,
    };
    tap.observe(input, batch);
}
