//! `sparsegpt prune`: a checkpoint in, a pruned checkpoint out.

mod dry_run;
mod progress;
mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparsegpt::driver::PlannedLayer;
use sparsegpt::{LayerPruner, ModelPlan, ModelReport, Pattern, prune_model};
use sparsegpt_models::calibration::{
    Calibration, CalibrationMode, CalibrationOptions, DEFAULT_SAMPLES, draw,
};
use sparsegpt_models::checkpoint::{
    Checkpoint, CheckpointWriter, ExpectedLayer, OutputOptions, Overlay, WrittenCheckpoint,
    parse_dtype,
};
use sparsegpt_models::decoder::{LlamaAdapter, LlamaConfig};
use sparsegpt_models::text::DEFAULT_TEXT_KEY;

use crate::console::Console;
use crate::cost::CalibrationSize;
use crate::failure::{Exit, Failure};
use crate::flags::{LayerFlags, PlanFlags, with_recipe};
use crate::{interrupt, model};

/// What was done, in the output folder.
pub(crate) const REPORT_FILE: &str = "sparsegpt_report.json";

/// Flags of `prune`.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// A HuggingFace folder or a .gguf file
    model: PathBuf,

    /// The folder to write; it must not exist or be empty
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,

    /// Replace an output folder that is not empty, once the new one is complete and checked
    #[arg(long)]
    force: bool,

    /// Only print the plan: layers, shapes, patterns, estimates of memory and time
    #[arg(long)]
    dry_run: bool,

    /// A TOML file whose keys are the flags below (and threads); flags given here win
    #[arg(long, value_name = "FILE")]
    recipe_file: Option<PathBuf>,

    #[command(flatten)]
    flags: PruneFlags,
}

/// What a recipe file can say too.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct PruneFlags {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) layer: LayerFlags,

    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) plan: PlanFlags,

    /// Text, JSON lines or parquet to calibrate on, or token ids (.safetensors, tensor calibration_tokens
    /// or tokens); not needed with --method magnitude
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    pub(crate) calibration: Option<PathBuf>,

    /// text: random windows of the whole file (default); lines: within documents long enough
    #[arg(long, value_name = "MODE", help_heading = "Calibration")]
    pub(crate) calibration_mode: Option<CalibrationMode>,

    /// JSON key or parquet column that holds the text [default: text]
    #[arg(long, value_name = "KEY", help_heading = "Calibration")]
    pub(crate) text_key: Option<String>,

    /// Calibration sequences [default: 128, or all ready token ids]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub(crate) samples: Option<usize>,

    /// Tokens in each [default: the lesser of 2048 and the model's longest, or that of the token ids]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub(crate) sequence_length: Option<usize>,

    /// Seed of the draw [default: 0]
    #[arg(long, help_heading = "Calibration")]
    pub(crate) seed: Option<u64>,

    /// Type of the written weights: f32, bf16 or f16 [default: the source's; f32 for .gguf]
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<String>,

    /// The flag of this name belongs to all commands.
    #[arg(skip)]
    pub(crate) threads: Option<usize>,
}

/// What `sparsegpt_report.json` and `--json` hold.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    model: PathBuf,
    /// The flags used, from the command line and the recipe file.
    settings: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe_file: Option<PathBuf>,
    calibration: Option<CalibrationReport>,
    weights: u64,
    zeros: u64,
    #[serde(flatten)]
    run: ModelReport,
}

#[derive(Debug, Serialize)]
struct CalibrationReport {
    source: String,
    seed: u64,
    sequences: usize,
    sequence_length: usize,
    tokens_available: usize,
    fingerprint: String,
}

/// The same with where the result lies, for `--json`.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    report: &'a Report,
    output: &'a WrittenCheckpoint,
}

