//! Integer and float arithmetic, comparisons, and the packing of registers.

use std::num::FpCategory;

use super::warp::{LANES, Lanes, lanes};
use super::word::{Real, Word};
use super::{Machine, Warp};
use crate::fault::{Cause, Trap, Trapped};
use crate::instruction::{
    Bool, Compare, Float, FloatBinary, FloatTest, FloatUnary, Guard, Int, IntBinary, IntTernary,
    IntUnary, Number, Op, Slot, WordTernary,
};

/// Runs an expression with `$t` as the integer's Rust type.
macro_rules! with_int {
    ($int:expr, $t:ident => $body:expr) => {
        match $int {
            Int::U16 => {
                type $t = u16;
                $body
            }
            Int::S16 => {
                type $t = i16;
                $body
            }
            Int::U32 => {
                type $t = u32;
                $body
            }
            Int::S32 => {
                type $t = i32;
                $body
            }
            Int::U64 => {
                type $t = u64;
                $body
            }
            Int::S64 => {
                type $t = i64;
                $body
            }
        }
    };
}
pub(super) use with_int;

macro_rules! with_float {
    ($float:expr, $t:ident => $body:expr) => {
        match $float {
            Float::F32 => {
                type $t = f32;
                $body
            }
            Float::F64 => {
                type $t = f64;
                $body
            }
        }
    };
}

impl Bool {
    pub(super) fn of(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

/// The low `count` bits.
fn low(count: u32) -> u64 {
    if count >= 64 {
        u64::MAX
    } else {
        (1 << count) - 1
    }
}

/// Bits `position..position + length`; above the field the sign, if there is one.
fn extract(value: u64, width: u32, signed: bool, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let inside = length.min(width.saturating_sub(position));
    let field = if position < width {
        value >> position & low(inside)
    } else {
        0
    };
    let top = (position + length).saturating_sub(1).min(width - 1);
    if signed && length > 0 && value >> top & 1 == 1 {
        (field | !low(inside)) & low(width)
    } else {
        field
    }
}

/// `into` with the low `length` bits of `value` at `position`.
fn insert(value: u64, into: u64, width: u32, position: u32, length: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let inside = length.min(width.saturating_sub(position));
    if inside == 0 {
        return into;
    }
    into & !(low(inside) << position) | (value & low(inside)) << position
}

fn lop3(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let mut out = 0;
    for row in 0..8 {
        if table >> row & 1 == 1 {
            out |= (if row & 4 == 0 { !a } else { a })
                & (if row & 2 == 0 { !b } else { b })
                & (if row & 1 == 0 { !c } else { c });
        }
    }
    out
}

fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let mut out = [0; 4];
    for (i, byte) in out.iter_mut().enumerate() {
        let choice = selector >> (4 * i) & 0xf;
        let value = bytes[(choice & 7) as usize];
        *byte = if choice & 8 == 0 {
            value
        } else if value >> 7 == 1 {
            0xff
        } else {
            0
        };
    }
    u32::from_le_bytes(out)
}

fn compared<T: PartialOrd>(compare: Compare, a: T, b: T) -> bool {
    #[allow(clippy::eq_op)]
    let nan = a != a || b != b;
    match compare {
        Compare::Equal => a == b,
        Compare::NotEqual => a != b && !nan,
        Compare::Less => a < b,
        Compare::LessEqual => a <= b,
        Compare::Greater => a > b,
        Compare::GreaterEqual => a >= b,
        Compare::EqualOrNan => a == b || nan,
        Compare::NotEqualOrNan => a != b,
        Compare::LessOrNan => a < b || nan,
        Compare::LessEqualOrNan => a <= b || nan,
        Compare::GreaterOrNan => a > b || nan,
        Compare::GreaterEqualOrNan => a >= b || nan,
        Compare::Numbers => !nan,
        Compare::AnyNan => nan,
    }
}

/// x·y + z in every lane. Without the processor's own instruction, which a program for any processor may not
/// use unasked, each lane is a call.
fn fused_lanes<T: Real>(arch: pulp::Arch, x: &Lanes, y: &Lanes, z: &Lanes) -> Lanes {
    let mut out = [0; LANES];
    arch.dispatch(
        #[inline(always)]
        || {
            for lane in 0..LANES {
                out[lane] = T::of(x[lane]).fused(T::of(y[lane]), T::of(z[lane])).bits();
            }
        },
    );
    out
}

/// Products and quotients are in the width of the type or twice that; `as` cuts off what PTX cuts off.
#[allow(trivial_numeric_casts, clippy::unnecessary_cast)]
impl Warp {
    pub(super) fn int_unary(
        &mut self,
        op: IntUnary,
        int: Int,
        d: Slot,
        a: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        with_int!(int, T => match op {
            IntUnary::Neg => self.unary(d, a, active, m, |x: T| x.wrapping_neg()),
            IntUnary::Abs => self.unary(d, a, active, m, |x: T| {
                if (x as i64) < 0 { x.wrapping_neg() } else { x }
            }),
            IntUnary::Not => self.unary(d, a, active, m, |x: T| !x),
            IntUnary::CountOnes => self.unary(d, a, active, m, |x: T| x.count_ones()),
            IntUnary::LeadingZeros => self.unary(d, a, active, m, |x: T| x.leading_zeros()),
            IntUnary::HighestBit => self.unary(d, a, active, m, |x: T| {
                let x = if T::MIN != 0 && (x as i64) < 0 { !x } else { x };
                (T::BITS - 1).wrapping_sub(x.leading_zeros())
            }),
            IntUnary::ReverseBits => self.unary(d, a, active, m, |x: T| x.reverse_bits()),
        })
    }

