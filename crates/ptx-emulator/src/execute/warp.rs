//! A warp: 32 lanes in lock step, their registers, and the ways they are on.

use crate::fault::{Cause, Trap, Trapped};
use crate::instruction::{BarrierReduce, Guard, Initial, Op, Slot, Special};
use crate::memory::Moment;

use super::barrier::Waiting;
use super::copies::Copies;
use super::machine::Machine;

pub(crate) const LANES: usize = 32;

/// One register of all lanes.
pub(crate) type Lanes = [u64; LANES];

/// Lanes that run together until they reach `join`.
#[derive(Clone, Copy, Debug)]
struct Frame {
    pc: u32,
    join: u32,
    mask: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub(crate) index: u32,
    /// Lanes that exist.
    pub(crate) all: u32,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    pub(crate) registers: Vec<Lanes>,
    /// For each register, the lanes that have written it.
    pub(crate) defined: Vec<u32>,
    /// One bit a lane.
    pub(crate) predicates: Vec<u32>,
    pub(crate) predicates_defined: Vec<u32>,
    frames: Vec<Frame>,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) copies: Copies,
    pub(crate) barrier_start: u32,
    pub(crate) warp_start: u32,
}

/// The lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros();
        rest &= rest - 1;
        Some(lane as usize)
    })
}

pub(crate) fn first_lane(mask: u32) -> u32 {
    mask.trailing_zeros() & 31
}

impl Warp {
    /// Begins the kernel in the machine's current block.
    pub(crate) fn begin(&mut self, index: u32, machine: &Machine<'_>) {
        let kernel = machine.kernel;
        let threads = machine.block.iter().product::<u32>();
        let mine = (threads - index * LANES as u32).min(LANES as u32);
        self.index = index;
        self.all = u32::MAX >> (LANES as u32 - mine);
        self.live = self.all;
        self.registers.resize(kernel.slot_names.len(), [0; LANES]);
        self.defined.clear();
        self.defined.resize(kernel.slot_names.len(), 0);
        self.predicates.resize(kernel.predicate_names.len(), 0);
        self.predicates_defined.clear();
        self.predicates_defined
            .resize(kernel.predicate_names.len(), 0);
        self.frames.clear();
        self.frames.push(Frame {
            pc: 0,
            join: kernel.code.len() as u32,
            mask: self.all,
        });
        self.waiting = None;
        self.copies = Copies::default();
        self.barrier_start = machine.now();
        self.warp_start = machine.now();
        for (slot, initial) in &kernel.initial {
            self.defined[*slot as usize] = u32::MAX;
            self.registers[*slot as usize] = match initial {
                Initial::Constant(value) => [*value; LANES],
                Initial::DynamicShared => [kernel.dynamic_shared.unwrap_or(0) as u64; LANES],
                Initial::Special(special) => {
                    std::array::from_fn(|lane| self.special(machine, *special, lane as u32))
                }
            };
        }
    }

    fn special(&self, machine: &Machine<'_>, special: Special, lane: u32) -> u64 {
        let [x, y, z] = machine.block;
        let thread = self.index * LANES as u32 + lane;
        let axis = |values: [u32; 3], axis: u8| values[usize::from(axis)];
        let bit = 1_u32 << lane;
        u64::from(match special {
            Special::Thread(a) => axis([thread % x, thread / x % y, thread / x / y], a),
            Special::Threads(a) => axis(machine.block, a),
            Special::Block(a) => axis(machine.current, a),
            Special::Blocks(a) => axis(machine.grid, a),
            Special::Lane => lane,
            Special::Warp => self.index,
            Special::Warps => (x * y * z).div_ceil(LANES as u32),
            Special::LanesEqual => bit,
            Special::LanesLess => bit - 1,
            Special::LanesLessEqual => bit | (bit - 1),
            Special::LanesGreater => !(bit | (bit - 1)),
            Special::LanesGreaterEqual => !(bit - 1),
            Special::DynamicSharedSize => machine.dynamic_shared as u32,
            Special::TotalSharedSize => machine.shared.len() as u32,
        })
    }

    pub(crate) fn finished(&self) -> bool {
        self.frames.is_empty()
    }

    /// Line of the instruction the warp is at.
    pub(crate) fn line(&self, machine: &Machine<'_>) -> u32 {
        let at = self.frames.last().map_or(0, |frame| frame.pc);
        machine.kernel.code.get(at as usize).map_or(0, |i| i.line)
    }

    /// The instant of an access by a lane, at the instruction the warp is at.
    pub(crate) fn moment(&self, machine: &Machine<'_>) -> Moment {
        Moment {
            launch: machine.launch_start,
            block: machine.block_start,
            barrier: self.barrier_start,
            warp: self.warp_start,
            now: machine.now(),
            at: self
                .frames
                .last()
                .map_or(0, |f| f.pc.min(u32::from(u16::MAX)) as u16),
            thread: 0,
        }
    }

    pub(crate) fn thread(&self, lane: usize) -> u16 {
        (self.index as usize * LANES + lane) as u16
    }

