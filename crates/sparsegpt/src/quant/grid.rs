//! Grids as plain data, and what a quantized layer leaves behind.

use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayView2, Zip, s};

use crate::backend::GridKind;
use crate::backend::host;
use crate::error::{Error, Result};
use crate::threads::for_ranges;

/// The kind of levels a quantizer rounds to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum GridLevels {
    /// scale·(code − zero) for the integer codes 0..=max_code.
    Affine {
        /// Largest code, 2^bits − 1.
        max_code: u32,
    },
    /// scale·level for the given levels (ascending, at most 256).
    Codebook {
        /// Levels in ascending order.
        levels: Arc<[f32]>,
    },
}

impl GridLevels {
    pub(crate) fn kind(&self) -> GridKind<'_> {
        match self {
            Self::Affine { max_code } => GridKind::Affine {
                max_code: *max_code,
            },
            Self::Codebook { levels } => GridKind::Codebook { levels },
        }
    }
}

/// Scales and zero points of some rows.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Grid {
    /// One a row, positive.
    pub scale: Array1<f32>,
    /// One a row, an integer in 0..=max_code stored as f32; 0 for code books.
    pub zero: Array1<f32>,
}

impl Grid {
    /// Scales and zero points, one of each a row.
    #[must_use]
    pub fn new(scale: Array1<f32>, zero: Array1<f32>) -> Self {
        Self { scale, zero }
    }
}

/// The quantized form of a layer: w = (code − zero)·scale, or scale·level\[code\] for code books.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QuantizedLayer {
    /// rows x cols. A pruned weight has the code of exact zero.
    pub codes: Array2<u8>,
    /// rows x groups.
    pub scale: Array2<f32>,
    /// rows x groups; integers stored as f32.
    pub zero: Array2<f32>,
    /// The group (column of `scale` and `zero`) of each input column. Not ascending after act-order with
    /// groups that are found on the way.
    pub group_of_column: Vec<usize>,
    /// The kind of levels.
    pub levels: GridLevels,
}

/// Added to a value below 2²² it leaves no bits for a fraction, so adding and subtracting it rounds to the
/// nearest whole number, ties to even, without an instruction that old processors lack.
pub(crate) const ROUNDER: f32 = 1.5 * (1 << 23) as f32;

impl QuantizedLayer {
    /// Reads the codes off weights that lie on the grid.
    pub(crate) fn encode(
        weights: ArrayView2<'_, f32>,
        levels: GridLevels,
        scale: Array2<f32>,
        zero: Array2<f32>,
        group_of_column: Vec<usize>,
    ) -> Self {
        let mut codes = Array2::zeros(weights.dim());
        for_ranges(&mut codes, |first, mut part| {
            for (at, mut codes) in part.rows_mut().into_iter().enumerate() {
                let row = first + at;
                let mut start = 0;
                // Runs of columns with one grid, so that the loop over them is free of lookups.
                for run in group_of_column.chunk_by(|a, b| a == b) {
                    let columns = start..start + run.len();
                    start = columns.end;
                    let (scale, zero) = (scale[[row, run[0]]], zero[[row, run[0]]]);
                    let weights = weights.slice(s![row, columns.clone()]);
                    let codes = Zip::from(codes.slice_mut(s![columns])).and(weights);
                    match &levels {
                        GridLevels::Affine { max_code } => {
                            let (low, high) = (-zero, *max_code as f32 - zero);
                            codes.for_each(|code, &weight| {
                                let steps = (weight / scale).clamp(low, high);
                                *code = (steps + ROUNDER - ROUNDER + zero) as u8;
                            });
                        }
                        GridLevels::Codebook { levels } => {
                            codes.for_each(|code, &weight| {
                                *code = host::nearest(levels, weight / scale) as u8;
                            });
                        }
                    }
                }
            }
        });
        Self {
            codes,
            scale,
            zero,
            group_of_column,
            levels,
        }
    }

    /// From its parts, as they were read from a file.
    ///
    /// # Errors
    /// If their shapes do not go together, or a column's group or a code is out of range.
    pub fn from_parts(
        codes: Array2<u8>,
        scale: Array2<f32>,
        zero: Array2<f32>,
        group_of_column: Vec<usize>,
        levels: GridLevels,
    ) -> Result<Self> {
        let (rows, cols) = codes.dim();
        let codes_below = match &levels {
            GridLevels::Affine { max_code } => *max_code as usize + 1,
            GridLevels::Codebook { levels } => levels.len(),
        };
        let fits = scale.nrows() == rows
            && scale.dim() == zero.dim()
            && group_of_column.len() == cols
            && group_of_column.iter().all(|&group| group < scale.ncols())
            && codes.iter().all(|&code| usize::from(code) < codes_below);
        if !fits {
            return Err(Error::setting(
                "quantized layer",
                "scale and zero of rows x groups, a group for each column, codes within the levels",
                format!(
                    "codes {rows} x {cols}, scale {:?}, zero {:?}, {} groups of columns",
                    scale.dim(),
                    zero.dim(),
                    group_of_column.len()
                ),
            ));
        }
        Ok(Self {
            codes,
            scale,
            zero,
            group_of_column,
            levels,
        })
    }

    /// The weights again, rows x cols.
    #[must_use]
    pub fn dequantize(&self) -> Array2<f32> {
        Array2::from_shape_fn(self.codes.dim(), |(row, col)| {
            let group = self.group_of_column[col];
            let (code, scale) = (self.codes[[row, col]], self.scale[[row, group]]);
            match &self.levels {
                GridLevels::Affine { .. } => (f32::from(code) - self.zero[[row, group]]) * scale,
                GridLevels::Codebook { levels } => scale * levels[usize::from(code)],
            }
        })
    }
}
