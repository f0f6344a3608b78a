//! AVX2 with FMA.
//!
//! Safety of everything here: the processor has what [`Level::Avx2`](crate::Level::Avx2) names, and the slices are as
//! long as their documentation says. The drivers in `vector` and `tokens` see to both.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, _mm_and_si128, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_set1_epi8, _mm_shuffle_epi8, _mm_srli_epi16, _mm_unpacklo_epi64, _mm256_add_ps,
    _mm256_and_si256, _mm256_blend_epi32, _mm256_broadcast_ss, _mm256_broadcastsi128_si256,
    _mm256_castsi128_si256, _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cvtepi16_epi32,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_inserti128_si256,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_ps, _mm256_xor_si256, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_slli_epi32,
};

use half::{bf16, f16};

use super::tables::{CODES, QUARTERS, SPREAD, WIDEN};
use super::tokens::UnitsTokens;
use super::unit::{Vector, units_tokens_on};
use super::{
    Bits, FEW_TOKENS, Index, LINE, QuantizedTile, Stored, Unit, Wide, count, lines_a_unit, prefetch,
};
use crate::dense::PANEL_ROWS;
use crate::packed::{BLOCK_COLS, TILE_ROWS};
use crate::value::Value;

/// f32 values in a vector.
pub(super) const LANES: usize = 8;
/// Most vectors of tokens that [`units_tokens`] holds in registers. Thirteen would fit, but so many activations of a block, 26 KiB, leave the
/// innermost cache no room for sums and values: slower by a tenth at half of zeros, by a fifth at 80 %.
pub(super) const MOST_VECTORS: usize = 10;

/// Bytes ahead of the values in use that are asked for: the processor's own prefetching stops at every page.
const VALUES_AHEAD: usize = 1024;
/// The same in a dense panel. (Sapphire Rapids: a tenth faster in f32 and a quarter in bf16, as its window does not reach as far.)
const PANEL_AHEAD: usize = 4096;

/// What kernels know of a type.
pub trait Lanes: Copy {
    /// Whether its bits are the upper half of an f32's.
    #[doc(hidden)]
    const UPPER_HALF: bool = false;

    /// Whether a column of a dense panel has the rows 0, 8, 1, 9, ...
    #[doc(hidden)]
    const INTERLEAVED: bool = Self::UPPER_HALF;

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
    const UPPER_HALF: bool = true;

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
                // Two sums, so that an addition need not wait for the one before: a half of the unit each, as `add_halves` has them.
                let mut sums = [*partial, _mm256_setzero_ps()];
                for (group, x) in x.into_iter().enumerate() {
                    let sum = &mut sums[group / HALF];
                    *sum = _mm256_fmadd_ps(group_of::<V, I>(word, group, values), x, *sum);
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
    let mut partial = [[[_mm256_setzero_ps(); 2]; FEW_TOKENS]; TILE_ROWS / 2];
    let mut values = tile.values.as_ptr();
    for (block, x) in x.chunks_exact(BLOCK_COLS * sums.len()).enumerate() {
        for (pair, partial) in partial.iter_mut().enumerate().take(tile.rows.div_ceil(2)) {
            let [row, other] = pair_of(pair, tile.rows);
            let words = [row, other].map(|row| tile.index.word(block * tile.rows + row));
            // SAFETY: as in `tile_vector`; the level.
            unsafe {
                let rows = [values, values.add((other - row) * I::total(words[0]))];
                prefetch(values, VALUES_AHEAD, 2 * lines_a_unit::<V>());
                add_halves::<0>(weights_of::<V, I, 0>(words, rows), x, partial);
                add_halves::<1>(weights_of::<V, I, 1>(words, rows), x, partial);
                values = rows[1].add(I::total(words[1]));
            }
        }
    }
    add_totals(&partial, sums);
}

/// The rows of a pair. A last row without another is with itself, and its second sums are nobody's.
#[inline(always)]
fn pair_of(pair: usize, rows: usize) -> [usize; 2] {
    [2 * pair, (2 * pair + 1).min(rows - 1)]
}

/// Half H of the units of two rows whose values begin at `rows`.
///
/// # Safety
/// The level; the values that the words tell, and 16 more.
#[inline(always)]
unsafe fn weights_of<V: Value, I: Index, const H: usize>(
    words: [u64; 2],
    rows: [*const V; 2],
) -> [[__m256; HALF]; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let mut weights = [[_mm256_setzero_ps(); HALF]; 2];
        for ((word, values), weights) in words.into_iter().zip(rows).zip(&mut weights) {
            for (at, weights) in weights.iter_mut().enumerate() {
                *weights = group_of::<V, I>(word, H * HALF + at, values);
            }
        }
        weights
    }
}

