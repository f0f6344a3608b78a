//! The operands of an instruction, taken one by one and resolved to slots.

use super::{Decoder, Named, Parsed};
use crate::instruction::{Address, Guard, Initial, Slot, Space, Special};
use crate::syntax::{Operand, ParseError, ScalarType};

pub(super) struct Operands<'s> {
    pub(super) line: u32,
    opcode: &'s str,
    rest: std::slice::Iter<'s, Operand>,
}

impl<'s> Operands<'s> {
    pub(super) fn new(line: u32, opcode: &'s str, operands: &'s [Operand]) -> Self {
        Self {
            line,
            opcode,
            rest: operands.iter(),
        }
    }

    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn next(&mut self, expected: &str) -> Parsed<&'s Operand> {
        self.rest.next().ok_or_else(|| {
            ParseError::new(self.line, format!("the end of `{}`", self.opcode), expected)
        })
    }

    pub(super) fn refuse(&self, operand: &Operand, expected: &str) -> ParseError {
        ParseError::new(
            self.line,
            format!("{} in `{}`", operand.describe(), self.opcode),
            expected,
        )
    }

    /// A small constant.
    pub(super) fn constant(&mut self, expected: &str) -> Parsed<u32> {
        match self.next(expected)? {
            Operand::Integer {
                bits,
                negative: false,
            } if u32::try_from(*bits).is_ok() => Ok(*bits as u32),
            other => Err(self.refuse(other, expected)),
        }
    }

    pub(super) fn finish(&mut self) -> Parsed<()> {
        match self.rest.next() {
            None => Ok(()),
            Some(operand) => Err(self.refuse(operand, "no further operand")),
        }
    }
}

/// The bits of a constant in the width of `ty`.
pub(super) fn immediate(operand: &Operand, ty: ScalarType) -> Option<u64> {
    match operand {
        Operand::Integer { bits, negative } if !ty.is_float() && ty != ScalarType::Pred => {
            let width = 8 * ty.bytes() as u32;
            let fits = if *negative {
                *bits as i64 >= i64::MIN >> (64 - width)
            } else {
                *bits <= ty.mask()
            };
            fits.then_some(bits & ty.mask())
        }
        Operand::F32(bits) if matches!(ty, ScalarType::F32 | ScalarType::B32) => {
            Some(u64::from(*bits))
        }
        Operand::F64(bits) if matches!(ty, ScalarType::F64 | ScalarType::B64) => Some(*bits),
        Operand::Decimal(value) if ty == ScalarType::F32 => {
            Some(u64::from((*value as f32).to_bits()))
        }
        Operand::Decimal(value) if ty == ScalarType::F64 => Some(value.to_bits()),
        _ => None,
    }
}

fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, 0),
        Some((base, "y")) => (base, 1),
        Some((base, "z")) => (base, 2),
        _ => {
            return Some(match name {
                "%laneid" => Special::Lane,
                "%warpid" => Special::Warp,
                "%nwarpid" => Special::Warps,
                "%lanemask_eq" => Special::LanesEqual,
                "%lanemask_lt" => Special::LanesLess,
                "%lanemask_le" => Special::LanesLessEqual,
                "%lanemask_gt" => Special::LanesGreater,
                "%lanemask_ge" => Special::LanesGreaterEqual,
                "%dynamic_smem_size" => Special::DynamicSharedSize,
                "%total_smem_size" => Special::TotalSharedSize,
                _ => return None,
            });
        }
    };
    Some(match base {
        "%tid" => Special::Thread(axis),
        "%ntid" => Special::Threads(axis),
        "%ctaid" => Special::Block(axis),
        "%nctaid" => Special::Blocks(axis),
        _ => return None,
    })
}

/// How strictly the width of a register must be that of the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Exact,
    /// Loads, stores and conversions take wider registers for integers.
    AtLeast,
}

impl Width {
    fn accepts(self, ty: ScalarType, register: ScalarType) -> bool {
        ty.accepts(register)
            || (self == Self::AtLeast
                && register != ScalarType::Pred
                && !ty.is_float()
                && !register.is_float()
                && register.bytes() >= ty.bytes())
    }
}

impl Decoder {
    /// A value to read.
    pub(super) fn source(&mut self, o: &mut Operands<'_>, ty: ScalarType) -> Parsed<Slot> {
        let operand = o.next(&format!("a {ty} operand"))?;
        self.resolve(o, operand, ty, Width::Exact)
            .map(|(slot, _)| slot)
    }

