//! Weights that are codes of a grid, as joint pruning and quantization leaves them: w = (code − zero)·scale, with a scale and
//! a zero for some columns of each row. A weight whose code is the zero is exactly zero, and is not stored.

use ndarray::{Array2, ArrayView2};

use crate::buffer::{Aligned, Buffer};
use crate::dense::PANEL_ROWS;
use crate::error::{Error, Result};
use crate::kernel::{
    Dense, FEW_TOKENS, Packed, PanelGrid, QuantizedPanel, QuantizedTile, steps_of,
};
use crate::level::Level;
use crate::packed::{
    BLOCK_COLS, TILE_ROWS, bits, check_masks, expect_entries, from_rows, tile_masks,
};

/// Bytes behind the last code, so that kernels may load whole words at the end.
const CODE_PADDING: usize = 16;

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Width {
    /// 0 to 15, two to a byte, the first in the lower half.
    Four,
    /// 0 to 255.
    Eight,
}

impl Width {
    /// Its bits.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The width of so many bits, if it is one.
    #[must_use]
    pub fn from_bits(bits: usize) -> Option<Self> {
        match bits {
            4 => Some(Self::Four),
            8 => Some(Self::Eight),
            _ => None,
        }
    }

    /// The largest code.
    pub(crate) fn most(self) -> u8 {
        u8::MAX >> (8 - self.bits())
    }

    /// Of some codes.
    pub(crate) fn bytes(self, codes: usize) -> usize {
        (codes * self.bits()).div_ceil(8)
    }

    pub(crate) fn code(self, codes: &[u8], at: usize) -> u8 {
        match self {
            Self::Four => codes[at / 2] >> (at % 2 * 4) & 15,
            Self::Eight => codes[at],
        }
    }

    /// A row of a column of a panel.
    pub(crate) fn panel_code(self, column: &[u8], row: usize) -> u8 {
        const HALF: usize = PANEL_ROWS / 2;
        match self {
            Self::Four => column[row % HALF] >> (row / HALF * 4) & 15,
            Self::Eight => column[row],
        }
    }
}

/// Codes of a layer and their grid, as they are before they are stored.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// Bits of each.
    pub width: Width,
    /// rows x cols.
    pub codes: ArrayView2<'a, u8>,
    /// rows x groups; finite.
    pub scales: ArrayView2<'a, f32>,
    /// rows x groups.
    pub zeros: ArrayView2<'a, u8>,
    /// Columns of a group: a multiple of [`BLOCK_COLS`], or all of them or more.
    pub group: usize,
}

impl Codes<'_> {
    /// Whether shapes, groups and codes fit each other.
    pub(crate) fn check(&self) -> Result<()> {
        let (rows, cols) = self.codes.dim();
        let refuse = |reason: String| Err(Error::packed(rows, cols, reason));
        let groups =
            checked_groups(cols, self.group).map_err(|reason| Error::packed(rows, cols, reason))?;
        for (what, found) in [("scales", self.scales.dim()), ("zeros", self.zeros.dim())] {
            if found != (rows, groups) {
                return refuse(format!(
                    "expected {what} of {rows} x {groups}, found {found:?}"
                ));
            }
        }
        finite_scales(self.scales.iter().copied()).or_else(refuse)?;
        let most = self.width.most();
        let all = self.codes.iter().chain(self.zeros);
        match all.into_iter().find(|&&code| code > most) {
            Some(code) => refuse(format!(
                "expected codes and zeros up to {most}, found {code}"
            )),
            None => Ok(()),
        }
    }

    /// The weight that a code stands for.
    fn weight(&self, row: usize, col: usize) -> f32 {
        let group = col / self.group;
        steps_of(self.codes[[row, col]], self.zeros[[row, group]]) * self.scales[[row, group]]
    }

    /// All weights.
    #[must_use]
    pub fn to_f32(&self) -> Array2<f32> {
        Array2::from_shape_fn(self.codes.dim(), |(row, col)| self.weight(row, col))
    }

    /// Weights that are not zero over weights.
    pub(crate) fn density(&self) -> f64 {
        let stored = self.codes.indexed_iter();
        let stored =
            stored.filter(|((row, col), code)| **code != self.zeros[[*row, col / self.group]]);
        stored.count() as f64 / self.codes.len().max(1) as f64
    }
}

/// Kernels put zeros where there are no codes, which would be no numbers times any other scale.
fn finite_scales(mut scales: impl Iterator<Item = f32>) -> Result<(), String> {
    match scales.find(|scale| !scale.is_finite()) {
        Some(scale) => Err(format!("expected finite scales, found {scale}")),
        None => Ok(()),
    }
}

