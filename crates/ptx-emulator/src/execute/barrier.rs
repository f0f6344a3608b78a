//! The barriers of a block.

use crate::fault::Cause;
use crate::instruction::BarrierReduce;

/// A warp that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) id: u32,
    pub(crate) line: u32,
    pub(crate) reduce: Option<BarrierReduce>,
    /// Threads of this warp for which the predicate to be reduced holds.
    pub(crate) votes: u32,
    pub(crate) lanes: u32,
}

/// Barrier numbers a block has.
const BARRIERS: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct State {
    /// As the arriving warps say; none where they say nothing, which means all threads.
    pub(crate) asked: Option<u32>,
    pub(crate) arrived: u32,
    /// Whether somebody arrived who does not wait.
    pub(crate) passed: bool,
    used: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Barriers {
    states: [State; BARRIERS],
}

impl Barriers {
    pub(crate) fn get(&self, id: u32) -> State {
        self.states.get(id as usize).copied().unwrap_or_default()
    }

    pub(crate) fn reset(&mut self, id: u32) {
        if let Some(state) = self.states.get_mut(id as usize) {
            *state = State::default();
        }
    }

    /// A warp arrives with so many threads.
    pub(crate) fn arrive(
        &mut self,
        id: u32,
        asked: Option<u32>,
        threads: u32,
        waits: bool,
    ) -> Result<(), Cause> {
        let problem = |problem| {
            Err(Cause::BarrierOperands {
                id,
                threads: asked.unwrap_or(0),
                problem,
            })
        };
        let Some(state) = self.states.get_mut(id as usize) else {
            return problem("numbers go from 0 to 15");
        };
        if asked.is_some_and(|asked| asked == 0 || !asked.is_multiple_of(32)) {
            return problem("the number of threads must be a multiple of 32");
        }
        if state.used && state.asked != asked {
            return problem("warps disagree about the number of threads");
        }
        state.used = true;
        state.asked = asked;
        state.arrived += threads;
        state.passed |= !waits;
        Ok(())
    }

    /// Numbers of the barriers at which somebody has arrived.
    pub(crate) fn used(&self) -> impl Iterator<Item = (u32, State)> + use<> {
        let states = self.states;
        (0..).zip(states).filter(|(_, state)| state.used)
    }
}
