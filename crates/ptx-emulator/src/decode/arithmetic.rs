//! Arithmetic, logic and comparisons.

use super::modifiers::Modifiers;
use super::operands::{Operands, Width};
use super::{Decoder, Parsed};
use crate::instruction::{
    Bool, Compare, Float, FloatBinary, FloatTest, FloatUnary, Guard, Int, IntBinary, IntTernary,
    IntUnary, Number, Op, WordTernary,
};
use crate::syntax::{Operand, ScalarType};

use ScalarType::{B16, B32, B64, F32, F64, Pred, S16, S32, S64, U16, U32, U64};

pub(super) const NUMBERS: [ScalarType; 8] = [U16, S16, U32, S32, U64, S64, F32, F64];

pub(super) fn int(ty: ScalarType) -> Int {
    match ty {
        S16 => Int::S16,
        U32 | B32 => Int::U32,
        S32 => Int::S32,
        U64 | B64 => Int::U64,
        S64 => Int::S64,
        _ => Int::U16,
    }
}

pub(super) fn float(ty: ScalarType) -> Option<Float> {
    match ty {
        F32 => Some(Float::F32),
        F64 => Some(Float::F64),
        _ => None,
    }
}

fn number(ty: ScalarType) -> Number {
    float(ty).map_or_else(|| Number::Int(int(ty)), Number::Float)
}