/// The weights of a group of a unit whose values begin at `values`.
///
/// # Safety
/// The level; the values that the word tells, and 16 more.
#[inline(always)]
unsafe fn group_of<V: Value, I: Index>(word: u64, group: usize, values: *const V) -> __m256 {
    let byte = I::byte(word, group);
    let (first, second) = (I::before(word, group), I::before_half(word, group, byte));
    // SAFETY: as required of the caller.
    unsafe { V::group(byte, [values.add(first), values.add(second)]) }
}

/// Groups in half a unit: those of two rows are as many registers as leave room for sums.
const HALF: usize = BLOCK_COLS / LANES / 2;

/// partial[token][row] += the weights of half H of the units of two rows times those of the token, whose activations are loaded once for
/// both; `x` is tokens x 64. In the order of [`tile_vector`], so that a token has the same bits alone.
///
/// # Safety
/// The level.
#[inline(always)]
unsafe fn add_halves<const H: usize>(
    weights: [[__m256; HALF]; 2],
    x: &[f32],
    partial: &mut [[__m256; 2]; FEW_TOKENS],
) {
    for (x, partial) in x.as_chunks::<BLOCK_COLS>().0.iter().zip(partial) {
        // SAFETY: 64 values of the token; the level.
        unsafe {
            let mut sums = match H {
                0 => *partial,
                _ => [_mm256_setzero_ps(); 2],
            };
            for at in 0..HALF {
                let x = _mm256_loadu_ps(x.as_ptr().add((H * HALF + at) * LANES));
                sums[0] = _mm256_fmadd_ps(weights[0][at], x, sums[0]);
                sums[1] = _mm256_fmadd_ps(weights[1][at], x, sums[1]);
            }
            *partial = match H {
                0 => sums,
                _ => [
                    _mm256_add_ps(partial[0], sums[0]),
                    _mm256_add_ps(partial[1], sums[1]),
                ],
            };
        }
    }
}

