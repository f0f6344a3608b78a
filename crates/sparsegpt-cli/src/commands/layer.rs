//! `sparsegpt layer`: one weight matrix, no model needed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use ndarray::{Array2, ArrayView3, Axis, Ix3};
use serde::Serialize;
use sparsegpt::mask::{GivenMask, MaskPolicy};
use sparsegpt::quant::QuantizedLayer;
use sparsegpt::report::StageSeconds;
use sparsegpt::{
    Activations, Error, LayerPruner, LayerReport, LayerSettings, LayerTask, Pattern, PrunedLayer,
    Statistics,
};

use crate::console::Console;
use crate::failure::Failure;
use crate::flags::LayerFlags;
use crate::interrupt;
use crate::tensor_file::{self, Floats, OwnedTensor, TensorFile, check_output};

const WEIGHT: &str = "weight";
const HESSIAN: &str = "hessian";
const INPUTS: &str = "inputs";
const MASK: &str = "mask";

const AFTER_HELP: &str = "\
IN.safetensors holds
  weight   rows x cols (output x input features), f32, f16 or bf16
  hessian  cols x cols, f32, f16 or bf16, undamped, lower triangle read; or instead
  inputs   tokens x cols (one sequence) or sequences x tokens x cols, f32, f16 or bf16
  mask     optional: u8, rows x cols, 1 = keep; kept as it is without --pattern, extended to an
           unstructured pattern (50%) with it
--method magnitude needs neither hessian nor inputs.

OUT.safetensors holds
  pruned       f32, rows x cols
  kept         u8, rows x cols, 1 = not pruned
and with --bits, so that pruned = (codes - zero) * scale exactly in f32:
  codes        u8, rows x cols
  scale, zero  f32, rows x groups; rows, where each row is one group
  group_index  i32, cols: the group of each column, where --act-order permutes the groups
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

/// Several patterns.
#[derive(Debug, Serialize)]
struct Reports {
    variants: Vec<Report>,
}

