//! Whether a checkpoint computes: a short forward pass, one block's weights in memory at a time.

use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;
use sparsegpt::NoTap;

use super::TransformerConfig;
use super::block::{Block, Position};
use super::ends::{Embedding, Head};
use super::family::ModelKind;
use super::scratch::Scratch;
use super::tensors::with_rows;
use super::weights::Weights;
use crate::{Error, Result, Sequence, TensorSource};

/// Tokens of the trial.
const TOKENS: usize = 16;

/// Runs a few tokens, spread over the vocabulary, through all blocks and the head. Memory for the embedding, one block and the
/// head.
///
/// # Errors
/// [`Error::Tensor`] that names the part behind which a value is infinite or no number; else as
/// [`Transformer::load`](super::Transformer::load).
pub fn check_forward(config: &Value, source: &Arc<dyn TensorSource>) -> Result<()> {
    let config = TransformerConfig::from_json(config)?;
    let weights = Weights::open(config, source.clone())?;
    let config = &weights.config;
    let count = TOKENS.min(config.max_positions).min(config.vocab_size);
    let ids: Vec<u32> = (0..count)
        .filter_map(|at| u32::try_from(at * config.vocab_size / count).ok())
        .collect();
    let mut sequence = Sequence::from(ids.clone());
    if config.kind() == ModelKind::EncoderDecoder {
        sequence.decoder_tokens = ids;
    }
    let embedding = Embedding::load(&weights)?;
    let head = Head::load(&weights, &embedding)?;
    let mut hidden = embedding.begin(config, &[&sequence])?;
    drop(embedding);
    require_finite("the embedding", hidden.states())?;
    let rotary = config.rotary_tables(0, hidden.time()?);
    let scratch = Scratch::default();
    for index in 0..config.blocks {
        let block = Block::load(&weights, index)?;
        let position = Position {
            past: 0,
            ..hidden.position(rotary.as_ref(), &scratch)
        };
        let states = block.forward(hidden.states(), &position, None, &mut NoTap)?;
        require_finite(&format!("block {index}"), &states)?;
        hidden = hidden.after(config, index, states);
    }
    let last = head.prepare(&scratch, hidden.states())?;
    let (batch, time, width) = last.dims3()?;
    require_finite(
        "the head",
        &head.logits(&last.reshape((batch * time, width))?)?,
    )
}

fn require_finite(part: &str, tensor: &Tensor) -> Result<()> {
    let found = with_rows(tensor, |rows| {
        Ok(rows.iter().copied().find(|value| !value.is_finite()))
    })?;
    match found {
        None => Ok(()),
        Some(value) => Err(Error::tensor(
            format!("({part})"),
            format!(
                "a forward pass of {TOKENS} tokens gives {value} there, expected finite values in float32; \
                 see whether the model that was pruned gives any (`sparsegpt logits`)"
            ),
        )),
    }
}
