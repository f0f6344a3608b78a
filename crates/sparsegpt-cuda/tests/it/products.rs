//! What is made of products, on the ordinary units and on the tensor cores, against f64 and the plain host functions, on
//! sizes around tiles, slabs, groups and strips.

#![allow(clippy::unwrap_used)]

use crate::emulated::Emulated;
use crate::emulated::seen::{ORDINARY, SeenAs, TENSOR, seen_as};
use sparsegpt::backend::{Backend, Gemm, Precision, host};
use sparsegpt::ndarray::{Array2, s};
use sparsegpt_cuda::CudaBackend;

const UNITS: [(u32, u32); 2] = [ORDINARY, TENSOR];

fn backend(capability: (u32, u32)) -> CudaBackend<SeenAs<Emulated>> {
    seen_as(capability, Emulated::new())
}

/// Values between −1 and 1, evenly spread (an additive sequence with the golden ratio).
fn values(rows: usize, cols: usize, seed: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| {
        let position = (seed * 7919 + i * 104_729 + j * 1_299_709) as f64;
        ((position * 0.618_033_988_749_894_9).fract() * 2.0 - 1.0) as f32
    })
}

fn wide(matrix: &Array2<f32>) -> Array2<f64> {
    matrix.mapv(f64::from)
}

/// The largest difference, in units of f32's last place of what the entries are made of.
fn ulps(found: &Array2<f32>, expected: &Array2<f64>, sizes: &Array2<f64>) -> f64 {
    found
        .iter()
        .zip(expected.iter().zip(sizes))
        .map(|(&found, (&expected, &size))| {
            (f64::from(found) - expected).abs() / (size * f64::from(f32::EPSILON))
        })
        .fold(0.0, f64::max)
}

#[test]
fn every_range_of_every_size_on_both_units() {
    // Rows, columns, depth, and the first column of each range.
    let cases = [
        (1, 1, 1, 0),
        (2, 127, 16, 1),
        (127, 2, 17, 3),
        (129, 128, 15, 0),
        (128, 129, 33, 2),
        (130, 257, 48, 5),
    ];
    for capability in UNITS {
        let backend = backend(capability);
        for (rows, cols, depth, first) in cases {
            let a = values(rows, depth + first, 1);
            let b = values(depth + 1, cols + first, 2);
            let c = values(rows, cols + 2 * first, 3);
            let mut device = backend.upload(c.view()).unwrap();
            backend
                .gemm(Gemm::new(
                    (&mut device, first..first + cols),
                    -1.5,
                    (&backend.upload(a.view()).unwrap(), first..first + depth),
                    (
                        &backend.upload(b.view()).unwrap(),
                        1..1 + depth,
                        first..first + cols,
                    ),
                ))
                .unwrap();
            let found = backend.download(&device).unwrap();
            let a = wide(&a.slice(s![.., first..]).to_owned());
            let b = wide(&b.slice(s![1.., first..]).to_owned());
            let (mut expected, mut sizes) = (wide(&c), wide(&c).mapv(f64::abs));
            let mut part = expected.slice_mut(s![.., first..first + cols]);
            part.scaled_add(-1.5, &a.dot(&b));
            let mut part = sizes.slice_mut(s![.., first..first + cols]);
            part.scaled_add(1.5, &a.mapv(f64::abs).dot(&b.mapv(f64::abs)));
            let ulps = ulps(&found, &expected, &sizes);
            assert!(
                ulps < 3.0,
                "{capability:?}, {rows} x {cols} x {depth}: {ulps} ulp"
            );
        }
    }
}

/// On values that do not fit into TF32, sums on the tensor cores are as good as those of the ordinary units: within the suite's
/// tolerance of 16 ulp also for long sums without a change of sign.
#[test]
fn tensor_cores_are_as_exact_as_the_ordinary_units() {
    let (rows, depth) = (8, 1000);
    let a = values(rows, depth, 4).mapv(|value| 1.0 + value / 8.0);
    let b = values(depth, rows, 5).mapv(|value| 1.0 + value / 8.0);
    let expected = wide(&a).dot(&wide(&b));
    let [ordinary, tensor] = UNITS.map(|capability| {
        let backend = backend(capability);
        let mut c = backend.zeros(rows, rows).unwrap();
        let (a, b) = (
            backend.upload(a.view()).unwrap(),
            backend.upload(b.view()).unwrap(),
        );
        let product = Gemm::new(
            (&mut c, 0..rows),
            1.0,
            (&a, 0..depth),
            (&b, 0..depth, 0..rows),
        );
        backend.gemm(product).unwrap();
        ulps(&backend.download(&c).unwrap(), &expected, &expected)
    });
    assert!(ordinary < 16.0, "{ordinary} ulp");
    assert!(tensor < 16.0, "{tensor} ulp");
}

