//! Text from a model, token by token: one continuation of a prompt, or several that run together.
//!
//! ```no_run
//! use std::path::Path;
//! use sparsegpt_models::checkpoint::Checkpoint;
//! use sparsegpt_models::decoder::Transformer;
//! use sparsegpt_models::generate::{GenerateOptions, TextStream, generate_samples};
//!
//! let checkpoint = Checkpoint::open(Path::new("models/tiny-llama"))?;
//! let model = Transformer::load(checkpoint.config(), &checkpoint.tensors())?;
//! let tokenizer = checkpoint.tokenizer()?;
//! let prompt = tokenizer.encode("Once upon a time")?;
//! let options = GenerateOptions {
//!     temperature: 0.8,
//!     min_p: Some(0.05),
//!     eos: tokenizer.eos().to_vec(),
//!     ..GenerateOptions::default()
//! };
//! for sample in generate_samples(&model, &prompt, &options, &[0, 1, 2], &mut |_, _| true)? {
//!     let mut text = TextStream::new(&tokenizer, &prompt)?;
//!     for token in sample.tokens {
//!         print!("{}", text.push(token)?);
//!     }
//!     println!("{}", text.finish()?);
//! }
//! # Ok::<(), sparsegpt_models::Error>(())
//! ```

mod sampler;
mod text;

use serde::Serialize;

use self::sampler::Sampler;
use crate::decoder::{KvCache, TOGETHER, Transformer, TransformerConfig};
use crate::{Error, Result};

pub use text::TextStream;

/// How to choose tokens and when to stop. What changes the distribution does so in the order of transformers: the
/// penalty, the temperature, `top_k`, `top_p`, `min_p`.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token; otherwise logits are divided by it before sampling.
    pub temperature: f64,
    /// Sample among this many likeliest tokens only.
    pub top_k: Option<usize>,
    /// Sample among the likeliest tokens that together have this probability (above 0, at most 1).
    pub top_p: Option<f64>,
    /// Sample among the tokens that have this share of the likeliest token's probability (0 to 1).
    pub min_p: Option<f64>,
    /// Logits of tokens that the prompt or the text has: positive ones are divided by it, negative ones multiplied.
    /// Above 1 it makes repetitions rarer; 1 changes nothing.
    pub repetition_penalty: f64,
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
            min_p: None,
            repetition_penalty: 1.0,
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
    /// Looks whether every option is in its range, as [`generate`] does before it begins.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the first that is not.
    pub fn validate(&self) -> Result<()> {
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
        if let Some(min_p) = self.min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return Err(Error::setting("min_p", "from 0 to 1", min_p));
        }
        let penalty = self.repetition_penalty;
        if !(penalty.is_finite() && penalty > 0.0) {
            return Err(Error::setting(
                "repetition_penalty",
                "a number above 0",
                penalty,
            ));
        }
        Ok(())
    }
}

/// Whether a model can continue a prompt, which can be asked before its weights are read.
///
/// # Errors
/// If the prompt is empty or longer than the model's context.
pub fn check_prompt(config: &TransformerConfig, prompt: &[u32]) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::setting("prompt", "at least one token", "none"));
    }
    let longest = config.max_positions;
    if prompt.len() > longest {
        return Err(Error::setting(
            "prompt",
            format!("at most {longest} tokens, the model's longest sequence"),
            prompt.len(),
        ));
    }
    Ok(())
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
    let prompt = Prompt::run(model, prompt, options)?;
    let mut text = Text::new(&prompt, 0);
    prompt.go_on(std::slice::from_mut(&mut text), 0, &mut |_, token| {
        on_token(token)
    })?;
    Ok(text.generated)
}

/// Continues a prompt several times. Each number in `samples` stands for a random sequence of its own under the seed, so
/// that a sample's tokens are the same whichever others there are; [`generate`] gives number 0.
///
/// The prompt runs once. The samples then run together, a few at a time, on copies of its keys and values. `on_token` gets
/// a sample's place in `samples` and its new token, and returns `false` to stop that sample.
///
/// # Errors
/// As [`generate`].
pub fn generate_samples(
    model: &Transformer,
    prompt: &[u32],
    options: &GenerateOptions,
    samples: &[u64],
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Generated>> {
    let prompt = Prompt::run(model, prompt, options)?;
    let mut generated = Vec::new();
    for numbers in samples.chunks(TOGETHER) {
        let texts = numbers.iter().map(|&number| Text::new(&prompt, number));
        let mut texts: Vec<Text<'_>> = texts.collect();
        prompt.go_on(&mut texts, generated.len(), on_token)?;
        generated.extend(texts.into_iter().map(|text| text.generated));
    }
    Ok(generated)
}

/// A prompt that the model has read.
struct Prompt<'a> {
    model: &'a Transformer,
    options: &'a GenerateOptions,
    tokens: &'a [u32],
    cache: KvCache,
    /// Of the token behind the prompt.
    logits: Vec<f32>,
}

