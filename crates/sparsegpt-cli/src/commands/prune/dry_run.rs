//! What a run would do, without reading a weight.

use serde::Serialize;
use sparsegpt::LayerPruner;
use sparsegpt::driver::PlannedLayer;
use sparsegpt_models::checkpoint::Checkpoint;
use sparsegpt_models::decoder::LlamaConfig;

use crate::console::Console;
use crate::cost::{self, CalibrationSize};
use crate::failure::Failure;
use crate::model;
use crate::table::{self, Table, left, right};

#[derive(Debug, Serialize)]
struct Plan {
    layers: Vec<Layer>,
    blocks: usize,
    sequences: usize,
    sequence_length: usize,
    /// Of the process, pages of mapped files left out; an estimate.
    peak_memory_bytes: f64,
    /// The weights as stored: mapped, so that their pages may be resident as long as nobody else wants
    /// the memory.
    mapped_bytes: u64,
    /// An estimate from `flops` and `flops_per_second`.
    seconds: f64,
    flops: f64,
    /// Of the backend, on a small product.
    flops_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Layer {
    name: String,
    rows: usize,
    cols: usize,
    /// `None`: left as it is.
    method: Option<String>,
    pattern: Option<String>,
    quantization: Option<String>,
}

pub(super) fn run(
    checkpoint: &Checkpoint,
    planned: &[Vec<PlannedLayer>],
    config: &LlamaConfig,
    size: CalibrationSize,
    pruner: &dyn LayerPruner,
    console: &Console,
) -> Result<(), Failure> {
    let flops: f64 = cost::blocks(planned, config, size)
        .iter()
        .map(|cost| cost.total(size.sequences))
        .sum();
    let flops_per_second = cost::measure_speed(pruner)?;
    let plan = Plan {
        layers: planned.iter().flatten().map(layer).collect(),
        blocks: planned.len(),
        sequences: size.sequences,
        sequence_length: size.length,
        peak_memory_bytes: cost::peak_bytes(planned, config, size),
        mapped_bytes: model::stored_bytes(checkpoint),
        seconds: flops / flops_per_second,
        flops,
        flops_per_second,
    };
    console.print(&text(&plan))?;
    console.print_json(&plan)
}

fn layer(planned: &PlannedLayer) -> Layer {
    let settings = planned.settings.as_ref();
    Layer {
        name: planned.layer.name.clone(),
        rows: planned.layer.rows,
        cols: planned.layer.cols,
        method: settings.map(|settings| settings.method.to_string()),
        pattern: settings.map(|settings| settings.mask.describe()),
        quantization: settings
            .and_then(|settings| settings.quantizer.as_ref())
            .map(|quantizer| quantizer.describe()),
    }
}

fn text(plan: &Plan) -> String {
    let mut layers = Table::new([
        left("layer"),
        right("rows x cols"),
        left("method"),
        left("pattern"),
        left("quantization"),
    ]);
    for layer in &plan.layers {
        let word =
            |word: &Option<String>, absent: &str| word.clone().unwrap_or_else(|| absent.to_owned());
        layers.row([
            layer.name.clone(),
            format!("{} x {}", layer.rows, layer.cols),
            word(&layer.method, "skipped"),
            word(&layer.pattern, ""),
            word(&layer.quantization, ""),
        ]);
    }
    let treated = plan
        .layers
        .iter()
        .filter(|layer| layer.method.is_some())
        .count();
    let calibration = if plan.sequences == 0 {
        "without calibration".to_owned()
    } else {
        format!(
            "calibrated on {} sequences of {} tokens",
            plan.sequences, plan.sequence_length
        )
    };
    format!(
        "{layers}\n{treated} of {} layers in {} blocks, {calibration}\n\
         peak memory about {}, and up to {} of mapped files that the system takes back when it needs to\n\
         about {} ({:.1} TFLOP at a measured {:.1} GFLOP/s)\n\
         dry run: no weights were read, nothing was written\n",
        plan.layers.len(),
        plan.blocks,
        table::bytes(plan.peak_memory_bytes),
        table::bytes(plan.mapped_bytes as f64),
        table::seconds(plan.seconds),
        plan.flops / 1e12,
        plan.flops_per_second / 1e9,
    )
}
