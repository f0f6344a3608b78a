//! Layers larger than a device's memory: slices of rows give what the whole gives.

#![allow(clippy::unwrap_used)]

mod common;

use common::counting::Counting;
use ndarray::Array2;
use sparsegpt::quant::UniformGrid;
use sparsegpt::{LayerSettings, Pattern, PrunedLayer, Solver};

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
