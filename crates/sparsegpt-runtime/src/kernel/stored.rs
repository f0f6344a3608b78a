//! Weights in a type of their own.

use std::ops::Range;

use super::{Index, LINE, Panel, Tile, Unit, Wide, count, portable, prefetch, units_of};
use crate::dense::PANEL_ROWS;
use crate::level::Level;
use crate::packed::TILE_ROWS;
use crate::value::Value;

/// Bytes ahead of the values in use that are asked for with many tokens: about a block of a tile.
const VALUES_AHEAD: usize = 2048;

/// A tile of a packed matrix.
///
/// **Invariant**: `index` has rows x blocks units, and `values` one value for each column they tell and
/// [`PADDING`](crate::PADDING) more. The matrices check it; the kernels rely on it.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a, V, I> {
    pub(crate) rows: usize,
    pub(crate) blocks: usize,
    pub(crate) index: I,
    pub(crate) values: &'a [V],
}

impl<'a, V: Value, I: Index> Tile for Stored<'a, V, I> {
    type Cursor = &'a [V];

    fn rows(self) -> usize {
        self.rows
    }

    fn cursor(self) -> &'a [V] {
        self.values
    }

    /// Words are expanded, and become f32 in two vectors: a shift makes those of even columns, a mask those of odd ones.
    #[cfg(target_arch = "x86_64")]
    fn splits(level: Level) -> bool {
        level == Level::Avx512Vbmi2 && V::UPPER_HALF
    }

    fn vectors(self, level: Level, x: &[f32], sums: &mut [[f32; TILE_ROWS]]) {
        // SAFETY of all kernels: levels are checked where they are chosen, tiles hold their invariant, and `x` is blocks of all
        // tokens.
        match (level, sums) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx512Vbmi2, sums) if V::UPPER_HALF || self.index.codes().is_some() => unsafe {
                super::vbmi2::tile_vectors(self, x, sums);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx512 | Level::Avx512Vbmi2, [sums]) => unsafe {
                super::avx512::tile_vector(self, x, sums)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx512 | Level::Avx512Vbmi2, sums) => unsafe {
                super::avx512::tile_vectors(self, x, sums)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx2, [sums]) => unsafe { super::avx2::tile_vector(self, x, sums) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx2, sums) => unsafe { super::avx2::tile_vectors(self, x, sums) },
            (_, sums) => portable::tile_vectors(self, x, sums),
        }
    }

    fn units<'w>(
        self,
        level: Level,
        block: usize,
        cursor: &mut &'a [V],
        wide: &'w mut Wide,
    ) -> [Unit<'w>; TILE_ROWS]
    where
        Self: 'w,
    {
        let mut masks = [0; TILE_ROWS];
        let masks = &mut masks[..self.rows];
        for (row, mask) in masks.iter_mut().enumerate() {
            *mask = self.index.mask(block * self.rows + row);
        }
        let values = *cursor;
        let (own, rest) = values.split_at(count(masks));
        *cursor = rest;
        let lines = size_of_val(own).div_ceil(LINE);
        prefetch(values.as_ptr(), VALUES_AHEAD, lines);
        match bytemuck::try_cast_slice(values) {
            Ok(values) if V::NAME == f32::NAME => return units_of(masks, values),
            _ => {}
        }
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: levels are checked where they are chosen, and a tile ends in 16 values of padding.
            Level::Avx2 | Level::Avx512 | Level::Avx512Vbmi2 => unsafe {
                super::avx2::widen(values, own.len(), wide);
            },
            _ => {
                for (wide, value) in wide.iter_mut().zip(own) {
                    *wide = value.to_f32();
                }
            }
        }
        units_of(masks, wide)
    }
}

/// A panel of a dense matrix: cols x [`PANEL_ROWS`].
#[derive(Clone, Copy)]
pub(crate) struct StoredPanel<'a, V>(pub(crate) &'a [V]);

impl<V: Value> Panel for StoredPanel<'_, V> {
    fn vector(self, level: Level, x: &[f32], sums: &mut [f32; PANEL_ROWS]) {
        match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: levels are checked where they are chosen; a panel has as many columns as x values.
            Level::Avx2 | Level::Avx512 | Level::Avx512Vbmi2 => unsafe {
                super::avx2::panel_vector(self.0, x, sums)
            },
            _ => portable::panel_vector(self.0, x, sums),
        }
    }

    fn tokens<'x, const N: usize>(
        self,
        level: Level,
        cols: Range<usize>,
        x: &dyn Fn(usize) -> &'x [f32],
        sums: &mut [[[f32; PANEL_ROWS]; N]],
    ) {
        let panel = &self.0[cols.start * PANEL_ROWS..cols.end * PANEL_ROWS];
        for (tile, sums) in sums.iter_mut().enumerate() {
            match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: levels are checked where they are chosen.
                Level::Avx512 | Level::Avx512Vbmi2 => unsafe {
                    super::avx512::panel_tokens(panel, x(tile), sums);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: levels are checked where they are chosen.
                Level::Avx2 => unsafe {
                    super::avx2::panel_tokens(panel, x(tile), sums);
                },
                _ => portable::panel_tokens(panel, x(tile), sums),
            }
        }
    }
}
