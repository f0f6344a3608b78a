//! Several tasks on one Hessian: as many factorizations as there are different factors, and the results of
//! single runs.

#![allow(clippy::unwrap_used)]

use crate::common::counting::Counting;
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::{Backend, Host};
use sparsegpt::{
    Hessian, LayerPruner, LayerSettings, LayerTask, Method, Pattern, PrunedLayer, Solver,
    UniformGrid,
};

/// Two whole column blocks and a ragged one.
const COLS: usize = 268;
const ROWS: usize = 12;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_fn((rows, cols), |_| random.random_range(-1.0_f32..1.0))
}

fn hessian<B: Backend>(solver: &Solver<B>) -> Hessian<B> {
    let mut hessian = solver.hessian(COLS).unwrap();
    hessian.update(random(400, COLS, 7).view()).unwrap();
    hessian
}

fn pattern(text: &str) -> LayerSettings {
    LayerSettings::new(text.parse::<Pattern>().unwrap())
}

fn patterns() -> Vec<LayerSettings> {
    vec![
        pattern("40%"),
        pattern("50%"),
        pattern("2:4"),
        pattern("50%").with_quantizer(UniformGrid::new(4).unwrap()),
    ]
}

fn tasks<'a>(weights: &'a [Array2<f32>], settings: &'a [LayerSettings]) -> Vec<LayerTask<'a>> {
    let of = |weights: &'a Array2<f32>| {
        settings.iter().map(|settings| LayerTask {
            name: "layer",
            weights: weights.view(),
            settings,
        })
    };
    weights.iter().flat_map(of).collect()
}

fn bits(values: &Array2<f32>) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_same(shared: &PrunedLayer, alone: &PrunedLayer) {
    let what = &alone.report;
    assert_eq!(bits(&shared.weights), bits(&alone.weights), "{what}");
    assert_eq!(shared.mask, alone.mask, "{what}");
    let codes = |layer: &PrunedLayer| layer.quantized.as_ref().map(|q| q.codes.clone());
    assert_eq!(codes(shared), codes(alone), "{what}");
    let measured = |layer: &PrunedLayer| {
        let report = &layer.report;
        (
            report.pattern.clone(),
            report.pruned,
            report.solver_loss,
            report.reconstruction_error,
        )
    };
    assert_eq!(measured(shared), measured(alone));
}

/// Every task together, and every task with a Hessian of its own.
fn check_same_as_alone<B: Backend>(
    solver: &Solver<B>,
    weights: &[Array2<f32>],
    settings: &[LayerSettings],
) {
    let tasks = tasks(weights, settings);
    let together = solver.prune_shared(&mut hessian(solver), &tasks).unwrap();
    assert_eq!(together.len(), tasks.len());
    for (shared, task) in together.iter().zip(&tasks) {
        let alone = solver
            .prune(task.weights, &mut hessian(solver), task.settings)
            .unwrap();
        assert_same(shared, &alone);
    }
}

/// Factorizations for one layer under all these settings.
fn factorizations(settings: &[LayerSettings]) -> usize {
    let solver = Solver::new(Counting::default());
    let weights = [random(ROWS, COLS, 1)];
    solver
        .prune_shared(&mut hessian(&solver), &tasks(&weights, settings))
        .unwrap();
    solver.backend().factorizations()
}

#[test]
fn patterns_of_one_layer_share_a_factor_and_give_what_they_give_alone() {
    assert_eq!(factorizations(&patterns()), 1);
    check_same_as_alone(&Solver::new(Host), &[random(ROWS, COLS, 1)], &patterns());
}

#[cfg(feature = "cpu")]
#[test]
fn so_they_do_on_the_cpu_backend() {
    use sparsegpt::backend::Cpu;
    let solver = Solver::new(Cpu::new(2).unwrap());
    check_same_as_alone(&solver, &[random(ROWS, COLS, 1)], &patterns());
}

#[test]
fn layers_of_one_input_and_their_patterns_share_one_factor() {
    let solver = Solver::new(Counting::default());
    let weights = [1, 2, 3].map(|seed| random(ROWS, COLS, seed));
    let settings = patterns();
    let tasks = tasks(&weights, &settings);
    let mut done = Vec::new();
    let pruner: &dyn LayerPruner = &solver;
    pruner
        .prune_layers(Some(&mut hessian(&solver)), &tasks, &mut |task, pruned| {
            done.push((task, pruned.report.pattern));
            Ok(())
        })
        .unwrap();
    assert_eq!(solver.backend().factorizations(), 1);
    let expected: Vec<_> = (0..12)
        .map(|task| (task, ["40%", "50%", "2:4", "50%"][task % 4].to_owned()))
        .collect();
    assert_eq!(done, expected);
    check_same_as_alone(&Solver::new(Host), &weights, &settings);
}

#[test]
fn tasks_with_one_factor_need_not_follow_each_other() {
    let in_order = |text| pattern(text).with_act_order(true);
    // N:M keeps its groups together, so that 2:4 and 1:4 have one order of columns, 1:2 another, the rest a third.
    let mixed = ["50%", "2:4", "40%", "1:2", "1:4", "row:50%"].map(in_order);
    assert_eq!(factorizations(&mixed[..3]), 2);
    assert_eq!(factorizations(&mixed), 3);
    let magnitude = pattern("50%").with_method(Method::Magnitude);
    let damped = in_order("40%").with_damping(0.02);
    let interleaved = [
        magnitude.clone(),
        in_order("50%"),
        damped.clone(),
        magnitude,
        in_order("40%"),
        damped,
    ];
    assert_eq!(factorizations(&interleaved), 2);
    check_same_as_alone(&Solver::new(Host), &[random(ROWS, COLS, 1)], &mixed);
    check_same_as_alone(&Solver::new(Host), &[random(ROWS, COLS, 1)], &interleaved);
}

#[test]
fn another_damping_order_or_block_is_another_factor() {
    let half = pattern("50%");
    let and = |other: LayerSettings| factorizations(&[half.clone(), half.clone(), other]);
    assert_eq!(and(half.clone()), 1);
    assert_eq!(and(half.clone().with_damping(0.02)), 2);
    assert_eq!(and(half.clone().with_act_order(true)), 2);
    assert_eq!(
        and(half.clone().with_block_size(64).with_mask_block_size(64)),
        2
    );
    // Methods without a factor neither ask for one nor take the kept one away.
    let magnitude = pattern("50%").with_method(Method::Magnitude);
    let wanda = pattern("2:4").with_method(Method::Wanda);
    assert_eq!(
        factorizations(&[half.clone(), magnitude, wanda, half.clone()]),
        1
    );
    check_same_as_alone(
        &Solver::new(Host),
        &[random(ROWS, COLS, 1)],
        &[
            half.clone(),
            half.clone().with_act_order(true),
            half.clone().with_damping(0.02),
            half,
        ],
    );
}
