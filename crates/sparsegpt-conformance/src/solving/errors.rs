//! Bad input: a typed error, never a panic.

use sparsegpt::backend::{Backend, Host};
use sparsegpt::mask::{GivenMask, Sparsity};
use sparsegpt::ndarray::Array2;
use sparsegpt::{
    Batch, Error, LayerPruner, LayerSettings, LayerTask, Pattern, Solver, UniformGrid,
};

use crate::check::{Cases, Failure, Subject, Verdict, ensure};

const ROWS: usize = 4;
const COLS: usize = 12;

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("solver/errors/sparsity_outside_0_to_1", |_| {
        for fraction in [-0.1, 1.0001, f64::NAN, f64::INFINITY] {
            expect_setting("a sparsity", Pattern::unstructured(fraction))?;
            expect_setting("a sparsity of each row", Pattern::per_row(fraction))?;
            expect_setting("a sparsity", Sparsity::new(fraction))?;
        }
        Ok(())
    });
    cases.add("solver/errors/n_of_m", n_of_m);
    cases.add("solver/errors/given_mask_of_the_wrong_shape", given_mask);
    cases.add("solver/errors/settings_out_of_range", settings_out_of_range);
    cases.add("solver/errors/protected_weights", protected);
    cases.add("solver/errors/quantizer", quantizer);
    cases.add("solver/errors/weights_not_finite", weights_not_finite);
    cases.add(
        "solver/errors/weights_without_rows_or_columns",
        empty_weights,
    );
    cases.add("solver/errors/hessian_not_finite", hessian_not_finite);
    cases.add("solver/errors/hessian_of_the_wrong_shape", hessian_shape);
    cases.add("solver/errors/hessian_all_zero", hessian_zero);
    cases.add("solver/errors/activations", activations);
    cases.add("solver/errors/merge", merge);
    cases.add("solver/errors/foreign_statistics", foreign_statistics);
}

/// Fails unless there is an error of the expected kind with a message of substance.
fn expect<T>(what: &str, found: Result<T, Error>, is_expected: impl Fn(&Error) -> bool) -> Verdict {
    match found {
        Ok(_) => Err(Failure::Wrong(format!("{what} was accepted"))),
        Err(error) => {
            ensure!(
                is_expected(&error),
                "{what}: another error than expected: {error:?}"
            );
            ensure!(
                error.to_string().len() > 20,
                "{what}: the message says little: {error}"
            );
            Ok(())
        }
    }
}

fn expect_setting<T>(what: &str, found: Result<T, Error>) -> Verdict {
    expect(what, found, |error| {
        matches!(error, Error::InvalidSetting { .. })
    })
}

fn identity() -> Array2<f32> {
    Array2::eye(COLS)
}

/// Prunes a matrix of ones on an identity.
fn prune<B: Backend>(subject: &Subject<B>, settings: &LayerSettings) -> Result<(), Error> {
    let mut hessian = subject.solver.hessian_from(identity().view())?;
    subject
        .solver
        .prune(Array2::ones((ROWS, COLS)).view(), &mut hessian, settings)
        .map(drop)
}

fn half() -> Verdict<LayerSettings> {
    Ok(LayerSettings::new(Pattern::unstructured(0.5)?))
}

fn n_of_m<B: Backend>(subject: &Subject<B>) -> Verdict {
    for (zeros, group) in [(5, 4), (1, 0), (0, 0)] {
        expect_setting(&format!("{zeros}:{group}"), Pattern::n_of_m(zeros, group))?;
        // Fields are public: the check must not depend on the constructor.
        let settings = LayerSettings::new(Pattern::NofM { zeros, group });
        expect_setting(
            &format!("{zeros}:{group} made by hand"),
            prune(subject, &settings),
        )?;
    }
    for (zeros, group) in [(2, 5), (1, 24), (7, 8)] {
        let settings = LayerSettings::new(Pattern::n_of_m(zeros, group)?);
        expect(
            "a group that does not divide the columns",
            prune(subject, &settings),
            |error| matches!(error, Error::Incompatible { .. }),
        )?;
    }
    Ok(())
}

fn given_mask<B: Backend>(subject: &Subject<B>) -> Verdict {
    for shape in [(ROWS, COLS - 1), (ROWS + 1, COLS), (COLS, ROWS), (0, 0)] {
        let mask = GivenMask::keeping(Array2::from_elem(shape, true).view());
        for policy in [mask.clone(), mask.extended_to(Sparsity::new(0.5)?)] {
            expect(
                "a mask of another shape",
                prune(subject, &LayerSettings::new(policy)),
                |error| matches!(error, Error::Shape { .. }),
            )?;
        }
    }
    Ok(())
}

fn settings_out_of_range<B: Backend>(subject: &Subject<B>) -> Verdict {
    for damping in [-0.01, 1.01, 1e30, f64::NAN, f64::INFINITY] {
        expect_setting("a damping", prune(subject, &half()?.with_damping(damping)))?;
    }
    for damping in [0.0, 1.0] {
        prune(subject, &half()?.with_damping(damping))?;
    }
    expect_setting("block size 0", prune(subject, &half()?.with_block_size(0)))?;
    expect_setting(
        "mask block size 0",
        prune(subject, &half()?.with_mask_block_size(0)),
    )
}