/// A text that is being written.
struct Text<'a> {
    options: &'a GenerateOptions,
    sampler: Sampler<'a>,
    generated: Generated,
}

impl<'a> Text<'a> {
    fn new(prompt: &Prompt<'a>, number: u64) -> Self {
        Self {
            options: prompt.options,
            sampler: Sampler::new(prompt.options, number, prompt.tokens),
            generated: Generated {
                tokens: Vec::new(),
                stop: Stop::MaxNewTokens,
            },
        }
    }

    /// Chooses a token; `None` where the text has ended.
    fn step(
        &mut self,
        logits: &[f32],
        on_token: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Option<u32>> {
        let Generated { tokens, stop } = &mut self.generated;
        let most = self.options.max_new_tokens;
        if tokens.len() == most {
            return Ok(None);
        }
        let token = self.sampler.choose(logits)?;
        if self.options.eos.contains(&token) {
            *stop = Stop::EndOfText;
            return Ok(None);
        }
        tokens.push(token);
        if !on_token(token) {
            *stop = Stop::Caller;
            return Ok(None);
        }
        Ok((tokens.len() < most).then_some(token))
    }
}

impl<'a> Prompt<'a> {
    fn run(
        model: &'a Transformer,
        tokens: &'a [u32],
        options: &'a GenerateOptions,
    ) -> Result<Self> {
        options.validate()?;
        model.config().require_decoder("generating text")?;
        check_prompt(model.config(), tokens)?;
        let mut cache = model.cache();
        let logits = model.next(tokens, &mut cache)?;
        Ok(Self {
            model,
            options,
            tokens,
            cache,
            logits,
        })
    }

    /// Writes texts to their end, all together. `first` is the place of the first of them among all samples.
    fn go_on(
        &self,
        texts: &mut [Text<'_>],
        first: usize,
        on_token: &mut dyn FnMut(usize, u32) -> bool,
    ) -> Result<()> {
        let mut running: Vec<usize> = (0..texts.len()).collect();
        let mut cache = self.cache.of(&vec![0; texts.len()]);
        let mut logits = vec![self.logits.clone(); texts.len()];
        loop {
            let (mut rows, mut tokens) = (Vec::new(), Vec::new());
            for (row, &at) in running.iter().enumerate() {
                let step =
                    texts[at].step(&logits[row], &mut |token| on_token(first + at, token))?;
                if let Some(token) = step {
                    rows.push(row);
                    tokens.push(token);
                }
            }
            if rows.len() < running.len() {
                cache = cache.of(&rows);
                running = rows.into_iter().map(|row| running[row]).collect();
            }
            if running.is_empty() {
                return Ok(());
            }
            if cache.tokens() == self.model.config().max_positions {
                for &at in &running {
                    texts[at].generated.stop = Stop::ContextFull;
                }
                return Ok(());
            }
            logits = self.model.next_of_each(&tokens, &mut cache)?;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let refused = |name: &str, change: &dyn Fn(&mut GenerateOptions)| {
            let mut options = GenerateOptions::default();
            change(&mut options);
            let error = options.validate().unwrap_err();
            assert!(
                matches!(error, Error::Setting { name: found, .. } if found == name),
                "{error}"
            );
        };
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            refused("temperature", &|options| options.temperature = bad);
            refused("repetition_penalty", &|options| {
                options.repetition_penalty = bad;
            });
        }
        refused("repetition_penalty", &|options| {
            options.repetition_penalty = 0.0;
        });
        refused("top_k", &|options| options.top_k = Some(0));
        for bad in [0.0, 1.1, f64::NAN] {
            refused("top_p", &|options| options.top_p = Some(bad));
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            refused("min_p", &|options| options.min_p = Some(bad));
        }
        let edges = GenerateOptions {
            top_p: Some(1.0),
            min_p: Some(1.0),
            repetition_penalty: 0.5,
            ..Default::default()
        };
        edges.validate().unwrap();
    }
}
