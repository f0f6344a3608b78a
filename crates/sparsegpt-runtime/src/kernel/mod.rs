//! Products, on every instruction set.
//!
//! One token or a few: each tile or panel is read once, front to back, so that memory decides ([`vector`]). Many tokens: tokens
//! are lanes for packed weights and rows are lanes for dense ones, and results stay in registers ([`tokens`]). What packed
//! weights are stored as is a [`Tile`]'s business, of which there are two: values of a type ([`stored`]) and codes of a grid
//! ([`quantized`]).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(any(target_arch = "x86_64", test))]
mod avx512;
mod index;
mod portable;
mod quantized;
mod stored;
#[cfg(target_arch = "x86_64")]
mod tables;
mod tokens;
mod transpose;
#[cfg(any(target_arch = "x86_64", test))]
mod unit;
#[cfg(target_arch = "x86_64")]
mod vbmi2;
mod vector;

pub(crate) use index::{Bits, Codes, Index, SHAPES, Shape};
pub(crate) use quantized::{PanelGrid, QuantizedPanel, QuantizedTile, steps_of};
pub(crate) use stored::{Stored, StoredPanel};
pub(crate) use tokens::{dense_tokens, packed_tokens};
pub(crate) use vector::{dense_vectors, packed_vectors};

#[cfg(target_arch = "x86_64")]
pub(crate) use {
    avx2::{multiply_adds, xor_by_halves},
    avx512::{multiply_adds_of_sixteen, xor_by_lines},
};

/// What kernels know of a type. Public in name only: it seals [`Value`](crate::Value).
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Lanes;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::Lanes;

use std::ops::Range;

use crate::dense::PANEL_ROWS;
use crate::level::Level;
use crate::packed::{BLOCK_COLS, TILE_ROWS};

/// Most tokens for which a unit is unpacked once and multiplied token by token.
pub(crate) const FEW_TOKENS: usize = 32;

/// [`Packed::few`] for values of this density. What tiles take for a unit grows with its values, and they want some vectors of
/// tokens to be busy. Measured; `docs/runtime.md` says how.
pub(crate) fn few_of_values(level: Level, density: f64) -> usize {
    let few = match level {
        Level::Avx512 | Level::Avx512Vbmi2 => 16.0 + 32.0 * density,
        Level::Avx2 | Level::Portable => (52.0 * density).max(12.0),
    };
    (few.round() as usize).min(FEW_TOKENS)
}

/// Packed weights as the drivers see them: tiles of rows, blocks of columns.
pub(crate) trait Packed: Sync {
    type Tile<'a>: Tile
    where
        Self: 'a;

    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    fn tile(&self, tile: usize) -> Self::Tile<'_>;

    /// Up to so many tokens, at most [`FEW_TOKENS`], are multiplied one by one by a unit once unpacked; more in tiles of tokens.
    fn few(&self, level: Level) -> usize;

    fn tiles(&self) -> usize {
        self.rows().div_ceil(TILE_ROWS)
    }

    fn blocks(&self) -> usize {
        self.cols().div_ceil(BLOCK_COLS)
    }
}

/// Some rows of them, at most [`TILE_ROWS`].
pub(crate) trait Tile: Copy + Send + Sync {
    /// Where the next unit's values are.
    type Cursor: Copy;

    fn rows(self) -> usize;

    /// At the first unit.
    fn cursor(self) -> Self::Cursor;

    /// Whether [`vectors`](Self::vectors) takes the activations of each 32 columns with even numbers before those with odd ones.
    fn splits(level: Level) -> bool {
        let _ = level;
        false
    }

    /// sums[token][row] += Σ over the tile's columns, for 1 to [`FEW_TOKENS`]; `x` is blocks x tokens x 64.
    fn vectors(self, level: Level, x: &[f32], sums: &mut [[f32; TILE_ROWS]]);

    /// The units of a block, one for each row, the rest being empty. `cursor` is at the first of them and moves on to the next block's.
    /// Values may be put into `wide`.
    fn units<'w>(
        self,
        level: Level,
        block: usize,
        cursor: &mut Self::Cursor,
        wide: &'w mut Wide,
    ) -> [Unit<'w>; TILE_ROWS]
    where
        Self: 'w;
}

/// A unit's mask, and its values in f32, with or without more behind them.
pub(crate) type Unit<'a> = (u64, &'a [f32]);

/// Place for a block of a tile in f32, and for a vector that is written behind it.
pub(crate) type Wide = [f32; TILE_ROWS * BLOCK_COLS + 8];

/// Units with these masks, whose values follow each other.
fn units_of<'a>(masks: &[u64], mut values: &'a [f32]) -> [Unit<'a>; TILE_ROWS] {
    let mut units: [Unit<'a>; TILE_ROWS] = [(0, &[]); TILE_ROWS];
    for (unit, mask) in units.iter_mut().zip(masks) {
        *unit = (*mask, values);
        split_unit(&mut values, *mask);
    }
    units
}

/// Values of units with these masks.
fn count(masks: &[u64]) -> usize {
    masks.iter().map(|mask| mask.count_ones() as usize).sum()
}

/// Dense weights as the drivers see them.
pub(crate) trait Dense: Sync {
    type Panel<'a>: Panel
    where
        Self: 'a;

    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    fn panel(&self, panel: usize) -> Self::Panel<'_>;

    fn panels(&self) -> usize {
        self.rows().div_ceil(PANEL_ROWS)
    }
}

/// [`PANEL_ROWS`] rows of them.
pub(crate) trait Panel: Copy + Send + Sync {
    /// sums[row] += Σ over the panel's columns.
    fn vector(self, level: Level, x: &[f32], sums: &mut [f32; PANEL_ROWS]);

    /// sums[tile][token][row] += Σ over some columns, at most [`tokens::DENSE_COLS`]; `x` gives those columns x N of a tile
    /// of tokens.
    fn tokens<'x, const N: usize>(
        self,
        level: Level,
        cols: Range<usize>,
        x: &dyn Fn(usize) -> &'x [f32],
        sums: &mut [[[f32; PANEL_ROWS]; N]],
    );
}

/// The values behind a unit's mask, and the rest.
pub(crate) fn split_unit<'a, V>(values: &mut &'a [V], mask: u64) -> &'a [V] {
    let (unit, rest) = values.split_at(mask.count_ones() as usize);
    *values = rest;
    unit
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for so many cache lines of an array from this byte on, which may lie behind its end, so that they are on the way
/// when they are used.
#[inline(always)]
fn prefetch<T>(array: *const T, byte: usize, lines: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let place = array.cast::<i8>().wrapping_add(byte + line * LINE);
        // SAFETY: a hint never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (array, byte, lines);
}

/// Asks for the part of some activations that falls to one of so many rows.
#[cfg(any(target_arch = "x86_64", test))]
#[inline(always)]
fn ask_for_part(ahead: &[f32], row: usize, rows: usize) {
    let lines = size_of_val(ahead).div_ceil(LINE * rows);
    prefetch(ahead.as_ptr(), row * lines * LINE, lines);
}

/// Lines to ask for with each unit: a little more than half of its weights take.
#[cfg(any(target_arch = "x86_64", test))]
const fn lines_a_unit<V>() -> usize {
    size_of::<V>() / 2 + 1
}
