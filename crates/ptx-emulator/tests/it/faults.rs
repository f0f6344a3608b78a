//! Planted faults: each must be found, and named.

use crate::support::{self, Bench, cause, fault, module, store};
use ptx_emulator::{Argument, Block, Cause, Grid, Launch, MemoryError, StateSpace};

#[test]
fn a_store_past_an_allocation_names_it_and_the_thread() {
    let mut bench = Bench::new(4 * 33);
    let body = store("u32", 4, "%r0");
    let found = bench.launch(&module("", &body), (1, 64), &[]).unwrap_err();
    let place = found.place.clone().unwrap();
    assert_eq!(
        (place.line, place.thread, place.block),
        (7, [33, 0, 0], [0, 0, 0])
    );
    assert!(place.text.contains("st.global.u32"), "{}", place.text);
    let Cause::OutOfBounds {
        access: "store",
        space: StateSpace::Global,
        bytes: 4,
        nearest,
        ..
    } = &found.cause
    else {
        panic!("{found}")
    };
    assert_eq!(
        nearest,
        "ends 4 bytes past `out` (132 bytes), whose offset is 132"
    );
}

#[test]
fn a_load_before_an_allocation_is_found() {
    let found = cause(1, "ld.global.u32 %r1, [%rd0-4];");
    let Cause::OutOfBounds {
        access: "load",
        nearest,
        ..
    } = &found
    else {
        panic!("{found}")
    };
    assert_eq!(nearest, "4 bytes before `out` (4096 bytes)");
}

#[test]
fn a_vector_half_outside_is_found() {
    let mut bench = Bench::new(24);
    let body = "mov.f32 %f1, 0f3F800000; st.global.v4.f32 [%rd0+16], {%f1, %f1, %f1, %f1};";
    let found = bench.launch(&module("", body), (1, 1), &[]).unwrap_err();
    assert!(
        matches!(found.cause, Cause::OutOfBounds { bytes: 16, .. }),
        "{found}"
    );
}

#[test]
fn a_shared_store_out_of_bounds_is_found() {
    let found = cause(
        32,
        ".shared .align 4 .b8 box[64]; mov.u32 %r1, box; mad.lo.u32 %r2, %r0, 4, %r1; st.shared.u32 [%r2], %r0;",
    );
    let expected = "store of 4 bytes out of bounds of shared memory at 0x40: the block has 64 bytes of shared memory (64 static)";
    assert_eq!(found.to_string(), expected);
}

#[test]
fn memory_that_was_freed_is_found() {
    let mut bench = Bench::new(8);
    let gone = bench.put(&[1_u32]);
    bench.memory.free(gone).unwrap();
    let module = module(
        ".param .u64 gone",
        "ld.param.u64 %rd1, [gone]; ld.global.u32 %r1, [%rd1];",
    );
    let found = bench.launch(&module, (1, 1), &[gone.into()]).unwrap_err();
    let Cause::OutOfBounds { nearest, .. } = &found.cause else {
        panic!("{found}")
    };
    assert_eq!(nearest, "allocation 1 (4 bytes) was freed");
    assert!(matches!(
        bench.memory.free(gone),
        Err(MemoryError::NotAllocated { .. })
    ));
}

#[test]
fn misaligned_vectors_are_found() {
    let found = cause(1, "ld.global.v2.u32 {%r1, %r2}, [%rd0+4];");
    assert!(
        matches!(found, Cause::Misaligned { bytes: 8, .. }),
        "{found}"
    );
    let found = cause(
        1,
        ".shared .align 16 .b8 box[64]; mov.u32 %r1, 0; st.shared.v4.u32 [box+8], {%r1,%r1,%r1,%r1};",
    );
    assert!(
        matches!(found, Cause::Misaligned { bytes: 16, .. }),
        "{found}"
    );
}