    pub(super) fn int_binary(
        &mut self,
        op: IntBinary,
        int: Int,
        d: Slot,
        ab: (Slot, Slot),
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        if matches!(op, IntBinary::Div | IntBinary::Rem) {
            let divisors = self.read(ab.1, active, m)?;
            if let Some(lane) = lanes(active).find(|lane| divisors[*lane] == 0) {
                return Err(Trap::new(lane as u32, Cause::DivisionByZero));
            }
        }
        with_int!(int, T => match op {
            IntBinary::Add => self.binary(d, ab, active, m, |x: T, y: T| x.wrapping_add(y)),
            IntBinary::Sub => self.binary(d, ab, active, m, |x: T, y: T| x.wrapping_sub(y)),
            IntBinary::MulLow => self.binary(d, ab, active, m, |x: T, y: T| x.wrapping_mul(y)),
            IntBinary::MulHigh => self.binary(d, ab, active, m, |x: T, y: T| {
                ((x as i128).wrapping_mul(y as i128) >> T::BITS) as T
            }),
            IntBinary::MulWide => self.binary(d, ab, active, m, |x: T, y: T| {
                (x as i64).wrapping_mul(y as i64) as u64 & low(2 * T::BITS)
            }),
            // Zero stands in lanes that are not active at most.
            IntBinary::Div => self.binary(d, ab, active, m, |x: T, y: T| {
                if y == 0 { 0 } else { x.wrapping_div(y) }
            }),
            IntBinary::Rem => self.binary(d, ab, active, m, |x: T, y: T| {
                if y == 0 { 0 } else { x.wrapping_rem(y) }
            }),
            IntBinary::Min => self.binary(d, ab, active, m, |x: T, y: T| x.min(y)),
            IntBinary::Max => self.binary(d, ab, active, m, |x: T, y: T| x.max(y)),
            IntBinary::And => self.binary(d, ab, active, m, |x: T, y: T| x & y),
            IntBinary::Or => self.binary(d, ab, active, m, |x: T, y: T| x | y),
            IntBinary::Xor => self.binary(d, ab, active, m, |x: T, y: T| x ^ y),
            IntBinary::ShiftLeft => self.binary(d, ab, active, m, |x: T, y: u32| {
                x.checked_shl(y).unwrap_or(0)
            }),
            IntBinary::ShiftRight => self.binary(d, ab, active, m, |x: T, y: u32| {
                // Signs fill in from the left.
                let filled = if T::MIN != 0 && (x as i64) < 0 { !0 } else { 0 };
                x.checked_shr(y).unwrap_or(filled)
            }),
        })
    }

