//! What the iterative methods are made of: the inverse, the projection, the refit.

use std::fmt::Arguments;

use sparsegpt::backend::{Adam, AdamPace, Backend, Precision, Project, Refit, host};
use sparsegpt::error::{BackendError, BackendErrorKind};
use sparsegpt::ndarray::Array2;

use super::factor::definite;
use crate::check::{Cases, Failure, Subject, Verdict, close, ensure, same_bits};
use crate::random::Random;
use crate::tolerance::{FACTOR_F32, FACTOR_F64, REFIT};
use crate::truth;

const SIZES: [usize; 7] = [1, 2, 5, 33, 64, 129, 200];

/// Rows, columns, and how many weights in a hundred are pruned.
const LAYERS: [(usize, usize, usize); 8] = [
    (1, 1, 0),
    (1, 1, 100),
    (1, 64, 50),
    (7, 33, 50),
    (16, 128, 0),
    (33, 129, 80),
    (64, 200, 50),
    (130, 17, 100),
];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    for precision in [Precision::F32, Precision::F64] {
        cases.add(
            format!("operations/inverse/{precision}/times_h_is_the_identity"),
            move |subject| inverse(subject.backend(), precision),
        );
        cases.add(
            format!("operations/inverse/{precision}/names_the_failing_column"),
            move |subject| not_definite(subject.backend(), precision),
        );
    }
    cases.add("operations/project/splits_by_the_mask", project);
    cases.add("operations/refit/against_f64", refit);
    cases.add("operations/refit/reaches_the_optimum", optimum);
    cases.add("operations/refit/no_steps_change_nothing", no_steps);
    cases.add("operations/refit/same_bits_twice", refit_twice);
    cases.add("operations/adam/against_f64", adam);
    cases.add("operations/adam/no_steps_change_nothing", adam_no_steps);
    cases.add("operations/adam/same_bits_twice", adam_twice);
}

fn invert<B: Backend>(
    backend: &B,
    (h, diagonal): (&B::Matrix, &[f32]),
    precision: Precision,
) -> Verdict<Result<Array2<f32>, BackendErrorKind>> {
    match backend.inverse(h, diagonal, precision) {
        Ok(inverse) => Ok(Ok(backend.download(&inverse)?)),
        Err(error) => match error.kind() {
            BackendErrorKind::Unsupported if precision == Precision::F64 => Err(Failure::Skipped(
                "the device factors in f32 only".to_owned(),
            )),
            kind @ BackendErrorKind::NotPositiveDefinite { .. } => Ok(Err(kind)),
            _ => Err(error.into()),
        },
    }
}

fn inverse<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    let tolerance = match precision {
        Precision::F32 => &FACTOR_F32,
        _ => &FACTOR_F64,
    };
    let mut random = Random::new(90);
    for cols in SIZES {
        let (matrix, diagonal) = definite(&mut random, cols);
        let device = backend.upload(matrix.view())?;
        let found = match invert(backend, (&device, &diagonal), precision)? {
            Ok(found) => found,
            Err(kind) => {
                return Err(Failure::Wrong(format!(
                    "{cols} columns: {kind:?} for a positive definite matrix"
                )));
            }
        };
        same_bits(
            "H after it was inverted",
            &backend.download(&device)?,
            &matrix,
        )?;
        ensure!(
            found == found.t(),
            "{cols} columns: the two triangles of the inverse differ"
        );
        let h = truth::symmetric(matrix.view(), &diagonal);
        let found = truth::widen(found.view());
        let residual = found.dot(&h) - Array2::<f64>::eye(cols);
        let magnitude = found.mapv(f64::abs).dot(&h.mapv(f64::abs));
        let magnitude = magnitude.iter().copied().fold(1.0, f64::max);
        for (at, &residual) in residual.indexed_iter() {
            close(
                format_args!("H⁻¹H − I at {at:?}, {cols} columns"),
                residual,
                0.0,
                magnitude,
                tolerance,
            )?;
        }
    }
    Ok(())
}

