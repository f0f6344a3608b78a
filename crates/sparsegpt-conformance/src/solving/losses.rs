//! Losses: what the report says, and what the method promises. Every solution in this suite is held to its
//! own report and to the optimum for its mask by [`Layer::solve`]; here are the settings that do so widely.

use sparsegpt::backend::Backend;
use sparsegpt::{LayerSettings, Pattern, UniformGrid};

use super::layer::Layer;
use crate::check::{Cases, Subject, Verdict, ensure};
use crate::truth;

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("solver/losses/are_the_quadratic_form", quadratic_form);
    cases.add("solver/losses/compensation_pays", compensation_pays);
    cases.add(
        "solver/losses/one_pruned_weight_a_row_is_optimal",
        one_weight_is_optimal,
    );
    cases.add("solver/losses/are_not_measured_on_request", unmeasured);
}

fn quadratic_form<B: Backend>(subject: &Subject<B>) -> Verdict {
    for (rows, cols, tokens) in [(1, 40, 90), (30, 64, 200), (17, 150, 60), (8, 200, 500)] {
        let layer = Layer::with_inputs(rows, cols, tokens, &[cols / 3], 200);
        for damping in [0.001, 0.01, 0.3] {
            for pattern in ["30%", "80%", "row:50%", "1:2"] {
                let pattern: Pattern = pattern.parse()?;
                let settings = LayerSettings::new(pattern).with_damping(damping);
                drop(layer.solve(&subject.solver, &settings)?);
                drop(layer.solve(&subject.solver, &settings.clone().with_act_order(true))?);
                drop(layer.solve(
                    &subject.solver,
                    &settings.with_quantizer(UniformGrid::new(4)?.with_groups(32)),
                )?);
            }
        }
    }
    Ok(())
}

fn compensation_pays<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(24, 96, 201);
    let h = truth::widen(layer.hessian.view());
    for pattern in ["50%", "2:4", "row:60%"] {
        let solution = layer.solve(
            &subject.solver,
            &LayerSettings::new(pattern.parse::<Pattern>()?),
        )?;
        let dense = truth::widen(layer.weights.view());
        let kept = solution.mask.mapv(|kept| f64::from(u8::from(kept)));
        let error = truth::energy(&(&dense - &truth::widen(solution.weights.view())), &h);
        let uncompensated = truth::energy(&(&dense - &(&dense * &kept)), &h);
        ensure!(
            error < 0.7 * uncompensated,
            "{pattern}: error {error:e} with compensation, {uncompensated:e} without"
        );
    }
    Ok(())
}

/// For a single weight, the compensation (Eq. 1 of the paper) is the optimum if all other columns come later.
fn one_weight_is_optimal<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(9, 50, 202);
    let mut keep = sparsegpt::ndarray::Array2::from_elem((9, 50), true);
    keep.column_mut(0).fill(false);
    let policy = sparsegpt::mask::GivenMask::keeping(keep.view());
    for block in [1, 7, 128] {
        let settings = LayerSettings::new(policy.clone()).with_block_size(block);
        let solution = layer.solve(&subject.solver, &settings)?;
        let mut damped = truth::widen(layer.hessian.view());
        let lambda = 0.01 * damped.diag().sum() / 50.0;
        damped.diag_mut().mapv_inplace(|entry| entry + lambda);
        let difference = truth::widen(layer.weights.view()) - truth::widen(solution.weights.view());
        let error = truth::energy(&difference, &damped);
        let least = truth::least_energy(layer.weights.view(), &damped, &keep).unwrap_or(0.0);
        ensure!(
            (error / least - 1.0).abs() < 1e-4,
            "block size {block}: error {error:e}, the optimum is {least:e}"
        );
    }
    Ok(())
}

fn unmeasured<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(6, 20, 203);
    let solver = &subject.solver;
    let settings = LayerSettings::new(Pattern::unstructured(0.5)?);
    let measured = layer.solve(solver, &settings)?;
    let mut hessian = solver.hessian_from(layer.hessian.view())?;
    let unmeasured = solver.prune(
        layer.weights.view(),
        &mut hessian,
        &settings.with_measure(false),
    )?;
    ensure!(
        unmeasured.report.reconstruction_error.is_none(),
        "an error that nobody asked for"
    );
    ensure!(
        unmeasured.report.solver_loss == measured.report.solver_loss,
        "the solver's loss depends on whether the error is measured"
    );
    crate::check::same_bits(
        "weights without measuring",
        &unmeasured.weights,
        &measured.weights,
    )
}