#[test]
fn reads_of_what_was_never_written_are_found() {
    let found = cause(1, "ld.global.u32 %r1, [%rd0+12];");
    let Cause::UndefinedMemory { nearest, .. } = &found else {
        panic!("{found}")
    };
    assert_eq!(nearest, "byte 12 of `out` (4096 bytes)");
    let found = cause(1, ".shared .b32 box[4]; ld.shared.u32 %r1, [box];");
    assert!(
        matches!(
            found,
            Cause::UndefinedMemory {
                space: StateSpace::Shared,
                ..
            }
        ),
        "{found}"
    );
    // One byte of four.
    let found = cause(
        1,
        "mov.u32 %r1, 7; st.global.u8 [%rd0], %r1; ld.global.u16 %r2, [%rd0];",
    );
    assert!(matches!(found, Cause::UndefinedMemory { .. }), "{found}");
    let found = cause(1, "add.u32 %r1, %r2, 1;");
    assert_eq!(found, Cause::UndefinedRegister { name: "%r2".into() });
    let found = cause(1, "@%p3 mov.u32 %r1, 1;");
    assert_eq!(found, Cause::UndefinedRegister { name: "%p3".into() });
}

#[test]
fn a_register_that_only_some_lanes_wrote_is_found_in_the_others() {
    let found = fault(
        32,
        "setp.lt.u32 %p1, %r0, 9; @%p1 mov.u32 %r1, 1; add.u32 %r2, %r1, 1;",
    );
    assert_eq!(found.cause, Cause::UndefinedRegister { name: "%r1".into() });
    assert_eq!(found.place.unwrap().thread, [9, 0, 0]);
}

#[test]
fn shared_memory_of_the_block_before_is_not_defined_in_the_next() {
    let mut bench = Bench::new(4);
    let body = ".shared .b32 box; mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0;
                @%p1 st.shared.u32 [box], %r1; ld.shared.u32 %r2, [box];";
    let found = bench.launch(&module("", body), (2, 1), &[]).unwrap_err();
    assert!(
        matches!(found.cause, Cause::UndefinedMemory { .. }),
        "{found}"
    );
    assert_eq!(found.place.unwrap().block, [1, 0, 0]);
}

#[test]
fn the_host_cannot_read_what_was_never_written() {
    let mut bench = Bench::new(8);
    bench
        .launch(&module("", "st.global.u32 [%rd0], %r0;"), (1, 1), &[])
        .unwrap();
    assert_eq!(bench.results::<u32>(1), [0]);
    let found = bench.memory.read::<u32>(bench.out, 2).unwrap_err();
    assert_eq!(
        found,
        MemoryError::Undefined {
            what: "`out` (8 bytes)".into(),
            byte: 4
        }
    );
}

#[test]
fn copies_carry_what_is_undefined() {
    let mut bench = Bench::new(8);
    let other = bench.memory.allocate(8).unwrap();
    bench.memory.write(other.offset(4), &[5_u32]).unwrap();
    bench.memory.copy(bench.out, other, 8).unwrap();
    assert_eq!(
        bench.memory.read::<u32>(bench.out.offset(4), 1).unwrap(),
        [5]
    );
    assert!(!bench.memory.is_defined(bench.out, 8));
    bench.memory.fill(bench.out, 1, 4).unwrap();
    assert_eq!(bench.results::<u32>(2), [0x0101_0101, 5]);
}

#[test]
fn the_device_runs_out_of_memory() {
    let mut memory = ptx_emulator::Memory::with_capacity(100);
    let first = memory.allocate(60).unwrap();
    let found = memory.allocate(41).unwrap_err();
    assert_eq!(
        found,
        MemoryError::OutOfMemory {
            bytes: 41,
            left: 40,
            capacity: 100
        }
    );
    memory.free(first).unwrap();
    assert!(memory.allocate(100).is_ok());
}

/// Lanes of one warp pass a value to their neighbour through shared memory.
const NEIGHBOURS: &str = ".shared .b32 box[32];
    mov.u32 %r1, box; mad.lo.u32 %r2, %r0, 4, %r1; st.shared.u32 [%r2], %r0;
    ORDER
    xor.b32 %r3, %r0, 1; mad.lo.u32 %r2, %r3, 4, %r1; ld.shared.u32 %r4, [%r2];";

