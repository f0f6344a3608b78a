//! Loads, stores, atomics and asynchronous copies.

use super::arithmetic::float;
use super::modifiers::Modifiers;
use super::operands::{Operands, Width};
use super::{Decoder, Named, Parsed};
use crate::instruction::{AtomicOp, Element, Op, Order, Slot, Space};
use crate::syntax::{Operand, ParseError, ScalarType};

use ScalarType::{B8, B16, B32, B64, F16, F16x2, F32, F64, S8, S16, S32, S64, U8, U16, U32, U64};

const MEMORY_TYPES: [ScalarType; 14] = [
    U8, S8, B8, U16, S16, B16, U32, S32, B32, U64, S64, B64, F32, F64,
];

const SPACES: [(&str, Space); 4] = [
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("const", Space::Constant),
];

const ATOMICS: [(&str, AtomicOp); 10] = [
    ("add", AtomicOp::Add),
    ("min", AtomicOp::Min),
    ("max", AtomicOp::Max),
    ("and", AtomicOp::And),
    ("or", AtomicOp::Or),
    ("xor", AtomicOp::Xor),
    ("inc", AtomicOp::Increment),
    ("dec", AtomicOp::Decrement),
    ("exch", AtomicOp::Exchange),
    ("cas", AtomicOp::CompareAndSwap),
];

fn is_cache_hint(part: &str) -> bool {
    matches!(part, "ca" | "cg" | "cs" | "cv" | "lu" | "wb" | "wt")
        || part.starts_with("L1::")
        || matches!(part, "L2::64B" | "L2::128B" | "L2::256B")
}

fn is_scope(part: &str) -> bool {
    matches!(part, "cta" | "cluster" | "gpu" | "sys")
}

fn element(ty: ScalarType, register: usize) -> Element {
    Element {
        bytes: ty.bytes() as u8,
        signed: ty.is_signed(),
        float: float(ty),
        register: register as u8,
    }
}

impl Decoder {
    pub(super) fn access(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        match m.base() {
            "ld" => self.load(m, o),
            "st" => self.store(m, o),
            "cp" => self.copy_async(m, o),
            _ => self.atomic(m, o),
        }
    }

    /// Volatile, relaxed, acquire and release accesses do not race among themselves.
    fn order(&self, m: &mut Modifiers<'_>, strongest: &str) -> Order {
        let strong = m.has("volatile") | m.has("relaxed") | m.has(strongest);
        if strong {
            m.drop_all(is_scope);
            return Order::Strong;
        }
        m.has("weak");
        Order::Plain
    }

