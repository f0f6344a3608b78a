//! AVX-512: an expansion by mask puts sixteen columns' values of packed weights in their places.
//!
//! The kernels of packed weights are written on [`Sixteen`], so that their plain twin in the tests shows on any processor that they are
//! the products; only the one-line functions that name an instruction each need a processor that has it. Dense panels with a few tokens and
//! quantized weights run on AVX2's kernels, the latter on those of [`vbmi2`](super::vbmi2) where they can.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, _mm256_castps_pd, _mm512_add_ps, _mm512_castpd_ps, _mm512_castpd256_pd512,
    _mm512_fmadd_ps, _mm512_insertf64x4, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_maskz_expand_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_storeu_ps, _mm512_storeu_si512, _mm512_xor_si512,
};

#[cfg(target_arch = "x86_64")]
use super::unit::units_tokens_on;
use super::unit::{Vector, in_register};
use super::{FEW_TOKENS, Index, Stored, lines_a_unit, prefetch};
#[cfg(target_arch = "x86_64")]
use crate::dense::PANEL_ROWS;
use crate::packed::{BLOCK_COLS, TILE_ROWS};
use crate::value::Value;

/// f32 values in a vector.
pub(super) const LANES: usize = 16;
/// Most vectors of tokens that [`units_tokens`] holds: eight chains of multiply-adds keep two units busy, and a block's
/// activations are 36 KiB. (With 8, 400 tokens are four tiles in place of three, which take a twentieth longer.)
#[cfg(target_arch = "x86_64")]
pub(super) const MOST_VECTORS: usize = 9;

/// Bytes ahead of the values in use that are asked for: the processor's own prefetching stops at every page. (1024 are a tenth slower, 2048
/// and 8192 a fiftieth.)
pub(super) const VALUES_AHEAD: usize = 4096;

/// Sixteen f32 in a register.
///
/// # Safety
/// As of [`Vector`].
pub(super) trait Sixteen: Vector {
    /// Consecutive values in f32.
    unsafe fn widen<V: Value>(values: *const V) -> Self;
    /// The first values in the lanes whose bits are set, in their order, and zeros in the others.
    unsafe fn expand(self, mask: u16) -> Self;
    unsafe fn total(self) -> f32;
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm512_loadu_ps(values) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as required of the caller.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, x: Self, sum: Self) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm512_fmadd_ps(self, x, sum) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm512_add_ps(self, other) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Sixteen for __m512 {
    #[inline(always)]
    unsafe fn widen<V: Value>(values: *const V) -> Self {
        // SAFETY: as required of the caller.
        unsafe { V::widen_sixteen(values) }
    }

    #[inline(always)]
    unsafe fn expand(self, mask: u16) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm512_maskz_expand_ps(mask, self) }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: as required of the caller.
        unsafe { _mm512_reduce_add_ps(self) }
    }
}

/// Vectors in a unit.
pub(super) const VECTORS: usize = BLOCK_COLS / LANES;
/// Rows whose units are multiplied by a token's activations while these are in registers: 16 vectors of weights, 4 of sums.
const ROWS_AT_ONCE: usize = 4;

/// The units of a tile, a block after the other and in a block row by row, their columns in the order of the activations.
pub(super) trait Units<S: Sixteen>: Copy {
    /// Where a unit's values are.
    type Place: Copy;

    fn rows(self) -> usize;

    /// Of the first unit.
    fn first(self) -> Self::Place;

    /// The next unit's weights over its scale, and the place of the one behind it.
    ///
    /// # Safety
    /// The instructions of S and of the implementor; the tile's invariant; units in their order.
    unsafe fn unit(self, block: usize, row: usize, place: &mut Self::Place) -> [S; VECTORS];

    /// What a unit's weights have in common, if anything.
    ///
    /// # Safety
    /// As [`unit`](Self::unit).
    #[inline(always)]
    unsafe fn scale(self, _block: usize, _row: usize) -> Option<S> {
        None
    }
}

