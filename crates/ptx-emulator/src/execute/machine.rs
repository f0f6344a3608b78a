//! What the warps of a launch share: memory, barriers, time.

use crate::fault::{Cause, Place, StateSpace, Trap, Trapped};
use crate::instruction::Space;
use crate::launch::{Options, Report};
use crate::memory::{CONSTANT_WINDOW, Memory, Moment, Other, SHARED_WINDOW, Store, Touch, Trouble};
use crate::module::{Kernel, Module};

use super::barrier::Barriers;

pub(crate) struct Machine<'a> {
    pub(crate) module: &'a Module,
    pub(crate) kernel: &'a Kernel,
    pub(crate) memory: &'a mut Memory,
    pub(crate) shared: Store,
    pub(crate) constants: Store,
    /// The parameter buffer.
    pub(crate) parameters: Vec<u8>,
    pub(crate) options: &'a Options,
    /// Instructions of the processor that emulates.
    pub(crate) arch: pulp::Arch,
    pub(crate) report: Report,
    pub(crate) barriers: Barriers,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: usize,
    /// Index of the running block, and the times at which blocks began, for reports of races.
    pub(crate) current: [u32; 3],
    pub(crate) begun: Vec<(u32, [u32; 3])>,
    pub(crate) launch_start: u32,
    pub(crate) block_start: u32,
}

/// An access of one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) name: &'static str,
    pub(crate) space: Space,
    pub(crate) address: u64,
    /// Bytes of the whole access, a vector's too.
    pub(crate) bytes: usize,
    pub(crate) lane: u32,
}

/// A place that is allocated.
pub(crate) struct Spot<'m> {
    pub(crate) store: &'m mut Store,
    pub(crate) at: usize,
    pub(crate) constant: bool,
    /// For the race rule, if it is on and the place can be written at all.
    pub(crate) watch: Option<Moment>,
}

/// Which memory an address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Shared,
    Constant,
    Allocation,
}

/// The memory an address means, and the offset in it.
fn target(space: Space, address: u64) -> (Target, u64) {
    let in_shared_window = (SHARED_WINDOW..SHARED_WINDOW + (1 << 24)).contains(&address);
    let in_constant_window = (CONSTANT_WINDOW..2 * CONSTANT_WINDOW).contains(&address);
    match space {
        Space::Shared => (Target::Shared, address),
        Space::Generic if in_shared_window => (Target::Shared, address - SHARED_WINDOW),
        Space::Constant => (Target::Constant, address.wrapping_sub(CONSTANT_WINDOW)),
        Space::Generic | Space::Global if in_constant_window => {
            (Target::Constant, address - CONSTANT_WINDOW)
        }
        Space::Generic | Space::Global => (Target::Allocation, address),
    }
}

