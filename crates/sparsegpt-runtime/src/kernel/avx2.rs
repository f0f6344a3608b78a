//! AVX2 with FMA.
//!
//! Safety of everything here: the processor has what [`Level::Avx2`](crate::Level::Avx2) names, and the slices are as
//! long as their documentation says. The drivers in `vector` and `tokens` see to both.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, _mm_and_si128, _mm_cmpgt_epi8, _mm_loadl_epi64,
    _mm_loadu_si128, _mm_set1_epi8, _mm_setr_epi8, _mm_shuffle_epi8, _mm_srli_epi16,
    _mm_srli_si128, _mm_storeu_si128, _mm_sub_epi8, _mm_unpackhi_epi8, _mm_unpacklo_epi8,
    _mm_unpacklo_epi64, _mm256_add_ps, _mm256_and_si256, _mm256_broadcast_ss,
    _mm256_broadcastsi128_si256, _mm256_castsi128_si256, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cvtepi8_epi32, _mm256_cvtepi16_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi16, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_extracti128_si256,
    _mm256_fmadd_ps, _mm256_inserti128_si256, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_epi8, _mm256_slli_epi32,
    _mm256_storeu_ps, _mm256_sub_epi16, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_slli_epi32,
};

use half::{bf16, f16};

use super::tables::{PLACES, QUARTERS, SPREAD, WIDEN};
use super::{Bits, FEW_TOKENS, Index, QuantizedTile, Stored, lines_a_unit, prefetch};
use crate::dense::PANEL_ROWS;
use crate::packed::{BLOCK_COLS, TILE_ROWS};
use crate::value::Value;

/// f32 values in a vector.
pub(super) const LANES: usize = 8;
/// Most vectors of tokens that [`unit_tokens`] holds in registers. Thirteen would fit, but so many activations of a block, 26 KiB, leave the
/// innermost cache no room for sums and values: slower by a tenth at half of zeros, by a fifth at 80 %.
pub(super) const MOST_VECTORS: usize = 10;

/// Bytes ahead of the values in use that are asked for: the processor's own prefetching stops at every page.
const VALUES_AHEAD: usize = 1024;

/// What kernels know of a type.
pub trait Lanes: Copy {
    /// Whether a column of a dense panel has the rows 0, 8, 1, 9, ...
    #[doc(hidden)]
    const INTERLEAVED: bool;

    /// The group of eight columns whose stored ones `byte` tells, zeros in the others. `values` are the group's, and those of
    /// its second four columns.
    ///
    /// # Safety
    /// AVX2, F16C; 16 readable values at the first of `values`, 4 at the second.
    #[doc(hidden)]
    unsafe fn group(byte: u8, values: [*const Self; 2]) -> __m256;

    /// Eight consecutive values.
    ///
    /// # Safety
    /// AVX2, F16C; 8 readable values.
    #[doc(hidden)]
    unsafe fn widen(values: *const Self) -> __m256;

    /// A column of a panel: rows 0 to 7, 8 to 15.
    ///
    /// # Safety
    /// AVX2, F16C; 16 readable values.
    #[doc(hidden)]
    unsafe fn column(values: *const Self) -> (__m256, __m256);

    /// Sixteen consecutive values.
    ///
    /// # Safety
    /// AVX-512 F; 16 readable values.
    #[doc(hidden)]
    unsafe fn widen_sixteen(values: *const Self) -> __m512;
}

impl Lanes for f32 {
    const INTERLEAVED: bool = false;