/// Values of a type, sixteen expanded at a time.
#[derive(Clone, Copy)]
pub(super) struct Expanded<'a, V, I>(pub(super) Stored<'a, V, I>);

impl<'a, S: Sixteen, V: Value, I: Index> Units<S> for Expanded<'a, V, I> {
    type Place = *const V;

    #[inline(always)]
    fn rows(self) -> usize {
        self.0.rows
    }

    #[inline(always)]
    fn first(self) -> *const V {
        self.0.values.as_ptr()
    }

    #[inline(always)]
    unsafe fn unit(self, block: usize, row: usize, place: &mut *const V) -> [S; VECTORS] {
        let word = self.0.index.word(block * self.0.rows + row);
        prefetch(*place, VALUES_AHEAD, lines_a_unit::<V>());
        // SAFETY: `place` moves on by one for each stored column, so that with the padding there are 16 readable values at each
        // step.
        unsafe {
            let weights = expanded::<S, V, I>(word, *place);
            *place = place.add(I::total(word));
            weights
        }
    }
}

/// The weights of a unit whose values begin at `values`.
///
/// # Safety
/// The instructions of S; the values that the word tells, and 16 more.
#[inline(always)]
pub(super) unsafe fn expanded<S: Sixteen, V: Value, I: Index>(
    word: u64,
    values: *const V,
) -> [S; VECTORS] {
    // SAFETY: as required of the caller.
    unsafe {
        let mut weights = [S::splat(0.0); VECTORS];
        for (pair, weights) in weights.iter_mut().enumerate() {
            let bytes = [I::byte(word, 2 * pair), I::byte(word, 2 * pair + 1)];
            let own = values.add(I::before(word, 2 * pair));
            *weights = S::widen(own).expand(u16::from_le_bytes(bytes));
        }
        weights
    }
}

/// The activations of 64 columns.
///
/// # Safety
/// The instructions of S; 64 readable values.
#[inline(always)]
unsafe fn columns<S: Sixteen>(x: *const f32) -> [S; VECTORS] {
    // SAFETY: as required of the caller.
    unsafe {
        let mut vectors = [S::splat(0.0); VECTORS];
        for (at, vector) in vectors.iter_mut().enumerate() {
            *vector = S::load(x.add(at * LANES));
        }
        vectors
    }
}

/// # Safety
/// As [`Units::unit`]; exactly 64 values of `x` for each block.
#[inline(always)]
pub(super) unsafe fn tile_vector_on<S: Sixteen, U: Units<S>>(
    tile: U,
    x: &[f32],
    sums: &mut [f32; TILE_ROWS],
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut partial = [S::splat(0.0); TILE_ROWS];
        let mut place = tile.first();
        for (block, x) in x.as_chunks::<BLOCK_COLS>().0.iter().enumerate() {
            // In registers for all rows of the tile.
            let x = columns::<S>(x.as_ptr());
            for (row, partial) in partial.iter_mut().enumerate().take(tile.rows()) {
                let weights = tile.unit(block, row, &mut place);
                let scale = tile.scale(block, row);
                let mut sum = match scale {
                    Some(_) => S::splat(0.0),
                    None => *partial,
                };
                for (weights, x) in weights.into_iter().zip(x) {
                    sum = weights.multiply_add(x, sum);
                }
                *partial = match scale {
                    Some(scale) => scale.multiply_add(sum, *partial),
                    None => sum,
                };
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum += partial.total();
        }
    }
}

