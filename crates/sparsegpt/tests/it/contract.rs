//! What callers and strangers' policies may do wrong, and get an error for.

#![allow(clippy::unwrap_used, clippy::panic)]

use crate::common::counting::Counting;
use ndarray::{Array2, ArrayView2, arr1, arr2};
use sparsegpt::backend::Host;
use sparsegpt::mask::{BlockMask, MaskBlock, MaskPolicy};
use sparsegpt::quant::{Granularity, Grid, GridLevels, Quantizer};
use sparsegpt::{Batch, Error, LayerSettings, Method, Pattern, Result, Solver};

#[derive(Debug)]
struct Stranger(BlockMask);

impl MaskPolicy for Stranger {
    fn describe(&self) -> String {
        "stranger".to_owned()
    }
    fn choose(&self, _block: &MaskBlock<'_>) -> Result<BlockMask> {
        Ok(self.0.clone())
    }
}

#[test]
fn impossible_answers_of_a_policy_are_errors() {
    let solver = Solver::new(Host);
    let weights = Array2::from_elem((3, 12), 0.5_f32);
    for (zeros, group) in [(1, 0), (2, 5), (1, 24), (usize::MAX, 4), (5, 4)] {
        for method in [Method::SparseGpt, Method::Wanda] {
            let policy = Stranger(BlockMask::NofM { zeros, group });
            let settings = LayerSettings::new(policy).with_method(method);
            let mut hessian = solver.hessian_from(Array2::eye(12).view()).unwrap();
            let error = solver
                .prune(weights.view(), &mut hessian, &settings)
                .unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::InvalidSetting { .. } | Error::Incompatible { .. }
                ),
                "{zeros}:{group}: {error}"
            );
        }
    }
    // A mask of the wrong shape, too.
    let settings = LayerSettings::new(Stranger(BlockMask::Fixed(Array2::from_elem((3, 5), true))));
    let mut hessian = solver.hessian_from(Array2::eye(12).view()).unwrap();
    let error = solver
        .prune(weights.view(), &mut hessian, &settings)
        .unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
}

/// The first run of a batch's tokens is in the matrix, the second one is not: nothing can be made of that.
#[test]
fn statistics_that_the_device_left_half_done_are_refused() {
    let solver = Solver::new(Counting::failing_at_update(3));
    let tokens = Array2::from_shape_fn((8, 4), |(row, col)| (row * 5 + col * 3) as f32 % 7.0);
    let mask = [true, true, true, false, true, true, false, true];
    let mut hessian = solver.hessian(4).unwrap();
    hessian.update(tokens.view()).unwrap();
    let batch = || Batch::new(tokens.view()).token_mask(&mask);
    let error = hessian.update(batch()).unwrap_err();
    assert!(matches!(error, Error::Backend { .. }), "{error}");
    let mut whole = solver.hessian(4).unwrap();
    whole.update(batch()).unwrap();
    let weights = Array2::from_elem((2, 4), 0.5_f32);
    let settings = LayerSettings::new(Pattern::unstructured(0.5).unwrap());
    let refusals = [
        hessian.update(batch()).unwrap_err(),
        hessian.to_array().unwrap_err(),
        hessian.merge(&whole).unwrap_err(),
        whole.merge(&hessian).unwrap_err(),
        solver
            .prune(weights.view(), &mut hessian, &settings)
            .unwrap_err(),
    ];
    for error in refusals {
        assert!(
            error.to_string().contains("accumulate them anew"),
            "{error}"
        );
    }
    // What was whole has stayed so.
    assert_eq!((whole.sequences(), whole.tokens()), (1, 6));
    whole.to_array().unwrap();
}

#[derive(Debug)]
struct FixedGrid {
    scale: f32,
    zero: f32,
    granularity: Granularity,
}

impl Quantizer for FixedGrid {
    fn describe(&self) -> String {
        "fixed".to_owned()
    }
    fn granularity(&self) -> Granularity {
        self.granularity
    }
    fn represents_zero(&self) -> bool {
        true
    }
    fn fit(&self, weights: ArrayView2<'_, f32>) -> Result<Grid> {
        let row = |value: f32| arr1(&vec![value; weights.nrows()]);
        Ok(Grid::new(row(self.scale), row(self.zero)))
    }
    fn levels(&self) -> GridLevels {
        GridLevels::Affine { max_code: 15 }
    }
}