pub(crate) fn run(args: &LayerArgs, threads: usize, console: &Console) -> Result<(), Failure> {
    check_output(&args.output, args.force)?;
    let file = TensorFile::read(&args.input)?;
    let Some(weights) = file.matrix(WEIGHT)? else {
        return Err(file.wrong(WEIGHT, format!("missing; the file has: {}", file.names()?)));
    };
    let patterns = args.flags.patterns()?;
    let mask = read_mask(&file)?;
    let variants = patterns
        .iter()
        .map(|&pattern| settings(&args.flags, pattern, mask.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let name = args
        .input
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for settings in &variants {
        settings.validate(&name, weights.nrows(), weights.ncols())?;
    }
    let pruner = args.flags.solver(threads, console)?;

    let start = Instant::now();
    let mut statistics = if args.flags.parts().needs_hessian() {
        Some(statistics(&file, &name, weights.ncols(), &*pruner)?)
    } else {
        None
    };
    let seconds_hessian = start.elapsed().as_secs_f64();
    interrupt::check()?;
    let tasks: Vec<LayerTask<'_>> = variants
        .iter()
        .map(|settings| LayerTask {
            name: &name,
            weights: weights.view(),
            settings,
        })
        .collect();
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
        let tensors = tensors(prefix.as_deref().unwrap_or_default(), &pruned, &args.flags);
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

/// What to prune: a pattern, a mask, or a mask extended to the sparsity of the pattern.
fn settings(
    flags: &LayerFlags,
    pattern: Option<Pattern>,
    mask: Option<&Array2<bool>>,
) -> Result<LayerSettings, Failure> {
    let policy: Arc<dyn MaskPolicy> = match (mask, pattern) {
        (None, None) if flags.bits.is_none() => {
            return Err(Failure::usage(
                "nothing to do: give --pattern (50%, row:50%, 2:4) or a tensor `mask` to prune, --bits (2 to 8) to quantize, or both",
            ));
        }
        (None, pattern) => Arc::new(pattern.unwrap_or(Pattern::Dense)),
        (Some(mask), None | Some(Pattern::Dense)) => Arc::new(GivenMask::keeping(mask.view())),
        (Some(mask), Some(Pattern::Unstructured(sparsity))) => {
            Arc::new(GivenMask::keeping(mask.view()).extended_to(sparsity))
        }
        (Some(_), Some(other)) => {
            return Err(Failure::usage(format!(
                "--pattern {other}: a given mask can be extended to an unstructured pattern only, as in 50%; leave the pattern out to keep the mask as it is"
            )));
        }
    };
    flags.settings(policy)
}

fn read_mask(file: &TensorFile) -> Result<Option<Array2<bool>>, Failure> {
    let Some(tensor) = file.tensor(MASK)? else {
        return Ok(None);
    };
    let &[rows, cols] = tensor.shape() else {
        return Err(file.wrong(
            MASK,
            format!("expected rows x cols, found {:?}", tensor.shape()),
        ));
    };
    let values = file.integers(MASK, &tensor)?;
    if let Some(other) = values.iter().find(|value| !(0..=1).contains(*value)) {
        return Err(file.wrong(
            MASK,
            format!("expected 0 (prune) or 1 (keep), found {other}"),
        ));
    }
    let keep = values.into_iter().map(|value| value == 1).collect();
    Array2::from_shape_vec((rows, cols), keep)
        .map(Some)
        .map_err(|e| file.wrong(MASK, e))
}

fn statistics(
    file: &TensorFile,
    layer: &str,
    cols: usize,
    pruner: &dyn LayerPruner,
) -> Result<Box<dyn Statistics>, Failure> {
    if let Some(hessian) = file.matrix(HESSIAN)? {
        if file.tensor(INPUTS)?.is_some() {
            return Err(file.wrong(INPUTS, "beside `hessian`; give one of the two"));
        }
        if hessian.dim() != (cols, cols) {
            let (rows, found) = hessian.dim();
            return Err(file.wrong(
                HESSIAN,
                format!("expected {cols} x {cols}, as `weight` has {cols} columns, found {rows} x {found}"),
            ));
        }
        return Ok(pruner.statistics_from(layer, hessian.view())?);
    }
    let Some(tensor) = file.tensor(INPUTS)? else {
        return Err(file.wrong(
            HESSIAN,
            format!(
                "missing, and no `inputs` either (magnitude alone needs none); the file has: {}",
                file.names()?
            ),
        ));
    };
    let (sequences, tokens) = match *tensor.shape() {
        [tokens, width] if width == cols => (1, tokens),
        [sequences, tokens, width] if width == cols => (sequences, tokens),
        ref other => {
            return Err(file.wrong(
                INPUTS,
                format!("expected tokens x {cols} or sequences x tokens x {cols}, as `weight` has {cols} columns, found {other:?}"),
            ));
        }
    };
    let shape = (sequences, tokens, cols);
    let mut statistics = pruner.statistics(layer, cols)?;
    let wrong_shape = |error: ndarray::ShapeError| file.wrong(INPUTS, error);
    match file.floats(INPUTS, &tensor)? {
        Floats::F32(values) => observe(
            &mut *statistics,
            ArrayView3::from_shape(shape, &values).map_err(wrong_shape)?,
        ),
        Floats::Bf16(values) => observe(
            &mut *statistics,
            ArrayView3::from_shape(shape, &values).map_err(wrong_shape)?,
        ),
        Floats::F16(values) => observe(
            &mut *statistics,
            ArrayView3::from_shape(shape, &values).map_err(wrong_shape)?,
        ),
    }?;
    Ok(statistics)
}

/// Adds sequences x tokens x cols, sequence by sequence.
fn observe<'a, T>(
    statistics: &mut dyn Statistics,
    inputs: ndarray::ArrayView<'a, T, Ix3>,
) -> Result<(), Failure>
where
    Activations<'a>: From<ndarray::ArrayView2<'a, T>>,
{
    for sequence in 0..inputs.len_of(Axis(0)) {
        let tokens = inputs.index_axis_move(Axis(0), sequence);
        statistics.update(Activations::from(tokens).into())?;
    }
    Ok(())
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
