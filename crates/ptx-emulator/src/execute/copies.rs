//! Asynchronous copies from global to shared memory.
//!
//! A copy is checked and its source read when it is issued, but its target changes only when the issuing
//! thread waits for the copy's group; until then every access to the target is a fault. What the wait
//! makes visible, it makes visible to the waiting thread: others need a barrier, as the race rule says.

use super::machine::Access;
use super::warp::lanes;
use super::{Machine, Warp};
use crate::fault::{Cause, Trap, Trapped};
use crate::instruction::{Address, Slot};
use crate::memory::Touch;

#[derive(Clone, Debug)]
struct Copy {
    lane: usize,
    /// Number of groups the lane had committed when it issued this.
    group: u32,
    to: Access,
    from: u64,
    /// What is copied, zeros after the source's end included.
    bytes: Vec<u8>,
    source_bytes: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    pending: Vec<Copy>,
    /// Groups that each lane has committed.
    committed: [u32; 32],
}

impl Copies {
    pub(super) fn commit(&mut self, active: u32) {
        for lane in lanes(active) {
            self.committed[lane] += 1;
        }
    }

    /// Takes out what a wait completes: all but the youngest groups, or all.
    fn completed(&mut self, but: Option<u32>, active: u32) -> Vec<Copy> {
        let committed = self.committed;
        let done = |copy: &Copy| {
            active >> copy.lane & 1 == 1
                && but.is_none_or(|but| copy.group + but < committed[copy.lane])
        };
        let (completed, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(done);
        self.pending = pending;
        completed
    }
}

impl Warp {
    pub(super) fn copy_async(
        &mut self,
        (to, from): (Address, Address),
        bytes: u8,
        source_bytes: Option<Slot>,
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        let size = usize::from(bytes);
        let targets = self.addresses(to, active, m)?;
        let sources = self.addresses(from, active, m)?;
        let counts = match source_bytes {
            Some(slot) => *self.read(slot, active, m)?,
            None => [u64::from(bytes); 32],
        };
        let mut moment = self.moment(m);
        for lane in lanes(active) {
            moment.thread = self.thread(lane);
            let target = Access {
                name: "cp.async",
                space: to.space,
                address: targets[lane],
                bytes: size,
                lane: lane as u32,
            };
            let count = (counts[lane] as usize).min(size);
            let source = Access {
                space: from.space,
                address: sources[lane],
                ..target
            };
            if !source.address.is_multiple_of(size as u64) {
                return Err(Trap::new(
                    target.lane,
                    Cause::Misaligned {
                        access: "cp.async",
                        address: source.address,
                        bytes: size,
                    },
                ));
            }
            let unit = if count.is_multiple_of(4) { 4 } else { 1 };
            let mut copied = Vec::with_capacity(size);
            for at in (0..count).step_by(unit) {
                let part = Access {
                    address: source.address + at as u64,
                    bytes: unit,
                    ..source
                };
                let [value, ..] = match unit {
                    4 => m.load::<4>(&part, &[true], Touch::Read, &moment)?,
                    _ => m.load::<1>(&part, &[true], Touch::Read, &moment)?,
                };
                copied.extend(&value.to_le_bytes()[..unit]);
            }
            copied.resize(size, 0);
            let spot = m.spot(&target, &moment)?;
            spot.store
                .begin_copy(spot.at, size, spot.watch.as_ref())
                .map_err(|trouble| m.trouble(&target, target.address, trouble))?;
            self.copies.pending.push(Copy {
                lane,
                group: self.copies.committed[lane],
                to: target,
                from: source.address,
                bytes: copied,
                source_bytes: count,
            });
        }
        Ok(())
    }

    pub(super) fn copy_wait(
        &mut self,
        but: Option<u32>,
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        let mut moment = self.moment(m);
        for copy in self.copies.completed(but, active) {
            moment.thread = self.thread(copy.lane);
            let expected = &copy.bytes[..copy.source_bytes];
            if copy.source_bytes > 0 && !m.memory.holds(copy.from, expected) {
                let cause = Cause::CopySourceChanged { address: copy.from };
                return Err(Trap::new(copy.to.lane, cause));
            }
            let spot = m.spot(&copy.to, &moment)?;
            spot.store
                .end_copy(spot.at, &copy.bytes, spot.watch.as_ref())
                .map_err(|trouble| m.trouble(&copy.to, copy.to.address, trouble))?;
        }
        Ok(())
    }
}
