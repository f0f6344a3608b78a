//! Products on faer.

use std::ops::Range;

use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::{Accum, MatMut, Par};
use ndarray::s;
use rayon::prelude::*;

use super::packed::{Kernel, Packed, Triangle, rows_a_task};
use super::products::Engine;
use super::{Cpu, CpuMatrix};
use crate::backend::Gemm;

/// Rows that are handled at a time.
const TILE_ROWS: usize = 128;

/// wᵢHwᵢᵀ = 2·wᵢLwᵢᵀ + Σ d_j w_ij² with L the strict lower triangle, a tile of rows at a time.
pub(super) fn row_energies(w: &CpuMatrix, h: &CpuMatrix, diagonal: &[f32]) -> Vec<f64> {
    let (rows, cols) = w.dim();
    let mut energies = vec![0.0; rows];
    energies
        .par_chunks_mut(TILE_ROWS)
        .enumerate()
        .for_each_init(
            || vec![0.0; TILE_ROWS * cols],
            |product, (tile, energies)| {
                let (first, rows) = (tile * TILE_ROWS, energies.len());
                let product = &mut product[..rows * cols];
                triangular_matmul(
                    MatMut::from_row_major_slice_mut(product, rows, cols),
                    BlockStructure::Rectangular,
                    Accum::Replace,
                    w.faer().subrows(first, rows),
                    BlockStructure::Rectangular,
                    h.faer(),
                    BlockStructure::StrictTriangularLower,
                    1.0,
                    Par::Seq,
                );
                let w = w.padded()[first * w.stride()..].chunks(w.stride());
                let tile = energies.iter_mut().zip(w).zip(product.chunks_exact(cols));
                for ((energy, w), product) in tile {
                    *energy = row_energy(&w[..cols], product, diagonal);
                }
            },
        );
    energies
}

/// Σ w_j·(2·product_j + d_j·w_j), in partial sums, so that a sum does not wait for itself.
fn row_energy(w: &[f32], product: &[f32], diagonal: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for (at, ((&w, &product), &d)) in w.iter().zip(product).zip(diagonal).enumerate() {
        let w = f64::from(w);
        sums[at % 8] += w * (2.0 * f64::from(product) + f64::from(d) * w);
    }
    sums.iter().sum()
}

/// W ← D + W·R_BB on the columns of a block, a tile of rows at a time.
pub(super) fn open_block(
    weights: &mut CpuMatrix,
    rest: &CpuMatrix,
    factor: &CpuMatrix,
    columns: Range<usize>,
    engine: Engine,
) {
    let (first, width) = (columns.start, columns.len());
    let r = factor.faer().submatrix(first, first, width, width);
    let r = engine.triangle(r, Triangle::Upper);
    let at_a_time = rows_a_task(weights.dim().0);
    let rest = rest.faer().subcols(first, width);
    let weights = weights.faer_mut().subcols_mut(first, width);
    weights
        .par_row_chunks_mut(at_a_time)
        .zip(rest.par_row_chunks(at_a_time))
        .for_each(|(weights, rest)| r.multiply(weights, Some(rest)));
}

/// D −= W on the columns of a block.
pub(super) fn close_block(rest: &mut CpuMatrix, weights: &CpuMatrix, columns: Range<usize>) {
    let (stride, weights_stride) = (rest.stride(), weights.stride());
    let rows = (
        rest.padded_mut().par_chunks_exact_mut(stride),
        weights.padded().par_chunks_exact(weights_stride),
    );
    rows.into_par_iter()
        .with_min_len(TILE_ROWS)
        .for_each(|(rest, weights)| {
            let kept = &weights[columns.clone()];
            for (rest, &kept) in rest[columns.clone()].iter_mut().zip(kept) {
                *rest -= kept;
            }
        });
}

/// With a kernel for bf16 the operands are rounded to it.
pub(super) fn gemm(args: Gemm<'_, Cpu>, bf16: Option<Kernel>, engine: Engine) {
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
    let c = c.faer_mut().subcols_mut(c_columns.start, c_columns.len());
    if let Some(kernel) = bf16 {
        let a = a.view().slice_move(s![.., a_columns]).reversed_axes();
        let b = b.view().slice_move(s![b_rows, b_columns]);
        let product = Packed {
            kernel,
            alpha,
            beta: 1.0,
            a,
            b,
        };
        product.add_to(c);
    } else {
        let a = a.faer().subcols(a_columns.start, a_columns.len());
        let b = b
            .faer()
            .submatrix(b_rows.start, b_columns.start, b_rows.len(), b_columns.len());
        engine.add_product(c, alpha, a, b);
    }
}
