//! What instructions do.

mod access;
mod arithmetic;
mod barrier;
mod block;
mod convert;
mod copies;
mod exchange;
mod machine;
mod mma;
mod warp;
mod word;

pub(crate) use barrier::Barriers;
pub(crate) use block::run;
pub(crate) use machine::Machine;
pub(crate) use warp::Warp;

use crate::fault::{Cause, Trap, Trapped};
use crate::instruction::{Op, Slot};

use warp::{LANES, Lanes, first_lane};
use word::{Real, Word};

impl Warp {
    /// Executes an instruction that changes no way through the code.
    fn execute(&mut self, op: &Op, active: u32, machine: &mut Machine<'_>) -> Trapped<()> {
        match op {
            Op::Move { d, a } => self.unary(*d, *a, active, machine, |x: u64| x),
            Op::MoveWindow { d, a, add } => {
                let add = *add;
                self.unary(*d, *a, active, machine, |x: u64| x.wrapping_add(add))
            }
            Op::Pack { .. } | Op::Unpack { .. } => self.pack(op, active, machine),
            Op::IntUnary { op, int, d, a } => self.int_unary(*op, *int, *d, *a, active, machine),
            Op::IntBinary { op, int, d, a, b } => {
                self.int_binary(*op, *int, *d, (*a, *b), active, machine)
            }
            Op::IntTernary {
                op,
                int,
                d,
                a,
                b,
                c,
            } => self.int_ternary(*op, *int, *d, (*a, *b, *c), active, machine),
            Op::WordTernary { op, d, a, b, c } => {
                self.word_ternary(*op, *d, (*a, *b, *c), active, machine)
            }
            Op::InsertBits {
                int,
                d,
                a,
                b,
                position,
                length,
            } => self.insert_bits(*int, *d, [*a, *b, *position, *length], active, machine),
            Op::FloatUnary { op, float, d, a } => {
                self.float_unary(*op, *float, *d, *a, active, machine)
            }
            Op::FloatBinary { op, float, d, a, b } => {
                self.float_binary(*op, *float, *d, (*a, *b), active, machine)
            }
            Op::Fma { float, d, a, b, c } => self.fma(*float, *d, [*a, *b, *c], active, machine),
            Op::TestFloat { test, float, p, a } => {
                self.test_float(*test, *float, *p, *a, active, machine)
            }
            Op::SetPredicate {
                compare,
                number,
                combine,
                p,
                q,
                a,
                b,
            } => {
                let holds = self.compare(*compare, *number, *a, *b, active, machine)?;
                self.set_compared(holds, *combine, *p, *q, active, machine)
            }
            Op::Select { d, a, b, p } => {
                let p = self.guard(*p, active, machine)?;
                // The operand that is not selected need not be defined.
                let (a_values, b_values) = (
                    *self.read(*a, active & p, machine)?,
                    *self.read(*b, active & !p, machine)?,
                );
                let out = std::array::from_fn(|l| {
                    if p >> l & 1 == 1 {
                        a_values[l]
                    } else {
                        b_values[l]
                    }
                });
                self.write(*d, active, &out);
                Ok(())
            }
            Op::PredicateMove { p, a } => {
                let value = self.guard(*a, active, machine)?;
                self.set_predicate(*p, active, value);
                Ok(())
            }
            Op::PredicateConstant { p, value } => {
                self.set_predicate(*p, active, if *value { u32::MAX } else { 0 });
                Ok(())
            }
            Op::PredicateLogic { op, p, a, b } => {
                let (a, b) = (
                    self.guard(*a, active, machine)?,
                    self.guard(*b, active, machine)?,
                );
                self.set_predicate(*p, active, op.of(a, b));
                Ok(())
            }
            Op::Convert { conversion, d, a } => self.convert(*conversion, *d, *a, active, machine),
            Op::ConvertPair { to, d, a, b } => {
                self.convert_pair(*to, *d, (*a, *b), active, machine)
            }
            Op::LoadParameter {
                values,
                offset,
                element,
            } => {
                self.load_parameter(values, *offset, *element, active, machine);
                Ok(())
            }
            Op::Load {
                values,
                address,
                element,
                order,
            } => self.load(values, *address, *element, *order, active, machine),
            Op::Store {
                values,
                address,
                element,
                order,
            } => self.store(values, *address, *element, *order, active, machine),
            Op::Atomic {
                op,
                element,
                d,
                address,
                b,
                c,
            } => self.atomic(*op, *element, *d, (*address, *b, *c), active, machine),
            Op::CopyAsync {
                to,
                from,
                bytes,
                source_bytes,
            } => self.copy_async((*to, *from), *bytes, *source_bytes, active, machine),
            Op::CopyCommit => {
                self.copies.commit(active);
                Ok(())
            }
            Op::CopyWait { pending } => self.copy_wait(Some(*pending), active, machine),
            Op::CopyWaitAll => self.copy_wait(None, active, machine),
            Op::Shuffle { .. } => self.shuffle(op, active, machine),
            Op::Vote {
                vote,
                p,
                a,
                members,
            } => self.vote(*vote, *p, *a, *members, active, machine),
            Op::Ballot { d, a, members } => self.ballot(*d, *a, *members, active, machine),
            Op::ActiveMask { d } => {
                self.write(*d, active, &[u64::from(active); LANES]);
                Ok(())
            }
            Op::ReduceLanes {
                op,
                int,
                d,
                a,
                members,
            } => self.reduce_lanes((*op, *int), *d, *a, *members, active, machine),
            Op::Mma(mma) => self.mma(mma, active, machine),
            Op::LoadMatrix {
                values,
                transposed,
                address,
            } => self.load_matrix(values, *transposed, *address, active, machine),
            Op::WarpBarrier { members } => self.warp_barrier(*members, active, machine),
            Op::Trap => Err(Trap::new(first_lane(active), Cause::Trap)),
            // The others change the way through the code and are dealt with there.
            Op::Nothing | Op::Branch { .. } | Op::Exit | Op::Barrier { .. } | Op::Arrive { .. } => {
                Ok(())
            }
        }
    }