fn not_definite<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    let mut random = Random::new(91);
    for (cols, column) in [(1, 0), (5, 2), (130, 129), (130, 0)] {
        let (matrix, mut diagonal) = definite(&mut random, cols);
        diagonal[column] = -1.0;
        let device = backend.upload(matrix.view())?;
        let found = invert(backend, (&device, &diagonal), precision)?;
        ensure!(
            found.as_ref().err() == Some(&BackendErrorKind::NotPositiveDefinite { column }),
            "{cols} columns, a negative pivot in column {column}: {:?}",
            found.map(|_| "inverted")
        );
    }
    Ok(())
}

fn project<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let mut random = Random::new(92);
    for (rows, cols, percent) in LAYERS {
        let (mut sums, mut duals) = (random.matrix(rows, cols), random.matrix(rows, cols));
        let dense = random.matrix(rows, cols);
        let weights = random.matrix(1, cols).mapv(f32::abs);
        let mask = random.mask(rows, cols, percent);
        let mut on_device = (backend.upload(sums.view())?, backend.upload(duals.view())?);
        backend.project(Project::new(
            &mut on_device.0,
            &mut on_device.1,
            &backend.upload(dense.view())?,
            &backend.upload_mask(mask.view())?,
            &backend.upload(weights.view())?,
        ))?;
        host::project(
            sums.view_mut(),
            duals.view_mut(),
            dense.view(),
            mask.view(),
            weights.row(0),
        );
        same_bits("the multipliers", &backend.download(&on_device.1)?, &duals)?;
        same_bits("the right side", &backend.download(&on_device.0)?, &sums)?;
    }
    Ok(())
}

/// A layer to refit.
struct Refitting {
    start: Array2<f32>,
    dense: Array2<f32>,
    h: Array2<f32>,
    diagonal: Vec<f32>,
    mask: Array2<bool>,
}

impl Refitting {
    fn new(random: &mut Random, (rows, cols, percent): (usize, usize, usize)) -> Self {
        let (h, diagonal) = definite(random, cols);
        let dense = random.matrix(rows, cols);
        let mask = random.mask(rows, cols, percent);
        let mut start = random.matrix(rows, cols) * 0.1 + &dense;
        start.zip_mut_with(&mask, |weight, &pruned| {
            if pruned {
                *weight = 0.0;
            }
        });
        Self {
            start,
            dense,
            h,
            diagonal,
            mask,
        }
    }

    fn run<B: Backend>(&self, backend: &B, steps: usize) -> Verdict<Array2<f32>> {
        let mut weights = backend.upload(self.start.view())?;
        backend.refit(Refit::new(
            &mut weights,
            &backend.upload(self.dense.view())?,
            (&backend.upload(self.h.view())?, &self.diagonal),
            &backend.upload_mask(self.mask.view())?,
            steps,
        ))?;
        self.masked(backend.download(&weights)?)
    }

    fn adam<B: Backend>(&self, backend: &B, pace: AdamPace) -> Verdict<Array2<f32>> {
        let mut weights = backend.upload(self.start.view())?;
        backend.adam(Adam::new(
            &mut weights,
            &backend.upload(self.dense.view())?,
            (&backend.upload(self.h.view())?, &self.diagonal),
            &backend.upload_mask(self.mask.view())?,
            pace,
        ))?;
        self.masked(backend.download(&weights)?)
    }

    fn masked(&self, found: Array2<f32>) -> Verdict<Array2<f32>> {
        for ((at, &weight), &pruned) in found.indexed_iter().zip(&self.mask) {
            ensure!(
                !pruned || weight == 0.0,
                "the pruned weight {at:?} is {weight}"
            );
        }
        Ok(found)
    }

    fn symmetric(&self) -> Array2<f64> {
        truth::symmetric(self.h.view(), &self.diagonal)
    }
}