    /// One byte shuffle puts the values at their columns and zeros between them, after the values of the first four columns
    /// and those of the others have been loaded into a half of the vector each: loads of 16 bytes seldom lie across two
    /// lines. (A permutation of one load of 32 and a blend took a fifth longer. Moving the activations to the values, with
    /// a masked load of these, takes as many instructions, but masked loads do not train the prefetcher.)
    #[inline(always)]
    unsafe fn group(byte: u8, [values, second]: [*const Self; 2]) -> __m256 {
        // SAFETY: as required of the caller; the table has an entry for every byte.
        unsafe {
            let bytes = _mm256_loadu_si256(QUARTERS.0[byte as usize].as_ptr().cast());
            let values = _mm256_castsi128_si256(_mm_loadu_si128(values.cast()));
            let values = _mm256_inserti128_si256::<1>(values, _mm_loadu_si128(second.cast()));
            _mm256_castsi256_ps(_mm256_shuffle_epi8(values, bytes))
        }
    }

    #[inline(always)]
    unsafe fn widen(values: *const Self) -> __m256 {
        // SAFETY: as required of the caller.
        unsafe { _mm256_loadu_ps(values) }
    }

    #[inline(always)]
    unsafe fn column(values: *const Self) -> (__m256, __m256) {
        // SAFETY: as required of the caller.
        unsafe { (_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(LANES))) }
    }

    #[inline(always)]
    unsafe fn widen_sixteen(values: *const Self) -> __m512 {
        // SAFETY: as required of the caller.
        unsafe { _mm512_loadu_ps(values) }
    }
}

impl Lanes for bf16 {
    const INTERLEAVED: bool = true;

    /// One byte shuffle puts the values at their columns, zeros between them, and widens them.
    #[inline(always)]
    unsafe fn group(byte: u8, [values, _]: [*const Self; 2]) -> __m256 {
        // SAFETY: as required of the caller; the table has an entry for every byte.
        unsafe {
            let bytes = _mm256_loadu_si256(WIDEN.0[byte as usize].as_ptr().cast());
            let values = _mm256_broadcastsi128_si256(_mm_loadu_si128(values.cast()));
            _mm256_castsi256_ps(_mm256_shuffle_epi8(values, bytes))
        }
    }

    #[inline(always)]
    unsafe fn widen(values: *const Self) -> __m256 {
        // SAFETY: as required of the caller.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(values.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    unsafe fn column(values: *const Self) -> (__m256, __m256) {
        // SAFETY: as required of the caller.
        unsafe {
            let pairs = _mm256_loadu_si256(values.cast());
            let upper = _mm256_and_si256(pairs, _mm256_set1_epi32(-1 << 16));
            (
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)),
                _mm256_castsi256_ps(upper),
            )
        }
    }

    #[inline(always)]
    unsafe fn widen_sixteen(values: *const Self) -> __m512 {
        // SAFETY: as required of the caller.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(values.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
}

impl Lanes for f16 {
    const INTERLEAVED: bool = false;

    /// One byte shuffle puts the values at their columns, zeros between them.
    #[inline(always)]
    unsafe fn group(byte: u8, [values, _]: [*const Self; 2]) -> __m256 {
        // SAFETY: as required of the caller; the table has an entry for every byte.
        unsafe {
            let bytes = _mm_loadu_si128(SPREAD.0[byte as usize].as_ptr().cast());
            let values = _mm_shuffle_epi8(_mm_loadu_si128(values.cast()), bytes);
            _mm256_cvtph_ps(values)
        }
    }

    #[inline(always)]
    unsafe fn widen(values: *const Self) -> __m256 {
        // SAFETY: as required of the caller.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(values.cast())) }
    }

    #[inline(always)]
    unsafe fn column(values: *const Self) -> (__m256, __m256) {
        // SAFETY: as required of the caller.
        unsafe { (Self::widen(values), Self::widen(values.add(LANES))) }
    }

    #[inline(always)]
    unsafe fn widen_sixteen(values: *const Self) -> __m512 {
        // SAFETY: as required of the caller.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.cast())) }
    }
}

