//! Ways through the code: divergence, loops, barriers, exits.

use crate::support::{Bench, cause, module, run_warp, store};
use ptx_emulator::Cause;

#[test]
fn both_ways_of_a_branch_run_and_meet_again() {
    let body = format!(
        "and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0;
         @%p1 bra EVEN;
         mov.u32 %r2, 100; bra.uni JOIN;
         EVEN: mov.u32 %r2, 200;
         JOIN: activemask.b32 %r3; popc.b32 %r4, %r3; add.u32 %r5, %r2, %r4; {}",
        store("u32", 4, "%r5")
    );
    let expected: Vec<u32> = (0..32)
        .map(|t| if t % 2 == 0 { 232 } else { 132 })
        .collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn loops_of_different_trip_counts_meet_behind_the_loop() {
    // Collatz steps of tid + 1, and how many lanes are together afterwards.
    let body = format!(
        "add.u32 %r1, %r0, 1; mov.u32 %r2, 0;
         LOOP: setp.eq.u32 %p1, %r1, 1; @%p1 bra DONE;
         add.u32 %r2, %r2, 1;
         and.b32 %r3, %r1, 1; setp.eq.u32 %p2, %r3, 0;
         @%p2 bra HALF;
         mad.lo.u32 %r1, %r1, 3, 1; bra LOOP;
         HALF: shr.u32 %r1, %r1, 1; bra LOOP;
         DONE: activemask.b32 %r4; popc.b32 %r5, %r4; mul.lo.u32 %r5, %r5, 1000;
         add.u32 %r6, %r2, %r5; {}",
        store("u32", 4, "%r6")
    );
    let collatz = |mut n: u32| {
        let mut steps = 0;
        while n != 1 {
            n = if n.is_multiple_of(2) {
                n / 2
            } else {
                3 * n + 1
            };
            steps += 1;
        }
        steps
    };
    let expected: Vec<u32> = (1..=32).map(|n| 32_000 + collatz(n)).collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn nested_branches_meet_inside_out() {
    let body = format!(
        "mov.u32 %r9, 0; setp.lt.u32 %p1, %r0, 16; @!%p1 bra OUT;
         setp.lt.u32 %p2, %r0, 8; @!%p2 bra IN;
         add.u32 %r9, %r9, 1;
         IN: activemask.b32 %r1; popc.b32 %r2, %r1; mad.lo.u32 %r9, %r2, 10, %r9;
         OUT: activemask.b32 %r3; popc.b32 %r4, %r3; mad.lo.u32 %r9, %r4, 1000, %r9; {}",
        store("u32", 4, "%r9")
    );
    let expected: Vec<u32> = (0..32)
        .map(|t| 32_000 + if t < 16 { 160 + u32::from(t < 8) } else { 0 })
        .collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn lanes_that_exit_leave_the_others_alone() {
    let body = format!(
        "mov.u32 %r9, 0; {} setp.lt.u32 %p1, %r0, 20; @!%p1 bra REST;
         setp.ge.u32 %p2, %r0, 10; @%p2 exit;
         REST: activemask.b32 %r1; popc.b32 %r2, %r1; {} ",
        store("u32", 4, "%r9"),
        store("u32", 4, "%r2")
    );
    let expected: Vec<u32> = (0..32)
        .map(|t| if (10..20).contains(&t) { 0 } else { 22 })
        .collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn an_early_return_of_some_lanes_lets_the_rest_exchange() {
    let body = format!(
        "mov.u32 %r9, 7; {} setp.lt.u32 %p1, %r0, 8; @%p1 bra BODY; ret;
         BODY: shfl.sync.bfly.b32 %r1, %r0, 7, 0x1f, 0xff; {} ret;",
        store("u32", 4, "%r9"),
        store("u32", 4, "%r1")
    );
    let expected: Vec<u32> = (0..32).map(|t| if t < 8 { 7 - t } else { 7 }).collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn predicated_instructions_write_active_lanes_only() {
    let body = format!(
        "mov.u32 %r1, 1; setp.gt.u32 %p1, %r0, 4; @%p1 mov.u32 %r1, 2; @!%p1 add.u32 %r1, %r1, 4; {}",
        store("u32", 4, "%r1")
    );
    let expected: Vec<u32> = (0..32).map(|t| if t > 4 { 2 } else { 5 }).collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn a_value_that_is_not_selected_need_not_be_there() {
    let body = format!(
        "setp.lt.u32 %p1, %r0, 9; @%p1 mov.u32 %r1, 5; selp.u32 %r2, %r1, 6, %p1; {}",
        store("u32", 4, "%r2")
    );
    let expected: Vec<u32> = (0..32).map(|t| if t < 9 { 5 } else { 6 }).collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn labels_and_registers_of_inner_scopes_hide_outer_ones() {
    let body = format!(
        "mov.u32 %r1, 1; {{ .reg .b32 %r1; mov.u32 %r1, 50; bra L; mov.u32 %r1, 9; L: add.u32 %r2, %r1, 0; }}
         bra L; mov.u32 %r1, 8; L: add.u32 %r3, %r1, %r2; {}",
        store("u32", 4, "%r3")
    );
    assert_eq!(run_warp::<u32>(&body).unwrap(), [51; 32]);
}

/// Every thread gives its number to the thread 64 further on.
const ACROSS_WARPS: &str = "
    .shared .align 4 .b32 box[128];
    mov.u64 %rd1, box; mul.wide.u32 %rd2, %r0, 4; add.u64 %rd3, %rd1, %rd2;
    st.shared.u32 [%rd3], %r0;
    BARRIER
    xor.b32 %r1, %r0, 64; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd3, %rd1, %rd2;
    ld.shared.u32 %r2, [%rd3];
    mul.wide.u32 %rd4, %r0, 4; add.u64 %rd5, %rd0, %rd4; st.global.u32 [%rd5], %r2;";

#[test]
fn a_barrier_orders_warps() {
    let mut bench = Bench::new(512);
    let module = module("", &ACROSS_WARPS.replace("BARRIER", "bar.sync 0;"));
    let report = bench.launch(&module, (1, 128), &[]).unwrap();
    assert_eq!(report.barriers, 1);
    let expected: Vec<u32> = (0..128).map(|t| t ^ 64).collect();
    assert_eq!(bench.results::<u32>(128), expected);
}

#[test]
fn without_the_barrier_it_is_a_race() {
    let found = cause(128, &ACROSS_WARPS.replace("BARRIER", ""));
    assert!(
        matches!(found, Cause::Race { .. } | Cause::UndefinedMemory { .. }),
        "{found}"
    );
}

#[test]
fn barriers_of_some_warps_wait_for_those() {
    // Two pairs of warps, each with a barrier of its own.
    let body = format!(
        "shr.u32 %r1, %r0, 6; add.u32 %r2, %r1, 1; bar.sync %r2, 64; bar.sync 0; {}",
        store("u32", 4, "%r2")
    );
    let mut bench = Bench::new(512);
    let report = bench.launch(&module("", &body), (1, 128), &[]).unwrap();
    assert_eq!(report.barriers, 3);
}

#[test]
fn who_comes_too_many_to_a_barrier_waits_for_its_next_round() {
    let found = cause(96, "bar.sync 1, 64;");
    let expected = Cause::BarrierNotReached {
        id: 1,
        expected: 64,
        arrived: 32,
    };
    assert_eq!(found, expected);
}

#[test]
fn a_warp_that_arrives_without_waiting_counts() {
    // The second warp only announces; the first waits for it.
    let body = "setp.ge.u32 %p1, %r0, 32; @%p1 bra PRODUCE; bar.sync 1, 64; ret; PRODUCE: bar.arrive 1, 64;";
    let mut bench = Bench::new(4);
    assert_eq!(
        bench
            .launch(&module("", body), (1, 64), &[])
            .unwrap()
            .barriers,
        1
    );
    let found = cause(64, &body.replace("bar.arrive 1", "bar.arrive 2"));
    assert!(
        matches!(found, Cause::BarrierNotReached { id: 1, .. }),
        "{found}"
    );
}

#[test]
fn barriers_reduce() {
    let body = format!(
        "setp.lt.u32 %p1, %r0, 70; bar.red.popc.u32 %r1, 0, %p1;
         bar.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, !%p1;
         selp.u32 %r2, 1000, 0, %p2; selp.u32 %r3, 10000, 0, %p3;
         add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; {}",
        store("u32", 4, "%r1")
    );
    let mut bench = Bench::new(512);
    bench.launch(&module("", &body), (1, 128), &[]).unwrap();
    assert_eq!(bench.results::<u32>(128), [10_070; 128]);
}

#[test]
fn a_barrier_in_a_divergent_warp_stops() {
    let found = cause(
        64,
        "setp.lt.u32 %p1, %r0, 40; @!%p1 bra E; bar.sync 0; E: ret;",
    );
    assert!(
        matches!(found, Cause::Divergent { active: 0xff, .. }),
        "{found}"
    );
}

#[test]
fn a_barrier_that_whole_warps_never_reach_stops() {
    let found = cause(
        64,
        "setp.lt.u32 %p1, %r0, 32; @!%p1 bra E; bar.sync 0; E: ret;",
    );
    let expected = Cause::BarrierNotReached {
        id: 0,
        expected: 64,
        arrived: 32,
    };
    assert_eq!(found, expected);
}

#[test]
fn exited_warps_count_at_barriers_if_that_is_allowed() {
    let mut bench = Bench::new(256);
    let module = module("", "setp.ge.u32 %p1, %r0, 32; @%p1 exit; bar.sync 0;");
    let mut options = ptx_emulator::Options::default();
    options.allow_exited_at_barriers = true;
    assert_eq!(
        bench
            .launch_with(&module, (1, 64), &[], options)
            .unwrap()
            .barriers,
        1
    );
    assert!(bench.launch(&module, (1, 64), &[]).is_err());
}

#[test]
fn endless_loops_stop_at_the_limit() {
    let mut bench = Bench::new(4);
    let mut options = ptx_emulator::Options::default();
    options.instruction_limit = 1000;
    let module = module("", "L: bra L;");
    let fault = bench
        .launch_with(&module, (1, 32), &[], options)
        .unwrap_err();
    assert_eq!(fault.cause, Cause::Limit { limit: 1000 });
}

#[test]
fn ways_meet_before_a_loop_that_only_predicated_exits_leave() {
    // Each lane counts to its own number, all exchange, then each writes until it has written twice.
    let module = module(
        "",
        "mov.u32 %r1, 0;
         COUNT: setp.ge.u32 %p1, %r1, %r0;
         @%p1 bra MEET;
         add.u32 %r1, %r1, 1;
         bra COUNT;
         MEET: shfl.sync.bfly.b32 %r2, %r1, 31, 31, 0xffffffff;
         mov.u32 %r3, 0;
         mul.wide.u32 %rd1, %r0, 4;
         add.u64 %rd1, %rd1, %rd0;
         WRITE: setp.ge.u32 %p1, %r3, 2;
         @%p1 ret;
         st.global.u32 [%rd1], %r2;
         add.u32 %r3, %r3, 1;
         bra WRITE;",
    );
    let mut bench = Bench::new(128);
    bench.launch(&module, (1, 32), &[]).unwrap();
    let found = bench.memory.read::<u32>(bench.out, 32).unwrap();
    let expected: Vec<u32> = (0..32).rev().collect();
    assert_eq!(found, expected);
}
