//! Text from a model, token by token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::decoder::Transformer;
use crate::{Error, Result};

/// How to choose tokens and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token; otherwise logits are divided by it before sampling.
    pub temperature: f64,
    /// Sample among this many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that together have this probability (0 to 1).
    pub top_p: Option<f64>,
    /// Seed of the sampler: the same seed gives the same text.
    pub seed: u64,
    /// Tokens that end the text.
    pub eos: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            seed: 0,
            eos: Vec::new(),
        }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stop {
    /// The model produced an end-of-text token (which is not part of the result).
    EndOfText,
    /// The asked-for number of tokens is there.
    MaxNewTokens,
    /// The model's context is full.
    ContextFull,
    /// The caller's callback said so.
    Caller,
}

/// A generated text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
}

impl GenerateOptions {
    fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::setting(
                "temperature",
                "a number of at least 0",
                self.temperature,
            ));
        }
        if self.top_k == Some(0) {
            return Err(Error::setting("top_k", "at least 1", 0));
        }
        if let Some(top_p) = self.top_p
            && !(top_p > 0.0 && top_p <= 1.0)
        {
            return Err(Error::setting("top_p", "above 0 and at most 1", top_p));
        }
        Ok(())
    }
}

/// Continues a prompt. `on_token` gets each new token as soon as it is chosen and returns `false` to stop.
///
/// # Errors
/// If an option is out of range, the prompt is empty or longer than the model's context, or a token is
/// outside the vocabulary.
pub fn generate(
    model: &Transformer,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> bool,
) -> Result<Generated> {
    options.validate()?;
    model.config().require_decoder("generating text")?;
    if prompt.is_empty() {
        return Err(Error::setting("prompt", "at least one token", "none"));
    }
    let longest = model.config().max_positions;
    if prompt.len() > longest {
        return Err(Error::setting(
            "prompt",
            format!("at most {longest} tokens, the model's longest sequence"),
            prompt.len(),
        ));
    }
    let mut sampler = Sampler {
        options,
        random: ChaCha8Rng::seed_from_u64(options.seed),
    };
    let mut cache = model.cache();
    let mut logits = model.next(prompt, &mut cache)?;
    let mut tokens = Vec::new();
    let stop = loop {
        if tokens.len() == options.max_new_tokens {
            break Stop::MaxNewTokens;
        }
        let token = sampler.choose(&logits)?;
        if options.eos.contains(&token) {
            break Stop::EndOfText;
        }
        tokens.push(token);
        if !on_token(token) {
            break Stop::Caller;
        }
        if tokens.len() < options.max_new_tokens {
            if cache.tokens() == model.config().max_positions {
                break Stop::ContextFull;
            }
            logits = model.next(&[token], &mut cache)?;
        }
    };
    Ok(Generated { tokens, stop })
}

struct Sampler<'a> {
    options: &'a GenerateOptions,
    random: ChaCha8Rng,
}

impl Sampler<'_> {
    fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::tensor(
                "logits",
                "hold NaN; the model's weights are broken",
            ));
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |token: u32| logits[token as usize];
        // Descending, ties by the lower token.
        let descending = |a: &u32, b: &u32| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b));
        if self.options.temperature == 0.0 {
            return order
                .into_iter()
                .min_by(descending)
                .ok_or_else(|| Error::tensor("logits", "are empty"));
        }
        order.sort_by(descending);
        order.truncate(self.options.top_k.unwrap_or(usize::MAX));
        let highest = f64::from(logit(order[0]));
        let weight =
            |token: u32| ((f64::from(logit(token)) - highest) / self.options.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(|&token| weight(token)).collect();
        if let Some(top_p) = self.options.top_p {
            let wanted = top_p * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let enough = weights
                .iter()
                .position(|weight| {
                    sum += weight;
                    sum >= wanted
                })
                .map_or(weights.len(), |last| last + 1);
            weights.truncate(enough);
        }
        let mut point = self.random.random::<f64>() * weights.iter().sum::<f64>();
        for (&token, weight) in order.iter().zip(&weights) {
            point -= weight;
            if point < 0.0 {
                return Ok(token);
            }
        }
        // Rounding may leave the point a hair beyond the last weight.
        Ok(order[weights.len() - 1])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn draw(options: &GenerateOptions, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler {
            options,
            random: ChaCha8Rng::seed_from_u64(options.seed),
        };
        (0..times)
            .map(|_| sampler.choose(logits).unwrap())
            .collect()
    }

    #[test]
    fn sampling_follows_the_probabilities_and_the_seed() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln()];
        let options = GenerateOptions {
            temperature: 1.0,
            seed: 7,
            ..Default::default()
        };
        let drawn = draw(&options, &logits, 20_000);
        assert_eq!(drawn, draw(&options, &logits, 20_000));
        for (token, share) in [(0, 0.1), (1, 0.2), (2, 0.5), (3, 0.2)] {
            let found = drawn.iter().filter(|&&t| t == token).count() as f64 / 20_000.0;
            assert!((found - share).abs() < 0.02, "token {token}: {found}");
        }
        let top_k = GenerateOptions {
            top_k: Some(2),
            ..options.clone()
        };
        assert!(
            draw(&top_k, &logits, 1000)
                .iter()
                .all(|&token| token == 2 || token == 1)
        );
        let top_p = GenerateOptions {
            top_p: Some(0.5),
            ..options.clone()
        };
        assert!(draw(&top_p, &logits, 1000).iter().all(|&token| token == 2));
        let greedy = GenerateOptions {
            temperature: 0.0,
            ..options
        };
        assert_eq!(draw(&greedy, &[1.0, 3.0, 3.0], 1), [1]);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for options in [
            GenerateOptions {
                temperature: -1.0,
                ..Default::default()
            },
            GenerateOptions {
                temperature: f64::NAN,
                ..Default::default()
            },
            GenerateOptions {
                top_k: Some(0),
                ..Default::default()
            },
            GenerateOptions {
                top_p: Some(0.0),
                ..Default::default()
            },
            GenerateOptions {
                top_p: Some(1.1),
                ..Default::default()
            },
        ] {
            assert!(options.validate().is_err(), "{options:?}");
        }
    }
}
