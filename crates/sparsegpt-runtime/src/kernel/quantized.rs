//! Weights that are codes of a grid: w = (code − zero)·scale, with a scale and a zero for some columns of each row.

use std::ops::Range;

use super::tokens::DENSE_COLS;
use super::{Panel, StoredPanel, Tile, Unit, Wide, count, portable, units_of};
use crate::dense::PANEL_ROWS;
use crate::level::Level;
use crate::packed::{BLOCK_COLS, TILE_ROWS};
use crate::quantized::Width;

/// code − zero, which f32 holds.
pub(crate) fn steps_of(code: u8, zero: u8) -> f32 {
    f32::from(i16::from(code) - i16::from(zero))
}

/// A tile of a quantized matrix.
///
/// **Invariant**: `masks` has rows x blocks entries; `codes` has a code for each bit from code `start` on, and 16 bytes
/// more; `scales` and `zeros` have an entry for each row of each group of blocks.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedTile<'a> {
    pub(crate) rows: usize,
    pub(crate) blocks: usize,
    /// Blocks that share scales and zeros.
    pub(crate) group_blocks: usize,
    pub(crate) width: Width,
    pub(crate) masks: &'a [u64],
    /// Of the whole matrix, as a tile may begin in the middle of a byte.
    pub(crate) codes: &'a [u8],
    pub(crate) start: usize,
    /// Groups x rows.
    pub(crate) scales: &'a [f32],
    pub(crate) zeros: &'a [u8],
}

impl QuantizedTile<'_> {
    /// Masks, scales and zeros of the rows of a block.
    #[inline(always)]
    pub(super) fn masks_and_grids(&self, block: usize) -> (&[u64], &[f32], &[u8]) {
        let of_rows = |at: usize| at * self.rows..(at + 1) * self.rows;
        let grid = of_rows(block / self.group_blocks);
        (
            &self.masks[of_rows(block)],
            &self.scales[grid.clone()],
            &self.zeros[grid],
        )
    }
}

impl<'a> Tile for QuantizedTile<'a> {
    /// The code.
    type Cursor = usize;

    fn rows(self) -> usize {
        self.rows
    }

    fn cursor(self) -> usize {
        self.start
    }

    fn vectors(self, level: Level, x: &[f32], sums: &mut [[f32; TILE_ROWS]]) {
        #[cfg(target_arch = "x86_64")]
        use super::avx2::{quantized_vector, quantized_vectors};

        // SAFETY of all kernels: levels are checked where they are chosen, tiles hold their invariant, and `x` is blocks of all
        // tokens.
        match (level, self.width, sums) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx512Vbmi2, Width::Four, sums) => unsafe {
                super::vbmi2::quantized_vectors::<4>(self, x, sums);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx512Vbmi2, Width::Eight, sums) => unsafe {
                super::vbmi2::quantized_vectors::<8>(self, x, sums);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx2 | Level::Avx512, Width::Four, [sums]) => unsafe {
                quantized_vector::<4>(self, x, sums);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx2 | Level::Avx512, Width::Four, sums) => unsafe {
                quantized_vectors::<4>(self, x, sums);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx2 | Level::Avx512, Width::Eight, [sums]) => unsafe {
                quantized_vector::<8>(self, x, sums);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx2 | Level::Avx512, Width::Eight, sums) => unsafe {
                quantized_vectors::<8>(self, x, sums);
            },
            (_, _, sums) => {
                let mut cursor = self.cursor();
                let mut wide = [0.0; _];
                let blocks = x.chunks(BLOCK_COLS * sums.len()).take(self.blocks);
                for (block, x) in blocks.enumerate() {
                    let units = self.units(level, block, &mut cursor, &mut wide);
                    for (row, (mask, values)) in units.into_iter().enumerate() {
                        for (sums, x) in sums.iter_mut().zip(x.chunks(BLOCK_COLS)) {
                            portable::unit_vector(mask, values, x, &mut sums[row]);
                        }
                    }
                }
            }
        }
    }

    fn units<'w>(
        self,
        level: Level,
        block: usize,
        cursor: &mut usize,
        wide: &'w mut Wide,
    ) -> [Unit<'w>; TILE_ROWS]
    where
        Self: 'w,
    {
        let (masks, scales, zeros) = self.masks_and_grids(block);
        let at = *cursor;
        *cursor += count(masks);
        match (level, self.width) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: levels are checked where they are chosen, and the tile holds its invariant.
            (Level::Avx2 | Level::Avx512 | Level::Avx512Vbmi2, Width::Four) => unsafe {
                super::avx2::widen_codes::<4>(self, block, at, wide);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Level::Avx2 | Level::Avx512 | Level::Avx512Vbmi2, Width::Eight) => unsafe {
                super::avx2::widen_codes::<8>(self, block, at, wide);
            },
            _ => {
                let mut codes = at..*cursor;
                let mut wide = wide.iter_mut();
                for ((mask, scale), zero) in masks.iter().zip(scales).zip(zeros) {
                    let own = codes.by_ref().take(mask.count_ones() as usize);
                    for (code, wide) in own.zip(&mut wide) {
                        *wide = steps_of(self.width.code(self.codes, code), *zero) * scale;
                    }
                }
            }
        }
        units_of(masks, wide)
    }
}

