//! AVX-512 with VBMI and VBMI2: what an expansion of bytes or of 16-bit words puts in place, codes and bf16 values, and the masks of N:M
//! patterns.

use std::arch::x86_64::{
    __m512, __m512i, _mm_loadu_si128, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtepu8_epi32, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_mask_expand_epi8, _mm512_mask_permutexvar_epi8, _mm512_maskz_expand_epi16,
    _mm512_multishift_epi64_epi8, _mm512_or_si512, _mm512_permutex2var_epi8,
    _mm512_permutex2var_ps, _mm512_permutexvar_epi8, _mm512_permutexvar_epi32, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_epi64, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
    _mm512_ternarylogic_epi32,
};

use super::avx2::BASE;
use super::avx512::{
    LANES, Units, VALUES_AHEAD, VECTORS, expanded, tile_vector_on, tile_vectors_on,
};
use super::{Bits, Index, QuantizedTile, Shape, Stored, lines_a_unit, prefetch};
use crate::dense::PANEL_ROWS;
use crate::packed::{BLOCK_COLS, TILE_ROWS};
use crate::value::Value;

/// Values of a type: those whose bits are the upper halves of f32, 32 columns at a time. Codes of a pattern become masks for a block at once.
#[derive(Clone, Copy)]
struct Masked<'a, V, I>(Stored<'a, V, I>);

/// Where a unit's values are, and the masks of its block.
#[derive(Clone, Copy)]
struct Place<V> {
    values: *const V,
    masks: [u64; TILE_ROWS],
}

impl<V: Value, I: Index> Units<__m512> for Masked<'_, V, I> {
    type Place = Place<V>;

    #[inline(always)]
    fn rows(self) -> usize {
        self.0.rows
    }

    #[inline(always)]
    fn first(self) -> Place<V> {
        Place {
            values: self.0.values.as_ptr(),
            masks: [0; TILE_ROWS],
        }
    }

    #[inline(always)]
    unsafe fn unit(self, block: usize, row: usize, place: &mut Place<V>) -> [__m512; VECTORS] {
        const HALF: usize = BLOCK_COLS / 2;
        let index = self.0.index;
        let mask = match index.codes() {
            None => index.word(block * self.0.rows + row),
            Some((shape, codes)) => {
                if row == 0 {
                    // SAFETY: the level.
                    unsafe { masks_of(shape, codes, block * self.0.rows, &mut place.masks) };
                }
                place.masks[row]
            }
        };
        prefetch(place.values, VALUES_AHEAD, lines_a_unit::<V>());
        let values = place.values;
        // SAFETY: `place` moves on by one for each stored column, so that it stays in the array, in whose end the padding is. Where 64
        // values are left, 32 can be read from either half's first, as the first half has no more than 32.
        unsafe {
            place.values = values.add(I::total(mask));
            if !V::UPPER_HALF {
                return expanded::<__m512, V, Bits<'_>>(mask, values);
            }
            let left = self
                .0
                .values
                .as_ptr_range()
                .end
                .offset_from_unsigned(values);
            if left < 2 * HALF {
                return last_words(mask, values);
            }
            let [even, odd] = upper_halves(values.cast(), mask as u32);
            let second = values.add((mask as u32).count_ones() as usize);
            let [second_even, second_odd] = upper_halves(second.cast(), (mask >> HALF) as u32);
            [even, odd, second_even, second_odd]
        }
    }
}

/// The masks of so many units from unit `first` on that are codes of a pattern, or of those that there are: eight at once, whose codes' bits a
/// multishift puts into bytes, for which a permutation looks up their columns.
///
/// # Safety
/// The level.
#[inline(always)]
unsafe fn masks_of(shape: &Shape, codes: &[u8], first: usize, masks: &mut [u64; TILE_ROWS]) {
    // Of eight units, so many bytes each: the bytes from the first of each on, and the bits of its codes.
    let size = shape.bits - FEWEST_BITS;
    let (bytes, bits) = (&UNITS.0[size], &CODE_BITS.0[size]);
    // SAFETY: the level; 64 bytes each, and 128 columns of codes.
    unsafe {
        let low = _mm512_loadu_si512(shape.bytes.as_ptr().cast());
        let high = _mm512_loadu_si512(shape.bytes.as_ptr().add(64).cast());
        for (eight, masks) in masks.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let start = ((first + 8 * eight) * shape.bits).min(codes.len());
            let own = if start + BLOCK_COLS <= codes.len() {
                _mm512_loadu_si512(codes.as_ptr().add(start).cast())
            } else {
                _mm512_loadu_si512(last_codes(&codes[start..]).as_ptr().cast())
            };
            let words = _mm512_permutexvar_epi8(_mm512_loadu_si512(bytes.as_ptr().cast()), own);
            let bits = _mm512_loadu_si512(bits.as_ptr().cast());
            let codes = _mm512_multishift_epi64_epi8(bits, words);
            let codes = _mm512_and_si512(codes, _mm512_set1_epi8(((1_u8 << shape.bits) - 1) as i8));
            let found = _mm512_permutex2var_epi8(low, codes, high);
            _mm512_storeu_si512(masks.as_mut_ptr().cast(), found);
        }
    }
}

