//! `sparsegpt eval`: perplexity, or zero-shot tasks.

mod tasks;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use sparsegpt_models::agreement::{Agreement, agreement};
use sparsegpt_models::evaluate::{Perplexity, PerplexityOptions, perplexity};
use sparsegpt_models::text::Recipe;

use crate::console::Console;
use crate::evaluation_text::EvaluationText;
use crate::failure::Failure;
use crate::{interrupt, model};
use tasks::TaskFlags;

/// Flags of `eval`.
#[derive(Args, Debug)]
pub(crate) struct EvalArgs {
    /// A HuggingFace folder or a .gguf file; with --tasks also several, which are compared
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,

    /// Text, JSON lines or parquet to measure perplexity on
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "tasks",
        conflicts_with = "tasks"
    )]
    text: Option<PathBuf>,

    /// How the text is made of the file: raw, wikitext2, ptb or c4 [default: raw]. With --tasks: `harness`, prompts and
    /// tokens as in lm-evaluation-harness (the default), or `paper`, as the SparseGPT paper had them
    #[arg(long)]
    recipe: Option<String>,

    /// JSON key or parquet column that holds the text [default: that of the recipe's data set]
    #[arg(long, value_name = "KEY", conflicts_with = "tasks")]
    text_key: Option<String>,

    /// Tokens in a chunk [default: the lesser of 2048 and the model's longest]
    #[arg(long, value_name = "N", conflicts_with = "tasks")]
    sequence_length: Option<usize>,

    /// Also compare the distribution of every next token with that of this model, the dense one
    #[arg(long, value_name = "DENSE", conflicts_with = "tasks")]
    against: Option<PathBuf>,

    /// Evaluate this many chunks only, or questions of each task, from the start
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    #[command(flatten)]
    tasks: TaskFlags,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a PathBuf,
    text: &'a PathBuf,
    recipe: Recipe,
    #[serde(flatten)]
    result: Perplexity,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<Against<'a>>,
}

#[derive(Debug, Serialize)]
struct Against<'a> {
    model: &'a PathBuf,
    #[serde(flatten)]
    agreement: Agreement,
}

pub(crate) fn run(args: &EvalArgs, console: &Console) -> Result<(), Failure> {
    let recipe = args.recipe.as_deref();
    let (model, text) = match (args.models.as_slice(), &args.text) {
        ([model], Some(text)) => (model, text),
        (models, None) => return tasks::run(models, &args.tasks, recipe, args.limit, console),
        (_, Some(_)) => {
            return Err(Failure::usage(
                "several models are compared on --tasks; --text takes one",
            ));
        }
    };
    let recipe: Recipe = recipe.map(str::parse).transpose()?.unwrap_or_default();
    let (checkpoint, config) = model::open_decoder(model, "eval", console)?;
    let sequence_length = model::sequence_length(
        ("--sequence-length", args.sequence_length),
        &config,
        console,
    );
    let key = args.text_key.as_deref();
    let prepared = EvaluationText::read(text, recipe, key, sequence_length, console)?;
    let tokens = prepared.tokens(&model::tokenizer(&checkpoint)?)?;
    let pruned = model::load(&checkpoint, &checkpoint.tensors())?;
    let dense = args.against.as_ref().map(|path| {
        let (checkpoint, _) = model::open_decoder(path, "eval", console)?;
        model::load(&checkpoint, &checkpoint.tensors()).map(|dense| (path, dense))
    });
    let dense = dense.transpose()?;
    let bar = console.progress(0);
    let options = PerplexityOptions {
        sequence_length,
        limit: args.limit,
    };
    let result = perplexity(&pruned, &tokens, &options, &mut |done, of, so_far| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        bar.set_message(format!("perplexity {so_far:.3}"));
        !interrupt::requested()
    });
    let against = dense.map(|(path, dense)| {
        bar.set_position(0);
        let compared = agreement(&dense, &pruned, &tokens, &options, &mut |done, _| {
            bar.set_position(done as u64);
            bar.set_message("against the dense model");
            !interrupt::requested()
        });
        compared.map(|agreement| Against {
            model: path,
            agreement,
        })
    });
    bar.finish_and_clear();
    interrupt::check()?;
    let report = Report {
        model,
        text,
        recipe,
        result: result.map_err(|error| Failure::reading_text(text, error))?,
        against: against
            .transpose()
            .map_err(|error| Failure::reading_text(text, error))?,
    };
    let Perplexity {
        perplexity,
        standard_error,
        chunks,
        sequence_length,
        ..
    } = &report.result;
    console.print(&format!(
        "perplexity {perplexity:.4} (standard error {standard_error:.4}) over {chunks} chunks of {sequence_length} tokens, recipe {recipe}\n"
    ))?;
    if let Some(Against { model, agreement }) = &report.against {
        let (same, divergence) = (agreement.same_choice, agreement.divergence);
        console.print(&format!(
            "against {}: the same likeliest token at {:.2} ± {:.2} % of {} places, divergence {:.4} ± {:.4} nats\n",
            model.display(),
            100.0 * same.value,
            100.0 * same.standard_error,
            agreement.predictions,
            divergence.value,
            divergence.standard_error
        ))?;
    }
    console.print_json(&report)
}
