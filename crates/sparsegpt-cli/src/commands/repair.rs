//! `sparsegpt repair`: a low-rank adapter that gives a pruned model back a part of what it has lost.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use ndarray::{Array2, ArrayView2};
use serde::Serialize;
use sparsegpt::driver::ObservedLayer;
use sparsegpt::repair::Metric;
use sparsegpt::{
    Error, LayerSettings, ModelAdapter, ModelPlan, Pattern, ProgressEvent, observe_model,
};
use sparsegpt_models::checkpoint::{
    LoraLayer, Overlay, WrittenLora, check_lora_output, write_lora,
};
use sparsegpt_models::decoder::TransformerAdapter;

use super::prune::{self, PruneFlags};
use crate::backend::BackendChoice;
use crate::console::Console;
use crate::failure::Failure;
use crate::flags::selector;
use crate::table::{Table, left, right};
use crate::{interrupt, model};

const AFTER_HELP: &str = "\
For each layer that differs between the two models, the adapter holds the product of two narrow matrices that, added to the \
pruned weights, leaves the least error on the calibration data (EoRA, arXiv 2410.21271). It is an ordinary LoRA adapter of \
PRUNED: what loads PEFT folders loads it, and the pruned weights stay as sparse as they are. Inputs are those of the pruned \
model. Eigenvalues and singular vectors are found on the host, in f64, whatever the backend.";

/// Flags of `repair`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RepairArgs {
    /// The model as it was: a HuggingFace folder or a .gguf file
    dense: PathBuf,

    /// The same model after pruning, quantization or both
    pruned: PathBuf,

    /// The adapter folder to write; it must not exist or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Replace an output folder that is not empty
    #[arg(long)]
    force: bool,

    /// Columns of the narrow matrices: the larger, the less error, memory and time in proportion
    #[arg(long, default_value_t = 32)]
    rank: usize,

    /// Repair these layers only (as in `prune --only`; repeatable)
    #[arg(long, value_name = "LAYERS")]
    only: Vec<String>,

    /// Leave these layers as they are (as in `prune --skip`; repeatable)
    #[arg(long, value_name = "LAYERS")]
    skip: Vec<String>,

    /// Text, JSON lines or parquet to calibrate on, or token ids (.safetensors), as for `prune`
    #[arg(long, value_name = "FILE")]
    calibration: PathBuf,

    /// Calibration sequences [default: 128, or all ready token ids]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,

    /// Tokens in each [default: the lesser of 2048 and the model's longest, or that of the token ids]
    #[arg(long, value_name = "N")]
    sequence_length: Option<usize>,

    /// Seed of the draw [default: 0]
    #[arg(long)]
    seed: Option<u64>,

    /// Where Hessians are collected: cpu (default), cuda or auto
    #[arg(long, hide_possible_values = true)]
    backend: Option<BackendChoice>,
}

/// One layer: parts of tr(W H Wᵀ) that are lost.
#[derive(Debug, Serialize)]
struct Row {
    layer: String,
    before: f64,
    after: f64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    dense: &'a Path,
    pruned: &'a Path,
    calibration_fingerprint: String,
    /// Where eigenvalues and singular vectors were found.
    decompositions: &'static str,
    layers: Vec<Row>,
    output: WrittenLora,
    seconds: f64,
}

pub(crate) fn run(args: &RepairArgs, threads: usize, console: &Console) -> Result<(), Failure> {
    let start = Instant::now();
    if args.rank == 0 {
        return Err(Failure::usage("--rank 0: give at least 1"));
    }
    let (dense, _) = model::open(&args.dense, console)?;
    let (pruned, config) = model::open(&args.pruned, console)?;
    check_lora_output(&pruned, &args.out, args.force).map_err(Failure::writing)?;
    let plan = plan(args)?;
    prune::resolve(&pruned, &plan)?;
    let flags = PruneFlags {
        calibration: Some(args.calibration.clone()),
        samples: args.samples,
        sequence_length: args.sequence_length,
        seed: args.seed,
        ..PruneFlags::default()
    };
    let pruner = args
        .backend
        .unwrap_or_default()
        .solver(threads, false, console)?;
    let calibration = prune::calibrate(&pruned, &config, &flags, console)?;

    let (mut into_pruned, mut into_dense) = (
        Overlay::new(pruned.tensors()),
        Overlay::new(dense.tensors()),
    );
    let mut observed = model::adapter(&pruned, &mut into_pruned)?;
    let mut repairs = Repairs {
        rank: args.rank,
        inputs: (0..observed.blocks())
            .map(|block| {
                let layers = observed.layers(block).map_err(Failure::reading)?;
                Ok(layers.into_iter().map(|layer| layer.input).collect())
            })
            .collect::<Result<_, Failure>>()?,
        dense: model::adapter(&dense, &mut into_dense)?,
        block: None,
        metric: None,
        layers: Vec::new(),
        rows: Vec::new(),
    };
    let bar = console.progress(observed.blocks() as u64);
    observe_model(
        &mut observed,
        &*pruner,
        &calibration.sequences,
        &plan,
        &mut |layer| repairs.add(layer),
        &mut |event| {
            if let ProgressEvent::BlockStarted { block, blocks, .. } = event {
                bar.set_message(format!("block {} of {blocks}", block + 1));
                bar.set_position(*block as u64);
            }
            interrupt::flow()
        },
    )?;
    bar.finish_and_clear();
    let Repairs { layers, rows, .. } = repairs;
    if layers.is_empty() {
        return Err(Failure::usage(format!(
            "nothing to repair: {} has the weights of {} in all layers looked at",
            args.pruned.display(),
            args.dense.display()
        )));
    }
    let output = write_lora(&pruned, &layers, &args.out, args.force).map_err(Failure::writing)?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        dense: &args.dense,
        pruned: &args.pruned,
        calibration_fingerprint: calibration.fingerprint(),
        decompositions: "on the host, in f64",
        layers: rows,
        output,
        seconds: start.elapsed().as_secs_f64(),
    };
    console.print(&table(&report))?;
    console.print_json(&report)
}

