//! Products on faer.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array2, Zip};
use rayon::prelude::*;

use super::{Cpu, faer_mut, faer_ref};
use crate::backend::Gemm;
use crate::hessian::Activations;

/// Tokens widened at a time: enough for a product to run at full speed, little beside any batch.
const TILE_TOKENS: usize = 256;

/// Rows of a block brought up to date at a time: with 128 columns, what an L2 cache holds.
const TILE_ROWS: usize = 128;

pub(super) fn gram_update(
    h: &mut Array2<f32>,
    x: Activations<'_>,
    alpha: f32,
    beta: f32,
    par: Par,
) {
    if beta != 1.0 {
        let cols = h.ncols();
        if let Some(values) = h.as_slice_mut() {
            values
                .par_chunks_mut(cols)
                .enumerate()
                .for_each(|(row, values)| {
                    for value in &mut values[..=row] {
                        *value *= beta;
                    }
                });
        }
    }
    let cols = x.cols();
    let mut h = faer_mut(h);
    let mut add = |tile: MatRef<'_, f32>| {
        triangular_matmul(
            h.rb_mut(),
            BlockStructure::TriangularLower,
            Accum::Add,
            tile.transpose(),
            BlockStructure::Rectangular,
            tile,
            BlockStructure::Rectangular,
            alpha,
            par,
        );
    };
    if let Activations::F32(view) = &x
        && let Some(values) = view.as_slice()
    {
        if view.nrows() > 0 {
            add(MatRef::from_row_major_slice(values, view.nrows(), cols));
        }
        return;
    }
    let mut tile = vec![0.0; TILE_TOKENS.min(x.tokens()) * cols];
    for start in (0..x.tokens()).step_by(TILE_TOKENS) {
        let tokens = TILE_TOKENS.min(x.tokens() - start);
        let tile = &mut tile[..tokens * cols];
        tile.par_chunks_mut(cols)
            .enumerate()
            .for_each(|(token, row)| {
                x.widen_token(start + token, row);
            });
        add(MatRef::from_row_major_slice(tile, tokens, cols));
    }
}

/// wᵢHwᵢᵀ = 2·wᵢLwᵢᵀ + Σ d_j w_ij² with L the strict lower triangle.
pub(super) fn row_energies(
    w: &Array2<f32>,
    h: &Array2<f32>,
    diagonal: &[f32],
    par: Par,
) -> Vec<f64> {
    let mut product = Array2::zeros(w.dim());
    triangular_matmul(
        faer_mut(&mut product),
        BlockStructure::Rectangular,
        Accum::Replace,
        faer_ref(w),
        BlockStructure::Rectangular,
        faer_ref(h),
        BlockStructure::StrictTriangularLower,
        1.0,
        par,
    );
    let mut energies = vec![0.0; w.nrows()];
    Zip::from(ndarray::ArrayViewMut1::from(&mut energies))
        .and(w.rows())
        .and(product.rows())
        .for_each(|energy, w, product| {
            *energy = w
                .iter()
                .zip(product)
                .zip(diagonal)
                .map(|((&w, &product), &d)| {
                    f64::from(w) * (2.0 * f64::from(product) + f64::from(d) * f64::from(w))
                })
                .sum();
        });
    energies
}

/// W ← D + W·R_BB on the columns of a block, a tile of rows at a time.
pub(super) fn open_block(
    weights: &mut Array2<f32>,
    rest: &Array2<f32>,
    factor: &Array2<f32>,
    columns: Range<usize>,
) {
    let cols = weights.ncols();
    let (first, width) = (columns.start, columns.len());
    let r = faer_ref(factor).submatrix(first, first, width, width);
    let (Some(weights), Some(rest)) = (weights.as_slice_mut(), rest.as_slice()) else {
        return;
    };
    weights
        .par_chunks_mut(TILE_ROWS * cols)
        .zip(rest.par_chunks(TILE_ROWS * cols))
        .for_each_init(
            || vec![0.0; TILE_ROWS * width],
            |gathered, (weights, rest)| {
                let rows = weights.len() / cols;
                let gathered = &mut gathered[..rows * width];
                for ((weights, rest), gathered) in weights
                    .chunks_exact_mut(cols)
                    .zip(rest.chunks_exact(cols))
                    .zip(gathered.chunks_exact_mut(width))
                {
                    gathered.copy_from_slice(&weights[columns.clone()]);
                    weights[columns.clone()].copy_from_slice(&rest[columns.clone()]);
                }
                let weights = MatMut::from_row_major_slice_mut(weights, rows, cols);
                triangular_matmul(
                    weights.subcols_mut(first, width),
                    BlockStructure::Rectangular,
                    Accum::Add,
                    MatRef::from_row_major_slice(gathered, rows, width),
                    BlockStructure::Rectangular,
                    r,
                    BlockStructure::TriangularUpper,
                    1.0,
                    Par::Seq,
                );
            },
        );
}

/// D −= W on the columns of a block.
pub(super) fn close_block(rest: &mut Array2<f32>, weights: &Array2<f32>, columns: Range<usize>) {
    let cols = weights.ncols();
    if let (Some(rest), Some(weights)) = (rest.as_slice_mut(), weights.as_slice()) {
        rest.par_chunks_mut(TILE_ROWS * cols)
            .zip(weights.par_chunks(TILE_ROWS * cols))
            .for_each(|(rest, weights)| {
                for (rest, weights) in rest.chunks_exact_mut(cols).zip(weights.chunks_exact(cols)) {
                    let kept = &weights[columns.clone()];
                    for (rest, &kept) in rest[columns.clone()].iter_mut().zip(kept) {
                        *rest -= kept;
                    }
                }
            });
    }
}

pub(super) fn gemm(args: Gemm<'_, Cpu>, par: Par) {
    let Gemm {
        c,
        c_columns,
        alpha,
        a,
        a_columns,
        b,
        b_rows,
        b_columns,
    } = args;
    let a = faer_ref(&a.0).subcols(a_columns.start, a_columns.len());
    let b = faer_ref(&b.0).submatrix(b_rows.start, b_columns.start, b_rows.len(), b_columns.len());
    let c = faer_mut(&mut c.0).subcols_mut(c_columns.start, c_columns.len());
    let threads = match par {
        Par::Seq => 1,
        Par::Rayon(threads) => threads.get(),
    };
    if threads == 1 || c.nrows() < threads * TILE_ROWS {
        matmul(c, Accum::Add, a, b, alpha, par);
        return;
    }
    // One sequential product a thread runs ahead of faer's own division of the work.
    let rows = c.nrows().div_ceil(threads);
    c.par_row_chunks_mut(rows)
        .enumerate()
        .for_each(|(part, c)| {
            let a = a.subrows(part * rows, c.nrows());
            matmul(c, Accum::Add, a, b, alpha, Par::Seq);
        });
}