/// For units of [`FEWEST_BITS`] bytes and more: the eight from the first of each of eight units on.
static UNITS: Bytes<4> = Bytes([
    bytes_of(FEWEST_BITS),
    bytes_of(FEWEST_BITS + 1),
    bytes_of(FEWEST_BITS + 2),
    bytes_of(FEWEST_BITS + 3),
]);

/// For codes of [`FEWEST_BITS`] and more: the bit at which each of eight begins.
static CODE_BITS: Bytes<4> = Bytes([
    bits_of(FEWEST_BITS, 0),
    bits_of(FEWEST_BITS + 1, 0),
    bits_of(FEWEST_BITS + 2, 0),
    bits_of(FEWEST_BITS + 3, 0),
]);

/// Of the codes of a pattern.
const FEWEST_BITS: usize = 4;

const fn bytes_of(size: usize) -> [u8; 64] {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < 64 {
        bytes[at] = (at / 8 * size + at % 8) as u8;
        at += 1;
    }
    bytes
}

/// A unit near the end of the values, behind which 64 cannot be read.
///
/// # Safety
/// As [`expanded`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,bmi1,bmi2,popcnt")]
unsafe fn last_words<V: Value>(mask: u64, values: *const V) -> [__m512; VECTORS] {
    // SAFETY: as required of the caller.
    unsafe {
        let mut weights = expanded::<__m512, V, Bits<'_>>(mask, values);
        for pair in weights.as_chunks_mut::<2>().0 {
            *pair = split(*pair);
        }
        weights
    }
}

/// f32 with these upper halves, put into the columns of the mask: those with even numbers and those with odd ones.
///
/// # Safety
/// The level; 32 readable values.
#[inline(always)]
unsafe fn upper_halves(values: *const u16, mask: u32) -> [__m512; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let words = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values.cast()));
        let odd = _mm512_and_si512(words, _mm512_set1_epi32(-1 << 16));
        [
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
            _mm512_castsi512_ps(odd),
        ]
    }
}

/// Codes of BITS bits.
#[derive(Clone, Copy)]
struct Coded<'a, const BITS: usize>(QuantizedTile<'a>);

impl<const BITS: usize> Coded<'_, BITS> {
    /// Of a row in a block's group, in `scales` and `zeros`.
    #[inline(always)]
    fn grid(self, block: usize, row: usize) -> usize {
        block / self.0.group_blocks * self.0.rows + row
    }
}

impl<const BITS: usize> Units<__m512> for Coded<'_, BITS> {
    /// The code.
    type Place = usize;

    #[inline(always)]
    fn rows(self) -> usize {
        self.0.rows
    }

    #[inline(always)]
    fn first(self) -> usize {
        self.0.start
    }

    /// An expansion puts the codes into their columns' bytes and leaves the zero in the others; each byte then becomes the lowest of
    /// the fraction of 2²³, from which 2²³ + zero is subtracted, exactly.
    #[inline(always)]
    unsafe fn unit(self, block: usize, row: usize, place: &mut usize) -> [__m512; VECTORS] {
        let (codes, at) = (self.0.codes, *place);
        let byte = at * BITS / 8;
        debug_assert!(block < self.0.blocks && row < self.0.rows);
        // SAFETY: by the tile's invariant there is one of each for every row of a block.
        let (mask, zero) = unsafe {
            let mask = self.0.masks.get_unchecked(block * self.0.rows + row);
            (*mask, *self.0.zeros.get_unchecked(self.grid(block, row)))
        };
        *place = at + mask.count_ones() as usize;
        prefetch(codes.as_ptr().wrapping_add(byte), VALUES_AHEAD, 1);
        // SAFETY: the level; the codes begin at this byte, and where fewer than 64 bytes are left, a copy has as many.
        unsafe {
            let own = if byte + BLOCK_COLS <= codes.len() {
                _mm512_loadu_si512(codes.as_ptr().add(byte).cast())
            } else {
                _mm512_loadu_si512(last_codes(&codes[byte..]).as_ptr().cast())
            };
            let own = match BITS {
                4 => nibbles(own, at % 2),
                _ => own,
            };
            // From memory: between registers a broadcast would take the port that shuffles need.
            let absent = _mm512_castps_si512(_mm512_set1_ps(ZERO_BYTES[usize::from(zero)]));
            let zero = _mm512_set1_ps(ZERO_FRACTIONS[usize::from(zero)]);
            let bytes = _mm512_mask_expand_epi8(absent, mask, own);
            let base = _mm512_set1_epi32(BASE);
            let mut steps = [_mm512_setzero_ps(); VECTORS];
            for (at, steps) in steps.iter_mut().enumerate() {
                let codes = in_fractions(bytes, at, base);
                *steps = _mm512_sub_ps(_mm512_castsi512_ps(codes), zero);
            }
            steps
        }
    }

    #[inline(always)]
    unsafe fn scale(self, block: usize, row: usize) -> Option<__m512> {
        // SAFETY: the level; by the tile's invariant there is one for every row of a block.
        Some(unsafe { _mm512_set1_ps(*self.0.scales.get_unchecked(self.grid(block, row))) })
    }
}

