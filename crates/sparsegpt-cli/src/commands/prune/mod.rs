//! `sparsegpt prune`: a checkpoint in, a pruned checkpoint out, or one for each of several patterns.

mod allocation;
mod dry_run;
mod format;
mod keep;
mod masks;
mod pretraining;
mod progress;
mod report;
mod summary;
mod unused;
mod variants;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparsegpt::driver::PlannedLayer;
use sparsegpt::{LayerPruner, ModelPlan, ModelReport, Pattern, Sparsity, prune_model_resumable};
use sparsegpt_models::calibration::{
    self, Calibration, CalibrationMode, CalibrationOptions, DEFAULT_SAMPLES,
    DEFAULT_SEQUENCE_LENGTH, draw, holds_token_ids,
};
use sparsegpt_models::checkpoint::{
    Checkpoint, CheckpointWriter, ExpectedLayer, OutputOptions, Overlay, PackedFormat,
    PackedScheme, PackedShape, WeightSink, WrittenCheckpoint, parse_dtype,
};
use sparsegpt_models::decoder::TransformerConfig;
use sparsegpt_models::resume::StateFolder;
use sparsegpt_models::text::DEFAULT_TEXT_KEY;

use crate::console::Console;
use crate::cost::{CalibrationSize, GivenRate, Machine, Variants};
use crate::failure::{Exit, Failure};
use crate::flags::{Allocating, Flags, LayerFlags, PlanFlags, with_recipe};
use crate::tensor_file::check_output;
use crate::{interrupt, model};
use format::{NotStored, OutputFormat};
use keep::Keeper;
use progress::Progress;
use report::CalibrationReport;

pub(crate) use report::{REPORT_FILE, RunReport};
pub(crate) use summary::{by_kind, kind, mean_error};
pub(crate) use unused::tell_of_text;

/// Flags of `prune`.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// A HuggingFace folder or a .gguf file; with --dry-run a config.json, or a folder with one and no weights, will do
    model: PathBuf,

    /// The folder to write; it must not exist or be empty. With several --pattern it gets one checkpoint folder for
    /// each (50pct, row-50pct, 2-4), and each block is calibrated on the dense model's activations, not on those of
    /// the pruned blocks before it: results differ from those of single runs
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,

    /// Replace an output folder that is not empty, once the new one is complete and checked
    #[arg(long)]
    force: bool,

    /// Start over, and remove the blocks that an earlier run to the same --out has left finished. Without it the same
    /// command goes on from them
    #[arg(long)]
    fresh: bool,

    /// Also write which weights were kept: a safetensors file with a tensor of u8 for each treated layer, by its name, 1 = kept
    #[arg(long, value_name = "FILE")]
    save_masks: Option<PathBuf>,

    /// Only print the plan: layers, shapes, patterns, and estimates of memory, time by stage and sizes on disk
    #[arg(long)]
    dry_run: bool,

    /// With --dry-run: the machine to plan for, here (rates measured at once) or h100 (this machine with a GPU of 80 GB, at
    /// the rates measured on an H200) [default: here]
    #[arg(
        long,
        value_name = "MACHINE",
        requires = "dry_run",
        hide_possible_values = true
    )]
    plan_for: Option<Machine>,

    /// With --dry-run: rates in place of those of --plan-for, as in forward=110G,files=2G. Operations a second: forward, hessian,
    /// factor, products; weights a second: sweep, transfer; bytes a second: upload, files (1G unless given); bytes: memory
    /// (of a device)
    #[arg(
        long,
        value_name = "NAME=NUMBER",
        requires = "dry_run",
        value_delimiter = ','
    )]
    plan_rates: Vec<GivenRate>,

    /// A TOML file whose keys are the flags below (and threads); flags given here win. Paths in it are relative to it
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

    /// Hide this share of the calibration tokens, as in the pre-training of an encoder (BERT, RoBERTa) [default: 15% of
    /// text, 0% of ready token ids]
    #[arg(long, value_name = "PERCENT", help_heading = "Calibration")]
    #[serde(with = "crate::flags::percentage")]
    pub(crate) mask_rate: Option<Sparsity>,

    /// The token that stands for a hidden one [default: the tokenizer's]
    #[arg(long, value_name = "ID", help_heading = "Calibration")]
    pub(crate) mask_token: Option<u32>,

    /// Keep the last N calibration sequences out of all Hessians; the error on them judges each layer [default: 0]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub(crate) held_out: Option<usize>,

    /// Zeros from such a file as --save-masks writes, in place of a pattern: layers that it does not name are left as they
    /// are. With an unstructured --pattern each mask is extended to that sparsity
    #[arg(long, value_name = "FILE", help_heading = "Layers")]
    pub(crate) masks: Option<PathBuf>,

    /// Layout of the result: huggingface (ordinary weights), or, with --bits, gptq (version 1) or compressed-tensors
    /// (pack-quantized), as other engines load them [default: huggingface]
    #[arg(
        long,
        value_name = "FORMAT",
        hide_possible_values = true,
        help_heading = "Quantization"
    )]
    pub(crate) format: Option<OutputFormat>,

    /// Type of the written weights: f32, bf16 or f16 [default: the source's; f32 for .gguf]
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<String>,
}

