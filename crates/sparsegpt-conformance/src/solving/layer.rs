//! A layer to solve, and what must hold for every solution.

use sparsegpt::backend::Backend;
use sparsegpt::ndarray::Array2;
use sparsegpt::{LayerSettings, Method, PrunedLayer, Solver};

use crate::agreement;
use crate::check::{Failure, Verdict, close, ensure};
use crate::random::Random;
use crate::tolerance::{ENERGY, LOSS, LOSS_FLOOR};
use crate::truth;

/// Dense weights and the Hessian of their input.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) weights: Array2<f32>,
    /// Symmetric and undamped.
    pub(super) hessian: Array2<f32>,
}

impl Layer {
    /// With twice as many calibration tokens as columns.
    pub(super) fn new(rows: usize, cols: usize, seed: u64) -> Self {
        Self::with_inputs(rows, cols, 2 * cols + 5, &[], seed)
    }

    /// With `dead` inputs that are always zero.
    pub(super) fn with_inputs(
        rows: usize,
        cols: usize,
        tokens: usize,
        dead: &[usize],
        seed: u64,
    ) -> Self {
        let mut random = Random::new(seed);
        let weights = random.matrix(rows, cols);
        let mut x = random.activations(tokens, cols);
        for &column in dead {
            x.column_mut(column).fill(0.0);
        }
        let x = truth::widen(x.view());
        Self {
            weights,
            hessian: (x.t().dot(&x) * 2.0).mapv(|entry| entry as f32),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.weights.nrows()
    }

    pub(super) fn cols(&self) -> usize {
        self.weights.ncols()
    }

    /// Weights as the solver starts with: zero in the columns of dead inputs.
    pub(super) fn start(&self) -> Array2<f32> {
        let mut start = self.weights.clone();
        for (mut column, &entry) in start.columns_mut().into_iter().zip(self.hessian.diag()) {
            if entry == 0.0 {
                column.fill(0.0);
            }
        }
        start
    }

    /// Solves the layer; what must hold for every solution is checked.
    pub(super) fn solve<B: Backend>(
        &self,
        solver: &Solver<B>,
        settings: &LayerSettings,
    ) -> Verdict<PrunedLayer> {
        let mut hessian = solver.hessian_from(self.hessian.view())?;
        let solution = solver.prune(self.weights.view(), &mut hessian, settings)?;
        self.check(&solution, settings)?;
        Ok(solution)
    }

    /// tr(ΔW H ΔWᵀ) in f64.
    pub(super) fn error(&self, solution: &PrunedLayer) -> f64 {
        let difference = truth::widen((&self.weights - &solution.weights).view());
        truth::energy(&difference, &truth::widen(self.hessian.view()))
    }

    /// Fails unless `ours` and `theirs` are the same but for rounding.
    pub(super) fn ensure_agreement(
        &self,
        what: &str,
        ours: &Array2<f32>,
        theirs: &Array2<f32>,
    ) -> Verdict {
        let hessian = truth::widen(self.hessian.view());
        let layer = agreement::Layer {
            dense: &self.weights,
            hessian: &hessian,
        };
        layer.ensure_agreement(what, ours, theirs, 0, &crate::tolerance::ROUNDING)
    }

    /// Counts in the report are those of the result; pruned weights are zero; losses are what the report says
    /// they are; no solution is better than the best one for its mask.
    fn check(&self, solution: &PrunedLayer, settings: &LayerSettings) -> Verdict {
        let PrunedLayer {
            weights,
            mask,
            report,
            ..
        } = solution;
        ensure!(
            weights.dim() == self.weights.dim() && mask.dim() == self.weights.dim(),
            "weights {:?}, mask {:?}, expected {:?}",
            weights.dim(),
            mask.dim(),
            self.weights.dim()
        );
        ensure!(
            (report.rows, report.cols) == self.weights.dim(),
            "the report says {} x {}",
            report.rows,
            report.cols
        );
        for ((at, &weight), &kept) in weights.indexed_iter().zip(mask) {
            ensure!(weight.is_finite(), "weight {at:?} is {weight}");
            ensure!(
                kept || weight == 0.0,
                "weight {at:?} is pruned, but {weight}"
            );
        }
        let pruned = mask.iter().filter(|&&kept| !kept).count() as u64;
        let zeros = weights.iter().filter(|&&weight| weight == 0.0).count() as u64;
        ensure!(
            report.pruned == pruned,
            "{} pruned in the report, {pruned} in the mask",
            report.pruned
        );
        ensure!(
            report.zeros == zeros,
            "{} zeros in the report, {zeros} in the weights",
            report.zeros
        );
        let dead = self
            .hessian
            .diag()
            .iter()
            .filter(|&&entry| entry == 0.0)
            .count();
        ensure!(
            report.dead_columns == dead,
            "{} dead columns, expected {dead}",
            report.dead_columns
        );
        if settings.protected_columns.is_empty() && settings.protected_rows.is_empty() {
            self.check_losses(solution, settings)?;
        }
        Ok(())
    }

    fn check_losses(&self, solution: &PrunedLayer, settings: &LayerSettings) -> Verdict {
        let PrunedLayer {
            weights,
            mask,
            report,
            ..
        } = solution;
        let h = truth::widen(self.hessian.view());
        let start = self.start();
        let difference = truth::widen(start.view()) - truth::widen(weights.view());
        let total = truth::energy(&truth::widen(start.view()), &h);
        let error = truth::energy(&difference, &h);
        let sizes = truth::energy(&difference.mapv(f64::abs), &h.mapv(f64::abs));
        let compare = |name: &str, found: Option<f64>, expected: f64, magnitude, tolerance| {
            let Some(found) = found else {
                return Err(Failure::Wrong(format!("the report has no {name}")));
            };
            close(
                format_args!("{name} in the report"),
                found,
                expected,
                magnitude,
                tolerance,
            )
        };
        compare(
            "reconstruction_error",
            report.reconstruction_error,
            error,
            sizes,
            &ENERGY,
        )?;
        compare(
            "relative_error",
            report.relative_error,
            error / total,
            sizes / total,
            &ENERGY,
        )?;
        // Swaps go before the sweep.
        let parts = settings.clone().with_swaps(0).parts();
        if settings.method != Method::SparseGpt || parts != Method::SparseGpt.parts() {
            return compare(
                "solver_loss",
                report.solver_loss,
                0.5 * error,
                sizes,
                &ENERGY,
            );
        }
        let mut damped = h;
        let mean = damped.diag().sum() / self.cols() as f64;
        for entry in damped.diag_mut() {
            if *entry == 0.0 {
                *entry = mean;
            }
            *entry += report.damping * mean;
        }
        let damped_error = truth::energy(&difference, &damped);
        let half = 0.5 * damped_error;
        compare(
            "solver_loss",
            report.solver_loss,
            half,
            half + LOSS_FLOOR * total,
            &LOSS,
        )?;
        if settings.quantizer.is_none() {
            let least = truth::least_energy(start.view(), &damped, mask)
                .ok_or_else(|| Failure::Wrong("the damped Hessian is not definite".to_owned()))?;
            ensure!(
                damped_error >= least * (1.0 - 1e-6) - LOSS_FLOOR * total,
                "the error {damped_error:e} is below {least:e}, the least that these zeros allow"
            );
        }
        Ok(())
    }
}