/// As [`portable::tile_vectors`](super::portable::tile_vectors), for one token.
///
/// # Safety
/// The level; the invariant of [`Stored`]; blocks · 64 values of `x`.
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt")]
pub(super) unsafe fn tile_vector<V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [f32; TILE_ROWS],
) {
    debug_assert!(x.len() >= tile.blocks * BLOCK_COLS);
    let mut partial = [_mm256_setzero_ps(); TILE_ROWS];
    let mut values = tile.values.as_ptr();
    for block in 0..tile.blocks {
        // SAFETY: `x` has 64 values for each block. `values` moves on by one for each stored column, so that with the
        // padding there are 16 readable values at each group and at the middle of each.
        unsafe {
            let x = block_of(x, block);
            for (row, partial) in partial.iter_mut().enumerate().take(tile.rows) {
                let word = tile.index.word(block * tile.rows + row);
                prefetch(values, VALUES_AHEAD, lines_a_unit::<V>());
                // Two sums, so that an addition need not wait for the one before.
                let mut sums = [*partial, _mm256_setzero_ps()];
                for (group, x) in x.into_iter().enumerate() {
                    let byte = I::byte(word, group);
                    let (first, second) =
                        (I::before(word, group), I::before_half(word, group, byte));
                    let sum = &mut sums[group % 2];
                    let weights = V::group(byte, [values.add(first), values.add(second)]);
                    *sum = _mm256_fmadd_ps(weights, x, *sum);
                }
                values = values.add(I::total(word));
                *partial = _mm256_add_ps(sums[0], sums[1]);
            }
        }
    }
    for (sum, partial) in sums.iter_mut().zip(partial) {
        *sum += total(partial);
    }
}

/// As [`portable::tile_vectors`](super::portable::tile_vectors).
///
/// # Safety
/// The level; the invariant of [`Stored`]; at most [`FEW_TOKENS`] and blocks x tokens x 64 values of `x`.
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,popcnt")]
pub(super) unsafe fn tile_vectors<V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    let mut partial = [[_mm256_setzero_ps(); FEW_TOKENS]; TILE_ROWS];
    let mut values = tile.values.as_ptr();
    for (block, x) in x.chunks_exact(BLOCK_COLS * sums.len()).enumerate() {
        for (row, partial) in partial.iter_mut().enumerate().take(tile.rows) {
            let word = tile.index.word(block * tile.rows + row);
            prefetch(values, VALUES_AHEAD, lines_a_unit::<V>());
            let mut weights = [_mm256_setzero_ps(); BLOCK_COLS / LANES];
            for (group, weights) in weights.iter_mut().enumerate() {
                let byte = I::byte(word, group);
                let (first, second) = (I::before(word, group), I::before_half(word, group, byte));
                // SAFETY: as in `tile_vector`.
                *weights = unsafe { V::group(byte, [values.add(first), values.add(second)]) };
            }
            // SAFETY: as in `tile_vector`; the level.
            unsafe {
                values = values.add(I::total(word));
                add_unit(weights, x, partial);
            }
        }
    }
    add_totals(&partial, sums);
}

/// partial[token] += the unit's weights times those of the token; `x` is tokens x 64.
///
/// # Safety
/// The level.
#[inline(always)]
unsafe fn add_unit(
    weights: [__m256; BLOCK_COLS / LANES],
    x: &[f32],
    partial: &mut [__m256; FEW_TOKENS],
) {
    for (x, partial) in x.as_chunks::<BLOCK_COLS>().0.iter().zip(partial) {
        // SAFETY: 64 values of the token; the level.
        unsafe {
            let x = x.as_ptr();
            // Two sums, so that an addition need not wait for the one before.
            let mut sums = [*partial, _mm256_setzero_ps()];
            for (group, weights) in weights.into_iter().enumerate() {
                let x = _mm256_loadu_ps(x.add(group * LANES));
                sums[group % 2] = _mm256_fmadd_ps(weights, x, sums[group % 2]);
            }
            *partial = _mm256_add_ps(sums[0], sums[1]);
        }
    }
}

