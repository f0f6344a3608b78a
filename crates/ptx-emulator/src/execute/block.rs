//! A block: its warps in turn, from barrier to barrier.

use crate::fault::{Cause, Fault, Place, Trap};
use crate::instruction::BarrierReduce;
use crate::random::Shuffle;

use super::barrier::Waiting;
use super::machine::Machine;
use super::warp::{LANES, Warp, first_lane};

/// Runs the machine's current block to its end.
pub(crate) fn run(
    machine: &mut Machine<'_>,
    warps: &mut Vec<Warp>,
    shuffle: &mut Shuffle,
) -> Result<(), Box<Fault>> {
    let threads = machine.block.iter().product::<u32>();
    let count = threads.div_ceil(LANES as u32);
    warps.resize_with(count as usize, Warp::default);
    for (index, warp) in (0..).zip(warps.iter_mut()) {
        warp.begin(index, machine);
    }
    let mut order: Vec<usize> = (0..warps.len()).collect();
    loop {
        shuffle.permute(&mut order);
        let mut ran = false;
        for index in &order {
            let warp = &mut warps[*index];
            if warp.finished() || warp.waiting.is_some() {
                continue;
            }
            ran = true;
            if let Err(trap) = warp.run(machine) {
                return Err(fault(machine, warp, *trap));
            }
            // At once: who comes after the last that a barrier waits for comes to its next round.
            release(machine, warps, threads);
        }
        if !ran {
            break;
        }
    }
    match warps
        .iter()
        .find_map(|warp| warp.waiting.map(|waiting| (warp, waiting)))
    {
        None => Ok(()),
        Some((warp, waiting)) => Err(never_reached(machine, warp, waiting)),
    }
}

/// Lets warps go on whose barrier is complete.
fn release(machine: &mut Machine<'_>, warps: &mut [Warp], threads: u32) {
    let exited: u32 = warps.iter().map(|w| (w.all & !w.live).count_ones()).sum();
    let present = threads
        - if machine.options.allow_exited_at_barriers {
            exited
        } else {
            0
        };
    for (id, state) in machine.barriers.used() {
        if state.arrived < state.asked.unwrap_or(present) {
            continue;
        }
        machine.report.barriers += 1;
        machine.barriers.reset(id);
        let now = machine.tick();
        let all = |w: &Warp| w.waiting.is_some_and(|waiting| waiting.id == id) || w.finished();
        let whole = !state.passed && warps.iter().all(all);
        let arrived: Vec<Waiting> = warps
            .iter()
            .filter_map(|w| w.waiting)
            .filter(|w| w.id == id)
            .collect();
        let votes: u32 = arrived.iter().map(|w| w.votes.count_ones()).sum();
        let voters: u32 = arrived.iter().map(|w| w.lanes.count_ones()).sum();
        for warp in warps.iter_mut() {
            let Some(waiting) = warp.waiting.filter(|w| w.id == id) else {
                continue;
            };
            warp.waiting = None;
            warp.warp_start = now;
            if whole {
                warp.barrier_start = now;
            }
            match waiting.reduce {
                None => {}
                Some(BarrierReduce::Count { d, .. }) => {
                    warp.write(d, waiting.lanes, &[u64::from(votes); LANES]);
                }
                Some(BarrierReduce::All { d, .. }) => {
                    warp.set_predicate(
                        d,
                        waiting.lanes,
                        if votes == voters { u32::MAX } else { 0 },
                    );
                }
                Some(BarrierReduce::Any { d, .. }) => {
                    warp.set_predicate(d, waiting.lanes, if votes > 0 { u32::MAX } else { 0 });
                }
            }
        }
    }
}

fn fault(machine: &Machine<'_>, warp: &Warp, trap: Trap) -> Box<Fault> {
    let thread = warp.index * LANES as u32 + trap.lane;
    let place = machine.place(warp.line(machine), machine.current, thread);
    Box::new(Fault {
        kernel: machine.kernel.name.clone(),
        place: Some(place),
        cause: trap.cause,
    })
}

fn never_reached(machine: &Machine<'_>, warp: &Warp, waiting: Waiting) -> Box<Fault> {
    let threads = machine.block.iter().product::<u32>();
    let state = machine.barriers.get(waiting.id);
    let thread = warp.index * LANES as u32 + first_lane(waiting.lanes);
    let place: Place = machine.place(waiting.line, machine.current, thread);
    let cause = Cause::BarrierNotReached {
        id: waiting.id,
        expected: state.asked.unwrap_or(threads),
        arrived: state.arrived,
    };
    Box::new(Fault {
        kernel: machine.kernel.name.clone(),
        place: Some(place),
        cause,
    })
}
