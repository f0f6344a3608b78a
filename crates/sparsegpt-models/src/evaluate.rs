//! Perplexity.
//!
//! As the paper's reference code measures it (Appendix B): non-overlapping chunks, the tail dropped, each
//! chunk's loss the mean cross-entropy of its T − 1 predictions, the perplexity the exponential of the
//! mean over chunks.

use rayon::prelude::*;
use serde::Serialize;

use crate::decoder::{Transformer, values};
use crate::{Error, Result};

/// Tokens whose logits are held at a time.
const HEAD_TOKENS: usize = 256;

/// Tokens that run through the model together.
const BATCH_TOKENS: usize = 2048;

/// How to cut the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens in a chunk, at least 2.
    pub sequence_length: usize,
    /// Chunks to evaluate at most; `None` takes all.
    pub limit: Option<usize>,
}

/// A perplexity and what it was measured on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Perplexity {
    /// exp of the mean loss.
    pub perplexity: f64,
    /// Mean loss over chunks, in nats.
    pub mean_nll: f64,
    /// Standard error of the perplexity, from the spread of the chunks' losses (delta method); 0 for a
    /// single chunk.
    pub standard_error: f64,
    /// Chunks evaluated.
    pub chunks: usize,
    /// Tokens in a chunk.
    pub sequence_length: usize,
    /// Tokens evaluated.
    pub tokens: usize,
    /// Loss of each chunk, in nats.
    pub chunk_nll: Vec<f64>,
}

/// Measures the perplexity of a model on tokens. `progress` is called for each chunk with the chunks done,
/// the chunks in all and the perplexity so far; it returns `false` to stop early, with what is done.
///
/// # Errors
/// If there are fewer tokens than one chunk, a chunk is longer than the model allows, or a token is outside
/// the vocabulary.
pub fn perplexity(
    model: &Transformer,
    tokens: &[u32],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(usize, usize, f64) -> bool,
) -> Result<Perplexity> {
    model.config().require_decoder("perplexity")?;
    let length = options.sequence_length;
    if length < 2 {
        return Err(Error::setting(
            "sequence length",
            "at least 2 tokens",
            length,
        ));
    }
    let available = tokens.len() / length;
    let chunks = options
        .limit
        .map_or(available, |limit| limit.min(available));
    if options.limit == Some(0) {
        return Err(Error::setting("limit", "at least 1 chunk", 0));
    }
    if chunks == 0 {
        return Err(Error::data(
            "text",
            format!("at least one chunk of {length} tokens (or ask for shorter sequences)"),
            format!("{} tokens", tokens.len()),
        ));
    }
    let mut chunk_nll = Vec::with_capacity(chunks);
    let sequences: Vec<&[u32]> = tokens.chunks_exact(length).take(chunks).collect();
    'chunks: for batch in sequences.chunks((BATCH_TOKENS / length).max(1)) {
        for losses in batch_nll(model, batch)? {
            if losses.iter().any(|loss| !loss.is_finite()) {
                return Err(Error::tensor(
                    "(logits)",
                    format!(
                        "hold NaN or infinity in chunk {}; the model's weights are broken",
                        chunk_nll.len()
                    ),
                ));
            }
            chunk_nll.push(losses.iter().sum::<f64>() / losses.len() as f64);
            let so_far = (chunk_nll.iter().sum::<f64>() / chunk_nll.len() as f64).exp();
            if !progress(chunk_nll.len(), chunks, so_far) {
                break 'chunks;
            }
        }
    }
    let count = chunk_nll.len() as f64;
    let mean_nll = chunk_nll.iter().sum::<f64>() / count;
    let variance = chunk_nll
        .iter()
        .map(|nll| (nll - mean_nll).powi(2))
        .sum::<f64>()
        / (count - 1.0).max(1.0);
    Ok(Perplexity {
        perplexity: mean_nll.exp(),
        mean_nll,
        standard_error: mean_nll.exp() * (variance / count).sqrt(),
        chunks: chunk_nll.len(),
        sequence_length: length,
        tokens: chunk_nll.len() * length,
        chunk_nll,
    })
}

/// The loss of each token but the first, in nats: −log p(token | tokens before it).
///
/// # Errors
/// As [`perplexity`].
pub fn token_nll(model: &Transformer, sequence: &[u32]) -> Result<Vec<f64>> {
    Ok(batch_nll(model, &[sequence])?.concat())
}

/// [`token_nll`] for sequences of equal length, run together.
fn batch_nll(model: &Transformer, sequences: &[&[u32]]) -> Result<Vec<Vec<f64>>> {
    let hidden = model.hidden(sequences, None)?;
    let (batch, time, width) = hidden.dims3()?;
    let hidden = hidden.reshape((batch * time, width))?;
    let vocabulary = model.config().vocab_size;
    // The token each position predicts; the last one of a sequence predicts nothing.
    let targets: Vec<Option<u32>> = sequences
        .iter()
        .flat_map(|sequence| {
            sequence
                .iter()
                .skip(1)
                .map(|&token| Some(token))
                .chain([None])
        })
        .collect();
    let mut losses: Vec<Option<f64>> = Vec::with_capacity(targets.len());
    // The head in slices: the logits of a whole chunk may be larger than the model.
    for (slice, targets) in targets.chunks(HEAD_TOKENS).enumerate() {
        let logits = model.head(&hidden.narrow(0, slice * HEAD_TOKENS, targets.len())?)?;
        let (logits, layout) = logits.storage_and_layout();
        let of_slice: Vec<Option<f64>> = values(&logits, layout)?
            .par_chunks(vocabulary)
            .zip(targets)
            .map(|(logits, target)| target.map(|target| nll(logits, target as usize)))
            .collect();
        losses.extend(of_slice);
    }
    Ok(losses
        .chunks(time)
        .map(|losses| losses.iter().flatten().copied().collect())
        .collect())
}

/// −log softmax(logits)\[target\].
fn nll(logits: &[f32], target: usize) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from((logit - highest).exp()))
        .sum();
    sum.ln() - f64::from(logits[target] - highest)
}

#[cfg(test)]
mod tests {
    use super::nll;

    #[test]
    fn loss_of_equal_logits_is_the_log_of_their_number() {
        assert!((nll(&[3.0; 8], 2) - 8.0_f64.ln()).abs() < 1e-12);
        assert!((nll(&[0.0, 1e4, 0.0], 1)).abs() < 1e-12);
        assert!((nll(&[0.0, 1e4], 0) - 1e4).abs() < 1e-6);
    }
}
