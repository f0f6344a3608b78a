//! `sparsegpt bench --layer`: what one sparse layer takes on this machine.

use std::time::Duration;

use half::{bf16, f16};
use serde::Serialize;
use sparsegpt::Pattern;
use sparsegpt_runtime::Width;
use sparsegpt_runtime::measure::{self, Case, Timing, Zeros};

use super::{BenchArgs, Dtype};
use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::interrupt;
use crate::table::{Table, left, right};

#[derive(Debug, Serialize)]
struct Report {
    rows: usize,
    cols: usize,
    pattern: String,
    tokens: usize,
    dtype: Dtype,
    threads: usize,
    level: String,
    density: f64,
    dense_seconds: f64,
    sparse_seconds: f64,
    /// Of the fastest runs.
    dense_least_seconds: f64,
    sparse_least_seconds: f64,
    /// What memory and multiply-adds allow the packed layer.
    floor_seconds: f64,
    dense_floor_seconds: f64,
    /// Of the dense weights.
    dense_bytes: usize,
    sparse_bytes: usize,
    /// Bytes a second read from memory.
    bandwidth: f64,
    /// Operations a second of multiply-adds.
    flops: f64,
    /// Runs of each.
    runs: usize,
}

/// Columns that share the grid of quantized weights.
const GROUP: usize = 128;
/// More tokens are a slip of the keyboard.
const MOST_TOKENS: usize = 1 << 20;

pub(super) fn run(
    (rows, cols): (usize, usize),
    args: &BenchArgs,
    console: &Console,
) -> Result<(), Failure> {
    let (zeros, pattern) = zeros(args)?;
    if !(1..=MOST_TOKENS).contains(&args.tokens) {
        return Err(Failure::usage(format!(
            "--tokens: expected 1 to {MOST_TOKENS}, found {}",
            args.tokens
        )));
    }
    let case = Case::new(rows, cols, zeros).map_err(|error| Failure::new(Exit::Usage, error))?;
    let case = case
        .tokens(args.tokens)
        .during(Duration::from_secs_f64(args.seconds));
    let timing = match args.dtype {
        Dtype::F32 => measure::layer::<f32>(&case),
        Dtype::Bf16 => measure::layer::<bf16>(&case),
        Dtype::F16 => measure::layer::<f16>(&case),
        Dtype::Int8 => measure::quantized_layer(&case, Width::Eight, GROUP),
        Dtype::Int4 => measure::quantized_layer(&case, Width::Four, GROUP),
    };
    let timing = timing.map_err(|error| Failure::new(Exit::Work, error))?;
    interrupt::check()?;
    let report = report((rows, cols), args, pattern, &timing);
    console.print(&describe(&report))?;
    console.print_json(&report)
}

fn zeros(args: &BenchArgs) -> Result<(Zeros, String), Failure> {
    match args.pattern {
        None => {
            let sparsity = args.sparsity.unwrap_or(0.5);
            let pattern = Pattern::unstructured(sparsity)?;
            Ok((Zeros::Random(sparsity), pattern.to_string()))
        }
        Some(pattern @ Pattern::NofM { zeros, group }) => {
            Ok((Zeros::NofM { zeros, group }, pattern.to_string()))
        }
        Some(other) => Err(Failure::usage(format!(
            "--pattern: expected N:M, as in 2:4, found {other}; for a fraction use --sparsity"
        ))),
    }
}

fn report(
    (rows, cols): (usize, usize),
    args: &BenchArgs,
    pattern: String,
    timing: &Timing,
) -> Report {
    Report {
        rows,
        cols,
        pattern,
        tokens: args.tokens,
        dtype: args.dtype,
        threads: timing.threads,
        level: sparsegpt_runtime::Level::detect().to_string(),
        density: timing.density,
        dense_seconds: timing.dense_seconds,
        sparse_seconds: timing.sparse_seconds,
        dense_least_seconds: timing.dense_least_seconds,
        sparse_least_seconds: timing.sparse_least_seconds,
        floor_seconds: timing.floor_seconds,
        dense_floor_seconds: timing.dense_floor_seconds,
        dense_bytes: timing.dense_bytes,
        sparse_bytes: timing.sparse_bytes,
        bandwidth: timing.bandwidth,
        flops: timing.flops,
        runs: timing.runs,
    }
}

fn describe(report: &Report) -> String {
    let mut table = Table::new([
        left(""),
        right("ms"),
        right("fastest"),
        right("MiB"),
        right("of its floor"),
    ]);
    for (name, seconds, least, bytes, floor) in [
        (
            "dense",
            report.dense_seconds,
            report.dense_least_seconds,
            report.dense_bytes,
            report.dense_floor_seconds,
        ),
        (
            "sparse",
            report.sparse_seconds,
            report.sparse_least_seconds,
            report.sparse_bytes,
            report.floor_seconds,
        ),
    ] {
        table.row([
            name.to_owned(),
            format!("{:.3}", seconds * 1e3),
            format!("{:.3}", least * 1e3),
            format!("{:.1}", bytes as f64 / f64::from(1 << 20)),
            format!("{:.0}%", floor / seconds * 100.0),
        ]);
    }
    format!(
        "{} x {}, {}, {} tokens, {} threads, {}\n\n{table}\n{:.2} times as fast, {:.2} of the bytes; floor {:.3} ms \
         ({:.1} GB/s, {:.0} GFLOP/s); medians of {} runs\n",
        report.rows,
        report.cols,
        report.pattern,
        report.tokens,
        report.threads,
        report.level,
        report.dense_seconds / report.sparse_seconds,
        report.sparse_bytes as f64 / report.dense_bytes as f64,
        report.floor_seconds * 1e3,
        report.bandwidth / 1e9,
        report.flops / 1e9,
        report.runs,
    )
}

pub(super) fn parse_shape(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once(['x', 'X']);
    let read = sides.and_then(|(rows, cols)| Some((rows.parse().ok()?, cols.parse().ok()?)));
    read.filter(|&(rows, cols): &(usize, usize)| rows > 0 && cols > 0)
        .ok_or_else(|| "expected rows x columns, at least 1 each, as in 4096x11008".to_owned())
}