fn protected<B: Backend>(subject: &Subject<B>) -> Verdict {
    expect_setting(
        "a column beyond",
        prune(subject, &half()?.with_protected_columns(vec![COLS])),
    )?;
    expect_setting(
        "a row beyond",
        prune(subject, &half()?.with_protected_rows(vec![ROWS])),
    )?;
    let most: Vec<usize> = (1..COLS).collect();
    for pattern in ["50%", "row:50%", "2:4"] {
        let settings =
            LayerSettings::new(pattern.parse::<Pattern>()?).with_protected_columns(most.clone());
        expect(
            "more zeros than weights left",
            prune(subject, &settings),
            |error| matches!(error, Error::Incompatible { .. }),
        )?;
    }
    Ok(())
}

fn quantizer<B: Backend>(subject: &Subject<B>) -> Verdict {
    for bits in [0, 1, 9, 16, 32, 33, u32::MAX] {
        expect_setting(&format!("{bits} bits"), UniformGrid::new(bits))?;
    }
    for grid in [
        UniformGrid::new(4)?.with_groups(0),
        UniformGrid::new(4)?.with_static_groups(0),
    ] {
        expect_setting(
            "groups of 0",
            prune(subject, &LayerSettings::quantize_only(grid)),
        )?;
    }
    Ok(())
}

fn weights_not_finite<B: Backend>(subject: &Subject<B>) -> Verdict {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weights = Array2::ones((ROWS, COLS));
        weights[[2, 7]] = value;
        let mut hessian = subject.solver.hessian_from(identity().view())?;
        let found = subject.solver.prune(weights.view(), &mut hessian, &half()?);
        expect("a weight that is not finite", found, |error| {
            matches!(error, Error::NonFinite { row: 2, col: 7, .. })
        })?;
    }
    Ok(())
}

fn empty_weights<B: Backend>(subject: &Subject<B>) -> Verdict {
    for shape in [(0, COLS), (ROWS, 0), (0, 0)] {
        let mut hessian = subject.solver.hessian_from(identity().view())?;
        let found = subject
            .solver
            .prune(Array2::zeros(shape).view(), &mut hessian, &half()?);
        expect("an empty layer", found, |error| {
            matches!(error, Error::Shape { .. })
        })?;
    }
    let found = subject.solver.hessian(0);
    expect("a Hessian of 0 columns", found, |error| {
        matches!(error, Error::Shape { .. })
    })
}

fn hessian_not_finite<B: Backend>(subject: &Subject<B>) -> Verdict {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (row, col) in [(3, 3), (5, 2), (COLS - 1, 0)] {
            let mut hessian = identity();
            hessian[[row, col]] = value;
            let found = subject.solver.hessian_from(hessian.view());
            expect(
                "a Hessian that is not finite",
                found,
                |error| matches!(error, Error::NonFinite { row: r, col: c, .. } if (*r, *c) == (row, col)),
            )?;
        }
    }
    // Finite activations whose squares are not.
    let mut hessian = subject.solver.hessian_for("overflow", COLS)?;
    hessian.update(Array2::from_elem((3, COLS), 1e30_f32).view())?;
    let found = subject
        .solver
        .prune(Array2::ones((ROWS, COLS)).view(), &mut hessian, &half()?);
    expect("a Hessian that overflowed", found, |error| {
        matches!(error, Error::NonFinite { .. }) && error.layer() == Some("overflow")
    })
}

fn hessian_shape<B: Backend>(subject: &Subject<B>) -> Verdict {
    for shape in [(COLS, COLS + 1), (COLS + 1, COLS), (0, 0), (0, COLS)] {
        let found = subject.solver.hessian_from(Array2::zeros(shape).view());
        expect("a Hessian that is not square", found, |error| {
            matches!(error, Error::Shape { .. })
        })?;
    }
    for cols in [1, COLS - 1, COLS + 1] {
        let mut hessian = subject.solver.hessian_from(Array2::eye(cols).view())?;
        let found = subject
            .solver
            .prune(Array2::ones((ROWS, COLS)).view(), &mut hessian, &half()?);
        expect("a Hessian of another layer", found, |error| {
            matches!(error, Error::Shape { .. })
        })?;
    }
    Ok(())
}

fn hessian_zero<B: Backend>(subject: &Subject<B>) -> Verdict {
    let weights = Array2::ones((ROWS, COLS));
    let is_zero = |error: &Error| matches!(error, Error::ZeroHessian { .. });
    let mut zero = subject
        .solver
        .hessian_from(Array2::zeros((COLS, COLS)).view())?;
    expect(
        "a zero Hessian",
        subject.solver.prune(weights.view(), &mut zero, &half()?),
        is_zero,
    )?;
    let mut empty = subject.solver.hessian_for("nothing seen", COLS)?;
    let found = subject.solver.prune(weights.view(), &mut empty, &half()?);
    expect("a Hessian that saw nothing", found, |error| {
        is_zero(error) && error.layer() == Some("nothing seen")
    })?;
    let mut silent = subject.solver.hessian(COLS)?;
    silent.update(Array2::<f32>::zeros((9, COLS)).view())?;
    expect(
        "zero activations",
        subject.solver.prune(weights.view(), &mut silent, &half()?),
        is_zero,
    )
}