    /// Runs until a barrier or the end.
    pub(crate) fn run(&mut self, machine: &mut Machine<'_>) -> Trapped<()> {
        let kernel = machine.kernel;
        let end = kernel.code.len() as u32;
        while let Some(frame) = self.frames.last() {
            let Frame { pc, join, mask } = *frame;
            if mask == 0 || pc == join {
                self.frames.pop();
                continue;
            }
            let instruction = &kernel.code[pc as usize];
            let active = match instruction.guard {
                None => mask,
                Some(guard) => mask & self.guard(guard, mask, machine)?,
            };
            machine.report.instructions += 1;
            machine.report.thread_instructions += u64::from(active.count_ones());
            if machine.report.instructions > machine.options.instruction_limit {
                let limit = machine.options.instruction_limit;
                return Err(Trap::new(first_lane(mask), Cause::Limit { limit }));
            }
            match &instruction.op {
                Op::Branch { target, join } => {
                    self.branch(mask, active, pc, *target, (*join, end), machine);
                    continue;
                }
                Op::Exit => self.exit(active),
                Op::Barrier {
                    id,
                    threads,
                    reduce,
                } if active != 0 => {
                    let (id, threads) = (*id, *threads);
                    self.arrive(
                        machine,
                        instruction.line,
                        active,
                        id,
                        threads,
                        Some(*reduce),
                    )?;
                    self.advance();
                    return Ok(());
                }
                Op::Arrive { id, threads } if active != 0 => {
                    self.arrive(machine, instruction.line, active, *id, Some(*threads), None)?;
                }
                op if active != 0 => self.execute(op, active, machine)?,
                _ => {}
            }
            self.advance();
        }
        Ok(())
    }

    fn advance(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.pc += 1;
        }
    }

    /// Lanes whose predicate holds.
    pub(crate) fn guard(&self, guard: Guard, mask: u32, machine: &Machine<'_>) -> Trapped<u32> {
        let at = guard.predicate as usize;
        let undefined = mask & !self.predicates_defined[at];
        if undefined != 0 {
            let name = machine.kernel.predicate_name(guard.predicate).to_owned();
            return Err(Trap::new(
                first_lane(undefined),
                Cause::UndefinedRegister { name },
            ));
        }
        Ok(if guard.negated {
            !self.predicates[at]
        } else {
            self.predicates[at]
        })
    }

    /// Sets a predicate in active lanes.
    pub(crate) fn set_predicate(&mut self, p: u32, active: u32, value: u32) {
        let at = p as usize;
        self.predicates[at] = self.predicates[at] & !active | value & active;
        self.predicates_defined[at] |= active;
    }

    fn branch(
        &mut self,
        mask: u32,
        active: u32,
        pc: u32,
        target: u32,
        (join, end): (u32, u32),
        machine: &mut Machine<'_>,
    ) {
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        if active == mask {
            frame.pc = target;
        } else if active == 0 {
            frame.pc += 1;
        } else {
            machine.report.divergent_branches += 1;
            // Where both ways end at the join of the frame itself, or nowhere before the end, the
            // frame has nothing left to run: its lanes wait in the frame below.
            if join == frame.join || join == end {
                self.frames.pop();
            } else {
                frame.pc = join;
            }
            self.frames.push(Frame {
                pc: target,
                join,
                mask: active,
            });
            self.frames.push(Frame {
                pc: pc + 1,
                join,
                mask: mask & !active,
            });
        }
    }

    fn exit(&mut self, active: u32) {
        self.live &= !active;
        for frame in &mut self.frames {
            frame.mask &= !active;
        }
    }

    /// All lanes of the warp, or those that have not exited where that is allowed, must be here.
    pub(crate) fn whole(&self, active: u32, allow_exited: bool) -> Trapped<()> {
        let expected = if allow_exited { self.live } else { self.all };
        if active == expected {
            return Ok(());
        }
        Err(Trap::new(
            first_lane(active),
            Cause::Divergent { active, expected },
        ))
    }

    /// A value that all active lanes must agree on.
    fn uniform(&self, slot: Slot, active: u32, machine: &Machine<'_>) -> Trapped<u32> {
        let values = self.read(slot, active, machine)?;
        Ok(values[first_lane(active) as usize] as u32)
    }

    /// Arrives at a barrier of the block; waits if `wait` says so.
    fn arrive(
        &mut self,
        machine: &mut Machine<'_>,
        line: u32,
        active: u32,
        id: Slot,
        threads: Option<Slot>,
        wait: Option<Option<BarrierReduce>>,
    ) -> Trapped<()> {
        self.whole(active, machine.options.allow_exited_at_barriers)?;
        let id = self.uniform(id, active, machine)?;
        let asked = match threads {
            Some(slot) => Some(self.uniform(slot, active, machine)?),
            None => None,
        };
        // An explicit count counts whole warps, as the hardware does.
        let count = if asked.is_some() {
            LANES as u32
        } else {
            active.count_ones()
        };
        machine
            .barriers
            .arrive(id, asked, count, wait.is_some())
            .map_err(|cause| Trap::new(first_lane(active), cause))?;
        if let Some(reduce) = wait {
            let votes = match reduce {
                None => 0,
                Some(
                    BarrierReduce::Count { source, .. }
                    | BarrierReduce::All { source, .. }
                    | BarrierReduce::Any { source, .. },
                ) => self.guard(source, active, machine)? & active,
            };
            self.waiting = Some(Waiting {
                id,
                line,
                reduce,
                votes,
                lanes: active,
            });
        }
        Ok(())
    }
}
