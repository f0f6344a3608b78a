//! Conversions between types.

use half::{bf16, f16};

use super::{Machine, Warp};
use crate::fault::Trapped;
use crate::instruction::{Conversion, Element, Float, Integer, Packed, Rounding, Slot};

/// Zeros the lowest bit-13 boundary below which the hardware reads nothing of a tf32 operand.
pub(super) const TF32_BITS: u32 = 0xffff_e000;

fn width_mask(bytes: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(bytes))
}

/// The low `from` bytes, sign-extended or zero-extended to `to` bytes.
pub(super) fn extend(value: u64, from: u8, signed: bool, to: u8) -> u64 {
    let unused = 64 - 8 * u32::from(from);
    let wide = if signed {
        ((value << unused) as i64 >> unused) as u64
    } else {
        value & width_mask(from)
    };
    wide & width_mask(to)
}

pub(super) fn extend_element(value: u64, element: Element) -> u64 {
    extend(value, element.bytes, element.signed, element.register)
}

fn range(integer: Integer) -> (i128, i128) {
    let bits = 8 * u32::from(integer.bytes);
    if integer.signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

fn int_to_int(value: u64, from: Integer, to: Integer, saturate: bool, destination: u8) -> u64 {
    let mut cut = value;
    if saturate {
        let wide = extend(value, from.bytes, from.signed, 8);
        let exact = if from.signed {
            i128::from(wide as i64)
        } else {
            i128::from(wide)
        };
        let (low, high) = range(to);
        cut = exact.clamp(low, high) as u64;
    } else if from.bytes < to.bytes {
        cut = extend(value, from.bytes, from.signed, to.bytes);
    }
    extend(cut, to.bytes, to.signed, destination)
}

fn integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// Out of range gives the nearest value in range, NaN gives 0.
fn float_to_int(value: f64, to: Integer, rounding: Rounding, destination: u8) -> u64 {
    let (low, high) = range(to);
    let exact = integral(value, rounding) as i128;
    extend(
        exact.clamp(low, high) as u64,
        to.bytes,
        to.signed,
        destination,
    )
}

/// To the nearest of 10 bits, ties away from zero, as `cvt.rna.tf32.f32`.
fn to_tf32(value: f32) -> f32 {
    if value.is_finite() {
        f32::from_bits((value.to_bits() + 0x1000) & TF32_BITS)
    } else {
        value
    }
}

fn half_bits(value: f32, to: Packed) -> u16 {
    match (to, value.is_nan()) {
        (_, true) => 0x7fff,
        (Packed::F16, _) => f16::from_f32(value).to_bits(),
        (Packed::Bf16, _) => bf16::from_f32(value).to_bits(),
    }
}

impl Warp {
    pub(super) fn convert(
        &mut self,
        conversion: Conversion,
        d: Slot,
        a: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        match conversion {
            Conversion::IntToInt {
                from,
                to,
                saturate,
                destination,
            } => self.unary(d, a, active, m, |x: u64| {
                int_to_int(x, from, to, saturate, destination)
            }),
            Conversion::IntToFloat { from, to } => {
                let wide = |x: u64| extend(x, from.bytes, from.signed, 8);
                match (to, from.signed) {
                    (Float::F32, true) => self.unary(d, a, active, m, |x| wide(x) as i64 as f32),
                    (Float::F32, false) => self.unary(d, a, active, m, |x| wide(x) as f32),
                    (Float::F64, true) => self.unary(d, a, active, m, |x| wide(x) as i64 as f64),
                    (Float::F64, false) => self.unary(d, a, active, m, |x| wide(x) as f64),
                }
            }
            Conversion::FloatToInt {
                from: Float::F32,
                to,
                rounding,
                destination,
            } => self.unary(d, a, active, m, |x: f32| {
                float_to_int(f64::from(x), to, rounding, destination)
            }),
            Conversion::FloatToInt {
                from: Float::F64,
                to,
                rounding,
                destination,
            } => self.unary(d, a, active, m, |x: f64| {
                float_to_int(x, to, rounding, destination)
            }),
            Conversion::F32ToF32(None) => self.unary(d, a, active, m, |x: f32| x),
            Conversion::F64ToF64(None) => self.unary(d, a, active, m, |x: f64| x),
            Conversion::F32ToF32(Some(rounding)) => self.unary(d, a, active, m, |x: f32| {
                integral(f64::from(x), rounding) as f32
            }),
            Conversion::F64ToF64(Some(rounding)) => {
                self.unary(d, a, active, m, |x: f64| integral(x, rounding))
            }
            Conversion::F32ToF64 => self.unary(d, a, active, m, |x: f32| f64::from(x)),
            Conversion::F64ToF32 => self.unary(d, a, active, m, |x: f64| x as f32),
            Conversion::F32ToF16 => self.unary(d, a, active, m, |x: f32| half_bits(x, Packed::F16)),
            Conversion::F32ToBf16 => {
                self.unary(d, a, active, m, |x: f32| half_bits(x, Packed::Bf16))
            }
            Conversion::F16ToF32 => {
                self.unary(d, a, active, m, |x: u16| f16::from_bits(x).to_f32())
            }
            Conversion::Bf16ToF32 => {
                self.unary(d, a, active, m, |x: u16| bf16::from_bits(x).to_f32())
            }
            Conversion::F32ToTf32 => self.unary(d, a, active, m, to_tf32),
        }
    }

    pub(super) fn convert_pair(
        &mut self,
        to: Packed,
        d: Slot,
        ab: (Slot, Slot),
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        self.binary(d, ab, active, m, |a: f32, b: f32| {
            u32::from(half_bits(a, to)) << 16 | u32::from(half_bits(b, to))
        })
    }
}
