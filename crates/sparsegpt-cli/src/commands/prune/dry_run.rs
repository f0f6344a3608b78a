//! What a run would do, without reading a weight.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde::Serialize;
use sparsegpt::Pattern;
use sparsegpt::driver::PlannedLayer;
use sparsegpt_models::checkpoint::{Dtype, parse_dtype};

use super::summary::DENSE_CALIBRATION;
use super::{Job, planned_size};
use crate::cost::{
    self, CalibrationSize, Files, Machine, Measuring, Memory, Rates, Sizes, StageTime,
};
use crate::failure::Failure;
use crate::flags::folder_name;
use crate::table::{self, Table, left, right};

/// Layers that are listed one by one; of more, those that are alike stand in one line.
const LISTED: usize = 256;

#[derive(Debug, Serialize)]
struct Plan {
    #[serde(flatten)]
    what: What,
    /// How the zeros of the layers will be divided; their patterns above are what the whole of them gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allocation: Vec<Allocation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    blocks: usize,
    sequences: usize,
    sequence_length: usize,
    /// Whether there is a config.json alone.
    outlined: bool,
    machine: Machine,
    /// Of the process, pages of mapped files left out; an estimate.
    peak_memory_bytes: f64,
    /// The weights as stored and as written: mapped, so that their pages may be resident as long as nobody else wants
    /// the memory.
    mapped_bytes: f64,
    memory: Memory,
    /// Memory of the device that the plan is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_bytes: Option<f64>,
    flops: f64,
    /// The sum of those of the stages.
    seconds: f64,
    stages: Vec<StageTime>,
    /// What the method does beyond one sweep, which is not in the seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    uncounted: Option<String>,
    disk: Sizes,
}

/// How many tokens experts may expect.
#[derive(Debug, Serialize)]
struct Experts {
    count: usize,
    active: usize,
    /// Calibration tokens of an expert, if all get the same.
    tokens: f64,
    /// Columns of the widest layer that reads them.
    cols: usize,
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
    let mut work = cost::work(job.planned, job.config, size);
    work += job.allocation_work(size);
    let (files, dtype) = files(job)?;
    let machine = job.args.plan_for.unwrap_or_default();
    let measuring = Measuring {
        pruner: job.pruner,
        config: job.config,
        widest: cost::widest(job.planned),
    };
    let rates = Rates::new(machine, &job.args.plan_rates, measuring)?;
    let on_device = machine != Machine::Here || job.pruner.info().name == "cuda";
    let stages = rates.stages(&work, files);
    let memory = cost::memory(job.planned, job.config, size, files, on_device);
    let plan = Plan {
        what: what(job),
        allocation: allocation(job),
        experts: experts(job, size),
        blocks: job.config.blocks,
        sequences: size.sequences,
        sequence_length: size.length,
        outlined: job.checkpoint.is_outline(),
        machine,
        peak_memory_bytes: memory.own,
        mapped_bytes: memory.mapped,
        device_bytes: rates.device_memory().filter(|_| on_device),
        memory,
        flops: work.flops(),
        seconds: stages.iter().map(|stage| stage.seconds).sum(),
        stages,
        uncounted: uncounted(job),
        disk: cost::sizes(
            &job.planned[0],
            files.result,
            dtype,
            job.flags.layer.group_size,
        ),
    };
    job.console.print(&text(&plan))?;
    job.console.print_json(&plan)
}

/// What the run reads and writes, and the type that most of its result has.
fn files(job: &Job<'_>) -> Result<(Files, Dtype), Failure> {
    let asked = job.flags.dtype.as_deref().map(parse_dtype).transpose()?;
    let tensors = job.checkpoint.tensors();
    let mut bytes_of: Vec<(Dtype, f64)> = Vec::new();
    for name in tensors.names() {
        let Some(info) = tensors.info(&name) else {
            continue;
        };
        let is_float = matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let dtype = asked.filter(|_| is_float).unwrap_or(info.dtype);
        let elements: f64 = info.shape.iter().map(|&size| size as f64).product();
        let bytes = elements * dtype.bitsize() as f64 / 8.0;
        match bytes_of.iter_mut().find(|(of, _)| *of == dtype) {
            Some((_, sum)) => *sum += bytes,
            None => bytes_of.push((dtype, bytes)),
        }
    }
    let most = bytes_of.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
    let unpacked = !job.checkpoint.is_outline() && job.checkpoint.path().is_file();
    let source = job.checkpoint.weight_bytes().map_err(Failure::reading)?;
    let files = Files {
        source: source as f64,
        result: bytes_of.iter().map(|(_, bytes)| bytes).sum(),
        unpacked,
        cast: unpacked || asked.is_some(),
    };
    Ok((files, most.map_or(Dtype::F32, |(dtype, _)| dtype)))
}

