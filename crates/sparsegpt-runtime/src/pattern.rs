//! N:M patterns, N zeros in every M columns: the same number of values in each eight columns, and a number for where they are.
//!
//! Tiles and blocks are those of [`PackedMatrix`](crate::PackedMatrix). Instead of a mask, a unit has a code for each eight
//! columns, of 4 to 7 bits; and as all units have as many values, no offsets are needed. Zeros beyond the N of the
//! pattern are values.

use ndarray::{Array2, ArrayView2};

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::kernel::{Codes, Packed, SHAPES, Shape, Stored, few_of_values};
use crate::level::Level;
use crate::packed::{BLOCK_COLS, PADDING, TILE_ROWS, bits, expect_entries, from_rows, unit_count};
use crate::value::Value;

/// Groups of eight columns in a block.
const GROUPS: usize = BLOCK_COLS / 8;
/// Bytes behind the last code, so that eight may be read at each unit.
const CODE_PADDING: usize = 8;

/// A matrix whose every M columns have N zeros, rows x cols: 2:4, 4:8, 1:4 or 2:8.
///
/// ```
/// use sparsegpt_runtime::PatternMatrix;
/// use sparsegpt_runtime::ndarray::Array2;
///
/// let dense = Array2::from_shape_fn((3, 16), |(row, col)| if (row + col) % 2 == 0 { 1.0_f32 } else { 0.0 });
/// let packed = PatternMatrix::from_dense(dense.view(), 2, 4)?.expect("half of the weights are zero");
/// assert_eq!(packed.unpack(), dense);
/// assert!(PatternMatrix::from_dense(dense.view(), 1, 3)?.is_none());
/// # Ok::<(), sparsegpt_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PatternMatrix<V: Value> {
    rows: usize,
    cols: usize,
    /// Which of [`SHAPES`].
    shape: usize,
    codes: Buffer<u8>,
    /// Those of columns behind the last one are zero. Followed by [`PADDING`] zeros.
    values: Buffer<V>,
}

/// The arrays of a [`PatternMatrix`], as a container stores them.
#[derive(Clone, Copy, Debug)]
pub struct PatternParts<'a, V> {
    /// N and M.
    pub pattern: [u8; 2],
    /// 4 to 7 bytes a unit, and eight more.
    pub codes: &'a [u8],
    /// With the padding.
    pub values: &'a [V],
}

impl<V: Value> PatternMatrix<V> {
    /// Packs a matrix; `None` if the pattern is none of those stored so, does not hold, or columns do not come in eights.
    ///
    /// # Errors
    /// [`Error::Packed`] if the shape is too large.
    pub fn from_dense(
        dense: ArrayView2<'_, V>,
        zeros: usize,
        group: usize,
    ) -> Result<Option<Self>> {
        let Some(shape) = shape_of(zeros, group) else {
            return Ok(None);
        };
        let (rows, cols) = dense.dim();
        if !cols.is_multiple_of(8) {
            return Ok(None);
        }
        let of = &SHAPES[shape];
        let units = unit_count(rows, cols).map_err(|reason| Error::packed(rows, cols, reason))?;
        let mut codes = Vec::with_capacity(units * of.bits + CODE_PADDING);
        let mut values = Vec::with_capacity(units * GROUPS * of.kept + PADDING);
        for first_row in (0..rows).step_by(TILE_ROWS) {
            for first_col in (0..cols).step_by(BLOCK_COLS) {
                for row in first_row..rows.min(first_row + TILE_ROWS) {
                    let mut word = 0_u64;
                    for number in 0..GROUPS {
                        let value = |place: usize| {
                            let col = first_col + number * 8 + place;
                            match col < cols {
                                true => dense[[row, col]],
                                false => V::zeroed(),
                            }
                        };
                        let mut stored = 0_u8;
                        for place in 0..8 {
                            stored |= u8::from(!value(place).is_absent()) << place;
                        }
                        // The first code that has all of them; zeros fill its other columns.
                        let code = of.bytes[..of.codes]
                            .iter()
                            .position(|byte| byte & stored == stored);
                        let Some(code) = code else {
                            return Ok(None);
                        };
                        word |= (code as u64) << (of.bits * number);
                        values.extend(bits(u64::from(of.bytes[code])).map(value));
                    }
                    codes.extend_from_slice(&word.to_le_bytes()[..of.bits]);
                }
            }
        }
        codes.resize(codes.len() + CODE_PADDING, 0);
        values.resize(values.len() + PADDING, V::zeroed());
        Ok(Some(Self {
            rows,
            cols,
            shape,
            codes: codes.into(),
            values: values.into(),
        }))
    }