impl Machine<'_> {
    /// Time goes on by one.
    pub(crate) fn tick(&mut self) -> u32 {
        self.memory.clock += 1;
        self.memory.clock
    }

    pub(crate) fn now(&self) -> u32 {
        self.memory.clock
    }

    /// Where an access goes, in bounds and aligned.
    #[inline(always)]
    pub(crate) fn spot(&mut self, access: &Access, moment: &Moment) -> Trapped<Spot<'_>> {
        let Access { address, bytes, .. } = *access;
        // A power of two.
        if address & (bytes as u64 - 1) != 0 {
            return Err(Trap::new(
                access.lane,
                Cause::Misaligned {
                    access: access.name,
                    address,
                    bytes,
                },
            ));
        }
        let (target, at) = target(access.space, address);
        let size = match target {
            Target::Shared => self.shared.len(),
            Target::Constant => self.constants.len(),
            Target::Allocation => usize::MAX,
        };
        let found = match target {
            Target::Allocation => self.memory.find(address, bytes),
            _ => usize::try_from(at)
                .ok()
                .filter(|at| *at <= size && bytes <= size - at)
                .map(|at| (0, at)),
        };
        let Some((index, at)) = found else {
            return Err(self.out_of_bounds(access));
        };
        let races = self.options.detect_races;
        Ok(match target {
            Target::Shared => {
                let watch = Moment {
                    launch: self.block_start,
                    ..*moment
                };
                Spot {
                    store: &mut self.shared,
                    at,
                    constant: false,
                    watch: races.then_some(watch),
                }
            }
            Target::Constant => Spot {
                store: &mut self.constants,
                at,
                constant: true,
                watch: None,
            },
            Target::Allocation => Spot {
                store: self.memory.store_mut(index),
                at,
                constant: false,
                watch: races.then_some(*moment),
            },
        })
    }

    #[cold]
    fn out_of_bounds(&self, access: &Access) -> Box<Trap> {
        Trap::new(
            access.lane,
            Cause::OutOfBounds {
                access: access.name,
                space: self.space(access),
                address: access.address,
                bytes: access.bytes,
                nearest: self.describe(access),
            },
        )
    }

    pub(crate) fn describe(&self, access: &Access) -> String {
        match target(access.space, access.address).0 {
            Target::Shared => format!(
                "the block has {} bytes of shared memory ({} static)",
                self.shared.len(),
                self.kernel.shared_bytes
            ),
            Target::Constant => format!("the module has {} bytes of tables", self.constants.len()),
            Target::Allocation => self.memory.describe(access.address, access.bytes),
        }
    }

    /// A trouble of the store as a fault.
    #[cold]
    pub(crate) fn trouble(&self, access: &Access, at: u64, trouble: Trouble) -> Box<Trap> {
        let place = Access {
            address: at,
            ..*access
        };
        let cause = match trouble {
            Trouble::Undefined => Cause::UndefinedMemory {
                access: access.name,
                space: self.space(access),
                address: at,
                nearest: self.describe(&place),
            },
            Trouble::InFlight => Cause::CopyInFlight {
                access: access.name,
                address: at,
            },
            Trouble::Race(other) => Cause::Race {
                access: access.name,
                space: self.space(access),
                address: at,
                nearest: self.describe(&place),
                other: if other.wrote { "a write" } else { "a read" },
                other_place: Box::new(self.other_place(other)),
            },
        };
        Trap::new(access.lane, cause)
    }

    fn space(&self, access: &Access) -> StateSpace {
        match target(access.space, access.address).0 {
            Target::Shared => StateSpace::Shared,
            Target::Constant => StateSpace::Constant,
            Target::Allocation => StateSpace::Global,
        }
    }

    fn other_place(&self, other: Other) -> Place {
        let later = self.begun.partition_point(|(time, _)| *time <= other.time);
        let block = self.begun[..later]
            .last()
            .map_or(self.current, |(_, block)| *block);
        let line = self
            .kernel
            .code
            .get(usize::from(other.at))
            .map_or(0, |i| i.line);
        self.place(line, block, u32::from(other.thread))
    }

    /// The place of a line, with the thread by its number in the block.
    pub(crate) fn place(&self, line: u32, block: [u32; 3], thread: u32) -> Place {
        let [x, y, _] = self.block;
        Place {
            line,
            text: self.module.line(line).to_owned(),
            block,
            thread: [thread % x, thread / x % y, thread / x / y],
        }
    }

    /// Reads elements of N bytes each, one after the other, as far as they are wanted.
    #[inline]
    pub(crate) fn load<const N: usize>(
        &mut self,
        access: &Access,
        wanted: &[bool],
        touch: Touch,
        moment: &Moment,
    ) -> Trapped<[u64; 4]> {
        let spot = self.spot(access, moment)?;
        let mut values = [0; 4];
        for (i, value) in values.iter_mut().take(wanted.len()).enumerate() {
            if wanted[i] {
                match spot
                    .store
                    .load::<N>(spot.at + i * N, touch, spot.watch.as_ref())
                {
                    Ok(loaded) => *value = loaded,
                    Err(trouble) => {
                        return Err(self.trouble(access, access.address + (i * N) as u64, trouble));
                    }
                }
            }
        }
        Ok(values)
    }

    /// Writes elements of N bytes each, one after the other.
    #[inline]
    pub(crate) fn store<const N: usize>(
        &mut self,
        access: &Access,
        values: impl Iterator<Item = u64>,
        touch: Touch,
        moment: &Moment,
    ) -> Trapped<()> {
        let spot = self.spot(access, moment)?;
        if spot.constant {
            return Err(Trap::new(
                access.lane,
                Cause::ConstantStore {
                    address: access.address,
                },
            ));
        }
        for (i, value) in values.enumerate() {
            let done = spot
                .store
                .store::<N>(spot.at + i * N, value, touch, spot.watch.as_ref());
            if let Err(trouble) = done {
                return Err(self.trouble(access, access.address + (i * N) as u64, trouble));
            }
        }
        Ok(())
    }
}