/// The type of twice the width.
fn wide(ty: ScalarType) -> ScalarType {
    match ty {
        U16 => U32,
        S16 => S32,
        U32 => U64,
        _ => S64,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Low,
    High,
    Wide,
}

const PARTS: [(&str, Part); 3] = [("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)];

const BOOLS: [(&str, Bool); 3] = [("and", Bool::And), ("or", Bool::Or), ("xor", Bool::Xor)];

const ORDERED: [(&str, Compare); 6] = [
    ("eq", Compare::Equal),
    ("ne", Compare::NotEqual),
    ("lt", Compare::Less),
    ("le", Compare::LessEqual),
    ("gt", Compare::Greater),
    ("ge", Compare::GreaterEqual),
];

const UNSIGNED: [(&str, Compare); 4] = [
    ("lo", Compare::Less),
    ("ls", Compare::LessEqual),
    ("hi", Compare::Greater),
    ("hs", Compare::GreaterEqual),
];

const WITH_NAN: [(&str, Compare); 8] = [
    ("equ", Compare::EqualOrNan),
    ("neu", Compare::NotEqualOrNan),
    ("ltu", Compare::LessOrNan),
    ("leu", Compare::LessEqualOrNan),
    ("gtu", Compare::GreaterOrNan),
    ("geu", Compare::GreaterEqualOrNan),
    ("num", Compare::Numbers),
    ("nan", Compare::AnyNan),
];

const TESTS: [(&str, FloatTest); 6] = [
    ("finite", FloatTest::Finite),
    ("infinite", FloatTest::Infinite),
    ("number", FloatTest::Number),
    ("notanumber", FloatTest::NotANumber),
    ("normal", FloatTest::Normal),
    ("subnormal", FloatTest::Subnormal),
];

impl Decoder {
    pub(super) fn arithmetic(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        match m.base() {
            "add" => self.sum(m, o, IntBinary::Add, FloatBinary::Add),
            "sub" => self.sum(m, o, IntBinary::Sub, FloatBinary::Sub),
            "mul" => self.product(m, o),
            "mad" => self.multiply_add(m, o),
            "fma" => self.fma(m, o),
            "div" => {
                let ty = m.ty(&NUMBERS)?;
                match float(ty) {
                    Some(f) => {
                        self.rounded(m)?;
                        self.float_binary(o, ty, f, FloatBinary::Div)
                    }
                    None => self.int_binary(o, ty, IntBinary::Div),
                }
            }
            "rem" => {
                let ty = m.ty(&[U16, S16, U32, S32, U64, S64])?;
                self.int_binary(o, ty, IntBinary::Rem)
            }
            "min" => self.extreme(
                m,
                o,
                IntBinary::Min,
                [FloatBinary::Min, FloatBinary::MinNan],
            ),
            "max" => self.extreme(
                m,
                o,
                IntBinary::Max,
                [FloatBinary::Max, FloatBinary::MaxNan],
            ),
            "abs" => self.sign(m, o, IntUnary::Abs, FloatUnary::Abs),
            "neg" => self.sign(m, o, IntUnary::Neg, FloatUnary::Neg),
            "sqrt" => self.root(m, o, FloatUnary::Sqrt),
            "rcp" => self.root(m, o, FloatUnary::Reciprocal),
            "copysign" => {
                let ty = m.ty(&[F32, F64])?;
                let f = float(ty).unwrap_or(Float::F32);
                self.float_binary(o, ty, f, FloatBinary::CopySign)
            }
            "and" => self.logic(m, o, IntBinary::And, Bool::And),
            "or" => self.logic(m, o, IntBinary::Or, Bool::Or),
            "xor" => self.logic(m, o, IntBinary::Xor, Bool::Xor),
            "not" => {
                let ty = m.ty(&[Pred, B16, B32, B64])?;
                if ty == Pred {
                    let p = self.predicate_destination(o)?;
                    let a = self.predicate_source(o)?;
                    return Ok(Op::PredicateMove {
                        p,
                        a: Guard {
                            negated: !a.negated,
                            ..a
                        },
                    });
                }
                self.int_unary(o, ty, ty, IntUnary::Not)
            }
            "shl" => {
                let ty = m.ty(&[B16, B32, B64])?;
                self.shift(o, ty, IntBinary::ShiftLeft)
            }
            "shr" => {
                let ty = m.ty(&[B16, B32, B64, U16, S16, U32, S32, U64, S64])?;
                self.shift(o, ty, IntBinary::ShiftRight)
            }
            "popc" => self.count(m, o, IntUnary::CountOnes, &[B32, B64]),
            "clz" => self.count(m, o, IntUnary::LeadingZeros, &[B32, B64]),
            "bfind" => self.count(m, o, IntUnary::HighestBit, &[U32, S32, U64, S64]),
            "brev" => {
                let ty = m.ty(&[B32, B64])?;
                self.int_unary(o, ty, ty, IntUnary::ReverseBits)
            }
            "bfe" => {
                let ty = m.ty(&[U32, S32, U64, S64])?;
                let (d, a) = (self.destination(o, ty)?, self.source(o, ty)?);
                let (b, c) = (self.source(o, U32)?, self.source(o, U32)?);
                Ok(Op::IntTernary {
                    op: IntTernary::ExtractBits,
                    int: int(ty),
                    d,
                    a,
                    b,
                    c,
                })
            }
            "bfi" => {
                let ty = m.ty(&[B32, B64])?;
                let d = self.destination(o, ty)?;
                let (a, b) = (self.source(o, ty)?, self.source(o, ty)?);
                let (position, length) = (self.source(o, U32)?, self.source(o, U32)?);
                Ok(Op::InsertBits {
                    int: int(ty),
                    d,
                    a,
                    b,
                    position,
                    length,
                })
            }
            "lop3" => {
                m.ty(&[B32])?;
                let (d, a) = (self.destination(o, B32)?, self.source(o, B32)?);
                let (b, c) = (self.source(o, B32)?, self.source(o, B32)?);
                let table = o.constant("a table from 0 to 255")?;
                let Ok(table) = u8::try_from(table) else {
                    return Err(m.expected("a table from 0 to 255"));
                };
                Ok(Op::WordTernary {
                    op: WordTernary::Lop3(table),
                    d,
                    a,
                    b,
                    c,
                })
            }
            "prmt" => {
                m.ty(&[B32])?;
                self.word(o, WordTernary::PermuteBytes)
            }
            // shf
            _ => {
                let left = m.required(&[("l", true), ("r", false)])?;
                let clamp = m.required(&[("clamp", true), ("wrap", false)])?;
                m.ty(&[B32])?;
                let op = if left {
                    WordTernary::FunnelLeft { clamp }
                } else {
                    WordTernary::FunnelRight { clamp }
                };
                self.word(o, op)
            }
        }
    }

    fn word(&mut self, o: &mut Operands<'_>, op: WordTernary) -> Parsed<Op> {
        let (d, a) = (self.destination(o, B32)?, self.source(o, B32)?);
        let (b, c) = (self.source(o, B32)?, self.source(o, B32)?);
        Ok(Op::WordTernary { op, d, a, b, c })
    }

    /// The rounding that must be there.
    fn rounded(&self, m: &mut Modifiers<'_>) -> Parsed<()> {
        if m.has("rn") {
            Ok(())
        } else {
            Err(m.expected("`.rn`"))
        }
    }

    /// `.rn` of an operation that may be contracted without it.
    fn contractible(&mut self, m: &mut Modifiers<'_>) {
        if !m.has("rn") {
            self.contractible_lines.push(m.line());
        }
    }

    fn sum(
        &mut self,
        m: &mut Modifiers<'_>,
        o: &mut Operands<'_>,
        whole: IntBinary,
        real: FloatBinary,
    ) -> Parsed<Op> {
        let ty = m.ty(&NUMBERS)?;
        match float(ty) {
            Some(f) => {
                self.contractible(m);
                self.float_binary(o, ty, f, real)
            }
            None => self.int_binary(o, ty, whole),
        }
    }

    fn product(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let ty = m.ty(&NUMBERS)?;
        if let Some(f) = float(ty) {
            self.contractible(m);
            return self.float_binary(o, ty, f, FloatBinary::Mul);
        }
        let part = m.required(&PARTS)?;
        if part == Part::Wide && ty.bytes() == 8 {
            return Err(m.expected("a type of 16 or 32 bits with `.wide`"));
        }
        let to = if part == Part::Wide { wide(ty) } else { ty };
        let d = self.destination(o, to)?;
        let (a, b) = (self.source(o, ty)?, self.source(o, ty)?);
        let op = match part {
            Part::Low => IntBinary::MulLow,
            Part::High => IntBinary::MulHigh,
            Part::Wide => IntBinary::MulWide,
        };
        Ok(Op::IntBinary {
            op,
            int: int(ty),
            d,
            a,
            b,
        })
    }

    fn multiply_add(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let ty = m.ty(&NUMBERS)?;
        if let Some(f) = float(ty) {
            self.rounded(m)?;
            return self.float_ternary(o, ty, f);
        }
        let part = m.required(&PARTS)?;
        if part == Part::Wide && ty.bytes() == 8 {
            return Err(m.expected("a type of 16 or 32 bits with `.wide`"));
        }
        let to = if part == Part::Wide { wide(ty) } else { ty };
        let d = self.destination(o, to)?;
        let (a, b) = (self.source(o, ty)?, self.source(o, ty)?);
        let c = self.source(o, to)?;
        let op = match part {
            Part::Low => IntTernary::MadLow,
            Part::High => IntTernary::MadHigh,
            Part::Wide => IntTernary::MadWide,
        };
        Ok(Op::IntTernary {
            op,
            int: int(ty),
            d,
            a,
            b,
            c,
        })
    }

    fn fma(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let ty = m.ty(&[F32, F64])?;
        self.rounded(m)?;
        self.float_ternary(o, ty, float(ty).unwrap_or(Float::F32))
    }

    fn float_ternary(&mut self, o: &mut Operands<'_>, ty: ScalarType, float: Float) -> Parsed<Op> {
        let (d, a) = (self.destination(o, ty)?, self.source(o, ty)?);
        let (b, c) = (self.source(o, ty)?, self.source(o, ty)?);
        Ok(Op::Fma { float, d, a, b, c })
    }

    fn extreme(
        &mut self,
        m: &mut Modifiers<'_>,
        o: &mut Operands<'_>,
        whole: IntBinary,
        real: [FloatBinary; 2],
    ) -> Parsed<Op> {
        let ty = m.ty(&NUMBERS)?;
        match float(ty) {
            Some(f) => {
                let nan = usize::from(m.has("NaN"));
                self.float_binary(o, ty, f, real[nan])
            }
            None => self.int_binary(o, ty, whole),
        }
    }

    fn sign(
        &mut self,
        m: &mut Modifiers<'_>,
        o: &mut Operands<'_>,
        whole: IntUnary,
        real: FloatUnary,
    ) -> Parsed<Op> {
        let ty = m.ty(&[S16, S32, S64, F32, F64])?;
        match float(ty) {
            Some(f) => self.float_unary(o, ty, f, real),
            None => self.int_unary(o, ty, ty, whole),
        }
    }

    fn root(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>, op: FloatUnary) -> Parsed<Op> {
        let ty = m.ty(&[F32, F64])?;
        self.rounded(m)?;
        self.float_unary(o, ty, float(ty).unwrap_or(Float::F32), op)
    }

    fn logic(
        &mut self,
        m: &mut Modifiers<'_>,
        o: &mut Operands<'_>,
        whole: IntBinary,
        op: Bool,
    ) -> Parsed<Op> {
        let ty = m.ty(&[Pred, B16, B32, B64])?;
        if ty == Pred {
            let p = self.predicate_destination(o)?;
            let (a, b) = (self.predicate_source(o)?, self.predicate_source(o)?);
            return Ok(Op::PredicateLogic { op, p, a, b });
        }
        self.int_binary(o, ty, whole)
    }

    fn shift(&mut self, o: &mut Operands<'_>, ty: ScalarType, op: IntBinary) -> Parsed<Op> {
        let d = self.destination(o, ty)?;
        let (a, b) = (self.source(o, ty)?, self.source(o, U32)?);
        Ok(Op::IntBinary {
            op,
            int: int(ty),
            d,
            a,
            b,
        })
    }

    fn count(
        &mut self,
        m: &mut Modifiers<'_>,
        o: &mut Operands<'_>,
        op: IntUnary,
        types: &[ScalarType],
    ) -> Parsed<Op> {
        let ty = m.ty(types)?;
        self.int_unary(o, U32, ty, op)
    }

    fn int_unary(
        &mut self,
        o: &mut Operands<'_>,
        to: ScalarType,
        ty: ScalarType,
        op: IntUnary,
    ) -> Parsed<Op> {
        let (d, a) = (self.destination(o, to)?, self.source(o, ty)?);
        Ok(Op::IntUnary {
            op,
            int: int(ty),
            d,
            a,
        })
    }

    fn int_binary(&mut self, o: &mut Operands<'_>, ty: ScalarType, op: IntBinary) -> Parsed<Op> {
        let d = self.destination(o, ty)?;
        let (a, b) = (self.source(o, ty)?, self.source(o, ty)?);
        Ok(Op::IntBinary {
            op,
            int: int(ty),
            d,
            a,
            b,
        })
    }

    fn float_unary(
        &mut self,
        o: &mut Operands<'_>,
        ty: ScalarType,
        float: Float,
        op: FloatUnary,
    ) -> Parsed<Op> {
        let (d, a) = (self.destination(o, ty)?, self.source(o, ty)?);
        Ok(Op::FloatUnary { op, float, d, a })
    }

    fn float_binary(
        &mut self,
        o: &mut Operands<'_>,
        ty: ScalarType,
        float: Float,
        op: FloatBinary,
    ) -> Parsed<Op> {
        let d = self.destination(o, ty)?;
        let (a, b) = (self.source(o, ty)?, self.source(o, ty)?);
        Ok(Op::FloatBinary { op, float, d, a, b })
    }

    pub(super) fn comparison(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        match m.base() {
            "setp" => self.set_predicate(m, o),
            "selp" => {
                let ty = m.ty(&[B16, B32, B64, U16, S16, U32, S32, U64, S64, F32, F64])?;
                let d = self.destination(o, ty)?;
                let (a, b) = (self.source(o, ty)?, self.source(o, ty)?);
                let p = self.predicate_source(o)?;
                Ok(Op::Select { d, a, b, p })
            }
            // testp
            _ => {
                let test = m.required(&TESTS)?;
                let ty = m.ty(&[F32, F64])?;
                let p = self.predicate_destination(o)?;
                let a = self.source(o, ty)?;
                Ok(Op::TestFloat {
                    test,
                    float: float(ty).unwrap_or(Float::F32),
                    p,
                    a,
                })
            }
        }
    }

    /// `setp.lt.and.f32 p|q, a, b, !c`
    fn set_predicate(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let ty = m.ty(&[B16, B32, B64, U16, S16, U32, S32, U64, S64, F32, F64])?;
        let mut table = ORDERED.to_vec();
        if ty.is_float() {
            table.extend(WITH_NAN);
        } else if ty.is_untyped() {
            table.truncate(2);
        } else if !ty.is_signed() {
            table.extend(UNSIGNED);
        }
        let compare = m.required(&table)?;
        let bool_op = m.one_of(&BOOLS);
        let target = o.next("a predicate to write")?;
        let (p, q) = match target {
            Operand::Name(p) => (Some(self.predicate(o, p)?), None),
            Operand::Pair(p, q) => {
                let optional = |name: &str| match name {
                    "_" => Ok(None),
                    _ => self.predicate(o, name).map(Some),
                };
                (optional(p)?, optional(q)?)
            }
            other => return Err(o.refuse(other, "a predicate to write")),
        };
        let left = o.next("a value to compare")?;
        let (a, _) = self.resolve(o, left, ty, Width::Exact)?;
        let b = self.source(o, ty)?;
        let combine = match bool_op {
            Some(op) => Some((op, self.predicate_source(o)?)),
            None => None,
        };
        Ok(Op::SetPredicate {
            compare,
            number: number(ty),
            combine,
            p,
            q,
            a,
            b,
        })
    }
}