/// Groups of so many columns.
fn checked_groups(cols: usize, group: usize) -> Result<usize, String> {
    if group == 0 || (!group.is_multiple_of(BLOCK_COLS) && group < cols) {
        return Err(format!(
            "expected groups of a multiple of {BLOCK_COLS} columns, or of all, found {group}"
        ));
    }
    Ok(cols.div_ceil(group))
}

/// A packed matrix of codes, rows x cols.
///
/// ```
/// use sparsegpt_runtime::{Codes, QuantizedMatrix, Width};
/// use sparsegpt_runtime::ndarray::array;
///
/// let (codes, scales, zeros) = (array![[8, 9, 0], [3, 3, 4]], array![[0.5_f32], [2.0]], array![[8], [3]]);
/// let codes = Codes {
///     width: Width::Four,
///     codes: codes.view(),
///     scales: scales.view(),
///     zeros: zeros.view(),
///     group: 64,
/// };
/// let packed = QuantizedMatrix::from_codes(&codes)?;
/// assert_eq!(packed.nonzeros(), 3);
/// assert_eq!(packed.unpack(), array![[0.0, 0.5, -4.0], [0.0, 0.0, 2.0]]);
/// # Ok::<(), sparsegpt_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    rows: usize,
    cols: usize,
    width: Width,
    /// Columns that share a grid.
    group: usize,
    masks: Buffer<u64>,
    /// The code with which each tile begins, and the end.
    offsets: Buffer<u64>,
    codes: Buffer<u8>,
    /// Tile by tile, in a tile group by group, in a group row by row.
    scales: Buffer<f32>,
    zeros: Buffer<u8>,
}

/// The arrays of a [`QuantizedMatrix`], as a container stores them.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedParts<'a> {
    /// Bits of a code, and columns of a group.
    pub grid: [u64; 2],
    /// Rows x blocks.
    pub masks: &'a [u64],
    /// Tiles + 1.
    pub offsets: &'a [u64],
    /// With the padding.
    pub codes: &'a [u8],
    /// Rows x groups.
    pub scales: &'a [f32],
    /// Rows x groups.
    pub zeros: &'a [u8],
}

impl QuantizedMatrix {
    /// Packs codes; those that are their group's zero are left out.
    ///
    /// # Errors
    /// [`Error::Packed`] if shapes do not fit, groups are none of those allowed, a code or zero is too large, or a scale is not finite.
    pub fn from_codes(of: &Codes<'_>) -> Result<Self> {
        of.check()?;
        let (rows, cols) = of.codes.dim();
        let (mut masks, mut offsets, mut stored) = (Vec::new(), vec![0], Vec::new());
        let (mut scales, mut zeros) = (Vec::new(), Vec::new());
        for first_row in (0..rows).step_by(TILE_ROWS) {
            let tile_rows = first_row..rows.min(first_row + TILE_ROWS);
            for first_col in (0..cols).step_by(BLOCK_COLS) {
                for row in tile_rows.clone() {
                    let mut mask = 0_u64;
                    for col in first_col..cols.min(first_col + BLOCK_COLS) {
                        let code = of.codes[[row, col]];
                        if code != of.zeros[[row, col / of.group]] {
                            mask |= 1 << (col - first_col);
                            stored.push(code);
                        }
                    }
                    masks.push(mask);
                }
            }
            offsets.push(stored.len() as u64);
            for group in 0..of.scales.ncols() {
                for row in tile_rows.clone() {
                    scales.push(of.scales[[row, group]]);
                    zeros.push(of.zeros[[row, group]]);
                }
            }
        }
        let mut codes: Vec<u8> = match of.width {
            Width::Eight => stored,
            Width::Four => {
                let pairs = stored.chunks(2);
                pairs
                    .map(|pair| pair[0] | pair.get(1).map_or(0, |second| second << 4))
                    .collect()
            }
        };
        codes.resize(codes.len() + CODE_PADDING, 0);
        Ok(Self {
            rows,
            cols,
            width: of.width,
            group: of.group,
            masks: masks.into(),
            offsets: offsets.into(),
            codes: codes.into(),
            scales: scales.into(),
            zeros: zeros.into(),
        })
    }

    /// The one way for parts that this crate has not made itself: kernels rely on what it checks.
    pub(crate) fn from_buffers(
        (rows, cols): (usize, usize),
        grid: &[u64],
        [masks, offsets]: [Buffer<u64>; 2],
        [codes, zeros]: [Buffer<u8>; 2],
        scales: Buffer<f32>,
    ) -> Result<Self> {
        let refuse = |reason: String| Error::packed(rows, cols, reason);
        let width = match *grid {
            [bits, group] => Width::from_bits(bits as usize).zip(usize::try_from(group).ok()),
            _ => None,
        };
        let (width, group) = width.ok_or_else(|| {
            refuse(format!(
                "expected codes of 4 or 8 bits and their groups, found {grid:?}"
            ))
        })?;
        let matrix = Self {
            rows,
            cols,
            width,
            group,
            masks,
            offsets,
            codes,
            scales,
            zeros,
        };
        matrix.check().map_err(refuse)?;
        Ok(matrix)
    }

