//! Perplexity and text of the models of a page.

use std::path::PathBuf;

use serde::Serialize;
use sparsegpt_models::evaluate::{Perplexity, PerplexityOptions, perplexity};
use sparsegpt_models::generate::{GenerateOptions, check_prompt};

use super::ReportArgs;
use crate::commands::generate::continue_text;
use crate::console::Console;
use crate::evaluation_text::EvaluationText;
use crate::failure::Failure;
use crate::{interrupt, model};

/// A model, and how it did.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) model: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) perplexity: Option<Perplexity>,
    pub(super) samples: Vec<Sample>,
}

/// How a model continues a prompt.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    pub(super) prompt: String,
    pub(super) text: String,
}

/// Measures the models one after the other, so that one at a time is in memory.
pub(super) fn measure(
    args: &ReportArgs,
    models: Vec<(String, PathBuf)>,
    console: &Console,
) -> Result<Vec<Measured>, Failure> {
    let sampling = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        seed: args.seed,
        ..GenerateOptions::default()
    };
    sampling.validate()?;
    // All models are looked at before the first is run.
    let open = |(_, path): &(String, PathBuf)| {
        let (checkpoint, config) = model::open_decoder(path, "report", console)?;
        let tokenizer = model::tokenizer(&checkpoint)?;
        let encode = |text: &String| {
            let tokens = tokenizer.encode(text)?;
            let place = path.display().to_string();
            check_prompt(&config, &tokens).map_err(|error| Failure::from(error).placed(&place))?;
            Ok(tokens)
        };
        let prompts: Vec<Vec<u32>> = args
            .prompt
            .iter()
            .map(encode)
            .collect::<Result<_, Failure>>()?;
        Ok((checkpoint, config, tokenizer, prompts))
    };
    let opened: Vec<_> = models.iter().map(open).collect::<Result<_, Failure>>()?;
    let text = match &args.text {
        None => None,
        Some(file) => {
            let asked = ("--sequence-length", args.sequence_length);
            let length = opened.first().map(|(_, config, ..)| config);
            let length = length.map_or(1, |config| model::sequence_length(asked, config, console));
            let recipe = args.recipe.unwrap_or_default();
            let options = PerplexityOptions {
                sequence_length: length,
                limit: args.limit,
            };
            let text = EvaluationText::read(file, recipe, None, length, console)?;
            Some((text, options))
        }
    };
    let bar = console.progress(models.len() as u64);
    let mut measured = Vec::new();
    for ((name, path), (checkpoint, _, tokenizer, prompts)) in models.into_iter().zip(opened) {
        interrupt::check()?;
        let loaded = model::load(&checkpoint, &checkpoint.tensors())?;
        let mut result = None;
        if let Some((text, options)) = &text {
            let tokens = text.tokens(&tokenizer)?;
            let found = perplexity(&loaded, &tokens, options, &mut |done, of, _| {
                bar.set_message(format!("{name}, perplexity, chunk {done} of {of}"));
                !interrupt::requested()
            });
            interrupt::check()?;
            result = Some(found.map_err(|error| Failure::reading_text(&text.file, error))?);
        }
        let options = GenerateOptions {
            eos: tokenizer.eos().to_vec(),
            ..sampling.clone()
        };
        let mut samples = Vec::new();
        for (prompt, tokens) in args.prompt.iter().zip(&prompts) {
            bar.set_message(format!("{name}, text"));
            let texts = continue_text(&loaded, &tokenizer, tokens, &options, 1, &mut |_| Ok(()))?;
            interrupt::check()?;
            samples.extend(texts.into_iter().map(|sample| Sample {
                prompt: prompt.clone(),
                text: sample.text,
            }));
        }
        measured.push(Measured {
            name,
            model: path,
            perplexity: result,
            samples,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(measured)
}
