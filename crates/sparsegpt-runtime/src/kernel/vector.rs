//! A few tokens: every weight is read from memory once and used for all of them.

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::{Dense, Packed, Panel, Tile};
use crate::buffer::Aligned;
use crate::dense::PANEL_ROWS;
use crate::level::Level;
use crate::packed::{BLOCK_COLS, TILE_ROWS};

/// Weights that a thread should have at least, as it takes some microseconds to wake one.
const WEIGHTS_A_TASK: usize = 1 << 17;

/// y[token][row] = bias + Σ; `y` is tokens x rows.
pub(crate) fn packed_vectors(
    level: Level,
    matrix: &impl Packed,
    x: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let x = Padded::new(x, matrix.blocks() * BLOCK_COLS);
    let size = (matrix.rows(), matrix.cols());
    over_rows::<TILE_ROWS>(size, &x, bias, y, |index, x, sums| {
        matrix.tile(index).vector(level, x, sums);
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
    let x = Padded::new(x, matrix.cols());
    let size = (matrix.rows(), matrix.cols());
    over_rows::<PANEL_ROWS>(size, &x, bias, y, |index, x, sums| {
        matrix.panel(index).vector(level, x, sums);
    });
}

/// Tokens with zeros behind them.
struct Padded {
    values: Aligned<f32>,
    width: usize,
}

impl Padded {
    fn new(x: ArrayView2<'_, f32>, width: usize) -> Self {
        let mut values = Aligned::zeroed(x.nrows() * width);
        if width > 0 {
            for (row, to) in x.rows().into_iter().zip(values.chunks_exact_mut(width)) {
                row.iter().zip(to).for_each(|(from, to)| *to = *from);
            }
        }
        Self { values, width }
    }

    fn token(&self, token: usize) -> &[f32] {
        &self.values[token * self.width..(token + 1) * self.width]
    }
}

/// Runs `product(index of the rows, x, sums)` for each R rows and each token.
fn over_rows<const R: usize>(
    (rows, cols): (usize, usize),
    x: &Padded,
    bias: Option<&[f32]>,
    y: &mut [f32],
    product: impl Fn(usize, &[f32], &mut [f32; R]) + Sync,
) {
    if rows == 0 {
        return;
    }
    // For each R rows, where they are in each token's result.
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(rows.div_ceil(R), Vec::new);
    for token in y.chunks_exact_mut(rows) {
        let results = token.chunks_mut(R);
        parts
            .iter_mut()
            .zip(results)
            .for_each(|(part, result)| part.push(result));
    }
    let least = WEIGHTS_A_TASK.div_ceil(R * cols.max(1));
    parts
        .into_par_iter()
        .with_min_len(least)
        .enumerate()
        .for_each(|(index, part)| {
            for (token, result) in part.into_iter().enumerate() {
                let mut sums = [0.0; R];
                if let Some(bias) = bias {
                    let first = index * R;
                    sums[..result.len()].copy_from_slice(&bias[first..first + result.len()]);
                }
                product(index, x.token(token), &mut sums);
                result.copy_from_slice(&sums[..result.len()]);
            }
        });
}