#[test]
fn lock_step_hides_no_race() {
    for order in [
        "",
        "shfl.sync.idx.b32 %r9, %r0, 0, 31, -1;",
        "membar.cta;",
        "bar.warp.sync 0x0000ffff;",
    ] {
        let body = NEIGHBOURS.replace(
            "ORDER",
            &format!(
                "setp.lt.u32 %p1, %r0, 16; {}",
                if order.contains("0x") {
                    format!("@%p1 {order}")
                } else {
                    order.into()
                }
            ),
        );
        let found = fault(32, &body);
        let Cause::Race {
            access: "load",
            space: StateSpace::Shared,
            other,
            other_place,
            ..
        } = &found.cause
        else {
            panic!("{order}: {found}")
        };
        assert_eq!(
            (*other, other_place.line, other_place.thread),
            ("a write", 8, [1, 0, 0])
        );
    }
    for order in ["bar.warp.sync 0xffffffff;", "bar.sync 0;"] {
        let body = NEIGHBOURS.replace("ORDER", order);
        assert!(
            Bench::new(4)
                .launch(&module("", &body), (1, 32), &[])
                .is_ok(),
            "{order}"
        );
    }
}

#[test]
fn a_write_after_a_read_is_a_race_too() {
    let body = ".shared .b32 box; setp.eq.u32 %p1, %r0, 0; mov.u32 %r1, 1; @%p1 st.shared.u32 [box], %r1;
                bar.sync 0; ld.shared.u32 %r2, [box]; setp.eq.u32 %p2, %r0, 40; @%p2 st.shared.u32 [box], %r2;";
    let found = cause(64, body);
    assert!(
        matches!(
            found,
            Cause::Race {
                access: "store",
                other: "a read",
                ..
            }
        ),
        "{found}"
    );
}

#[test]
fn two_lanes_that_store_to_one_place_race() {
    let found = cause(32, "st.global.u32 [%rd0], %r0;");
    assert!(
        matches!(
            found,
            Cause::Race {
                other: "a write",
                ..
            }
        ),
        "{found}"
    );
}

#[test]
fn blocks_race_in_global_memory() {
    // Each block writes its own element, then reads that of the block before.
    let body = "mov.u32 %r1, %ctaid.x; mul.wide.u32 %rd1, %r1, 4; add.u64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r1;
                setp.eq.u32 %p1, %r1, 0; @%p1 exit; ld.global.u32 %r2, [%rd2-4];";
    let mut bench = Bench::new(16);
    let found = bench.launch(&module("", body), (2, 1), &[]).unwrap_err();
    let Cause::Race {
        space: StateSpace::Global,
        other: "a write",
        other_place,
        ..
    } = &found.cause
    else {
        panic!("{found}")
    };
    assert_eq!(
        (other_place.block, found.place.unwrap().block),
        ([0, 0, 0], [1, 0, 0])
    );
    // The same in two launches is ordered.
    let write = module("", &body.replace("ld.global.u32 %r2, [%rd2-4];", ""));
    let read = module("", "ld.global.u32 %r2, [%rd0];");
    bench.launch(&write, (2, 1), &[]).unwrap();
    bench.launch(&read, (2, 1), &[]).unwrap();
}

#[test]
fn atomics_do_not_race_but_plain_reads_beside_them_do() {
    let mut bench = Bench::new(4);
    bench.memory.fill(bench.out, 0, 4).unwrap();
    let add = "mov.u32 %r1, 1; red.global.add.u32 [%rd0], %r1;";
    bench.launch(&module("", add), (3, 96), &[]).unwrap();
    assert_eq!(bench.results::<u32>(1), [288]);
    let found = bench.launch(
        &module("", &format!("{add} ld.global.u32 %r2, [%rd0];")),
        (2, 1),
        &[],
    );
    assert!(matches!(found.unwrap_err().cause, Cause::Race { .. }));
}

#[test]
fn read_only_loads_of_what_the_launch_writes_are_found() {
    let body = "mov.u32 %r1, 1; st.global.u32 [%rd0], %r1; ld.global.nc.u32 %r2, [%rd0];";
    assert!(matches!(cause(1, body), Cause::Race { .. }));
}

