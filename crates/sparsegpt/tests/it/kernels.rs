//! The CPU backend's kernels, at every instruction set of this processor, against the plain host ones: odd sizes,
//! ragged tails, ties.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used)]

use std::ops::Range;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::{
    Backend, Cpu, GridKind, GridRef, Host, PruneRef, Select, SelectRule, UpdateRows,
};
use sparsegpt::ndarray::{Array2, s};
use sparsegpt::{LayerSettings, Pattern, Solver};

const ROWS: [usize; 10] = [1, 2, 3, 15, 17, 31, 33, 64, 65, 127];
const WIDTHS: [usize; 12] = [1, 2, 3, 7, 8, 9, 12, 16, 31, 96, 127, 128];

fn levels() -> Vec<Cpu> {
    (0..)
        .map_while(|level| Cpu::at_simd_level(2, level).unwrap())
        .collect()
}

/// What goes into a sweep.
#[derive(Debug)]
struct Problem {
    weights: Array2<f32>,
    factor: Array2<f32>,
    mask: Array2<bool>,
    columns: Range<usize>,
    scale: Array2<f32>,
    zero: Array2<f32>,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    Keep,
    Fixed,
    NofM(usize, usize),
}

#[derive(Debug, PartialEq)]
struct Outcome {
    weights: Array2<f32>,
    errors: Array2<f32>,
    losses: Array2<f32>,
    chosen: Option<Array2<bool>>,
}

fn sweep<B: Backend>(backend: &B, problem: &Problem, rule: Rule, grid: Option<u32>) -> Outcome {
    let up = |matrix: &Array2<f32>| backend.upload(matrix.view()).unwrap();
    let width = problem.columns.len();
    let mut weights = up(&problem.weights);
    let mut errors = up(&Array2::zeros((problem.weights.nrows(), width + 3)));
    let mut losses = up(&Array2::zeros((problem.weights.nrows(), 1)));
    let factor = up(&problem.factor);
    let mask = backend.upload_mask(problem.mask.view()).unwrap();
    let (scale, zero) = (up(&problem.scale), up(&problem.zero));
    let groups: Vec<usize> = (0..width).map(|column| column / 5 % 2).collect();
    let grid =
        grid.map(|max_code| GridRef::new(GridKind::Affine { max_code }, &scale, &zero, &groups));
    let prune = match rule {
        Rule::Keep => PruneRef::Keep,
        Rule::Fixed => PruneRef::Fixed {
            mask: &mask,
            offset: 0,
        },
        Rule::NofM(zeros, group) => PruneRef::NofM { zeros, group },
    };
    let args = UpdateRows::new(
        &mut weights,
        &factor,
        (&mut errors, 2),
        &mut losses,
        problem.columns.clone(),
    );
    let chosen = backend
        .update_rows(args.pruning(prune).rounding(grid))
        .unwrap();
    Outcome {
        weights: backend.download(&weights).unwrap(),
        errors: backend.download(&errors).unwrap(),
        losses: backend.download(&losses).unwrap(),
        chosen: chosen.map(|mask| backend.download_mask(&mask).unwrap()),
    }
}

/// Random weights and a random upper triangle; `exact`: small multiples of powers of two, and a factor through
/// which an error moves once, so that nothing is ever rounded and ties are many.
fn problem(rows: usize, width: usize, exact: bool, seed: u64) -> Problem {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (first, cols) = (5, width + 9);
    let mut value = |low: f32, high: f32| {
        if exact {
            (random.random_range(low..high) * 4.0).round() / 4.0
        } else {
            random.random_range(low..high)
        }
    };
    let weights = Array2::from_shape_simple_fn((rows, cols), || value(-3.0, 3.0));
    let scale =
        Array2::from_shape_simple_fn((rows, 2), || if value(0.0, 1.0) < 0.5 { 0.5 } else { 0.25 });
    let zero = Array2::from_shape_simple_fn((rows, 2), || value(0.0, 15.0).round());
    let factor = Array2::from_shape_fn((cols, cols), |(i, j)| match (i, j) {
        _ if i == j && exact => [0.5, 1.0, 2.0][i % 3],
        _ if i == j => value(0.5, 2.0),
        _ if exact && (i % 2 == 1 || j % 2 == 0) => 0.0,
        _ if i < j => value(-1.0, 1.0) / if exact { 1.0 } else { width as f32 },
        // Never read: the lower triangle holds something else.
        _ => f32::NAN,
    });
    let mask = Array2::from_shape_simple_fn((rows, width), || value(-1.0, 1.0) > 0.0);
    Problem {
        weights,
        factor,
        mask,
        columns: first..first + width,
        scale,
        zero,
    }
}

