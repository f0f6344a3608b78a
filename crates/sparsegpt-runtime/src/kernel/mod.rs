//! Products, on every instruction set.
//!
//! One token: each tile or panel is read once, front to back, so that memory decides ([`vector`]). Many tokens: tokens are
//! lanes for packed weights and rows are lanes for dense ones, and results stay in registers ([`tokens`]).

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(target_arch = "x86_64")]
mod tables;
mod tokens;
mod vector;

pub(crate) use tokens::{dense_tokens, packed_tokens};
pub(crate) use vector::{dense_vectors, packed_vectors};

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::multiply_adds;

/// What kernels know of a type. Public in name only: it seals [`Value`](crate::Value).
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Lanes;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::Lanes;

use crate::value::Value;

/// A tile of a packed matrix.
///
/// **Invariant**: `masks` has rows x blocks entries, and `values` one value for each bit in them and
/// [`PADDING`](crate::PADDING) more. [`PackedMatrix`](crate::PackedMatrix) checks it; the kernels rely on it.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a, V> {
    pub(crate) rows: usize,
    pub(crate) blocks: usize,
    pub(crate) masks: &'a [u64],
    pub(crate) values: &'a [V],
}

/// The values behind a unit's mask, and the rest.
pub(crate) fn split_unit<'a, V: Value>(values: &mut &'a [V], mask: u64) -> &'a [V] {
    let (unit, rest) = values.split_at(mask.count_ones() as usize);
    *values = rest;
    unit
}

/// Asks for so many cache lines of an array from this byte on, which may lie behind its end, so that they are on the way
/// when they are used.
#[inline(always)]
fn prefetch<T>(array: *const T, byte: usize, lines: usize) {
    /// Bytes of a cache line.
    const LINE: usize = 64;
    #[cfg(target_arch = "x86_64")]
    for line in 0..lines {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let place = array.cast::<i8>().wrapping_add(byte + line * LINE);
        // SAFETY: a hint never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (array, byte, lines, LINE);
}

/// Lines to ask for with each unit: a little more than half of its weights take.
const fn lines_a_unit<V>() -> usize {
    size_of::<V>() / 2 + 1
}