fn experts(job: &Job<'_>, size: CalibrationSize) -> Option<Experts> {
    let experts = job.config.experts.as_ref().filter(|_| size.sequences > 0)?;
    Some(Experts {
        count: experts.count,
        active: experts.active,
        tokens: size.tokens() * experts.active as f64 / experts.count as f64,
        cols: job.config.hidden_size.max(experts.intermediate_size),
    })
}

/// The parts of the method that take time of their own.
fn uncounted(job: &Job<'_>) -> Option<String> {
    let treated = job.planned.iter().flatten().flatten();
    let settings = treated.filter_map(|layer| layer.settings.as_ref());
    let more = settings
        .filter(|settings| settings.needs_hessian() && !cost::is_counted(settings))
        .map(|settings| settings.method.to_string())
        .next()?;
    Some(format!(
        "method {more} with these flags does other things than one sweep over the columns, which the seconds do not count"
    ))
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
    let experts = plan.experts.as_ref().map_or_else(String::new, expert_text);
    let mut text = format!("{what}{allocation}{experts}\n");
    memory_text(plan, &mut text);
    text.push('\n');
    time_text(plan, &mut text);
    text.push('\n');
    disk_text(plan, &mut text);
    text += match plan.outlined {
        true => "\nplanned from config.json alone, nothing was written\n",
        false => "\ndry run: no weights were read, nothing was written\n",
    };
    text
}

fn expert_text(experts: &Experts) -> String {
    let Experts {
        count,
        active,
        tokens,
        cols,
    } = experts;
    let few = match *tokens < *cols as f64 {
        true => {
            format!(", fewer than the {cols} columns of its layers: damping makes up for the rest")
        }
        false => String::new(),
    };
    format!(
        "each of {count} experts sees about {tokens:.0} tokens, {active} experts a token{few}\n"
    )
}

fn memory_text(plan: &Plan, text: &mut String) {
    let memory = &plan.memory;
    let mut parts = Table::new([left("memory"), right("size")]);
    let mut row = |name: &str, bytes: f64| parts.row([name.to_owned(), table::bytes(bytes)]);
    for (name, bytes) in [
        ("hidden states of the calibration set", memory.hidden_states),
        ("embeddings, for the first block's inputs", memory.embedding),
        ("a block's weights", memory.block_weights),
        ("its Hessians", memory.hessians),
        ("a forward pass", memory.forward),
        ("solving a layer", memory.solving),
    ] {
        if bytes > 0.0 {
            row(name, bytes);
        }
    }
    row("peak memory of the process itself", memory.own);
    row("mapped files, which the system takes back", memory.mapped);
    row(
        "with the files mapped then, where memory is free",
        memory.resident,
    );
    let _ = write!(text, "{parts}");
    let _ = writeln!(text, "most while {}", memory.phase.name());
    let Some(device) = &memory.device else {
        return;
    };
    let peak = device.peak();
    let _ = write!(
        text,
        "on the device {}: a block's Hessians {}, a layer {}",
        table::bytes(peak),
        table::bytes(device.hessians),
        table::bytes(device.layer)
    );
    text.push_str(&match plan.device_bytes {
        None => "\n".to_owned(),
        Some(there) if peak <= there => format!("; fits into {}\n", table::bytes(there)),
        Some(there) if device.hessians < there => format!(
            "; more than {}: layers are solved in slices of rows, which takes a pattern whose rows are independent (row:50%, 2:4)\n",
            table::bytes(there)
        ),
        Some(there) => format!(
            "; more than {}, and Hessians are not divided: calibrate stage by stage (--true-sequential) or on the processor\n",
            table::bytes(there)
        ),
    });
}

fn time_text(plan: &Plan, text: &mut String) {
    let mut stages = Table::new([
        left("stage"),
        right("work"),
        right("rate"),
        left(""),
        right("time"),
    ]);
    for stage in &plan.stages {
        stages.row([
            stage.stage.name().to_owned(),
            table::quantity(stage.work, stage.unit),
            format!("{}/s", table::quantity(stage.rate, stage.unit)),
            stage.origin.to_string(),
            table::seconds(stage.seconds),
        ]);
    }
    let _ = write!(text, "{stages}");
    let _ = writeln!(
        text,
        "about {} ({:.1} TFLOP)",
        table::seconds(plan.seconds),
        plan.flops / 1e12
    );
    if let Some(uncounted) = &plan.uncounted {
        let _ = writeln!(text, "{uncounted}");
    }
}

