//! `sparsegpt compare`: one model, one calibration set, several methods; or one layer.

mod chart;
mod layer;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use sparsegpt::{Method, ModelReport, Pattern};
use sparsegpt_models::evaluate::{Perplexity, PerplexityOptions};
use sparsegpt_models::text::Recipe;

use super::prune::{self, PruneFlags};
use crate::console::Console;
use crate::evaluation_text::EvaluationText;
use crate::failure::Failure;
use crate::flags::with_recipe;
use crate::table::{Table, left, right};
use crate::tensor_file::check_output;
use crate::trial::Trial;
use crate::{bars, model};
use chart::{Bar, Subject};

/// The methods that are compared where none are named: all whose time is that of a few sweeps.
const USUAL: [Method; 5] = [
    Method::Magnitude,
    Method::Wanda,
    Method::Ria,
    Method::SparseGpt,
    Method::Quality,
];

/// Flags of `compare`.
#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// A HuggingFace folder or a .gguf file; or one layer: a .safetensors file as `sparsegpt layer` reads it
    model: PathBuf,

    /// The methods, separated by commas, or `all` [default: magnitude,wanda,ria,sparsegpt,quality; of one layer all that
    /// set weights in another way]
    #[arg(long, value_name = "METHODS")]
    methods: Option<String>,

    /// Text, JSON lines or parquet to measure perplexity on; without it only the layers are compared
    #[arg(long, value_name = "FILE", help_heading = "Perplexity")]
    text: Option<PathBuf>,

    /// How the text is made of the file: raw, wikitext2, ptb or c4 [default: raw]
    #[arg(long, help_heading = "Perplexity")]
    recipe: Option<Recipe>,

    /// Tokens in a chunk of the text [default: the lesser of 2048 and the model's longest]
    #[arg(long, value_name = "N", help_heading = "Perplexity")]
    chunk_length: Option<usize>,

    /// Evaluate this many chunks only, from the start
    #[arg(long, value_name = "CHUNKS", help_heading = "Perplexity")]
    limit: Option<usize>,

    /// One layer: also find the best weights on each mask, and compare the methods that treat every row by itself
    /// [default: where that takes a minute or so]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    row_by_row: Option<bool>,

    /// Draw the comparison as an SVG file
    #[arg(value_parser = crate::bars::name_ending_in("svg"), long, value_name = "FILE")]
    chart: Option<PathBuf>,

    /// A TOML file whose keys are the flags below (and threads); flags given here win. Paths in it are relative to it
    #[arg(long, value_name = "FILE")]
    recipe_file: Option<PathBuf>,

    #[command(flatten)]
    flags: PruneFlags,
}

/// One method with one pattern.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pattern: String,
    method: String,
    /// Geometric mean over the layers of tr(ΔW H ΔWᵀ) over tr(W H Wᵀ).
    relative_error: Option<f64>,
    /// The same on what was held out.
    held_out_error: Option<f64>,
    zeros: f64,
    /// Solving alone, without forward passes.
    solve_seconds: f64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<Perplexity>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    model: &'a PathBuf,
    text: Option<&'a PathBuf>,
    calibration_fingerprint: String,
    sequences: usize,
    held_out: usize,
    dense: Option<Perplexity>,
    rows: Vec<Row>,
}

pub(crate) fn run(
    args: &CompareArgs,
    threads: Option<usize>,
    console: &Console,
) -> Result<(), Failure> {
    let (flags, origin) = with_recipe(&args.flags, threads, args.recipe_file.as_deref())?;
    run_with(args, &flags, console).map_err(|failure| origin.tell(failure))
}

fn run_with(args: &CompareArgs, flags: &PruneFlags, console: &Console) -> Result<(), Failure> {
    let threads = flags.layer.start_threads()?;
    if let Some(path) = &args.chart {
        check_output(path, true)?;
    }
    if flags.layer.method.is_some() {
        return Err(Failure::usage(
            "--method names one: give --methods A,B,… to compare",
        ));
    }
    if layer::is_one(&args.model) {
        return layer::run(args, flags, threads, console);
    }
    if args.row_by_row.is_some() {
        return Err(Failure::usage(
            "--row-by-row is about one layer: give a .safetensors file with its weight",
        ));
    }
    refuse_other_zeros(flags)?;
    tell_unused(args, flags, console);
    let methods = methods(args.methods.as_deref(), &USUAL)?;
    let patterns = flags.layer.patterns()?;
    let (checkpoint, config) = model::open(&args.model, console)?;
    if args.text.is_some() {
        config
            .require_decoder("--text, which perplexity is measured on,")
            .map_err(|error| Failure::reading_model(&args.model, error))?;
    }
    // Everything is checked before anything is run.
    let mut plans = Vec::new();
    for &pattern in &patterns {
        for &method in &methods {
            let layer = flags.layer.of_method(method, &methods);
            let plan = flags.model_plan(&layer, pattern)?.measuring_all();
            prune::resolve(&checkpoint, &plan)?;
            plans.push((pattern, method, plan));
        }
    }
    let pruner = flags.layer.solver(threads, console)?;
    let calibration = prune::calibrate(&checkpoint, &config, flags, console)?;
    let sequence_length = match args.text {
        Some(_) => model::sequence_length(("--chunk-length", args.chunk_length), &config, console),
        None => 1,
    };
    let read = |file: &PathBuf| {
        let recipe = args.recipe.unwrap_or_default();
        let text = EvaluationText::read(file, recipe, None, sequence_length, console)?;
        text.tokens(&model::tokenizer(&checkpoint)?)
    };
    let text = args.text.as_ref().map(read).transpose()?;
    let steps = plans.len() + text.as_ref().map_or(0, |_| 1 + plans.len());
    let bar = console.progress(steps as u64);
    let trial = Trial {
        checkpoint: &checkpoint,
        pruner: &*pruner,
        calibration: &calibration.sequences,
        text: text.as_deref().unwrap_or_default(),
        options: PerplexityOptions {
            sequence_length,
            limit: args.limit,
        },
        bar: &bar,
    };
    let measured = text.is_some();
    let perplexity = |source: &_, what: &str| -> Result<Option<Perplexity>, Failure> {
        match measured {
            true => trial.measure(source, what).map(|(_, result)| Some(result)),
            false => Ok(None),
        }
    };
    let dense = perplexity(&checkpoint.tensors(), "dense")?;
    let mut rows = Vec::new();
    for (pattern, method, plan) in &plans {
        let what = format!("{method} {}", name(*pattern));
        let (run, pruned) = trial.prune(plan, &what)?;
        rows.push(Row {
            perplexity: perplexity(&pruned, &what)?,
            ..Row::of(*method, *pattern, &run)
        });
    }
    bar.finish_and_clear();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: &args.model,
        text: args.text.as_ref(),
        calibration_fingerprint: calibration.fingerprint(),
        sequences: calibration.sequences.len(),
        held_out: flags.held_out.unwrap_or(0),
        dense,
        rows,
    };
    console.print(&table(&report))?;
    if let Some(path) = &args.chart {
        let bars: Vec<Bar<'_>> = report.rows.iter().map(Row::bar).collect();
        let dense = report.dense.as_ref().map(|dense| dense.perplexity);
        bars::write(path, &chart::draw(&bars, Subject::Model { dense })?)?;
    }
    console.print_json(&report)
}

