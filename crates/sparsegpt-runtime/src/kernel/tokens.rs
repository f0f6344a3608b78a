//! Many tokens: arithmetic decides, and each stored weight is loaded once for a tile of tokens.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::transpose::{Along, transpose};
use super::{Dense, Packed, Panel, Tile, Unit, portable};
use crate::buffer::Aligned;
use crate::dense::PANEL_ROWS;
use crate::level::Level;
use crate::packed::{BLOCK_COLS, TILE_ROWS};

/// Tiles that are multiplied by a block of activations while it is in the innermost cache, at most: 20 KiB of sums with AVX2, where eight
/// take a twentieth longer with 400 tokens and a tenth with 32; 36 KiB with AVX-512.
const TILES_A_BLOCK: usize = 4;
/// Tiles of a task at most, which are multiplied by a stretch of activations while it is in the second cache.
const MOST_TILES_A_TASK: usize = 32;
/// Bytes of such a stretch: with a task's sums, of which there are as many, what a second cache of 512 KiB holds.
const STRETCH: usize = 256 << 10;
/// Tasks for each thread at least, where there are enough rows, so that none waits long for another.
const TASKS_A_THREAD: usize = 4;
/// Tokens of a dense tile: with two vectors of rows, twelve sums, three registers for operands.
const DENSE_TOKENS: usize = 6;
/// The same with AVX-512, where a panel's rows are one vector: each step loads it and so many activations.
#[cfg(target_arch = "x86_64")]
const DENSE_TOKENS_OF_SIXTEEN: usize = 14;
/// Columns of a dense panel that stay in the innermost cache: 16 KiB of f32.
pub(super) const DENSE_COLS: usize = 256;
/// Panels that follow each other over the same activations.
const PANELS_A_TASK: usize = 4;
/// Columns of a tile's tokens that are transposed in one piece.
const COLS_AT_ONCE: usize = 512;

/// Activations transposed in tiles of tokens: tiles x columns x tokens of a tile, zeros where there are none.
struct Transposed {
    values: Aligned<f32>,
    cols: usize,
    /// The first token of each tile, and the one behind the last.
    starts: Vec<usize>,
}

impl Transposed {
    /// `widths` of the tiles, which together have places for all tokens.
    fn new(x: ArrayView2<'_, f32>, cols: usize, widths: impl Iterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        starts.extend(widths.scan(0, |end, width| {
            *end += width;
            Some(*end)
        }));
        let places = starts.last().copied().unwrap_or(0);
        let mut transposed = Self {
            values: Aligned::zeroed(places * cols),
            cols,
            starts,
        };
        let x = x.as_standard_layout();
        let mut rest = &mut transposed.values[..];
        let mut tiles = Vec::new();
        for tokens in transposed.starts.windows(2) {
            let (values, others) = rest.split_at_mut((tokens[1] - tokens[0]) * cols);
            rest = others;
            tiles.push((x.slice(s![tokens[0]..x.nrows().min(tokens[1]), ..]), values));
        }
        let fill = |(tokens, values): (ArrayView2<'_, f32>, &mut [f32])| {
            let width = values.len() / cols.max(1);
            let stretches = values.par_chunks_mut((COLS_AT_ONCE * width).max(1));
            stretches.enumerate().for_each(|(stretch, values)| {
                let first = stretch * COLS_AT_ONCE;
                let last = x.ncols().min(first + COLS_AT_ONCE);
                let rows = tokens.rows().into_iter().filter_map(|row| row.to_slice());
                let rows: Vec<_> = rows.map(|row| &row[first..last]).collect();
                let columns = values.chunks_exact_mut(width).take(last - first);
                transpose(&rows, &mut columns.collect::<Vec<_>>(), Along::From);
            });
        };
        tiles.into_par_iter().for_each(fill);
        transposed
    }

    fn tiles(&self) -> usize {
        self.starts.len() - 1
    }

    /// Places for tokens of one tile.
    fn tokens(&self, tile: usize) -> Range<usize> {
        self.starts[tile]..self.starts[tile + 1]
    }

    /// Columns from `col` on, of one tile.
    fn columns(&self, tile: usize, col: usize) -> &[f32] {
        let tokens = self.tokens(tile);
        let start = tokens.start * self.cols + col * tokens.len();
        &self.values[start..tokens.end * self.cols]
    }
}

/// The sizes of the fewest tiles of at most `most` vectors each, as even as whole vectors can be: a half-filled tile costs as much as a
/// whole one.
fn even_tiles(vectors: usize, most: usize) -> impl Iterator<Item = usize> {
    let tiles = vectors.div_ceil(most);
    (0..tiles).map(move |tile| vectors / tiles + usize::from(tile < vectors % tiles))
}