/// All layers that are asked for, each with the statistics of its input.
fn plan(args: &RepairArgs) -> Result<ModelPlan, Failure> {
    let mut plan = ModelPlan::new(LayerSettings::new(Pattern::Dense));
    for layers in &args.only {
        plan = plan.only(selector("--only", layers)?);
    }
    for layers in &args.skip {
        plan = plan.skipping(selector("--skip", layers)?);
    }
    Ok(plan)
}

/// What has been found so far.
struct Repairs<'a> {
    rank: usize,
    /// The input of each layer of each block.
    inputs: Vec<Vec<usize>>,
    dense: TransformerAdapter<'a>,
    /// The block of the dense model that is loaded.
    block: Option<usize>,
    /// That of the layers seen last, with their block and input.
    metric: Option<(usize, usize, Metric)>,
    layers: Vec<LoraLayer>,
    rows: Vec<Row>,
}

impl Repairs<'_> {
    fn add(&mut self, layer: &ObservedLayer<'_>) -> sparsegpt::Result<()> {
        let dense = self.dense_weights(layer)?;
        if dense.dim() != layer.weights.dim() {
            let (rows, cols) = dense.dim();
            return Err(Error::Shape {
                layer: layer.name.to_owned(),
                what: "the pruned model's weights",
                expected: format!("{rows} x {cols}, as in the dense model"),
                found_rows: layer.weights.nrows(),
                found_cols: layer.weights.ncols(),
            });
        }
        let zeros = |weights: ArrayView2<'_, f32>| weights.iter().filter(|&&w| w == 0.0).count();
        let (in_dense, in_pruned) = (zeros(dense.view()), zeros(layer.weights.view()));
        if in_dense > dense.len() / 10 && in_pruned < in_dense / 2 {
            return Err(Error::Incompatible {
                layer: layer.name.to_owned(),
                reason: format!(
                    "the dense model has {in_dense} zeros here, and the pruned one {in_pruned}"
                ),
                remedy: "give the dense model first and the pruned one behind it".to_owned(),
            });
        }
        let difference = &dense - &layer.weights;
        let Some(statistics) = layer.statistics else {
            return Ok(());
        };
        // An expert that no token has reached tells nothing of its inputs.
        if statistics.tokens() == 0 || difference.iter().all(|&lost| lost == 0.0) {
            return Ok(());
        }
        let input = self.inputs[layer.block][layer.layer];
        let named = |error: Error| error.for_layer(layer.name);
        let known =
            matches!(self.metric, Some((block, of, _)) if (block, of) == (layer.block, input));
        if !known {
            let hessian = statistics.to_array()?;
            self.metric = Some((
                layer.block,
                input,
                Metric::of(hessian.view()).map_err(named)?,
            ));
        }
        let Some((_, _, metric)) = &self.metric else {
            return Ok(());
        };
        let low_rank = metric.repair(difference.view(), self.rank).map_err(named)?;
        let total = metric.energy(dense.view())?;
        let share = |lost: &Array2<f32>| -> sparsegpt::Result<f64> {
            let lost = metric.energy(lost.view())?;
            Ok(if total > 0.0 { lost / total } else { 0.0 })
        };
        self.rows.push(Row {
            layer: layer.name.to_owned(),
            before: share(&difference)?,
            after: share(&(&difference - &low_rank.product()))?,
        });
        self.layers.push(LoraLayer {
            name: layer.name.to_owned(),
            low_rank,
        });
        Ok(())
    }

    /// The layer before it was pruned.
    fn dense_weights(&mut self, layer: &ObservedLayer<'_>) -> sparsegpt::Result<Array2<f32>> {
        let block = layer.block;
        let failed = |error: sparsegpt_models::Error| Error::Adapter {
            block,
            action: format!("cannot read {} of the dense model", layer.name),
            source: Box::new(error),
        };
        if self.block != Some(block) {
            if let Some(before) = self.block.take() {
                self.dense.end_block(before).map_err(failed)?;
            }
            self.dense.begin_block(block).map_err(failed)?;
            self.block = Some(block);
        }
        self.dense.weight(block, layer.layer).map_err(failed)
    }
}

fn table(report: &Report<'_>) -> String {
    let mut table = Table::new([left("layer"), right("lost"), right("after the repair")]);
    for row in &report.layers {
        table.row([
            row.layer.clone(),
            format!("{:.5}", row.before),
            format!("{:.5}", row.after),
        ]);
    }
    let WrittenLora {
        path, rank, bytes, ..
    } = &report.output;
    format!(
        "{table}\nlost: part of the output, on the calibration data\nwritten: {} (rank {rank}, {:.1} MB)\n",
        path.display(),
        *bytes as f64 / 1e6
    )
}