/// Refuses flags that would give layers other zeros than `--pattern`, rules and lists do.
fn refuse_other_zeros(flags: &PruneFlags) -> Result<(), Failure> {
    let others = [
        ("--masks", flags.masks.is_some()),
        ("--allocate", flags.plan.allocate.is_some()),
        ("--min-sparsity", flags.plan.min_sparsity.is_some()),
        ("--max-sparsity", flags.plan.max_sparsity.is_some()),
    ];
    match others.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((flag, _)) => Err(Failure::usage(format!(
            "{flag}: compare takes patterns alone; leave it out, or use it with `prune`"
        ))),
    }
}

fn tell_unused(args: &CompareArgs, flags: &PruneFlags, console: &Console) {
    if args.text.is_none() {
        let given = [
            ("--recipe", args.recipe.is_some()),
            ("--chunk-length", args.chunk_length.is_some()),
            ("--limit", args.limit.is_some()),
        ];
        console.none_read(&given, "perplexity is measured with --text alone");
    }
    let given = [
        ("--format", flags.format.is_some()),
        ("--dtype", flags.dtype.is_some()),
    ];
    console.none_read(&given, "compare writes no model");
}

fn methods(list: Option<&str>, usual: &[Method]) -> Result<Vec<Method>, Failure> {
    match list {
        None => Ok(usual.to_vec()),
        Some("all") => Ok(Method::ALL.to_vec()),
        Some(list) => {
            let names = list.split(',').map(str::trim);
            let methods: sparsegpt::Result<_> = names.map(str::parse).collect();
            methods.map_err(|error| Failure::usage(format!("--methods {list}: {error}")))
        }
    }
}

fn name(pattern: Option<Pattern>) -> String {
    pattern.map_or_else(|| "by rule".to_owned(), |pattern| pattern.to_string())
}

impl Row {
    fn bar(&self) -> Bar<'_> {
        Bar {
            pattern: &self.pattern,
            method: &self.method,
            relative_error: self.relative_error,
            held_out_error: self.held_out_error,
            seconds: self.solve_seconds,
            perplexity: self.perplexity.as_ref().map(|result| result.perplexity),
        }
    }

    fn of(method: Method, pattern: Option<Pattern>, run: &ModelReport) -> Self {
        Self {
            pattern: name(pattern),
            method: method.to_string(),
            relative_error: prune::mean_error(run, |layer| layer.relative_error),
            held_out_error: prune::mean_error(run, |layer| layer.held_out_error),
            zeros: run.zero_fraction(),
            solve_seconds: run.seconds.solve,
            seconds: run.seconds.total,
            perplexity: None,
        }
    }
}

fn table(report: &Report<'_>) -> String {
    let mut table = Table::new([
        left("pattern"),
        left("method"),
        right("error"),
        right("held out"),
        right("zeros"),
        right("solve s"),
        right("total s"),
        right("perplexity"),
    ]);
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.4}"));
    let perplexity = |result: &Option<Perplexity>| {
        result.as_ref().map_or_else(String::new, |result| {
            format!("{:.2} ± {:.2}", result.perplexity, result.standard_error)
        })
    };
    if report.dense.is_some() {
        let mut cells: [String; 8] = Default::default();
        cells[0] = "dense".to_owned();
        cells[7] = perplexity(&report.dense);
        table.row(cells);
    }
    for row in &report.rows {
        table.row([
            row.pattern.clone(),
            row.method.clone(),
            number(row.relative_error),
            number(row.held_out_error),
            crate::table::percent(row.zeros),
            format!("{:.1}", row.solve_seconds),
            format!("{:.1}", row.seconds),
            perplexity(&row.perplexity),
        ]);
    }
    format!(
        "{table}\nerror: geometric mean over the layers of the part of the output that is lost, on the calibration data\n"
    )
}
