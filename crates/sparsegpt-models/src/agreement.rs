//! How far a pruned model is from the dense one, token by token, whatever the text says.
//!
//! After every token of a text: whether both models hold the same next token for the likeliest, and the Kullback-Leibler
//! divergence Σ p ln(p/q) of the pruned model's distribution q from the dense one's p, in nats.

use rayon::prelude::*;
use serde::Serialize;

use crate::decoder::{BATCH_TOKENS, Transformer, values};
use crate::evaluate::{HEAD_TOKENS, Mean, PerplexityOptions};
use crate::{Error, Result};

/// How two models agree. The standard errors come from the spread of the chunks' means.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Agreement {
    /// Share of the places where both take the same token for the likeliest.
    pub same_choice: Mean,
    /// Mean divergence of the next token's distributions, in nats.
    pub divergence: Mean,
    /// Chunks compared.
    pub chunks: usize,
    /// Distributions compared.
    pub predictions: usize,
}

/// What two models make of one place.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    same: bool,
    divergence: f64,
}

/// Compares a pruned model with the dense one on the chunks of a text. `progress` is told the chunks done and those in all; it
/// returns `false` to stop early, with what is done.
///
/// # Errors
/// If the models have vocabularies of different sizes, or as [`perplexity`](crate::evaluate::perplexity).
pub fn agreement(
    dense: &Transformer,
    pruned: &Transformer,
    tokens: &[u32],
    options: &PerplexityOptions,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Agreement> {
    let vocabularies = [dense, pruned].map(|model| model.config().vocab_size);
    if vocabularies[0] != vocabularies[1] {
        return Err(Error::config(
            "vocab_size",
            format!(
                "expected the dense model's {}, found {}; only distributions over the same tokens can be compared",
                vocabularies[0], vocabularies[1]
            ),
        ));
    }
    let sequences = options.chunks(tokens)?;
    let (mut same, mut divergence) = (Vec::new(), Vec::new());
    'chunks: for batch in sequences.chunks((BATCH_TOKENS / options.sequence_length).max(1)) {
        for places in places(dense, pruned, batch)? {
            let count = places.len() as f64;
            let sum: f64 = places.iter().map(|place| place.divergence).sum();
            if !sum.is_finite() {
                return Err(Error::tensor(
                    "(logits)",
                    format!(
                        "hold NaN or infinity in chunk {}; the weights of one of the models are broken",
                        same.len()
                    ),
                ));
            }
            same.push(places.iter().filter(|place| place.same).count() as f64 / count);
            divergence.push(sum / count);
            if !progress(same.len(), sequences.len()) {
                break 'chunks;
            }
        }
    }
    Ok(Agreement {
        same_choice: Mean::of(&same),
        divergence: Mean::of(&divergence),
        chunks: same.len(),
        predictions: same.len() * options.sequence_length,
    })
}

/// Every place of sequences of equal length, run together.
fn places(
    dense: &Transformer,
    pruned: &Transformer,
    sequences: &[&[u32]],
) -> Result<Vec<Vec<Place>>> {
    let hidden = |model: &Transformer| -> Result<_> {
        let hidden = model.hidden(sequences, None)?;
        let (batch, time, width) = hidden.dims3()?;
        Ok((hidden.reshape((batch * time, width))?, time))
    };
    let ((of_dense, time), (of_pruned, _)) = (hidden(dense)?, hidden(pruned)?);
    let vocabulary = dense.config().vocab_size;
    let count = of_dense.dims2()?.0;
    let mut places = Vec::with_capacity(count);
    // In slices: the logits of a whole chunk may be larger than the model.
    for start in (0..count).step_by(HEAD_TOKENS) {
        let length = HEAD_TOKENS.min(count - start);
        let p = dense.head(&of_dense.narrow(0, start, length)?)?;
        let q = pruned.head(&of_pruned.narrow(0, start, length)?)?;
        let (p, p_layout) = p.storage_and_layout();
        let (q, q_layout) = q.storage_and_layout();
        let of_slice: Vec<Place> = values(&p, p_layout)?
            .par_chunks(vocabulary)
            .zip(values(&q, q_layout)?.par_chunks(vocabulary))
            .map(|(p, q)| compare(p, q))
            .collect();
        places.extend(of_slice);
    }
    Ok(places.chunks(time).map(<[Place]>::to_vec).collect())
}

/// Compares two rows of logits.
fn compare(p: &[f32], q: &[f32]) -> Place {
    let ((p_best, p_norm), (q_best, q_norm)) = (likeliest(p), likeliest(q));
    let divergence = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - p_norm, f64::from(q) - q_norm);
        p.exp() * (p - q)
    });
    Place {
        same: p_best == q_best,
        divergence: divergence.sum(),
    }
}

/// The first of the highest logits, and ln Σ exp(logit).
fn likeliest(logits: &[f32]) -> (usize, f64) {
    let mut best = 0;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = at;
        }
    }
    let highest = logits[best];
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from((logit - highest).exp()))
        .sum();
    (best, f64::from(highest) + sum.ln())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::checkpoint::{Checkpoint, fixtures};

    #[test]
    fn divergence_is_that_of_the_written_distributions() {
        // Logits may be shifted; p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2).
        let logits = |shares: [f32; 3], shift: f32| shares.map(|share| share.ln() + shift);
        let found = compare(
            &logits([0.5, 0.25, 0.25], 3.0),
            &logits([0.25, 0.25, 0.5], -7.0),
        );
        let expected = 0.5 * 2.0_f64.ln() - 0.25 * 2.0_f64.ln();
        assert!((found.divergence - expected).abs() < 1e-6, "{found:?}");
        assert!(!found.same);
        let same = compare(
            &logits([0.5, 0.25, 0.25], 0.0),
            &logits([0.5, 0.25, 0.25], 1.0),
        );
        assert!(same.same && same.divergence.abs() < 1e-6, "{same:?}");
    }

    #[test]
    fn a_model_agrees_with_itself_and_less_with_what_was_changed() {
        let checkpoint = Checkpoint::open(&fixtures::bundled()).unwrap();
        let model = Transformer::load(checkpoint.config(), &checkpoint.tensors()).unwrap();
        let tokens: Vec<u32> = (0..200).map(|at| at * 37 % 1024).collect();
        let options = PerplexityOptions {
            sequence_length: 24,
            limit: Some(5),
        };
        let mut told = Vec::new();
        let own = agreement(&model, &model, &tokens, &options, &mut |done, of| {
            told.push((done, of));
            done < 3
        })
        .unwrap();
        assert_eq!(told, [(1, 5), (2, 5), (3, 5)]);
        assert_eq!((own.chunks, own.predictions), (3, 72));
        assert_eq!((own.same_choice.value, own.divergence.value), (1.0, 0.0));

        // Another theta turns the heads in another way.
        let mut config = checkpoint.config().clone();
        config["rope_parameters"]["rope_theta"] = 100.0.into();
        let other = Transformer::load(&config, &checkpoint.tensors()).unwrap();
        let found = agreement(&model, &other, &tokens, &options, &mut |_, _| true).unwrap();
        assert!(found.same_choice.value < 1.0, "{found:?}");
        assert!(found.divergence.value > 0.0, "{found:?}");
        assert!(found.divergence.standard_error > 0.0, "{found:?}");
        assert_eq!(found.chunks, 5);
        let short = agreement(&model, &other, &tokens[..23], &options, &mut |_, _| true);
        assert!(
            short
                .unwrap_err()
                .to_string()
                .contains("at least one chunk")
        );
    }
}