    pub(super) fn int_ternary(
        &mut self,
        op: IntTernary,
        int: Int,
        d: Slot,
        abc: (Slot, Slot, Slot),
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        with_int!(int, T => match op {
            IntTernary::MadLow => self.ternary(d, abc, active, m, |x: T, y: T, z: T| {
                x.wrapping_mul(y).wrapping_add(z)
            }),
            IntTernary::MadHigh => self.ternary(d, abc, active, m, |x: T, y: T, z: T| {
                (((x as i128).wrapping_mul(y as i128) >> T::BITS) as T).wrapping_add(z)
            }),
            IntTernary::MadWide => self.ternary(d, abc, active, m, |x: T, y: T, z: u64| {
                ((x as i64).wrapping_mul(y as i64) as u64).wrapping_add(z) & low(2 * T::BITS)
            }),
            IntTernary::ExtractBits => self.ternary(d, abc, active, m, |x: T, y: u32, z: u32| {
                extract(x.bits(), T::BITS, T::MIN != 0, y, z)
            }),
        })
    }

    pub(super) fn word_ternary(
        &mut self,
        op: WordTernary,
        d: Slot,
        abc: (Slot, Slot, Slot),
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        let amount = |c: u32, clamp: bool| if clamp { c.min(32) } else { c & 31 };
        let pair = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
        match op {
            WordTernary::Lop3(table) => {
                self.ternary(d, abc, active, m, |x: u32, y: u32, z: u32| {
                    lop3(table, x, y, z)
                })
            }
            WordTernary::PermuteBytes => {
                self.ternary(d, abc, active, m, |x: u32, y: u32, z: u32| permute(x, y, z))
            }
            WordTernary::FunnelLeft { clamp } => {
                self.ternary(d, abc, active, m, |x: u32, y: u32, z: u32| {
                    (pair(x, y) << amount(z, clamp) >> 32) as u32
                })
            }
            WordTernary::FunnelRight { clamp } => {
                self.ternary(d, abc, active, m, |x: u32, y: u32, z: u32| {
                    (pair(x, y) >> amount(z, clamp)) as u32
                })
            }
        }
    }

    pub(super) fn insert_bits(
        &mut self,
        int: Int,
        d: Slot,
        [a, b, position, length]: [Slot; 4],
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        let width = with_int!(int, T => T::BITS);
        let lengths = *self.read(length, active, m)?;
        let positions = *self.read(position, active, m)?;
        let (a, b) = (*self.read(a, active, m)?, *self.read(b, active, m)?);
        let out = std::array::from_fn(|l| {
            insert(a[l], b[l], width, positions[l] as u32, lengths[l] as u32)
        });
        self.write(d, active, &out);
        Ok(())
    }