impl Flags for PruneFlags {
    fn layer_mut(&mut self) -> &mut LayerFlags {
        &mut self.layer
    }
}

impl PruneFlags {
    /// The plan for one pattern, with these flags for the layers.
    pub(super) fn model_plan(
        &self,
        layer: &LayerFlags,
        pattern: Option<Pattern>,
    ) -> Result<ModelPlan, Failure> {
        let plan = self.plan.plan(layer, pattern)?;
        Ok(plan.with_held_out(self.held_out.unwrap_or(0)))
    }

    /// Whether there is a calibration set where one is needed.
    fn check_calibration(&self) -> Result<(), Failure> {
        if !self.need_calibration() || self.calibration.is_some() {
            return Ok(());
        }
        let who = if self.layer.parts().needs_hessian() {
            format!("--method {}", self.layer.method())
        } else {
            "--allocate owl".to_owned()
        };
        Err(Failure::usage(format!(
            "{who} needs calibration data: give --calibration FILE (text, JSON lines, parquet or token ids)"
        )))
    }

    fn need_calibration(&self) -> bool {
        self.layer.parts().needs_hessian() || self.plan.allocation_needs_calibration()
    }
}

/// The same with where the result lies, for `--json`.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    report: &'a RunReport,
    output: &'a WrittenCheckpoint,
}

/// What is to be done, checked as far as that goes without reading a weight.
struct Job<'a> {
    args: &'a PruneArgs,
    flags: &'a PruneFlags,
    checkpoint: &'a Checkpoint,
    config: &'a TransformerConfig,
    /// One a variant.
    plans: &'a [ModelPlan],
    planned: &'a [Vec<Vec<PlannedLayer>>],
    /// How each plan's zeros are divided among the layers, where that is asked for.
    allocating: &'a [Option<Allocating>],
    /// Where layers are packed: the scheme, and which.
    packing: Option<(PackedScheme, Vec<PackedShape>)>,
    pruner: &'a dyn LayerPruner,
    console: &'a Console,
}

pub(crate) fn run(
    args: Box<PruneArgs>,
    threads: Option<usize>,
    console: &Console,
) -> Result<(), Failure> {
    let (flags, origin) = with_recipe(&args.flags, threads, args.recipe_file.as_deref())?;
    run_with(&args, flags, console).map_err(|failure| origin.tell(failure))
}

