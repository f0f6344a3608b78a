//! Who touched a place, when, and whether that is ordered.
//!
//! Two accesses to one place by different threads, at least one of them a plain write, are a race
//! unless something orders them:
//!
//! * threads of one warp: a `bar.warp.sync` that all its live lanes take part in, or a barrier of the
//!   block. Lock step orders nothing, and neither do shuffles and votes, which exchange registers but
//!   promise nothing about memory;
//! * threads of one block: a `bar.sync` of all its threads;
//! * threads of two blocks of one launch: nothing;
//! * launches: always ordered.
//!
//! Barriers of some warps and warp barriers of some lanes count as ordering nothing between their
//! members' memory accesses: that may report a race where there is none, never the reverse. Atomics
//! and volatile, relaxed, acquire and release accesses do not race with each other, and order nothing.
//!
//! Since the order is a hierarchy (lane, warp, block), one record per kind of access is exact: it holds
//! the last access and, where several threads are unordered, how far apart they are.

/// Instants of the emulated time that decide what is ordered before now. Time counts barriers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Since the launch began; for shared memory, the block.
    pub(crate) launch: u32,
    pub(crate) block: u32,
    /// Since the block's last barrier.
    pub(crate) barrier: u32,
    /// Since the warp's last barrier of any kind.
    pub(crate) warp: u32,
    pub(crate) now: u32,
    /// Index of the instruction, for reports.
    pub(crate) at: u16,
    /// Thread of the block.
    pub(crate) thread: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    /// Of a place that nobody may write in this launch.
    ReadOnly,
    Write,
    /// An atomic or otherwise strong access.
    Strong,
}

const THREAD: u16 = 0x03ff;
const MANY_LANES: u16 = 0x0400;
const MANY_WARPS: u16 = 0x0800;
const MANY_BLOCKS: u16 = 0x1000;

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Never is 0.
    time: u32,
    who: u16,
    at: u16,
}

fn warp_of(who: u16) -> u16 {
    (who & THREAD) >> 5
}

impl Record {
    /// Whether someone else is in the record whose access is not ordered before now.
    #[inline]
    fn conflicts(self, m: &Moment) -> bool {
        if self.time < m.launch {
            return false;
        }
        if self.time < m.block || self.who & MANY_BLOCKS != 0 {
            return true;
        }
        if self.time < m.barrier {
            return false;
        }
        if self.who & MANY_WARPS != 0 || warp_of(self.who) != warp_of(m.thread) {
            return true;
        }
        self.time >= m.warp && (self.who & MANY_LANES != 0 || self.who & THREAD != m.thread)
    }

    #[inline]
    fn add(&mut self, m: &Moment) {
        let many = if self.time < m.launch {
            0
        } else if self.time < m.block || self.who & MANY_BLOCKS != 0 {
            MANY_BLOCKS
        } else if self.time < m.barrier {
            0
        } else if self.who & MANY_WARPS != 0 || warp_of(self.who) != warp_of(m.thread) {
            MANY_WARPS
        } else if self.time >= m.warp
            && (self.who & MANY_LANES != 0 || self.who & THREAD != m.thread)
        {
            MANY_LANES
        } else {
            0
        };
        *self = Self {
            time: m.now,
            who: m.thread | many,
            at: m.at,
        };
    }
}

/// The last accesses of a place.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    write: Record,
    read: Record,
    strong: Record,
}

/// The other side of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) wrote: bool,
    pub(crate) time: u32,
    pub(crate) thread: u16,
    pub(crate) at: u16,
}

/// The cells of a range of memory.
#[derive(Clone, Debug)]
pub(crate) struct Shadow {
    cells: Vec<Cell>,
    /// Bytes of a place are 1 << granule: a word, until something narrower is touched.
    granule: u32,
}

impl Default for Shadow {
    fn default() -> Self {
        Self {
            cells: Vec::new(),
            granule: 2,
        }
    }
}

impl Shadow {
    pub(crate) fn forget(&mut self) {
        self.cells.clear();
    }

    fn refine(&mut self, granule: u32) {
        let copies = 1 << (self.granule - granule);
        self.cells = self
            .cells
            .iter()
            .flat_map(|cell| std::iter::repeat_n(*cell, copies))
            .collect();
        self.granule = granule;
    }

    /// Records an access of `bytes` at `at`, in a range of `size` bytes.
    #[inline]
    pub(crate) fn touch(
        &mut self,
        at: usize,
        bytes: usize,
        size: usize,
        touch: Touch,
        m: &Moment,
    ) -> Result<(), Other> {
        let needed = bytes.trailing_zeros().min(at.trailing_zeros());
        if needed < self.granule {
            self.refine(needed);
        }
        if self.cells.is_empty() {
            self.cells
                .resize((size >> self.granule) + 1, Cell::default());
        }
        let first = at >> self.granule;
        let count = (bytes >> self.granule).max(1);
        for cell in &mut self.cells[first..first + count] {
            cell.touch(touch, m)?;
        }
        Ok(())
    }
}