/// # Safety
/// As [`Units::unit`]; at most [`FEW_TOKENS`] and exactly blocks x tokens x 64 values of `x`.
#[inline(always)]
pub(super) unsafe fn tile_vectors_on<S: Sixteen, U: Units<S>>(
    tile: U,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut partial = [[[S::splat(0.0); ROWS_AT_ONCE]; FEW_TOKENS]; TILE_ROWS / ROWS_AT_ONCE];
        let mut place = tile.first();
        for (block, x) in x.chunks_exact(BLOCK_COLS * sums.len()).enumerate() {
            let (x, _) = x.as_chunks::<BLOCK_COLS>();
            let quarters = tile.rows().div_ceil(ROWS_AT_ONCE);
            for (quarter, partial) in partial.iter_mut().enumerate().take(quarters) {
                // Rows that are not there have no weights.
                let mut weights = [[S::splat(0.0); VECTORS]; ROWS_AT_ONCE];
                let rows = quarter * ROWS_AT_ONCE..tile.rows();
                for (row, weights) in rows.zip(&mut weights) {
                    *weights = tile.unit(block, row, &mut place);
                    if let Some(scale) = tile.scale(block, row) {
                        for weights in weights {
                            *weights = weights.multiply_add(scale, S::splat(0.0));
                        }
                    }
                }
                for (x, partial) in x.iter().zip(partial) {
                    let x = columns::<S>(x.as_ptr());
                    let partial = &mut *in_register(partial as *mut [S; ROWS_AT_ONCE]);
                    let mut sums = *partial;
                    for (at, x) in x.iter().enumerate() {
                        for row in 0..ROWS_AT_ONCE {
                            sums[row] = weights[row][at].multiply_add(*x, sums[row]);
                        }
                    }
                    *partial = sums;
                }
            }
        }
        for (token, sums) in sums.iter_mut().enumerate() {
            let quarters = sums.as_chunks_mut::<ROWS_AT_ONCE>().0;
            for (sums, partial) in quarters.iter_mut().zip(&partial) {
                for (sum, partial) in sums.iter_mut().zip(partial[token]) {
                    *sum += partial.total();
                }
            }
        }
    }
}

/// As [`portable::tile_vectors`](super::portable::tile_vectors), for one token.
///
/// # Safety
/// The level; the invariant of [`Stored`]; blocks · 64 values of `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2,popcnt")]
pub(super) unsafe fn tile_vector<V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [f32; TILE_ROWS],
) {
    // SAFETY: as required of the caller.
    unsafe { tile_vector_on::<__m512, _>(Expanded(tile), x, sums) }
}

/// As [`portable::tile_vectors`](super::portable::tile_vectors).
///
/// # Safety
/// The level; the invariant of [`Stored`]; at most [`FEW_TOKENS`] and blocks x tokens x 64 values of `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2,popcnt")]
pub(super) unsafe fn tile_vectors<V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: as required of the caller.
    unsafe { tile_vectors_on::<__m512, _>(Expanded(tile), x, sums) }
}

/// Kernels for 1 to [`MOST_VECTORS`] vectors of tokens. (One is left to a few tokens.)
#[cfg(target_arch = "x86_64")]
pub(super) static UNITS_TOKENS: [super::tokens::UnitsTokens; MOST_VECTORS] = [
    units_tokens::<1, 4>,
    units_tokens::<2, 4>,
    units_tokens::<3, 2>,
    units_tokens::<4, 1>,
    units_tokens::<5, 1>,
    units_tokens::<6, 1>,
    units_tokens::<7, 1>,
    units_tokens::<8, 1>,
    units_tokens::<9, 1>,
];