/// For each zero: four bytes of it, as f32.
static ZERO_BYTES: [f32; 256] = {
    let mut of = [0.0; 256];
    let mut zero = 0;
    while zero < 256 {
        of[zero] = f32::from_bits(u32::from_le_bytes([zero as u8; 4]));
        zero += 1;
    }
    of
};

/// For each zero: 2²³ + zero.
static ZERO_FRACTIONS: [f32; 256] = {
    let mut of = [0.0; 256];
    let mut zero = 0;
    while zero < 256 {
        of[zero] = f32::from_bits(BASE as u32 | zero as u32);
        zero += 1;
    }
    of
};

/// What is left of the codes, and zeros.
#[cold]
fn last_codes(codes: &[u8]) -> [u8; BLOCK_COLS] {
    std::array::from_fn(|at| codes.get(at).copied().unwrap_or(0))
}

/// Bytes with numbers.
#[repr(C, align(64))]
struct Bytes<const N: usize>([[u8; 64]; N]);

/// For 64 bits that begin at code 0 or 1 of four bits: the bit at which each of eight codes begins.
static NIBBLES: Bytes<2> = Bytes([bits_of(4, 0), bits_of(4, 4)]);

/// For codes of so many bits, the first of which begins at this one: where each of eight begins, in eight words of 64 bits.
const fn bits_of(size: usize, first: usize) -> [u8; 64] {
    let mut bits = [0; 64];
    let mut at = 0;
    while at < 64 {
        bits[at] = (at % 8 * size + first) as u8;
        at += 1;
    }
    bits
}

/// Codes of four bits in a byte each, from the first or (`odd` = 1) second of these on.
///
/// # Safety
/// The level.
#[inline(always)]
unsafe fn nibbles(codes: __m512i, odd: usize) -> __m512i {
    /// The 32 bits of eight codes each, and the next 32.
    static PAIRS: [u32; LANES] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8];
    // SAFETY: the level; 64 bytes each.
    unsafe {
        let pairs = _mm512_loadu_si512(PAIRS.as_ptr().cast());
        let codes = _mm512_permutexvar_epi32(pairs, codes);
        let bits = _mm512_loadu_si512(NIBBLES.0[odd & 1].as_ptr().cast());
        let codes = _mm512_multishift_epi64_epi8(bits, codes);
        _mm512_and_si512(codes, _mm512_set1_epi8(15))
    }
}

/// For each sixteen of 64 bytes: their numbers, in the lowest byte of each 32 bits.
static SIXTEENS: Bytes<VECTORS> = Bytes(sixteens());

const fn sixteens() -> [[u8; 64]; VECTORS] {
    let mut bytes = [[0; 64]; VECTORS];
    let mut at = 0;
    while at < 64 {
        bytes[at / LANES][at % LANES * 4] = at as u8;
        at += 1;
    }
    bytes
}

/// `base` with the `at`-th sixteen bytes in the lowest byte of each 32 bits.
///
/// # Safety
/// The level.
#[inline(always)]
unsafe fn in_fractions(bytes: __m512i, at: usize, base: __m512i) -> __m512i {
    const LOWEST: u64 = 0x1111_1111_1111_1111;
    // SAFETY: the level; 64 bytes.
    unsafe {
        let from = _mm512_loadu_si512(SIXTEENS.0[at].as_ptr().cast());
        _mm512_mask_permutexvar_epi8(base, LOWEST, from, bytes)
    }
}

/// The values with even numbers of both, and those with odd ones.
///
/// # Safety
/// The level.
#[inline(always)]
unsafe fn split([first, second]: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: the level.
    unsafe {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
        [
            _mm512_permutex2var_ps(first, even, second),
            _mm512_permutex2var_ps(first, odd, second),
        ]
    }
}

