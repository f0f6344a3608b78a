//! Products of the tensor cores against plain ones.

use crate::support::{self, Bench, module};
use half::{bf16, f16};
use ptx_emulator::{Argument, Cause};

#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    element: &'static str,
    depth: usize,
}

const SHAPES: [Shape; 6] = [
    Shape {
        name: "m16n8k4",
        element: "tf32",
        depth: 4,
    },
    Shape {
        name: "m16n8k8",
        element: "tf32",
        depth: 8,
    },
    Shape {
        name: "m16n8k8",
        element: "f16",
        depth: 8,
    },
    Shape {
        name: "m16n8k8",
        element: "bf16",
        depth: 8,
    },
    Shape {
        name: "m16n8k16",
        element: "f16",
        depth: 16,
    },
    Shape {
        name: "m16n8k16",
        element: "bf16",
        depth: 16,
    },
];

impl Shape {
    /// Row and column of A that each element of each register of a lane is, in the order of the PTX manual.
    fn a(self, lane: usize) -> Vec<Vec<(usize, usize)>> {
        let (group, inner) = (lane / 4, lane % 4);
        match (self.element, self.depth) {
            ("tf32", 4) => vec![vec![(group, inner)], vec![(group + 8, inner)]],
            ("tf32", _) => vec![
                vec![(group, inner)],
                vec![(group + 8, inner)],
                vec![(group, inner + 4)],
                vec![(group + 8, inner + 4)],
            ],
            (_, depth) => {
                let pair = |row: usize, k: usize| vec![(row, k), (row, k + 1)];
                let mut registers = vec![pair(group, 2 * inner), pair(group + 8, 2 * inner)];
                if depth == 16 {
                    registers.push(pair(group, 2 * inner + 8));
                    registers.push(pair(group + 8, 2 * inner + 8));
                }
                registers
            }
        }
    }

    /// The same of B, as (k, column).
    fn b(self, lane: usize) -> Vec<Vec<(usize, usize)>> {
        let (group, inner) = (lane / 4, lane % 4);
        match (self.element, self.depth) {
            ("tf32", 4) => vec![vec![(inner, group)]],
            ("tf32", _) => vec![vec![(inner, group)], vec![(inner + 4, group)]],
            (_, depth) => {
                let pair = |k: usize| vec![(k, group), (k + 1, group)];
                let mut registers = vec![pair(2 * inner)];
                if depth == 16 {
                    registers.push(pair(2 * inner + 8));
                }
                registers
            }
        }
    }

    fn register(self, values: &[f32]) -> u32 {
        match self.element {
            "tf32" => values[0].to_bits(),
            "f16" => values
                .iter()
                .rev()
                .fold(0, |r, v| r << 16 | u32::from(f16::from_f32(*v).to_bits())),
            _ => values
                .iter()
                .rev()
                .fold(0, |r, v| r << 16 | u32::from(bf16::from_f32(*v).to_bits())),
        }
    }

