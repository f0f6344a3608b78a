//! `sparsegpt bench MODEL`: a whole model on dense and on sparse kernels.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparsegpt_models::TensorSource;
use sparsegpt_models::checkpoint::Checkpoint;
use sparsegpt_models::decoder::{MatrixBytes, OnRuntime, Stored, Transformer, TransformerConfig};

use super::{BenchArgs, chart};
use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::table::{self, Table, left, right};
use crate::tensor_file::check_output;
use crate::{bars, interrupt, model};

/// Tokens of the prompt where the user gives no number.
const USUAL_PROMPT: usize = 128;
/// Runs of each at least, whatever they take.
const LEAST_RUNS: usize = 3;

/// What multiplies by the weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kernels {
    /// All layers dense.
    Dense,
    /// Each as it is faster.
    Sparse,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    threads: usize,
    level: String,
    prompt_tokens: usize,
    new_tokens: usize,
    pub(super) dense: Measured,
    pub(super) sparse: Measured,
    /// Whether both gave the same tokens.
    same_tokens: bool,
    /// Runs of each.
    runs: usize,
}

/// Seconds are medians.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    prefill_seconds: f64,
    /// Of one token.
    decode_seconds: f64,
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
    /// Of the blocks' linear layers.
    pub(super) linear_bytes: usize,
    /// With the table of embeddings and the head.
    pub(super) matrix_bytes: usize,
    /// Of a process that does nothing else, where the system tells.
    pub(super) peak_bytes: Option<u64>,
}

/// What a run on its own prints.
#[derive(Debug, Deserialize, Serialize)]
struct Alone {
    peak_bytes: Option<u64>,
}

/// A prompt and how many tokens follow it.
struct Task {
    prompt: Vec<u32>,
    new_tokens: usize,
}

impl Task {
    fn new(args: &BenchArgs, config: &TransformerConfig) -> Result<Self, Failure> {
        let longest = config.max_positions;
        let room = longest.saturating_sub(args.new_tokens);
        let prompt_tokens = args.prompt_tokens.unwrap_or_else(|| USUAL_PROMPT.min(room));
        if prompt_tokens == 0 || args.new_tokens == 0 || prompt_tokens > room {
            return Err(Failure::usage(format!(
                "--prompt-tokens and --new-tokens: expected at least 1 each and {longest} together, the model's \
                 longest, found {prompt_tokens} and {}",
                args.new_tokens
            )));
        }
        // Any tokens do: what they cost does not depend on what they say.
        let token = |at: usize| (at * 7919 % config.vocab_size.max(1)) as u32;
        Ok(Self {
            prompt: (1..=prompt_tokens).map(token).collect(),
            new_tokens: args.new_tokens,
        })
    }

    fn run(&self, llama: &Transformer) -> Result<Run, Failure> {
        let mut cache = llama.cache();
        let start = Instant::now();
        let mut logits = llama.next(&self.prompt, &mut cache)?;
        let prefill = start.elapsed().as_secs_f64();
        let mut tokens = Vec::with_capacity(self.new_tokens);
        let start = Instant::now();
        for _ in 0..self.new_tokens {
            let token = likeliest(&logits);
            tokens.push(token);
            logits = llama.next(&[token], &mut cache)?;
        }
        let decode = start.elapsed().as_secs_f64() / self.new_tokens as f64;
        Ok(Run {
            prefill,
            decode,
            tokens,
        })
    }
}

struct Run {
    prefill: f64,
    decode: f64,
    tokens: Vec<u32>,
}

fn likeliest(logits: &[f32]) -> u32 {
    let tokens = (0..logits.len() as u32).rev();
    tokens
        .max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]))
        .unwrap_or_default()
}

/// The model with its matrices stored for these kernels.
fn load(checkpoint: &Checkpoint, kernels: Kernels) -> Result<Transformer, Failure> {
    let stored = match kernels {
        Kernels::Dense => Stored::Dense,
        Kernels::Sparse if checkpoint.is_packed() => {
            return model::load(checkpoint, &checkpoint.tensors());
        }
        Kernels::Sparse => Stored::Faster,
    };
    let source = OnRuntime::new(checkpoint.config(), checkpoint.tensors(), stored)
        .map_err(|error| Failure::reading_model(checkpoint.path(), error))?;
    model::load(checkpoint, &(Arc::new(source) as Arc<dyn TensorSource>))
}

