//! Integer instructions against Rust's own, on operands of all kinds.

use crate::support::{self, run_table};
use proptest::collection::vec;
use proptest::prelude::*;

/// All bit patterns, with those at the ends of the range more often than by chance.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        0_u32..40,
        (0_u32..40).prop_map(|n| n.wrapping_neg()),
        (0_u32..4).prop_map(|n| 0x8000_0000_u32.wrapping_add(n).wrapping_sub(2)),
    ]
}

fn long() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0_u64..80,
        (0_u64..80).prop_map(|n| n.wrapping_neg()),
        (0_u64..4).prop_map(|n| (1_u64 << 63).wrapping_add(n).wrapping_sub(2)),
    ]
}

type Row<T, R> = (&'static str, fn(T, T, T) -> R);

/// Compares every instruction of a table with its meaning.
fn check<T, R>(types: [(&str, &str); 2], table: &[Row<T, R>], operands: [&[T]; 3])
where
    T: ptx_emulator::Value + std::fmt::Debug,
    R: ptx_emulator::Value + PartialEq + std::fmt::Debug,
{
    let instructions: Vec<_> = table.iter().map(|(text, _)| *text).collect();
    let found = run_table::<T, R>(types[0], types[1], &instructions, operands);
    for ((text, meaning), found) in table.iter().zip(found) {
        for lane in 0..32 {
            let (a, b, c) = (operands[0][lane], operands[1][lane], operands[2][lane]);
            assert_eq!(
                found[lane],
                meaning(a, b, c),
                "{text} of {a:?}, {b:?}, {c:?}"
            );
        }
    }
}

const WORDS: &[Row<u32, u32>] = &[
    ("add.u32 %r9, %r1, %r2;", |a, b, _| a.wrapping_add(b)),
    ("add.s32 %r9, %r1, -5;", |a, _, _| a.wrapping_sub(5)),
    ("sub.s32 %r9, %r1, %r2;", |a, b, _| a.wrapping_sub(b)),
    ("mul.lo.s32 %r9, %r1, %r2;", |a, b, _| a.wrapping_mul(b)),
    ("mul.hi.u32 %r9, %r1, %r2;", |a, b, _| {
        ((u64::from(a) * u64::from(b)) >> 32) as u32
    }),
    ("mul.hi.s32 %r9, %r1, %r2;", |a, b, _| {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    }),
    ("mad.lo.u32 %r9, %r1, %r2, %r3;", |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    }),
    ("mad.hi.s32 %r9, %r1, %r2, %r3;", |a, b, c| {
        (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c)
    }),
    ("or.b32 %r8, %r2, 1; div.u32 %r9, %r1, %r8;", |a, b, _| {
        a / (b | 1)
    }),
    ("or.b32 %r8, %r2, 1; rem.u32 %r9, %r1, %r8;", |a, b, _| {
        a % (b | 1)
    }),
    ("or.b32 %r8, %r2, 1; div.s32 %r9, %r1, %r8;", |a, b, _| {
        (a as i32).wrapping_div((b | 1) as i32) as u32
    }),
    ("or.b32 %r8, %r2, 1; rem.s32 %r9, %r1, %r8;", |a, b, _| {
        (a as i32).wrapping_rem((b | 1) as i32) as u32
    }),
    ("min.u32 %r9, %r1, %r2;", |a, b, _| a.min(b)),
    ("max.s32 %r9, %r1, %r2;", |a, b, _| {
        (a as i32).max(b as i32) as u32
    }),
    ("abs.s32 %r9, %r1;", |a, _, _| {
        (a as i32).wrapping_abs() as u32
    }),
    ("neg.s32 %r9, %r1;", |a, _, _| a.wrapping_neg()),
    ("and.b32 %r9, %r1, %r2;", |a, b, _| a & b),
    ("or.b32 %r9, %r1, %r2;", |a, b, _| a | b),
    ("xor.b32 %r9, %r1, %r2;", |a, b, _| a ^ b),
    ("not.b32 %r9, %r1;", |a, _, _| !a),
    (
        "shl.b32 %r9, %r1, %r2;",
        |a, b, _| if b < 32 { a << b } else { 0 },
    ),
    (
        "shr.u32 %r9, %r1, %r2;",
        |a, b, _| if b < 32 { a >> b } else { 0 },
    ),
    ("shr.s32 %r9, %r1, %r2;", |a, b, _| {
        ((a as i32) >> b.min(31)) as u32
    }),
    ("popc.b32 %r9, %r1;", |a, _, _| a.count_ones()),
    ("clz.b32 %r9, %r1;", |a, _, _| a.leading_zeros()),
    ("brev.b32 %r9, %r1;", |a, _, _| a.reverse_bits()),
    ("bfind.u32 %r9, %r1;", |a, _, _| {
        a.checked_ilog2().unwrap_or(u32::MAX)
    }),
    ("bfind.s32 %r9, %r1;", |a, _, _| {
        let a = a as i32;
        (if a < 0 { !a } else { a })
            .checked_ilog2()
            .unwrap_or(u32::MAX)
    }),
    ("bfe.u32 %r9, %r1, %r2, %r3;", |a, b, c| {
        bit_by_bit_extract(a, b, c, false)
    }),
    ("bfe.s32 %r9, %r1, %r2, %r3;", |a, b, c| {
        bit_by_bit_extract(a, b, c, true)
    }),
    ("bfi.b32 %r9, %r1, %r2, %r3, 9;", |a, b, c| {
        bit_by_bit_insert(a, b, c, 9)
    }),
    ("bfi.b32 %r9, %r1, %r2, 9, %r3;", |a, b, c| {
        bit_by_bit_insert(a, b, 9, c)
    }),
    ("lop3.b32 %r9, %r1, %r2, %r3, 0x96;", |a, b, c| a ^ b ^ c),
    ("lop3.b32 %r9, %r1, %r2, %r3, 0xCA;", |a, b, c| {
        a & b | !a & c
    }),
    ("lop3.b32 %r9, %r1, %r2, %r3, 0x10;", |a, b, c| a & !b & !c),
    ("prmt.b32 %r9, %r1, %r2, 0x0123;", |a, _, _| a.swap_bytes()),
    ("prmt.b32 %r9, %r1, %r2, 0x5410;", |a, b, _| {
        a & 0xffff | b << 16
    }),
    ("prmt.b32 %r9, %r1, %r2, 0xc440;", |a, b, _| {
        let sign = if b >> 7 & 1 == 1 { 0xff00_0000 } else { 0 };
        sign | (b & 0xff) << 16 | (b & 0xff) << 8 | a & 0xff
    }),
    ("shf.l.wrap.b32 %r9, %r1, %r2, %r3;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
    }),
    ("shf.r.clamp.b32 %r9, %r1, %r2, %r3;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
    }),
    (
        "setp.lt.s32 %p1, %r1, %r2; selp.u32 %r9, 1, 2, %p1;",
        |a, b, _| {
            if (a as i32) < b as i32 { 1 } else { 2 }
        },
    ),
    (
        "setp.hs.u32 %p1, %r1, %r2; selp.u32 %r9, %r1, %r3, !%p1;",
        |a, b, c| {
            if a >= b { c } else { a }
        },
    ),
    (
        "setp.ne.u32 %p1, %r1, %r2; setp.gt.and.u32 %p2|%p3, %r1, %r3, !%p1;
         selp.u32 %r8, 1, 0, %p2; selp.u32 %r9, 2, 0, %p3; or.b32 %r9, %r8, %r9;",
        |a, b, c| u32::from(a > c && a == b) | u32::from(a <= c && a == b) << 1,
    ),
    (
        "setp.eq.u32 %p1, %r1, %r2; setp.le.xor.s32 %p2, %r1, %r3, %p1; and.pred %p3, %p1, %p2;
         or.pred %p4, %p3, !%p2; not.pred %p5, %p4; mov.pred %p6, %p5; selp.u32 %r9, 1, 0, %p6;",
        |a, b, c| {
            let first = a == b;
            let second = (a as i32 <= c as i32) ^ first;
            u32::from(!first && second)
        },
    ),
    (
        "mov.b32 {%h1, %h2}, %r1; mov.b32 %r9, {%h2, %h1};",
        |a, _, _| a.rotate_left(16),
    ),
    (
        "cvt.u16.u32 %h1, %r1; add.u16 %h2, %h1, 7; cvt.u32.u16 %r9, %h2;",
        |a, _, _| u32::from((a as u16).wrapping_add(7)),
    ),
    (
        "cvt.u16.u32 %h1, %r1; cvt.u16.u32 %h2, %r2; mul.wide.s16 %r9, %h1, %h2;",
        |a, b, _| (i32::from(a as i16) * i32::from(b as i16)) as u32,
    ),
    (
        "cvt.u16.u32 %h1, %r1; shr.s16 %h2, %h1, %r2; cvt.u32.u16 %r9, %h2;",
        |a, b, _| u32::from(((a as i16) >> b.min(15)) as u16),
    ),
    ("cvt.s32.s8 %r9, %r1;", |a, _, _| i32::from(a as i8) as u32),
    ("cvt.u32.u8 %r9, %r1;", |a, _, _| a & 0xff),
    ("cvt.sat.s8.s32 %r9, %r1;", |a, _, _| {
        (a as i32).clamp(-128, 127) as u32
    }),
    ("cvt.sat.u8.s32 %r9, %r1;", |a, _, _| {
        (a as i32).clamp(0, 255) as u32
    }),
    ("cvt.sat.u32.s32 %r9, %r1;", |a, _, _| {
        (a as i32).max(0) as u32
    }),
];

