//! Moves and conversions.

use super::arithmetic::float;
use super::modifiers::Modifiers;
use super::operands::{Operands, Width};
use super::{Decoder, Parsed};
use crate::instruction::{Conversion, Integer, Op, Packed, Rounding};
use crate::memory::SHARED_WINDOW;
use crate::syntax::{Operand, ScalarType};

use ScalarType::{
    B16, B32, B64, Bf16, Bf16x2, F16, F16x2, F32, F64, Pred, S8, S16, S32, S64, Tf32, U8, U16, U32,
    U64,
};

const INTEGRAL: [(&str, Rounding); 4] = [
    ("rni", Rounding::Nearest),
    ("rzi", Rounding::Zero),
    ("rmi", Rounding::Down),
    ("rpi", Rounding::Up),
];

impl Decoder {
    pub(super) fn conversion(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        match m.base() {
            "mov" => self.mov(m, o),
            "cvt" => self.convert(m, o),
            _ => self.convert_address(m, o),
        }
    }

    fn mov(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let ty = m.ty(&[
            Pred, B16, B32, B64, U16, S16, U32, S32, U64, S64, F16, F32, F64,
        ])?;
        if ty == Pred {
            let p = self.predicate_destination(o)?;
            return match o.next("a predicate, 0 or 1")? {
                Operand::Integer {
                    bits: bits @ (0 | 1),
                    negative: false,
                } => Ok(Op::PredicateConstant {
                    p,
                    value: *bits == 1,
                }),
                Operand::Name(name) => Ok(Op::PredicateMove {
                    p,
                    a: self.guard(o.line, name, false)?,
                }),
                other => Err(o.refuse(other, "a predicate, 0 or 1")),
            };
        }
        let target = o.next("a register to write")?;
        let value = o.next("a value")?;
        let part = |count: usize| match (ty.bytes() / count, ty.is_untyped()) {
            (2, true) => Ok(B16),
            (4, true) => Ok(B32),
            _ => Err(o.refuse(
                target,
                "`mov.b32` of two 16-bit or `mov.b64` of two or four values",
            )),
        };
        match (target, value) {
            (Operand::Vector(parts), value) => {
                let part = part(parts.len())?;
                let parts = parts
                    .iter()
                    .map(|p| match p {
                        Operand::Sink => Ok(None),
                        _ => self
                            .register(o, p, part, Width::Exact)
                            .map(|(slot, _)| Some(slot)),
                    })
                    .collect::<Parsed<_>>()?;
                let (a, _) = self.resolve(o, value, ty, Width::Exact)?;
                Ok(Op::Unpack {
                    parts,
                    a,
                    bits: 8 * part.bytes() as u8,
                })
            }
            (target, Operand::Vector(parts)) => {
                let part = part(parts.len())?;
                let (d, _) = self.register(o, target, ty, Width::Exact)?;
                let parts = parts
                    .iter()
                    .map(|p| self.resolve(o, p, part, Width::Exact).map(|(slot, _)| slot))
                    .collect::<Parsed<_>>()?;
                Ok(Op::Pack {
                    d,
                    parts,
                    bits: 8 * part.bytes() as u8,
                })
            }
            (target, value) => {
                let (d, _) = self.register(o, target, ty, Width::Exact)?;
                let (a, _) = self.resolve(o, value, ty, Width::Exact)?;
                Ok(Op::Move { d, a })
            }
        }
    }

    fn convert(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        const ALL: [ScalarType; 15] = [
            U8, S8, U16, S16, U32, S32, U64, S64, F32, F64, F16, Bf16, Tf32, F16x2, Bf16x2,
        ];
        let to = m.ty(&ALL)?;
        let from = m.ty(&ALL)?;
        if matches!(to, F16x2 | Bf16x2) {
            if from != F32 || !m.has("rn") {
                return Err(m.expected("`cvt.rn.…x2.f32`"));
            }
            let d = self.destination(o, to)?;
            let (a, b) = (self.source(o, F32)?, self.source(o, F32)?);
            let to = if to == F16x2 {
                Packed::F16
            } else {
                Packed::Bf16
            };
            return Ok(Op::ConvertPair { to, d, a, b });
        }
        let target = o.next("a register to write")?;
        let (d, width) = self.register(o, target, to, Width::AtLeast)?;
        let value = o.next("a value to convert")?;
        let (a, _) = self.resolve(o, value, from, Width::AtLeast)?;
        let conversion = self.conversion_between(m, from, to, width as u8)?;
        Ok(Op::Convert { conversion, d, a })
    }

    fn conversion_between(
        &self,
        m: &mut Modifiers<'_>,
        from: ScalarType,
        to: ScalarType,
        destination: u8,
    ) -> Parsed<Conversion> {
        let integer = |ty: ScalarType| Integer {
            bytes: ty.bytes() as u8,
            signed: ty.is_signed(),
        };
        let nearest = |m: &mut Modifiers<'_>| {
            if m.has("rn") {
                Ok(())
            } else {
                Err(m.expected("`.rn`"))
            }
        };
        match (from, to) {
            (F32, F32) => Ok(Conversion::F32ToF32(m.one_of(&INTEGRAL))),
            (F64, F64) => Ok(Conversion::F64ToF64(m.one_of(&INTEGRAL))),
            (F32, F64) => Ok(Conversion::F32ToF64),
            (F64, F32) => nearest(m).map(|()| Conversion::F64ToF32),
            (F32, F16) => nearest(m).map(|()| Conversion::F32ToF16),
            (F32, Bf16) => nearest(m).map(|()| Conversion::F32ToBf16),
            (F16, F32) => Ok(Conversion::F16ToF32),
            (Bf16, F32) => Ok(Conversion::Bf16ToF32),
            (F32, Tf32) => {
                if m.has("rna") {
                    Ok(Conversion::F32ToTf32)
                } else {
                    Err(m.expected("`cvt.rna.tf32.f32`"))
                }
            }
            (from, to) if !from.is_float() && !to.is_float() => Ok(Conversion::IntToInt {
                from: integer(from),
                to: integer(to),
                saturate: m.has("sat"),
                destination,
            }),
            (from, to) if !from.is_float() => {
                let Some(to) = float(to) else {
                    return Err(m.expected("f32 or f64 as the other type"));
                };
                nearest(m)?;
                Ok(Conversion::IntToFloat {
                    from: integer(from),
                    to,
                })
            }
            (from, to) if !to.is_float() => {
                let Some(from) = float(from) else {
                    return Err(m.expected("f32 or f64 as the other type"));
                };
                let rounding = m.required(&INTEGRAL)?;
                // Conversions to integers saturate with or without it.
                m.has("sat");
                Ok(Conversion::FloatToInt {
                    from,
                    to: integer(to),
                    rounding,
                    destination,
                })
            }
            _ => Err(
                m.expected("a conversion among integers, f32, f64, and f16, bf16, tf32 with f32")
            ),
        }
    }

    /// `cvta{.to}.space.u64 d, a`
    fn convert_address(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let to = m.has("to");
        let shared = m.required(&[
            ("global", false),
            ("const", false),
            ("shared", true),
            ("shared::cta", true),
        ])?;
        m.ty(&[U64])?;
        let (d, a) = (self.destination(o, U64)?, self.source(o, U64)?);
        Ok(match (shared, to) {
            (false, _) => Op::Move { d, a },
            (true, false) => Op::MoveWindow {
                d,
                a,
                add: SHARED_WINDOW,
            },
            (true, true) => Op::MoveWindow {
                d,
                a,
                add: SHARED_WINDOW.wrapping_neg(),
            },
        })
    }
}