fn activations<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut hessian = subject.solver.hessian_for("attention", COLS)?;
    let good = Array2::<f32>::ones((5, COLS));
    expect(
        "activations of another width",
        hessian.update(Array2::<f32>::ones((5, 3)).view()),
        |error| matches!(error, Error::Shape { .. }),
    )?;
    for value in [f32::NAN, f32::INFINITY] {
        let mut bad = good.clone();
        bad[[3, 8]] = value;
        expect(
            "activations that are not finite",
            hessian.update(bad.view()),
            |error| {
                matches!(error, Error::NonFinite { row: 3, col: 8, .. })
                    && error.layer() == Some("attention")
            },
        )?;
    }
    expect(
        "a token mask of another length",
        hessian.update(Batch::new(good.view()).token_mask(&[true; 4])),
        |error| matches!(error, Error::Incompatible { .. }),
    )?;
    expect_setting(
        "a batch of no sequences",
        hessian.update(Batch::new(good.view()).sequences(0)),
    )?;
    ensure!(
        hessian.tokens() == 0 && hessian.sequences() == 0,
        "refused batches were counted: {} tokens, {} sequences",
        hessian.tokens(),
        hessian.sequences()
    );
    Ok(())
}

fn merge<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut hessian = subject.solver.hessian(COLS)?;
    let other = subject.solver.hessian(COLS + 1)?;
    expect(
        "a Hessian of another width",
        hessian.merge(&other),
        |error| matches!(error, Error::Shape { .. }),
    )
}

/// A backend that differs from the one under test in nothing but its type.
mod foreign {
    use super::{Backend, Host};
    use sparsegpt::Activations;
    use sparsegpt::backend::{BackendInfo, Precision};
    use sparsegpt::error::HostError;
    use sparsegpt::ndarray::{Array2, ArrayView2};

    #[derive(Debug)]
    pub(super) struct Foreign;

    impl Backend for Foreign {
        type Matrix = Array2<f32>;
        type Mask = Array2<bool>;
        type Error = HostError;

        fn info(&self) -> BackendInfo {
            BackendInfo::new("foreign", "host", &[])
        }
        fn fork(&self) -> Result<Self, HostError> {
            Ok(Self)
        }
        fn synchronize(&self) -> Result<(), HostError> {
            Ok(())
        }
        fn zeros(&self, rows: usize, cols: usize) -> Result<Self::Matrix, HostError> {
            Host.zeros(rows, cols)
        }
        fn shape(&self, matrix: &Self::Matrix) -> (usize, usize) {
            matrix.dim()
        }
        fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Self::Matrix, HostError> {
            Host.upload(host)
        }
        fn download(&self, matrix: &Self::Matrix) -> Result<Array2<f32>, HostError> {
            Host.download(matrix)
        }
        fn copy(&self, matrix: &Self::Matrix) -> Result<Self::Matrix, HostError> {
            Host.copy(matrix)
        }
        fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Self::Mask, HostError> {
            Host.upload_mask(host)
        }
        fn download_mask(&self, mask: &Self::Mask) -> Result<Array2<bool>, HostError> {
            Host.download_mask(mask)
        }
        fn gram_update(
            &self,
            h: &mut Self::Matrix,
            x: Activations<'_>,
            alpha: f32,
            beta: f32,
        ) -> Result<(), HostError> {
            Host.gram_update(h, x, alpha, beta)
        }
        fn inverse_factor(
            &self,
            h: &mut Self::Matrix,
            diagonal: &[f32],
            blocks: &[usize],
            precision: Precision,
        ) -> Result<(), HostError> {
            Host.inverse_factor(h, diagonal, blocks, precision)
        }
    }
}

fn foreign_statistics<B: Backend>(subject: &Subject<B>) -> Verdict {
    let foreign: &dyn LayerPruner = &Solver::new(foreign::Foreign);
    let ours: &dyn LayerPruner = &subject.solver;
    let mut statistics = foreign.statistics("layer", COLS)?;
    let weights = Array2::ones((ROWS, COLS));
    let settings = half()?;
    let task = LayerTask {
        name: "layer",
        weights: weights.view(),
        settings: &settings,
    };
    let found = ours.prune_layers(Some(&mut *statistics), &[task], &mut |_, _| Ok(()));
    expect("statistics of another backend", found, |error| {
        matches!(error, Error::ForeignStatistics { .. }) && error.layer() == Some("layer")
    })?;
    let mut own = ours.statistics("layer", COLS)?;
    expect(
        "a merge with another backend's statistics",
        own.merge(&*statistics),
        |error| matches!(error, Error::ForeignStatistics { .. }),
    )
}
