//! Float instructions and conversions against Rust's own, bit by bit.

use crate::support::{self, cause, run_table};
use half::{bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;
use ptx_emulator::Cause;

/// Bit patterns: any, small integers, and the edges of the format.
fn single() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (-9_i32..9).prop_map(|n| (n as f32).to_bits()),
        (-2e5_f32..2e5).prop_map(f32::to_bits),
        prop::sample::select(vec![
            0x8000_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0001,
            0x0000_0001,
            0x7f7f_ffff,
            0x0080_0000,
            0x4f00_0000,
            0xcf00_0000,
            0x3f80_0fff,
            0x3f80_1000,
            0x7f7f_f000,
        ]),
    ]
}

fn double() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (-9_i32..9).prop_map(|n| f64::from(n).to_bits()),
        (-2e10_f64..2e10).prop_map(f64::to_bits),
        prop::sample::select(vec![
            1 << 63,
            f64::INFINITY.to_bits(),
            1,
            f64::MAX.to_bits()
        ]),
    ]
}

/// The one NaN the hardware gives.
fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

type Row = (&'static str, fn(f32, f32, f32) -> u32);

fn ordered_min(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a.total_cmp(&b).is_le() => a,
        _ => b,
    }
}

fn ordered_max(a: f32, b: f32) -> f32 {
    -ordered_min(-a, -b)
}

const SINGLES: &[Row] = &[
    ("add.rn.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", |a, b, _| {
        canonical(a + b)
    }),
    ("sub.rn.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", |a, b, _| {
        canonical(a - b)
    }),
    ("mul.rn.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", |a, b, _| {
        canonical(a * b)
    }),
    (
        "mul.rn.f32 %f9, %f1, 0f3E800000; mov.b32 %r9, %f9;",
        |a, _, _| canonical(a * 0.25),
    ),
    ("add.rn.f32 %f9, %f1, 1.5; mov.b32 %r9, %f9;", |a, _, _| {
        canonical(a + 1.5)
    }),
    (
        "fma.rn.f32 %f9, %f1, %f2, %f3; mov.b32 %r9, %f9;",
        |a, b, c| canonical(a.mul_add(b, c)),
    ),
    ("div.rn.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", |a, b, _| {
        canonical(a / b)
    }),
    ("sqrt.rn.f32 %f9, %f1; mov.b32 %r9, %f9;", |a, _, _| {
        canonical(a.sqrt())
    }),
    ("rcp.rn.f32 %f9, %f1; mov.b32 %r9, %f9;", |a, _, _| {
        canonical(1.0 / a)
    }),
    ("abs.f32 %f9, %f1; mov.b32 %r9, %f9;", |a, _, _| {
        canonical(a.abs())
    }),
    ("neg.f32 %f9, %f1; mov.b32 %r9, %f9;", |a, _, _| {
        canonical(-a)
    }),
    ("min.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", |a, b, _| {
        canonical(ordered_min(a, b))
    }),
    ("max.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", |a, b, _| {
        canonical(ordered_max(a, b))
    }),
    ("min.NaN.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;", |a, b, _| {
        if a.is_nan() || b.is_nan() {
            0x7fff_ffff
        } else {
            ordered_min(a, b).to_bits()
        }
    }),
    (
        "setp.lt.f32 %p1, %f1, %f2; selp.u32 %r9, 1, 0, %p1;",
        |a, b, _| u32::from(a < b),
    ),
    (
        "setp.ne.f32 %p1, %f1, %f2; selp.u32 %r9, 1, 0, %p1;",
        |a, b, _| u32::from(a != b && !a.is_nan() && !b.is_nan()),
    ),
    (
        "setp.neu.f32 %p1, %f1, %f2; selp.u32 %r9, 1, 0, %p1;",
        |a, b, _| u32::from(a != b),
    ),
    (
        "setp.geu.f32 %p1, %f1, %f2; selp.u32 %r9, 1, 0, %p1;",
        |a, b, _| u32::from(a.is_nan() || b.is_nan() || a >= b),
    ),
    (
        "setp.nan.f32 %p1, %f1, %f2; selp.u32 %r9, 1, 0, %p1;",
        |a, b, _| u32::from(a.is_nan() || b.is_nan()),
    ),
    (
        "testp.finite.f32 %p1, %f1; selp.u32 %r9, 1, 0, %p1;",
        |a, _, _| u32::from(a.is_finite()),
    ),
    (
        "testp.subnormal.f32 %p1, %f1; selp.u32 %r9, 1, 0, %p1;",
        |a, _, _| u32::from(a.is_subnormal()),
    ),
    ("cvt.rni.s32.f32 %r9, %f1;", |a, _, _| {
        a.round_ties_even() as i32 as u32
    }),
    ("cvt.rzi.u32.f32 %r9, %f1;", |a, _, _| a as u32),
    ("cvt.rmi.s32.f32 %r9, %f1;", |a, _, _| {
        a.floor() as i32 as u32
    }),
    ("cvt.rpi.s32.f32 %r9, %f1;", |a, _, _| {
        a.ceil() as i32 as u32
    }),
    ("cvt.rni.u8.f32 %r9, %f1;", |a, _, _| {
        u32::from(a.round_ties_even() as u8)
    }),
    ("cvt.rni.s8.f32 %r9, %f1;", |a, _, _| {
        i32::from(a.round_ties_even() as i8) as u32
    }),
    ("cvt.rni.f32.f32 %f9, %f1; mov.b32 %r9, %f9;", |a, _, _| {
        if a.is_nan() {
            0
        } else {
            a.round_ties_even().to_bits()
        }
    }),
    (
        "mov.b32 %r8, %f1; cvt.rn.f32.s32 %f9, %r8; mov.b32 %r9, %f9;",
        |a, _, _| (a.to_bits() as i32 as f32).to_bits(),
    ),
    (
        "mov.b32 %r8, %f1; cvt.rn.f32.u32 %f9, %r8; mov.b32 %r9, %f9;",
        |a, _, _| (a.to_bits() as f32).to_bits(),
    ),
    (
        "cvt.rn.f16.f32 %h1, %f1; cvt.u32.u16 %r9, %h1;",
        |a, _, _| {
            u32::from(if a.is_nan() {
                0x7fff
            } else {
                f16::from_f32(a).to_bits()
            })
        },
    ),
    (
        "cvt.rn.bf16.f32 %h1, %f1; cvt.u32.u16 %r9, %h1;",
        |a, _, _| {
            u32::from(if a.is_nan() {
                0x7fff
            } else {
                bf16::from_f32(a).to_bits()
            })
        },
    ),
    ("cvt.rn.bf16x2.f32 %r9, %f1, %f2;", |a, b, _| {
        let half = |x: f32| {
            u32::from(if x.is_nan() {
                0x7fff
            } else {
                bf16::from_f32(x).to_bits()
            })
        };
        half(a) << 16 | half(b)
    }),
    ("cvt.rna.tf32.f32 %r9, %f1;", |a, _, _| {
        // Half of the last kept place is added to the magnitude, the rest cut off.
        if a.is_finite() {
            (a.to_bits() + 0x1000) & !0x1fff
        } else {
            a.to_bits()
        }
    }),
    (
        "copysign.f32 %f9, %f1, %f2; mov.b32 %r9, %f9;",
        |a, b, _| canonical(b.copysign(a)),
    ),
];

