//! Large products at every instruction set: of f32 values, and of bf16 values with the arithmetic of the processor's dot
//! products in f32, and with the dot products themselves where this processor has them.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used)]

use half::bf16;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::{Backend, Cpu, Gemm, Products};
use sparsegpt::error::{BackendError, BackendErrorKind};
use sparsegpt::ndarray::{Array2, ArrayView2, s};
use sparsegpt::{LayerReport, LayerSettings, Pattern, Solver};

/// Around tiles and blocks, and ragged.
const SIZES: [usize; 14] = [1, 2, 3, 12, 13, 16, 17, 32, 33, 127, 128, 129, 250, 2100];
const INNER: [usize; 8] = [1, 2, 3, 127, 129, 384, 385, 801];

fn levels() -> impl Iterator<Item = Cpu> {
    (0..).map_while(|level| Cpu::at_simd_level(2, level).unwrap())
}

fn emulated() -> Vec<Cpu> {
    levels().map(Cpu::emulating_bf16).collect()
}

/// The processor's own, where it has any.
fn native() -> Option<Cpu> {
    Cpu::new(2).unwrap().with_bf16_products().ok()
}

/// All that multiply bf16 values.
fn all() -> Vec<Cpu> {
    let emulated = emulated().into_iter();
    emulated
        .map(|cpu| cpu.with_bf16_products().unwrap())
        .chain(native())
        .collect()
}

fn random(shape: (usize, usize), seed: u64) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn(shape, || random.random_range(-2.0..2.0_f32))
}

fn round(value: f32) -> f64 {
    bf16::from_f32(value).to_f64()
}

/// alpha·A·B and alpha·|A|·|B| of rounded operands, in f64.
fn product(
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
    alpha: f32,
    round: fn(f32) -> f64,
) -> [Array2<f64>; 2] {
    let (a, b, alpha) = (a.mapv(round), b.mapv(round), f64::from(alpha));
    let sizes = a.mapv(f64::abs).dot(&b.mapv(f64::abs)) * alpha.abs();
    [a.dot(&b) * alpha, sizes]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_are_those_of_the_operands(
        bf16: bool,
        rows in prop::sample::select(&SIZES[..]),
        columns in prop::sample::select(&SIZES[..]),
        inner in prop::sample::select(&INNER[..]),
        alpha in prop::sample::select(&[1.0, -1.0, 0.5, 0.3][..]),
        seed: u64,
    ) {
        let (first_c, first_a, first_b) = (2, 3, 1);
        let c = random((rows, columns + 5), seed);
        let a = random((rows, inner + 4), seed ^ 1);
        let b = random((inner + 2, columns + 3), seed ^ 2);
        let (a_columns, b_rows, b_columns) = (first_a..first_a + inner, 1..1 + inner, first_b..first_b + columns);
        let [exact, sizes] = product(
            a.slice(s![.., a_columns.clone()]),
            b.slice(s![b_rows.clone(), b_columns.clone()]),
            alpha,
            if bf16 { round } else { f64::from },
        );
        let cpus = if bf16 { all() } else { levels().collect() };
        let results: Vec<Array2<f32>> = cpus.iter().map(|cpu| {
            let up = |matrix: &Array2<f32>| cpu.upload(matrix.view()).unwrap();
            let (mut to, a, b) = (up(&c), up(&a), up(&b));
            let args = Gemm::new(
                (&mut to, first_c..first_c + columns),
                alpha,
                (&a, a_columns.clone()),
                (&b, b_rows.clone(), b_columns.clone()),
            );
            cpu.gemm(args).unwrap();
            cpu.download(&to).unwrap()
        }).collect();
        for (cpu, result) in cpus.iter().zip(&results) {
            let device = cpu.info().device;
            for ((row, column), &value) in result.indexed_iter() {
                let before = c[[row, column]];
                if !(first_c..first_c + columns).contains(&column) {
                    prop_assert_eq!(value, before, "{} at {}, {}", device, row, column);
                    continue;
                }
                // Every addition rounds once, to 2⁻²⁴ of at most the sum of all sizes.
                let at = [row, column - first_c];
                let most = (f64::from(before.abs()) + sizes[at]) * (inner + 4) as f64 * 0.5_f64.powi(24);
                let error = (f64::from(value) - f64::from(before) - exact[at]).abs();
                prop_assert!(error <= most, "{device} at {row}, {column}: off by {error:e}, at most {most:e}");
            }
        }
        // Where no product is rounded it makes no difference whether it is fused with the addition.
        if bf16 && alpha != 0.3 {
            for other in &results[1..emulated().len()] {
                prop_assert_eq!(&results[0], other);
            }
        }
    }

    #[test]
    fn hessians_of_bf16_activations_are_the_same_to_rounding(
        tokens in prop::sample::select(&INNER[..]),
        cols in prop::sample::select(&[1, 2, 33, 127, 129, 300][..]),
        layout in 0..3_usize,
        beta in prop::sample::select(&[1.0, 0.25][..]),
        seed: u64,
    ) {
        let alpha = 0.7;
        let values = random((tokens, 2 * cols), seed).mapv(bf16::from_f32);
        let turned = values.slice(s![.., ..cols]).t().as_standard_layout().into_owned();
        let x = match layout {
            0 => values.slice(s![.., ..cols]),
            1 => turned.t(),
            _ => values.slice(s![.., ..;2]),
        };
        let before = random((cols, cols), seed ^ 1);
        let hessian = |cpu: &Cpu| {
            let mut h = cpu.upload(before.view()).unwrap();
            cpu.gram_update(&mut h, x.into(), alpha, beta).unwrap();
            cpu.download(&h).unwrap()
        };
        // Widened to f32 on a level that has no dot products.
        let widened = hessian(&Cpu::at_simd_level(2, 0).unwrap().unwrap());
        let wide = x.mapv(bf16::to_f32);
        let [exact, _] = product(wide.t(), wide.view(), alpha, f64::from);
        for cpu in emulated().into_iter().chain(native()) {
            let result = hessian(&cpu);
            for row in 0..cols {
                for column in 0..=row {
                    let at = [row, column];
                    let size = (exact[[row, row]] * exact[[column, column]]).sqrt() + f64::from(before[at].abs());
                    let value = f64::from(result[at]);
                    let device = cpu.info().device;
                    let found = (value - exact[at] - f64::from(beta * before[at])).abs() / size;
                    prop_assert!(found <= 2e-6, "{device} at {at:?}: {found:e} from the exact sum");
                    let found = (value - f64::from(widened[at])).abs() / size;
                    prop_assert!(found <= 2e-6, "{device} at {at:?}: {found:e} from f32 products");
                }
            }
        }
    }
}

