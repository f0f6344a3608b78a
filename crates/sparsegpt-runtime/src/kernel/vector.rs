//! A few tokens: every weight is read from memory once and used for all of them.

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::{Dense, Packed, Panel, Tile};
use crate::buffer::Aligned;
use crate::dense::PANEL_ROWS;
use crate::level::Level;
use crate::packed::{BLOCK_COLS, TILE_ROWS};

/// Weights that a thread should have at least: handing them over takes a microsecond or two, and tens of them if it sleeps.
const WEIGHTS_A_TASK: usize = 1 << 17;

/// y[token][row] = bias + Σ for at most [`FEW_TOKENS`](super::FEW_TOKENS); `y` is tokens x rows.
pub(crate) fn packed_vectors<P: Packed>(
    level: Level,
    matrix: &P,
    x: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let mut x = in_blocks(x, matrix.blocks());
    if P::Tile::splits(level) {
        // Once for all tiles.
        x.as_chunks_mut().0.iter_mut().for_each(split);
    }
    let size = (matrix.rows(), matrix.cols());
    over_rows::<TILE_ROWS>(size, bias, y, |index, sums| {
        matrix.tile(index).vectors(level, &x, sums);
    });
}

/// The same for dense weights.
pub(crate) fn dense_vectors(
    level: Level,
    matrix: &impl Dense,
    x: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let x = x.as_standard_layout();
    let size = (matrix.rows(), matrix.cols());
    over_rows::<PANEL_ROWS>(size, bias, y, |index, sums| {
        for (x, sums) in x.rows().into_iter().zip(sums) {
            let x = x.to_slice().unwrap_or_default();
            matrix.panel(index).vector(level, x, sums);
        }
    });
}

/// Blocks x tokens x columns of a block, with zeros behind the last column.
fn in_blocks(x: ArrayView2<'_, f32>, blocks: usize) -> Aligned<f32> {
    let tokens = x.nrows();
    let mut values = Aligned::zeroed(blocks * tokens * BLOCK_COLS);
    let x = x.as_standard_layout();
    for (token, row) in x.rows().into_iter().enumerate() {
        let columns = row.to_slice().unwrap_or_default().chunks(BLOCK_COLS);
        for (block, columns) in columns.enumerate() {
            let to = (block * tokens + token) * BLOCK_COLS;
            values[to..to + columns.len()].copy_from_slice(columns);
        }
    }
    values
}

/// The values with even numbers before those with odd ones.
fn split(values: &mut [f32; 32]) {
    let own = *values;
    let (even, odd) = values.split_at_mut(16);
    for ((even, odd), [first, second]) in even.iter_mut().zip(odd).zip(own.as_chunks().0) {
        (*even, *odd) = (*first, *second);
    }
}

/// Runs `product(index of the rows, sums of each token)` for each R rows.
fn over_rows<const R: usize>(
    (rows, cols): (usize, usize),
    bias: Option<&[f32]>,
    y: &mut [f32],
    product: impl Fn(usize, &mut [[f32; R]]) + Sync,
) {
    if y.is_empty() {
        return;
    }
    // Tokens x R for each R rows, from where they are copied: little beside what each row takes.
    let tokens = y.len() / rows;
    let mut sums = vec![[0.0; R]; rows.div_ceil(R) * tokens];
    let least = WEIGHTS_A_TASK.div_ceil(R * cols.max(1));
    let parts = sums.par_chunks_exact_mut(tokens).with_min_len(least);
    parts.enumerate().for_each(|(index, sums)| {
        if let Some(bias) = bias.map(|bias| &bias[index * R..]) {
            let bias = &bias[..R.min(bias.len())];
            for sums in &mut *sums {
                sums[..bias.len()].copy_from_slice(bias);
            }
        }
        product(index, sums);
    });
    for (token, y) in y.chunks_exact_mut(rows).enumerate() {
        let sums = sums.iter().skip(token).step_by(tokens);
        for (y, sums) in y.chunks_mut(R).zip(sums) {
            y.copy_from_slice(&sums[..y.len()]);
        }
    }
}
