//! `sparsegpt inspect`: zeros and patterns of a checkpoint.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use sparsegpt_models::checkpoint::Checkpoint;
use sparsegpt_models::inspect::{TensorSparsity, inspect};

use crate::console::Console;
use crate::failure::Failure;
use crate::table::{self, Table, left, right};
use crate::{interrupt, model};

const AFTER_HELP: &str = "\
Only the weights are read, so that a HuggingFace folder may be of any model family, those included that \
prune, eval, generate and logits refuse. Listed are the matrices that are no embeddings; a pattern runs \
along the columns as stored (in GPT-2's layers those are the outputs).";

/// Flags of `inspect`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct InspectArgs {
    /// A HuggingFace folder or a .gguf file
    model: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Why the other commands refuse the model, where they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    layers: Vec<TensorSparsity>,
    weights: u64,
    zeros: u64,
}

pub(crate) fn run(args: &InspectArgs, console: &Console) -> Result<(), Failure> {
    let of_model = |error| Failure::reading_model(&args.model, error);
    let checkpoint = Checkpoint::open(&args.model).map_err(of_model)?;
    let bar = console.progress(0);
    let layers = inspect(&checkpoint, &mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        !interrupt::requested()
    });
    bar.finish_and_clear();
    interrupt::check()?;
    let layers = layers.map_err(of_model)?;
    let report = Report {
        refused: model::refusal(&checkpoint),
        weights: layers
            .iter()
            .map(|layer| (layer.rows * layer.columns) as u64)
            .sum(),
        zeros: layers.iter().map(|layer| layer.zeros).sum(),
        layers,
    };
    let mut layers = Table::new([
        left("weight"),
        right("rows x cols"),
        right("zeros"),
        right(""),
        left("patterns ([rows:]zeros:columns)"),
    ]);
    for layer in &report.layers {
        let patterns: Vec<String> = layer.patterns.iter().map(ToString::to_string).collect();
        layers.row([
            layer.name.clone(),
            format!("{} x {}", layer.rows, layer.columns),
            layer.zeros.to_string(),
            table::percent(layer.fraction),
            patterns.join(" "),
        ]);
    }
    let share = report.zeros as f64 / report.weights.max(1) as f64;
    let remark = match &report.refused {
        Some(reason) => {
            format!("prune, eval, generate and logits refuse this model: {reason}\n")
        }
        None => String::new(),
    };
    console.print(&format!(
        "{layers}\n{} of {} weights in {} linear layers are zero ({})\n{remark}",
        report.zeros,
        report.weights,
        report.layers.len(),
        table::percent(share)
    ))?;
    console.print_json(&report)
}
