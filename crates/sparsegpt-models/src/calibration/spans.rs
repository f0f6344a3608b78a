//! Sequences as T5 saw them in pre-training: spans of tokens taken out, and asked for.

use std::iter;

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

use super::{Calibration, PRETRAINING_MASK_RATE};
use crate::{Error, Result, Sequence};

/// How spans are taken out: the recipe of T5 (Raffel et al. 2020, section 3.1.4). In the encoder's sequence each span is
/// replaced by a token of its own, a sentinel; the decoder's names each sentinel and what stood there.
#[derive(Clone, Debug, PartialEq)]
pub struct Spans {
    /// The share of tokens that are taken out, 0.15 in pre-training.
    pub rate: f64,
    /// Tokens in a span, on average; 3 in pre-training.
    pub mean_length: f64,
    /// The sentinels in the order of their use.
    pub sentinels: Vec<u32>,
    /// What ends a sequence of the encoder.
    pub end: Vec<u32>,
    /// What the decoder's sequence begins with.
    pub start: u32,
    /// Seed of the choice. The same sequences and seed give the same result on every machine.
    pub seed: u64,
}

impl Spans {
    /// As in pre-training.
    #[must_use]
    pub fn of_pretraining(sentinels: Vec<u32>, end: Vec<u32>, start: u32, seed: u64) -> Self {
        Self {
            rate: PRETRAINING_MASK_RATE,
            mean_length: 3.0,
            sentinels,
            end,
            start,
            seed,
        }
    }

    /// Tokens and spans to take out of so many tokens.
    fn sizes(&self, tokens: usize) -> Result<(usize, usize)> {
        let in_range = self.rate > 0.0 && self.rate < 1.0 && self.mean_length >= 1.0;
        if !in_range || tokens < 2 {
            return Err(Error::setting(
                "spans",
                "a share of the tokens between 0 and 1, spans of 1 token or more, sequences of 2 or more",
                format!(
                    "{} in spans of {}, of {tokens} tokens",
                    self.rate, self.mean_length
                ),
            ));
        }
        let taken = ((self.rate * tokens as f64).round() as usize).clamp(1, tokens - 1);
        let spans = ((taken as f64 / self.mean_length).round() as usize).clamp(1, taken);
        let spans = spans.min(tokens - taken);
        if spans > self.sentinels.len() {
            return Err(Error::setting(
                "sequence length",
                format!(
                    "one with at most {} spans, the tokenizer's sentinels",
                    self.sentinels.len()
                ),
                format!("{tokens} tokens, {spans} spans"),
            ));
        }
        Ok((taken, spans))
    }
}

impl Calibration {
    /// The sequences with spans taken out, and with what the decoder then reads: each sentinel and the tokens of its span,
    /// moved by one token behind the start. All sequences of one length give pairs of the same lengths.
    ///
    /// # Errors
    /// If a setting is out of range, or there are more spans than sentinels.
    pub fn in_spans(mut self, spans: &Spans) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(spans.seed);
        for sequence in &mut self.sequences {
            let tokens = &sequence.tokens;
            let (taken, count) = spans.sizes(tokens.len())?;
            let kept = parts(tokens.len() - taken, count, &mut random);
            let out = parts(taken, count, &mut random);
            let (mut encoder, mut decoder) = (Vec::new(), vec![spans.start]);
            let mut at = 0;
            for ((kept, out), &sentinel) in kept.into_iter().zip(out).zip(&spans.sentinels) {
                encoder.extend(&tokens[at..at + kept]);
                encoder.push(sentinel);
                decoder.push(sentinel);
                decoder.extend(&tokens[at + kept..at + kept + out]);
                at += kept + out;
            }
            encoder.extend(&spans.end);
            *sequence = Sequence::from(encoder).with_decoder_tokens(decoder);
        }
        self.source = format!(
            "{}, {} % of the tokens taken out in spans",
            self.source,
            100.0 * spans.rate
        );
        Ok(self)
    }
}

/// A number as a sum of so many, none of them 0; all ways to do so are equally likely.
fn parts(whole: usize, count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut cuts: Vec<usize> = sample(random, whole - 1, count - 1)
        .iter()
        .map(|cut| cut + 1)
        .collect();
    cuts.sort_unstable();
    let ends = cuts.iter().copied().chain([whole]);
    let starts = iter::once(0).chain(cuts.iter().copied());
    starts.zip(ends).map(|(start, end)| end - start).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn calibration() -> Calibration {
        Calibration {
            sequences: vec![Sequence::from((10..110).collect::<Vec<u32>>()); 20],
            source: "here".to_owned(),
            tokens_available: 100,
        }
    }

    fn spans(seed: u64) -> Spans {
        Spans::of_pretraining((900..920).rev().collect(), vec![1], 0, seed)
    }

    #[test]
    fn what_is_taken_out_is_what_the_decoder_reads() {
        let made = calibration().in_spans(&spans(3)).unwrap();
        for sequence in &made.sequences {
            // 15 tokens in 5 spans.
            assert_eq!(sequence.tokens.len(), 100 - 15 + 5 + 1);
            assert_eq!(sequence.decoder_tokens.len(), 1 + 5 + 15);
            assert_eq!(sequence.tokens.last(), Some(&1));
            assert_eq!(sequence.decoder_tokens[..2], [0, 919]);
            // Putting each span where its sentinel stands gives the text back.
            let mut whole = Vec::new();
            for &token in &sequence.tokens[..sequence.tokens.len() - 1] {
                if token < 900 {
                    whole.push(token);
                    continue;
                }
                let at = sequence
                    .decoder_tokens
                    .iter()
                    .position(|&t| t == token)
                    .unwrap();
                let span = sequence.decoder_tokens[at + 1..]
                    .iter()
                    .take_while(|&&t| t < 900);
                assert!(span.clone().count() > 0);
                whole.extend(span);
            }
            assert_eq!(whole, (10..110).collect::<Vec<u32>>());
        }
        assert_eq!(made, calibration().in_spans(&spans(3)).unwrap());
        assert_ne!(made, calibration().in_spans(&spans(4)).unwrap());
    }

    #[test]
    fn settings_are_checked() {
        for wrong in [
            Spans {
                rate: 1.0,
                ..spans(0)
            },
            Spans {
                mean_length: 0.5,
                ..spans(0)
            },
            Spans {
                sentinels: vec![5; 4],
                ..spans(0)
            },
        ] {
            assert!(calibration().in_spans(&wrong).is_err(), "{wrong:?}");
        }
    }
}