type DoubleRow = (&'static str, fn(f64, f64, f64) -> f64);

const DOUBLES: &[DoubleRow] = &[
    ("add.rn.f64 %d9, %d1, %d2;", |a, b, _| a + b),
    ("mul.rn.f64 %d9, %d1, %d2;", |a, b, _| a * b),
    ("sub.rn.f64 %d9, %d1, 0d3FF8000000000000;", |a, _, _| {
        a - 1.5
    }),
    ("fma.rn.f64 %d9, %d1, %d2, %d3;", f64::mul_add),
    ("div.rn.f64 %d9, %d1, %d2;", |a, b, _| a / b),
    ("sqrt.rn.f64 %d9, %d1;", |a, _, _| a.sqrt()),
    ("rcp.rn.f64 %d9, %d1;", |a, _, _| 1.0 / a),
    ("abs.f64 %d9, %d1;", |a, _, _| a.abs()),
    (
        "cvt.rn.f32.f64 %f1, %d1; cvt.f64.f32 %d9, %f1;",
        |a, _, _| f64::from(a as f32),
    ),
    (
        "cvt.rzi.s64.f64 %rd1, %d1; cvt.rn.f64.s64 %d9, %rd1;",
        |a, _, _| a as i64 as f64,
    ),
    (
        "cvt.rni.s32.f64 %r1, %d1; cvt.rn.f64.s32 %d9, %r1;",
        |a, _, _| f64::from(a.round_ties_even() as i32),
    ),
    (
        "setp.gt.f64 %p1, %d1, %d2; selp.f64 %d9, %d2, %d3, %p1;",
        |a, b, c| if a > b { b } else { c },
    ),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn singles(a in vec(single(), 32), b in vec(single(), 32), c in vec(single(), 32)) {
        let instructions: Vec<_> = SINGLES.iter().map(|(text, _)| *text).collect();
        let found = run_table::<u32, u32>(("f32", "f"), ("u32", "%r9"), &instructions, [&a, &b, &c]);
        for ((text, meaning), found) in SINGLES.iter().zip(found) {
            for lane in 0..32 {
                let (a, b, c) = (f32::from_bits(a[lane]), f32::from_bits(b[lane]), f32::from_bits(c[lane]));
                let expected = meaning(a, b, c);
                // Rounding of a NaN to an integral value is left open.
                if text.starts_with("cvt.rni.f32") && a.is_nan() {
                    continue;
                }
                prop_assert_eq!(found[lane], expected, "{} of {:?}, {:?}, {:?}", text, a, b, c);
            }
        }
    }

    #[test]
    fn doubles(a in vec(double(), 32), b in vec(double(), 32), c in vec(double(), 32)) {
        let instructions: Vec<_> = DOUBLES.iter().map(|(text, _)| *text).collect();
        let found = run_table::<u64, f64>(("f64", "d"), ("f64", "%d9"), &instructions, [&a, &b, &c]);
        for ((text, meaning), found) in DOUBLES.iter().zip(found) {
            for lane in 0..32 {
                let (a, b, c) = (f64::from_bits(a[lane]), f64::from_bits(b[lane]), f64::from_bits(c[lane]));
                let expected = meaning(a, b, c);
                let same = found[lane].to_bits() == expected.to_bits()
                    || found[lane].is_nan() && expected.is_nan();
                prop_assert!(same, "{} of {:?}, {:?}, {:?}: {:?}, not {:?}", text, a, b, c, found[lane], expected);
            }
        }
    }
}

/// Every half there is.
#[test]
fn halves_widen_exactly() {
    for first in (0..=u16::MAX).step_by(32) {
        let bits: Vec<u32> = (0..32).map(|i| u32::from(first) + i).collect();
        let found = run_table::<u32, f32>(
            ("u32", "r"),
            ("f32", "%f9"),
            &[
                "cvt.u16.u32 %h1, %r1; cvt.f32.f16 %f9, %h1;",
                "shl.b32 %r8, %r1, 16; mov.b32 %f9, %r8;",
            ],
            [&bits, &bits, &bits],
        );
        for lane in 0..32 {
            let half = bits[lane] as u16;
            let same = |found: f32, expected: f32| {
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan()
            };
            assert!(
                same(found[0][lane], f16::from_bits(half).to_f32()),
                "f16 {half:#x}"
            );
            assert!(
                same(found[1][lane], bf16::from_bits(half).to_f32()),
                "bf16 {half:#x}"
            );
        }
    }
}

#[test]
fn a_nan_out_of_numbers_stops() {
    let found = cause(
        32,
        "mov.f32 %f1, 0f7F800000; mov.f32 %f2, 0f00000000; mul.rn.f32 %f3, %f1, %f2;",
    );
    let Cause::NotANumber { register, operands } = &found else {
        panic!("{found}")
    };
    assert_eq!(
        (register.as_str(), operands.as_str()),
        ("%f3", "[inf, 0.0]")
    );
}

#[test]
fn a_nan_of_a_lane_that_is_not_active_does_not_stop() {
    let body = "mov.f32 %f1, 0f7F800000; setp.eq.u32 %p1, %r0, 99; @%p1 sub.rn.f32 %f3, %f1, %f1;";
    assert!(
        support::Bench::new(4)
            .launch(&support::module("", body), (1, 32), &[])
            .is_ok()
    );
}

#[test]
fn a_nan_that_an_operand_brings_in_goes_on() {
    let body = "mov.b32 %f1, 0x7fc00000; add.rn.f32 %f2, %f1, %f1;";
    assert!(
        support::Bench::new(4)
            .launch(&support::module("", body), (1, 32), &[])
            .is_ok()
    );
}

#[test]
fn a_nan_in_memory_stops_loads_of_floats_only() {
    for (ty, register, stops) in [("f32", "%f1", true), ("b32", "%r1", false)] {
        let mut bench = support::Bench::new(4);
        bench.memory.write(bench.out, &[f32::NAN]).unwrap();
        let module = support::module("", &format!("ld.global.{ty} {register}, [%rd0];"));
        let found = bench.launch(&module, (1, 1), &[]);
        match found {
            Err(fault) => assert!(stops && matches!(fault.cause, Cause::NotANumberLoaded { .. })),
            Ok(_) => assert!(!stops),
        }
    }
}
