//! Large copies between the host's memory and pinned memory, by several threads.
//!
//! A thread copies a few GB/s, and less where it is the first to touch the pages it writes; the bus carries 25 to 50 GB/s.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use super::failure::failed;
use super::gpu::Gpu;
use super::staging::Ring;
use crate::error::CudaError;

/// Size of a piece (bytes): at 50 GB/s it takes as long as five launches.
pub(super) const PIECE: usize = 2 << 20;
/// One is filled while the other travels.
const SLOTS: usize = 2;
/// Threads of a copy, at most.
const MOST_LANES: usize = 8;
/// Pieces that make it worth another thread.
const PIECES_A_LANE: usize = 2;

/// Deals the pieces of a copy out to as many lanes as they are worth and this machine has cores for, and runs them at once.
/// `lanes` grows as needed.
pub(super) fn in_lanes<T: Send>(
    gpu: &Arc<Gpu>,
    lanes: &mut Vec<Ring>,
    pieces: Vec<T>,
    work: impl Fn(&mut Ring, Vec<T>) -> Result<(), CudaError> + Sync,
) -> Result<(), CudaError> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let count = (pieces.len() / PIECES_A_LANE).clamp(1, MOST_LANES.min(cores));
    while lanes.len() < count {
        let ring = Ring::new(gpu, SLOTS, PIECE);
        lanes.push(ring.map_err(|error| failed("making room for a copy", error))?);
    }
    let mut dealt: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
    for (at, piece) in pieces.into_iter().enumerate() {
        dealt[at % count].push(piece);
    }
    let mut parts = lanes.iter_mut().zip(dealt);
    let Some((own_lane, own_pieces)) = parts.next() else {
        return Ok(());
    };
    let work = &work;
    thread::scope(|scope| {
        let others: Vec<_> = parts
            .map(|(lane, pieces)| {
                let run = move || {
                    gpu.bind()?;
                    work(lane, pieces)
                };
                thread::Builder::new()
                    .name("sparsegpt-copy".to_owned())
                    .spawn_scoped(scope, run)
                    .map_err(|error| CudaError::Failed {
                        what: "a copy".to_owned(),
                        reason: format!("cannot start a thread: {error}"),
                    })
            })
            .collect();
        let own = work(own_lane, own_pieces);
        let joined = others
            .into_iter()
            .map(|other| other?.join().unwrap_or_else(|panic| resume_unwind(panic)));
        // All are waited for, whatever the first of them says.
        let results: Vec<_> = [own].into_iter().chain(joined).collect();
        results.into_iter().collect()
    })
}