impl Cell {
    #[inline]
    fn touch(&mut self, touch: Touch, m: &Moment) -> Result<(), Other> {
        let other = |record: Record, wrote| {
            Err(Other {
                wrote,
                time: record.time,
                thread: record.who & THREAD,
                at: record.at,
            })
        };
        if self.write.conflicts(m) {
            return other(self.write, true);
        }
        if touch == Touch::ReadOnly && self.write.time >= m.launch {
            return other(self.write, true);
        }
        if touch != Touch::Strong && self.strong.conflicts(m) {
            return other(self.strong, true);
        }
        if touch == Touch::Write && self.read.conflicts(m) {
            return other(self.read, false);
        }
        // A strong access may write, which a plain read must not meet unordered.
        if touch == Touch::Strong && self.read.conflicts(m) {
            return other(self.read, false);
        }
        match touch {
            Touch::Read | Touch::ReadOnly => self.read.add(m),
            Touch::Write => self.write.add(m),
            Touch::Strong => self.strong.add(m),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment {
        launch: 10,
        block: 20,
        barrier: 20,
        warp: 20,
        now: 20,
        at: 0,
        thread: 0,
    };

    fn by(thread: u16) -> Moment {
        Moment { thread, ..START }
    }

    /// What happens when `second` follows `first` on one word.
    fn races(first: (Touch, Moment), second: (Touch, Moment)) -> bool {
        let mut shadow = Shadow::default();
        shadow.touch(8, 4, 64, first.0, &first.1).unwrap();
        shadow.touch(8, 4, 64, second.0, &second.1).is_err()
    }

    #[test]
    fn one_thread_never_races_with_itself() {
        for a in [Touch::Read, Touch::Write, Touch::Strong] {
            for b in [Touch::Read, Touch::Write, Touch::Strong] {
                assert!(!races((a, by(3)), (b, by(3))), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn lock_step_orders_nothing() {
        assert!(races((Touch::Write, by(3)), (Touch::Read, by(4))));
        assert!(races((Touch::Read, by(3)), (Touch::Write, by(4))));
        assert!(races((Touch::Write, by(3)), (Touch::Write, by(4))));
        assert!(!races((Touch::Read, by(3)), (Touch::Read, by(4))));
    }

    #[test]
    fn a_warp_barrier_orders_lanes_of_its_warp_only() {
        let later = |thread| Moment {
            thread,
            warp: 21,
            now: 21,
            ..START
        };
        assert!(!races((Touch::Write, by(3)), (Touch::Read, later(4))));
        assert!(races((Touch::Write, by(3)), (Touch::Read, later(40))));
    }

    #[test]
    fn a_block_barrier_orders_the_block_only() {
        let later = |thread| Moment {
            thread,
            barrier: 22,
            warp: 22,
            now: 22,
            ..START
        };
        assert!(!races((Touch::Write, by(3)), (Touch::Write, later(40))));
        let next_block = Moment {
            thread: 3,
            block: 30,
            barrier: 30,
            warp: 30,
            now: 30,
            ..START
        };
        assert!(races((Touch::Write, by(3)), (Touch::Read, next_block)));
        assert!(races((Touch::Read, by(3)), (Touch::Write, next_block)));
        assert!(!races((Touch::Read, by(3)), (Touch::Read, next_block)));
    }

    #[test]
    fn launches_are_ordered() {
        let next = Moment {
            launch: 40,
            block: 40,
            barrier: 40,
            warp: 40,
            now: 40,
            ..by(9)
        };
        assert!(!races((Touch::Write, by(3)), (Touch::Write, next)));
    }

    #[test]
    fn strong_accesses_race_with_plain_ones_alone() {
        assert!(!races((Touch::Strong, by(3)), (Touch::Strong, by(40))));
        assert!(races((Touch::Strong, by(3)), (Touch::Read, by(40))));
        assert!(races((Touch::Write, by(3)), (Touch::Strong, by(40))));
        assert!(races((Touch::Read, by(3)), (Touch::Strong, by(40))));
    }

    #[test]
    fn every_reader_counts_and_not_only_the_last() {
        // Another lane, another warp, another block, each before a read by the writer itself.
        for first in [5, 40] {
            let mut shadow = Shadow::default();
            for reader in [first, 3] {
                shadow.touch(0, 4, 64, Touch::Read, &by(reader)).unwrap();
            }
            assert!(
                shadow.touch(0, 4, 64, Touch::Write, &by(3)).is_err(),
                "{first}"
            );
        }
        let mut shadow = Shadow::default();
        shadow.touch(0, 4, 64, Touch::Read, &by(5)).unwrap();
        let next_block = Moment {
            thread: 3,
            block: 30,
            barrier: 30,
            warp: 30,
            now: 30,
            ..START
        };
        shadow.touch(0, 4, 64, Touch::Read, &next_block).unwrap();
        assert!(shadow.touch(0, 4, 64, Touch::Write, &next_block).is_err());
    }

    #[test]
    fn neighbouring_halves_and_bytes_do_not_race() {
        let mut shadow = Shadow::default();
        shadow.touch(4, 4, 64, Touch::Write, &by(1)).unwrap();
        shadow.touch(0, 2, 64, Touch::Write, &by(1)).unwrap();
        shadow.touch(2, 2, 64, Touch::Write, &by(2)).unwrap();
        shadow.touch(9, 1, 64, Touch::Write, &by(3)).unwrap();
        shadow.touch(8, 1, 64, Touch::Write, &by(4)).unwrap();
        // What was known of the word is known of its bytes.
        assert!(shadow.touch(7, 1, 64, Touch::Read, &by(2)).is_err());
    }

    #[test]
    fn read_only_loads_meet_no_write_of_the_launch() {
        let later = Moment {
            barrier: 22,
            warp: 22,
            now: 22,
            ..by(3)
        };
        assert!(races((Touch::Write, by(3)), (Touch::ReadOnly, later)));
        assert!(!races((Touch::Write, by(3)), (Touch::Read, later)));
    }
}