fn bit_by_bit_extract(a: u32, position: u32, length: u32, signed: bool) -> u32 {
    let (position, length) = (position & 0xff, length & 0xff);
    let fill = signed && length > 0 && a >> (position + length - 1).min(31) & 1 == 1;
    (0..32)
        .map(|i| {
            let bit = if i < length && position + i <= 31 {
                a >> (position + i) & 1 == 1
            } else {
                fill
            };
            u32::from(bit) << i
        })
        .sum()
}

fn bit_by_bit_insert(a: u32, b: u32, position: u32, length: u32) -> u32 {
    let (position, length) = (position & 0xff, length & 0xff);
    (0..length)
        .filter(|i| position + i <= 31)
        .fold(b, |out, i| {
            out & !(1 << (position + i)) | (a >> i & 1) << (position + i)
        })
}

const LONGS: &[Row<u64, u64>] = &[
    ("add.u64 %rd9, %rd1, %rd2;", |a, b, _| a.wrapping_add(b)),
    ("sub.s64 %rd9, %rd1, %rd2;", |a, b, _| a.wrapping_sub(b)),
    ("mul.lo.u64 %rd9, %rd1, %rd2;", |a, b, _| a.wrapping_mul(b)),
    ("mul.hi.u64 %rd9, %rd1, %rd2;", |a, b, _| {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    }),
    ("mul.hi.s64 %rd9, %rd1, %rd2;", |a, b, _| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    }),
    ("mad.lo.s64 %rd9, %rd1, %rd2, %rd3;", |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    }),
    (
        "cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; mul.wide.u32 %rd9, %r1, %r2;",
        |a, b, _| u64::from(a as u32) * u64::from(b as u32),
    ),
    (
        "cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; mad.wide.s32 %rd9, %r1, %r2, %rd3;",
        |a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64,
    ),
    (
        "or.b64 %rd8, %rd2, 1; div.s64 %rd9, %rd1, %rd8;",
        |a, b, _| (a as i64).wrapping_div((b | 1) as i64) as u64,
    ),
    (
        "or.b64 %rd8, %rd2, 1; rem.u64 %rd9, %rd1, %rd8;",
        |a, b, _| a % (b | 1),
    ),
    ("min.s64 %rd9, %rd1, %rd2;", |a, b, _| {
        (a as i64).min(b as i64) as u64
    }),
    (
        "cvt.u32.u64 %r1, %rd2; shl.b64 %rd9, %rd1, %r1;",
        |a, b, _| a.checked_shl(b as u32).unwrap_or(0),
    ),
    (
        "cvt.u32.u64 %r1, %rd2; shr.s64 %rd9, %rd1, %r1;",
        |a, b, _| ((a as i64) >> (b as u32).min(63)) as u64,
    ),
    (
        "setp.lt.u64 %p1, %rd1, %rd2; selp.b64 %rd9, %rd1, %rd3, %p1;",
        |a, b, c| {
            if a < b { a } else { c }
        },
    ),
    (
        "mov.b64 {%r1, %r2}, %rd1; mov.b64 %rd9, {%r2, %r1};",
        |a, _, _| a.rotate_left(32),
    ),
    (
        "popc.b64 %r1, %rd1; clz.b64 %r2, %rd2; mov.b64 %rd9, {%r1, %r2};",
        |a, b, _| u64::from(a.count_ones()) | u64::from(b.leading_zeros()) << 32,
    ),
    ("brev.b64 %rd9, %rd1;", |a, _, _| a.reverse_bits()),
    (
        "cvt.u32.u64 %r1, %rd1; cvt.s64.s32 %rd9, %r1;",
        |a, _, _| i64::from(a as i32) as u64,
    ),
    ("bfe.s64 %rd9, %rd1, 40, 30;", |a, _, _| {
        ((a as i64) >> 40) as u64
    }),
    ("bfi.b64 %rd9, %rd1, %rd2, 20, 30;", |a, b, _| {
        let field = ((1_u64 << 30) - 1) << 20;
        b & !field | a << 20 & field
    }),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn words(a in vec(word(), 32), b in vec(word(), 32), c in vec(word(), 32)) {
        check([("u32", "r"), ("u32", "%r9")], WORDS, [&a, &b, &c]);
    }

    #[test]
    fn longs(a in vec(long(), 32), b in vec(long(), 32), c in vec(long(), 32)) {
        check([("u64", "rd"), ("u64", "%rd9")], LONGS, [&a, &b, &c]);
    }
}

