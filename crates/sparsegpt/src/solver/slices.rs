//! Layers larger than a device's memory: some rows at a time, against one factor.
//!
//! Rows meet in the choice of a layer-wide threshold and in a grid for the whole matrix, and nowhere else. Where neither is
//! asked for, slices give what the whole layer gives.

use std::ops::Range;

use ndarray::{Array2, s};

use super::Solved;
use super::job::Job;
use crate::backend::Backend;
use crate::error::{Result, Stage};
use crate::quant::{Granularity, QuantizedLayer};

/// Matrices of a layer's size at a time: updates and dense weights while solving, and beside them, while measuring, the
/// dense weights anew and what a backend needs for the energies.
const MATRICES: usize = 4;

/// The slices to treat one after the other; `None` for the whole layer at once, where it fits, and where its rows cannot be
/// told apart.
pub(super) fn of<B: Backend>(
    job: &Job<'_, B>,
    widest_block: usize,
) -> Result<Option<Vec<Range<usize>>>> {
    if !rows_are_independent(job) {
        return Ok(None);
    }
    let free = job
        .backend
        .free_bytes()
        .map_err(|e| job.failed(Stage::Transfer, e))?;
    // Masks take a byte a weight. An eighth is left for what the backend itself needs.
    let value = size_of::<f32>();
    let row = job.cols * (MATRICES * value + 1) + widest_block * value;
    let Some(fitting) = free.map(|free| (free / 8 * 7 / row).max(1)) else {
        return Ok(None);
    };
    Ok((fitting < job.rows).then(|| {
        let size = job.rows.div_ceil(job.rows.div_ceil(fitting));
        (0..job.rows)
            .step_by(size)
            .map(|first| first..(first + size).min(job.rows))
            .collect()
    }))
}

fn rows_are_independent<B: Backend>(job: &Job<'_, B>) -> bool {
    let settings = job.settings;
    let grids_of_rows = settings.quantizer.as_ref().is_none_or(|quantizer| {
        quantizer.as_uniform().is_some() && quantizer.granularity() != Granularity::PerTensor
    });
    settings.mask.rows_are_independent() && grids_of_rows
}

/// A layer put together from slices.
#[derive(Debug)]
pub(super) struct Whole {
    weights: Array2<f32>,
    mask: Array2<bool>,
    quantized: Option<QuantizedLayer>,
    /// The sums over the slices so far; `None` once one of them is not known.
    solver_loss: Option<f64>,
    error: Option<(f64, f64)>,
}

impl Whole {
    pub(super) fn new<B: Backend>(job: &Job<'_, B>) -> Self {
        Self {
            weights: Array2::zeros((job.rows, job.cols)),
            mask: Array2::from_elem((job.rows, job.cols), true),
            quantized: None,
            solver_loss: Some(0.0),
            error: Some((0.0, 0.0)),
        }
    }

    pub(super) fn put(&mut self, rows: Range<usize>, part: Solved) {
        self.weights
            .slice_mut(s![rows.clone(), ..])
            .assign(&part.weights);
        self.mask.slice_mut(s![rows.clone(), ..]).assign(&part.mask);
        self.solver_loss = self.solver_loss.zip(part.solver_loss).map(|(a, b)| a + b);
        self.error =
            self.error
                .zip(part.error)
                .map(|((error, total), (of_part, total_of_part))| {
                    (error + of_part, total + total_of_part)
                });
        let Some(part) = part.quantized else {
            return;
        };
        let (all_rows, groups) = (self.weights.nrows(), part.scale.ncols());
        let whole = self.quantized.get_or_insert_with(|| QuantizedLayer {
            codes: Array2::zeros(self.weights.dim()),
            scale: Array2::zeros((all_rows, groups)),
            zero: Array2::zeros((all_rows, groups)),
            group_of_column: part.group_of_column,
            levels: part.levels,
        });
        let rows = s![rows, ..];
        whole.codes.slice_mut(rows).assign(&part.codes);
        whole.scale.slice_mut(rows).assign(&part.scale);
        whole.zero.slice_mut(rows).assign(&part.zero);
    }

    pub(super) fn finish(self) -> Solved {
        Solved {
            weights: self.weights,
            mask: self.mask,
            quantized: self.quantized,
            solver_loss: self.solver_loss,
            error: self.error,
            ..Solved::nothing()
        }
    }
}
