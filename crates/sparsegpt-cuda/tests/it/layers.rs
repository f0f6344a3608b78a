//! Whole layers: in slices of rows where the device's memory does not hold them, and what is left to the host.

#![allow(clippy::unwrap_used)]

use sparsegpt::backend::Operation;
use sparsegpt::ndarray::Array2;
use sparsegpt::quant::UniformGrid;
use sparsegpt::{LayerSettings, Method, Pattern, PrunedLayer, Solver};
use sparsegpt_cuda::CudaBackend;

use crate::emulated::Emulated;

const ROWS: usize = 19;
const COLS: usize = 40;

/// The layer, and how many kernels that took.
fn solve(device: Emulated, settings: &LayerSettings) -> (PrunedLayer, usize) {
    let noise =
        |row: usize, col: usize| ((row * 7919 + col * 104_729) % 2053) as f32 / 1026.5 - 1.0;
    let weights = Array2::from_shape_fn((ROWS, COLS), |(row, col)| noise(row, col));
    let activations = Array2::from_shape_fn((2 * COLS, COLS), |(row, col)| {
        noise(row + 500, col) + 0.4 * noise(row + 500, 0)
    });
    let solver = Solver::new(CudaBackend::new(device.clone()));
    let mut hessian = solver.hessian(COLS).unwrap();
    hessian.update(activations.view()).unwrap();
    let layer = solver.prune(weights.view(), &mut hessian, settings);
    (layer.unwrap(), device.launches())
}

#[test]
fn slices_give_the_same_bits_as_the_whole() {
    let grid = || UniformGrid::new(4).unwrap();
    for settings in [
        LayerSettings::new(Pattern::n_of_m(2, 4).unwrap()),
        LayerSettings::new(Pattern::per_row(0.5).unwrap()).with_block_size(16),
        LayerSettings::new(Pattern::n_of_m(2, 4).unwrap()).with_quantizer(grid().with_groups(16)),
    ] {
        let (whole, launches) = solve(Emulated::new(), &settings);
        // Room for a row at a time, and for some.
        for free in [0, 5_000] {
            let (sliced, more) = solve(Emulated::with_free(free), &settings);
            assert!(more > launches, "{more} launches with {free} bytes");
            assert_eq!(sliced.weights, whole.weights);
            assert_eq!(sliced.mask, whole.mask);
        }
    }
}

/// A report names what ran on the host.
#[test]
fn adam_runs_on_the_host_and_the_report_says_so() {
    let settings =
        LayerSettings::new(Pattern::unstructured(0.5).unwrap()).with_method(Method::AdaPrune);
    let (layer, _) = solve(Emulated::new(), &settings);
    assert_eq!(layer.report.host_operations, [Operation::Adam]);
}
