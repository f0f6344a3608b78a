//! Layers larger than a device's memory: slices of rows give what the whole gives.

#![allow(clippy::unwrap_used)]

use crate::common::counting::Copied::{From, To};
use crate::common::counting::{Copied, Counting};
use ndarray::Array2;
use sparsegpt::quant::UniformGrid;
use sparsegpt::{LayerSettings, LayerTask, Pattern, PrunedLayer, Solver};

const ROWS: usize = 37;
const COLS: usize = 48;

/// Solves a layer with so much memory; the second number is the largest count of rows treated together.
fn solve(free: Option<usize>, settings: &LayerSettings) -> (PrunedLayer, usize) {
    let noise =
        |row: usize, col: usize| ((row * 7919 + col * 104_729) % 2053) as f32 / 1026.5 - 1.0;
    let weights = Array2::from_shape_fn((ROWS, COLS), |(row, col)| noise(row, col));
    let mut activations = Array2::from_shape_fn((3 * COLS, COLS), |(row, col)| {
        noise(row + 500, col) + 0.4 * noise(row + 500, 0)
    });
    // A dead column.
    activations.column_mut(5).fill(0.0);
    let solver = Solver::new(Counting::with_free(free));
    let mut hessian = solver.hessian(COLS).unwrap();
    hessian.update(activations.view()).unwrap();
    let layer = solver
        .prune(weights.view(), &mut hessian, settings)
        .unwrap();
    (layer, solver.backend().rows_swept())
}

fn settings() -> Vec<LayerSettings> {
    let grid = || UniformGrid::new(4).unwrap();
    let two_of_four = || LayerSettings::new(Pattern::n_of_m(2, 4).unwrap());
    let per_row = || LayerSettings::new(Pattern::per_row(0.5).unwrap()).with_block_size(16);
    vec![
        two_of_four(),
        per_row(),
        per_row()
            .with_act_order(true)
            .with_quantizer(grid().with_groups(16)),
        two_of_four()
            .with_protected_rows(vec![0, 9, 36])
            .with_quantizer(grid()),
        LayerSettings::quantize_only(grid().with_symmetric(true)),
    ]
}

#[test]
fn slices_give_the_same_bits_as_the_whole() {
    for settings in settings() {
        let (whole, rows) = solve(None, &settings);
        assert_eq!(rows, ROWS);
        for free in [0, 20_000, 40_000] {
            let (sliced, rows) = solve(Some(free), &settings);
            let name = format!("{} with {free} bytes", settings.mask.describe());
            assert!(
                rows < ROWS && (free > 0 || rows == 1),
                "{name}: {rows} rows"
            );
            assert_eq!(sliced.weights, whole.weights, "{name}");
            assert_eq!(sliced.mask, whole.mask, "{name}");
            let codes = |layer: &PrunedLayer| layer.quantized.as_ref().map(|q| q.codes.clone());
            let scales = |layer: &PrunedLayer| layer.quantized.as_ref().map(|q| q.scale.clone());
            assert_eq!(codes(&sliced), codes(&whole), "{name}");
            assert_eq!(scales(&sliced), scales(&whole), "{name}");
            let close = |found: Option<f64>, expected: Option<f64>| {
                let (found, expected) = (found.unwrap(), expected.unwrap());
                assert!(
                    (found - expected).abs() <= 1e-9 * expected,
                    "{name}: {found} {expected}"
                );
            };
            let (report, expected) = (&sliced.report, &whole.report);
            close(report.solver_loss, expected.solver_loss);
            close(report.reconstruction_error, expected.reconstruction_error);
            assert_eq!(report.pruned, expected.pruned);
            assert_eq!(report.factor_attempts, 1);
        }
    }
}

#[test]
fn what_joins_rows_is_not_sliced() {
    let whole_layer = LayerSettings::new(Pattern::unstructured(0.5).unwrap());
    let one_grid = LayerSettings::new(Pattern::n_of_m(2, 4).unwrap()).with_quantizer(
        UniformGrid::new(4)
            .unwrap()
            .with_granularity(sparsegpt::quant::Granularity::PerTensor),
    );
    for settings in [whole_layer, one_grid] {
        assert_eq!(solve(Some(20_000), &settings).1, ROWS);
    }
}

#[test]
fn enough_memory_is_one_slice() {
    let settings = LayerSettings::new(Pattern::n_of_m(2, 4).unwrap());
    assert_eq!(solve(Some(1 << 30), &settings).1, ROWS);
}

/// Layers of one input are sent to a device with memory of its own while the one before is swept, once each, and come out
/// as they do without.
#[test]
fn the_next_layer_is_sent_before_the_results_of_this_one_come_back() {
    let noise = |at: usize| ((at * 7919 + 13) % 2053) as f32 / 1026.5 - 1.0;
    let activations = Array2::from_shape_fn((3 * COLS, COLS), |(row, col)| noise(row * COLS + col));
    let layers = [10, 11, 12].map(|rows| {
        Array2::from_shape_fn((rows, COLS), |(row, col)| {
            noise(rows * 1000 + row * COLS + col)
        })
    });
    let sweep = LayerSettings::new(Pattern::n_of_m(2, 4).unwrap()).with_measure(false);
    let ordered = sweep.clone().with_act_order(true);
    let solve = |free: Option<usize>, settings: &LayerSettings| {
        let solver = Solver::new(Counting::with_free(free));
        let mut hessian = solver.hessian(COLS).unwrap();
        hessian.update(activations.view()).unwrap();
        solver.backend().take_copies();
        let tasks = layers.each_ref().map(|layer| LayerTask {
            name: "layer",
            weights: layer.view(),
            settings,
        });
        let solved = solver.prune_shared(&mut hessian, &tasks).unwrap();
        let copies = solver.backend().take_copies();
        let of_layers = |copy: &Copied| matches!(copy, To(10..=12, COLS) | From(10..=12, COLS));
        let copies: Vec<_> = copies.into_iter().filter(of_layers).collect();
        let weights: Vec<_> = solved.into_iter().map(|layer| layer.weights).collect();
        (weights, copies)
    };
    // Operations that run on the host copy to and fro: the first copy of a layer is its own, and its last one the result.
    let order = |copies: &[Copied]| {
        let sent = |rows| copies.iter().position(|&copy| copy == To(rows, COLS));
        let back = |rows| copies.iter().rposition(|&copy| copy == From(rows, COLS));
        [10, 11].map(|rows| sent(rows + 1).unwrap() < back(rows).unwrap())
    };
    let (expected, in_turn) = solve(None, &sweep);
    assert_eq!(order(&in_turn), [false; 2], "{in_turn:?}");
    let (found, ahead) = solve(Some(1 << 30), &sweep);
    assert_eq!(order(&ahead), [true; 2], "{ahead:?}");
    assert_eq!(ahead.len(), in_turn.len());
    assert_eq!(found, expected);
    // In another order than the host's they are not what is solved for.
    let (expected, _) = solve(None, &ordered);
    let (found, copies) = solve(Some(1 << 30), &ordered);
    assert_eq!(order(&copies), [false; 2], "{copies:?}");
    assert_eq!(found, expected);
}
