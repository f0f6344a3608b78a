//! Factorizations by a library: what turns its factor into ours.

#![allow(clippy::unwrap_used)]

use sparsegpt::backend::{Backend, Precision};
use sparsegpt::ndarray::Array2;
use sparsegpt_cuda::{CudaBackend, CudaError};

use crate::emulated::Emulated;

#[test]
fn the_suite_holds_with_a_library() {
    for (filter, least) in [("operations/inverse_factor", 8), ("ladder", 3)] {
        let device = Emulated::with_library();
        let make = move || Ok::<_, CudaError>(CudaBackend::new(device.clone()));
        let summary = sparsegpt_conformance::check_matching(filter, make).unwrap();
        assert!(summary.failed.is_empty(), "{:?}", summary.failed);
        assert!(summary.passed.len() >= least, "{:?}", summary.passed);
    }
}

/// The last row but one is overwritten while slow threads may still read it.
#[test]
fn an_inverse_whose_threads_do_not_wait_is_a_race() {
    let device =
        Emulated::with_library_and_change("invert", "\tbar.sync 0;\n\tsub.u32 %j", "\tsub.u32 %j");
    let make = move || Ok::<_, CudaError>(CudaBackend::new(device.clone()));
    let filter = "operations/inverse_factor/f32/is_the_inverse";
    let summary = sparsegpt_conformance::check_matching(filter, make).unwrap();
    let raced = |(_, reason): &(String, String)| reason.contains("race: ");
    assert!(summary.failed.iter().any(raced), "{:?}", summary.failed);
}

/// A Hessian of columns that are all alike to each other, and unequal.
fn hessian(cols: usize) -> Array2<f32> {
    Array2::from_shape_fn((cols, cols), |(row, col)| {
        let size = |index: usize| 1.0 + (index * 7919 % 101) as f32 / 101.0;
        let distance = row.abs_diff(col) as f32;
        size(row) * size(col) * (0.9_f32.powf(distance) + f32::from(row == col) * 0.1)
    })
}

fn factor(device: Emulated, cols: usize, block: usize) -> Array2<f32> {
    let backend = CudaBackend::new(device);
    let h = hessian(cols);
    let diagonal: Vec<f32> = h.diag().iter().map(|value| value * 1.01).collect();
    let blocks: Vec<usize> = (1..=cols.div_ceil(block))
        .map(|it| cols.min(it * block))
        .collect();
    let mut on_device = backend.upload(h.view()).unwrap();
    backend
        .inverse_factor(&mut on_device, &diagonal, &blocks, Precision::F32)
        .unwrap();
    let mut factor = backend.download(&on_device).unwrap();
    for ((row, col), value) in factor.indexed_iter_mut() {
        if row > col {
            *value = 0.0;
        }
    }
    factor
}

/// Sizes around those of a warp, a piece and a row of blocks; blocks of one column, of several pieces, and a ragged last one.
#[test]
fn a_library_and_the_kernels_agree() {
    for (cols, block) in [
        (1, 1),
        (2, 128),
        (7, 1),
        (31, 32),
        (33, 5),
        (127, 128),
        (128, 128),
        (129, 128),
        (200, 64),
        (300, 300),
        (421, 200),
    ] {
        let expected = factor(Emulated::new(), cols, block);
        let found = factor(Emulated::with_library(), cols, block);
        let difference = (&found - &expected).mapv(f32::abs);
        let largest = expected
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        let most = difference
            .iter()
            .fold(0.0_f32, |most, value| most.max(*value));
        assert!(
            most <= 2e-5 * largest,
            "{cols} columns, blocks of {block}: {most:e} of {largest:e}"
        );
    }
}

#[test]
fn a_bad_pivot_is_named_as_the_kernels_name_it() {
    let fail = |device: Emulated, value: f32| {
        let backend = CudaBackend::new(device);
        let h = hessian(150);
        let mut diagonal = h.diag().to_vec();
        diagonal[140] = value;
        let mut on_device = backend.upload(h.view()).unwrap();
        let blocks = [64, 128, 150];
        let failed = backend.inverse_factor(&mut on_device, &diagonal, &blocks, Precision::F32);
        match failed {
            Err(CudaError::NotPositiveDefinite { column }) => column,
            other => panic!("expected a bad pivot, found {other:?}"),
        }
    };
    for value in [-1.0, 0.0, f32::NAN, f32::INFINITY] {
        assert_eq!(
            fail(Emulated::with_library(), value),
            fail(Emulated::new(), value),
            "{value}"
        );
    }
}
