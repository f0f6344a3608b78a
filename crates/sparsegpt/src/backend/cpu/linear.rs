//! Products on faer.

use std::ops::Range;
use std::slice::ChunksExact;

use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::{Accum, MatMut, Par};
use ndarray::s;
use rayon::prelude::*;

use super::packed::{Kernel, Packed, Triangle};
use super::products::Engine;
use super::{Cpu, CpuMatrix};
use crate::backend::Gemm;

/// Rows of a block brought up to date at a time: with 128 columns, what an L2 cache holds.
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
    for_each_tile(weights, rest, |weights, rest, stride| {
        let rows = weights.len() / stride;
        let tile = MatMut::from_row_major_slice_mut(weights, rows, stride);
        r.multiply(tile.subcols_mut(first, width), |tile| {
            for (weights, rest) in tile.row_iter_mut().zip(rest) {
                if let Some(weights) = weights.try_as_row_major_mut() {
                    weights
                        .as_slice_mut()
                        .copy_from_slice(&rest[columns.clone()]);
                }
            }
        });
    });
}

/// D −= W on the columns of a block.
pub(super) fn close_block(rest: &mut CpuMatrix, weights: &CpuMatrix, columns: Range<usize>) {
    for_each_tile(rest, weights, |rest, weights, stride| {
        for (rest, weights) in rest.chunks_exact_mut(stride).zip(weights) {
            let kept = &weights[columns.clone()];
            for (rest, &kept) in rest[columns.clone()].iter_mut().zip(kept) {
                *rest -= kept;
            }
        }
    });
}

/// Goes over the rows of two matrices of the same shape, a tile of rows at a time: `step` gets the first one's with
/// their stride, and the second one's.
fn for_each_tile(
    first: &mut CpuMatrix,
    second: &CpuMatrix,
    step: impl Fn(&mut [f32], ChunksExact<'_, f32>, usize) + Sync,
) {
    let (stride, second_stride) = (first.stride(), second.stride());
    first
        .padded_mut()
        .par_chunks_mut(TILE_ROWS * stride)
        .zip(second.padded().par_chunks(TILE_ROWS * second_stride))
        .for_each(|(first, second)| step(first, second.chunks_exact(second_stride), stride));
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