fn run_with(args: &PruneArgs, mut flags: PruneFlags, console: &Console) -> Result<(), Failure> {
    let is_config = args.model.extension().is_some_and(|end| end == "json");
    if !args.dry_run && is_config && args.model.is_file() {
        return Err(Failure::file(
            &args.model,
            "a configuration holds no weights to prune; give the model's folder, or --dry-run for a plan",
        ));
    }
    let threads = flags.layer.start_threads()?;
    let dtype = flags.dtype.as_deref().map(parse_dtype).transpose()?;
    flags.layer.least_zero = flags.packed()? == Some(PackedFormat::Gptq);
    let patterns = flags.layer.patterns()?;
    if patterns.len() > 1
        && let Some(flag) = flags.plan.of_single_runs()
    {
        return Err(Failure::usage(format!(
            "{flag} needs runs of their own: with several --pattern all blocks stay dense; give one pattern"
        )));
    }
    if let (Some(path), 2..) = (&args.save_masks, patterns.len()) {
        return Err(Failure::usage(format!(
            "--save-masks {}: the masks of one --pattern only",
            path.display()
        )));
    }
    if let Some(path) = &args.save_masks {
        // A run that goes on may have written them before it was killed; it compares what it finds.
        let goes_on = !args.fresh
            && path.is_file()
            && args
                .out
                .as_ref()
                .is_some_and(|out| StateFolder::place(out).is_dir());
        check_output(path, args.force || goes_on)?;
    }
    let masks = flags.masks.as_deref().map(masks::Masks::open).transpose()?;
    // What can be known before the model is looked at.
    let mut plans = match &masks {
        Some(_) => Vec::new(),
        None => patterns
            .iter()
            .map(|&pattern| flags.model_plan(&flags.layer, pattern))
            .collect::<Result<Vec<_>, _>>()?,
    };
    let allocating = patterns
        .iter()
        .map(|&pattern| flags.plan.allocating(&flags.layer, pattern))
        .collect::<Result<Vec<_>, _>>()?;
    unused::tell(&flags, console);
    let (checkpoint, config) = match args.dry_run {
        // A plan without weights needs no text either.
        true => model::open_for_plan(&args.model, console).and_then(|opened| {
            match opened.0.is_outline() {
                true => Ok(opened),
                false => flags.check_calibration().map(|()| opened),
            }
        })?,
        false => {
            flags.check_calibration()?;
            model::open(&args.model, console)?
        }
    };
    if let Some(masks) = &masks {
        plans = vec![masks.plan(&checkpoint, &flags, &patterns, console)?];
    }
    let planned = plans
        .iter()
        .map(|plan| resolve(&checkpoint, plan))
        .collect::<Result<Vec<_>, _>>()?;
    let packing = flags.packing(&config, &planned)?;
    let pruner = flags.layer.solver(threads, console)?;
    let job = Job {
        args,
        flags: &flags,
        checkpoint: &checkpoint,
        config: &config,
        plans: &plans,
        planned: &planned,
        allocating: &allocating,
        packing,
        pruner: &*pruner,
        console,
    };
    if let Some(out) = &args.out {
        spares_inputs(out, &flags)?;
    }
    if args.dry_run {
        if let Some(out) = &args.out {
            checkpoint
                .check_output(out, args.force)
                .map_err(Failure::writing)?;
        }
        return dry_run::run(&job);
    }
    let Some(out) = &args.out else {
        return Err(Failure::usage("--out DIR is missing"));
    };
    let options = OutputOptions {
        dtype,
        force: args.force,
    };
    match job.plans {
        [plan] => job.write_one(plan, out, &options),
        _ => variants::write(&job, out, &options),
    }
}

/// Refuses an output folder whose replacement would remove files that the run reads.
fn spares_inputs(out: &Path, flags: &PruneFlags) -> Result<(), Failure> {
    let Ok(folder) = out.canonicalize() else {
        return Ok(());
    };
    for (flag, path) in [
        ("--calibration", &flags.calibration),
        ("--masks", &flags.masks),
    ] {
        let lies_in = |path: &PathBuf| {
            path.canonicalize()
                .is_ok_and(|path| path.starts_with(&folder))
        };
        if let Some(path) = path.as_ref().filter(|path| lies_in(path)) {
            return Err(Failure::usage(format!(
                "--out {}: {flag} {} lies in it, and would be removed; choose another folder",
                out.display(),
                path.display()
            )));
        }
    }
    Ok(())
}

/// The plan for this model's layers; reads no weights.
pub(super) fn resolve(
    checkpoint: &Checkpoint,
    plan: &ModelPlan,
) -> Result<Vec<Vec<PlannedLayer>>, Failure> {
    let mut sink = Overlay::new(checkpoint.tensors());
    let adapter = model::adapter(checkpoint, &mut sink)?;
    Ok(plan.resolve(&adapter)?)
}

