//! What holds on any machine: that work is done, once, and that nobody waits for ever. Speed is for the benches.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{awake, lead};

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

/// Waits without a job of rayon's.
fn until(flag: &AtomicBool) {
    let start = Instant::now();
    while !flag.load(Ordering::Acquire) {
        assert!(start.elapsed() < Duration::from_secs(50), "nobody came");
        std::thread::yield_now();
    }
}

#[test]
fn the_result_is_that_of_the_work() {
    within_a_minute(|| {
        assert_eq!(awake(sums), SUMS);
        for threads in 1..=4 {
            let pool = pool(threads);
            assert_eq!(pool.install(|| awake(sums)), SUMS);
            assert_eq!(pool.install(|| lead(sums)), SUMS);
            let found = pool.install(|| lead(rayon::current_num_threads));
            assert_eq!(found, threads, "the pool of the caller");
        }
    });
}

#[test]
fn one_inside_another_is_a_call() {
    within_a_minute(|| assert_eq!(pool(2).install(|| lead(|| lead(sums))), SUMS));
}

#[test]
fn parallel_ones_do_not_wait_for_each_other() {
    within_a_minute(|| {
        let found: Vec<u64> = pool(3).install(|| {
            let many = (0..64).into_par_iter().with_max_len(1);
            many.map(|_| lead(sums)).collect()
        });
        assert_eq!(found, [SUMS; 64]);
    });
    within_a_minute(|| {
        let pool = pool(2);
        scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..50).for_each(|_| assert_eq!(pool.install(|| lead(sums)), SUMS));
                });
            }
        });
    });
}

/// Threads that are held up anywhere, as they are on few cores, meet the others' jobs in any order.
#[test]
fn many_threads_on_few_cores_come_to_an_end() {
    within_a_minute(|| {
        let pool = pool(16);
        for _ in 0..100 {
            assert_eq!(pool.install(|| lead(sums)), SUMS);
        }
    });
}

/// A thread that waits inside of an operation may be given a stint, and must come back from it while the work goes on.
#[test]
fn the_jobs_of_others_end_before_the_work_does() {
    within_a_minute(|| {
        let pool = pool(3);
        let [begun, both, first_over, release, done] = [const { AtomicBool::new(false) }; 5];
        scope(|scope| {
            scope.spawn(|| {
                pool.install(|| {
                    begun.store(true, Ordering::Release);
                    until(&both);
                    until(&first_over);
                    // Time for the other to find that it has to wait.
                    sleep(Duration::from_millis(50));
                    lead(|| {
                        sleep(Duration::from_millis(50));
                        release.store(true, Ordering::Release);
                        until(&done);
                    });
                });
            });
            until(&begun);
            pool.install(|| {
                rayon::join(
                    || {
                        until(&both);
                        first_over.store(true, Ordering::Release);
                    },
                    || {
                        both.store(true, Ordering::Release);
                        until(&release);
                    },
                )
            });
            done.store(true, Ordering::Release);
        });
    });
}

#[test]
fn a_panic_ends_the_waiting() {
    within_a_minute(|| {
        let pool = pool(2);
        let failed = catch_unwind(AssertUnwindSafe(|| {
            pool.install(|| lead(|| panic!("on purpose")))
        }));
        assert!(failed.is_err());
        // Neither thread is left behind, and the next work finds both.
        assert_eq!(pool.install(|| lead(sums)), SUMS);
        let both = pool.broadcast(|of| of.index());
        assert_eq!(both, [0, 1]);
    });
}

#[test]
fn others_get_their_work_done_meanwhile() {
    within_a_minute(|| {
        let (pool, done, calls) = (pool(2), AtomicBool::new(false), AtomicUsize::new(0));
        scope(|scope| {
            // The pool's other thread must take the second job while the first waits for it.
            scope.spawn(|| pool.install(|| lead(|| until(&done))));
            pool.install(|| calls.fetch_add(1, Ordering::Relaxed));
            done.store(true, Ordering::Release);
        });
        assert_eq!(calls.into_inner(), 1);
    });
}
