//! What a run would do, without reading a weight.

use serde::Serialize;
use sparsegpt::Pattern;
use sparsegpt::driver::PlannedLayer;

use super::summary::DENSE_CALIBRATION;
use super::{Job, planned_size};
use crate::cost;
use crate::failure::Failure;
use crate::flags::folder_name;
use crate::model;
use crate::table::{self, Table, left, right};

#[derive(Debug, Serialize)]
struct Plan {
    #[serde(flatten)]
    what: What,
    /// How the zeros of the layers will be divided; their patterns above are what the whole of them gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allocation: Vec<Allocation>,
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
#[serde(rename_all = "lowercase")]
enum What {
    Layers(Vec<Layer>),
    Variants(Vec<Variant>),
}

/// One pattern's zeros.
#[derive(Debug, Serialize)]
struct Allocation {
    allocator: String,
    weights: u64,
    zeros: u64,
    floor: String,
    ceiling: String,
    /// How often each layer is solved to find out.
    solutions: usize,
}

/// One of several patterns.
#[derive(Debug, Serialize)]
struct Variant {
    pattern: Pattern,
    /// In the output folder.
    folder: String,
    layers: Vec<Layer>,
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

pub(super) fn run(job: &Job<'_>) -> Result<(), Failure> {
    let size = planned_size(job.checkpoint, job.config, job.flags, job.console)?;
    let costs = cost::blocks(job.planned, job.config, size);
    let run: f64 = costs.iter().map(|cost| cost.total(size.sequences)).sum();
    let flops = run + job.allocation_flops(size);
    let flops_per_second = cost::measure_speed(job.pruner)?;
    let plan = Plan {
        what: what(job),
        allocation: allocation(job),
        blocks: costs.len(),
        sequences: size.sequences,
        sequence_length: size.length,
        peak_memory_bytes: cost::peak_bytes(job.planned, job.config, size),
        mapped_bytes: model::stored_bytes(job.checkpoint),
        seconds: flops / flops_per_second,
        flops,
        flops_per_second,
    };
    job.console.print(&text(&plan))?;
    job.console.print_json(&plan)
}

fn what(job: &Job<'_>) -> What {
    let layers = |planned: &Vec<Vec<PlannedLayer>>| planned.iter().flatten().map(layer).collect();
    if let [planned] = job.planned {
        return What::Layers(layers(planned));
    }
    let variants = job.flags.layer.pattern.iter().zip(job.planned);
    What::Variants(
        variants
            .map(|(&pattern, planned)| Variant {
                pattern,
                folder: folder_name(pattern),
                layers: layers(planned),
            })
            .collect(),
    )
}

fn allocation(job: &Job<'_>) -> Vec<Allocation> {
    let variants = job.allocating.iter().zip(job.planned);
    variants
        .filter_map(|(allocating, planned)| {
            let allocating = allocating.as_ref()?;
            let treated = planned
                .iter()
                .flatten()
                .filter(|layer| layer.settings.is_some());
            let weights = treated
                .map(|layer| (layer.layer.rows * layer.layer.cols) as u64)
                .sum();
            Some(Allocation {
                allocator: allocating.allocator().describe(),
                weights,
                zeros: allocating.budget.sparsity.count(weights),
                floor: allocating.budget.floor.to_string(),
                ceiling: allocating.budget.ceiling.to_string(),
                solutions: allocating.solutions(),
            })
        })
        .collect()
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
    let calibration = if plan.sequences == 0 {
        "without calibration".to_owned()
    } else {
        format!(
            "calibrated on {} sequences of {} tokens",
            plan.sequences, plan.sequence_length
        )
    };
    let in_blocks = format!("in {} blocks, {calibration}", plan.blocks);
    let what = match &plan.what {
        What::Layers(layers) => format!("{} {in_blocks}\n", layer_table(layers)),
        What::Variants(variants) => {
            let mut text = String::new();
            for variant in variants {
                let Variant {
                    pattern, folder, ..
                } = variant;
                text += &format!("pattern {pattern}, to the folder {folder}\n");
                text += &layer_table(&variant.layers);
                text += "\n\n";
            }
            text += &format!("{} patterns in one pass, {in_blocks}\n", variants.len());
            if plan.sequences > 0 {
                text += DENSE_CALIBRATION;
            }
            text
        }
    };
    let mut allocation = String::new();
    for of in &plan.allocation {
        allocation += &format!(
            "{}: {} of {} weights become zero, {} to {} of each layer; which layer gets how many is found out first",
            of.allocator, of.zeros, of.weights, of.floor, of.ceiling
        );
        if of.solutions > 0 {
            allocation += &format!(
                ", by solving each {} times on the dense model",
                of.solutions
            );
        }
        allocation.push('\n');
    }
    format!(
        "{what}{allocation}\
         peak memory about {}, and up to {} of mapped files that the system takes back when it needs to\n\
         about {} ({:.1} TFLOP at a measured {:.1} GFLOP/s)\n\
         dry run: no weights were read, nothing was written\n",
        table::bytes(plan.peak_memory_bytes),
        table::bytes(plan.mapped_bytes as f64),
        table::seconds(plan.seconds),
        plan.flops / 1e12,
        plan.flops_per_second / 1e9,
    )
}

/// The layers, and how many of them are treated.
fn layer_table(layers: &[Layer]) -> String {
    let mut table = Table::new([
        left("layer"),
        right("rows x cols"),
        left("method"),
        left("pattern"),
        left("quantization"),
    ]);
    for layer in layers {
        let word =
            |word: &Option<String>, absent: &str| word.clone().unwrap_or_else(|| absent.to_owned());
        table.row([
            layer.name.clone(),
            format!("{} x {}", layer.rows, layer.cols),
            word(&layer.method, "skipped"),
            word(&layer.pattern, ""),
            word(&layer.quantization, ""),
        ]);
    }
    let treated = layers.iter().filter(|layer| layer.method.is_some()).count();
    format!("{table}\n{treated} of {} layers", layers.len())
}