pub(crate) fn run(
    args: Box<PruneArgs>,
    threads: Option<usize>,
    console: &Console,
) -> Result<(), Failure> {
    let given = PruneFlags {
        threads,
        ..args.flags.clone()
    };
    let flags = with_recipe(&given, args.recipe_file.as_deref())?;
    let threads = flags.threads.unwrap_or(0);
    model::use_threads(threads)?;
    let dtype = flags.dtype.as_deref().map(parse_dtype).transpose()?;
    let plan = flags.plan.plan(&flags.layer)?;
    let calibrated = flags.layer.method().needs_hessian();
    if calibrated && flags.calibration.is_none() {
        return Err(Failure::usage(format!(
            "--method {} needs calibration data: give --calibration FILE (text, JSON lines, parquet or token ids)",
            flags.layer.method()
        )));
    }
    let (checkpoint, config) = model::open(&args.model)?;
    let planned = resolve(&checkpoint, &plan)?;
    let pruner = model::solver(threads, flags.layer.bf16_products())?;
    if args.dry_run {
        let size = planned_size(&flags, &config, console)?;
        return dry_run::run(&checkpoint, &planned, &config, size, &*pruner, console);
    }
    let Some(out) = &args.out else {
        return Err(Failure::usage("--out DIR is missing"));
    };

    let options = OutputOptions {
        dtype,
        force: args.force,
    };
    let mut writer = checkpoint
        .create_output(out, &options)
        .map_err(Failure::writing)?;
    interrupt::left_over(Some(writer.staging().to_path_buf()));
    tell_leftovers(&writer, console);
    let calibration = if calibrated {
        Some(calibrate(&checkpoint, &config, &flags, console)?)
    } else {
        if flags.calibration.is_some() {
            console.note("--calibration is not read: magnitude needs none");
        }
        None
    };
    let run = prune(
        &checkpoint,
        &mut writer,
        (&planned, &plan),
        &*pruner,
        calibration.as_ref(),
        console,
    )?;
    interrupt::check()?;

    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: args.model.clone(),
        settings: used(&flags)?,
        recipe_file: args.recipe_file.clone(),
        calibration: calibration.map(|calibration| CalibrationReport {
            source: calibration.source.clone(),
            seed: flags.seed.unwrap_or(0),
            sequences: calibration.sequences.len(),
            sequence_length: calibration.sequence_length(),
            tokens_available: calibration.tokens_available,
            fingerprint: calibration.fingerprint(),
        }),
        weights: run.weights(),
        zeros: run.zeros(),
        run,
    };
    write_report(writer.staging(), &report)?;
    console.note("writing and checking the rest of the checkpoint");
    let written = writer
        .finish(&expected(&report.run))
        .map_err(Failure::writing)?;
    interrupt::left_over(None);
    console.print(&summary::of(&report, &written, &checkpoint))?;
    console.print_json(&Outcome {
        report: &report,
        output: &written,
    })
}

/// Says what runs to the same place had left when they were killed.
fn tell_leftovers(writer: &CheckpointWriter, console: &Console) {
    for folder in &writer.leftovers().removed {
        console.note(&format!(
            "{}: left by a run that was killed; removed",
            folder.display()
        ));
    }
    for folder in &writer.leftovers().set_aside {
        console.note(&format!(
            "{}: the output of an earlier run, set aside by one that was killed; move it or remove it",
            folder.display()
        ));
    }
}

/// The plan for this model's layers; reads no weights.
fn resolve(checkpoint: &Checkpoint, plan: &ModelPlan) -> Result<Vec<Vec<PlannedLayer>>, Failure> {
    let mut sink = Overlay::new(checkpoint.tensors());
    let adapter = LlamaAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut sink)
        .map_err(|error| Failure::reading_model(checkpoint.path(), error))?;
    Ok(plan.resolve(&adapter)?)
}