/// sums[token][row] += the lanes of partial[row][token].
#[inline(always)]
fn add_totals(partial: &[[__m256; FEW_TOKENS]; TILE_ROWS], sums: &mut [[f32; TILE_ROWS]]) {
    for (token, sums) in sums.iter_mut().enumerate() {
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum += total(partial[token]);
        }
    }
}

/// The activations of a block, which registers hold for all rows of a tile. (Left in memory, they cost a load for each
/// group of each row: a third of the time of bf16.)
///
/// # Safety
/// AVX; 64 values of `x` for each block.
#[inline(always)]
unsafe fn block_of(x: &[f32], block: usize) -> [__m256; BLOCK_COLS / LANES] {
    // SAFETY: as required of the caller. (No closure, which would not have the instructions of its caller.)
    unsafe {
        let mut vectors = [_mm256_setzero_ps(); BLOCK_COLS / LANES];
        for (group, vector) in vectors.iter_mut().enumerate() {
            *vector = _mm256_loadu_ps(x.as_ptr().add(block * BLOCK_COLS + group * LANES));
        }
        vectors
    }
}

/// The sum of the lanes.
#[inline(always)]
fn total(vector: __m256) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: eight values, and the caller has had the vector from the level.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), vector) };
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}

/// Two vectors of f32 from sixteen whole numbers.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn to_f32(numbers: __m256i) -> [__m256; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let low = _mm256_castsi256_si128(numbers);
        let high = _mm256_extracti128_si256::<1>(numbers);
        [
            _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(low)),
            _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(high)),
        ]
    }
}

/// Bytes for a unit's codes of four bits, one each: 64 from an even place on, one more, and what is read behind them.
const UNPACKED: usize = 80;

/// The product of a tile of codes of BITS bits with one token, as [`Tile::vectors`](super::Tile::vectors).
///
/// A byte shuffle moves the codes of sixteen columns to their places. Those of four bits are unpacked to bytes before, and their zero
/// subtracted by a second shuffle, for all rows of a block: reading across two stores waits until both are done.
///
/// # Safety
/// The level; the invariant of [`QuantizedTile`]; blocks · 64 values of `x`.
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
pub(super) unsafe fn quantized_vector<const BITS: usize>(
    tile: QuantizedTile<'_>,
    x: &[f32],
    sums: &mut [f32; TILE_ROWS],
) {
    debug_assert!(x.len() >= tile.blocks * BLOCK_COLS);
    let mut partial = [_mm256_setzero_ps(); TILE_ROWS];
    let mut units = UnpackedUnits::new(tile);
    for block in 0..tile.blocks {
        // SAFETY: the level; `x` has 64 values for each block.
        let x = unsafe { block_of(x, block) };
        let (masks, scales, zeros) = tile.units(block);
        // SAFETY: the level; blocks come in their order.
        unsafe { units.unpack::<BITS>(masks, zeros) };
        let grids = masks.iter().zip(zeros).zip(scales);
        for (((grid, scale), bytes), partial) in grids.zip(units.bytes).zip(&mut partial) {
            let mut steps = [_mm256_setzero_ps(); 2];
            for pair in 0..BLOCK_COLS / (2 * LANES) {
                // SAFETY: the level; these are the unit's codes.
                let [low, high] = unsafe { steps_of_pair::<BITS>(grid, pair, bytes) };
                steps[0] = _mm256_fmadd_ps(low, x[2 * pair], steps[0]);
                steps[1] = _mm256_fmadd_ps(high, x[2 * pair + 1], steps[1]);
            }
            let steps = _mm256_add_ps(steps[0], steps[1]);
            *partial = _mm256_fmadd_ps(steps, _mm256_set1_ps(*scale), *partial);
        }
    }
    for (sum, partial) in sums.iter_mut().zip(partial) {
        *sum += total(partial);
    }
}