/// sums[token][row] += the lanes of its partial sum.
#[inline(always)]
fn add_totals(partial: &[[[__m256; 2]; FEW_TOKENS]; TILE_ROWS / 2], sums: &mut [[f32; TILE_ROWS]]) {
    for (token, sums) in sums.iter_mut().enumerate() {
        for (sums, partial) in sums.as_chunks_mut::<2>().0.iter_mut().zip(partial) {
            sums[0] += total(partial[token][0]);
            sums[1] += total(partial[token][1]);
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

/// 2²³ as f32, whose fraction's lowest byte is worth 1: with a code there, it is 2²³ + code.
pub(super) const BASE: i32 = 0x4b00_0000;

/// Codes of four bits that are unpacked at once.
const UNPACK: usize = 32;

/// Bytes that so many codes of four bits take, one each, from an odd one on, with what is read behind them.
const fn unpacked(codes: usize) -> usize {
    codes.next_multiple_of(UNPACK) + UNPACK
}

/// The product of a tile of codes of BITS bits with one token, as [`Tile::vectors`](super::Tile::vectors).
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
    let mut units = UnpackedUnits::new(tile, tile.start);
    for block in 0..tile.blocks {
        // SAFETY: the level; `x` has 64 values for each block.
        let x = unsafe { block_of(x, block) };
        let (masks, scales, zeros) = tile.masks_and_grids(block);
        // SAFETY: the level; blocks come in their order.
        unsafe { units.unpack::<BITS>(masks) };
        let rows = masks.iter().zip(units.bytes).zip(&mut partial);
        for (((mask, codes), partial), (scale, zero)) in rows.zip(scales.iter().zip(zeros)) {
            // SAFETY: the level.
            let base = unsafe { base_of(*zero) };
            let mut steps = [_mm256_setzero_ps(); 2];
            for (group, x) in x.into_iter().enumerate() {
                // SAFETY: the level; these are the unit's codes.
                let own = unsafe { steps_of_group(*mask, group, codes, base) };
                steps[group % 2] = _mm256_fmadd_ps(own, x, steps[group % 2]);
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
    let mut partial = [[[_mm256_setzero_ps(); 2]; FEW_TOKENS]; TILE_ROWS / 2];
    let mut units = UnpackedUnits::new(tile, tile.start);
    for (block, x) in x.chunks_exact(BLOCK_COLS * sums.len()).enumerate() {
        let (masks, scales, zeros) = tile.masks_and_grids(block);
        // SAFETY: the level; blocks come in their order.
        unsafe { units.unpack::<BITS>(masks) };
        for (pair, partial) in partial.iter_mut().enumerate().take(tile.rows.div_ceil(2)) {
            let rows = pair_of(pair, tile.rows).map(|row| {
                // SAFETY: the level.
                let base = unsafe { base_of(zeros[row]) };
                let grid = (_mm256_set1_ps(scales[row]), base);
                (masks[row], units.bytes[row], grid)
            });
            // SAFETY: the level; these are the units' codes.
            unsafe {
                add_halves::<0>(quantized_weights_of::<0>(rows), x, partial);
                add_halves::<1>(quantized_weights_of::<1>(rows), x, partial);
            }
        }
    }
    add_totals(&partial, sums);
}

/// Half H of the units of two rows: their masks, codes, and scales and bases.
///
/// # Safety
/// As [`steps_of_group`].
#[inline(always)]
unsafe fn quantized_weights_of<const H: usize>(
    rows: [(u64, *const u8, (__m256, __m256i)); 2],
) -> [[__m256; HALF]; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let mut weights = [[_mm256_setzero_ps(); HALF]; 2];
        for ((mask, codes, (scale, base)), weights) in rows.into_iter().zip(&mut weights) {
            for (at, weights) in weights.iter_mut().enumerate() {
                let steps = steps_of_group(mask, H * HALF + at, codes, base);
                *weights = _mm256_mul_ps(steps, scale);
            }
        }
        weights
    }
}

/// The codes of a tile's units, a block after the other, each in a byte. A block's are unpacked before any is used, since a load that
/// spans two stores waits until both are done.
struct UnpackedUnits<'a> {
    codes: &'a [u8],
    /// The next block's first code.
    at: usize,
    unpacked: [u8; unpacked(TILE_ROWS * BLOCK_COLS)],
    /// Where each row's codes begin.
    bytes: [*const u8; TILE_ROWS],
}

impl<'a> UnpackedUnits<'a> {
    #[inline(always)]
    fn new(tile: QuantizedTile<'a>, at: usize) -> Self {
        Self {
            codes: tile.codes,
            at,
            unpacked: [0; unpacked(TILE_ROWS * BLOCK_COLS)],
            bytes: [tile.codes.as_ptr(); TILE_ROWS],
        }
    }

    /// The next block's.
    ///
    /// # Safety
    /// The level; `codes` has one for each bit of the masks of all blocks so far, and 16 bytes more.
    #[inline(always)]
    unsafe fn unpack<const BITS: usize>(&mut self, masks: &[u64]) {
        let count = count(masks);
        // SAFETY: there are codes from `at` on, one for each bit.
        unsafe {
            let mut next = match BITS {
                4 => unpack(self.codes, (self.at, count), &mut self.unpacked),
                _ => self.codes.as_ptr().add(self.at),
            };
            for (mask, bytes) in masks.iter().zip(&mut self.bytes) {
                *bytes = next;
                next = next.add(mask.count_ones() as usize);
            }
        }
        self.at += count;
    }
}

/// 2²³ + zero in every lane.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn base_of(zero: u8) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_set1_epi32(BASE | i32::from(zero)) }
}

/// code − zero of the columns of a group of a unit with this mask whose codes are at `codes`, `base` being 2²³ + zero; 0 where there
/// is no code. A byte shuffle puts each code, or else the zero, into the fraction of 2²³; the difference is exact.
///
/// # Safety
/// The level; eight bytes can be read from each code's place on, and from that of the first behind them.
#[inline(always)]
unsafe fn steps_of_group(mask: u64, group: usize, codes: *const u8, base: __m256i) -> __m256 {
    // SAFETY: as required of the caller; the table has an entry for every byte.
    unsafe {
        let own = codes.add(Bits::before(mask, group)).cast::<i64>();
        let columns = CODES.0[Bits::byte(mask, group) as usize].as_ptr();
        // Eight codes and the base, in either half.
        let own = _mm256_set1_epi64x(own.read_unaligned());
        let from = _mm256_blend_epi32::<0b1100_1100>(own, base);
        let moved = _mm256_shuffle_epi8(from, _mm256_loadu_si256(columns.cast()));
        _mm256_sub_ps(_mm256_castsi256_ps(moved), _mm256_castsi256_ps(base))
    }
}

/// Puts `count` codes of four bits from code `at` on into a byte each, and some around them; returns where the first is.
///
/// # Safety
/// The level; `codes` has so many and 16 bytes more, and `to` as many as [`unpacked`] says.
#[inline(always)]
unsafe fn unpack(codes: &[u8], (at, count): (usize, usize), to: &mut [u8]) -> *const u8 {
    debug_assert!(
        (at + count).div_ceil(2) + UNPACK / 2 <= codes.len() && unpacked(count) <= to.len()
    );
    let (first, odd) = (at / 2, at % 2);
    for start in (0..odd + count).step_by(UNPACK) {
        // SAFETY: the byte from which 16 are read holds one of the codes; 32 are written for as many or fewer codes.
        unsafe {
            let bytes = _mm_loadu_si128(codes.as_ptr().add(first + start / 2).cast());
            let words = _mm256_cvtepu8_epi16(bytes);
            let both = _mm256_or_si256(words, _mm256_slli_epi16::<4>(words));
            let codes = _mm256_and_si256(both, _mm256_set1_epi8(15));
            _mm256_storeu_si256(to.as_mut_ptr().add(start).cast(), codes);
        }
    }
    // SAFETY: `to` has more than one.
    unsafe { to.as_ptr().add(odd) }
}

/// The weights (code − zero)·scale of a block of a tile of codes of BITS bits, whose first is code `at`.
///
/// # Safety
/// The level; the invariant of [`QuantizedTile`].
#[target_feature(enable = "avx2,popcnt")]
pub(super) unsafe fn widen_codes<const BITS: usize>(
    tile: QuantizedTile<'_>,
    block: usize,
    at: usize,
    wide: &mut Wide,
) {
    let (masks, scales, zeros) = tile.masks_and_grids(block);
    let mut units = UnpackedUnits::new(tile, at);
    // SAFETY: the level; the block's first code is `at`.
    unsafe { units.unpack::<BITS>(masks) };
    let mut to = wide.as_mut_ptr();
    let rows = masks.iter().zip(units.bytes);
    for ((mask, codes), (scale, zero)) in rows.zip(scales.iter().zip(zeros)) {
        // SAFETY: the level.
        let (scale, base) = (_mm256_set1_ps(*scale), unsafe { base_of(*zero) });
        let count = mask.count_ones() as usize;
        // SAFETY: the level; eight bytes can be read from each code on. What is written behind a row's values is the next row's
        // place, or the vector at the end of `wide`.
        unsafe {
            for start in (0..count).step_by(LANES) {
                let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(codes.add(start).cast()));
                let codes = _mm256_or_si256(codes, _mm256_set1_epi32(BASE));
                let steps = _mm256_sub_ps(_mm256_castsi256_ps(codes), _mm256_castsi256_ps(base));
                _mm256_storeu_ps(to.add(start), _mm256_mul_ps(steps, scale));
            }
            to = to.add(count);
        }
    }
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

/// Widens the first `count` values, and some behind them.
///
/// # Safety
/// The level; `values` has at least eight values more than that.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn widen<V: Value>(values: &[V], count: usize, wide: &mut Wide) {
    debug_assert!(count + LANES <= wide.len() && count + LANES <= values.len());
    for start in (0..count).step_by(LANES) {
        // SAFETY: both go on for eight values behind `count`.
        unsafe {
            let vector = V::widen(values.as_ptr().add(start));
            _mm256_storeu_ps(wide.as_mut_ptr().add(start), vector);
        }
    }
}

/// Kernels for 1 to [`MOST_VECTORS`] vectors of tokens.
pub(super) static UNITS_TOKENS: [UnitsTokens; MOST_VECTORS] = [
    units_tokens::<1, 2>,
    units_tokens::<2, 2>,
    units_tokens::<3, 2>,
    units_tokens::<4, 2>,
    units_tokens::<5, 2>,
    units_tokens::<6, 1>,
    units_tokens::<7, 1>,
    units_tokens::<8, 1>,
    units_tokens::<9, 1>,
    units_tokens::<10, 1>,
];

/// [`units_tokens_on`] with T vectors of tokens and C sums of each.
///
/// # Safety
/// The level; for each unit a value for each bit and 8T sums; 64 x 8T values of `x`.
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
unsafe fn units_tokens<const T: usize, const C: usize>(
    units: &[Unit<'_>],
    x: *const f32,
    sums: *mut f32,
    ahead: &[f32],
) {
    // SAFETY: as required of the caller.
    unsafe { units_tokens_on::<__m256, T, C>(units, x, sums, ahead) }
}

impl Vector for __m256 {
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(values: *const f32) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm256_loadu_ps(values) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as required of the caller.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, x: Self, sum: Self) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm256_fmadd_ps(self, x, sum) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as required of the caller.
        unsafe { _mm256_add_ps(self, other) }
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
    let lines = UNROLL * PANEL_ROWS * size_of::<V>() / LINE;
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
        prefetch(columns.as_ptr(), PANEL_AHEAD, lines);
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

/// Multiply-adds on registers alone, twelve vectors at each of the `steps`: what the processor can do at most. Lanes of a vector, and a sum.
///
/// # Safety
/// The level.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn multiply_adds(steps: usize, factor: f32) -> (usize, f32) {
    // Ten chains would hide a latency of five at two a cycle.
    let mut sums = [_mm256_setzero_ps(); 12];
    let factor = _mm256_set1_ps(factor);
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(factor, factor, *sum);
        }
    }
    (LANES, sums.into_iter().map(total).sum())
}

/// All words of whole lines together, read half a line at a time.
#[target_feature(enable = "avx2")]
pub(crate) fn xor_by_halves(words: &[u64]) -> u64 {
    let mut all = [_mm256_setzero_si256(); 2];
    for line in words.as_chunks::<8>().0 {
        for (all, half) in all.iter_mut().zip(line.as_chunks::<4>().0) {
            // SAFETY: four words are 32 bytes.
            let half = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
            *all = _mm256_xor_si256(*all, half);
        }
    }
    let mut words = [0; 4];
    // SAFETY: as above.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), _mm256_xor_si256(all[0], all[1])) };
    words.iter().fold(0, |all, word| all ^ word)
}
