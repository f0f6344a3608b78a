//! Asynchronous copies.

use crate::support::{Bench, module};
use ptx_emulator::{Cause, StateSpace};

/// Each of 32 threads copies 16 bytes to its place in shared memory, and reads them back.
fn body(copy: &str, wait: &str, read: &str) -> String {
    format!(
        ".shared .align 16 .b8 box[1024]; ld.param.u64 %rd1, [from]; mul.wide.u32 %rd2, %r0, 16; add.u64 %rd3, %rd1, %rd2;
         mov.u32 %r1, box; mad.lo.u32 %r2, %r0, 16, %r1;
         {copy}
         {wait}
         {read}
         add.u64 %rd4, %rd0, %rd2; st.global.v4.u32 [%rd4], {{%r4, %r5, %r6, %r7}};"
    )
}

const COPY: &str = "cp.async.cg.shared.global [%r2], [%rd3], 16;";
const READ: &str = "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r2];";

fn run(copy: &str, wait: &str, read: &str) -> Result<Vec<u32>, Cause> {
    let mut bench = Bench::new(512);
    let from = bench.put(&(0..128).collect::<Vec<u32>>());
    let module = module(".param .u64 from", &body(copy, wait, read));
    bench
        .launch(&module, (1, 32), &[from.into()])
        .map_err(|fault| fault.cause)?;
    Ok(bench.results(128))
}

#[test]
fn what_was_waited_for_is_there() {
    let expected: Vec<u32> = (0..128).collect();
    for wait in [
        "cp.async.commit_group; cp.async.wait_group 0;",
        "cp.async.wait_all;",
    ] {
        assert_eq!(run(COPY, wait, READ).unwrap(), expected, "{wait}");
    }
}

#[test]
fn reading_or_writing_the_target_too_early_stops() {
    let early = |found: Result<_, Cause>| match found {
        Err(Cause::CopyInFlight { .. }) => {}
        other => panic!("{other:?}"),
    };
    early(run(COPY, "", READ));
    early(run(COPY, "cp.async.commit_group;", READ));
    // A group that is not committed is waited for by wait_all alone.
    early(run(COPY, "cp.async.wait_group 0;", READ));
    early(run(
        COPY,
        "cp.async.commit_group; cp.async.wait_group 1;",
        READ,
    ));
    early(run(
        COPY,
        "st.shared.u32 [%r2], %r0; cp.async.wait_all;",
        READ,
    ));
    early(run(COPY, COPY, READ));
}

#[test]
fn the_youngest_groups_stay_in_flight() {
    let two = format!(
        "{COPY} cp.async.commit_group; cp.async.cg.shared.global [%r2+512], [%rd3], 16; cp.async.commit_group;"
    );
    let older = run(&two, "cp.async.wait_group 1;", READ).unwrap();
    assert_eq!(older, (0..128).collect::<Vec<u32>>());
    let younger = run(
        &two,
        "cp.async.wait_group 1;",
        &READ.replace("%r2]", "%r2+512]"),
    );
    assert!(matches!(younger, Err(Cause::CopyInFlight { .. })));
}

#[test]
fn what_lies_behind_a_short_source_becomes_zero() {
    let short = "cp.async.cg.shared.global [%r2], [%rd3], 16, 8;";
    let found = run(short, "cp.async.wait_all;", READ).unwrap();
    let expected: Vec<u32> = (0..128).map(|i| if i % 4 < 2 { i } else { 0 }).collect();
    assert_eq!(found, expected);
    // With a source of no bytes, no address is read.
    let none = "mov.u64 %rd3, 0; cp.async.cg.shared.global [%r2], [%rd3], 16, 0;";
    assert_eq!(run(none, "cp.async.wait_all;", READ).unwrap(), [0; 128]);
}

#[test]
fn waiting_orders_nothing_for_other_threads() {
    // Each thread reads what its neighbour has copied.
    let neighbour = "xor.b32 %r3, %r0, 1; mad.lo.u32 %r2, %r3, 16, %r1; ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r2];";
    let found = run(COPY, "cp.async.wait_all;", neighbour);
    assert!(
        matches!(
            found,
            Err(Cause::Race {
                space: StateSpace::Shared,
                ..
            })
        ),
        "{found:?}"
    );
    assert!(run(COPY, "cp.async.wait_all; bar.sync 0;", neighbour).is_ok());
    // A barrier before the wait does not help.
    let found = run(COPY, "bar.sync 0; cp.async.wait_all;", neighbour);
    assert!(matches!(found, Err(Cause::Race { .. })), "{found:?}");
}

#[test]
fn a_copy_over_what_others_still_read_is_a_race() {
    let used = "st.shared.v4.u32 [%r2], {%r0, %r0, %r0, %r0}; bar.sync 0; xor.b32 %r3, %r0, 1; mad.lo.u32 %r8, %r3, 16, %r1; ld.shared.u32 %r9, [%r8];";
    let found = run(&format!("{used} {COPY}"), "cp.async.wait_all;", READ);
    assert!(
        matches!(
            found,
            Err(Cause::Race {
                access: "cp.async",
                ..
            })
        ),
        "{found:?}"
    );
    assert!(
        run(
            &format!("{used} bar.sync 0; {COPY}"),
            "cp.async.wait_all;",
            READ
        )
        .is_ok()
    );
}

#[test]
fn a_source_that_changes_meanwhile_is_found() {
    let found = run(COPY, "st.global.u32 [%rd3], 999; cp.async.wait_all;", READ);
    assert!(
        matches!(found, Err(Cause::CopySourceChanged { .. })),
        "{found:?}"
    );
}

#[test]
fn copies_are_checked_as_loads_and_stores_are() {
    let misaligned = run(&COPY.replace("%r2]", "%r2+8]"), "cp.async.wait_all;", READ);
    assert!(
        matches!(misaligned, Err(Cause::Misaligned { .. })),
        "{misaligned:?}"
    );
    let outside = run(
        &COPY.replace("%r2]", "%r2+1008]"),
        "cp.async.wait_all;",
        READ,
    );
    assert!(
        matches!(
            outside,
            Err(Cause::OutOfBounds {
                space: StateSpace::Shared,
                ..
            })
        ),
        "{outside:?}"
    );
    let outside = run(
        &COPY.replace("%rd3]", "%rd3+16]"),
        "cp.async.wait_all;",
        READ,
    );
    assert!(
        matches!(
            outside,
            Err(Cause::OutOfBounds {
                space: StateSpace::Global,
                ..
            })
        ),
        "{outside:?}"
    );
}
