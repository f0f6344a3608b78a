//! Units times a tile of tokens, on vectors of any width.

use super::{Unit, ask_for_part};

/// Some f32 in a register.
///
/// # Safety
/// Every function needs the instructions of its implementor, and [`LANES`](Self::LANES) readable or writable values at its pointers.
pub(super) trait Vector: Copy {
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(values: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// self · x + sum.
    unsafe fn multiply_add(self, x: Self, sum: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
}

/// As [`unit_tokens_on`] for each of the units, whose sums follow each other; `ahead` is asked for meanwhile.
///
/// # Safety
/// As [`unit_tokens_on`], for each.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "tests run units one by one")
)]
#[inline(always)]
pub(super) unsafe fn units_tokens_on<S: Vector, const T: usize, const C: usize>(
    units: &[Unit<'_>],
    x: *const f32,
    sums: *mut f32,
    ahead: &[f32],
) {
    for (row, (mask, values)) in units.iter().enumerate() {
        ask_for_part(ahead, row, units.len());
        // SAFETY: as required of the caller.
        unsafe {
            let sums = sums.add(row * T * S::LANES);
            unit_tokens_on::<S, T, C>(*mask, values.as_ptr(), x, sums);
        }
    }
}

/// As [`portable::unit_tokens`](super::portable::unit_tokens) with T vectors of tokens. Every C-th value has sums of its own, where there
/// are registers for them, so that additions need not wait for each other.
///
/// # Safety
/// The instructions of S; a value for each bit, 64 x T vectors of `x`, T vectors of sums.
#[inline(always)]
pub(super) unsafe fn unit_tokens_on<S: Vector, const T: usize, const C: usize>(
    mut mask: u64,
    mut values: *const f32,
    x: *const f32,
    sums: *mut f32,
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut partial = [[S::splat(0.0); T]; C];
        for (vector, partial) in partial[0].iter_mut().enumerate() {
            *partial = S::load(sums.add(vector * S::LANES));
        }
        let mut count = mask.count_ones() as usize;
        while count >= C {
            for partial in &mut partial {
                add_column(&mut mask, &mut values, x, partial);
            }
            count -= C;
        }
        for _ in 0..count {
            add_column(&mut mask, &mut values, x, &mut partial[0]);
        }
        for vector in 0..T {
            let mut sum = partial[0][vector];
            for partial in &partial[1..] {
                sum = sum.add(partial[vector]);
            }
            sum.store(sums.add(vector * S::LANES));
        }
    }
}

/// partial += the next value times the activations of the mask's first column, which is taken off.
///
/// # Safety
/// As [`unit_tokens_on`]; a column is left.
#[inline(always)]
unsafe fn add_column<S: Vector, const T: usize>(
    mask: &mut u64,
    values: &mut *const f32,
    x: *const f32,
    partial: &mut [S; T],
) {
    // SAFETY: as required of the caller.
    unsafe {
        let x = x.add(mask.trailing_zeros() as usize * (T * S::LANES));
        let x = in_register(x.cast_mut()).cast_const();
        *mask &= mask.wrapping_sub(1);
        let weight = S::splat(**values);
        *values = values.add(1);
        for (vector, partial) in partial.iter_mut().enumerate() {
            *partial = weight.multiply_add(S::load(x.add(vector * S::LANES)), *partial);
        }
    }
}

/// The same address, added up. Intel's processors take a multiply-add with an operand in memory as one instruction only if its address is
/// in one register; as two they take a tenth longer here, and more where another thread of the core has half of its places.
#[inline(always)]
#[cfg_attr(
    target_arch = "x86_64",
    allow(
        clippy::pointers_in_nomem_asm_block,
        reason = "nothing is read or written through it"
    )
)]
pub(super) fn in_register<T>(pointer: *mut T) -> *mut T {
    #[cfg(target_arch = "x86_64")]
    {
        let mut pointer = pointer;
        // SAFETY: no instruction at all; the compiler alone cannot know that the register is unchanged.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) pointer, options(pure, nomem, nostack, preserves_flags));
        }
        pointer
    }
    #[cfg(not(target_arch = "x86_64"))]
    pointer
}