/// The product of a tile of codes of BITS bits with a few tokens, as [`Tile::vectors`](super::Tile::vectors).
///
/// # Safety
/// The level; the invariant of [`QuantizedTile`]; at most [`FEW_TOKENS`] and blocks x tokens x 64 values of `x`.
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
pub(super) unsafe fn quantized_vectors<const BITS: usize>(
    tile: QuantizedTile<'_>,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    let mut partial = [[_mm256_setzero_ps(); FEW_TOKENS]; TILE_ROWS];
    let mut units = UnpackedUnits::new(tile);
    for (block, x) in x.chunks_exact(BLOCK_COLS * sums.len()).enumerate() {
        let (masks, scales, zeros) = tile.units(block);
        // SAFETY: the level; blocks come in their order.
        unsafe { units.unpack::<BITS>(masks, zeros) };
        let grids = masks.iter().zip(zeros).zip(scales);
        for (((grid, scale), bytes), partial) in grids.zip(units.bytes).zip(&mut partial) {
            let scale = _mm256_set1_ps(*scale);
            let mut weights = [_mm256_setzero_ps(); BLOCK_COLS / LANES];
            for (pair, weights) in weights.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                // SAFETY: the level; these are the unit's codes.
                let [low, high] = unsafe { steps_of_pair::<BITS>(grid, pair, bytes) };
                *weights = [_mm256_mul_ps(low, scale), _mm256_mul_ps(high, scale)];
            }
            // SAFETY: the level.
            unsafe { add_unit(weights, x, partial) };
        }
    }
    add_totals(&partial, sums);
}

/// The codes of a tile's units, a block after the other, each in a byte.
struct UnpackedUnits<'a> {
    codes: &'a [u8],
    /// The next block's first code.
    at: usize,
    unpacked: [[u8; UNPACKED]; TILE_ROWS],
    /// Where each row's codes begin.
    bytes: [*const u8; TILE_ROWS],
}

impl<'a> UnpackedUnits<'a> {
    #[inline(always)]
    fn new(tile: QuantizedTile<'a>) -> Self {
        Self {
            codes: tile.codes,
            at: tile.start,
            unpacked: [[0; UNPACKED]; TILE_ROWS],
            bytes: [tile.codes.as_ptr(); TILE_ROWS],
        }
    }

    /// The next block's. Those of four bits are unpacked, and their zeros subtracted.
    ///
    /// # Safety
    /// The level; `codes` has one for each bit of the masks of all blocks so far, and eight bytes more.
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(&mut self, masks: &[u64], zeros: &[u8]) {
        let rows = self.unpacked.iter_mut().zip(&mut self.bytes);
        for ((mask, zero), (unpacked, bytes)) in masks.iter().zip(zeros).zip(rows) {
            let count = mask.count_ones() as usize;
            // SAFETY: there are `count` codes from `at` on.
            unsafe {
                *bytes = match BITS {
                    4 => unpack(self.codes, (self.at, count), *zero, unpacked),
                    _ => self.codes.as_ptr().add(self.at),
                };
            }
            self.at += count;
        }
    }
}

/// code − zero of a pair of groups of a unit with this mask and zero, whose codes [`UnpackedUnits`] has put to `bytes`; 0 where
/// there is none.
///
/// # Safety
/// The level; eight bytes can be read from each code's place on, and from that of the first behind them.
#[inline(always)]
unsafe fn steps_of_pair<const BITS: usize>(
    (mask, zero): (&u64, &u8),
    pair: usize,
    bytes: *const u8,
) -> [__m256; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let (codes, columns) = columns_of(*mask, pair, bytes);
        let moved = _mm_shuffle_epi8(codes, columns);
        if BITS == 4 {
            let second = _mm_srli_si128::<8>(moved);
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(moved)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(second)),
            ]
        } else {
            // Where there is a code, its place is no negative number.
            let there = _mm_cmpgt_epi8(columns, _mm_set1_epi8(-1));
            let zeros = _mm_and_si128(_mm_set1_epi8(zero.cast_signed()), there);
            to_f32(_mm256_sub_epi16(
                _mm256_cvtepu8_epi16(moved),
                _mm256_cvtepu8_epi16(zeros),
            ))
        }
    }
}

