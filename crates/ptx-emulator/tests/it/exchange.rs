//! Shuffles, votes, reductions, and loads of matrices.

#![allow(clippy::unwrap_used)]

use crate::support::{Bench, cause, module, run_warp, store};
use ptx_emulator::Cause;

fn shuffled(mode: &str, b: u32, c: u32) -> Vec<u32> {
    let body = format!(
        "mul.lo.u32 %r1, %r0, 3; shfl.sync.{mode}.b32 %r2|%p1, %r1, {b}, {c}, -1;
         @!%p1 add.u32 %r2, %r2, 1000; {}",
        store("u32", 4, "%r2")
    );
    run_warp(&body).unwrap()
}

/// What lane `lane` gets from lane `from`, or itself if that is out of range.
fn got(lane: u32, from: Option<u32>) -> u32 {
    from.map_or(1000 + 3 * lane, |from| 3 * from)
}

#[test]
fn shuffles_over_the_whole_warp() {
    let lanes = 0..32_u32;
    let up: Vec<_> = lanes.clone().map(|l| got(l, l.checked_sub(3))).collect();
    assert_eq!(shuffled("up", 3, 0), up);
    let down: Vec<_> = lanes
        .clone()
        .map(|l| got(l, Some(l + 5).filter(|f| *f < 32)))
        .collect();
    assert_eq!(shuffled("down", 5, 31), down);
    let butterfly: Vec<_> = lanes.clone().map(|l| got(l, Some(l ^ 21))).collect();
    assert_eq!(shuffled("bfly", 21, 31), butterfly);
    let index: Vec<_> = lanes.map(|l| got(l, Some(7))).collect();
    assert_eq!(shuffled("idx", 7, 31), index);
}

#[test]
fn shuffles_in_segments_of_eight() {
    // `c` as the documentation makes it: 32 less the width in bits 8 to 12, the last lane of a segment below.
    let segment = (32 - 8) << 8;
    let lanes = 0..32_u32;
    let up: Vec<_> = lanes
        .clone()
        .map(|l| got(l, (l % 8).checked_sub(3).map(|f| l / 8 * 8 + f)))
        .collect();
    assert_eq!(shuffled("up", 3, segment), up);
    let down: Vec<_> = lanes
        .clone()
        .map(|l| got(l, Some(l % 8 + 5).filter(|f| *f < 8).map(|f| l / 8 * 8 + f)))
        .collect();
    assert_eq!(shuffled("down", 5, segment | 31), down);
    let index: Vec<_> = lanes.map(|l| got(l, Some(l / 8 * 8 + 2))).collect();
    assert_eq!(shuffled("idx", 2, segment | 31), index);
}

#[test]
fn a_sum_by_butterflies() {
    let mut body = String::from("add.u32 %r1, %r0, 1;\n");
    for step in [16, 8, 4, 2, 1] {
        body += &format!(
            "shfl.sync.bfly.b32 %r2, %r1, {step}, 31, 0xffffffff; add.u32 %r1, %r1, %r2;\n"
        );
    }
    body += &store("u32", 4, "%r1");
    assert_eq!(run_warp::<u32>(&body).unwrap(), [528; 32]);
}

#[test]
fn votes() {
    let body = format!(
        "setp.lt.u32 %p1, %r0, 9; vote.sync.ballot.b32 %r1, %p1, -1; vote.sync.any.pred %p2, %p1, -1;
         vote.sync.all.pred %p3, %p1, -1; vote.sync.uni.pred %p4, %p3, -1;
         selp.u32 %r2, 0x1000, 0, %p2; selp.u32 %r3, 0x2000, 0, %p3; selp.u32 %r4, 0x4000, 0, %p4;
         or.b32 %r1, %r1, %r2; or.b32 %r1, %r1, %r3; or.b32 %r1, %r1, %r4; {}",
        store("u32", 4, "%r1")
    );
    assert_eq!(run_warp::<u32>(&body).unwrap(), [0x51ff; 32]);
}

#[test]
fn reductions_of_groups_of_lanes() {
    // The lower and the upper half each reduce among themselves.
    let body = format!(
        "setp.lt.u32 %p1, %r0, 16; selp.b32 %r1, 0xffff, 0xffff0000, %p1; sub.s32 %r2, %r0, 20;
         redux.sync.add.s32 %r3, %r2, %r1; redux.sync.max.s32 %r4, %r2, %r1; redux.sync.min.u32 %r5, %r2, %r1;
         redux.sync.xor.b32 %r6, %r0, %r1; mad.lo.s32 %r3, %r4, 1000, %r3; mad.lo.s32 %r3, %r6, 7, %r3; add.u32 %r3, %r3, %r5; {}",
        store("u32", 4, "%r3")
    );
    let half = |lanes: std::ops::Range<i32>| {
        let sum: i32 = lanes.clone().map(|l| l - 20).sum();
        let max = lanes.clone().map(|l| l - 20).max().unwrap();
        let min = lanes.clone().map(|l| (l - 20) as u32).min().unwrap();
        let xor = lanes.fold(0, |x, l| x ^ l);
        ((max * 1000 + sum + 7 * xor) as u32).wrapping_add(min)
    };
    let expected: Vec<u32> = (0..32)
        .map(|l| if l < 16 { half(0..16) } else { half(16..32) })
        .collect();
    assert_eq!(run_warp::<u32>(&body).unwrap(), expected);
}

