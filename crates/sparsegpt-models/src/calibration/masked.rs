//! Sequences as an encoder saw them in pre-training: some tokens hidden.

use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Calibration;
use crate::{Error, Result};

/// The share of tokens that BERT and RoBERTa were trained to predict.
pub const PRETRAINING_MASK_RATE: f64 = 0.15;

/// How tokens are hidden: the recipe of BERT (Devlin et al. 2019, section 3.1). Of the chosen tokens 80 % become the mask
/// token, 10 % any token, and 10 % stay.
#[derive(Clone, Debug, PartialEq)]
pub struct Masking {
    /// The share of tokens that are chosen, [`PRETRAINING_MASK_RATE`] in pre-training.
    pub rate: f64,
    /// The token that stands for a hidden one.
    pub mask_token: u32,
    /// Tokens that are never chosen: those around a sequence and between its parts.
    pub special: Vec<u32>,
    /// Tokens in the vocabulary, any of which may take a chosen one's place.
    pub vocab_size: usize,
    /// Seed of the choice. The same sequences and seed give the same result on every machine.
    pub seed: u64,
}

impl Masking {
    fn validate(&self) -> Result<()> {
        if !(self.rate > 0.0 && self.rate <= 1.0) {
            return Err(Error::setting(
                "mask rate",
                "a share of the tokens above 0 and up to 1",
                self.rate,
            ));
        }
        if self.mask_token as usize >= self.vocab_size {
            return Err(Error::setting(
                "mask token",
                format!("one below {}, the model's vocabulary", self.vocab_size),
                self.mask_token,
            ));
        }
        Ok(())
    }
}

impl Calibration {
    /// The sequences with tokens hidden, of each sequence the same share rounded to whole tokens, and one at least.
    /// Padding is never chosen.
    ///
    /// # Errors
    /// If the rate is out of range, or the mask token outside the vocabulary.
    pub fn masked(mut self, masking: &Masking) -> Result<Self> {
        masking.validate()?;
        let mut random = ChaCha8Rng::seed_from_u64(masking.seed);
        for sequence in &mut self.sequences {
            let mask = sequence.attention_mask.as_deref();
            let counts = |at: usize| mask.is_none_or(|mask| mask[at]);
            let open: Vec<usize> = (0..sequence.tokens.len())
                .filter(|&at| counts(at) && !masking.special.contains(&sequence.tokens[at]))
                .collect();
            let chosen = (masking.rate * open.len() as f64).round() as usize;
            let chosen = chosen.max(1).min(open.len());
            for at in sample(&mut random, open.len(), chosen) {
                let token = &mut sequence.tokens[open[at]];
                match random.random_range(0..10_u32) {
                    0..8 => *token = masking.mask_token,
                    8 => *token = random.random_range(0..masking.vocab_size as u32),
                    _ => {}
                }
            }
        }
        self.source = format!(
            "{}, {} % of the tokens hidden",
            self.source,
            100.0 * masking.rate
        );
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Sequence;

    const MASK: u32 = 500;

    fn masking(seed: u64) -> Masking {
        Masking {
            rate: PRETRAINING_MASK_RATE,
            mask_token: MASK,
            special: vec![1, 2],
            vocab_size: 1000,
            seed,
        }
    }

    /// 100 sequences of a first, 398 further and a last token, the last 100 of them padding, ended by a token again.
    fn calibration() -> Calibration {
        let mut tokens = vec![3_u32; 400];
        (tokens[0], tokens[399]) = (1, 2);
        let mask = (0..400).map(|at| !(299..399).contains(&at)).collect();
        let sequence = Sequence::from(tokens).with_attention_mask(mask).unwrap();
        Calibration {
            sequences: vec![sequence; 100],
            source: "here".to_owned(),
            tokens_available: 400,
        }
    }

    #[test]
    fn as_many_tokens_are_hidden_as_in_pre_training() {
        let masked = calibration().masked(&masking(0)).unwrap();
        let (mut hidden, mut other) = (0, 0);
        for sequence in &masked.sequences {
            let tokens = &sequence.tokens;
            assert_eq!((tokens[0], tokens[399]), (1, 2));
            assert!(tokens[299..399].iter().all(|&token| token == 3));
            let of_sequence = tokens.iter().filter(|&&token| token == MASK).count();
            // 45 of 298 are chosen.
            assert!(of_sequence <= 45);
            hidden += of_sequence;
            other += tokens[1..299]
                .iter()
                .filter(|&&t| t != 3 && t != MASK)
                .count();
        }
        // Of 4500 chosen: 3600 and 450 expected, deviations 27 and 20.
        assert!((3490..3710).contains(&hidden), "{hidden}");
        assert!((370..530).contains(&other), "{other}");
        assert!(masked.source.contains("15 %"), "{}", masked.source);
    }

    #[test]
    fn the_seed_decides_and_settings_are_checked() {
        let of_seed = |seed| calibration().masked(&masking(seed)).unwrap();
        assert_eq!(of_seed(1), of_seed(1));
        assert_ne!(of_seed(1).sequences, of_seed(2).sequences);
        for wrong in [
            Masking {
                rate: 0.0,
                ..masking(0)
            },
            Masking {
                rate: 1.5,
                ..masking(0)
            },
            Masking {
                mask_token: 1000,
                ..masking(0)
            },
        ] {
            assert!(calibration().masked(&wrong).is_err(), "{wrong:?}");
        }
    }
}
