#![doc = include_str!("../README.md")]

use std::cell::Cell;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Looks for work, some tens of nanoseconds each, before a thread lets another process have its core.
const LOOKS: u32 = 2000;

thread_local! {
    /// Whether this thread runs the work of [`awake`], or waits for what that hands out.
    static TAKES_PART: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on a thread of the caller's rayon pool (the global one outside of any), with the pool's other threads awake
/// until it is over: operations inside find them at once. They take what anybody else gives the pool, too.
///
/// Inside of another `awake` of the same thread, or on a pool of one thread, it is nothing but a call of `work`.
///
/// # Panics
///
/// If `work` does.
pub fn awake<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if rayon::current_thread_index().is_none() {
        return rayon::scope(|_| awake(work));
    }
    let Some(_part) = Part::take() else {
        return work();
    };
    let over = Over(Arc::new(AtomicBool::new(false)));
    let is_over = Arc::clone(&over.0);
    // One for each thread, which no other can take from it: this one's, if it comes to it, ends at once.
    rayon::spawn_broadcast(move |_| wait(&is_over));
    work()
}

/// Does what there is to do for others until it is over.
fn wait(is_over: &AtomicBool) {
    let Some(_part) = Part::take() else {
        return;
    };
    let mut idle = 0;
    while !is_over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle = 0;
            continue;
        }
        idle += 1;
        if idle % LOOKS == 0 {
            std::thread::yield_now();
        }
        spin_loop();
    }
}

/// This thread's part in one [`awake`]. Nobody has two: a thread that waited for one piece of work inside of another would
/// hold that up.
struct Part;

impl Part {
    fn take() -> Option<Self> {
        (!TAKES_PART.replace(true)).then(|| Self)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        TAKES_PART.set(false);
    }
}

/// Says that it is over when it is dropped, as a panic does too.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
