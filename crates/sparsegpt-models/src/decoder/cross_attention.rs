//! The part of a decoder's block that sees the encoder's output.

use ndarray::Array2;
use sparsegpt::Tap;

use super::attention::{Mixer, by_sequence};
use super::block::{Position, observe};
use super::linear::{Linear, outputs};
use super::norm::Norm;
use super::tensors::with_rows;
use super::weights::{CROSS_INPUT, CROSS_MEMORY, CROSS_OUTPUT, Weights};
use crate::{Error, Result};

/// Linear layers of the part: query, key, value, output.
pub(super) const LAYERS: usize = 4;

/// Everything of the part but its linear layers.
#[derive(Clone, Debug)]
pub(super) struct CrossAttention {
    norm: Norm,
    head_dim: usize,
    scale: f32,
}

impl CrossAttention {
    /// That of a block, where it has one.
    pub(super) fn load(weights: &Weights, block: usize) -> Result<Option<Self>> {
        let config = &weights.config;
        let Some(names) = config.names_of(block).cross else {
            return Ok(None);
        };
        Ok(Some(Self {
            norm: weights.norm(&weights.block_name(block, names.norm), config.hidden_size)?,
            head_dim: config.head_dim,
            scale: config.score_scales[block] as f32,
        }))
    }

    /// Adds to `sum` (tokens x width, of `batch` sequences) what the part makes of it and of the encoder's output.
    pub(super) fn add_output(
        &self,
        linears: &[Linear],
        sum: &mut Array2<f32>,
        batch: usize,
        position: &Position<'_>,
        tap: &mut dyn Tap,
    ) -> Result<()> {
        let (Some(memory), [query, key, value, output]) = (position.memory, linears) else {
            return Err(Error::tensor(
                "(cross-attention)",
                format!("{} layers, or no output of an encoder", linears.len()),
            ));
        };
        let scratch = position.scratch;
        let x = self.norm.apply(scratch, sum);
        observe(tap, CROSS_INPUT, batch, &x, position.counts);
        let [queries] = outputs(scratch, &x, [query])?;
        let memory_counts = memory.counts.as_deref();
        let states = with_rows(&memory.states, |rows| Ok(rows.to_owned()))?;
        observe(tap, CROSS_MEMORY, batch, &states, memory_counts);
        let [keys, values] = outputs(scratch, &states, [key, value])?;
        let mixer = Mixer {
            past: 0,
            causal: false,
            window: None,
            counts: memory_counts,
            head_dim: self.head_dim,
            scale: self.scale,
            slopes: &[],
            relative: None,
            softcap: None,
        };
        let mut mixed = scratch.matrix(queries.nrows(), queries.ncols());
        let (keys, values) = (by_sequence(&keys, batch)?, by_sequence(&values, batch)?);
        mixer.attend(&queries, keys, values, &mut mixed);
        observe(tap, CROSS_OUTPUT, batch, &mixed, position.counts);
        output.add_output(sum, &mixed)
    }
}