    pub(super) fn pack(&mut self, op: &Op, active: u32, m: &Machine<'_>) -> Trapped<()> {
        match op {
            Op::Pack { d, parts, bits } => {
                let mut out = [0; LANES];
                for (i, part) in parts.iter().enumerate() {
                    let part = self.read(*part, active, m)?;
                    for lane in 0..LANES {
                        out[lane] |= part[lane] << (usize::from(*bits) * i);
                    }
                }
                self.write(*d, active, &out);
            }
            Op::Unpack { parts, a, bits } => {
                let a = *self.read(*a, active, m)?;
                for (i, part) in parts.iter().enumerate() {
                    let Some(part) = part else { continue };
                    let out = a.map(|v| v >> (usize::from(*bits) * i) & low(u32::from(*bits)));
                    self.write(*part, active, &out);
                }
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn float_unary(
        &mut self,
        op: FloatUnary,
        float: Float,
        d: Slot,
        a: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        with_float!(float, T => match op {
            FloatUnary::Abs => self.real_unary::<T>(d, a, active, m, T::absolute),
            FloatUnary::Neg => self.real_unary::<T>(d, a, active, m, T::negative),
            FloatUnary::Sqrt => self.real_unary::<T>(d, a, active, m, T::root),
            FloatUnary::Reciprocal => self.real_unary::<T>(d, a, active, m, T::reciprocal),
        })
    }

    fn real_unary<T: Real>(
        &mut self,
        d: Slot,
        a: Slot,
        active: u32,
        m: &Machine<'_>,
        f: impl Fn(T) -> T,
    ) -> Trapped<()> {
        let mut out = [0; LANES];
        let values = self.read(a, active, m)?;
        for lane in 0..LANES {
            out[lane] = f(T::of(values[lane])).bits();
        }
        self.write_float::<T>(d, active, &mut out, &[a], m)
    }

    pub(super) fn float_binary(
        &mut self,
        op: FloatBinary,
        float: Float,
        d: Slot,
        ab: (Slot, Slot),
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        with_float!(float, T => match op {
            FloatBinary::Add => self.real_binary(d, ab, active, m, T::plus),
            FloatBinary::Sub => self.real_binary(d, ab, active, m, T::minus),
            FloatBinary::Mul => self.real_binary(d, ab, active, m, T::times),
            FloatBinary::Div => self.real_binary(d, ab, active, m, T::over),
            FloatBinary::Min => self.real_binary(d, ab, active, m, T::smaller),
            FloatBinary::Max => self.real_binary(d, ab, active, m, T::larger),
            FloatBinary::MinNan => self.real_binary(d, ab, active, m, |x: T, y: T| {
                if x.is_nan() || y.is_nan() { T::NAN } else { x.smaller(y) }
            }),
            FloatBinary::MaxNan => self.real_binary(d, ab, active, m, |x: T, y: T| {
                if x.is_nan() || y.is_nan() { T::NAN } else { x.larger(y) }
            }),
            FloatBinary::CopySign => self.real_binary(d, ab, active, m, T::sign_to),
        })
    }

    fn real_binary<T: Real>(
        &mut self,
        d: Slot,
        (a, b): (Slot, Slot),
        active: u32,
        m: &Machine<'_>,
        f: impl Fn(T, T) -> T,
    ) -> Trapped<()> {
        let mut out = [0; LANES];
        let (x, y) = (self.read(a, active, m)?, self.read(b, active, m)?);
        for lane in 0..LANES {
            out[lane] = f(T::of(x[lane]), T::of(y[lane])).bits();
        }
        self.write_float::<T>(d, active, &mut out, &[a, b], m)
    }

    pub(super) fn fma(
        &mut self,
        float: Float,
        d: Slot,
        abc: [Slot; 3],
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        with_float!(float, T => {
            let [x, y, z] = abc;
            let (x, y) = (self.read(x, active, m)?, self.read(y, active, m)?);
            let mut out = fused_lanes::<T>(m.arch, x, y, self.read(z, active, m)?);
            self.write_float::<T>(d, active, &mut out, &abc, m)
        })
    }

    pub(super) fn test_float(
        &mut self,
        test: FloatTest,
        float: Float,
        p: u32,
        a: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        let a = self.read(a, active, m)?;
        let mut holds = 0;
        for lane in 0..LANES {
            let class = with_float!(float, T => T::of(a[lane]).classify());
            let is = match test {
                FloatTest::Finite => !matches!(class, FpCategory::Nan | FpCategory::Infinite),
                FloatTest::Infinite => class == FpCategory::Infinite,
                FloatTest::Number => class != FpCategory::Nan,
                FloatTest::NotANumber => class == FpCategory::Nan,
                // Zeros count as normal.
                FloatTest::Normal => matches!(class, FpCategory::Normal | FpCategory::Zero),
                FloatTest::Subnormal => class == FpCategory::Subnormal,
            };
            holds |= u32::from(is) << lane;
        }
        self.set_predicate(p, active, holds);
        Ok(())
    }

    /// Lanes in which the comparison holds.
    pub(super) fn compare(
        &self,
        compare: Compare,
        number: Number,
        a: Slot,
        b: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<u32> {
        let (a, b) = (self.read(a, active, m)?, self.read(b, active, m)?);
        let mut holds = 0;
        macro_rules! all_lanes {
            ($t:ident) => {
                for lane in 0..LANES {
                    holds |= u32::from(compared(compare, $t::of(a[lane]), $t::of(b[lane]))) << lane;
                }
            };
        }
        match number {
            Number::Int(int) => with_int!(int, T => all_lanes!(T)),
            Number::Float(float) => with_float!(float, T => all_lanes!(T)),
        }
        Ok(holds)
    }

    pub(super) fn set_compared(
        &mut self,
        holds: u32,
        combine: Option<(Bool, Guard)>,
        p: Option<u32>,
        q: Option<u32>,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        let (mut first, mut second) = (holds, !holds);
        if let Some((op, guard)) = combine {
            let other = self.guard(guard, active, m)?;
            (first, second) = (op.of(first, other), op.of(second, other));
        }
        for (target, value) in [(p, first), (q, second)] {
            if let Some(target) = target {
                self.set_predicate(target, active, value);
            }
        }
        Ok(())
    }
}