fn disk_text(plan: &Plan, text: &mut String) {
    let disk = &plan.disk;
    let mut sizes = Table::new([left("on disk"), right("size"), right("of dense")]);
    for (name, bytes) in [
        ("dense, or with the zeros in place", disk.dense),
        ("packed, a bit a weight and what is not zero", disk.bitmask),
        ("packed, every layer 2:4", disk.two_of_four),
        ("packed, a bit a weight and 4 bit codes", disk.bitmask_4bit),
        ("--format gptq, 4 bits", disk.gptq_4bit),
    ] {
        sizes.row([
            name.to_owned(),
            table::bytes(bytes),
            table::percent(bytes / disk.dense.max(1.0)),
        ]);
    }
    let _ = write!(text, "{sizes}");
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
    let alike = match layers.len() > LISTED {
        true => alike(layers),
        false => layers
            .iter()
            .map(|layer| (layer.name.clone(), layer))
            .collect(),
    };
    for (name, layer) in alike {
        let word =
            |word: &Option<String>, absent: &str| word.clone().unwrap_or_else(|| absent.to_owned());
        table.row([
            name,
            format!("{} x {}", layer.rows, layer.cols),
            word(&layer.method, "skipped"),
            word(&layer.pattern, ""),
            word(&layer.quantization, ""),
        ]);
    }
    let treated = layers.iter().filter(|layer| layer.method.is_some()).count();
    format!("{table}\n{treated} of {} layers", layers.len())
}

/// Layers whose names differ in numbers alone, and that are treated alike, under one name with ranges in place of the
/// numbers, as in `model.layers.0-31.mlp.down_proj (32)`; how many they are stands behind it.
fn alike(layers: &[Layer]) -> Vec<(String, &Layer)> {
    let mut groups: Vec<(Vec<Part<'_>>, usize, &Layer)> = Vec::new();
    let mut places: HashMap<_, usize> = HashMap::new();
    for layer in layers {
        let parts: Vec<Part<'_>> = layer.name.split('.').map(Part::of).collect();
        let words: Vec<&str> = parts.iter().map(Part::word).collect();
        let Layer {
            rows,
            cols,
            method,
            pattern,
            quantization,
            ..
        } = layer;
        let key = (words, *rows, *cols, method, pattern, quantization);
        let place = *places.entry(key).or_insert(groups.len());
        match groups.get_mut(place) {
            None => groups.push((parts, 1, layer)),
            Some((ranges, count, _)) => {
                *count += 1;
                for (range, part) in ranges.iter_mut().zip(parts) {
                    range.widen(part);
                }
            }
        }
    }
    let named = |(parts, count, layer): (Vec<Part<'_>>, usize, _)| {
        let words: Vec<String> = parts.iter().map(Part::text).collect();
        (format!("{} ({count})", words.join(".")), layer)
    };
    groups.into_iter().map(named).collect()
}

/// A part of a name between dots.
#[derive(Clone, Copy, Debug)]
enum Part<'n> {
    Word(&'n str),
    Numbers(u64, u64),
}

impl<'n> Part<'n> {
    fn of(text: &'n str) -> Self {
        match text.parse() {
            Ok(number) => Self::Numbers(number, number),
            Err(_) => Self::Word(text),
        }
    }

    fn word(&self) -> &'n str {
        match self {
            Self::Word(word) => word,
            Self::Numbers(..) => "",
        }
    }

    fn widen(&mut self, other: Self) {
        if let (Self::Numbers(first, last), Self::Numbers(from, to)) = (self, other) {
            (*first, *last) = ((*first).min(from), (*last).max(to));
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Word(word) => (*word).to_owned(),
            Self::Numbers(first, last) if first == last => first.to_string(),
            Self::Numbers(first, last) => format!("{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_treated_alike_share_a_line() {
        let layer = |name: String, method: &str| Layer {
            name,
            rows: 2,
            cols: 4,
            method: Some(method.to_owned()),
            pattern: None,
            quantization: None,
        };
        let mut layers = Vec::new();
        for block in 0..3 {
            for expert in 0..2 {
                let method = if block == 1 { "wanda" } else { "sparsegpt" };
                layers.push(layer(format!("layers.{block}.experts.{expert}.w1"), method));
            }
            layers.push(layer(format!("layers.{block}.q"), "sparsegpt"));
        }
        let names: Vec<String> = alike(&layers).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "layers.0-2.experts.0-1.w1 (4)",
                "layers.0-2.q (3)",
                "layers.1.experts.0-1.w1 (2)"
            ]
        );
    }
}