/// A panel's scales and zeros, groups x [`PANEL_ROWS`] each.
#[derive(Clone, Copy)]
pub(crate) struct PanelGrid<'a> {
    pub(crate) scales: &'a [f32],
    pub(crate) zeros: &'a [u8],
    /// Columns that share them.
    pub(crate) group: usize,
}

impl PanelGrid<'_> {
    /// Of the group of a column.
    fn of(&self, col: usize) -> ([f32; PANEL_ROWS], [u8; PANEL_ROWS]) {
        let at = col / self.group * PANEL_ROWS;
        let (scales, zeros) = (&self.scales[at..], &self.zeros[at..]);
        (
            std::array::from_fn(|row| scales[row]),
            std::array::from_fn(|row| zeros[row]),
        )
    }
}

/// A panel of a quantized dense matrix: cols x [`PANEL_ROWS`] codes; of four bits, row i is the lower half of a byte and row
/// i + 8 the upper.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedPanel<'a> {
    pub(crate) width: Width,
    pub(crate) codes: &'a [u8],
    pub(crate) grid: PanelGrid<'a>,
}

impl QuantizedPanel<'_> {
    /// Columns from `col` on in f32.
    fn widen(self, col: usize, wide: &mut [f32]) {
        let bytes = self.width.bytes(PANEL_ROWS);
        let columns = self.codes[col * bytes..].chunks_exact(bytes);
        for ((at, column), wide) in columns.enumerate().zip(wide.chunks_exact_mut(PANEL_ROWS)) {
            let (scales, zeros) = self.grid.of(col + at);
            for (row, wide) in wide.iter_mut().enumerate() {
                *wide = steps_of(self.width.panel_code(column, row), zeros[row]) * scales[row];
            }
        }
    }
}

impl Panel for QuantizedPanel<'_> {
    fn vector(self, level: Level, x: &[f32], sums: &mut [f32; PANEL_ROWS]) {
        let bytes = self.width.bytes(PANEL_ROWS);
        for (group, x) in x.chunks(self.grid.group).enumerate() {
            let col = group * self.grid.group;
            let codes = &self.codes[col * bytes..(col + x.len()) * bytes];
            let (scales, zeros) = self.grid.of(col);
            let mut steps = [0.0; PANEL_ROWS];
            match (level, self.width) {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: levels are checked where they are chosen; a column of codes for each value of x.
                (Level::Avx512Vbmi2, Width::Four) => unsafe {
                    super::vbmi2::steps_vector::<4>(codes, &zeros, x, &mut steps);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                (Level::Avx512Vbmi2, Width::Eight) => unsafe {
                    super::vbmi2::steps_vector::<8>(codes, &zeros, x, &mut steps);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                (Level::Avx2 | Level::Avx512, Width::Four) => unsafe {
                    super::avx2::steps_vector::<4>(codes, &zeros, x, &mut steps);
                },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                (Level::Avx2 | Level::Avx512, Width::Eight) => unsafe {
                    super::avx2::steps_vector::<8>(codes, &zeros, x, &mut steps);
                },
                _ => {
                    for (column, x) in codes.chunks_exact(bytes).zip(x) {
                        for (row, sum) in steps.iter_mut().enumerate() {
                            *sum += steps_of(self.width.panel_code(column, row), zeros[row]) * x;
                        }
                    }
                }
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum += scales[row] * steps[row];
            }
        }
    }

    fn tokens<'x, const N: usize>(
        self,
        level: Level,
        cols: Range<usize>,
        x: &dyn Fn(usize) -> &'x [f32],
        sums: &mut [[[f32; PANEL_ROWS]; N]],
    ) {
        let mut wide = [0.0; DENSE_COLS * PANEL_ROWS];
        let wide = &mut wide[..cols.len() * PANEL_ROWS];
        self.widen(cols.start, wide);
        StoredPanel(&*wide).tokens(level, 0..cols.len(), x, sums);
    }
}