    /// The one way for parts that this crate has not made itself: kernels rely on what it checks.
    pub(crate) fn from_buffers(
        (rows, cols): (usize, usize),
        pattern: &[u8],
        codes: Buffer<u8>,
        values: Buffer<V>,
    ) -> Result<Self> {
        let shape = match *pattern {
            [zeros, group] => shape_of(zeros.into(), group.into()),
            _ => None,
        };
        let shape = shape.ok_or_else(|| {
            let reason = format!("expected one of 2:4, 4:8, 1:4 and 2:8, found {pattern:?}");
            Error::packed(rows, cols, reason)
        })?;
        let matrix = Self {
            rows,
            cols,
            shape,
            codes,
            values,
        };
        matrix
            .check()
            .map_err(|reason| Error::packed(rows, cols, reason))?;
        Ok(matrix)
    }

    fn check(&self) -> Result<(), String> {
        let of = &SHAPES[self.shape];
        if !self.cols.is_multiple_of(8) {
            return Err(format!(
                "expected columns in eights for {}:{}",
                of.zeros, of.group
            ));
        }
        let units = unit_count(self.rows, self.cols)?;
        let sizes = units
            .checked_mul(GROUPS * of.kept)
            .and_then(|values| Some((units.checked_mul(of.bits)?, values)));
        let (codes, values) = sizes.ok_or_else(|| "the shape is too large".to_owned())?;
        expect_entries(
            "bytes of codes with the padding",
            codes + CODE_PADDING,
            self.codes.len(),
        )?;
        expect_entries(
            "values with the padding",
            values + PADDING,
            self.values.len(),
        )?;
        for unit in 0..units {
            let word = word(&self.codes, unit * of.bits);
            let code = |group| code(word, of, group);
            if let Some(code) = (0..GROUPS).map(code).find(|&code| code >= of.codes) {
                return Err(format!(
                    "unit {unit}: expected codes below {}, found {code}",
                    of.codes
                ));
            }
        }
        // Those of the last block that lie behind the columns, whatever their codes.
        let present = (self.cols % BLOCK_COLS) / 8 * of.kept;
        for (unit, values) in self.values[..values].chunks(GROUPS * of.kept).enumerate() {
            let behind = match present {
                0 => &[],
                present if self.is_last_block(unit) => &values[present..],
                _ => &[],
            };
            if behind.iter().any(|value| !value.is_absent()) {
                return Err(format!("unit {unit} has values behind the last column"));
            }
        }
        if self.values[values..].iter().any(|value| !value.is_absent()) {
            return Err("the padding behind the values is not zero".to_owned());
        }
        Ok(())
    }

    /// Whether a unit is of the last block of its tile.
    fn is_last_block(&self, unit: usize) -> bool {
        let blocks = self.cols.div_ceil(BLOCK_COLS);
        let tile = unit / (TILE_ROWS * blocks);
        let rows = TILE_ROWS.min(self.rows - tile * TILE_ROWS);
        (unit - tile * TILE_ROWS * blocks) / rows == blocks - 1
    }

    /// The matrix as it was, bit for bit.
    #[must_use]
    pub fn unpack(&self) -> Array2<V> {
        from_rows((self.rows, self.cols), |row| self.row(row))
    }

