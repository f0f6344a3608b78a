//! A bit for every weight, and the values of those that are not zero.
//!
//! Rows come in tiles of [`TILE_ROWS`], columns in blocks of [`BLOCK_COLS`]. A row's part of a block is a unit: one
//! u64 whose bit c says whether the weight of the block's column c is stored, and those weights in the order of their
//! columns. The units of a tile follow each other block by block, and in a block row by row: so a product reads masks and
//! values front to back, and all rows of a tile use a block's activations while they are in the cache.

use ndarray::{Array2, ArrayView2};

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::kernel::{Bits, Packed, Stored, few_of_values, split_unit};
use crate::level::Level;
use crate::value::Value;

/// Rows of a tile. The last one of a matrix may have fewer.
pub const TILE_ROWS: usize = 16;
/// Columns of a block: the bits of a mask.
pub const BLOCK_COLS: usize = 64;
/// Zeros behind the last value, so that kernels may load whole vectors at the end.
pub const PADDING: usize = 16;

/// A packed sparse matrix, rows x cols.
///
/// ```
/// use sparsegpt_runtime::PackedMatrix;
/// use sparsegpt_runtime::ndarray::array;
///
/// let dense = array![[0.0_f32, 1.5, 0.0], [-2.0, 0.0, 0.0]];
/// let packed = PackedMatrix::from_dense(dense.view());
/// assert_eq!((packed.rows(), packed.cols(), packed.nonzeros()), (2, 3, 2));
/// assert_eq!(packed.unpack(), dense);
/// ```
#[derive(Clone, Debug)]
pub struct PackedMatrix<V: Value> {
    rows: usize,
    cols: usize,
    masks: Buffer<u64>,
    /// Where each tile's values begin, and the end.
    offsets: Buffer<u64>,
    /// Followed by [`PADDING`] zeros.
    values: Buffer<V>,
}

/// The arrays of a [`PackedMatrix`], as a container stores them.
#[derive(Clone, Copy, Debug)]
pub struct PackedParts<'a, V> {
    /// Rows x blocks, in the order of the units.
    pub masks: &'a [u64],
    /// Tiles + 1.
    pub offsets: &'a [u64],
    /// Nonzeros + [`PADDING`].
    pub values: &'a [V],
}

impl<V: Value> PackedMatrix<V> {
    /// Packs a matrix. Weights whose bits are all zero are left out; -0.0 is kept.
    #[must_use]
    pub fn from_dense(dense: ArrayView2<'_, V>) -> Self {
        let (rows, cols) = dense.dim();
        let mut masks = Vec::with_capacity(rows * cols.div_ceil(BLOCK_COLS));
        let mut offsets = vec![0];
        let mut values = Vec::new();
        for first_row in (0..rows).step_by(TILE_ROWS) {
            for first_col in (0..cols).step_by(BLOCK_COLS) {
                let last_col = cols.min(first_col + BLOCK_COLS);
                for row in first_row..rows.min(first_row + TILE_ROWS) {
                    let mut mask = 0;
                    for col in first_col..last_col {
                        let value = dense[[row, col]];
                        if !value.is_absent() {
                            mask |= 1 << (col - first_col);
                            values.push(value);
                        }
                    }
                    masks.push(mask);
                }
            }
            offsets.push(values.len() as u64);
        }
        values.resize(values.len() + PADDING, V::zeroed());
        Self {
            rows,
            cols,
            masks: masks.into(),
            offsets: offsets.into(),
            values: values.into(),
        }
    }