fn close(fast: &Array2<f32>, plain: &Array2<f32>) -> bool {
    fast.iter()
        .zip(plain)
        .all(|(&fast, &plain)| (fast - plain).abs() <= 1e-4 * (1.0 + plain.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn exact_sweeps_have_the_same_bits(
        rows in prop::sample::select(&ROWS[..]),
        width in prop::sample::select(&WIDTHS[..]),
        rule in 0..4_usize,
        group in 1..=16_usize,
        quantize: bool,
        seed: u64,
    ) {
        let problem = problem(rows, width, true, seed);
        let group = (1..=group).rev().find(|group| width % group == 0).unwrap();
        let rule = [Rule::Keep, Rule::Fixed, Rule::NofM(group / 2, group), Rule::NofM(group, group)][rule];
        let plain = sweep(&Host, &problem, rule, quantize.then_some(15));
        for cpu in levels() {
            let fast = sweep(&cpu, &problem, rule, quantize.then_some(15));
            prop_assert_eq!(&fast, &plain, "{}", cpu.info().device);
        }
    }

    #[test]
    fn sweeps_agree_to_rounding(
        rows in prop::sample::select(&ROWS[..]),
        width in prop::sample::select(&WIDTHS[..]),
        fixed: bool,
        seed: u64,
    ) {
        let problem = problem(rows, width, false, seed);
        let rule = if fixed { Rule::Fixed } else { Rule::NofM(width, width) };
        let plain = sweep(&Host, &problem, rule, None);
        for cpu in levels() {
            let fast = sweep(&cpu, &problem, rule, None);
            let device = cpu.info().device;
            prop_assert!(close(&fast.weights, &plain.weights), "weights, {}", device);
            prop_assert!(close(&fast.errors, &plain.errors), "errors, {}", device);
            prop_assert!(close(&fast.losses, &plain.losses), "losses, {}", device);
            prop_assert_eq!(&fast.chosen, &plain.chosen);
            let outside = |outcome: &Outcome| outcome.weights.slice(s![.., problem.columns.end..]).to_owned();
            prop_assert_eq!(outside(&fast), outside(&plain));
        }
    }

    #[test]
    fn the_lowest_are_the_same(
        rows in prop::sample::select(&[1, 64, 129, 500, 1031][..]),
        width in prop::sample::select(&[1, 17, 128, 130][..]),
        share in 0.0..=1.0_f64,
        levels_of_value in prop::sample::select(&[3.0, 50.0, 1e7][..]),
        marked in 0.0..0.9_f64,
        seed: u64,
    ) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let weights = Array2::from_shape_simple_fn((rows, width + 2), || {
            (random.random_range(-1.0..1.0_f32) * levels_of_value).round()
        });
        let scales = Array2::from_shape_simple_fn((1, width + 2), || random.random_range(1..4) as f32);
        let mut marks = |share: f64| Array2::from_shape_simple_fn((rows, width), || random.random_bool(share));
        let (mut forced, protected) = (marks(marked / 2.0), marks(marked / 4.0));
        forced.zip_mut_with(&protected, |forced, &protected| *forced &= !protected);
        let free = protected.iter().filter(|&&protected| !protected).count();
        let rule = SelectRule::Lowest { count: (share * free as f64) as usize };
        fn chosen<B: Backend>(
            backend: &B,
            (weights, scales): (&Array2<f32>, &Array2<f32>),
            marks: Option<(&Array2<bool>, &Array2<bool>)>,
            rule: SelectRule<'_>,
        ) -> Array2<bool> {
            let weights = backend.upload(weights.view()).unwrap();
            let scales = backend.upload(scales.view()).unwrap();
            let masks = marks.map(|(forced, protected)| {
                let up = |mask: &Array2<bool>| backend.upload_mask(mask.view()).unwrap();
                (up(forced), up(protected))
            });
            let width = backend.shape(&weights).1 - 2;
            let mut select = Select::new(&weights, &scales, 1..1 + width, rule);
            if let Some((forced, protected)) = &masks {
                select = select.constrained(Some(forced), Some(protected));
            }
            backend.download_mask(&backend.select(select).unwrap()).unwrap()
        }
        for marks in [None, Some((&forced, &protected))] {
            let plain = chosen(&Host, (&weights, &scales), marks, rule);
            for cpu in levels() {
                let fast = chosen(&cpu, (&weights, &scales), marks, rule);
                prop_assert_eq!(&fast, &plain, "{}", cpu.info().device);
            }
        }
    }
}

#[test]
fn the_workspace_is_kept_for_the_next_layer_and_can_be_given_back() {
    let solver = Solver::new(Cpu::new(2).unwrap());
    let settings = LayerSettings::new(Pattern::unstructured(0.5).unwrap());
    let weights = Array2::from_shape_fn((512, 768), |(i, j)| ((i * 7 + j) % 31) as f32 - 15.0);
    let mut hessian = solver.hessian_from(Array2::eye(768).view()).unwrap();
    let mut prune = || {
        drop(
            solver
                .prune(weights.view(), &mut hessian, &settings)
                .unwrap(),
        )
    };
    prune();
    let kept = solver.backend().workspace_bytes();
    assert!(kept > 0);
    prune();
    assert_eq!(solver.backend().workspace_bytes(), kept);
    solver.backend().release_workspace();
    assert_eq!(solver.backend().workspace_bytes(), 0);
    prune();
    assert_eq!(solver.backend().workspace_bytes(), kept);
}

#[test]
fn a_reserved_workspace_is_what_a_layer_takes() {
    let settings = LayerSettings::new(Pattern::unstructured(0.5).unwrap()).with_measure(false);
    for (rows, cols) in [(512, 768), (1024, 512), (768, 768)] {
        let solver = Solver::new(Cpu::new(2).unwrap());
        let weights =
            Array2::from_shape_fn((rows, cols), |(i, j)| ((i * 7 + j) % 31) as f32 - 15.0);
        let mut hessian = solver.hessian_from(Array2::eye(cols).view()).unwrap();
        solver.backend().reserve(rows, cols).unwrap();
        let reserved = solver.backend().workspace_bytes();
        let pruned = solver.prune(weights.view(), &mut hessian, &settings);
        drop(pruned.unwrap());
        assert_eq!(
            solver.backend().workspace_bytes(),
            reserved,
            "{rows} x {cols}"
        );
    }
}
