//! Branches, exits and barriers.

use super::modifiers::Modifiers;
use super::operands::Operands;
use super::{Decoder, Parsed};
use crate::instruction::{BarrierReduce, Op, Space};
use crate::syntax::ScalarType;

use ScalarType::{B32, Pred, U32};

impl Decoder {
    pub(super) fn control(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        match m.base() {
            "bra" => {
                m.has("uni");
                self.branch_to(o)
            }
            "ret" | "exit" => {
                m.has("uni");
                Ok(Op::Exit)
            }
            "trap" => Ok(Op::Trap),
            // Every access is performed at once and in order here; what fences are for is the race rule's.
            "fence" | "membar" => {
                m.drop_all(|part| {
                    matches!(
                        part,
                        "acq_rel"
                            | "sc"
                            | "acquire"
                            | "release"
                            | "cta"
                            | "cluster"
                            | "gpu"
                            | "gl"
                            | "sys"
                    )
                });
                Ok(Op::Nothing)
            }
            "prefetch" => {
                m.drop_all(|part| matches!(part, "L1" | "L2" | "global"));
                self.address(o, Space::Global)?;
                Ok(Op::Nothing)
            }
            _ => self.barrier(m, o),
        }
    }

    /// `bar.sync`, `barrier.sync`, `bar.arrive`, `bar.red`, `bar.warp.sync`.
    fn barrier(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        if m.has("warp") {
            if !m.has("sync") {
                return Err(m.expected("`bar.warp.sync`"));
            }
            return Ok(Op::WarpBarrier {
                members: self.source(o, B32)?,
            });
        }
        m.has("cta");
        m.has("aligned");
        if m.has("sync") {
            let id = self.source(o, U32)?;
            let threads = if o.left() > 0 {
                Some(self.source(o, U32)?)
            } else {
                None
            };
            return Ok(Op::Barrier {
                id,
                threads,
                reduce: None,
            });
        }
        if m.has("arrive") {
            let (id, threads) = (self.source(o, U32)?, self.source(o, U32)?);
            return Ok(Op::Arrive { id, threads });
        }
        if !m.has("red") {
            return Err(m.expected("`.sync`, `.arrive`, `.red` or `.warp.sync`"));
        }
        #[derive(Clone, Copy)]
        enum Kind {
            Count,
            All,
            Any,
        }
        let kind = m.required(&[("popc", Kind::Count), ("and", Kind::All), ("or", Kind::Any)])?;
        m.ty(match kind {
            Kind::Count => &[U32],
            _ => &[Pred],
        })?;
        let target = match kind {
            Kind::Count => self.destination(o, U32)?,
            _ => self.predicate_destination(o)?,
        };
        let id = self.source(o, U32)?;
        let threads = if o.left() > 1 {
            Some(self.source(o, U32)?)
        } else {
            None
        };
        let source = self.predicate_source(o)?;
        let reduce = Some(match kind {
            Kind::Count => BarrierReduce::Count { d: target, source },
            Kind::All => BarrierReduce::All { d: target, source },
            Kind::Any => BarrierReduce::Any { d: target, source },
        });
        Ok(Op::Barrier {
            id,
            threads,
            reduce,
        })
    }
}