    /// A register of which all active lanes are defined.
    #[inline]
    fn read(&self, slot: Slot, active: u32, machine: &Machine<'_>) -> Trapped<&Lanes> {
        let undefined = active & !self.defined[slot as usize];
        if undefined != 0 {
            return Err(undefined_register(machine, slot, undefined));
        }
        Ok(&self.registers[slot as usize])
    }

    /// Writes active lanes of a register.
    #[inline]
    fn write(&mut self, slot: Slot, active: u32, values: &Lanes) {
        let register = &mut self.registers[slot as usize];
        if active == u32::MAX {
            *register = *values;
        } else {
            for lane in 0..LANES {
                if active >> lane & 1 == 1 {
                    register[lane] = values[lane];
                }
            }
        }
        self.defined[slot as usize] |= active;
    }

    #[inline]
    fn unary<T: Word, U: Word>(
        &mut self,
        d: Slot,
        a: Slot,
        active: u32,
        machine: &Machine<'_>,
        f: impl Fn(T) -> U,
    ) -> Trapped<()> {
        let mut out = [0; LANES];
        let a = self.read(a, active, machine)?;
        for lane in 0..LANES {
            out[lane] = f(T::of(a[lane])).bits();
        }
        self.write(d, active, &out);
        Ok(())
    }

    #[inline]
    fn binary<T: Word, S: Word, U: Word>(
        &mut self,
        d: Slot,
        (a, b): (Slot, Slot),
        active: u32,
        machine: &Machine<'_>,
        f: impl Fn(T, S) -> U,
    ) -> Trapped<()> {
        let mut out = [0; LANES];
        let (a, b) = (
            self.read(a, active, machine)?,
            self.read(b, active, machine)?,
        );
        for lane in 0..LANES {
            out[lane] = f(T::of(a[lane]), S::of(b[lane])).bits();
        }
        self.write(d, active, &out);
        Ok(())
    }

    #[inline]
    fn ternary<T: Word, S: Word, R: Word, U: Word>(
        &mut self,
        d: Slot,
        (a, b, c): (Slot, Slot, Slot),
        active: u32,
        machine: &Machine<'_>,
        f: impl Fn(T, S, R) -> U,
    ) -> Trapped<()> {
        let mut out = [0; LANES];
        let (a, b) = (
            self.read(a, active, machine)?,
            self.read(b, active, machine)?,
        );
        let c = self.read(c, active, machine)?;
        for lane in 0..LANES {
            out[lane] = f(T::of(a[lane]), S::of(b[lane]), R::of(c[lane])).bits();
        }
        self.write(d, active, &out);
        Ok(())
    }

    /// Writes results of float arithmetic, after a look for NaNs that come from numbers.
    #[inline]
    fn write_float<T: Real>(
        &mut self,
        d: Slot,
        active: u32,
        out: &mut Lanes,
        operands: &[Slot],
        machine: &Machine<'_>,
    ) -> Trapped<()> {
        let mut nan = 0;
        for lane in 0..LANES {
            nan |= u32::from(T::of(out[lane]).not_a_number()) << lane;
        }
        nan &= active;
        if nan != 0 {
            self.found_nan::<T>(d, nan, out, operands, machine)?;
        }
        self.write(d, active, out);
        Ok(())
    }

    /// Makes the NaNs the one the hardware gives; traps one that no operand brought in.
    #[cold]
    fn found_nan<T: Real>(
        &self,
        d: Slot,
        nan: u32,
        out: &mut Lanes,
        operands: &[Slot],
        machine: &Machine<'_>,
    ) -> Trapped<()> {
        for lane in warp::lanes(nan) {
            let values: Vec<T> = operands
                .iter()
                .map(|s| T::of(self.registers[*s as usize][lane]))
                .collect();
            if machine.options.trap_nan && !values.iter().any(|v| v.not_a_number()) {
                let cause = Cause::NotANumber {
                    register: machine.kernel.slot_name(d).to_owned(),
                    operands: format!("{values:?}"),
                };
                return Err(Trap::new(lane as u32, cause));
            }
            out[lane] = T::NAN_OF_THE_DEVICE.bits();
        }
        Ok(())
    }
}

#[cold]
fn undefined_register(machine: &Machine<'_>, slot: Slot, lanes: u32) -> Box<Trap> {
    let name = machine.kernel.slot_name(slot).to_owned();
    Trap::new(first_lane(lanes), Cause::UndefinedRegister { name })
}
