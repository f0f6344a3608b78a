//! V:N:M and blocks of k: what they promise, on odd shapes too.

#![allow(clippy::unwrap_used)]

use ndarray::{Array2, ArrayView2, s};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::{Host, Operation};
use sparsegpt::{Error, LayerSettings, Method, Pattern, PrunedLayer, Result, Solver};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_fn((rows, cols), |_| random.random_range(-1.0_f32..1.0))
}

/// Prunes with correlated inputs of different size, some of them dead.
fn prune(weights: ArrayView2<'_, f32>, settings: &LayerSettings, seed: u64) -> Result<PrunedLayer> {
    let cols = weights.ncols();
    let mut inputs = random(3 * cols, cols, seed + 1);
    for (column, mut values) in inputs.columns_mut().into_iter().enumerate() {
        let scale = if column % 11 == 5 {
            0.0
        } else {
            1.0 + (column % 7) as f32
        };
        values *= scale;
    }
    let solver = Solver::new(Host);
    let mut hessian = solver.hessian(cols).unwrap();
    hessian.update(inputs.view()).unwrap();
    solver.prune(weights, &mut hessian, settings)
}

fn settings(pattern: Pattern, seed: u64) -> LayerSettings {
    let method = [Method::SparseGpt, Method::Magnitude, Method::Wanda][seed as usize % 3];
    LayerSettings::new(pattern)
        .with_method(method)
        .with_act_order(method == Method::SparseGpt && seed.is_multiple_of(2))
        .with_mask_block_size(1 + seed as usize % 40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn blocks_are_whole_and_their_number_exact(
        rows in 1_usize..9, runs in 1_usize..12, size in 1_usize..9, percent in 1_u32..=100, seed in 0_u64..1000,
    ) {
        let cols = runs * size;
        let pattern = Pattern::blocks(size, f64::from(percent) / 100.0).unwrap();
        let layer = prune(random(rows, cols, seed).view(), &settings(pattern, seed), seed).unwrap();
        let pruned = (rows * runs) as u64 * u64::from(percent) / 100;
        prop_assert_eq!(layer.report.pruned, pruned * size as u64);
        prop_assert_eq!(&layer.report.pattern, &pattern.to_string());
        for first in (0..cols).step_by(size) {
            for row in layer.mask.slice(s![.., first..first + size]).rows() {
                prop_assert!(row.iter().all(|kept| *kept == row[0]));
            }
        }
    }

    #[test]
    fn protected_blocks_stay_and_others_take_their_place(
        rows in 2_usize..9, runs in 3_usize..12, size in 1_usize..6, seed in 0_u64..1000,
    ) {
        let cols = runs * size;
        let pattern = Pattern::blocks(size, 0.3).unwrap();
        let (row, column) = (seed as usize % rows, seed as usize % cols);
        let settings = settings(pattern, seed)
            .with_protected_rows(vec![row])
            .with_protected_columns(vec![column]);
        let wanted = rows * runs * 3 / 10;
        let possible = (rows - 1) * (runs - 1);
        let result = prune(random(rows, cols, seed).view(), &settings, seed);
        if wanted > possible {
            let refused = matches!(result, Err(Error::Incompatible { .. }));
            prop_assert!(refused);
        } else {
            let layer = result.unwrap();
            prop_assert_eq!(layer.report.pruned, (wanted * size) as u64);
            prop_assert!(layer.mask.row(row).iter().all(|kept| *kept));
            prop_assert!(layer.mask.column(column).iter().all(|kept| *kept));
        }
    }

    #[test]
    fn v_n_of_m_holds_in_rows_and_in_blocks(
        blocks in 1_usize..4, v in 1_usize..6, groups in 1_usize..5, group in 2_usize..12, seed in 0_u64..1000,
    ) {
        let kept = 1 + seed as usize % (group / 2);
        let (rows, cols) = (blocks * v, groups * group);
        let pattern = Pattern::v_n_of_m(v, group - kept, group).unwrap();
        let layer = prune(random(rows, cols, seed).view(), &settings(pattern, seed), seed).unwrap();
        prop_assert_eq!(layer.report.pruned, (rows * groups * (group - kept)) as u64);
        for first_row in (0..rows).step_by(v) {
            for first in (0..cols).step_by(group) {
                let block = layer.mask.slice(s![first_row..first_row + v, first..first + group]);
                for row in block.rows() {
                    prop_assert_eq!(row.iter().filter(|kept| **kept).count(), kept);
                }
                let used = block.columns().into_iter().filter(|column| column.iter().any(|kept| *kept));
                prop_assert!(used.count() <= 2 * kept);
            }
        }
    }
}

#[test]
fn swaps_stay_within_the_surviving_columns() {
    let (rows, cols, v, group, kept) = (12, 40, 4, 8, 2);
    let weights = random(rows, cols, 9);
    for method in [Method::SparseGpt, Method::Wanda, Method::Quality] {
        let settings = LayerSettings::new(Pattern::v_n_of_m(v, group - kept, group).unwrap())
            .with_method(method);
        let plain = prune(weights.view(), &settings, 9).unwrap();
        let swapped = prune(weights.view(), &settings.with_swaps(30), 9).unwrap();
        assert_ne!(plain.mask, swapped.mask, "{method}");
        for first_row in (0..rows).step_by(v) {
            for first in (0..cols).step_by(group) {
                let at = s![first_row..first_row + v, first..first + group];
                let used = |mask: &Array2<bool>| -> Vec<bool> {
                    let block = mask.slice(at);
                    let columns = block.columns().into_iter();
                    columns
                        .map(|column| column.iter().any(|kept| *kept))
                        .collect()
                };
                for row in swapped.mask.slice(at).rows() {
                    assert_eq!(row.iter().filter(|kept| **kept).count(), kept);
                }
                let (before, after) = (used(&plain.mask), used(&swapped.mask));
                assert!(
                    before
                        .iter()
                        .zip(after)
                        .all(|(before, after)| *before || !after)
                );
            }
        }
    }
    let blocks = LayerSettings::new(Pattern::blocks(4, 0.5).unwrap()).with_swaps(3);
    let error = prune(weights.view(), &blocks, 9).unwrap_err().to_string();
    assert!(error.contains("swaps would break it"), "{error}");
}

#[test]
fn the_least_blocks_go() {
    let weights = ndarray::arr2(&[[3.0_f32, 0.1, 1.0, 1.0], [2.0, 2.0, -1.1, 0.9]]);
    let settings =
        LayerSettings::new(Pattern::blocks(2, 0.5).unwrap()).with_method(Method::Magnitude);
    let layer = Solver::new(Host)
        .prune_uncalibrated(weights.view(), &settings)
        .unwrap();
    // Sums of squares 9.01, 2; 8, 2.02.
    assert_eq!(
        layer.mask,
        ndarray::arr2(&[[true, true, false, false], [true, true, false, false]])
    );
    assert_eq!(layer.report.host_operations, [Operation::Select]);
}

#[test]
fn the_largest_columns_survive_and_in_them_the_largest_weights() {
    // Column sums of squares over two rows: 25.01, 0.5, 9.01, 4.0.
    let weights = ndarray::arr2(&[[5.0_f32, 0.5, 0.1, 0.0], [0.1, 0.5, 3.0, 2.0]]);
    let settings =
        LayerSettings::new(Pattern::v_n_of_m(2, 3, 4).unwrap()).with_method(Method::Magnitude);
    let layer = Solver::new(Host)
        .prune_uncalibrated(weights.view(), &settings)
        .unwrap();
    assert_eq!(
        layer.mask,
        ndarray::arr2(&[[true, false, false, false], [false, false, true, false]])
    );
}

#[test]
fn with_all_columns_surviving_v_n_of_m_is_n_of_m() {
    let weights = random(6, 16, 3);
    let with = |pattern| LayerSettings::new(pattern).with_method(Method::Wanda);
    let blocks = prune(
        weights.view(),
        &with(Pattern::v_n_of_m(3, 2, 4).unwrap()),
        3,
    );
    let plain = prune(weights.view(), &with(Pattern::n_of_m(2, 4).unwrap()), 3);
    assert_eq!(blocks.unwrap().mask, plain.unwrap().mask);
}

#[test]
fn protected_columns_survive_v_n_of_m_up_to_what_it_leaves() {
    let weights = random(4, 16, 5);
    let with = |columns: Vec<usize>| {
        let settings = LayerSettings::new(Pattern::v_n_of_m(2, 6, 8).unwrap())
            .with_protected_columns(columns)
            .with_protected_rows(vec![1]);
        prune(weights.view(), &settings, 5)
    };
    let layer = with(vec![1, 6]).unwrap();
    for column in [1, 6] {
        assert!(layer.mask.column(column).iter().all(|kept| *kept));
    }
    assert!(layer.mask.row(1).iter().all(|kept| *kept));
    assert_eq!(layer.report.pruned, 3 * 2 * 6);
    let error = with(vec![1, 3, 6]).unwrap_err();
    assert!(
        error.to_string().contains("3 of them are protected"),
        "{error}"
    );
}

#[test]
fn what_does_not_fit_is_told_with_what_would() {
    for (pattern, rows, cols, named) in [
        ("block:16:50%", 8, 40, "10 at most"),
        ("3:6:8", 8, 16, "2 at most"),
        ("2:6:8", 8, 20, "5 at most"),
    ] {
        let settings = LayerSettings::new(pattern.parse::<Pattern>().unwrap());
        let error = settings.validate("up", rows, cols).unwrap_err().to_string();
        assert!(error.contains("\"up\"") && error.contains(named), "{error}");
    }
}
