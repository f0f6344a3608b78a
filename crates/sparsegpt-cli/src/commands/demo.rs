//! `sparsegpt demo`: the bundled model, dense and pruned several ways.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use sparsegpt::{LayerSettings, Method, ModelPlan, Pattern};
use sparsegpt_models::TensorSource;
use sparsegpt_models::calibration::{CalibrationOptions, draw};
use sparsegpt_models::evaluate::PerplexityOptions;
use sparsegpt_models::generate::GenerateOptions;
use sparsegpt_models::text::{Recipe, prepare};
use sparsegpt_models::tokenizer::Tokenizer;

use super::generate::continue_text;
use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::table::{self, Table, left, right};
use crate::trial::Trial;
use crate::{backend, interrupt, model};

/// The bundled model; its README.md says where it comes from.
const FILES: [(&str, &[u8]); 6] = [
    (
        "config.json",
        include_bytes!("../../assets/jargon/config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../../assets/jargon/model.safetensors"),
    ),
    (
        "tokenizer.json",
        include_bytes!("../../assets/jargon/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_bytes!("../../assets/jargon/tokenizer_config.json"),
    ),
    (
        CALIBRATION,
        include_bytes!("../../assets/jargon/calibration.txt"),
    ),
    (HELD_OUT, include_bytes!("../../assets/jargon/heldout.txt")),
];
const CALIBRATION: &str = "calibration.txt";
const HELD_OUT: &str = "heldout.txt";

/// The model's context; also that of the figures in its README.
const SEQUENCE_LENGTH: usize = 256;
const SAMPLES: usize = 64;
const SAMPLE_TOKENS: usize = 48;
/// Characters of the longest bar.
const BAR: f64 = 36.0;

/// Flags of `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Also prune with Wanda
    #[arg(long)]
    wanda: bool,

    /// The text that each model continues
    #[arg(long, default_value = "A hacker is")]
    prompt: String,

    /// Seed of the calibration windows and of the generated text
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Evaluate this many chunks of 256 tokens only
    #[arg(long, value_name = "CHUNKS")]
    limit: Option<usize>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Row {
    pattern: String,
    method: String,
    perplexity: f64,
    standard_error: f64,
    /// Perplexity above that of the dense model.
    rise: f64,
    /// Zeros over weights of the pruned layers.
    zeros: f64,
    /// Pruning, calibration's forward passes included.
    seconds: f64,
    sample: String,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    prompt: &'a str,
    seed: u64,
    calibration_fingerprint: String,
    rows: Vec<Row>,
    seconds: f64,
}

pub(crate) fn run(args: &DemoArgs, threads: usize, console: &Console) -> Result<(), Failure> {
    let start = Instant::now();
    let folder = unpack()?;
    interrupt::left_over(Some(folder.path().to_path_buf()));
    let (report, calibration_tokens) = compare(args, threads, folder.path(), console)?;
    let removed = folder.close();
    interrupt::left_over(None);
    removed.map_err(|error| {
        Failure::new(
            Exit::Work,
            format!("cannot remove the temporary folder: {error}"),
        )
    })?;
    let report = Report {
        seconds: start.elapsed().as_secs_f64(),
        ..report
    };
    console.print(&text(&report, &calibration_tokens))?;
    console.print_json(&report)
}

fn unpack() -> Result<tempfile::TempDir, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(
            Exit::Work,
            format!("cannot unpack the bundled model: {error}"),
        )
    };
    let folder = tempfile::Builder::new()
        .prefix("sparsegpt-demo-")
        .tempdir()
        .map_err(failed)?;
    for (name, bytes) in FILES {
        fs::write(folder.path().join(name), bytes).map_err(failed)?;
    }
    Ok(folder)
}

fn compare<'a>(
    args: &'a DemoArgs,
    threads: usize,
    folder: &Path,
    console: &Console,
) -> Result<(Report<'a>, String), Failure> {
    let (checkpoint, _) = model::open(folder, console)?;
    let tokenizer = model::tokenizer(&checkpoint)?;
    let options = CalibrationOptions {
        samples: Some(SAMPLES),
        sequence_length: Some(SEQUENCE_LENGTH),
        seed: args.seed,
        ..CalibrationOptions::default()
    };
    let path = |name: &str| -> PathBuf { folder.join(name) };
    let encode = |text: &str| tokenizer.encode_while(text, &interrupt::not_requested);
    let calibration = draw(&path(CALIBRATION), &encode, &options)?;
    let calibration_fingerprint = calibration.fingerprint();
    let held_out = encode(&prepare(Recipe::Raw, &path(HELD_OUT))?)?;
    let mut methods = vec![Method::Magnitude, Method::SparseGpt];
    if args.wanda {
        methods.insert(1, Method::Wanda);
    }
    let patterns = [Pattern::unstructured(0.5)?, Pattern::n_of_m(2, 4)?];
    let steps = 1 + 2 * patterns.len() * methods.len();
    let (pruner, bar) = (
        backend::cpu(threads, false)?,
        console.progress(steps as u64),
    );
    let bench = Bench {
        trial: Trial {
            checkpoint: &checkpoint,
            pruner: &*pruner,
            calibration: &calibration.sequences,
            text: &held_out,
            options: PerplexityOptions {
                sequence_length: SEQUENCE_LENGTH,
                limit: args.limit,
            },
            bar: &bar,
        },
        tokenizer: &tokenizer,
        args,
    };
    let mut rows = vec![bench.measure(&checkpoint.tensors(), None)?];
    for pattern in patterns {
        for &method in &methods {
            let row = bench.prune_and_measure(pattern, method, rows[0].perplexity)?;
            rows.push(row);
        }
    }
    bar.finish_and_clear();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        prompt: &args.prompt,
        seed: args.seed,
        calibration_fingerprint,
        rows,
        seconds: 0.0,
    };
    Ok((report, format!("{SAMPLES} x {SEQUENCE_LENGTH}")))
}