#[test]
fn races_can_be_left_out() {
    let mut options = ptx_emulator::Options::default();
    options.detect_races = false;
    let body = NEIGHBOURS.replace("ORDER", "");
    assert!(
        Bench::new(4)
            .launch_with(&module("", &body), (1, 32), &[], options)
            .is_ok()
    );
}

/// x · 0.5 + 1 of each element.
const SCALE: &str =
    "mul.wide.u32 %rd1, %r0, 4; add.u64 %rd2, %rd0, %rd1; ld.global.f32 %f1, [%rd2];
    fma.rn.f32 %f2, %f1, 0f3F000000, 0f3F800000; st.global.f32 [%rd2], %f2;";

#[test]
fn a_wrong_constant_shows_in_the_result() {
    let results = |body: &str| {
        let mut bench = Bench::new(128);
        let values: Vec<f32> = (0..32).map(|i| i as f32).collect();
        bench.memory.write(bench.out, &values).unwrap();
        bench.launch(&module("", body), (1, 32), &[]).unwrap();
        bench.results::<f32>(32)
    };
    let expected: Vec<f32> = (0..32).map(|i| i as f32 * 0.5 + 1.0).collect();
    assert_eq!(support::first_difference(&expected, &results(SCALE)), None);
    // One unit in the last place of the constant.
    let wrong = results(&SCALE.replace("0f3F800000", "0f3F800001"));
    assert_eq!(
        support::first_difference(&expected, &wrong),
        Some((0, 1.0, 1.0 + f32::EPSILON))
    );
}

#[test]
fn results_do_not_depend_on_the_order_of_blocks_and_warps() {
    let body = ".shared .b32 box[128];
        mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 128, %r0; mov.u32 %r3, box; mad.lo.u32 %r4, %r0, 4, %r3;
        st.shared.u32 [%r4], %r2; bar.sync 0; xor.b32 %r5, %r0, 127; mad.lo.u32 %r5, %r5, 4, %r3; ld.shared.u32 %r6, [%r5];
        mul.wide.u32 %rd1, %r2, 4; add.u64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r6;";
    let module = module("", body);
    let expected: Vec<u32> = (0..640).map(|i| i / 128 * 128 + (127 - i % 128)).collect();
    for seed in [None, Some(1), Some(2), Some(3)] {
        let mut bench = Bench::new(4 * 640);
        let mut options = ptx_emulator::Options::default();
        options.order_seed = seed;
        bench.launch_with(&module, (5, 128), &[], options).unwrap();
        assert_eq!(bench.results::<u32>(640), expected);
    }
}

/// A kernel whose result is the number of the block that comes first shows the order.
#[test]
fn a_seed_changes_the_order_of_blocks() {
    let module = module(
        "",
        "mov.u32 %r1, %ctaid.x; mov.u32 %r3, -1; atom.global.cas.b32 %r2, [%rd0], %r3, %r1;",
    );
    let firsts: Vec<u32> = [None, Some(1), Some(2), Some(3), Some(4)]
        .into_iter()
        .map(|seed| {
            let mut bench = Bench::new(4);
            bench.memory.fill(bench.out, 0xff, 4).unwrap();
            let mut options = ptx_emulator::Options::default();
            options.order_seed = seed;
            bench.launch_with(&module, (100, 1), &[], options).unwrap();
            bench.results::<u32>(1)[0]
        })
        .collect();
    assert_eq!(firsts[0], 0);
    assert!(firsts[1..].iter().any(|first| *first != 0), "{firsts:?}");
}