/// H = UUᵀ of several groups, in blocks and whole, in f32 and f64, against the host's f64.
#[test]
fn factors_of_several_groups() {
    let cols = 700;
    let x = values(cols / 2, cols, 6);
    let (h, mut diagonal) = {
        let h = wide(&x).t().dot(&wide(&x)).mapv(|entry| entry as f32);
        let diagonal = h.diag().to_vec();
        (h, diagonal)
    };
    let mean = diagonal.iter().sum::<f32>() / cols as f32;
    diagonal.iter_mut().for_each(|entry| *entry += 0.01 * mean);
    for (blocks, precision, capability) in [
        (vec![128, 256, 300, 430, 650, 700], Precision::F32, TENSOR),
        (vec![700], Precision::F32, ORDINARY),
        (vec![700], Precision::F64, ORDINARY),
        (vec![10, 660, 700], Precision::F64, TENSOR),
    ] {
        let backend = backend(capability);
        let mut device = backend.upload(h.view()).unwrap();
        backend
            .inverse_factor(&mut device, &diagonal, &blocks, precision)
            .unwrap();
        let found = backend.download(&device).unwrap();
        let mut expected = h.clone();
        host::inverse_factor(expected.view_mut(), &diagonal, &blocks, Precision::F64).unwrap();
        let bound = match precision {
            // The condition number is some thousands.
            Precision::F32 => 1e-3,
            _ => 1e-6,
        };
        for (i, (found, expected)) in found.rows().into_iter().zip(expected.rows()).enumerate() {
            let largest = expected
                .slice(s![i..])
                .iter()
                .fold(0.0_f32, |a, b| a.max(b.abs()));
            for (j, (found, expected)) in found.iter().zip(expected).enumerate() {
                if j < i {
                    assert_eq!(found.to_bits(), expected.to_bits(), "below: ({i}, {j})");
                } else {
                    assert!(
                        (found - expected).abs() <= bound * largest,
                        "{blocks:?}, {precision}: ({i}, {j}) is {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

/// A leaf that fails far behind others: its column is named whatever the others then make of it.
#[test]
fn the_first_failing_column_from_the_last_is_named() {
    use sparsegpt::error::{BackendError, BackendErrorKind};
    for precision in [Precision::F32, Precision::F64] {
        let backend = backend(TENSOR);
        let cols = 400;
        let mut diagonal = vec![1.0; cols];
        for column in [3, 130, 290] {
            diagonal[column] = -1.0;
            let mut h = backend.zeros(cols, cols).unwrap();
            let error = backend
                .inverse_factor(&mut h, &diagonal, &[cols], precision)
                .unwrap_err();
            assert_eq!(
                error.kind(),
                BackendErrorKind::NotPositiveDefinite { column }
            );
        }
    }
}

/// Energies over more columns than a panel holds.
#[test]
fn energies_of_several_panels() {
    let backend = backend(TENSOR);
    let (rows, cols) = (9, 1030);
    let (w, h) = (values(rows, cols, 7), values(cols, cols, 8));
    let diagonal: Vec<f32> = (0..cols)
        .map(|column| 1.0 + column as f32 / 100.0)
        .collect();
    let found = backend
        .row_energies(
            &backend.upload(w.view()).unwrap(),
            &backend.upload(h.view()).unwrap(),
            &diagonal,
        )
        .unwrap();
    let expected = host::row_energies(w.view(), h.view(), &diagonal);
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Of the sum of the absolute values, which is near cols² / 4.
        let size = (cols * cols) as f64 / 4.0;
        let ulps = (found - expected).abs() / (size * f64::from(f32::EPSILON));
        assert!(ulps < 2.0, "row {row}: {found}, expected {expected}");
    }
}