#[test]
fn member_masks_must_fit_the_lanes_that_are_there() {
    // All lanes are named, half are there.
    let found = cause(
        32,
        "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r1, %r0, 0, 31, -1;",
    );
    assert_eq!(
        found,
        Cause::Members {
            members: u32::MAX,
            active: 0xffff,
            live: u32::MAX
        }
    );
    // A lane that is there is not named.
    let found = cause(32, "shfl.sync.idx.b32 %r1, %r0, 0, 31, 0xffff;");
    assert!(
        matches!(
            found,
            Cause::Members {
                members: 0xffff,
                ..
            }
        ),
        "{found}"
    );
    // Lanes of one group name different groups.
    let found = cause(
        32,
        "setp.lt.u32 %p1, %r0, 8; selp.b32 %r1, 0xffff, 0xffff0000, %p1; setp.ge.u32 %p2, %r0, 16; @%p2 exit; vote.sync.any.pred %p3, %p1, %r1;",
    );
    assert!(matches!(found, Cause::Members { .. }), "{found}");
}

#[test]
fn a_shuffle_from_a_lane_outside_the_group_stops() {
    let found = cause(
        32,
        "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r1, %r0, 20, 31, 0xffff;",
    );
    assert_eq!(found, Cause::ShuffleSource { source_lane: 20 });
}

#[test]
fn atomics_take_lanes_in_turn() {
    let table: [(&str, u32, u32); 9] = [
        ("add.u32 %r2, [%rd0], %r0", 5, 5 + 496),
        ("min.s32 %r2, [%rd0], -3", 5, -3_i32 as u32),
        ("max.u32 %r2, [%rd0], %r0", 5, 31),
        ("or.b32 %r2, [%rd0], %r0", 0x100, 0x11f),
        ("and.b32 %r2, [%rd0], 6", 5, 4),
        ("xor.b32 %r2, [%rd0], 1", 5, 5),
        ("inc.u32 %r2, [%rd0], 9", 5, 7),
        ("exch.b32 %r2, [%rd0], %r0", 5, 31),
        ("cas.b32 %r2, [%rd0], 5, 77", 5, 77),
    ];
    for (text, start, end) in table {
        let mut bench = Bench::new(8);
        bench.memory.write(bench.out, &[start, 0]).unwrap();
        bench
            .launch(&module("", &format!("atom.global.{text};")), (1, 32), &[])
            .unwrap();
        assert_eq!(bench.results::<u32>(1), [end], "{text}");
    }
    // What an atomic returns is the value before it: 32 different ones.
    let mut bench = Bench::new(8 + 128);
    bench.memory.write(bench.out, &[3_u64]).unwrap();
    let body = format!(
        "mov.u64 %rd1, 1; atom.global.add.u64 %rd2, [%rd0], %rd1; cvt.u32.u64 %r1, %rd2; add.u64 %rd0, %rd0, 8; {}",
        store("u32", 4, "%r1")
    );
    bench.launch(&module("", &body), (1, 32), &[]).unwrap();
    let found = bench.memory.read::<u32>(bench.out.offset(8), 32).unwrap();
    assert_eq!(found, (3..35).collect::<Vec<u32>>());
}

#[test]
fn a_matrix_is_loaded_by_rows_and_by_columns() {
    for transposed in [false, true] {
        let body = format!(
            ".shared .align 16 .b8 box[512]; mov.u32 %r1, box; mad.lo.u32 %r2, %r0, 16, %r1;
             mul.lo.u32 %r3, %r0, 8;
             mov.u32 %r10, 0;
             FILL: add.u32 %r4, %r3, %r10; cvt.u16.u32 %h1, %r4; mad.lo.u32 %r5, %r10, 2, %r2; st.shared.u16 [%r5], %h1;
             add.u32 %r10, %r10, 1; setp.lt.u32 %p1, %r10, 8; @%p1 bra FILL;
             bar.sync 0;
             ldmatrix.sync.aligned.m8n8.x4{}.shared.b16 {{%r6, %r7, %r8, %r9}}, [%r2];
             mul.wide.u32 %rd1, %r0, 16; add.u64 %rd2, %rd0, %rd1; st.global.v4.b32 [%rd2], {{%r6, %r7, %r8, %r9}};",
            if transposed { ".trans" } else { "" }
        );
        let mut bench = Bench::new(512);
        bench.launch(&module("", &body), (1, 32), &[]).unwrap();
        let found = bench.results::<u16>(256);
        for lane in 0..32 {
            for matrix in 0..4 {
                for part in 0..2 {
                    let (i, j) = (lane / 4, lane % 4 * 2 + part);
                    let (row, column) = if transposed { (j, i) } else { (i, j) };
                    let expected = 8 * (8 * matrix + row) + column;
                    assert_eq!(
                        usize::from(found[lane * 8 + matrix * 2 + part]),
                        expected,
                        "lane {lane}, matrix {matrix}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_matrix_is_not_loaded_before_all_lanes_have_written_it() {
    // Each lane names the row it has written itself, and still gets parts of others.
    let body = ".shared .align 16 .b8 box[512]; mov.u32 %r1, box; mad.lo.u32 %r2, %r0, 16, %r1;
        st.shared.v4.b32 [%r2], {%r0, %r0, %r0, %r0};
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r6, %r7, %r8, %r9}, [%r2];";
    assert!(matches!(
        cause(32, body),
        Cause::Race {
            access: "ldmatrix",
            ..
        }
    ));
    let found = cause(
        16,
        &body.replace("st.shared.v4.b32 [%r2], {%r0, %r0, %r0, %r0};", ""),
    );
    assert!(matches!(found, Cause::Divergent { .. }), "{found}");
}
