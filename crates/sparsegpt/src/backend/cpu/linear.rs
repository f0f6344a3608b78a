//! Products on faer.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::prelude::ReborrowMut;
use faer::{Accum, MatRef, Par};
use ndarray::{Array2, Zip};
use rayon::prelude::*;

use super::{Cpu, faer_mut, faer_ref};
use crate::backend::Gemm;
use crate::hessian::Activations;

/// Tokens widened at a time: enough for a product to run at full speed, little beside any batch.
const TILE_TOKENS: usize = 256;

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
    matmul(c, Accum::Add, a, b, alpha, par);
}