/// The codes of a pair of groups of a unit whose codes are at `bytes`, each group's in a half, and where its columns find theirs.
///
/// # Safety
/// The level; eight readable bytes at the first code of each group.
#[inline(always)]
unsafe fn columns_of(mask: u64, pair: usize, bytes: *const u8) -> (__m128i, __m128i) {
    let [first, second] = [2 * pair, 2 * pair + 1];
    // SAFETY: as required of the caller; the tables have an entry for every byte.
    unsafe {
        let load = |low: *const u8, high: *const u8| {
            _mm_unpacklo_epi64(_mm_loadl_epi64(low.cast()), _mm_loadl_epi64(high.cast()))
        };
        let codes = load(
            bytes.add(Bits::before(mask, first)),
            bytes.add(Bits::before(mask, second)),
        );
        let columns = load(
            PLACES[0].0[Bits::byte(mask, first) as usize].as_ptr(),
            PLACES[1].0[Bits::byte(mask, second) as usize].as_ptr(),
        );
        (codes, columns)
    }
}

/// Writes code − zero for `count` codes of four bits from code `at` on, and for some behind them; returns where the first is.
///
/// # Safety
/// The level; `codes` has so many.
#[inline(always)]
unsafe fn unpack(
    codes: &[u8],
    (at, count): (usize, usize),
    zero: u8,
    to: &mut [u8; UNPACKED],
) -> *const u8 {
    /// Bytes that are read: 64 codes, and sixteen for the one more.
    const READ: usize = 40;
    let (first, odd) = (at / 2, at % 2);
    let mut end = [0; READ];
    let from = match codes.get(first..first + READ) {
        Some(codes) => codes.as_ptr(),
        None => {
            let rest = codes.get(first..).unwrap_or_default();
            end[..rest.len()].copy_from_slice(rest);
            end.as_ptr()
        }
    };
    // SAFETY: 40 bytes are read, 80 written.
    unsafe {
        let four = _mm_set1_epi8(15);
        let all = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        // By code.
        let steps = _mm_sub_epi8(all, _mm_set1_epi8(zero.cast_signed()));
        let halves = |raw: __m128i| {
            let upper = _mm_srli_epi16::<4>(raw);
            [_mm_and_si128(raw, four), _mm_and_si128(upper, four)]
        };
        let mut put = |place: usize, codes: __m128i| {
            let to = to.as_mut_ptr().add(place).cast();
            _mm_storeu_si128(to, _mm_shuffle_epi8(steps, codes));
        };
        for place in [0, 16] {
            let [lower, upper] = halves(_mm_loadu_si128(from.add(place).cast()));
            put(2 * place, _mm_unpacklo_epi8(lower, upper));
            put(2 * place + 16, _mm_unpackhi_epi8(lower, upper));
        }
        if odd + count > BLOCK_COLS {
            let [lower, upper] = halves(_mm_loadl_epi64(from.add(32).cast()));
            put(64, _mm_unpacklo_epi8(lower, upper));
        }
        to.as_ptr().add(odd)
    }
}