/// As [`portable::unit_tokens`](super::portable::unit_tokens) for each of the units, with T vectors of tokens.
///
/// # Safety
/// The level; for each unit a value for each bit and 16T sums; 64 x 16T values of `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2,popcnt")]
unsafe fn units_tokens<const T: usize, const C: usize>(
    units: &[super::Unit<'_>],
    x: *const f32,
    sums: *mut f32,
    ahead: &[f32],
) {
    // SAFETY: as required of the caller.
    unsafe { units_tokens_on::<__m512, T, C>(units, x, sums, ahead) }
}

/// As [`portable::panel_tokens`](super::portable::panel_tokens).
///
/// # Safety
/// The level.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn panel_tokens<V: Value, const N: usize>(
    panel: &[V],
    x: &[f32],
    sums: &mut [[f32; PANEL_ROWS]; N],
) {
    // SAFETY: sums, columns and rows of x have 16, 16 and N values.
    unsafe {
        let mut partial = [__m512::splat(0.0); N];
        for (partial, sums) in partial.iter_mut().zip(sums.iter()) {
            *partial = __m512::load(sums.as_ptr());
        }
        for (column, x) in panel.chunks_exact(PANEL_ROWS).zip(x.as_chunks::<N>().0) {
            let column = if V::INTERLEAVED {
                let (low, high) = V::column(column.as_ptr());
                let low = _mm512_castpd256_pd512(_mm256_castps_pd(low));
                _mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(high)))
            } else {
                V::widen_sixteen(column.as_ptr())
            };
            for (partial, x) in partial.iter_mut().zip(x) {
                *partial = column.multiply_add(__m512::splat(*x), *partial);
            }
        }
        for (partial, sums) in partial.into_iter().zip(sums.iter_mut()) {
            partial.store(sums.as_mut_ptr());
        }
    }
}

/// As [`avx2::multiply_adds`](super::avx2::multiply_adds).
///
/// # Safety
/// The level.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn multiply_adds_of_sixteen(steps: usize, factor: f32) -> (usize, f32) {
    // SAFETY: the level.
    unsafe {
        let mut sums = [__m512::splat(0.0); 12];
        let factor = __m512::splat(factor);
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = factor.multiply_add(factor, *sum);
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += sum.total();
        }
        (LANES, total)
    }
}

/// As [`avx2::xor_by_halves`](super::avx2::xor_by_halves), a line at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(crate) fn xor_by_lines(words: &[u64]) -> u64 {
    let mut all = _mm512_setzero_si512();
    for line in words.as_chunks::<8>().0 {
        // SAFETY: eight words are 64 bytes.
        all = _mm512_xor_si512(all, unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
    }
    let mut words = [0; 8];
    // SAFETY: as above.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), all) };
    words.iter().fold(0, |all, word| all ^ word)
}

#[cfg(test)]
mod tests {
    use super::super::unit::unit_tokens_on;
    use super::super::{Bits, Codes, SHAPES, portable};
    use super::*;

    /// What the instructions do, in plain code.
    #[derive(Clone, Copy)]
    struct Plain([f32; LANES]);

    impl Vector for Plain {
        const LANES: usize = LANES;

        unsafe fn splat(value: f32) -> Self {
            Self([value; LANES])
        }

        unsafe fn load(values: *const f32) -> Self {
            // SAFETY: as required of the caller.
            Self(std::array::from_fn(|lane| unsafe { *values.add(lane) }))
        }

        unsafe fn store(self, to: *mut f32) {
            for (lane, value) in self.0.into_iter().enumerate() {
                // SAFETY: as required of the caller.
                unsafe { *to.add(lane) = value };
            }
        }

        unsafe fn multiply_add(self, x: Self, sum: Self) -> Self {
            Self(std::array::from_fn(|lane| {
                self.0[lane] * x.0[lane] + sum.0[lane]
            }))
        }

        unsafe fn add(self, other: Self) -> Self {
            Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
        }
    }

    impl Sixteen for Plain {
        unsafe fn widen<V: Value>(values: *const V) -> Self {
            // SAFETY: as required of the caller.
            Self(std::array::from_fn(|lane| unsafe {
                (*values.add(lane)).to_f32()
            }))
        }

        unsafe fn expand(self, mask: u16) -> Self {
            let mut values = self.0.into_iter();
            Self(std::array::from_fn(|lane| match mask >> lane & 1 {
                1 => values.next().unwrap_or_default(),
                _ => 0.0,
            }))
        }

        unsafe fn total(self) -> f32 {
            self.0.iter().sum()
        }
    }