/// Tokens in a vector, and vectors of tokens in a tile at most.
fn vectors(level: Level) -> (usize, usize) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vbmi2 => (super::avx512::LANES, super::avx512::MOST_VECTORS),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => (super::avx2::LANES, super::avx2::MOST_VECTORS),
        _ => (8, 10),
    }
}

/// y = bias + Σ; `y` is tokens x rows, a token's contiguous.
pub(crate) fn packed_tokens(
    level: Level,
    matrix: &impl Packed,
    x: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    mut y: ArrayViewMut2<'_, f32>,
) {
    if matrix.cols() == 0 {
        return fill_bias(bias, &mut y);
    }
    let (lanes, most) = vectors(level);
    let widths = even_tiles(x.nrows().div_ceil(lanes), most).map(|vectors| vectors * lanes);
    let x = Transposed::new(x, matrix.blocks() * BLOCK_COLS, widths);
    let task_tiles = matrix.tiles() / (TASKS_A_THREAD * rayon::current_num_threads());
    let task_tiles = task_tiles.clamp(1, MOST_TILES_A_TASK);
    let task_rows = task_tiles * TILE_ROWS;
    let widest = (0..x.tiles()).map(|tile| x.tokens(tile).len()).max();
    let sums_len = task_rows * widest.unwrap_or(0);
    let tasks: Vec<_> = y.axis_chunks_iter_mut(Axis(1), task_rows).collect();
    tasks.into_par_iter().enumerate().for_each_init(
        || Aligned::zeroed(sums_len),
        |sums, (task, mut y)| {
            let first = task * task_tiles;
            let last = matrix.tiles().min(first + task_tiles);
            let tiles = (first..last).map(|tile| matrix.tile(tile));
            let at_start: Vec<_> = tiles.map(|tile| (tile, tile.cursor())).collect();
            let bias = bias.map(|bias| &bias[task * task_rows..]);
            for tile in 0..x.tiles() {
                let tokens = x.tokens(tile);
                let width = tokens.len();
                let sums = &mut sums[..task_rows * width];
                sums.fill(0.0);
                if let Some(bias) = bias {
                    let rows = sums.chunks_exact_mut(width).zip(bias);
                    rows.for_each(|(sums, bias)| sums.fill(*bias));
                }
                let mut tiles = at_start.clone();
                let block_len = BLOCK_COLS * width;
                let blocks = (STRETCH / (block_len * size_of::<f32>())).max(1);
                let stretches = x.columns(tile, 0).chunks(blocks * block_len);
                for (first, x) in (0..).step_by(blocks).zip(stretches) {
                    let sums = sums.chunks_mut(TILES_A_BLOCK * TILE_ROWS * width);
                    for (tiles, sums) in tiles.chunks_mut(TILES_A_BLOCK).zip(sums) {
                        tiles_tokens(level, tiles, first, x, width, sums);
                    }
                }
                let tokens = tokens.start..y.nrows().min(tokens.end);
                let mut y = y.slice_mut(s![tokens, ..]);
                let (tokens, rows) = y.dim();
                let rows = sums.chunks_exact(width).take(rows);
                let rows: Vec<_> = rows.map(|sums| &sums[..tokens]).collect();
                let of_tokens = y.rows_mut().into_iter().filter_map(|y| y.into_slice());
                let mut of_tokens: Vec<_> = of_tokens.collect();
                debug_assert_eq!(of_tokens.len(), tokens, "a token's results are contiguous");
                transpose(&rows, &mut of_tokens, Along::To);
            }
        },
    );
}

/// What is left of a product without columns.
fn fill_bias(bias: Option<&[f32]>, y: &mut ArrayViewMut2<'_, f32>) {
    for (row, mut y) in y.columns_mut().into_iter().enumerate() {
        y.fill(bias.map_or(0.0, |bias| bias[row]));
    }
}

/// sums[row][token] += Σ for the rows of some tiles that follow each other, each with its cursor at the first of the blocks; `x` is
/// columns of these x `width`.
fn tiles_tokens<T: Tile>(
    level: Level,
    tiles: &mut [(T, T::Cursor)],
    first: usize,
    x: &[f32],
    width: usize,
    sums: &mut [f32],
) {
    let mut wide = [0.0; _];
    let block_len = BLOCK_COLS * width;
    let mut blocks = (first..).zip(x.chunks_exact(block_len)).peekable();
    while let Some((block, x)) = blocks.next() {
        // Lines are used in no order that a processor could guess, so the next block is asked for, a part with each tile.
        let next = blocks.peek().map_or(&[][..], |(_, next)| next);
        let mut parts = next.chunks(block_len.div_ceil(tiles.len()));
        let sums = sums.chunks_mut(TILE_ROWS * width);
        for ((tile, cursor), sums) in tiles.iter_mut().zip(sums) {
            let ahead = parts.next().unwrap_or_default();
            let units = tile.units(level, block, cursor, &mut wide);
            units_tokens(level, &units[..tile.rows()], x, ahead, sums);
        }
    }
}