impl Job<'_> {
    fn write_one(
        &self,
        plan: &ModelPlan,
        out: &Path,
        options: &OutputOptions,
    ) -> Result<(), Failure> {
        let writer = match &self.packing {
            None => self.checkpoint.create_output(out, options),
            Some((scheme, layers)) => {
                let layers = layers.clone();
                self.checkpoint
                    .create_packed_output(out, options, *scheme, layers)
            }
        }
        .map_err(Failure::writing)?;
        interrupt::left_over(Some(writer.staging().to_path_buf()));
        self.console.tell_leftovers(writer.leftovers());
        let state = StateFolder::open(writer.path(), self.args.fresh).map_err(Failure::writing)?;
        let (calibration, mut keeper) = self.begun(state, &writer)?;
        let written = self.pruned(plan, writer, &mut keeper, calibration.as_ref());
        let (report, written) = written.map_err(|failure| failure.leaving(keeper.left()))?;
        keeper.done()?;
        interrupt::left_over(None);
        self.console
            .print(&summary::of(&report, &written, self.checkpoint))?;
        self.console.print_json(&Outcome {
            report: &report,
            output: &written,
        })
    }

    /// The pruned checkpoint in its place, and what was done.
    fn pruned(
        &self,
        plan: &ModelPlan,
        mut writer: CheckpointWriter,
        keeper: &mut Keeper,
        calibration: Option<&Calibration>,
    ) -> Result<(RunReport, WrittenCheckpoint), Failure> {
        let plan = self.allocated(plan, 0, calibration)?;
        let run = match &self.packing {
            None => self.prune(&plan, &mut writer, keeper, calibration)?,
            Some(_) => {
                let run = self.prune(&plan, &mut NotStored, keeper, calibration)?;
                keeper.pack_into(&mut writer)?;
                run
            }
        };
        interrupt::check()?;
        if let Some(path) = &self.args.save_masks {
            keeper.save_masks(path, self.args.force, &self.planned[0])?;
        }
        let mut report = self.report(run, None, calibration)?;
        let written = self.finish(writer, &mut report)?;
        Ok((report, written))
    }

    /// The calibration set, where the method needs one.
    fn calibration(&self) -> Result<Option<Calibration>, Failure> {
        if self.flags.need_calibration() {
            return calibrate(self.checkpoint, self.config, self.flags, self.console).map(Some);
        }
        Ok(None)
    }

    fn progress(&self, calibration: Option<&Calibration>) -> Progress {
        self.progress_over(self.planned, calibration)
    }

    fn progress_over(&self, planned: &Variants, calibration: Option<&Calibration>) -> Progress {
        let size = CalibrationSize {
            sequences: calibration.map_or(0, |calibration| calibration.sequences.len()),
            length: calibration.map_or(0, Calibration::sequence_length),
        };
        Progress::new(planned, self.config, size, self.console)
    }

    fn prune(
        &self,
        plan: &ModelPlan,
        sink: &mut dyn WeightSink,
        keeper: &mut Keeper,
        calibration: Option<&Calibration>,
    ) -> Result<ModelReport, Failure> {
        let mut adapter = model::adapter(self.checkpoint, sink)?;
        let sequences = calibration.map_or(&[][..], |calibration| &calibration.sequences);
        let mut progress = self.progress(calibration);
        let result = prune_model_resumable(
            &mut adapter,
            self.pruner,
            sequences,
            plan,
            keeper,
            &mut |event| progress.show(event),
        );
        progress.finish();
        result.map_err(|interrupted| interrupted.error.into())
    }

    /// What was done, `pattern` being the one of several.
    fn report(
        &self,
        run: ModelReport,
        pattern: Option<Pattern>,
        calibration: Option<&Calibration>,
    ) -> Result<RunReport, Failure> {
        Ok(RunReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.args.model.clone(),
            settings: used(self.flags)?,
            recipe_file: self.args.recipe_file.clone(),
            pattern,
            calibration: calibration.map(|calibration| CalibrationReport {
                source: calibration.source.clone(),
                seed: self.flags.seed.unwrap_or(0),
                sequences: calibration.sequences.len(),
                sequence_length: calibration.sequence_length(),
                tokens_available: calibration.tokens_available,
                fingerprint: calibration.fingerprint(),
            }),
            weights: run.weights(),
            zeros: run.zeros(),
            cast_zeros: Vec::new(),
            run,
        })
    }

    /// Completes and checks a checkpoint, with its report in it, which gets what the check found.
    fn finish(
        &self,
        writer: CheckpointWriter,
        report: &mut RunReport,
    ) -> Result<WrittenCheckpoint, Failure> {
        let of = report
            .pattern
            .map_or_else(String::new, |pattern| format!(" of {pattern}"));
        self.console.step(&format!(
            "writing and checking the rest of the checkpoint{of}"
        ));
        let proven = writer
            .prove(&expected(&report.run))
            .map_err(Failure::writing)?;
        proven.check_forward().map_err(Failure::writing)?;
        report.cast_zeros.clone_from(&proven.summary().cast_zeros);
        report.write(proven.staging())?;
        proven.put_in_place().map_err(Failure::writing)
    }
}

