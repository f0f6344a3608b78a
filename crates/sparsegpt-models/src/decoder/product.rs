//! Activations times weights on faer: the same product through candle's `matmul` (transposed right operand)
//! reaches about half the rate.

use std::time::Instant;

use candle_core::{Device, Tensor};
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
/// Up to so many tokens give the same bits together as each alone, here as on the sparse runtime: each weight is read from
/// memory once and multiplied by one token after the other.
pub(crate) const TOGETHER: usize = 4;
/// Weights that stay in the cache while tokens pass by: 128 KiB.
const BLOCK: usize = 1 << 15;

/// y ← x·wᵀ, or y ← y + x·wᵀ, for x (tokens x cols) and each of some y (tokens x rows) with their weights w
/// (rows x cols).
pub(super) fn products(
    x: ArrayView2<'_, f32>,
    mut pairs: Vec<(&mut Array2<f32>, Accum, &Tensor)>,
) -> Result<()> {
    let (tokens, cols) = x.dim();
    let storages: Vec<_> = pairs
        .iter()
        .map(|(_, _, w)| w.storage_and_layout())
        .collect();
    let mut products = Vec::with_capacity(pairs.len());
    for ((y, accum, w), (storage, layout)) in pairs.iter_mut().zip(&storages) {
        let (rows, w_cols) = w.dims2()?;
        if cols != w_cols {
            return Err(Error::tensor(
                "(activations)",
                format!("have {cols} features, the weight has {w_cols} columns"),
            ));
        }
        let w = MatRef::from_row_major_slice(values(storage, layout)?, rows, cols);
        products.push((y.view_mut(), *accum, w));
    }
    let all: usize = products
        .iter()
        .map(|(_, _, w)| tokens * w.nrows() * cols)
        .sum();
    let threads = rayon::current_num_threads();
    if (2..=TOGETHER).contains(&tokens) {
        for (mut y, accum, w) in products {
            let rows = (BLOCK / cols.max(1)).max(1);
            let blocks = y.axis_chunks_iter_mut(Axis(1), rows).enumerate();
            let block = |(index, mut y): (usize, ArrayViewMut2<'_, f32>)| {
                let w = w.subrows(index * rows, y.ncols());
                let of_tokens = y.axis_chunks_iter_mut(Axis(0), 1);
                let pairs = of_tokens.zip(x.axis_chunks_iter(Axis(0), 1));
                pairs.for_each(|(y, x)| product(y, accum, x, w, Par::Seq));
            };
            match all < PARALLEL_FROM {
                true => blocks.for_each(block),
                false => blocks.collect::<Vec<_>>().into_par_iter().for_each(block),
            }
        }
    } else if all < PARALLEL_FROM {
        // Done before a second thread that sleeps has woken up.
        for (y, accum, w) in products {
            product(y, accum, x, w, Par::Seq);
        }
    } else if tokens < TOKENS_A_THREAD * threads {
        for (y, accum, w) in products {
            product(y, accum, x, w, Par::rayon(0));
        }
    } else {
        let share = tokens.div_ceil(threads);
        let mut tasks = Vec::with_capacity(threads * products.len());
        for (y, accum, w) in &mut products {
            let parts = y.axis_chunks_iter_mut(Axis(0), share);
            tasks.extend(
                parts
                    .zip(x.axis_chunks_iter(Axis(0), share))
                    .map(|(y, x)| (y, *accum, x, *w)),
            );
        }
        tasks
            .into_par_iter()
            .for_each(|(y, accum, x, w)| product(y, accum, x, w, Par::Seq));
    }
    Ok(())
}

/// Floating-point operations a second of the products in a forward pass, on all threads: the best of a few products of
/// activations (tokens x cols) with one weight (rows x cols). To tell how long a model takes to run.
///
/// # Errors
/// [`Error::Setting`] for a size of 0.
pub fn product_speed(tokens: usize, rows: usize, cols: usize) -> Result<f64> {
    const REPEATS: usize = 3;
    let sizes = [("tokens", tokens), ("rows", rows), ("cols", cols)];
    if let Some((name, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
        return Err(Error::setting(name, "at least 1", 0));
    }
    let value = |index: usize| (index % 11) as f32 - 5.0;
    let x = Array2::from_shape_fn((tokens, cols), |(token, col)| value(7 * token + 3 * col));
    let weight: Vec<f32> = (0..rows * cols).map(value).collect();
    let weight = Tensor::from_vec(weight, (rows, cols), &Device::Cpu)?;
    let mut y = Array2::zeros((tokens, rows));
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        products(x.view(), vec![(&mut y, Accum::Replace, &weight)])?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (tokens as f64) * (rows as f64) * (cols as f64) / best.max(1e-9))
}

fn product(
    mut y: ArrayViewMut2<'_, f32>,
    accum: Accum,
    x: ArrayView2<'_, f32>,
    w: MatRef<'_, f32>,
    par: Par,
) {
    let (tokens, cols) = x.dim();
    if let (Some(y), Some(x)) = (y.as_slice_mut(), x.as_slice()) {
        matmul(
            MatMut::from_row_major_slice_mut(y, tokens, w.nrows()),
            accum,
            MatRef::from_row_major_slice(x, tokens, cols),
            w.transpose(),
            1.0,
            par,
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn made(tokens: ArrayView2<'_, f32>, weight: &Tensor, accum: Accum) -> Array2<f32> {
        let rows = weight.dims2().unwrap().0;
        let mut y = Array2::from_shape_fn((tokens.nrows(), rows), |(_, row)| row as f32 / 7.0);
        products(tokens, vec![(&mut y, accum, weight)]).unwrap();
        y
    }

    /// On one thread and on several, with blocks that do not divide the rows.
    #[test]
    fn a_few_tokens_together_give_the_bits_of_each_alone() {
        let value = |index: usize| ((index * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
        for (rows, cols) in [(5, 3), (1, 700), (200, 33), (3001, 577), (2, 40_000)] {
            let weight: Vec<f32> = (0..rows * cols).map(value).collect();
            let weight = Tensor::from_vec(weight, (rows, cols), &Device::Cpu).unwrap();
            for tokens in 2..=TOGETHER {
                let x = Array2::from_shape_fn((tokens, cols), |(t, col)| value(31 * t + 7 * col));
                for accum in [Accum::Replace, Accum::Add] {
                    let together = made(x.view(), &weight, accum);
                    for token in 0..tokens {
                        let alone = x.slice(ndarray::s![token..token + 1, ..]);
                        let alone = made(alone, &weight, accum);
                        assert_eq!(
                            together.row(token),
                            alone.row(0),
                            "{rows} x {cols}, token {token} of {tokens}"
                        );
                    }
                }
            }
        }
    }
}