    /// D = A·B + C with the fragments laid out here.
    fn product(
        self,
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        c: impl Fn(usize, usize) -> f32,
    ) -> Result<Vec<Vec<f32>>, Box<ptx_emulator::Fault>> {
        let (mut fragments, mut sums) = (Vec::new(), Vec::new());
        let (na, nb) = (self.a(0).len(), self.b(0).len());
        for lane in 0..32 {
            let mut registers: Vec<u32> = Vec::new();
            for places in self.a(lane) {
                let values: Vec<f32> = places.iter().map(|(i, k)| a(*i, *k)).collect();
                registers.push(self.register(&values));
            }
            for places in self.b(lane) {
                let values: Vec<f32> = places.iter().map(|(k, j)| b(*k, *j)).collect();
                registers.push(self.register(&values));
            }
            registers.resize(8, 0);
            fragments.extend(registers);
            let (group, inner) = (lane / 4, lane % 4);
            for (row, column) in [
                (group, 2 * inner),
                (group, 2 * inner + 1),
                (group + 8, 2 * inner),
                (group + 8, 2 * inner + 1),
            ] {
                sums.push(c(row, column));
            }
        }
        let list = |first: usize, count: usize| {
            (first..first + count)
                .map(|i| format!("%r{i}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let body = format!(
            "ld.param.u64 %rd1, [fragments]; mul.wide.u32 %rd2, %r0, 32; add.u64 %rd3, %rd1, %rd2;
             ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd3]; ld.global.v4.b32 {{%r14, %r15, %r16, %r17}}, [%rd3+16];
             mul.wide.u32 %rd4, %r0, 16; add.u64 %rd5, %rd0, %rd4; ld.global.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd5];
             mma.sync.aligned.{name}.row.col.f32.{e}.{e}.f32 {{%f5, %f6, %f7, %f8}}, {{{}}}, {{{}}}, {{%f1, %f2, %f3, %f4}};
             st.global.v4.f32 [%rd5], {{%f5, %f6, %f7, %f8}};",
            list(10, na),
            list(10 + na, nb),
            name = self.name,
            e = self.element,
        );
        let mut bench = Bench::new(512);
        bench.set(&sums);
        let fragments = bench.put(&fragments);
        let module = module(".param .u64 fragments", &body);
        bench.launch(&module, (1, 32), &[Argument::Pointer(fragments)])?;
        let found = bench.results::<f32>(128);
        let mut d = vec![vec![0.0; 8]; 16];
        for lane in 0..32 {
            for i in 0..4 {
                d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = found[lane * 4 + i];
            }
        }
        Ok(d)
    }
}

#[test]
fn products_of_integers_are_exact() {
    for shape in SHAPES {
        let a = |i: usize, k: usize| ((i * 7 + k * 3) % 11) as f32 - 5.0;
        let b = |k: usize, j: usize| ((k * 5 + j * 2) % 7) as f32 - 3.0;
        let c = |i: usize, j: usize| (i * 8 + j) as f32;
        let d = shape.product(a, b, c).unwrap();
        for i in 0..16 {
            for j in 0..8 {
                let expected = c(i, j) + (0..shape.depth).map(|k| a(i, k) * b(k, j)).sum::<f32>();
                assert_eq!(d[i][j], expected, "{shape:?} at {i}, {j}");
            }
        }
    }
}

#[test]
fn sums_are_rounded_one_by_one_with_k_ascending() {
    let shape = SHAPES[1];
    // 2^24 + 1 rounds back to 2^24, eight times; the other order would keep the ones.
    let d = shape
        .product(|_, _| 1.0, |_, _| 1.0, |_, _| 16_777_216.0)
        .unwrap();
    assert_eq!(d[3][3], 16_777_216.0);
    let d = shape
        .product(
            |_, k| if k == 7 { 16_777_216.0 } else { 1.0 },
            |_, _| 1.0,
            |_, _| 0.0,
        )
        .unwrap();
    assert_eq!(d[3][3], 16_777_224.0);
}

#[test]
fn tf32_operands_lose_their_low_bits() {
    let (cut, kept) = (f32::from_bits(0x3f80_1fff), f32::from_bits(0x3f80_2000));
    let d = SHAPES[1]
        .product(
            |i, _| if i < 8 { cut } else { kept },
            |_, _| 1.0,
            |_, _| 0.0,
        )
        .unwrap();
    assert_eq!((d[0][0], d[8][0]), (8.0, 8.0 * kept));
}

#[test]
fn a_nan_out_of_a_product_of_numbers_stops() {
    let found = SHAPES[1]
        .product(|_, _| f32::INFINITY, |_, _| 0.0, |_, _| 0.0)
        .unwrap_err();
    assert!(matches!(found.cause, Cause::NotANumber { .. }), "{found}");
}

#[test]
fn some_lanes_alone_cannot_multiply() {
    let found = support::cause(
        32,
        "mov.f32 %f1, 1.0; mov.b32 %r1, 0; setp.lt.u32 %p1, %r0, 16;
         @%p1 mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%f1,%f1,%f1,%f1}, {%r1,%r1}, {%r1}, {%f1,%f1,%f1,%f1};",
    );
    assert_eq!(
        found,
        Cause::Divergent {
            active: 0xffff,
            expected: u32::MAX
        }
    );
}
