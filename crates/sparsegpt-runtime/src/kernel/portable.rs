//! Plain loops. Multiplications and additions are rounded apart, as processors without FMA would emulate it slowly.

use super::{Index, Stored, split_unit};
use crate::dense::{PANEL_ROWS, slot};
use crate::packed::{BLOCK_COLS, TILE_ROWS, bits};
use crate::value::Value;

/// What kernels know of a type.
#[cfg(not(target_arch = "x86_64"))]
pub trait Lanes: Copy {
    /// Whether halves of a dense panel alternate.
    #[doc(hidden)]
    const INTERLEAVED: bool = false;
}

#[cfg(not(target_arch = "x86_64"))]
impl Lanes for f32 {}
#[cfg(not(target_arch = "x86_64"))]
impl Lanes for half::bf16 {}
#[cfg(not(target_arch = "x86_64"))]
impl Lanes for half::f16 {}

/// sums[token][row] += Σ over the tile's columns; `x` is blocks x tokens x 64.
pub(super) fn tile_vectors<V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    let mut values = tile.values;
    let blocks = x.chunks(BLOCK_COLS * sums.len()).take(tile.blocks);
    for (block, x) in blocks.enumerate() {
        for row in 0..tile.rows {
            let mask = tile.index.mask(block * tile.rows + row);
            let values = split_unit(&mut values, mask);
            for (sums, x) in sums.iter_mut().zip(x.chunks(BLOCK_COLS)) {
                for (col, value) in bits(mask).zip(values) {
                    sums[row] += value.to_f32() * x[col];
                }
            }
        }
    }
}

/// sum += Σ over the unit's columns.
pub(super) fn unit_vector(mask: u64, values: &[f32], x: &[f32], sum: &mut f32) {
    for (col, value) in bits(mask).zip(values) {
        *sum += value * x[col];
    }
}

/// sums[lane] += Σ over the unit's columns; `x` is columns x lanes.
pub(super) fn unit_tokens(mask: u64, values: &[f32], x: &[f32], sums: &mut [f32]) {
    let lanes = sums.len();
    for (col, weight) in bits(mask).zip(values) {
        for (sum, x) in sums.iter_mut().zip(&x[col * lanes..(col + 1) * lanes]) {
            *sum += weight * x;
        }
    }
}

/// sums[row] += Σ over the panel's columns.
pub(super) fn panel_vector<V: Value>(panel: &[V], x: &[f32], sums: &mut [f32; PANEL_ROWS]) {
    for (column, x) in panel.chunks_exact(PANEL_ROWS).zip(x) {
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum += column[slot::<V>(row)].to_f32() * x;
        }
    }
}

/// sums[token][row] += Σ over the panel's columns; `x` is columns x N.
pub(super) fn panel_tokens<V: Value, const N: usize>(
    panel: &[V],
    x: &[f32],
    sums: &mut [[f32; PANEL_ROWS]; N],
) {
    for (column, x) in panel.chunks_exact(PANEL_ROWS).zip(x.chunks_exact(N)) {
        let mut weights = [0.0; PANEL_ROWS];
        for (row, weight) in weights.iter_mut().enumerate() {
            *weight = column[slot::<V>(row)].to_f32();
        }
        for (sums, &x) in sums.iter_mut().zip(x) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += weight * x;
            }
        }
    }
}
