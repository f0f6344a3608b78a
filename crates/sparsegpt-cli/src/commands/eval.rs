//! `sparsegpt eval`: perplexity.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use sparsegpt_models::evaluate::{Perplexity, PerplexityOptions, perplexity};
use sparsegpt_models::text::{Recipe, prepare_with_key};

use super::prune::tell_of_text;
use crate::console::Console;
use crate::failure::Failure;
use crate::{interrupt, model};

/// Flags of `eval`.
#[derive(Args, Debug)]
pub(crate) struct EvalArgs {
    /// A HuggingFace folder or a .gguf file
    model: PathBuf,

    /// Text, JSON lines or parquet to evaluate on
    #[arg(long, value_name = "FILE")]
    text: PathBuf,

    /// How the text is made of the file: raw, wikitext2, ptb or c4
    #[arg(long, default_value_t)]
    recipe: Recipe,

    /// JSON key or parquet column that holds the text [default: that of the recipe's data set]
    #[arg(long, value_name = "KEY")]
    text_key: Option<String>,

    /// Tokens in a chunk [default: the lesser of 2048 and the model's longest]
    #[arg(long, value_name = "N")]
    sequence_length: Option<usize>,

    /// Evaluate this many chunks only, from the start
    #[arg(long, value_name = "CHUNKS")]
    limit: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a PathBuf,
    text: &'a PathBuf,
    recipe: Recipe,
    #[serde(flatten)]
    result: Perplexity,
}

pub(crate) fn run(args: &EvalArgs, console: &Console) -> Result<(), Failure> {
    let (checkpoint, config) = model::open(&args.model, console)?;
    config
        .require_decoder("eval")
        .map_err(|error| Failure::reading_model(&args.model, error))?;
    let sequence_length = model::sequence_length(
        ("--sequence-length", args.sequence_length),
        &config,
        console,
    );
    tell_of_text(&args.text, args.text_key.as_deref(), console);
    let tokenizer = model::tokenizer(&checkpoint)?;
    let key = args
        .text_key
        .as_deref()
        .unwrap_or_else(|| args.recipe.text_key());
    let text = prepare_with_key(args.recipe, &args.text, key).map_err(Failure::reading)?;
    let mut tokens = tokenizer
        .encode_while(&text, &interrupt::not_requested)
        .map_err(Failure::reading)?;
    if let Some(limit) = args.recipe.token_limit(sequence_length) {
        tokens.truncate(limit);
    }
    interrupt::check()?;
    let llama = model::load(&checkpoint, &checkpoint.tensors())?;
    let bar = console.progress(0);
    let options = PerplexityOptions {
        sequence_length,
        limit: args.limit,
    };
    let result = perplexity(&llama, &tokens, &options, &mut |done, of, so_far| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("perplexity {so_far:.3}"));
        !interrupt::requested()
    });
    bar.finish_and_clear();
    interrupt::check()?;
    let report = Report {
        model: &args.model,
        text: &args.text,
        recipe: args.recipe,
        result: result.map_err(|error| Failure::reading_text(&args.text, error))?,
    };
    let Perplexity {
        perplexity,
        standard_error,
        chunks,
        sequence_length,
        ..
    } = &report.result;
    console.print(&format!(
        "perplexity {perplexity:.4} (standard error {standard_error:.4}) over {chunks} chunks of {sequence_length} tokens, recipe {}\n",
        args.recipe
    ))?;
    console.print_json(&report)
}
