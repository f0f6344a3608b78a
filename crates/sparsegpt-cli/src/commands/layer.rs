//! `sparsegpt layer`: one weight matrix, no model needed.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ndarray::Array2;
use serde::Serialize;
use sparsegpt::quant::QuantizedLayer;
use sparsegpt::repair::{SparseLowRank, sparse_plus_low_rank};
use sparsegpt::report::StageSeconds;
use sparsegpt::{Error, LayerReport, LayerTask, PrunedLayer};

use crate::console::Console;
use crate::failure::Failure;
use crate::flags::{LayerFlags, with_recipe};
use crate::interrupt;
use crate::layer_file::LayerFile;
use crate::tensor_file::{self, OwnedTensor, check_output};

const AFTER_HELP: &str = "\
IN.safetensors holds
  weight   rows x cols (output x input features), f32, f16 or bf16
  hessian  cols x cols, f32, f16 or bf16, undamped, lower triangle read; or instead
  inputs   tokens x cols (one sequence) or sequences x tokens x cols, f32, f16 or bf16
  mask     optional: u8, rows x cols, 1 = keep; kept as it is without --pattern, extended to an
           unstructured pattern (50%) with it
--method magnitude needs neither hessian nor inputs; its error is measured where there is one.

OUT.safetensors holds
  pruned       f32, rows x cols
  kept         u8, rows x cols, 1 = not pruned
and with --bits, so that pruned = (codes - zero) * scale exactly in f32:
  codes        u8, rows x cols
  scale, zero  f32, rows x groups; rows, where each row is one group
  group_index  i32, cols: the group of each column, where --act-order permutes the groups
and with --rank, so that pruned + lora_b lora_a is the layer:
  lora_a       f32, rank x cols
  lora_b       f32, rows x rank
With several --pattern the names begin with the pattern (50%.pruned, 2:4.kept), and --json gives a list
`variants`. Each result is that of a run of its own.";

/// Flags of `layer`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct LayerArgs {
    /// The safetensors file to read
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,

    /// The safetensors file to write
    #[arg(value_name = "OUT.safetensors")]
    output: PathBuf,

    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,

    /// Sequences of `inputs`, its last ones, on which the error is measured and not calibrated; --method best goes by them [default: 0]
    #[arg(long, value_name = "COUNT")]
    held_out: Option<usize>,

    /// Look too for the product of two narrow matrices, of this rank, that together with the pruned weights loses least
    #[arg(long, value_name = "RANK")]
    rank: Option<usize>,

    /// With --rank: find weights and product by turns so many times, and keep the best [default: 1]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// A TOML file whose keys are the flags below (and threads); flags given here win
    #[arg(long, value_name = "FILE")]
    recipe_file: Option<PathBuf>,

    #[command(flatten)]
    flags: LayerFlags,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    layer: LayerReport,
    /// With several patterns: what the names of this one's tensors begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// Accumulating the Hessian from `inputs`, or taking in `hessian`.
    seconds_hessian: f64,
    /// From weights and Hessian to the result, on the clock. A factor that several patterns share stands with
    /// the first of them.
    seconds_solve: f64,
    /// The solver's own account of it.
    stages: StageSeconds,
}

/// Pruned weights and a product of narrow matrices.
#[derive(Debug, Serialize)]
struct LowRankReport {
    /// Of the pruned weights alone: what they should be is the layer less the product.
    #[serde(flatten)]
    sparse: Report,
    rank: usize,
    rounds: usize,
    /// The one that lost least.
    best_round: usize,
    /// What both together lose of the layer.
    relative_error_of_both: f64,
    /// Where eigenvalues and singular vectors were found.
    decompositions: &'static str,
}

/// Several patterns.
#[derive(Debug, Serialize)]
struct Reports {
    variants: Vec<Report>,
}

pub(crate) fn run(
    args: &LayerArgs,
    threads: Option<usize>,
    console: &Console,
) -> Result<(), Failure> {
    let (flags, origin) = with_recipe(&args.flags, threads, args.recipe_file.as_deref())?;
    run_with(args, &flags, console).map_err(|failure| origin.tell(failure))
}

