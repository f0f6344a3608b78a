#![doc = include_str!("../README.md")]

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;

use rayon::Yield;

/// How often a thread looks for work, a tenth of a microsecond each in a small pool, before rayon's own loop has it again.
const LOOKS: usize = 64;
/// How often that goes on before another process may have its core.
const STINTS: u32 = 64;

/// Runs `work` on a thread of the caller's rayon pool (the global one outside of any), with the pool's other threads awake
/// until it is over: operations inside find them at once. They take what anybody else gives the pool, too.
///
/// Inside of the pool it is nothing but a call of `work` on a pool of one thread, on one with more threads than there are cores (they would take them from each
/// other), and on a thread that runs another's work inside of `awake` already.
///
/// A call from outside of the pool takes one of its threads until it is over, and waits for one if there are more such calls than threads.
///
/// # Panics
///
/// If `work` does, or the global pool is needed and cannot be started.
pub fn awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static CORES: OnceLock<usize> = OnceLock::new();
    if rayon::current_thread_index().is_none() {
        return rayon::scope(|_| awake(work));
    }
    let cores = *CORES.get_or_init(|| available_parallelism().map_or(1, usize::from));
    match rayon::current_num_threads() {
        threads if threads <= cores => lead(work),
        _ => work(),
    }
}

/// The same, however many threads the pool has.
fn lead<T>(work: impl FnOnce() -> T) -> T {
    let threads = rayon::current_num_threads();
    let (Some(leader), 2..) = (rayon::current_thread_index(), threads) else {
        return work();
    };
    let Some(_leads) = Leads::take() else {
        return work();
    };
    let watch = Arc::new(Watch {
        is_over: AtomicBool::new(false),
        // Its own thread works.
        watches: (0..threads)
            .map(|thread| AtomicBool::new(thread == leader))
            .collect(),
    });
    let _over = Over(&watch);
    watch.begin();
    work()
}

/// What the threads do while one of them works: they look for jobs, a stint at a time. A stint is a job itself, and short: rayon
/// also runs it where a thread waits inside of one of its operations, and that must see soon that what it waits for is there.
struct Watch {
    is_over: AtomicBool,
    /// Whether a thread has a stint running or before it.
    watches: Box<[AtomicBool]>,
}

impl Watch {
    /// Gives one to each thread that has none.
    fn begin(self: &Arc<Self>) {
        let watch = Arc::clone(self);
        // No thread can take another's.
        rayon::spawn_broadcast(move |context| {
            let thread = context.index();
            if !watch.watches[thread].swap(true, Ordering::AcqRel) {
                watch.stint(thread, 1);
            }
        });
    }

    /// Its `count`th of this thread.
    fn stint(self: &Arc<Self>, thread: usize, count: u32) {
        for _ in 0..LOOKS {
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            if rayon::yield_now() == Some(Yield::Executed) {
                break;
            }
            spin_loop();
        }
        if count.is_multiple_of(STINTS) {
            std::thread::yield_now();
        }
        let watch = Arc::clone(self);
        rayon::spawn(move || watch.go_on(thread, count.wrapping_add(1)));
    }

    /// The thread's next stint, unless another has taken it.
    fn go_on(self: &Arc<Self>, thread: usize, count: u32) {
        if rayon::current_thread_index() == Some(thread) {
            self.stint(thread, count);
        } else if !self.is_over.load(Ordering::Acquire) {
            self.watches[thread].store(false, Ordering::Release);
            self.begin();
        }
    }
}

thread_local! {
    /// Whether work runs on this thread for which others stay awake.
    static LEADS: Cell<bool> = const { Cell::new(false) };
}

/// This thread's being a leader, which it is once.
struct Leads;

impl Leads {
    fn take() -> Option<Self> {
        (!LEADS.replace(true)).then(|| Self)
    }
}

impl Drop for Leads {
    fn drop(&mut self) {
        LEADS.set(false);
    }
}

/// Says that it is over when it is dropped, as a panic does too.
struct Over<'a>(&'a Watch);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}
