//! What holds on any machine: that work is done, once, and that nobody waits for ever. Speed is for the benches.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use sparsegpt_threads::awake;

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
}

/// Many short parallel operations.
fn sums() -> u64 {
    let sum = |n: u32| {
        let terms = (0..n).into_par_iter().with_max_len(1);
        terms.map(u64::from).sum::<u64>()
    };
    (0..100).map(sum).sum()
}

const SUMS: u64 = 161_700;

/// Fails where it would hang.
fn within_a_minute(work: impl FnOnce() + Send + 'static) {
    let (over, waits) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = over.send(());
    });
    match waits.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("still not over"),
        _ => thread.join().unwrap(),
    }
}

#[test]
fn the_result_is_that_of_the_work() {
    assert_eq!(awake(sums), SUMS);
    for threads in 1..=4 {
        let pool = pool(threads);
        assert_eq!(pool.install(|| awake(sums)), SUMS);
        assert_eq!(
            pool.install(|| awake(rayon::current_num_threads)),
            threads,
            "the pool of the caller"
        );
    }
}

#[test]
fn one_inside_another_is_a_call() {
    within_a_minute(|| assert_eq!(pool(2).install(|| awake(|| awake(sums))), SUMS));
}

#[test]
fn parallel_ones_do_not_wait_for_each_other() {
    within_a_minute(|| {
        let found: Vec<u64> = pool(3).install(|| {
            let many = (0..64).into_par_iter().with_max_len(1);
            many.map(|_| awake(sums)).collect()
        });
        assert_eq!(found, [SUMS; 64]);
    });
    within_a_minute(|| {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope
                    .spawn(|| (0..50).for_each(|_| assert_eq!(pool.install(|| awake(sums)), SUMS)));
            }
        });
    });
}

#[test]
fn a_panic_ends_the_waiting() {
    within_a_minute(|| {
        let pool = pool(2);
        let failed = catch_unwind(AssertUnwindSafe(|| {
            pool.install(|| awake(|| panic!("on purpose")))
        }));
        assert!(failed.is_err());
        // Neither thread is left behind, and the next work finds both.
        assert_eq!(pool.install(|| awake(sums)), SUMS);
        let both = pool.broadcast(|of| of.index());
        assert_eq!(both, [0, 1]);
    });
}

#[test]
fn others_get_their_work_done_meanwhile() {
    within_a_minute(|| {
        let pool = pool(2);
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pool.install(|| {
                    awake(|| {
                        // The thread of the other is this pool's second, which waits: it must take this meanwhile.
                        let start = Instant::now();
                        while done.load(Ordering::Acquire) == 0 {
                            assert!(start.elapsed() < Duration::from_secs(50));
                            std::hint::spin_loop();
                        }
                    });
                });
            });
            pool.install(|| done.fetch_add(1, Ordering::Release));
        });
        assert_eq!(done.into_inner(), 1);
    });
}