/// steps[row] = Σ (code − zero)·x over the columns of a panel of codes of BITS bits.
///
/// # Safety
/// The level; a column of codes for each value of `x`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn steps_vector<const BITS: usize>(
    codes: &[u8],
    zeros: &[u8; PANEL_ROWS],
    x: &[f32],
    steps: &mut [f32; PANEL_ROWS],
) {
    debug_assert!(codes.len() >= x.len() * PANEL_ROWS * BITS / 8);
    // SAFETY: sixteen zeros, and sixteen codes for each value of `x`.
    unsafe {
        let zeros = _mm256_cvtepu8_epi16(_mm_loadu_si128(zeros.as_ptr().cast()));
        // Two of each, so that an addition need not wait for the one before.
        let mut partial = [[_mm256_setzero_ps(); 2]; 2];
        for (column, x) in x.iter().enumerate() {
            let place = codes.as_ptr().add(column * PANEL_ROWS * BITS / 8);
            let codes: __m128i = match BITS {
                4 => {
                    let pairs = _mm_loadl_epi64(place.cast());
                    let halves = _mm_unpacklo_epi64(pairs, _mm_srli_epi16::<4>(pairs));
                    _mm_and_si128(halves, _mm_set1_epi8(15))
                }
                _ => _mm_loadu_si128(place.cast()),
            };
            let [low, high] = to_f32(_mm256_sub_epi16(_mm256_cvtepu8_epi16(codes), zeros));
            let x = _mm256_broadcast_ss(x);
            let [low_sum, high_sum] = &mut partial[column % 2];
            *low_sum = _mm256_fmadd_ps(low, x, *low_sum);
            *high_sum = _mm256_fmadd_ps(high, x, *high_sum);
        }
        let [[a, b], [c, d]] = partial;
        _mm256_storeu_ps(steps.as_mut_ptr(), _mm256_add_ps(a, c));
        _mm256_storeu_ps(steps.as_mut_ptr().add(LANES), _mm256_add_ps(b, d));
    }
}

/// Widens a unit's values, and some behind them.
///
/// # Safety
/// The level; `values` has at least eight values more than the unit.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn widen_unit<V: Value>(
    values: &[V],
    nonzeros: usize,
    wide: &mut [f32; BLOCK_COLS],
) {
    for start in (0..nonzeros).step_by(LANES) {
        // SAFETY: `start` is a multiple of eight below 64, and `values` goes on for eight more.
        unsafe {
            let vector = V::widen(values.as_ptr().add(start));
            _mm256_storeu_ps(wide.as_mut_ptr().add(start), vector);
        }
    }
}

/// A kernel for one number of vectors: mask, values, columns x lanes, sums.
pub(super) type UnitTokens = unsafe fn(u64, *const f32, *const f32, *mut f32);

/// Kernels for 1 to [`MOST_VECTORS`] vectors of tokens.
pub(super) static UNIT_TOKENS: [UnitTokens; MOST_VECTORS] = [
    unit_tokens::<1>,
    unit_tokens::<2>,
    unit_tokens::<3>,
    unit_tokens::<4>,
    unit_tokens::<5>,
    unit_tokens::<6>,
    unit_tokens::<7>,
    unit_tokens::<8>,
    unit_tokens::<9>,
    unit_tokens::<10>,
];

/// As [`portable::unit_tokens`](super::portable::unit_tokens), for T vectors of tokens.
///
/// # Safety
/// The level; a value for each bit, 64 x 8T values of `x`, 8T sums.
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
unsafe fn unit_tokens<const T: usize>(
    mut mask: u64,
    mut values: *const f32,
    x: *const f32,
    sums: *mut f32,
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut partial = [_mm256_setzero_ps(); T];
        for (vector, partial) in partial.iter_mut().enumerate() {
            *partial = _mm256_loadu_ps(sums.add(vector * LANES));
        }
        while mask != 0 {
            let x = x.add(mask.trailing_zeros() as usize * (T * LANES));
            mask &= mask - 1;
            let weight = _mm256_broadcast_ss(&*values);
            values = values.add(1);
            for (vector, partial) in partial.iter_mut().enumerate() {
                *partial =
                    _mm256_fmadd_ps(weight, _mm256_loadu_ps(x.add(vector * LANES)), *partial);
            }
        }
        for (vector, partial) in partial.iter().enumerate() {
            _mm256_storeu_ps(sums.add(vector * LANES), *partial);
        }
    }
}