#[test]
fn grids_of_a_strange_quantizer_are_held_to_their_contract() {
    let solver = Solver::new(Host);
    let weights = arr2(&[[0.3_f32, -0.2, 0.9, 0.1]]);
    let prune = |scale, zero| {
        let settings = LayerSettings::quantize_only(FixedGrid {
            scale,
            zero,
            granularity: Granularity::PerRow,
        });
        let mut hessian = solver.hessian_from(Array2::eye(4).view()).unwrap();
        solver.prune(weights.view(), &mut hessian, &settings)
    };
    assert!(prune(0.1, 8.0).is_ok());
    for (scale, zero) in [
        (0.1, 7.5),
        (0.1, 99.0),
        (0.1, -1.0),
        (0.0, 8.0),
        (-0.1, 8.0),
        (f32::NAN, 8.0),
    ] {
        let error = prune(scale, zero).unwrap_err();
        assert!(
            matches!(error, Error::Incompatible { .. }),
            "{scale} {zero}: {error}"
        );
    }
}

#[cfg(feature = "cpu")]
#[test]
fn a_slip_in_the_number_of_threads_is_an_error_at_once() {
    for threads in [1025, 100_000, usize::MAX] {
        let error = sparsegpt::backend::Cpu::new(threads).unwrap_err();
        assert!(error.to_string().contains(&threads.to_string()), "{error}");
    }
}

/// A code book without 0 that says it has one.
#[derive(Debug)]
struct Boaster;

impl Quantizer for Boaster {
    fn describe(&self) -> String {
        "boaster".to_owned()
    }
    fn granularity(&self) -> Granularity {
        Granularity::PerRow
    }
    fn represents_zero(&self) -> bool {
        true
    }
    fn fit(&self, weights: ArrayView2<'_, f32>) -> Result<Grid> {
        let row = |value: f32| arr1(&vec![value; weights.nrows()]);
        Ok(Grid::new(row(1.0), row(0.0)))
    }
    fn levels(&self) -> GridLevels {
        GridLevels::Codebook {
            levels: vec![-0.5, 0.25, 1.0].into(),
        }
    }
}

#[test]
fn a_code_book_that_says_it_has_zero_must_have_it() {
    let solver = Solver::new(Host);
    let weights = arr2(&[[0.3_f32, -0.2, 0.9, 0.1]]);
    let settings = LayerSettings::new(Pattern::unstructured(0.5).unwrap()).with_quantizer(Boaster);
    let mut hessian = solver.hessian_from(Array2::eye(4).view()).unwrap();
    let error = solver
        .prune(weights.view(), &mut hessian, &settings)
        .unwrap_err();
    assert!(
        matches!(error, Error::Incompatible { .. }) && error.to_string().contains("boaster"),
        "{error}"
    );
}

#[test]
fn groups_of_no_columns_are_an_error_whoever_asks_for_them() {
    let solver = Solver::new(Host);
    let weights = arr2(&[[0.3_f32, -0.2, 0.9, 0.1]]);
    for fixed in [false, true] {
        let settings = LayerSettings::quantize_only(FixedGrid {
            scale: 0.1,
            zero: 8.0,
            granularity: Granularity::Group { size: 0, fixed },
        });
        let mut hessian = solver.hessian_from(Array2::eye(4).view()).unwrap();
        let error = solver
            .prune(weights.view(), &mut hessian, &settings)
            .unwrap_err();
        assert!(error.to_string().contains("group size"), "{error}");
    }
}