    /// Small whole numbers, of which every order of additions gives the same sum.
    fn whole(count: usize, factor: usize) -> Vec<f32> {
        (0..count)
            .map(|at| (at * factor % 17) as f32 - 8.0)
            .collect()
    }

    fn tile_is_the_product<V: Value, I: Index>(tile: Stored<'_, V, I>) {
        let x = whole(tile.blocks * BLOCK_COLS, 7);
        let (mut expected, mut found) = ([1.0; TILE_ROWS], [1.0; TILE_ROWS]);
        portable::tile_vectors(tile, &x, std::slice::from_mut(&mut expected));
        // SAFETY: plain code needs no level; the tile is whole and `x` as long as it has to be.
        unsafe { tile_vector_on::<Plain, _>(Expanded(tile), &x, &mut found) };
        assert_eq!(found, expected);
        for tokens in [1, 3, FEW_TOKENS] {
            let x = whole(tile.blocks * tokens * BLOCK_COLS, 7);
            let mut expected = vec![[1.0; TILE_ROWS]; tokens];
            let mut found = expected.clone();
            portable::tile_vectors(tile, &x, &mut expected);
            // SAFETY: as above.
            unsafe { tile_vectors_on::<Plain, _>(Expanded(tile), &x, &mut found) };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn tiles_on_the_plain_twin() {
        for rows in [1, 5, TILE_ROWS] {
            let masks: Vec<u64> = (0..rows as u64 * 3)
                .map(|unit| unit.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (unit % 5 * 13))
                .collect();
            let stored: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
            let values = whole(stored as usize + LANES, 5);
            let tile = Stored {
                rows,
                blocks: 3,
                index: Bits(&masks),
                values: values.as_slice(),
            };
            tile_is_the_product(tile);
            let brain: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
            let half: Vec<half::f16> = values.iter().map(|v| half::f16::from_f32(*v)).collect();
            let Stored { index, .. } = tile;
            let blocks = 3;
            tile_is_the_product(Stored {
                rows,
                blocks,
                index,
                values: brain.as_slice(),
            });
            tile_is_the_product(Stored {
                rows,
                blocks,
                index,
                values: half.as_slice(),
            });
            // Two of four: any six bits are two codes below 36 or more, so only those below are taken.
            let units = rows * blocks;
            let mut codes = Vec::new();
            for unit in 0..units {
                let mut word = 0_u64;
                for group in 0..8 {
                    let code = (unit * 11 + group * 5) % SHAPES[0].codes;
                    word |= (code as u64) << (SHAPES[0].bits * group);
                }
                codes.extend_from_slice(&word.to_le_bytes()[..SHAPES[0].bits]);
            }
            codes.extend([0; 8]);
            let values = whole(units * 8 * SHAPES[0].kept + LANES, 3);
            tile_is_the_product(Stored {
                rows,
                blocks,
                index: Codes::<0>(&codes),
                values: values.as_slice(),
            });
        }
    }

    #[test]
    fn units_of_tokens_on_the_plain_twin() {
        fn holds<const T: usize, const C: usize>() {
            let x = whole(BLOCK_COLS * T * LANES, 7);
            for mask in [0, 1, 1 << 63, u64::MAX, 0x00F0_1234_8001_5A5A] {
                let values = whole(mask.count_ones() as usize, 5);
                let (mut expected, mut found) = (vec![2.0; T * LANES], vec![2.0; T * LANES]);
                portable::unit_tokens(mask, &values, &x, &mut expected);
                // SAFETY: plain code needs no level; the arrays are as long as they have to be.
                unsafe {
                    unit_tokens_on::<Plain, T, C>(
                        mask,
                        values.as_ptr(),
                        x.as_ptr(),
                        found.as_mut_ptr(),
                    );
                }
                assert_eq!(found, expected);
            }
        }
        holds::<2, 4>();
        holds::<3, 2>();
        holds::<9, 1>();
    }
}
