//! `sparsegpt bench`: what sparse layers take on this machine, one of them or a whole model's.

mod chart;
mod layer;
mod model;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use sparsegpt::Pattern;

use crate::console::Console;
use crate::failure::Failure;

const AFTER_HELP: &str = "\
With --layer: measured are a random layer stored dense, the same layer packed, and what memory and arithmetic of this \
machine would allow the packed one (the floor). Copies of the layer take turns, so that weights come from memory as in a \
model of many layers.

With MODEL: the model runs on this crate's dense kernels and on its sparse ones, in the type of its weights: a prompt of \
arbitrary tokens at once (prefill), then token by token (decode). A packed model is mapped as it is.

Runs alternate and medians are printed. Use --threads to set the threads.";

/// Flags of `bench`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    /// A pruned or packed model, as a HuggingFace folder or a .gguf file
    #[arg(conflicts_with = "layer")]
    model: Option<PathBuf>,

    /// Rows x columns of one random layer: output x input features, as in 4096x11008
    #[arg(long, value_name = "ROWSxCOLS", value_parser = layer::parse_shape)]
    layer: Option<(usize, usize)>,

    /// Fraction of zeros, 0 to 1 [default: 0.5]
    #[arg(
        long,
        conflicts_with_all = ["pattern", "model"],
        requires = "layer",
        help_heading = "Layer"
    )]
    sparsity: Option<f64>,

    /// Zeros in every group of columns instead, as in 2:4
    #[arg(
        long,
        value_name = "N:M",
        requires = "layer",
        conflicts_with = "model",
        help_heading = "Layer"
    )]
    pattern: Option<Pattern>,

    /// Tokens multiplied at once: 1 is decoding
    #[arg(
        long,
        default_value_t = 1,
        requires = "layer",
        conflicts_with = "model",
        help_heading = "Layer"
    )]
    tokens: usize,

    /// Type of the weights
    #[arg(
        long,
        value_enum,
        default_value_t,
        requires = "layer",
        conflicts_with = "model",
        help_heading = "Layer"
    )]
    dtype: Dtype,

    /// Tokens of the prompt [default: the lesser of 128 and what leaves room for the new ones]
    #[arg(
        long,
        value_name = "N",
        requires = "model",
        conflicts_with = "layer",
        help_heading = "Model"
    )]
    prompt_tokens: Option<usize>,

    /// Tokens that follow it one by one
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        requires = "model",
        conflicts_with = "layer",
        help_heading = "Model"
    )]
    new_tokens: usize,

    /// Draw the result as an SVG file
    #[arg(
        value_parser = crate::bars::name_ending_in("svg"),
        long,
        value_name = "FILE",
        requires = "model",
        conflicts_with = "layer",
        help_heading = "Model"
    )]
    chart: Option<PathBuf>,

    /// Run once on these kernels alone and print the memory that took; the command starts itself with it
    #[arg(long, value_name = "KERNELS", requires = "model", hide = true)]
    alone: Option<model::Kernels>,

    /// Seconds to measure for
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, Default, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Dtype {
    #[default]
    F32,
    Bf16,
    F16,
    /// Codes of 8 bits with a scale and a zero for every 128 columns of a row.
    Int8,
    /// The same of 4 bits.
    Int4,
}

/// More seconds are a slip of the keyboard.
const MOST_SECONDS: f64 = 86_400.0;

pub(crate) fn run(args: &BenchArgs, threads: usize, console: &Console) -> Result<(), Failure> {
    if !(0.0..=MOST_SECONDS).contains(&args.seconds) {
        return Err(Failure::usage(format!(
            "--seconds: expected 0 to {MOST_SECONDS}, found {}",
            args.seconds
        )));
    }
    match (&args.model, args.layer, args.alone) {
        (Some(path), _, Some(kernels)) => model::run_alone(path, kernels, args, console),
        (Some(path), _, None) => model::run(path, args, threads, console),
        (None, Some(shape), _) => layer::run(shape, args, console),
        (None, None, _) => Err(Failure::usage("give MODEL or --layer ROWSxCOLS")),
    }
}