/// As [`avx512::tile_vectors`](super::avx512::tile_vectors), for bf16 and for codes of a pattern.
///
/// # Safety
/// The level; the invariant of [`Stored`]; at most [`FEW_TOKENS`](super::FEW_TOKENS) and blocks x tokens x 64 values of `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) unsafe fn tile_vectors<V: Value, I: Index>(
    tile: Stored<'_, V, I>,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: as required of the caller.
    unsafe {
        match sums {
            [sums] => tile_vector_on(Masked(tile), x, sums),
            sums => tile_vectors_on(Masked(tile), x, sums),
        }
    }
}

/// The product of a tile of codes of BITS bits with a few tokens, as [`Tile::vectors`](super::Tile::vectors).
///
/// # Safety
/// The level; the invariant of [`QuantizedTile`]; at most [`FEW_TOKENS`](super::FEW_TOKENS) and blocks x tokens x 64 values of `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
pub(super) unsafe fn quantized_vectors<const BITS: usize>(
    tile: QuantizedTile<'_>,
    x: &[f32],
    sums: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: as required of the caller.
    unsafe {
        match sums {
            [sums] => tile_vector_on(Coded::<BITS>(tile), x, sums),
            sums => tile_vectors_on(Coded::<BITS>(tile), x, sums),
        }
    }
}

/// For a column of sixteen codes of four bits in a dense panel: the bit at which each begins, in the lowest byte of each 32.
static COLUMN: Bytes<1> = Bytes([column_bits()]);

const fn column_bits() -> [u8; 64] {
    let mut bits = [0; 64];
    let mut row = 0;
    while row < PANEL_ROWS {
        bits[4 * row] = (row % 8 * 8 + row / 8 * 4) as u8;
        row += 1;
    }
    bits
}

/// code − zero of a column of a dense panel; `bits` is that of [`COLUMN`], `zeros` are 2²³ + zero.
///
/// # Safety
/// The level; sixteen codes.
#[inline(always)]
unsafe fn column_steps<const BITS: usize>(
    codes: *const u8,
    bits: __m512i,
    base: __m512i,
    zeros: __m512,
) -> __m512 {
    // SAFETY: as required of the caller.
    unsafe {
        let codes = match BITS {
            4 => {
                let all = _mm512_set1_epi64(codes.cast::<i64>().read_unaligned());
                let codes = _mm512_multishift_epi64_epi8(bits, all);
                // (codes & 15) | base
                _mm512_ternarylogic_epi32::<0xEA>(codes, _mm512_set1_epi32(15), base)
            }
            _ => {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
                _mm512_or_si512(codes, base)
            }
        };
        _mm512_sub_ps(_mm512_castsi512_ps(codes), zeros)
    }
}

/// As [`avx2::steps_vector`](super::avx2::steps_vector).
///
/// # Safety
/// The level; a column of codes for each value of `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(super) unsafe fn steps_vector<const BITS: usize>(
    codes: &[u8],
    zeros: &[u8; PANEL_ROWS],
    x: &[f32],
    steps: &mut [f32; PANEL_ROWS],
) {
    debug_assert!(codes.len() >= x.len() * PANEL_ROWS * BITS / 8);
    // SAFETY: sixteen zeros, and sixteen codes for each value of `x`.
    unsafe {
        let base = _mm512_set1_epi32(BASE);
        let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.as_ptr().cast()));
        let zeros = _mm512_castsi512_ps(_mm512_or_si512(zeros, base));
        let bits = _mm512_loadu_si512(COLUMN.0[0].as_ptr().cast());
        // Four, so that an addition need not wait for the one before.
        let mut partial = [_mm512_setzero_ps(); 4];
        let mut place = codes.as_ptr();
        let (fours, rest) = x.as_chunks::<4>();
        for x in fours {
            for (x, sum) in x.iter().zip(&mut partial) {
                let steps = column_steps::<BITS>(place, bits, base, zeros);
                *sum = _mm512_fmadd_ps(steps, _mm512_set1_ps(*x), *sum);
                place = place.add(PANEL_ROWS * BITS / 8);
            }
        }
        for (x, sum) in rest.iter().zip(&mut partial) {
            let steps = column_steps::<BITS>(place, bits, base, zeros);
            *sum = _mm512_fmadd_ps(steps, _mm512_set1_ps(*x), *sum);
            place = place.add(PANEL_ROWS * BITS / 8);
        }
        let [a, b, c, d] = partial;
        let sum = _mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d));
        _mm512_storeu_ps(steps.as_mut_ptr(), sum);
    }
}
