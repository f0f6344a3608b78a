//! Instructions in which lanes of a warp work together.

use super::arithmetic::int;
use super::modifiers::Modifiers;
use super::operands::{Operands, Width};
use super::{Decoder, Parsed};
use crate::instruction::{Mma, MmaElement, Op, Reduce, ShuffleMode, Slot, Space, Vote};
use crate::syntax::{Operand, ScalarType};

use ScalarType::{B16, B32, Bf16, F16, F32, Pred, S32, Tf32, U32};

/// Products `m16n8k*`: shape, element, depth, registers of A.
const PRODUCTS: [(&str, ScalarType, MmaElement, u8, usize); 6] = [
    ("m16n8k4", Tf32, MmaElement::Tf32, 4, 2),
    ("m16n8k8", Tf32, MmaElement::Tf32, 8, 4),
    ("m16n8k8", F16, MmaElement::F16, 8, 2),
    ("m16n8k8", Bf16, MmaElement::Bf16, 8, 2),
    ("m16n8k16", F16, MmaElement::F16, 16, 4),
    ("m16n8k16", Bf16, MmaElement::Bf16, 16, 4),
];

const REDUCTIONS: [(&str, Reduce); 6] = [
    ("add", Reduce::Add),
    ("min", Reduce::Min),
    ("max", Reduce::Max),
    ("and", Reduce::And),
    ("or", Reduce::Or),
    ("xor", Reduce::Xor),
];

impl Decoder {
    pub(super) fn exchange(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        if m.base() == "activemask" {
            m.ty(&[B32])?;
            return Ok(Op::ActiveMask {
                d: self.destination(o, B32)?,
            });
        }
        if !m.has("sync") {
            return Err(m.expected("`.sync`: the forms without it are gone since sm_70"));
        }
        match m.base() {
            "shfl" => self.shuffle(m, o),
            "vote" => self.vote(m, o),
            "redux" => {
                let op = m.required(&REDUCTIONS)?;
                let ty = m.ty(match op {
                    Reduce::Add | Reduce::Min | Reduce::Max => &[U32, S32],
                    _ => &[B32],
                })?;
                let (d, a) = (self.destination(o, ty)?, self.source(o, ty)?);
                let members = self.source(o, B32)?;
                Ok(Op::ReduceLanes {
                    op,
                    int: int(ty),
                    d,
                    a,
                    members,
                })
            }
            "mma" => self.mma(m, o),
            _ => self.load_matrix(m, o),
        }
    }

    fn shuffle(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let mode = m.required(&[
            ("up", ShuffleMode::Up),
            ("down", ShuffleMode::Down),
            ("bfly", ShuffleMode::Butterfly),
            ("idx", ShuffleMode::Index),
        ])?;
        m.ty(&[B32])?;
        let target = o.next("a register to write")?;
        let (d, p) = match target {
            Operand::Pair(d, p) => {
                let p = if p == "_" {
                    None
                } else {
                    Some(self.predicate(o, p)?)
                };
                (&Operand::Name(d.clone()), p)
            }
            single => (single, None),
        };
        let (d, _) = self.register(o, d, B32, Width::Exact)?;
        let (a, b) = (self.source(o, B32)?, self.source(o, B32)?);
        let (c, members) = (self.source(o, B32)?, self.source(o, B32)?);
        Ok(Op::Shuffle {
            mode,
            d,
            p,
            a,
            b,
            c,
            members,
        })
    }

    fn vote(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        if m.has("ballot") {
            m.ty(&[B32])?;
            let d = self.destination(o, B32)?;
            let a = self.predicate_source(o)?;
            let members = self.source(o, B32)?;
            return Ok(Op::Ballot { d, a, members });
        }
        let vote = m.required(&[
            ("all", Vote::All),
            ("any", Vote::Any),
            ("uni", Vote::Uniform),
        ])?;
        m.ty(&[Pred])?;
        let p = self.predicate_destination(o)?;
        let a = self.predicate_source(o)?;
        let members = self.source(o, B32)?;
        Ok(Op::Vote {
            vote,
            p,
            a,
            members,
        })
    }

    /// `mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 d, a, b, c`
    fn mma(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        const SHAPES: [(&str, &str); 3] = [
            ("m16n8k4", "m16n8k4"),
            ("m16n8k8", "m16n8k8"),
            ("m16n8k16", "m16n8k16"),
        ];
        let aligned = m.has("aligned");
        let shape = m.required(&SHAPES)?;
        if !aligned || !m.has("row") || !m.has("col") {
            return Err(m.expected("`mma.sync.aligned.….row.col`"));
        }
        m.ty(&[F32])?;
        let ty = m.ty(&[Tf32, F16, Bf16])?;
        m.ty(&[ty])?;
        m.ty(&[F32])?;
        let Some((_, _, element, depth, a_registers)) =
            PRODUCTS.iter().find(|p| p.0 == shape && p.1 == ty).copied()
        else {
            return Err(m.expected("m16n8k4 or k8 of tf32, m16n8k8 or k16 of f16 or bf16"));
        };
        let d = self.four(o, F32)?;
        let a = self.slots(o, B32, a_registers)?;
        let b = self.slots(o, B32, a_registers / 2)?;
        let c = self.slots(o, F32, 4)?;
        let c = [c[0], c[1], c[2], c[3]];
        Ok(Op::Mma(Box::new(Mma {
            element,
            depth,
            d,
            a,
            b,
            c,
        })))
    }

    fn slots(&mut self, o: &mut Operands<'_>, ty: ScalarType, count: usize) -> Parsed<Vec<Slot>> {
        let values = self.sources(o, ty, count, Width::Exact)?;
        Ok(values.into_iter().map(|(slot, _)| slot).collect())
    }

    fn four(&self, o: &mut Operands<'_>, ty: ScalarType) -> Parsed<[Slot; 4]> {
        let mut slots = [0; 4];
        for (slot, register) in slots.iter_mut().zip(self.written(o, ty, 4)?) {
            *slot = register;
        }
        Ok(slots)
    }

    /// Registers to write, all of them.
    fn written(&self, o: &mut Operands<'_>, ty: ScalarType, count: usize) -> Parsed<Vec<Slot>> {
        self.registers(o, ty, count, Width::Exact)?
            .into_iter()
            .map(|register| match register {
                Some((slot, _)) => Ok(slot),
                None => Err(o.refuse(&Operand::Sink, "a register")),
            })
            .collect()
    }

    fn load_matrix(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        let whole = m.has("aligned") && m.has("m8n8");
        let count = m.required(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
        let transposed = m.has("trans");
        let shared = m.has("shared") || m.has("shared::cta");
        m.ty(&[B16])?;
        if !whole || !shared {
            return Err(m.expected("`ldmatrix.sync.aligned.m8n8.….shared.b16`"));
        }
        let values = self.written(o, B32, count)?;
        let address = self.address(o, Space::Shared)?;
        Ok(Op::LoadMatrix {
            values,
            transposed,
            address,
        })
    }
}