    fn check(&self) -> Result<(), String> {
        let groups = checked_groups(self.cols, self.group)?;
        let nonzeros = check_masks(self.rows, self.cols, &self.masks, &self.offsets)?;
        let bytes = self.width.bytes(nonzeros) + CODE_PADDING;
        expect_entries("bytes of codes with the padding", bytes, self.codes.len())?;
        // As many as masks at most, so that they can be counted.
        expect_entries("scales", self.rows * groups, self.scales.len())?;
        expect_entries("zeros", self.rows * groups, self.zeros.len())?;
        finite_scales(self.scales.iter().copied())?;
        let most = self.width.most();
        if let Some(zero) = self.zeros.iter().find(|&&zero| zero > most) {
            return Err(format!("expected zeros up to {most}, found {zero}"));
        }
        let behind = &self.codes[self.codes.len() - CODE_PADDING..];
        match behind.iter().any(|&byte| byte != 0) {
            true => Err("the padding behind the codes is not zero".to_owned()),
            false => Ok(()),
        }
    }

    /// The weights.
    #[must_use]
    pub fn unpack(&self) -> Array2<f32> {
        from_rows((self.rows, self.cols), |row| self.row(row))
    }

    /// The row in f32; it must be one of the matrix.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let mut dense = vec![0.0; self.cols];
        let tile = self.tile(row / TILE_ROWS);
        let mut at = tile.start;
        for (unit, &mask) in tile.masks.iter().enumerate() {
            if unit % tile.rows == row % TILE_ROWS {
                let block = unit / tile.rows;
                let entry = block / tile.group_blocks * tile.rows + unit % tile.rows;
                for (number, col) in bits(mask).enumerate() {
                    let code = self.width.code(&self.codes, at + number);
                    dense[block * BLOCK_COLS + col] =
                        steps_of(code, tile.zeros[entry]) * tile.scales[entry];
                }
            }
            at += mask.count_ones() as usize;
        }
        dense
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bits of a code.
    #[must_use]
    pub fn width(&self) -> Width {
        self.width
    }

    /// Stored codes.
    #[must_use]
    pub fn nonzeros(&self) -> usize {
        self.offsets.last().map_or(0, |&end| end as usize)
    }

    /// Stored codes over weights; 0 for an empty matrix.
    #[must_use]
    pub fn density(&self) -> f64 {
        self.nonzeros() as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// Bytes in memory, all of which a product reads once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.masks)
            + size_of_val(&*self.offsets)
            + size_of_val(&*self.codes)
            + size_of_val(&*self.scales)
            + size_of_val(&*self.zeros)
    }

    /// The arrays, to store them.
    #[must_use]
    pub fn parts(&self) -> QuantizedParts<'_> {
        QuantizedParts {
            grid: [self.width.bits() as u64, self.group as u64],
            masks: &self.masks,
            offsets: &self.offsets,
            codes: &self.codes,
            scales: &self.scales,
            zeros: &self.zeros,
        }
    }
}

impl Packed for QuantizedMatrix {
    type Tile<'a> = QuantizedTile<'a>;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    /// Tiles of tokens take their codes one by one.
    fn few(&self, _level: Level) -> usize {
        FEW_TOKENS
    }

    fn tile(&self, tile: usize) -> QuantizedTile<'_> {
        let rows = TILE_ROWS.min(self.rows - tile * TILE_ROWS);
        let groups = self.cols.div_ceil(self.group);
        let first = tile * TILE_ROWS * groups;
        let grid = first..first + rows * groups;
        QuantizedTile {
            rows,
            blocks: self.blocks(),
            group_blocks: self.group.div_ceil(BLOCK_COLS),
            width: self.width,
            masks: tile_masks(&self.masks, self.rows, self.blocks(), tile),
            codes: &self.codes,
            start: self.offsets[tile] as usize,
            scales: &self.scales[grid.clone()],
            zeros: &self.zeros[grid],
        }
    }
}

/// All codes, in panels of rows: what packed ones are compared with, and what is used where too few weights are zero.
#[derive(Clone, Debug)]
pub struct QuantizedDense {
    rows: usize,
    cols: usize,
    width: Width,
    group: usize,
    /// Panels x cols x rows of a panel.
    codes: Buffer<u8>,
    /// Panels x groups x rows of a panel; zero where there are no rows.
    scales: Buffer<f32>,
    zeros: Buffer<u8>,
    density: f64,
}

