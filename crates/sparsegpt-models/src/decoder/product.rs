//! Activations times weights on faer: the same product through candle's `matmul` (transposed right operand)
//! reaches about half the rate.

use candle_core::Tensor;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::tensors::values;
use crate::{Error, Result};

/// Multiplications from which on a product runs on all threads.
const PARALLEL_FROM: usize = 1 << 22;
/// Tokens from which on each thread takes its share of them; fewer are left to faer's own division of the work.
const TOKENS_A_THREAD: usize = 64;

/// y ← y + x·wᵀ for x (tokens x cols) and each pair of a y (tokens x rows) and a weight w (rows x cols).
pub(super) fn add_products(
    x: ArrayView2<'_, f32>,
    mut pairs: Vec<(&mut Array2<f32>, &Tensor)>,
) -> Result<()> {
    let (tokens, cols) = x.dim();
    let storages: Vec<_> = pairs.iter().map(|(_, w)| w.storage_and_layout()).collect();
    let mut products = Vec::with_capacity(pairs.len());
    for ((y, w), (storage, layout)) in pairs.iter_mut().zip(&storages) {
        let (rows, w_cols) = w.dims2()?;
        if cols != w_cols {
            return Err(Error::tensor(
                "(activations)",
                format!("have {cols} features, the weight has {w_cols} columns"),
            ));
        }
        let w = MatRef::from_row_major_slice(values(storage, layout)?, rows, cols);
        products.push((y.view_mut(), w));
    }
    let all: usize = products
        .iter()
        .map(|(_, w)| tokens * w.nrows() * cols)
        .sum();
    let threads = rayon::current_num_threads();
    if all < PARALLEL_FROM {
        // Done before a second thread has woken up.
        for (y, w) in products {
            add_product(y, x, w, Par::Seq);
        }
    } else if tokens < TOKENS_A_THREAD * threads {
        for (y, w) in products {
            add_product(y, x, w, Par::rayon(0));
        }
    } else {
        let share = tokens.div_ceil(threads);
        let mut tasks = Vec::with_capacity(threads * products.len());
        for (y, w) in &mut products {
            let parts = y.axis_chunks_iter_mut(Axis(0), share);
            tasks.extend(
                parts
                    .zip(x.axis_chunks_iter(Axis(0), share))
                    .map(|(y, x)| (y, x, *w)),
            );
        }
        tasks
            .into_par_iter()
            .for_each(|(y, x, w)| add_product(y, x, w, Par::Seq));
    }
    Ok(())
}

fn add_product(
    mut y: ArrayViewMut2<'_, f32>,
    x: ArrayView2<'_, f32>,
    w: MatRef<'_, f32>,
    par: Par,
) {
    let (tokens, cols) = x.dim();
    if let (Some(y), Some(x)) = (y.as_slice_mut(), x.as_slice()) {
        matmul(
            MatMut::from_row_major_slice_mut(y, tokens, w.nrows()),
            Accum::Add,
            MatRef::from_row_major_slice(x, tokens, cols),
            w.transpose(),
            1.0,
            par,
        );
    }
}
