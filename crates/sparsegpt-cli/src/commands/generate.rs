//! `sparsegpt generate`: text from a model.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use sparsegpt_models::decoder::Transformer;
use sparsegpt_models::generate::{GenerateOptions, Generated, generate};
use sparsegpt_models::tokenizer::Tokenizer;

use crate::console::Console;
use crate::failure::Failure;
use crate::{interrupt, model};

/// Flags of `generate`.
#[derive(Args, Debug)]
pub(crate) struct GenerateArgs {
    /// A HuggingFace folder or a .gguf file
    model: PathBuf,

    /// The text to continue
    #[arg(long)]
    prompt: String,

    /// New tokens at most
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,

    /// 0 takes the likeliest token each time; otherwise tokens are drawn, the more freely the higher
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,

    /// Draw among this many likeliest tokens only
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,

    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, value_name = "PROBABILITY")]
    top_p: Option<f64>,

    /// Seed of the draw [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    prompt: &'a str,
    text: String,
    #[serde(flatten)]
    generated: Generated,
}

pub(crate) fn run(args: &GenerateArgs, console: &Console) -> Result<(), Failure> {
    let (checkpoint, _) = model::open_decoder(&args.model, "generate", console)?;
    let tokenizer = model::tokenizer(&checkpoint)?;
    let llama = model::load(&checkpoint, &checkpoint.tensors())?;
    if args.temperature == 0.0 {
        let given = [
            ("--top-k", args.top_k.is_some()),
            ("--top-p", args.top_p.is_some()),
            ("--seed", args.seed.is_some()),
        ];
        console.none_read(&given, "nothing is drawn at --temperature 0");
    }
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed.unwrap_or(0),
        eos: tokenizer.eos().to_vec(),
        ..GenerateOptions::default()
    };
    let (text, generated) =
        continue_text(&llama, &tokenizer, &args.prompt, &options, &mut |new| {
            console.print(new)
        })?;
    console.print("\n")?;
    interrupt::check()?;
    console.print_json(&Report {
        prompt: &args.prompt,
        text,
        generated,
    })
}

/// Continues a prompt; `show` gets each piece of new text as soon as its characters are complete.
pub(super) fn continue_text(
    model: &Transformer,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &GenerateOptions,
    show: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<(String, Generated), Failure> {
    let mut tokens = tokenizer.encode(prompt)?;
    let prompt_tokens = tokens.clone();
    // Decoded with the prompt, since some tokenizers drop the blank before the first word.
    let prompt_length = tokenizer.decode(&prompt_tokens)?.len();
    let mut shown = prompt_length;
    let mut failed = None;
    let generated = generate(model, &prompt_tokens, options, &mut |token| {
        tokens.push(token);
        let step = tokenizer
            .decode(&tokens)
            .map_err(Failure::from)
            .and_then(|text| {
                // A character may be spread over several tokens.
                if !text.ends_with(char::REPLACEMENT_CHARACTER) {
                    show(text.get(shown..).unwrap_or_default())?;
                    shown = text.len();
                }
                Ok(())
            });
        failed = step.err();
        failed.is_none() && !interrupt::requested()
    })?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    let text = tokenizer.decode(&tokens)?;
    show(text.get(shown..).unwrap_or_default())?;
    let new = text.get(prompt_length..).unwrap_or_default().to_owned();
    Ok((new, generated))
}