    /// A matrix from parts of unknown origin.
    ///
    /// # Errors
    /// [`Error::Packed`] where they contradict each other.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        masks: Vec<u64>,
        offsets: Vec<u64>,
        values: Vec<V>,
    ) -> Result<Self> {
        Self::from_buffers(rows, cols, masks.into(), offsets.into(), values.into())
    }

    /// The one way for parts that this crate has not made itself: kernels rely on what it checks.
    pub(crate) fn from_buffers(
        rows: usize,
        cols: usize,
        masks: Buffer<u64>,
        offsets: Buffer<u64>,
        values: Buffer<V>,
    ) -> Result<Self> {
        let matrix = Self {
            rows,
            cols,
            masks,
            offsets,
            values,
        };
        matrix
            .check()
            .map_err(|reason| Error::packed(rows, cols, reason))?;
        Ok(matrix)
    }

    fn check(&self) -> Result<(), String> {
        let nonzeros = check_masks(self.rows, self.cols, &self.masks, &self.offsets)?;
        expect_entries(
            "values with the padding",
            nonzeros + PADDING,
            self.values.len(),
        )?;
        if self.values[nonzeros..]
            .iter()
            .any(|value| !value.is_absent())
        {
            return Err("the padding behind the values is not zero".to_owned());
        }
        Ok(())
    }

    /// The matrix as it was, bit for bit.
    #[must_use]
    pub fn unpack(&self) -> Array2<V> {
        let mut dense = Array2::from_elem((self.rows, self.cols), V::zeroed());
        for tile in 0..self.tiles() {
            let first_row = tile * TILE_ROWS;
            let rows = self.tile_rows(tile);
            let mut values = self.values[self.offsets[tile] as usize..].iter();
            for (unit, &mask) in self.tile_masks(tile).iter().enumerate() {
                let (first_col, row) = (unit / rows * BLOCK_COLS, first_row + unit % rows);
                for (col, &value) in bits(mask).zip(&mut values) {
                    dense[[row, first_col + col]] = value;
                }
            }
        }
        dense
    }

    /// The row as it was; it must be one of the matrix.
    pub(crate) fn row(&self, row: usize) -> Vec<V> {
        let mut dense = vec![V::zeroed(); self.cols];
        let (tile, place) = (row / TILE_ROWS, row % TILE_ROWS);
        let rows = self.tile_rows(tile);
        let mut values = &self.values[self.offsets[tile] as usize..];
        for (unit, &mask) in self.tile_masks(tile).iter().enumerate() {
            let own = split_unit(&mut values, mask);
            if unit % rows == place {
                for (col, &value) in bits(mask).zip(own) {
                    dense[unit / rows * BLOCK_COLS + col] = value;
                }
            }
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

    /// Stored values.
    #[must_use]
    pub fn nonzeros(&self) -> usize {
        self.values.len() - PADDING
    }

    /// Stored values over weights; 0 for an empty matrix.
    #[must_use]
    pub fn density(&self) -> f64 {
        self.nonzeros() as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// Bytes in memory, all of which a product reads once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.masks) + size_of_val(&*self.offsets) + size_of_val(&*self.values)
    }

    /// The arrays, to store them.
    #[must_use]
    pub fn parts(&self) -> PackedParts<'_, V> {
        PackedParts {
            masks: &self.masks,
            offsets: &self.offsets,
            values: &self.values,
        }
    }

    fn tile_rows(&self, tile: usize) -> usize {
        TILE_ROWS.min(self.rows - tile * TILE_ROWS)
    }

    fn tile_masks(&self, tile: usize) -> &[u64] {
        tile_masks(&self.masks, self.rows, self.blocks(), tile)
    }
}

impl<V: Value> Packed for PackedMatrix<V> {
    type Tile<'a> = Stored<'a, V, Bits<'a>>;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn few(&self, level: Level) -> usize {
        few_of_values(level, self.density())
    }

    fn tile(&self, tile: usize) -> Stored<'_, V, Bits<'_>> {
        let end = self.offsets[tile + 1] as usize + PADDING;
        Stored {
            rows: self.tile_rows(tile),
            blocks: self.blocks(),
            index: Bits(self.tile_masks(tile)),
            values: &self.values[self.offsets[tile] as usize..end],
        }
    }
}

/// A matrix of this shape from its rows.
pub(crate) fn from_rows<V: Value>(dim: (usize, usize), row: impl Fn(usize) -> Vec<V>) -> Array2<V> {
    let mut dense = Array2::from_elem(dim, V::zeroed());
    for (at, mut to) in dense.rows_mut().into_iter().enumerate() {
        to.iter_mut()
            .zip(row(at))
            .for_each(|(to, value)| *to = value);
    }
    dense
}

/// The masks of a tile.
pub(crate) fn tile_masks(masks: &[u64], rows: usize, blocks: usize, tile: usize) -> &[u64] {
    let start = tile * TILE_ROWS * blocks;
    let of_tile = TILE_ROWS.min(rows - tile * TILE_ROWS);
    &masks[start..start + of_tile * blocks]
}

/// An array of a matrix must have this many entries.
pub(crate) fn expect_entries(what: &str, expected: usize, found: usize) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!("expected {expected} {what}, found {found}"))
}

/// Rows x blocks.
pub(crate) fn unit_count(rows: usize, cols: usize) -> Result<usize, String> {
    let units = rows.checked_mul(cols.div_ceil(BLOCK_COLS));
    units.ok_or_else(|| "the shape is too large".to_owned())
}

/// Holds masks and offsets against each other and the shape, and gives the number of bits.
pub(crate) fn check_masks(
    rows: usize,
    cols: usize,
    masks: &[u64],
    offsets: &[u64],
) -> Result<usize, String> {
    let (blocks, tiles) = (cols.div_ceil(BLOCK_COLS), rows.div_ceil(TILE_ROWS));
    expect_entries("masks", unit_count(rows, cols)?, masks.len())?;
    expect_entries("tile offsets", tiles + 1, offsets.len())?;
    let past_the_end = match cols % BLOCK_COLS {
        0 => 0,
        used => u64::MAX << used,
    };
    let mut nonzeros = 0_u64;
    for tile in 0..tiles {
        let found = offsets[tile];
        if found != nonzeros {
            return Err(format!(
                "expected tile {tile} to begin at value {nonzeros}, the number of bits before it, found {found}"
            ));
        }
        let masks = tile_masks(masks, rows, blocks, tile);
        let last_rows = TILE_ROWS.min(rows - tile * TILE_ROWS);
        let last_block = &masks[masks.len() - masks.len().min(last_rows)..];
        if last_block.iter().any(|mask| mask & past_the_end != 0) {
            return Err(format!("tile {tile} has bits behind the last column"));
        }
        nonzeros += masks
            .iter()
            .map(|mask| u64::from(mask.count_ones()))
            .sum::<u64>();
    }
    let end = offsets[tiles];
    if end != nonzeros {
        return Err(format!(
            "expected {nonzeros} as the last tile offset, found {end}"
        ));
    }
    // No more than 64 for each of the masks in memory, so that it fits.
    Ok(nonzeros as usize)
}