/// The bundled model and what it is measured with.
struct Bench<'a> {
    trial: Trial<'a>,
    tokenizer: &'a Tokenizer,
    args: &'a DemoArgs,
}

impl Bench<'_> {
    fn prune_and_measure(
        &self,
        pattern: Pattern,
        method: Method,
        dense: f64,
    ) -> Result<Row, Failure> {
        let plan = ModelPlan::new(LayerSettings::new(pattern).with_method(method));
        let (run, pruned) = self
            .trial
            .prune(&plan, &format!("pruning: {method}, {pattern}"))?;
        let row = self.measure(&pruned, Some(dense))?;
        Ok(Row {
            pattern: pattern.to_string(),
            method: method.to_string(),
            zeros: run.zero_fraction(),
            seconds: run.seconds.total,
            ..row
        })
    }

    /// Perplexity and a sample; the perplexity of the dense model is `None` for itself.
    fn measure(&self, source: &Arc<dyn TensorSource>, dense: Option<f64>) -> Result<Row, Failure> {
        let (llama, result) = self.trial.measure(source, "measuring")?;
        let options = GenerateOptions {
            max_new_tokens: SAMPLE_TOKENS,
            temperature: 0.7,
            top_k: Some(40),
            seed: self.args.seed,
            eos: self.tokenizer.eos().to_vec(),
            ..GenerateOptions::default()
        };
        let prompt = self.tokenizer.encode(&self.args.prompt)?;
        let samples = continue_text(
            &llama,
            self.tokenizer,
            &prompt,
            &options,
            1,
            &mut |_| Ok(()),
        )?;
        Ok(Row {
            pattern: "dense".to_owned(),
            method: String::new(),
            perplexity: result.perplexity,
            standard_error: result.standard_error,
            rise: dense.map_or(0.0, |dense| result.perplexity - dense),
            zeros: 0.0,
            seconds: 0.0,
            sample: samples.into_iter().map(|sample| sample.text).collect(),
        })
    }
}

fn text(report: &Report<'_>, calibration: &str) -> String {
    let mut text = format!(
        "The bundled LLaMA-style model of 2.2 M parameters, pruned without retraining after a look at {calibration}\n\
         tokens of its training text. Perplexity on held-out text; lower is better.\n\n"
    );
    let mut rows = Table::new([
        left("pattern"),
        left("method"),
        right("perplexity"),
        right("rise"),
        right("zeros"),
        right("seconds"),
    ]);
    for row in &report.rows {
        rows.row([
            row.pattern.clone(),
            row.method.clone(),
            format!("{:.2}", row.perplexity),
            if row.method.is_empty() {
                String::new()
            } else {
                format!("{:+.2}", row.rise)
            },
            table::percent(row.zeros),
            format!("{:.2}", row.seconds),
        ]);
    }
    let _ = writeln!(text, "{rows}");
    let _ = writeln!(text, "Rise of the perplexity over the dense model:");
    let highest = report
        .rows
        .iter()
        .map(|row| row.rise)
        .fold(f64::MIN_POSITIVE, f64::max);
    for row in report.rows.iter().filter(|row| !row.method.is_empty()) {
        let bar = "#".repeat((row.rise.max(0.0) / highest * BAR).round() as usize);
        let _ = writeln!(
            text,
            "  {:<4} {:<10} {bar} {:+.2}",
            row.pattern, row.method, row.rise
        );
    }
    let _ = writeln!(
        text,
        "\nEach continues {:?} (seed {}):",
        report.prompt, report.seed
    );
    for row in &report.rows {
        let name = format!("{} {}", row.pattern, row.method);
        let sample = row.sample.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            text,
            "\n[{}]\n  {} {sample}",
            name.trim_end(),
            report.prompt
        );
    }
    let _ = writeln!(
        text,
        "\n{:.1} seconds in all. With weights of your own: sparsegpt prune --help",
        report.seconds
    );
    text
}