#[test]
fn division_by_zero_stops() {
    let found = support::cause(32, "mov.u32 %r1, 0; div.s32 %r2, %r0, %r1;");
    assert_eq!(found, ptx_emulator::Cause::DivisionByZero);
}

#[test]
fn special_registers() {
    let mut bench = support::Bench::new(4 * 9 * 96 * 2);
    // ctaid·1000000 + tid·… of a 3-dimensional launch
    let body = "mov.u32 %r1, %ctaid.y; mov.u32 %r2, %nctaid.y; mov.u32 %r3, %tid.y; mov.u32 %r4, %ntid.x;
         mov.u32 %r5, %warpid; mov.u32 %r6, %laneid; mov.u32 %r7, %tid.z; mov.u32 %r8, %ntid.y;
         mad.lo.u32 %r10, %r7, %r8, %r3; mad.lo.u32 %r10, %r10, %r4, %r0;
         mov.u32 %r11, 96; mad.lo.u32 %r12, %r1, %r11, %r10; mul.wide.u32 %rd1, %r12, 36; add.u64 %rd2, %rd0, %rd1;
         st.global.u32 [%rd2], %r1; st.global.u32 [%rd2+4], %r2; st.global.u32 [%rd2+8], %r3; st.global.u32 [%rd2+12], %r4;
         st.global.u32 [%rd2+16], %r5; st.global.u32 [%rd2+20], %r6; st.global.u32 [%rd2+24], %r7;
         mov.u32 %r9, %lanemask_lt; st.global.u32 [%rd2+28], %r9; mov.u32 %r9, %nwarpid; st.global.u32 [%rd2+32], %r9;";
    let module = support::module("", body);
    let arguments = [ptx_emulator::Argument::Pointer(bench.out)];
    ptx_emulator::Launch::new(
        &module,
        "k",
        ptx_emulator::Grid([1, 2, 1]),
        ptx_emulator::Block([8, 6, 2]),
        &arguments,
    )
    .run(&mut bench.memory)
    .unwrap();
    let found = bench.results::<u32>(9 * 96 * 2);
    for (i, row) in found.chunks(9).enumerate() {
        let (block, thread) = (i as u32 / 96, i as u32 % 96);
        let lane = thread % 32;
        let expected = [
            block,
            2,
            thread / 8 % 6,
            8,
            thread / 32,
            lane,
            thread / 48,
            (1 << lane) - 1,
            3,
        ];
        assert_eq!(row, expected, "{i}");
    }
}
