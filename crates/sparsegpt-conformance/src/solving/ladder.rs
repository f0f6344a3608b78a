//! Hessians that f32 or the damping asked for cannot factor.

use sparsegpt::backend::{Backend, Precision};
use sparsegpt::error::{BackendError, BackendErrorKind};
use sparsegpt::ndarray::Array2;
use sparsegpt::{LayerSettings, Pattern};

use super::layer::Layer;
use crate::check::{Cases, Failure, Subject, Verdict, ensure};
use crate::random::Random;

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add(
        "solver/ladder/a_good_hessian_takes_f32_and_one_attempt",
        first_rung,
    );
    cases.add(
        "solver/ladder/an_ill_conditioned_hessian_takes_f64",
        second_rung,
    );
    cases.add(
        "solver/ladder/a_singular_hessian_takes_more_damping",
        more_damping,
    );
    cases.add("solver/ladder/an_indefinite_matrix_is_an_error", indefinite);
    cases.add(
        "solver/ladder/a_later_layer_is_not_touched_by_a_failure",
        after_a_failure,
    );
}

fn settings(damping: f64) -> Verdict<LayerSettings> {
    Ok(LayerSettings::new(Pattern::n_of_m(1, 2)?).with_damping(damping))
}

fn first_rung<B: Backend>(subject: &Subject<B>) -> Verdict {
    let report = Layer::new(8, 60, 400)
        .solve(&subject.solver, &settings(0.01)?)?
        .report;
    ensure!(
        (report.precision, report.factor_attempts, report.damping)
            == (Some(Precision::F32), 1, 0.01),
        "precision {:?}, {} attempts, damping {}; expected f32, 1 and 0.01",
        report.precision,
        report.factor_attempts,
        report.damping
    );
    Ok(())
}

/// Whether the device factors in f64 at all.
fn ensure_f64<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut one = subject.backend().upload(Array2::ones((1, 1)).view())?;
    match subject
        .backend()
        .inverse_factor(&mut one, &[1.0], &[1], Precision::F64)
    {
        Err(error) if error.kind() == BackendErrorKind::Unsupported => Err(Failure::Skipped(
            "the device factors in f32 only".to_owned(),
        )),
        other => Ok(other?),
    }
}

/// Two inputs that differ in the last bits: a pivot of 2⁻²² in f32 is noise, in f64 it is exact.
fn second_rung<B: Backend>(subject: &Subject<B>) -> Verdict {
    ensure_f64(subject)?;
    let mut hessian = Array2::eye(6);
    hessian[[3, 2]] = 1.0 - 2.0_f32.powi(-23);
    hessian[[2, 3]] = hessian[[3, 2]];
    let layer = Layer {
        weights: Random::new(401).matrix(4, 6),
        hessian,
    };
    let report = layer.solve(&subject.solver, &settings(0.0)?)?.report;
    ensure!(
        report.precision == Some(Precision::F64) && report.damping == 0.0,
        "precision {:?}, damping {}; expected f64 without damping",
        report.precision,
        report.damping
    );
    ensure!(
        report.factor_attempts == 2,
        "{} attempts, expected 2",
        report.factor_attempts
    );
    Ok(())
}

fn more_damping<B: Backend>(subject: &Subject<B>) -> Verdict {
    // One token: rank 1.
    let token = Random::new(402).integers(1, 12, 3).mapv(|x| x + 4.0);
    let layer = Layer {
        weights: Random::new(403).matrix(5, 12),
        hessian: token.t().dot(&token),
    };
    let report = layer.solve(&subject.solver, &settings(0.0)?)?.report;
    ensure!(
        report.damping > 0.0 && report.damping <= 1.0 && report.factor_attempts > 2,
        "a singular Hessian was factored with damping {} in {} attempts",
        report.damping,
        report.factor_attempts
    );
    Ok(())
}

fn indefinite<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut hessian = Array2::<f32>::eye(5);
    hessian[[4, 1]] = 50.0;
    let mut hessian = subject.solver.hessian_from(hessian.view())?;
    let weights = Array2::ones((2, 5));
    let highest = match ensure_f64(subject) {
        Err(Failure::Skipped(_)) => Precision::F32,
        other => other.map(|()| Precision::F64)?,
    };
    match subject.solver.prune(
        weights.view(),
        &mut hessian,
        &LayerSettings::new(Pattern::unstructured(0.5)?),
    ) {
        Err(
            error @ sparsegpt::Error::NotPositiveDefinite {
                column: 1,
                damping,
                precision,
                ..
            },
        ) => {
            ensure!(damping > 0.01, "gave up at damping {damping}");
            ensure!(
                precision == highest && error.to_string().contains(&format!("even in {highest} ")),
                "the device factors in {highest} at most, the error says: {error}"
            );
            Ok(())
        }
        Err(error) => Err(Failure::Wrong(format!(
            "expected NotPositiveDefinite at column 1: {error}"
        ))),
        Ok(solution) => Err(Failure::Wrong(format!(
            "an indefinite matrix was solved: {}",
            solution.report
        ))),
    }
}

fn after_a_failure<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(6, 40, 404);
    let before = layer.solve(&subject.solver, &settings(0.01)?)?.weights;
    indefinite(subject)?;
    let after = layer.solve(&subject.solver, &settings(0.01)?)?.weights;
    crate::check::same_bits("a layer after a failed one", &after, &before)
}