    /// The row as it was; it must be one of the matrix.
    pub(crate) fn row(&self, row: usize) -> Vec<V> {
        let of = &SHAPES[self.shape];
        let mut dense = vec![V::zeroed(); self.cols];
        let blocks = self.cols.div_ceil(BLOCK_COLS);
        let tile = row / TILE_ROWS;
        let rows = TILE_ROWS.min(self.rows - tile * TILE_ROWS);
        for block in 0..blocks {
            let unit = tile * TILE_ROWS * blocks + block * rows + row % TILE_ROWS;
            let word = word(&self.codes, unit * of.bits);
            for group in 0..GROUPS {
                let code = code(word, of, group);
                let values = &self.values[(unit * GROUPS + group) * of.kept..];
                for (place, &value) in bits(u64::from(of.bytes[code])).zip(values) {
                    if let Some(to) = dense.get_mut(block * BLOCK_COLS + group * 8 + place) {
                        *to = value;
                    }
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

    /// N and M: N zeros in every M columns.
    #[must_use]
    pub fn pattern(&self) -> (usize, usize) {
        (SHAPES[self.shape].zeros, SHAPES[self.shape].group)
    }

    /// Stored values over weights: that of the pattern.
    #[must_use]
    pub fn density(&self) -> f64 {
        SHAPES[self.shape].kept as f64 / 8.0
    }

    /// Bytes in memory, all of which a product reads once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.codes) + size_of_val(&*self.values)
    }

    /// The arrays, to store them.
    #[must_use]
    pub fn parts(&self) -> PatternParts<'_, V> {
        let (zeros, group) = self.pattern();
        PatternParts {
            pattern: [zeros as u8, group as u8],
            codes: &self.codes,
            values: &self.values,
        }
    }

    /// The matrix for kernels that know the pattern when they are compiled.
    pub(crate) fn view(&self) -> View<'_, V> {
        match self.shape {
            0 => View::TwoOfFour(PatternView(self)),
            1 => View::FourOfEight(PatternView(self)),
            2 => View::OneOfFour(PatternView(self)),
            _ => View::TwoOfEight(PatternView(self)),
        }
    }
}

/// Which of [`SHAPES`], as a type.
pub(crate) enum View<'a, V: Value> {
    TwoOfFour(PatternView<'a, V, 0>),
    FourOfEight(PatternView<'a, V, 1>),
    OneOfFour(PatternView<'a, V, 2>),
    TwoOfEight(PatternView<'a, V, 3>),
}

/// A matrix whose pattern is `SHAPES[P]`.
pub(crate) struct PatternView<'a, V: Value, const P: usize>(&'a PatternMatrix<V>);

impl<V: Value, const P: usize> Packed for PatternView<'_, V, P> {
    type Tile<'t>
        = Stored<'t, V, Codes<'t, P>>
    where
        Self: 't;

    fn rows(&self) -> usize {
        self.0.rows
    }

    fn cols(&self) -> usize {
        self.0.cols
    }

    fn few(&self, level: Level) -> usize {
        few_of_values(level, self.0.density())
    }

    fn tile(&self, tile: usize) -> Stored<'_, V, Codes<'_, P>> {
        let of = &SHAPES[P];
        let blocks = self.blocks();
        let rows = TILE_ROWS.min(self.0.rows - tile * TILE_ROWS);
        let (first, units) = (tile * TILE_ROWS * blocks, rows * blocks);
        let codes = first * of.bits..(first + units) * of.bits + CODE_PADDING;
        let a_unit = GROUPS * of.kept;
        let values = first * a_unit..(first + units) * a_unit + PADDING;
        Stored {
            rows,
            blocks,
            index: Codes(&self.0.codes[codes]),
            values: &self.0.values[values],
        }
    }
}

/// The pattern's place among those stored by codes.
fn shape_of(zeros: usize, group: usize) -> Option<usize> {
    let is = |shape: &Shape| (shape.zeros, shape.group) == (zeros, group);
    SHAPES.iter().position(is)
}

/// The code of one of a unit's groups.
fn code(word: u64, of: &Shape, group: usize) -> usize {
    (word >> (of.bits * group)) as usize & ((1 << of.bits) - 1)
}

/// The eight bytes from here on.
fn word(codes: &[u8], at: usize) -> u64 {
    let bytes = codes.get(at..).and_then(|codes| codes.first_chunk());
    u64::from_le_bytes(*bytes.unwrap_or(&[0; 8]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;

    /// Weights whose every `group` columns have `zeros` zeros, at places that change, and a -0.0 among the others.
    fn matrix(rows: usize, cols: usize, zeros: usize, group: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, cols), |(row, col)| {
            let turn = row * 7 + col / group * 3;
            let kept = (col % group + turn) % group >= zeros;
            match (kept, (row + col) % 11) {
                (true, 0) => -0.0,
                (true, _) => (row as f32) - (col as f32) / 8.0 + 0.01,
                (false, _) => 0.0,
            }
        })
    }

    #[test]
    fn unpacking_gives_back_every_bit() {
        for shape in &SHAPES {
            for (rows, cols) in [(0, 8), (1, 8), (16, 64), (37, 200), (20, 0)] {
                let dense = matrix(rows, cols, shape.zeros, shape.group);
                let packed = PatternMatrix::from_dense(dense.view(), shape.zeros, shape.group);
                let packed = packed.unwrap().unwrap();
                packed.check().unwrap();
                let found = packed.unpack();
                assert!(
                    found
                        .iter()
                        .zip(&dense)
                        .all(|(a, b)| a.to_bits() == b.to_bits())
                );
                // Fewer bits than a mask's.
                let units = rows * cols.div_ceil(64);
                assert_eq!(packed.codes.len(), units * shape.bits + CODE_PADDING);
                let brain = dense.mapv(bf16::from_f32);
                let packed = PatternMatrix::from_dense(brain.view(), shape.zeros, shape.group);
                assert_eq!(packed.unwrap().unwrap().unpack(), brain);
            }
        }
    }

    #[test]
    fn more_zeros_are_values_and_fewer_are_no_pattern() {
        let mut dense = matrix(20, 72, 2, 4);
        dense.row_mut(3).fill(0.0);
        let packed = PatternMatrix::from_dense(dense.view(), 2, 4)
            .unwrap()
            .unwrap();
        assert_eq!(packed.unpack(), dense);
        dense[[3, 8]] = 1.0;
        dense[[3, 9]] = 1.0;
        dense[[3, 10]] = 1.0;
        let none = |dense: &Array2<f32>, zeros, group| {
            PatternMatrix::from_dense(dense.view(), zeros, group)
                .unwrap()
                .is_none()
        };
        assert!(none(&dense, 2, 4));
        assert!(none(&matrix(4, 12, 2, 4), 2, 4));
        assert!(none(&matrix(4, 16, 2, 4), 3, 4));
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let dense = matrix(20, 72, 2, 4);
        let packed = PatternMatrix::from_dense(dense.view(), 2, 4)
            .unwrap()
            .unwrap();
        let parts = packed.parts();
        let sound = (
            parts.pattern.to_vec(),
            parts.codes.to_vec(),
            parts.values.to_vec(),
        );
        type Parts = (Vec<u8>, Vec<u8>, Vec<f32>);
        let read = |change: fn(&mut Parts), cols: usize| {
            let mut parts = sound.clone();
            change(&mut parts);
            let (pattern, codes, values) = parts;
            PatternMatrix::from_buffers((20, cols), &pattern, codes.into(), values.into())
        };
        read(|_| {}, 72).unwrap();
        let refused = |change: fn(&mut Parts), cols: usize, named: &str| {
            let error = read(change, cols).unwrap_err().to_string();
            assert!(error.contains(named), "{error}: expected {named:?}");
        };
        refused(|(pattern, ..)| pattern[0] = 3, 72, "expected one of");
        refused(|(pattern, ..)| pattern.clear(), 72, "expected one of");
        refused(|_| {}, 73, "columns in eights");
        refused(|(_, codes, _)| codes.truncate(9), 72, "bytes of codes");
        refused(
            |(.., values)| values.truncate(9),
            72,
            "values with the padding",
        );
        refused(
            |(_, codes, _)| codes[0] = 63,
            72,
            "expected codes below 36, found 63",
        );
        refused(
            |(.., values)| *values.last_mut().unwrap() = 1.0,
            72,
            "padding",
        );
        // 72 columns: a second block with one group.
        refused(
            |(.., values)| values[16 * 32 + 4] = 1.0,
            72,
            "behind the last column",
        );
    }
}