#[test]
fn arguments_must_fit_the_parameters() {
    let module = module(".param .u32 n, .param .f32 x", "ret;");
    let mut bench = Bench::new(4);
    let found = bench.launch(&module, (1, 1), &[1_u32.into()]).unwrap_err();
    assert_eq!(
        found.cause,
        Cause::ArgumentCount {
            expected: 3,
            found: 2
        }
    );
    let found = bench
        .launch(&module, (1, 1), &[1_u32.into(), 1_u32.into()])
        .unwrap_err();
    assert!(
        matches!(found.cause, Cause::Argument { index: 2, .. }),
        "{found}"
    );
    let found = bench
        .launch(&module, (1, 1), &[Argument::U64(1), 1.0_f32.into()])
        .unwrap_err();
    assert!(
        matches!(found.cause, Cause::Argument { index: 1, .. }),
        "{found}"
    );
    assert!(
        bench
            .launch(&module, (1, 1), &[1_u32.into(), 1.0_f32.into()])
            .is_ok()
    );
    let found = Launch::new(&module, "other", Grid::x(1), Block::x(1), &[]).run(&mut bench.memory);
    assert_eq!(
        found.unwrap_err().cause,
        Cause::UnknownKernel {
            names: vec!["k".into()]
        }
    );
}

#[test]
fn shapes_must_be_allowed() {
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 more[];
        .visible .entry k() .reqntid 64, 1, 1 { .reg .b32 %r<2>; .shared .b32 box[4]; mov.u32 %r1, more; ret; }
        .visible .entry plain() .maxntid 128 { ret; }";
    let module = ptx_emulator::Module::parse(text).unwrap();
    let mut memory = ptx_emulator::Memory::new();
    let mut run = |kernel, grid, block, shared| {
        Launch::new(&module, kernel, grid, block, &[])
            .dynamic_shared(shared)
            .run(&mut memory)
    };
    assert!(run("k", Grid::x(1), Block::x(64), 99 * 1024 - 16).is_ok());
    let too_much = run("k", Grid::x(1), Block::x(64), 99 * 1024 - 15).unwrap_err();
    assert!(
        matches!(too_much.cause, Cause::SharedMemory { .. }),
        "{too_much}"
    );
    let unused = run("plain", Grid::x(1), Block::x(64), 16).unwrap_err();
    assert!(
        matches!(unused.cause, Cause::SharedMemory { .. }),
        "{unused}"
    );
    for (kernel, grid, block) in [
        ("k", Grid::x(1), Block::x(32)),
        ("plain", Grid::x(1), Block::x(129)),
        ("plain", Grid::x(0), Block::x(1)),
        ("plain", Grid([1, 65_536, 1]), Block::x(1)),
        ("plain", Grid::x(1), Block([64, 32, 1])),
    ] {
        let found = run(kernel, grid, block, 0).unwrap_err();
        assert!(matches!(found.cause, Cause::Shape { .. }), "{found}");
    }
}

#[test]
fn tables_are_read_but_not_written() {
    let text = support::text("", &format!("mov.u64 %rd1, table; mul.wide.u32 %rd2, %r0, 4; add.u64 %rd3, %rd1, %rd2; ld.const.f32 %f1, [%rd3]; {}", store("f32", 4, "%f1")))
        .replace(".visible", ".const .align 4 .f32 table[4] = {1.0, 0f40000000, -3.0, 4.0};\n.visible");
    let mut bench = Bench::new(16);
    bench
        .launch(&ptx_emulator::Module::parse(&text).unwrap(), (1, 4), &[])
        .unwrap();
    assert_eq!(bench.results::<f32>(4), [1.0, 2.0, -3.0, 4.0]);
    let written = text.replace(
        "ld.const.f32 %f1, [%rd3];",
        "mov.f32 %f1, 1.0; st.global.f32 [%rd3], %f1;",
    );
    let found = bench
        .launch(&ptx_emulator::Module::parse(&written).unwrap(), (1, 4), &[])
        .unwrap_err();
    assert!(
        matches!(found.cause, Cause::ConstantStore { .. }),
        "{found}"
    );
    let found = bench
        .launch(&ptx_emulator::Module::parse(&text).unwrap(), (1, 5), &[])
        .unwrap_err();
    assert!(
        matches!(
            found.cause,
            Cause::OutOfBounds {
                space: StateSpace::Constant,
                ..
            }
        ),
        "{found}"
    );
}