    fn vector(m: &mut Modifiers<'_>) -> usize {
        m.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1)
    }

    fn load(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let mut order = self.order(m, "acquire");
        let parameter = m.has("param");
        let space = m.one_of(&SPACES).unwrap_or(Space::Generic);
        if m.has("nc") {
            order = Order::ReadOnly;
        }
        m.drop_all(is_cache_hint);
        let count = Self::vector(m);
        let ty = m.ty(&MEMORY_TYPES)?;
        if count * ty.bytes() > 16 {
            return Err(m.expected("at most 16 bytes"));
        }
        let registers = self.registers(o, ty, count, Width::AtLeast)?;
        let widths: Vec<_> = registers
            .iter()
            .flatten()
            .map(|(_, width)| *width)
            .collect();
        let Some(width) = widths.first().copied() else {
            return Err(m.expected("at least one register to load"));
        };
        if widths.iter().any(|w| *w != width) {
            return Err(m.expected("registers of one width"));
        }
        let values: Vec<Option<Slot>> = registers
            .into_iter()
            .map(|r| r.map(|(slot, _)| slot))
            .collect();
        let element = element(ty, width);
        if parameter {
            let offset = self.parameter(o, count * ty.bytes())?;
            let Some(values) = values.into_iter().collect::<Option<Vec<_>>>() else {
                return Err(m.expected("registers for all elements"));
            };
            return Ok(Op::LoadParameter {
                values,
                offset,
                element,
            });
        }
        let address = self.address(o, space)?;
        Ok(Op::Load {
            values,
            address,
            element,
            order,
        })
    }

    /// The offset of `[parameter+offset]`, of which so many bytes are read.
    fn parameter(&self, o: &mut Operands<'_>, read: usize) -> Parsed<u32> {
        let operand = o.next("a parameter in brackets")?;
        if let Operand::Address { base, offset } = operand
            && let Operand::Name(name) = &**base
            && let Some(Named::Parameter {
                offset: start,
                bytes,
            }) = self.lookup(name)
        {
            let inside = usize::try_from(*offset)
                .ok()
                .filter(|at| at + read <= bytes);
            return match inside {
                Some(at) if (start + at).is_multiple_of(read) => Ok((start + at) as u32),
                Some(_) => Err(o.refuse(base, &format!("an offset that is a multiple of {read}"))),
                None => Err(o.refuse(
                    base,
                    &format!("{read} bytes inside the {bytes} bytes of `{name}`"),
                )),
            };
        }
        Err(o.refuse(operand, "a parameter of this kernel in brackets"))
    }

    fn store(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let order = self.order(m, "release");
        let space = m.one_of(&SPACES[..3]).unwrap_or(Space::Generic);
        m.drop_all(is_cache_hint);
        let count = Self::vector(m);
        let ty = m.ty(&MEMORY_TYPES)?;
        if count * ty.bytes() > 16 {
            return Err(m.expected("at most 16 bytes"));
        }
        let address = self.address(o, space)?;
        let values = self.sources(o, ty, count, Width::AtLeast)?;
        let values = values.into_iter().map(|(slot, _)| slot).collect();
        Ok(Op::Store {
            values,
            address,
            element: element(ty, ty.bytes()),
            order,
        })
    }

    fn atomic(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let returns = m.base() == "atom";
        m.drop_all(|part| matches!(part, "relaxed" | "acquire" | "release" | "acq_rel"));
        m.drop_all(is_scope);
        let space = m.one_of(&SPACES[..3]).unwrap_or(Space::Generic);
        let op = m.required(&ATOMICS)?;
        let types: &[ScalarType] = match op {
            AtomicOp::Add => &[U32, S32, U64, S64, F32, F64, F16, F16x2],
            AtomicOp::Min | AtomicOp::Max => &[U32, S32, U64, S64],
            AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => &[B32, B64],
            AtomicOp::Increment | AtomicOp::Decrement => &[U32],
            AtomicOp::Exchange | AtomicOp::CompareAndSwap => &[B32, B64],
        };
        if m.has("noftz") {
            return Err(float_atomic(m));
        }
        let ty = m.ty(types)?;
        if ty.is_float() {
            return Err(float_atomic(m));
        }
        let d = if returns {
            Some(self.destination(o, ty)?)
        } else {
            None
        };
        let address = self.address(o, space)?;
        let b = self.source(o, ty)?;
        let c = if op == AtomicOp::CompareAndSwap {
            self.source(o, ty)?
        } else {
            b
        };
        Ok(Op::Atomic {
            op,
            element: element(ty, ty.bytes()),
            d,
            address,
            b,
            c,
        })
    }

    fn copy_async(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        if !m.has("async") {
            return Err(m.unknown());
        }
        if m.has("commit_group") {
            return Ok(Op::CopyCommit);
        }
        if m.has("wait_all") {
            return Ok(Op::CopyWaitAll);
        }
        if m.has("wait_group") {
            return Ok(Op::CopyWait {
                pending: o.constant("a number of groups")?,
            });
        }
        let sizes: &[u32] = m.required(&[("ca", [4, 8, 16].as_slice()), ("cg", &[16])])?;
        let place = m.has("shared") || m.has("shared::cta");
        if !place || !m.has("global") {
            return Err(m.expected("`cp.async.ca.shared.global` or `cp.async.cg.shared.global`"));
        }
        m.drop_all(is_cache_hint);
        let to = self.address(o, Space::Shared)?;
        let from = self.address(o, Space::Global)?;
        let bytes = o.constant("a number of bytes")?;
        if !sizes.contains(&bytes) {
            return Err(m.expected(&format!("a size among {sizes:?}")));
        }
        let source_bytes = if o.left() > 0 {
            Some(self.source(o, U32)?)
        } else {
            None
        };
        Ok(Op::CopyAsync {
            to,
            from,
            bytes: bytes as u8,
            source_bytes,
        })
    }
}

fn float_atomic(m: &Modifiers<'_>) -> ParseError {
    m.expected(
        "no float atomic: the order of its additions, and so the result, differs from run to run",
    )
}