/// Places of the bits that are set, from the lowest.
pub(crate) fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(place)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    /// Any bits with a chance of zero.
    fn matrix<V: Value>(from_bits: fn(u32) -> V) -> impl Strategy<Value = Array2<V>> {
        (0_usize..40, 0_usize..200, 0_u32..=100).prop_flat_map(move |(rows, cols, percent)| {
            let value = (0_u32..100, any::<u32>())
                .prop_map(move |(draw, bits)| from_bits(if draw < percent { bits } else { 0 }));
            proptest::collection::vec(value, rows * cols)
                .prop_map(move |values| Array2::from_shape_vec((rows, cols), values).unwrap())
        })
    }

    fn holds_every_bit<V: Value>(dense: &Array2<V>) {
        let packed = PackedMatrix::from_dense(dense.view());
        let bytes = |matrix: &Array2<V>| -> Vec<u8> {
            matrix
                .iter()
                .flat_map(|value| bytemuck::bytes_of(value).to_vec())
                .collect()
        };
        assert_eq!(bytes(&packed.unpack()), bytes(dense));
        let stored = dense.iter().filter(|value| !value.is_absent()).count();
        assert_eq!(packed.nonzeros(), stored);
        for (row, values) in dense.rows().into_iter().enumerate() {
            let found = packed.row(row);
            let bits = |value: &V| bytemuck::bytes_of(value).to_vec();
            assert!(found.iter().map(bits).eq(values.iter().map(bits)));
        }
        let parts = packed.parts();
        PackedMatrix::from_parts(
            dense.nrows(),
            dense.ncols(),
            parts.masks.to_vec(),
            parts.offsets.to_vec(),
            parts.values.to_vec(),
        )
        .unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn unpacking_gives_back_every_bit(
            single in matrix(f32::from_bits),
            brain in matrix(|bits| bf16::from_bits(bits as u16)),
            half in matrix(|bits| f16::from_bits(bits as u16)),
        ) {
            holds_every_bit(&single);
            holds_every_bit(&brain);
            holds_every_bit(&half);
        }
    }

    #[test]
    fn negative_zero_is_a_value() {
        let packed = PackedMatrix::from_dense(ndarray::array![[0.0_f32, -0.0]].view());
        assert_eq!(packed.nonzeros(), 1);
        assert!(packed.unpack()[[0, 1]].is_sign_negative());
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let dense = Array2::from_shape_fn((20, 70), |(row, col)| ((row + col) % 3) as f32);
        let packed = PackedMatrix::from_dense(dense.view());
        let parts = packed.parts();
        let sound = (
            parts.masks.to_vec(),
            parts.offsets.to_vec(),
            parts.values.to_vec(),
        );
        type Parts = (Vec<u64>, Vec<u64>, Vec<f32>);
        let refused = |change: fn(&mut Parts), named: &str| {
            let mut parts = sound.clone();
            change(&mut parts);
            let (masks, offsets, values) = parts;
            let error = PackedMatrix::from_parts(20, 70, masks, offsets, values).unwrap_err();
            assert!(
                error.to_string().contains(named),
                "{error}: expected {named:?}"
            );
        };
        refused(
            |(masks, ..)| masks.truncate(39),
            "expected 40 masks, found 39",
        );
        refused(
            |(_, offsets, _)| offsets.push(0),
            "expected 3 tile offsets, found 4",
        );
        refused(
            |(_, offsets, _)| offsets[0] = 1,
            "tile 0 to begin at value 0",
        );
        refused(|(_, offsets, _)| offsets[1] += 1, "tile 1 to begin");
        refused(|(_, offsets, _)| offsets[2] = u64::MAX, "last tile offset");
        refused(|(masks, ..)| masks[0] ^= 1, "tile 1 to begin");
        refused(|(masks, ..)| masks[39] ^= 1, "last tile offset");
        refused(
            |(masks, ..)| masks[16] ^= 1 << 6,
            "bits behind the last column",
        );
        refused(
            |(.., values)| values.truncate(30),
            "values with the padding",
        );
        refused(|(.., values)| *values.last_mut().unwrap() = 1.0, "padding");
        let huge = PackedMatrix::<f32>::from_parts(usize::MAX, usize::MAX, vec![], vec![], vec![]);
        assert!(huge.unwrap_err().to_string().contains("too large"));
    }
}
