//! Shuffles, votes and other exchanges among the lanes of a warp.

use super::warp::{LANES, first_lane, lanes};
use super::{Machine, Warp, undefined_register};
use crate::fault::{Cause, Trap, Trapped};
use crate::instruction::{Guard, Int, Op, Reduce, ShuffleMode, Slot, Vote};

/// Source lane of a shuffle, and whether it is in range.
fn source(mode: ShuffleMode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = lane & segment | clamp & !segment;
    let (from, inside) = match mode {
        ShuffleMode::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32),
        ShuffleMode::Down => (lane + b, lane + b <= last),
        ShuffleMode::Butterfly => (lane ^ b, lane ^ b <= last),
        ShuffleMode::Index => {
            let from = lane & segment | b & !segment;
            (from, from <= last)
        }
    };
    if inside { (from, true) } else { (lane, false) }
}

impl Warp {
    /// Checks that lanes and their member masks fit. A mask names its own lane, all it names and that
    /// have not exited are here, and they all say the same mask. Gives each lane's mask.
    fn members(&self, members: Slot, active: u32, m: &Machine<'_>) -> Trapped<[u32; LANES]> {
        let masks = self.read(members, active, m)?.map(|mask| mask as u32);
        if active == u32::MAX && masks == [u32::MAX; LANES] {
            return Ok(masks);
        }
        for lane in lanes(active) {
            let mask = masks[lane];
            let fits = mask >> lane & 1 == 1
                && mask & self.live & !active == 0
                && lanes(mask & active).all(|other| masks[other] == mask);
            if !fits {
                let cause = Cause::Members {
                    members: mask,
                    active,
                    live: self.live,
                };
                return Err(Trap::new(lane as u32, cause));
            }
        }
        Ok(masks)
    }

    pub(super) fn warp_barrier(
        &mut self,
        members: Slot,
        active: u32,
        machine: &mut Machine<'_>,
    ) -> Trapped<()> {
        let masks = self.members(members, active, machine)?;
        let all = self.live;
        if lanes(active).all(|lane| masks[lane] & all == all) {
            self.warp_start = machine.tick();
        }
        Ok(())
    }

    pub(super) fn shuffle(&mut self, op: &Op, active: u32, m: &Machine<'_>) -> Trapped<()> {
        let Op::Shuffle {
            mode,
            d,
            p,
            a,
            b,
            c,
            members,
        } = op
        else {
            return Ok(());
        };
        let masks = self.members(*members, active, m)?;
        let values = *self.read(*a, active, m)?;
        let (b, c) = (self.read(*b, active, m)?, self.read(*c, active, m)?);
        let mut out = [0; LANES];
        let mut inside = 0;
        for lane in lanes(active) {
            let (from, fits) = source(*mode, lane as u32, b[lane] as u32, c[lane] as u32);
            if masks[lane] & active & 1 << from == 0 {
                return Err(Trap::new(
                    lane as u32,
                    Cause::ShuffleSource { source_lane: from },
                ));
            }
            out[lane] = values[from as usize];
            inside |= u32::from(fits) << lane;
        }
        self.write(*d, active, &out);
        if let Some(p) = p {
            self.set_predicate(*p, active, inside);
        }
        Ok(())
    }

    pub(super) fn vote(
        &mut self,
        vote: Vote,
        p: u32,
        a: Guard,
        members: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        let masks = self.members(members, active, m)?;
        let holds = self.guard(a, active, m)?;
        let mut result = 0;
        for lane in lanes(active) {
            let group = masks[lane] & active;
            let is = match vote {
                Vote::All => holds & group == group,
                Vote::Any => holds & group != 0,
                Vote::Uniform => holds & group == group || holds & group == 0,
            };
            result |= u32::from(is) << lane;
        }
        self.set_predicate(p, active, result);
        Ok(())
    }

    pub(super) fn ballot(
        &mut self,
        d: Slot,
        a: Guard,
        members: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        let masks = self.members(members, active, m)?;
        let holds = self.guard(a, active, m)?;
        let out = masks.map(|mask| u64::from(mask & active & holds));
        self.write(d, active, &out);
        Ok(())
    }

    pub(super) fn reduce_lanes(
        &mut self,
        (op, int): (Reduce, Int),
        d: Slot,
        a: Slot,
        members: Slot,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<()> {
        let masks = self.members(members, active, m)?;
        let values = *self.read(a, active, m)?;
        let combine = |x: u32, y: u32| match (op, int) {
            (Reduce::Add, _) => x.wrapping_add(y),
            (Reduce::Min, Int::S32) => (x as i32).min(y as i32) as u32,
            (Reduce::Max, Int::S32) => (x as i32).max(y as i32) as u32,
            (Reduce::Min, _) => x.min(y),
            (Reduce::Max, _) => x.max(y),
            (Reduce::And, _) => x & y,
            (Reduce::Or, _) => x | y,
            (Reduce::Xor, _) => x ^ y,
        };
        let mut out = [0; LANES];
        for lane in lanes(active) {
            let group = lanes(masks[lane] & active).map(|l| values[l] as u32);
            out[lane] = u64::from(group.reduce(combine).unwrap_or(0));
        }
        self.write(d, active, &out);
        Ok(())
    }

    /// All 32 lanes of a whole warp must be here.
    pub(super) fn full(&self, active: u32) -> Trapped<()> {
        if active == u32::MAX {
            return Ok(());
        }
        Err(Trap::new(
            first_lane(active),
            Cause::Divergent {
                active,
                expected: u32::MAX,
            },
        ))
    }

    /// The values of a register in all lanes.
    pub(super) fn fragment(&self, slot: Slot, m: &Machine<'_>) -> Trapped<[u32; LANES]> {
        let undefined = !self.defined[slot as usize];
        if undefined != 0 {
            return Err(undefined_register(m, slot, undefined));
        }
        Ok(self.registers[slot as usize].map(|value| value as u32))
    }
}
