//! Perplexity.
//!
//! As the paper's reference code measures it (Appendix B): non-overlapping chunks, the tail dropped, each
//! chunk's loss the mean cross-entropy of its T − 1 predictions, the perplexity the exponential of the
//! mean over chunks.

use rayon::prelude::*;
use serde::Serialize;

use crate::decoder::{BATCH_TOKENS, Transformer, values};
use crate::{Error, Result};

/// Tokens whose logits are held at a time.
pub(crate) const HEAD_TOKENS: usize = 256;

/// How to cut the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens in a chunk, at least 2.
    pub sequence_length: usize,
    /// Chunks to evaluate at most; `None` takes all.
    pub limit: Option<usize>,
}

impl PerplexityOptions {
    /// The chunks of a text.
    pub(crate) fn chunks<'t>(&self, tokens: &'t [u32]) -> Result<Vec<&'t [u32]>> {
        let length = self.sequence_length;
        if length < 2 {
            return Err(Error::setting(
                "sequence length",
                "at least 2 tokens",
                length,
            ));
        }
        if self.limit == Some(0) {
            return Err(Error::setting("limit", "at least 1 chunk", 0));
        }
        let limit = self.limit.unwrap_or(usize::MAX);
        let chunks: Vec<&[u32]> = tokens.chunks_exact(length).take(limit).collect();
        if chunks.is_empty() {
            return Err(Error::data(
                "text",
                format!("at least one chunk of {length} tokens (or ask for shorter sequences)"),
                format!("{} tokens", tokens.len()),
            ));
        }
        Ok(chunks)
    }
}

/// A mean.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error: the sample's standard deviation over the root of the sample's size; 0 for a single value.
    pub standard_error: f64,
}

impl Mean {
    pub(crate) fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let value = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|each| (each - value).powi(2)).sum();
        let variance = squares / (count - 1.0).max(1.0);
        Self {
            value,
            standard_error: (variance / count).sqrt(),
        }
    }

    /// exp of the mean, by the delta method.
    pub(crate) fn exp(self) -> Self {
        let value = self.value.exp();
        Self {
            value,
            standard_error: value * self.standard_error,
        }
    }
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
    let sequences = options.chunks(tokens)?;
    let chunks = sequences.len();
    let mut chunk_nll = Vec::with_capacity(chunks);
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
    let mean = Mean::of(&chunk_nll);
    let exponential = mean.exp();
    Ok(Perplexity {
        perplexity: exponential.value,
        mean_nll: mean.value,
        standard_error: exponential.standard_error,
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
pub(crate) fn nll(logits: &[f32], target: usize) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from((logit - highest).exp()))
        .sum();
    sum.ln() - f64::from(logits[target] - highest)
}

#[cfg(test)]
mod tests {
    use super::{Mean, nll};

    #[test]
    fn means_and_their_errors_are_those_of_the_sample() {
        let mean = Mean::of(&[1.0, 0.0, 1.0, 1.0]);
        assert_eq!((mean.value, mean.standard_error), (0.75, 0.25));
        let exponential = mean.exp();
        assert_eq!(exponential.value, 0.75_f64.exp());
        assert_eq!(exponential.standard_error, 0.25 * 0.75_f64.exp());
        let single = Mean::of(&[2.0]);
        assert_eq!((single.value, single.standard_error), (2.0, 0.0));
    }

    #[test]
    fn loss_of_equal_logits_is_the_log_of_their_number() {
        assert!((nll(&[3.0; 8], 2) - 8.0_f64.ln()).abs() < 1e-12);
        assert!((nll(&[0.0, 1e4, 0.0], 1)).abs() < 1e-12);
        assert!((nll(&[0.0, 1e4], 0) - 1e4).abs() < 1e-6);
    }
}