pub(super) fn calibrate(
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
    flags: &PruneFlags,
    console: &Console,
) -> Result<Calibration, Failure> {
    let file = calibration_file(flags)?;
    let options = calibration_options(file, config, flags, console)?;
    unused::tell_of_calibration(file, config, flags, console);
    let calibration = pretraining::calibrate(checkpoint, config, flags, file, &options)?;
    check_tokens(&calibration, config, file)?;
    interrupt::check()?;
    Ok(calibration)
}

/// The calibration set's size as far as the flags tell it. The file is looked at, and a text not tokenized.
fn planned_size(
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
    flags: &PruneFlags,
    console: &Console,
) -> Result<CalibrationSize, Failure> {
    if !flags.need_calibration() {
        return Ok(CalibrationSize {
            sequences: 0,
            length: 0,
        });
    }
    let Some(file) = &flags.calibration else {
        let length = fitting_length(config, flags)?;
        let size = CalibrationSize {
            sequences: flags.samples.unwrap_or(DEFAULT_SAMPLES),
            length: model::sequence_length(("--sequence-length", length), config, console),
        };
        return match size.sequences.min(size.length) {
            0 => Err(Failure::usage(
                "--samples and --sequence-length: expected at least 1, found 0",
            )),
            _ => Ok(size),
        };
    };
    let options = calibration_options(file, config, flags, console)?;
    if holds_token_ids(file) {
        let ids = draw(file, &no_text, &options).map_err(Failure::reading)?;
        check_tokens(&ids, config, file)?;
        return Ok(CalibrationSize {
            sequences: ids.sequences.len(),
            length: ids.sequence_length(),
        });
    }
    calibration::check(file, &options).map_err(Failure::reading)?;
    if !checkpoint.is_outline() {
        model::tokenizer(checkpoint)?;
    }
    Ok(CalibrationSize {
        sequences: options.samples.unwrap_or(DEFAULT_SAMPLES),
        length: options.sequence_length.unwrap_or(DEFAULT_SEQUENCE_LENGTH),
    })
}

fn calibration_file(flags: &PruneFlags) -> Result<&Path, Failure> {
    flags
        .calibration
        .as_deref()
        .ok_or_else(|| Failure::usage("--calibration FILE is missing"))
}

/// The sequence length that was asked for, if the model takes that.
fn fitting_length(
    config: &TransformerConfig,
    flags: &PruneFlags,
) -> Result<Option<usize>, Failure> {
    match flags.sequence_length {
        Some(length) if length > config.max_positions => Err(Failure::usage(format!(
            "--sequence-length {length}: the model takes at most {} tokens",
            config.max_positions
        ))),
        asked => Ok(asked),
    }
}

/// Ready token ids have a length of their own.
fn calibration_options(
    file: &Path,
    config: &TransformerConfig,
    flags: &PruneFlags,
    console: &Console,
) -> Result<CalibrationOptions, Failure> {
    let asked = fitting_length(config, flags)?;
    let sequence_length = if holds_token_ids(file) {
        asked
    } else {
        Some(model::sequence_length(
            ("--sequence-length", asked),
            config,
            console,
        ))
    };
    Ok(CalibrationOptions {
        samples: flags.samples,
        sequence_length,
        seed: flags.seed.unwrap_or(0),
        mode: flags.calibration_mode.unwrap_or_default(),
        text_key: flags
            .text_key
            .clone()
            .unwrap_or_else(|| DEFAULT_TEXT_KEY.to_owned()),
    })
}

/// What tokenizes where there is no text.
fn no_text(_: &str) -> sparsegpt_models::Result<Vec<u32>> {
    Ok(Vec::new())
}

/// Whether the model takes these sequences.
fn check_tokens(
    calibration: &Calibration,
    config: &TransformerConfig,
    file: &Path,
) -> Result<(), Failure> {
    calibration.check_vocabulary(config.vocab_size)?;
    let length = calibration.sequence_length();
    if length > config.max_positions {
        return Err(Failure::file(
            file,
            format!(
                "sequences of {length} tokens, of which the model takes at most {0}; give --sequence-length {0} to use the first of each",
                config.max_positions
            ),
        ));
    }
    Ok(())
}

/// The flags that were given, here or in the recipe file.
pub(super) fn used(flags: &PruneFlags) -> Result<Value, Failure> {
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
                Ok(Pattern::NofM { zeros, group } | Pattern::VNofM { zeros, group, .. }) => {
                    Some((zeros, group))
                }
                _ => None,
            },
        })
        .collect()
}