#[test]
fn a_hessian_without_a_count_takes_no_more_data_until_it_has_one() {
    let solver = Solver::new(Host);
    let x = arr2(&[[1.0_f32, 2.0], [3.0, -1.0]]);
    let mut streamed = solver.hessian(2).unwrap();
    streamed.update(x.view()).unwrap();
    let matrix = streamed.to_array().unwrap();
    let mut given = solver.hessian_from(matrix.view()).unwrap();
    assert!(matches!(
        given.update(x.view()),
        Err(Error::Incompatible { .. })
    ));
    assert!(matches!(
        given.merge(&streamed),
        Err(Error::Incompatible { .. })
    ));
    assert!(matches!(
        streamed.merge(&given),
        Err(Error::Incompatible { .. })
    ));
    assert_eq!(
        given.to_array().unwrap(),
        matrix,
        "nothing may have changed"
    );
    assert!(
        solver
            .hessian_from(matrix.view())
            .unwrap()
            .with_counts(0, 0)
            .is_err()
    );

    let mut counted = solver
        .hessian_from(matrix.view())
        .unwrap()
        .with_counts(1, 2)
        .unwrap();
    counted.update(x.view()).unwrap();
    streamed.update(x.view()).unwrap();
    assert_eq!(counted.to_array().unwrap(), streamed.to_array().unwrap());
    assert_eq!((counted.sequences(), counted.tokens()), (2, 4));
}

#[test]
fn sizes_and_counts_that_overflow_do_not_panic() {
    let solver = Solver::new(Host);
    for cols in [usize::MAX, 1 << 33] {
        assert!(matches!(solver.hessian(cols), Err(Error::Backend { .. })));
    }
    let x = arr2(&[[1.0_f32, 2.0]]);
    let mut hessian = solver.hessian(2).unwrap();
    hessian.update(x.view()).unwrap();
    assert!(
        hessian
            .update(Batch::new(x.view()).sequences(u64::MAX))
            .is_err()
    );
    // Tokens are only counted; they stand still at the largest number.
    let matrix = hessian.to_array().unwrap();
    let given = solver.hessian_from(matrix.view()).unwrap();
    let mut full = given.with_counts(1, u64::MAX).unwrap();
    full.update(x.view()).unwrap();
    full.merge(&hessian).unwrap();
    assert_eq!((full.sequences(), full.tokens()), (3, u64::MAX));
}

#[test]
fn a_negative_diagonal_is_no_hessian() {
    let solver = Solver::new(Host);
    let mut matrix = Array2::<f32>::eye(4);
    matrix[[2, 2]] = -1.0;
    let mut hessian = solver.hessian_from(matrix.view()).unwrap();
    let settings = LayerSettings::new(Pattern::unstructured(0.5).unwrap());
    let error = solver
        .prune(Array2::ones((2, 4)).view(), &mut hessian, &settings)
        .unwrap_err();
    assert!(
        matches!(error, Error::NegativeDiagonal { column: 2, .. }),
        "{error}"
    );
}

#[test]
fn errors_that_overflow_are_unknown_and_not_zero() {
    let solver = Solver::new(Host);
    let weights = Array2::from_shape_fn((4, 8), |(i, j)| (1.0 + (i * 8 + j) as f32) * 1e36);
    let settings = LayerSettings::new(Pattern::unstructured(0.5).unwrap());
    let mut hessian = solver.hessian_from(Array2::eye(8).view()).unwrap();
    let report = solver
        .prune(weights.view(), &mut hessian, &settings)
        .unwrap()
        .report;
    assert_eq!(report.pruned, 16);
    assert_eq!(report.solver_loss, None);
    assert_ne!(report.relative_error, Some(0.0));
}

#[test]
fn dense_activations_that_are_refused_leave_the_statistics_as_they_were() {
    let solver = Solver::new(Host);
    let x = arr2(&[[1.0_f32, 2.0], [3.0, -1.0]]);
    let mut hessian = solver.hessian(2).unwrap();
    hessian.update(x.view()).unwrap();
    let before = hessian.to_array().unwrap();
    let dense = arr2(&[[1.0_f32, f32::NAN], [3.0, -1.0]]);
    let error = hessian
        .update_from_dense(x.view(), dense.view())
        .unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    assert_eq!((hessian.tokens(), hessian.sequences()), (2, 1));
    assert_eq!(hessian.to_array().unwrap(), before);
}