/// Whether a calibration file holds token ids, which then have a length of their own.
fn is_ready(file: Option<&PathBuf>) -> bool {
    file.and_then(|path| path.extension())
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

fn calibrate(
    checkpoint: &Checkpoint,
    config: &LlamaConfig,
    flags: &PruneFlags,
    console: &Console,
) -> Result<Calibration, Failure> {
    let Some(file) = &flags.calibration else {
        return Err(Failure::usage("--calibration FILE is missing"));
    };
    let ready = is_ready(Some(file));
    let sequence_length = if ready {
        flags.sequence_length
    } else {
        Some(model::sequence_length(
            flags.sequence_length,
            config,
            console,
        ))
    };
    let options = CalibrationOptions {
        samples: flags.samples,
        sequence_length,
        seed: flags.seed.unwrap_or(0),
        mode: flags.calibration_mode.unwrap_or_default(),
        text_key: flags
            .text_key
            .clone()
            .unwrap_or_else(|| DEFAULT_TEXT_KEY.to_owned()),
    };
    let calibration = if ready {
        draw(file, &|_| Ok(Vec::new()), &options)
    } else {
        let tokenizer = model::tokenizer(checkpoint)?;
        draw(file, &|text| tokenizer.encode(text), &options)
    }
    .map_err(Failure::reading)?;
    calibration.check_vocabulary(config.vocab_size)?;
    check_length(calibration.sequence_length(), config)?;
    interrupt::check()?;
    Ok(calibration)
}

fn check_length(length: usize, config: &LlamaConfig) -> Result<(), Failure> {
    if length > config.max_positions {
        return Err(Failure::usage(format!(
            "--sequence-length: the calibration sequences have {length} tokens, the model takes at most {}",
            config.max_positions
        )));
    }
    Ok(())
}

/// The calibration set's size as far as the flags tell it; a text is not read for it.
fn planned_size(
    flags: &PruneFlags,
    config: &LlamaConfig,
    console: &Console,
) -> Result<CalibrationSize, Failure> {
    if !flags.layer.method().needs_hessian() {
        return Ok(CalibrationSize {
            sequences: 0,
            length: 0,
        });
    }
    if is_ready(flags.calibration.as_ref())
        && let Some(file) = &flags.calibration
    {
        let options = CalibrationOptions {
            samples: flags.samples,
            sequence_length: flags.sequence_length,
            ..CalibrationOptions::default()
        };
        let ids = draw(file, &|_| Ok(Vec::new()), &options).map_err(Failure::reading)?;
        check_length(ids.sequence_length(), config)?;
        return Ok(CalibrationSize {
            sequences: ids.sequences.len(),
            length: ids.sequence_length(),
        });
    }
    let length = model::sequence_length(flags.sequence_length, config, console);
    check_length(length, config)?;
    Ok(CalibrationSize {
        sequences: flags.samples.unwrap_or(DEFAULT_SAMPLES),
        length,
    })
}

fn prune(
    checkpoint: &Checkpoint,
    writer: &mut CheckpointWriter,
    (planned, plan): (&[Vec<PlannedLayer>], &ModelPlan),
    pruner: &dyn LayerPruner,
    calibration: Option<&Calibration>,
    console: &Console,
) -> Result<ModelReport, Failure> {
    let mut adapter = LlamaAdapter::new(checkpoint.config(), checkpoint.tensors(), writer)
        .map_err(|error| Failure::reading_model(checkpoint.path(), error))?;
    let sequences = calibration.map_or(&[][..], |calibration| &calibration.sequences);
    let size = CalibrationSize {
        sequences: sequences.len(),
        length: calibration.map_or(0, Calibration::sequence_length),
    };
    let mut progress = progress::Progress::new(planned, adapter.config(), size, console);
    let result = prune_model(&mut adapter, pruner, sequences, plan, &mut |event| {
        progress.show(event)
    });
    progress.finish();
    result.map_err(|interrupted| {
        let finished = interrupted.finished.layers.len();
        let failure = Failure::from(interrupted.error);
        if failure.exit() != Exit::Interrupted {
            console.note(&format!(
                "{finished} layers were finished before; nothing was written"
            ));
        }
        failure
    })
}

/// The flags that were given, here or in the recipe file.
fn used(flags: &PruneFlags) -> Result<Value, Failure> {
    let all = serde_json::to_value(flags).map_err(|error| Failure::new(Exit::Work, error))?;
    let given: Map<String, Value> = all
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Ok(given.into())
}

/// What the written file is checked for.
fn expected(report: &ModelReport) -> Vec<ExpectedLayer> {
    let layers = report.layers.iter();
    layers
        .map(|layer| ExpectedLayer {
            tensor: format!("{}.weight", layer.layer),
            zeros: layer.zeros,
            pattern: match layer.pattern.parse() {
                Ok(Pattern::NofM { zeros, group }) => Some((zeros, group)),
                _ => None,
            },
        })
        .collect()
}

/// Into the folder that is not yet in place, so that report and weights appear together.
fn write_report(folder: &Path, report: &Report) -> Result<(), Failure> {
    let path = folder.join(REPORT_FILE);
    let text =
        serde_json::to_string_pretty(report).map_err(|error| Failure::new(Exit::Work, error))?;
    fs::write(&path, text + "\n")
        .map_err(|error| Failure::new(Exit::Work, format!("{}: {error}", path.display())))
}
