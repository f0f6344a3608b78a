//! `sparsegpt report`: a page about a pruning run.

mod chart;
mod measure;
mod page;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use sparsegpt_models::staging::StagedFile;
use sparsegpt_models::text::Recipe;

use super::prune::{REPORT_FILE, RunReport};
use crate::console::Console;
use crate::failure::Failure;
use crate::{bars, model};
use measure::Measured;

/// Flags of `report`.
#[derive(Args, Debug)]
pub(crate) struct ReportArgs {
    /// Folders that `prune` wrote, one or several to stand side by side, or their sparsegpt_report.json. The folder of a run of
    /// several patterns stands for all of them
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// The page to write: one HTML file, which loads nothing from elsewhere
    #[arg(value_parser = crate::bars::name_ending_in("html"), long, value_name = "FILE")]
    out: PathBuf,

    /// The model that was pruned, to be measured beside
    #[arg(long, value_name = "MODEL", help_heading = "Measuring")]
    dense: Option<PathBuf>,

    /// Text, JSON lines or parquet to measure perplexity on
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    text: Option<PathBuf>,

    /// How the text is made of the file: raw, wikitext2, ptb or c4 [default: raw]
    #[arg(long, requires = "text", help_heading = "Measuring")]
    recipe: Option<Recipe>,

    /// Tokens in a chunk of the text [default: the lesser of 2048 and the model's longest]
    #[arg(long, value_name = "N", requires = "text", help_heading = "Measuring")]
    sequence_length: Option<usize>,

    /// Evaluate this many chunks only, from the start
    #[arg(
        long,
        value_name = "CHUNKS",
        requires = "text",
        help_heading = "Measuring"
    )]
    limit: Option<usize>,

    /// A text that every model continues. Can be given several times
    #[arg(long, value_name = "TEXT", help_heading = "Samples of text")]
    prompt: Vec<String>,

    /// New tokens of a sample at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        requires = "prompt",
        help_heading = "Samples of text"
    )]
    max_new_tokens: usize,

    /// 0 takes the likeliest token each time; otherwise tokens are drawn, the more freely the higher
    #[arg(
        long,
        default_value_t = 0.0,
        requires = "prompt",
        allow_negative_numbers = true,
        help_heading = "Samples of text"
    )]
    temperature: f64,

    /// Seed of the draw
    #[arg(
        long,
        default_value_t = 0,
        requires = "prompt",
        help_heading = "Samples of text"
    )]
    seed: u64,
}

/// A run whose report was read.
#[derive(Debug)]
struct Run {
    name: String,
    report: RunReport,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    version: &'static str,
    out: &'a Path,
    runs: Vec<&'a str>,
    measured: &'a [Measured],
}

pub(crate) fn run(args: &ReportArgs, console: &Console) -> Result<(), Failure> {
    let paths = runs(&args.runs)?;
    let mut runs = Vec::new();
    for (path, name) in paths.iter().zip(model::names(&paths)) {
        let report = RunReport::read(&report_file(path))?;
        runs.push(Run { name, report });
    }
    let reads_out = |path: &PathBuf| {
        let report = report_file(path).canonicalize();
        report.is_ok_and(|report| args.out.canonicalize().is_ok_and(|out| out == report))
    };
    if let Some(run) = paths.iter().find(|path| reads_out(path)) {
        return Err(Failure::usage(format!(
            "--out {}: is the report of {}, which it would replace; choose another file",
            args.out.display(),
            run.display()
        )));
    }
    // Measuring takes long: a place that cannot be written to is found before.
    let file = StagedFile::create(&args.out).map_err(Failure::writing)?;
    let measured = match args.text.is_some() || !args.prompt.is_empty() {
        true => measure::measure(args, models(args, &paths, &runs)?, console)?,
        false => {
            let given = [("--dense", args.dense.is_some())];
            console.none_read(&given, "models are run for --text and --prompt alone");
            Vec::new()
        }
    };
    bars::finish(file, &page::page(args, &runs, &measured))?;
    console.print(&format!("written: {}\n", args.out.display()))?;
    console.print_json(&Outcome {
        version: env!("CARGO_PKG_VERSION"),
        out: &args.out,
        runs: runs.iter().map(|run| run.name.as_str()).collect(),
        measured: &measured,
    })
}

fn report_file(run: &Path) -> PathBuf {
    match run.is_dir() {
        true => run.join(REPORT_FILE),
        false => run.to_path_buf(),
    }
}

/// The runs that are meant: of a folder of several patterns, all.
fn runs(given: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut runs = Vec::new();
    for path in given {
        if !path.is_dir() || path.join(REPORT_FILE).is_file() {
            runs.push(path.clone());
            continue;
        }
        let failed = |error| Failure::file(path, format!("cannot list the folder: {error}"));
        let mut inside = Vec::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A run's folder before it has its name.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let folder = entry.path();
            if folder.join(REPORT_FILE).is_file() {
                inside.push(folder);
            }
        }
        if inside.is_empty() {
            return Err(Failure::file(
                path,
                format!("holds no {REPORT_FILE}; expected a folder that `prune` wrote"),
            ));
        }
        inside.sort();
        runs.append(&mut inside);
    }
    Ok(runs)
}

/// The models to run, the dense one first.
fn models(
    args: &ReportArgs,
    paths: &[PathBuf],
    runs: &[Run],
) -> Result<Vec<(String, PathBuf)>, Failure> {
    let dense = args.dense.iter();
    let mut models: Vec<_> = dense
        .map(|path| (page::DENSE.to_owned(), path.clone()))
        .collect();
    for (path, run) in paths.iter().zip(runs) {
        if !path.is_dir() {
            return Err(Failure::usage(format!(
                "{}: a report alone holds no weights to measure; give the folder that it came in, or leave out --text and --prompt",
                path.display()
            )));
        }
        models.push((run.name.clone(), path.clone()));
    }
    Ok(models)
}