fn solve(cpu: Cpu, pattern: Pattern) -> (Array2<f32>, LayerReport) {
    let (rows, cols, tokens) = (192, 640, 1024);
    let weights = random((rows, cols), 1);
    // Features that go together, so that the updates matter.
    let mix = random((cols / 4, cols), 2) * 0.2;
    let inputs = random((tokens, cols / 4), 3).dot(&mix) + random((tokens, cols), 4) * 0.3;
    let solver = Solver::new(cpu);
    let mut hessian = solver.hessian(cols).unwrap();
    hessian.update(inputs.view()).unwrap();
    let settings = LayerSettings::new(pattern);
    let pruned = solver
        .prune(weights.view(), &mut hessian, &settings)
        .unwrap();
    (pruned.weights, pruned.report)
}

#[test]
fn layers_lose_little_and_say_so() {
    for pattern in ["50%", "2:4"] {
        let pattern: Pattern = pattern.parse().unwrap();
        let (plain, reference) = solve(Cpu::new(2).unwrap(), pattern);
        assert_eq!(reference.products, Products::F32);
        let loss = reference.reconstruction_error.unwrap();
        for cpu in all() {
            let device = cpu.info().device;
            assert!(device.ends_with("bf16 products"), "{device}");
            let (weights, report) = solve(cpu, pattern);
            assert_eq!(report.products, Products::Bf16);
            assert!(report.to_string().contains("bf16 products"), "{report}");
            assert_eq!(report.pruned, weights.len() as u64 / 2, "{device}");
            assert_eq!(report.zeros, reference.zeros, "{device}");
            assert_ne!(weights, plain, "{device}: the option changes nothing");
            let found = report.reconstruction_error.unwrap();
            assert!(
                (found / loss - 1.0).abs() < 0.01,
                "{device}, {pattern}: {found} against {loss}"
            );
        }
    }
}

#[test]
fn without_the_instruction_the_option_is_an_error_that_names_it() {
    let lowest = Cpu::at_simd_level(1, 0).unwrap().unwrap();
    assert_eq!(lowest.info().products, Products::F32);
    let error = lowest.with_bf16_products().unwrap_err();
    assert_eq!(error.kind(), BackendErrorKind::Unsupported);
    assert!(error.to_string().contains("avx512bf16"), "{error}");
}