/// As [`portable::panel_vector`](super::portable::panel_vector).
///
/// # Safety
/// The level; `x` has as many values as the panel columns.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn panel_vector<V: Value>(panel: &[V], x: &[f32], sums: &mut [f32; PANEL_ROWS]) {
    /// Columns at once, each with sums of its own, so that an addition need not wait for the one before.
    const UNROLL: usize = 4;
    let mut partial = [[_mm256_setzero_ps(); 2]; UNROLL];
    let mut add = |column: &[V], x: f32, into: usize| {
        // SAFETY: a column has 16 values.
        unsafe {
            let x = _mm256_set1_ps(x);
            let (low, high) = V::column(column.as_ptr());
            let [low_sum, high_sum] = &mut partial[into];
            *low_sum = _mm256_fmadd_ps(low, x, *low_sum);
            *high_sum = _mm256_fmadd_ps(high, x, *high_sum);
        }
    };
    let mut columns = panel.chunks_exact(UNROLL * PANEL_ROWS);
    let (fours, rest) = x.as_chunks::<UNROLL>();
    for (columns, x) in (&mut columns).zip(fours) {
        for into in 0..UNROLL {
            add(
                &columns[into * PANEL_ROWS..(into + 1) * PANEL_ROWS],
                x[into],
                into,
            );
        }
    }
    for (column, &x) in columns.remainder().chunks_exact(PANEL_ROWS).zip(rest) {
        add(column, x, 0);
    }
    let [[a, b], [c, d], [e, f], [g, h]] = partial;
    let low = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(e, g));
    let high = _mm256_add_ps(_mm256_add_ps(b, d), _mm256_add_ps(f, h));
    // SAFETY: 16 sums.
    unsafe {
        let sums = sums.as_mut_ptr();
        _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), low));
        let sums = sums.add(LANES);
        _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), high));
    }
}

/// As [`portable::panel_tokens`](super::portable::panel_tokens).
///
/// # Safety
/// The level.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn panel_tokens<V: Value, const N: usize>(
    panel: &[V],
    x: &[f32],
    sums: &mut [[f32; PANEL_ROWS]; N],
) {
    // SAFETY: sums, columns and rows of x have 16, 16 and N values.
    unsafe {
        let mut partial = [[_mm256_setzero_ps(); 2]; N];
        for (partial, sums) in partial.iter_mut().zip(sums.iter()) {
            *partial = [
                _mm256_loadu_ps(sums.as_ptr()),
                _mm256_loadu_ps(sums.as_ptr().add(LANES)),
            ];
        }
        for (column, x) in panel.chunks_exact(PANEL_ROWS).zip(x.as_chunks::<N>().0) {
            let (low, high) = V::column(column.as_ptr());
            for ([low_sum, high_sum], x) in partial.iter_mut().zip(x) {
                let x = _mm256_broadcast_ss(x);
                *low_sum = _mm256_fmadd_ps(low, x, *low_sum);
                *high_sum = _mm256_fmadd_ps(high, x, *high_sum);
            }
        }
        for (partial, sums) in partial.iter().zip(sums.iter_mut()) {
            _mm256_storeu_ps(sums.as_mut_ptr(), partial[0]);
            _mm256_storeu_ps(sums.as_mut_ptr().add(LANES), partial[1]);
        }
    }
}

/// Multiply-adds on registers alone, 96 at each of the `steps`: what the processor can do at most.
///
/// # Safety
/// The level.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn multiply_adds(steps: usize, factor: f32) -> f32 {
    // Ten chains would hide a latency of five at two a cycle.
    let mut sums = [_mm256_setzero_ps(); 12];
    let factor = _mm256_set1_ps(factor);
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(factor, factor, *sum);
        }
    }
    let mut total = [0.0; LANES];
    for sum in sums {
        let mut lanes = [0.0; LANES];
        // SAFETY: eight values.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        total
            .iter_mut()
            .zip(lanes)
            .for_each(|(total, lane)| *total += lane);
    }
    total.iter().sum()
}
