//! AVX-512, for packed weights: an expansion by mask puts sixteen columns' values in their places.
//!
//! The kernels are written on [`Sixteen`], so that their plain twin in the tests shows on any processor that they are the
//! products; only the one-line functions that name an instruction each need a processor that has it. Dense panels and
//! quantized weights run on AVX2's kernels.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_expand_ps, _mm512_reduce_add_ps,
    _mm512_set1_ps, _mm512_storeu_ps,
};

use super::{FEW_TOKENS, Index, Stored, lines_a_unit, prefetch};
use crate::packed::{BLOCK_COLS, TILE_ROWS};
use crate::value::Value;

/// f32 values in a vector.
pub(super) const LANES: usize = 16;
/// Most vectors of tokens that [`units_tokens`] holds: eight chains of multiply-adds keep two units busy, and a block's
/// activations are 32 KiB.
pub(super) const MOST_VECTORS: usize = 8;

/// Bytes ahead of the values in use that are asked for: the processor's own prefetching stops at every page.
const VALUES_AHEAD: usize = 1024;

/// Sixteen f32 in a register.
///
/// # Safety
/// Every function needs the instructions of its implementor, and [`LANES`] readable or writable values at its pointers.
trait Sixteen: Copy {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(values: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Consecutive values in f32.
    unsafe fn widen<V: Value>(values: *const V) -> Self;
    /// The first values in the lanes whose bits are set, in their order, and zeros in the others.
    unsafe fn expand(self, mask: u16) -> Self;
    /// self · x + sum.
    unsafe fn multiply_add(self, x: Self, sum: Self) -> Self;
    unsafe fn total(self) -> f32;
}

#[cfg(target_arch = "x86_64")]
impl Sixteen for __m512 {
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
    unsafe fn multiply_add(self, x: Self, sum: Self) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm512_fmadd_ps(self, x, sum) }
    }

    #[inline(always)]
    unsafe fn total(self) -> f32 {
        // SAFETY: as required of the caller.
        unsafe { _mm512_reduce_add_ps(self) }
    }
}

/// # Safety
/// The instructions of S; the invariant of [`Stored`]; blocks · 64 values of `x`.
#[inline(always)]
unsafe fn tile_vector_on<S: Sixteen, V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [f32; TILE_ROWS],
) {
    debug_assert!(x.len() >= tile.blocks * BLOCK_COLS);
    // SAFETY: `x` has 64 values for each block. `values` moves on by one for each stored column, so that with the padding
    // there are 16 readable values at each step.
    unsafe {
        let mut partial = [S::splat(0.0); TILE_ROWS];
        let mut values = tile.values.as_ptr();
        for block in 0..tile.blocks {
            // In registers for all rows of the tile.
            let mut vectors = [S::splat(0.0); BLOCK_COLS / LANES];
            for (pair, vector) in vectors.iter_mut().enumerate() {
                *vector = S::load(x.as_ptr().add(block * BLOCK_COLS + pair * LANES));
            }
            for (row, partial) in partial.iter_mut().enumerate().take(tile.rows) {
                let word = tile.index.word(block * tile.rows + row);
                prefetch(values, VALUES_AHEAD, lines_a_unit::<V>());
                for (pair, x) in vectors.into_iter().enumerate() {
                    let bytes = [I::byte(word, 2 * pair), I::byte(word, 2 * pair + 1)];
                    let own = values.add(I::before(word, 2 * pair));
                    let weights = S::widen(own).expand(u16::from_le_bytes(bytes));
                    *partial = weights.multiply_add(x, *partial);
                }
                values = values.add(I::total(word));
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum += partial.total();
        }
    }
}

/// # Safety
/// The instructions of S; the invariant of [`Stored`]; at most [`FEW_TOKENS`] and blocks x tokens x 64 values of `x`.
#[inline(always)]
unsafe fn tile_vectors_on<S: Sixteen, V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: as in `tile_vector_on`; `x` has 64 values for each token and block.
    unsafe {
        let mut partial = [[S::splat(0.0); FEW_TOKENS]; TILE_ROWS];
        let mut values = tile.values.as_ptr();
        for (block, x) in x.chunks_exact(BLOCK_COLS * sums.len()).enumerate() {
            for (row, partial) in partial.iter_mut().enumerate().take(tile.rows) {
                let word = tile.index.word(block * tile.rows + row);
                prefetch(values, VALUES_AHEAD, lines_a_unit::<V>());
                let mut weights = [S::splat(0.0); BLOCK_COLS / LANES];
                for (pair, weights) in weights.iter_mut().enumerate() {
                    let bytes = [I::byte(word, 2 * pair), I::byte(word, 2 * pair + 1)];
                    let own = values.add(I::before(word, 2 * pair));
                    *weights = S::widen(own).expand(u16::from_le_bytes(bytes));
                }
                values = values.add(I::total(word));
                for (x, partial) in x.as_chunks::<BLOCK_COLS>().0.iter().zip(partial) {
                    for (pair, weights) in weights.into_iter().enumerate() {
                        let x = S::load(x.as_ptr().add(pair * LANES));
                        *partial = weights.multiply_add(x, *partial);
                    }
                }
            }
        }
        for (token, sums) in sums.iter_mut().enumerate() {
            for (sum, partial) in sums.iter_mut().zip(&partial) {
                *sum += partial[token].total();
            }
        }
    }
}