/// A kernel for one number of vectors: units of a block, columns x lanes, rows x lanes of sums, and activations to ask for meanwhile.
#[cfg(target_arch = "x86_64")]
pub(super) type UnitsTokens = unsafe fn(&[Unit<'_>], *const f32, *mut f32, &[f32]);

/// sums[row][token] += Σ over the columns of a block, for the rows of these units; `x` is columns x tokens.
fn units_tokens(level: Level, units: &[Unit<'_>], x: &[f32], ahead: &[f32], sums: &mut [f32]) {
    let width = x.len() / BLOCK_COLS;
    #[cfg(target_arch = "x86_64")]
    {
        let kernel = match level {
            Level::Avx512 | Level::Avx512Vbmi2 => {
                Some(super::avx512::UNITS_TOKENS[width / super::avx512::LANES - 1])
            }
            Level::Avx2 => Some(super::avx2::UNITS_TOKENS[width / super::avx2::LANES - 1]),
            Level::Portable => None,
        };
        if let Some(kernel) = kernel {
            let whole = |(mask, values): &Unit<'_>| values.len() >= mask.count_ones() as usize;
            debug_assert!(units.iter().all(whole));
            debug_assert!(sums.len() >= units.len() * width);
            // SAFETY: levels are checked where they are chosen; by the invariant of the tile there is a value for each
            // bit, `x` is a whole block, and there are `width` sums, whole vectors, for each unit.
            unsafe { kernel(units, x.as_ptr(), sums.as_mut_ptr(), ahead) };
            return;
        }
    }
    let _ = (level, ahead);
    for ((mask, values), sums) in units.iter().zip(sums.chunks_exact_mut(width)) {
        portable::unit_tokens(*mask, values, x, sums);
    }
}

/// The same for dense weights.
pub(crate) fn dense_tokens(
    level: Level,
    matrix: &impl Dense,
    x: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    y: ArrayViewMut2<'_, f32>,
) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vbmi2 => {
            dense_tiles::<DENSE_TOKENS_OF_SIXTEEN>(level, matrix, x, bias, y);
        }
        _ => dense_tiles::<DENSE_TOKENS>(level, matrix, x, bias, y),
    }
}

/// N tokens at a time.
fn dense_tiles<const N: usize>(
    level: Level,
    matrix: &impl Dense,
    x: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
    mut y: ArrayViewMut2<'_, f32>,
) {
    if matrix.cols() == 0 {
        return fill_bias(bias, &mut y);
    }
    let widths = std::iter::repeat_n(N, x.nrows().div_ceil(N));
    let x = Transposed::new(x, matrix.cols(), widths);
    let task_rows = PANELS_A_TASK * PANEL_ROWS;
    let tasks: Vec<_> = y.axis_chunks_iter_mut(Axis(1), task_rows).collect();
    tasks.into_par_iter().enumerate().for_each_init(
        || vec![[[0.0; PANEL_ROWS]; N]; PANELS_A_TASK * x.tiles()],
        |sums, (task, mut y)| {
            let first = task * PANELS_A_TASK;
            let panels = first..matrix.panels().min(first + PANELS_A_TASK);
            sums.fill([[0.0; PANEL_ROWS]; N]);
            for col in (0..matrix.cols()).step_by(DENSE_COLS) {
                let cols = DENSE_COLS.min(matrix.cols() - col);
                for (panel, sums) in panels.clone().zip(sums.chunks_exact_mut(x.tiles())) {
                    let of_tile = |tile| &x.columns(tile, col)[..cols * N];
                    let panel = matrix.panel(panel);
                    panel.tokens(level, col..col + cols, &of_tile, sums);
                }
            }
            for (token, mut y) in y.rows_mut().into_iter().enumerate() {
                let (tile, token) = (token / N, token % N);
                for (row, y) in y.iter_mut().enumerate() {
                    let panel = row / PANEL_ROWS;
                    let start = bias.map_or(0.0, |bias| bias[task * task_rows + row]);
                    *y = start + sums[panel * x.tiles() + tile][token][row % PANEL_ROWS];
                }
            }
        },
    );
}