/// Weights against those of the specification.
fn near(found: &Array2<f32>, expected: &Array2<f32>, of: Arguments<'_>) -> Verdict {
    let largest = expected.iter().fold(1.0_f32, |max, w| max.max(w.abs()));
    for ((at, &found), &expected) in found.indexed_iter().zip(expected) {
        close(
            format_args!("weight {at:?} {of}"),
            f64::from(found),
            f64::from(expected),
            f64::from(largest),
            &REFIT,
        )?;
    }
    Ok(())
}

fn refit<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(93);
    for layer in LAYERS {
        let case = Refitting::new(&mut random, layer);
        for steps in [1, 2, 6] {
            let found = case.run(subject.backend(), steps)?;
            let mut expected = case.start.clone();
            host::refit(
                expected.view_mut(),
                case.dense.view(),
                (case.h.view(), &case.diagonal),
                case.mask.view(),
                steps,
            );
            near(
                &found,
                &expected,
                format_args!("of {layer:?} after {steps} steps"),
            )?;
        }
    }
    Ok(())
}

/// With steps enough, the gradient on the kept weights is rounding (the normal equations). Narrow layers: there are three
/// products a column, which an emulator runs a lane at a time.
fn optimum<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(94);
    for layer in [
        (1, 1, 0),
        (1, 1, 100),
        (1, 64, 50),
        (7, 33, 50),
        (16, 24, 0),
        (130, 17, 80),
    ] {
        let case = Refitting::new(&mut random, layer);
        let found = truth::widen(case.run(subject.backend(), 3 * layer.1)?.view());
        let h = case.symmetric();
        let left = truth::widen(case.dense.view()) - &found;
        let gradient = left.dot(&h);
        let sizes = left.mapv(f64::abs).dot(&h.mapv(f64::abs))
            + found.mapv(f64::abs).dot(&h.mapv(f64::abs));
        for ((at, &gradient), (&pruned, &size)) in
            gradient.indexed_iter().zip(case.mask.iter().zip(&sizes))
        {
            if !pruned {
                close(
                    format_args!("gradient at {at:?} of {layer:?}"),
                    gradient,
                    0.0,
                    size,
                    &REFIT,
                )?;
            }
        }
    }
    Ok(())
}

fn no_steps<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(95);
    for layer in LAYERS {
        let case = Refitting::new(&mut random, layer);
        let found = case.run(subject.backend(), 0)?;
        same_bits("weights after no step", &found, &case.start)?;
    }
    Ok(())
}

fn refit_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(96);
    for layer in LAYERS {
        let case = Refitting::new(&mut random, layer);
        let first = case.run(subject.backend(), 5)?;
        same_bits(
            "the same layer refitted again",
            &case.run(subject.backend(), 5)?,
            &first,
        )?;
    }
    Ok(())
}

/// Without a scale the gradient is zero, and ε alone keeps the step from being 0/0.
fn adam<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(97);
    for layer in LAYERS {
        let case = Refitting::new(&mut random, layer);
        for pace in [
            AdamPace::new(1, 1e-3, 1.0),
            AdamPace::new(7, 1e-2, 1e-3),
            AdamPace::new(4, 1e-2, 0.0),
        ] {
            let found = case.adam(subject.backend(), pace)?;
            let mut expected = case.start.clone();
            host::adam(
                expected.view_mut(),
                case.dense.view(),
                (case.h.view(), &case.diagonal),
                case.mask.view(),
                pace,
            );
            near(
                &found,
                &expected,
                format_args!("of {layer:?} with {pace:?}"),
            )?;
        }
    }
    Ok(())
}

fn adam_no_steps<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(98);
    for layer in LAYERS {
        let case = Refitting::new(&mut random, layer);
        let found = case.adam(subject.backend(), AdamPace::new(0, 0.1, 1.0))?;
        same_bits("weights after no step", &found, &case.start)?;
    }
    Ok(())
}

fn adam_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(99);
    for layer in LAYERS {
        let case = Refitting::new(&mut random, layer);
        let pace = AdamPace::new(5, 1e-2, 1.0);
        let first = case.adam(subject.backend(), pace)?;
        let again = case.adam(subject.backend(), pace)?;
        same_bits("the same layer again", &again, &first)?;
    }
    Ok(())
}