fn run_with(args: &LayerArgs, flags: &LayerFlags, console: &Console) -> Result<(), Failure> {
    let threads = flags.start_threads()?;
    check_output(&args.output, args.force)?;
    let file = LayerFile::read(&args.input)?;
    let (name, weights) = (&file.name, &file.weights);
    let patterns = flags.patterns()?;
    match (args.rank, args.rounds) {
        (None, Some(_)) => {
            return Err(Failure::usage(
                "--rounds is about --rank: give both, or none",
            ));
        }
        (Some(_), _) if patterns.len() > 1 => {
            return Err(Failure::usage("--rank: give one --pattern"));
        }
        _ => {}
    }
    let variants = patterns
        .iter()
        .map(|&pattern| file.settings(flags, pattern))
        .collect::<Result<Vec<_>, _>>()?;
    for settings in &variants {
        settings.validate(name, weights.nrows(), weights.ncols())?;
    }
    if flags.pattern.is_empty() {
        flags.tell_no_choice(file.mask.is_some(), console);
    }
    let pruner = flags.solver(threads, console)?;

    let start = Instant::now();
    let needed = flags.parts().needs_hessian() || args.rank.is_some() || args.held_out.is_some();
    // Where nothing needs them, the error is still measured by them.
    let mut statistics = if needed || file.has_statistics()? {
        Some(file.statistics(&*pruner, args.held_out.unwrap_or(0))?)
    } else {
        None
    };
    let seconds_hessian = start.elapsed().as_secs_f64();
    interrupt::check()?;
    let tasks: Vec<LayerTask<'_>> = variants
        .iter()
        .map(|settings| LayerTask {
            name,
            weights: weights.view(),
            settings,
        })
        .collect();
    if let (Some(rank), [task], Some(statistics)) = (args.rank, &*tasks, &mut statistics) {
        let rounds = args.rounds.unwrap_or(1);
        let start = Instant::now();
        let found = sparse_plus_low_rank(&*pruner, task, &mut **statistics, (rank, rounds))?;
        let seconds = (seconds_hessian, start.elapsed().as_secs_f64());
        return write_low_rank((args, flags), found, rounds, seconds, console);
    }
    let mut layers = Vec::new();
    let mut start = Instant::now();
    pruner.prune_layers(statistics.as_deref_mut(), &tasks, &mut |task, pruned| {
        let seconds_solve = start.elapsed().as_secs_f64();
        if interrupt::requested() {
            return Err(Error::Cancelled { block: 0 });
        }
        let prefix = patterns[task]
            .filter(|_| patterns.len() > 1)
            .map(|pattern| format!("{pattern}."));
        let tensors = tensors(prefix.as_deref().unwrap_or_default(), &pruned, flags);
        let stages = pruned.report.seconds.clone();
        let report = Report {
            layer: pruned.report,
            prefix,
            seconds_hessian,
            seconds_solve,
            stages,
        };
        layers.push((task, tensors, report));
        start = Instant::now();
        Ok(())
    })?;
    // They came in the order of their factors.
    layers.sort_by_key(|(task, ..)| *task);
    let (tensors, reports): (Vec<_>, Vec<_>) = layers
        .into_iter()
        .map(|(_, tensors, report)| (tensors, report))
        .unzip();
    let tensors: Vec<_> = tensors.into_iter().flatten().collect();

    tensor_file::write(&args.output, &tensors, console)?;
    for report in &reports {
        console.print(&format!("{}\n", report.layer))?;
    }
    console.print(&format!("written: {}\n", args.output.display()))?;
    match &reports[..] {
        [report] => console.print_json(report),
        _ => console.print_json(&Reports { variants: reports }),
    }
}

fn write_low_rank(
    (args, flags): (&LayerArgs, &LayerFlags),
    found: SparseLowRank,
    rounds: usize,
    (seconds_hessian, seconds_solve): (f64, f64),
    console: &Console,
) -> Result<(), Failure> {
    interrupt::check()?;
    let low_rank = &found.low_rank;
    let mut tensors = tensors("", &found.sparse, flags);
    for (name, part) in [("lora_a", &low_rank.down), ("lora_b", &low_rank.up)] {
        tensors.push((name.to_owned(), OwnedTensor::f32(part.view())));
    }
    tensor_file::write(&args.output, &tensors, console)?;
    let report = LowRankReport {
        rank: low_rank.rank(),
        rounds,
        best_round: found.round,
        relative_error_of_both: found.relative_error,
        decompositions: "on the host, in f64",
        sparse: Report {
            stages: found.sparse.report.seconds.clone(),
            layer: found.sparse.report,
            prefix: None,
            seconds_hessian,
            seconds_solve,
        },
    };
    console.print(&format!(
        "{}\nwith a product of rank {} relative error {:.3e} (round {} of {rounds})\nwritten: {}\n",
        report.sparse.layer,
        report.rank,
        report.relative_error_of_both,
        report.best_round,
        args.output.display()
    ))?;
    console.print_json(&report)
}

/// The result as tensors whose names begin with `prefix`.
fn tensors(prefix: &str, pruned: &PrunedLayer, flags: &LayerFlags) -> Vec<(String, OwnedTensor)> {
    let mut tensors = Vec::new();
    let mut add = |name: &str, tensor| tensors.push((format!("{prefix}{name}"), tensor));
    add("pruned", OwnedTensor::f32(pruned.weights.view()));
    add("kept", OwnedTensor::u8(pruned.mask.mapv(u8::from).view()));
    if let Some(QuantizedLayer {
        codes,
        scale,
        zero,
        group_of_column,
        ..
    }) = &pruned.quantized
    {
        let per_row = |values: &Array2<f32>| {
            let tensor = OwnedTensor::f32(values.view());
            match values.dim() {
                (rows, 1) => tensor.reshaped(vec![rows]),
                _ => tensor,
            }
        };
        add("codes", OwnedTensor::u8(codes.view()));
        add("scale", per_row(scale));
        add("zero", per_row(zero));
        if flags.groups_are_permuted() {
            let groups = group_of_column.iter().map(|&group| group as i32);
            add("group_index", OwnedTensor::i32(groups));
        }
    }
    tensors
}
