//! One layer in a safetensors file: weights, what is known of their input, and perhaps a mask.

use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayView, ArrayView2, ArrayView3, Axis, Ix3};
use sparsegpt::mask::{GivenMask, MaskPolicy};
use sparsegpt::{Activations, LayerPruner, LayerSettings, Pattern, Statistics};

use crate::failure::Failure;
use crate::flags::LayerFlags;
use crate::tensor_file::{Floats, TensorFile};

const WEIGHT: &str = "weight";
const HESSIAN: &str = "hessian";
const INPUTS: &str = "inputs";
const MASK: &str = "mask";

/// A layer as `sparsegpt layer` describes it.
#[derive(Debug)]
pub(crate) struct LayerFile {
    file: TensorFile,
    /// The file's name.
    pub(crate) name: String,
    /// rows x cols.
    pub(crate) weights: Array2<f32>,
    /// `true` = keep.
    pub(crate) mask: Option<Array2<bool>>,
}

impl LayerFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let file = TensorFile::read(path)?;
        let Some(weights) = file.matrix(WEIGHT)? else {
            return Err(file.wrong(WEIGHT, format!("missing; the file has: {}", file.names()?)));
        };
        let mask = read_mask(&file)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: name.into_owned(),
            weights,
            mask,
            file,
        })
    }

    /// What to prune: a pattern, a mask, or a mask extended to the sparsity of the pattern.
    pub(crate) fn settings(
        &self,
        flags: &LayerFlags,
        pattern: Option<Pattern>,
    ) -> Result<LayerSettings, Failure> {
        let policy: Arc<dyn MaskPolicy> = match (&self.mask, pattern) {
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

    /// Whether the file tells of the layer's input.
    pub(crate) fn has_statistics(&self) -> Result<bool, Failure> {
        Ok(self.file.tensor(HESSIAN)?.is_some() || self.file.tensor(INPUTS)?.is_some())
    }

    /// Statistics of the layer's input; of the last `held_out` sequences of `inputs` apart.
    pub(crate) fn statistics(
        &self,
        pruner: &dyn LayerPruner,
        held_out: usize,
    ) -> Result<Box<dyn Statistics>, Failure> {
        let (file, cols) = (&self.file, self.weights.ncols());
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
            if let Some((row, col)) = contradicted(hessian.view()) {
                let (upper, lower) = (hessian[[row, col]], hessian[[col, row]]);
                return Err(file.wrong(
                    HESSIAN,
                    format!("expected a symmetric matrix, or its lower triangle with zeros above, found {upper:e} in row {row}, column {col}, and {lower:e} in row {col}, column {row}"),
                ));
            }
            if held_out > 0 {
                return Err(Failure::usage(format!(
                    "--held-out {held_out}: `{HESSIAN}` does not tell its sequences apart; give `{INPUTS}` in its place"
                )));
            }
            return Ok(pruner.statistics_from(&self.name, hessian.view())?);
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
        if held_out > 0 && held_out >= sequences {
            return Err(Failure::usage(format!(
                "--held-out {held_out}: `{INPUTS}` holds {sequences} sequences (sequences x tokens x cols), and at least one must calibrate"
            )));
        }
        let shape = (sequences, tokens, cols);
        let mut statistics = pruner.statistics(&self.name, cols)?;
        let into = (&mut *statistics, held_out);
        let wrong_shape = |error: ndarray::ShapeError| file.wrong(INPUTS, error);
        match file.floats(INPUTS, &tensor)? {
            Floats::F32(values) => observe(
                into,
                ArrayView3::from_shape(shape, &values).map_err(wrong_shape)?,
            ),
            Floats::Bf16(values) => observe(
                into,
                ArrayView3::from_shape(shape, &values).map_err(wrong_shape)?,
            ),
            Floats::F16(values) => observe(
                into,
                ArrayView3::from_shape(shape, &values).map_err(wrong_shape)?,
            ),
        }?;
        Ok(statistics)
    }
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

/// Adds sequences x tokens x cols, sequence by sequence, the last `held_out` to what is held out.
fn observe<'a, T>(
    (statistics, held_out): (&mut dyn Statistics, usize),
    inputs: ArrayView<'a, T, Ix3>,
) -> Result<(), Failure>
where
    Activations<'a>: From<ArrayView2<'a, T>>,
{
    let sequences = inputs.len_of(Axis(0));
    for sequence in 0..sequences {
        let tokens = inputs.index_axis_move(Axis(0), sequence);
        let batch = Activations::from(tokens).into();
        if sequence + held_out < sequences {
            statistics.update(batch)?;
        } else {
            statistics.hold_out(batch)?;
        }
    }
    Ok(())
}

/// Row and column of an entry above the diagonal of a square matrix that its twin below, which alone is read,
/// contradicts by more than rounding does; none where all above are 0.
fn contradicted(hessian: ArrayView2<'_, f32>) -> Option<(usize, usize)> {
    // Of √(Hᵢᵢ·Hⱼⱼ), the most that |Hᵢⱼ| can be: far above the rounding of f16 and bf16.
    const ROUNDING: f32 = 0.02;
    let above = || {
        (0..hessian.nrows()).flat_map(|row| (row + 1..hessian.ncols()).map(move |col| (row, col)))
    };
    if above().all(|at| hessian[at] == 0.0) {
        return None;
    }
    above().find(|&(row, col)| {
        let most = (hessian[[row, row]] * hessian[[col, col]]).abs().sqrt();
        let apart = (hessian[[row, col]] - hessian[[col, row]]).abs();
        // Where both are no numbers, that is what is wrong, and what will be told.
        let numbers = hessian[(row, col)].is_finite() || hessian[(col, row)].is_finite();
        numbers && (apart.is_nan() || apart > ROUNDING * most)
    })
}
