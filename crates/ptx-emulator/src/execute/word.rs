//! Values of registers as Rust types.

use std::fmt::Debug;

/// A type that a register can hold; narrower ones stand in the low bits, zero-extended.
pub(super) trait Word: Copy {
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! integers {
    ($($ty:ident $unsigned:ident)*) => {$(
        impl Word for $ty {
            #[inline]
            fn of(bits: u64) -> Self {
                bits as $unsigned as Self
            }
            #[inline]
            fn bits(self) -> u64 {
                self as $unsigned as u64
            }
        }
    )*};
}

#[allow(trivial_numeric_casts)]
mod casts {
    use super::Word;
    integers!(u16 u16 i16 u16 u32 u32 i32 u32 u64 u64 i64 u64);
}

impl Word for f32 {
    #[inline]
    fn of(bits: u64) -> Self {
        Self::from_bits(bits as u32)
    }
    #[inline]
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Word for f64 {
    #[inline]
    fn of(bits: u64) -> Self {
        Self::from_bits(bits)
    }
    #[inline]
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// f32 and f64, with what PTX says of them beyond IEEE 754.
pub(super) trait Real: Word + PartialOrd + Debug {
    /// The NaN that arithmetic gives.
    const NAN_OF_THE_DEVICE: Self;
    fn not_a_number(self) -> bool;
    fn absolute(self) -> Self;
    fn negative(self) -> Self;
    fn root(self) -> Self;
    fn reciprocal(self) -> Self;
    fn plus(self, b: Self) -> Self;
    fn minus(self, b: Self) -> Self;
    fn times(self, b: Self) -> Self;
    fn over(self, b: Self) -> Self;
    /// self · b + c, rounded once.
    fn fused(self, b: Self, c: Self) -> Self;
    /// The sign of `self` on `b`.
    fn sign_to(self, b: Self) -> Self;
    fn is_negative(self) -> bool;

    /// The smaller; −0 is smaller than +0, and a NaN gives way to a number.
    #[inline]
    fn smaller(self, b: Self) -> Self {
        if self.not_a_number() {
            b
        } else if b.not_a_number() || self < b || (self == b && self.is_negative()) {
            self
        } else {
            b
        }
    }

    /// The larger, with the same rules.
    #[inline]
    fn larger(self, b: Self) -> Self {
        if self.not_a_number() {
            b
        } else if b.not_a_number() || self > b || (self == b && b.is_negative()) {
            self
        } else {
            b
        }
    }
}

macro_rules! reals {
    ($($ty:ident $nan:expr;)*) => {$(
        impl Real for $ty {
            const NAN_OF_THE_DEVICE: Self = Self::from_bits($nan);
            #[inline]
            fn not_a_number(self) -> bool {
                self.is_nan()
            }
            #[inline]
            fn absolute(self) -> Self {
                self.abs()
            }
            #[inline]
            fn negative(self) -> Self {
                -self
            }
            #[inline]
            fn root(self) -> Self {
                self.sqrt()
            }
            #[inline]
            fn reciprocal(self) -> Self {
                1.0 / self
            }
            #[inline]
            fn plus(self, b: Self) -> Self {
                self + b
            }
            #[inline]
            fn minus(self, b: Self) -> Self {
                self - b
            }
            #[inline]
            fn times(self, b: Self) -> Self {
                self * b
            }
            #[inline]
            fn over(self, b: Self) -> Self {
                self / b
            }
            #[inline]
            fn fused(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }
            #[inline]
            fn sign_to(self, b: Self) -> Self {
                b.copysign(self)
            }
            #[inline]
            fn is_negative(self) -> bool {
                self.is_sign_negative()
            }
        }
    )*};
}

reals! {
    f32 0x7fff_ffff;
    f64 0xfff8_0000_0000_0000;
}