/// # Safety
/// The instructions of S; a value for each bit, 64 x 16T values of `x`, 16T sums.
#[inline(always)]
unsafe fn unit_tokens_on<S: Sixteen, const T: usize>(
    mut mask: u64,
    mut values: *const f32,
    x: *const f32,
    sums: *mut f32,
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut partial = [S::splat(0.0); T];
        for (vector, partial) in partial.iter_mut().enumerate() {
            *partial = S::load(sums.add(vector * LANES));
        }
        while mask != 0 {
            let x = x.add(mask.trailing_zeros() as usize * (T * LANES));
            mask &= mask - 1;
            let weight = S::splat(*values);
            values = values.add(1);
            for (vector, partial) in partial.iter_mut().enumerate() {
                *partial = weight.multiply_add(S::load(x.add(vector * LANES)), *partial);
            }
        }
        for (vector, partial) in partial.into_iter().enumerate() {
            partial.store(sums.add(vector * LANES));
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
    unsafe { tile_vector_on::<__m512, V, I>(tile, x, sums) }
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
    unsafe { tile_vectors_on::<__m512, V, I>(tile, x, sums) }
}

/// Kernels for 1 to [`MOST_VECTORS`] vectors of tokens.
#[cfg(target_arch = "x86_64")]
pub(super) static UNITS_TOKENS: [super::tokens::UnitsTokens; MOST_VECTORS] = [
    units_tokens::<1>,
    units_tokens::<2>,
    units_tokens::<3>,
    units_tokens::<4>,
    units_tokens::<5>,
    units_tokens::<6>,
    units_tokens::<7>,
    units_tokens::<8>,
];

/// As [`portable::unit_tokens`](super::portable::unit_tokens) for each of the units, with T vectors of tokens.
///
/// # Safety
/// The level; for each unit a value for each bit and 16T sums; 64 x 16T values of `x`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2,popcnt")]
unsafe fn units_tokens<const T: usize>(
    units: &[super::Unit<'_>],
    x: *const f32,
    sums: *mut f32,
    ahead: &[f32],
) {
    for (row, (mask, values)) in units.iter().enumerate() {
        super::ask_for_part(ahead, row, units.len());
        // SAFETY: as required of the caller.
        unsafe {
            let sums = sums.add(row * T * LANES);
            unit_tokens_on::<__m512, T>(*mask, values.as_ptr(), x, sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bits, Codes, SHAPES, portable};
    use super::*;

    /// What the instructions do, in plain code.
    #[derive(Clone, Copy)]
    struct Plain([f32; LANES]);

    impl Sixteen for Plain {
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

        unsafe fn multiply_add(self, x: Self, sum: Self) -> Self {
            Self(std::array::from_fn(|lane| {
                self.0[lane] * x.0[lane] + sum.0[lane]
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
        unsafe { tile_vector_on::<Plain, V, I>(tile, &x, &mut found) };
        assert_eq!(found, expected);
        for tokens in [1, 3, FEW_TOKENS] {
            let x = whole(tile.blocks * tokens * BLOCK_COLS, 7);
            let mut expected = vec![[1.0; TILE_ROWS]; tokens];
            let mut found = expected.clone();
            portable::tile_vectors(tile, &x, &mut expected);
            // SAFETY: as above.
            unsafe { tile_vectors_on::<Plain, V, I>(tile, &x, &mut found) };
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
        fn holds<const T: usize>() {
            let x = whole(BLOCK_COLS * T * LANES, 7);
            for mask in [0, 1, 1 << 63, u64::MAX, 0x00F0_1234_8001_5A5A] {
                let values = whole(mask.count_ones() as usize, 5);
                let (mut expected, mut found) = (vec![2.0; T * LANES], vec![2.0; T * LANES]);
                portable::unit_tokens(mask, &values, &x, &mut expected);
                // SAFETY: plain code needs no level; the arrays are as long as they have to be.
                unsafe {
                    unit_tokens_on::<Plain, T>(
                        mask,
                        values.as_ptr(),
                        x.as_ptr(),
                        found.as_mut_ptr(),
                    );
                }
                assert_eq!(found, expected);
            }
        }
        holds::<1>();
        holds::<5>();
        holds::<8>();
    }
}