impl QuantizedDense {
    /// Arranges codes.
    ///
    /// # Errors
    /// As [`QuantizedMatrix::from_codes`].
    pub fn from_codes(of: &Codes<'_>) -> Result<Self> {
        of.check()?;
        let (rows, cols) = of.codes.dim();
        let (panels, groups) = (rows.div_ceil(PANEL_ROWS), of.scales.ncols());
        let column = of.width.bytes(PANEL_ROWS);
        let mut codes = Aligned::zeroed(panels * cols * column);
        let mut scales = Aligned::zeroed(panels * groups * PANEL_ROWS);
        let mut zeros = Aligned::zeroed(panels * groups * PANEL_ROWS);
        for row in 0..rows {
            let (panel, place) = (row / PANEL_ROWS, row % PANEL_ROWS);
            for col in 0..cols {
                let code = of.codes[[row, col]];
                let column = &mut codes[(panel * cols + col) * column..][..column];
                match of.width {
                    Width::Four => {
                        column[place % (PANEL_ROWS / 2)] |= code << (place / (PANEL_ROWS / 2) * 4);
                    }
                    Width::Eight => column[place] = code,
                }
            }
            for group in 0..groups {
                let at = (panel * groups + group) * PANEL_ROWS + place;
                scales[at] = of.scales[[row, group]];
                zeros[at] = of.zeros[[row, group]];
            }
        }
        Ok(Self {
            rows,
            cols,
            width: of.width,
            group: of.group,
            codes: codes.into(),
            scales: scales.into(),
            zeros: zeros.into(),
            density: of.density(),
        })
    }

    /// The weights.
    #[must_use]
    pub fn unpack(&self) -> Array2<f32> {
        from_rows((self.rows, self.cols), |row| self.row(row))
    }

    /// The row in f32; it must be one of the matrix.
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let QuantizedPanel { codes, grid, .. } = self.panel(row / PANEL_ROWS);
        let place = row % PANEL_ROWS;
        let columns = codes.chunks_exact(self.width.bytes(PANEL_ROWS));
        let weight = |(col, column): (usize, &[u8])| {
            let entry = col / self.group * PANEL_ROWS + place;
            steps_of(self.width.panel_code(column, place), grid.zeros[entry]) * grid.scales[entry]
        };
        columns.enumerate().map(weight).collect()
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bits of a code.
    #[must_use]
    pub fn width(&self) -> Width {
        self.width
    }

    /// Weights that are not zero over weights.
    #[must_use]
    pub fn density(&self) -> f64 {
        self.density
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.codes) + size_of_val(&*self.scales) + size_of_val(&*self.zeros)
    }
}

impl Dense for QuantizedDense {
    type Panel<'a> = QuantizedPanel<'a>;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn panel(&self, panel: usize) -> QuantizedPanel<'_> {
        let len = self.cols * self.width.bytes(PANEL_ROWS);
        let groups = self.cols.div_ceil(self.group) * PANEL_ROWS;
        QuantizedPanel {
            width: self.width,
            codes: &self.codes[panel * len..(panel + 1) * len],
            grid: PanelGrid {
                scales: &self.scales[panel * groups..(panel + 1) * groups],
                zeros: &self.zeros[panel * groups..(panel + 1) * groups],
                group: self.group,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::Array2;

    use super::*;

    #[test]
    fn zeros_beyond_the_codes_and_scales_that_are_no_numbers_are_refused() {
        let (codes, scale, zero) = (
            Array2::from_elem((1, 64), 9),
            Array2::from_elem((1, 1), 1.0),
            Array2::from_elem((1, 1), 15),
        );
        let codes = Codes {
            width: Width::Four,
            codes: codes.view(),
            scales: scale.view(),
            zeros: zero.view(),
            group: 64,
        };
        let packed = QuantizedMatrix::from_codes(&codes).unwrap();
        let with = |zero: u8, scale: f32| {
            let copy = |words: &[u64]| Buffer::from(words.to_vec());
            QuantizedMatrix::from_buffers(
                (1, 64),
                &[4, 64],
                [copy(&packed.masks), copy(&packed.offsets)],
                [
                    Buffer::from(packed.codes.to_vec()),
                    Buffer::from(vec![zero]),
                ],
                Buffer::from(vec![scale]),
            )
        };
        assert_eq!(with(15, 1.0).unwrap().unpack(), packed.unpack());
        let error = with(15, f32::INFINITY).unwrap_err().to_string();
        assert!(error.contains("finite scales, found inf"), "{error}");
        let error = with(16, 1.0).unwrap_err().to_string();
        assert!(
            error.contains("expected zeros up to 15, found 16"),
            "{error}"
        );
    }
}