pub(super) fn run(
    path: &Path,
    args: &BenchArgs,
    threads: usize,
    console: &Console,
) -> Result<(), Failure> {
    if let Some(path) = &args.chart {
        check_output(path, true)?;
    }
    let (checkpoint, config) = model::open_decoder(path, "bench", console)?;
    let task = Task::new(args, &config)?;
    let mut peaks = [None; 2];
    for (peak, kernels) in peaks.iter_mut().zip(Kernels::value_variants()) {
        interrupt::check()?;
        *peak = peak_alone(path, *kernels, args, &task, threads)?;
    }
    let models = [Kernels::Dense, Kernels::Sparse].map(|kernels| load(&checkpoint, kernels));
    let [dense, sparse] = models;
    let (dense, sparse) = (dense?, sparse?);

    let mut runs = [const { Vec::new() }; 2];
    let start = Instant::now();
    while runs[0].len() < LEAST_RUNS || start.elapsed().as_secs_f64() < args.seconds {
        for (runs, model) in runs.iter_mut().zip([&dense, &sparse]) {
            interrupt::check()?;
            runs.push(task.run(model)?);
        }
    }
    let [of_dense, of_sparse] = runs;
    let report = Report {
        threads: rayon::current_num_threads(),
        level: sparsegpt_runtime::Level::detect().to_string(),
        prompt_tokens: task.prompt.len(),
        new_tokens: task.new_tokens,
        same_tokens: of_dense[0].tokens == of_sparse[0].tokens,
        runs: of_dense.len(),
        dense: Measured::new(&of_dense, &task, dense.matrix_bytes(), peaks[0]),
        sparse: Measured::new(&of_sparse, &task, sparse.matrix_bytes(), peaks[1]),
    };
    if let Some(path) = &args.chart {
        bars::write(path, &chart::draw(&report)?)?;
    }
    console.print(&describe(&report))?;
    console.print_json(&report)
}

impl Measured {
    fn new(runs: &[Run], task: &Task, bytes: MatrixBytes, peak_bytes: Option<u64>) -> Self {
        let median = |of: fn(&Run) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (prefill_seconds, decode_seconds) =
            (median(|run| run.prefill), median(|run| run.decode));
        Self {
            prefill_seconds,
            decode_seconds,
            prefill_tokens_per_second: task.prompt.len() as f64 / prefill_seconds,
            decode_tokens_per_second: 1.0 / decode_seconds,
            linear_bytes: bytes.linear,
            matrix_bytes: bytes.all,
            peak_bytes,
        }
    }
}

fn describe(report: &Report) -> String {
    let mut table = Table::new([
        left(""),
        right("prefill tokens/s"),
        right("decode tokens/s"),
        right("linear layers"),
        right("all matrices"),
        right("peak memory"),
    ]);
    for (name, measured) in [("dense", &report.dense), ("sparse", &report.sparse)] {
        table.row([
            name.to_owned(),
            format!("{:.1}", measured.prefill_tokens_per_second),
            format!("{:.1}", measured.decode_tokens_per_second),
            table::bytes(measured.linear_bytes as f64),
            table::bytes(measured.matrix_bytes as f64),
            measured
                .peak_bytes
                .map_or_else(String::new, |bytes| table::bytes(bytes as f64)),
        ]);
    }
    let (dense, sparse) = (&report.dense, &report.sparse);
    format!(
        "{} and {} tokens, {} threads, {}; medians of {} runs\n\n{table}\n{:.2} times as fast in prefill, {:.2} times in \
         decoding; {:.3} of the bytes of the linear layers, {:.3} of all; {} tokens\n",
        report.prompt_tokens,
        report.new_tokens,
        report.threads,
        report.level,
        report.runs,
        dense.prefill_seconds / sparse.prefill_seconds,
        dense.decode_seconds / sparse.decode_seconds,
        sparse.linear_bytes as f64 / dense.linear_bytes.max(1) as f64,
        sparse.matrix_bytes as f64 / dense.matrix_bytes.max(1) as f64,
        if report.same_tokens {
            "the same"
        } else {
            "other"
        },
    )
}

/// The most memory that a process of its own takes for the task. What both kinds take in one process could not be
/// told apart.
fn peak_alone(
    path: &Path,
    kernels: Kernels,
    args: &BenchArgs,
    task: &Task,
    threads: usize,
) -> Result<Option<u64>, Failure> {
    let failed = |reason: String| {
        Failure::new(
            Exit::Work,
            format!("cannot run this command on its own, to measure its memory: {reason}"),
        )
    };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let name = kernels.to_possible_value();
    let output = Command::new(program)
        .args(["--json", "--quiet", "--threads", &threads.to_string()])
        .arg("bench")
        .arg(path)
        .args(["--alone", name.as_ref().map_or("", |name| name.get_name())])
        .args(["--prompt-tokens", &task.prompt.len().to_string()])
        .args(["--new-tokens", &args.new_tokens.to_string()])
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().trim_start_matches("error: ").to_owned();
        // What is wrong with the model is told as if it had been found here.
        return Err(match output.status.code() {
            Some(code) if code == Exit::Input as i32 => Failure::new(Exit::Input, said),
            _ => failed(said),
        });
    }
    let alone: Alone =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    Ok(alone.peak_bytes)
}

/// Runs the task once.
pub(super) fn run_alone(
    path: &Path,
    kernels: Kernels,
    args: &BenchArgs,
    console: &Console,
) -> Result<(), Failure> {
    let (checkpoint, config) = model::open_decoder(path, "bench", console)?;
    let task = Task::new(args, &config)?;
    task.run(&load(&checkpoint, kernels)?)?;
    console.print_json(&Alone {
        peak_bytes: peak_bytes(),
    })
}

/// The most memory that this process has had, mapped files included; Linux tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