    /// The slot of a value to read, and the width of its register in bytes.
    pub(super) fn resolve(
        &mut self,
        o: &Operands<'_>,
        operand: &Operand,
        ty: ScalarType,
        width: Width,
    ) -> Parsed<(Slot, usize)> {
        if let Some(bits) = immediate(operand, ty) {
            let slot = self.initial(Initial::Constant(bits), &operand.describe());
            return Ok((slot, ty.bytes()));
        }
        let Operand::Name(name) = operand else {
            return Err(o.refuse(operand, &format!("a {ty} value")));
        };
        match self.lookup(name) {
            Some(Named::Register { slot, ty: register }) if width.accepts(ty, register) => {
                Ok((slot, register.bytes()))
            }
            Some(Named::Register { ty: register, .. }) => Err(o.refuse(
                operand,
                &format!("a {ty} value, and `{name}` is declared {register}"),
            )),
            Some(Named::Variable(initial)) if !ty.is_float() && ty.bytes() >= 4 => {
                Ok((self.initial(initial, name), ty.bytes()))
            }
            None if name == "WARP_SZ" => Ok((self.initial(Initial::Constant(32), name), 4)),
            None => match special(name) {
                Some(special)
                    if ScalarType::U32.accepts(ty) || width.accepts(ty, ScalarType::U32) =>
                {
                    Ok((self.initial(Initial::Special(special), name), 4))
                }
                Some(_) => Err(o.refuse(operand, &format!("a {ty} value, and `{name}` is .u32"))),
                None => Err(o.refuse(operand, "a declared register or variable")),
            },
            Some(_) => Err(o.refuse(operand, &format!("a {ty} value"))),
        }
    }

    /// A register to write.
    pub(super) fn destination(&self, o: &mut Operands<'_>, ty: ScalarType) -> Parsed<Slot> {
        let operand = o.next(&format!("a {ty} register to write"))?;
        self.register(o, operand, ty, Width::Exact)
            .map(|(slot, _)| slot)
    }

    /// The slot of a register to write, and its width in bytes.
    pub(super) fn register(
        &self,
        o: &Operands<'_>,
        operand: &Operand,
        ty: ScalarType,
        width: Width,
    ) -> Parsed<(Slot, usize)> {
        if let Operand::Name(name) = operand {
            match self.lookup(name) {
                Some(Named::Register { slot, ty: register }) if width.accepts(ty, register) => {
                    return Ok((slot, register.bytes()));
                }
                Some(Named::Register { ty: register, .. }) => {
                    return Err(o.refuse(
                        operand,
                        &format!("a {ty} register to write, and `{name}` is declared {register}"),
                    ));
                }
                _ => {}
            }
        }
        Err(o.refuse(operand, &format!("a declared {ty} register to write")))
    }

    /// Registers of a vector operand, or of a single one; `_` writes nowhere.
    pub(super) fn registers(
        &self,
        o: &mut Operands<'_>,
        ty: ScalarType,
        count: usize,
        width: Width,
    ) -> Parsed<Vec<Option<(Slot, usize)>>> {
        let operand = o.next("registers to write")?;
        elements(o, operand, count)?
            .iter()
            .map(|part| match part {
                Operand::Sink => Ok(None),
                _ => self.register(o, part, ty, width).map(Some),
            })
            .collect()
    }

    /// Values of a vector operand, or of a single one.
    pub(super) fn sources(
        &mut self,
        o: &mut Operands<'_>,
        ty: ScalarType,
        count: usize,
        width: Width,
    ) -> Parsed<Vec<(Slot, usize)>> {
        let operand = o.next("values to read")?;
        elements(o, operand, count)?
            .iter()
            .map(|part| self.resolve(o, part, ty, width))
            .collect()
    }

    /// A predicate to write.
    pub(super) fn predicate(&self, o: &Operands<'_>, name: &str) -> Parsed<u32> {
        self.guard(o.line, name, false).map(|guard| guard.predicate)
    }

    pub(super) fn predicate_destination(&self, o: &mut Operands<'_>) -> Parsed<u32> {
        match o.next("a predicate to write")? {
            Operand::Name(name) => self.predicate(o, name),
            other => Err(o.refuse(other, "a predicate to write")),
        }
    }

    /// A predicate to read, possibly negated.
    pub(super) fn predicate_source(&self, o: &mut Operands<'_>) -> Parsed<Guard> {
        match o.next("a predicate")? {
            Operand::Name(name) => self.guard(o.line, name, false),
            Operand::Not(name) => self.guard(o.line, name, true),
            other => Err(o.refuse(other, "a predicate")),
        }
    }

    /// `[register+offset]` or `[variable+offset]`.
    pub(super) fn address(&mut self, o: &mut Operands<'_>, space: Space) -> Parsed<Address> {
        let operand = o.next("an address in brackets")?;
        let Operand::Address { base, offset } = operand else {
            return Err(o.refuse(operand, "an address in brackets"));
        };
        let base = match &**base {
            Operand::Integer { .. } => {
                return Err(o.refuse(base, "an address held in a register or a variable"));
            }
            Operand::Name(name)
                if matches!(
                    self.lookup(name),
                    Some(Named::Register { ty, .. }) if ty.bytes() == 4 && !ty.is_float()
                ) =>
            {
                if space != Space::Shared {
                    return Err(o.refuse(base, "a 64-bit address"));
                }
                self.resolve(o, base, ScalarType::U32, Width::Exact)?.0
            }
            base => self.resolve(o, base, ScalarType::U64, Width::Exact)?.0,
        };
        Ok(Address {
            space,
            base,
            offset: *offset,
        })
    }
}

fn elements<'s>(o: &Operands<'_>, operand: &'s Operand, count: usize) -> Parsed<&'s [Operand]> {
    let parts = match operand {
        Operand::Vector(parts) => parts.as_slice(),
        single => std::slice::from_ref(single),
    };
    if parts.len() == count {
        Ok(parts)
    } else {
        let expected = if count == 1 {
            "a single value".into()
        } else {
            format!("a vector of {count}")
        };
        Err(o.refuse(operand, &expected))
    }
}
