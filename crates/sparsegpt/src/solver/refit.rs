//! Better weights on a mask, kept only where the error drops.

use ndarray::{Array2, ArrayView2};

use super::job::Job;
use super::method::{self, ADAM_RATE};
use super::on_mask;
use super::own;
use super::prepare::Diagonal;
use super::rows;
use crate::backend::{Adam, AdamPace, Backend, Operation, Refit};
use crate::error::{Result, Stage};
use crate::hessian::Hessian;
use crate::report::FactorReport;

/// Where improved weights are judged: by the undamped H.
#[derive(Debug)]
pub(super) struct Judge<'a, B: Backend> {
    dense: ArrayView2<'a, f32>,
    hessian: &'a Hessian<B>,
    diagonal: Diagonal,
}

impl<'a, B: Backend> Judge<'a, B> {
    /// For weights in the original order.
    pub(super) fn new(
        job: &Job<'_, B>,
        dense: ArrayView2<'a, f32>,
        hessian: &'a Hessian<B>,
    ) -> Result<Self> {
        Ok(Self {
            dense,
            hessian,
            diagonal: Diagonal::of(hessian, job.layer)?,
        })
    }

    /// Replaces the rows that are better in `other`.
    pub(super) fn take_better_rows(
        &self,
        job: &mut Job<'_, B>,
        weights: &mut Array2<f32>,
        other: ArrayView2<'_, f32>,
    ) -> Result<()> {
        let (now, then) = (self.errors(job, weights.view())?, self.errors(job, other)?);
        for (row, (now, then)) in now.iter().zip(&then).enumerate() {
            // An error that overflows is worse than any that is known.
            if then < now || (now.is_nan() && !then.is_nan()) {
                weights.row_mut(row).assign(&other.row(row));
            }
        }
        Ok(())
    }

    /// (d − w)H(d − w)ᵀ of each row.
    fn errors(&self, job: &mut Job<'_, B>, weights: ArrayView2<'_, f32>) -> Result<Vec<f64>> {
        job.uses(Operation::RowEnergies);
        let difference = job.upload_owned(&self.dense - &weights)?;
        job.backend
            .row_energies(&difference, self.hessian.matrix(), &self.diagonal.values)
            .map_err(|e| job.failed(Stage::Refit, e))
    }

    /// Refits `weights` on `mask` (`true` = kept), and tells of the factorization where that takes one.
    pub(super) fn refit(
        &self,
        job: &mut Job<'_, B>,
        weights: &mut Array2<f32>,
        mask: ArrayView2<'_, bool>,
        refit: method::Refit,
    ) -> Result<Option<FactorReport>> {
        let mut factored = None;
        let refitted = match refit {
            method::Refit::None => return Ok(None),
            method::Refit::ConjugateGradients { steps } => {
                self.conjugate_gradients(job, weights.view(), mask, steps)?
            }
            method::Refit::Own => self.own(job, weights.view(), mask)?,
            method::Refit::Adam { steps } => self.adam(job, weights.view(), mask, steps)?,
            method::Refit::Exact => {
                let pruned = mask.mapv(|kept| !kept);
                let (refitted, how) = rows::exact_refit(
                    job,
                    self.dense,
                    (self.hessian, &self.diagonal),
                    pruned.view(),
                )?;
                factored = Some(how);
                refitted
            }
        };
        self.take_better_rows(job, weights, refitted.view())?;
        Ok(factored)
    }

    fn own(
        &self,
        job: &mut Job<'_, B>,
        weights: ArrayView2<'_, f32>,
        mask: ArrayView2<'_, bool>,
    ) -> Result<Array2<f32>> {
        let refit = own::given(job.settings.own.refit.as_ref(), job.layer, "a refit")?;
        let part = (&*refit.describe(), Operation::Refit);
        let statistics = Some((&self.diagonal, self.hessian));
        let given = (self.dense, statistics, Some(mask));
        let mut refitted = own::ask(job, part, given, |problem| {
            refit.refit(problem, weights, mask)
        })?;
        on_mask(&mut refitted, mask);
        Ok(refitted)
    }

    fn adam(
        &self,
        job: &mut Job<'_, B>,
        weights: ArrayView2<'_, f32>,
        mask: ArrayView2<'_, bool>,
        steps: usize,
    ) -> Result<Array2<f32>> {
        job.uses(Operation::RowEnergies);
        job.uses(Operation::Adam);
        let h = (self.hessian.matrix(), &*self.diagonal.values);
        descend(job, self.dense, weights, mask, |backend, descent| {
            let (refitted, target, pruned) = descent;
            let total: f64 = backend.row_energies(target, h.0, h.1)?.iter().sum();
            // Without any output to keep there is no gradient either.
            let scale = if total > 0.0 { total.recip() } else { 0.0 };
            let pace = AdamPace::new(steps, ADAM_RATE, scale);
            backend.adam(Adam::new(refitted, target, h, pruned, pace))
        })
    }

    fn conjugate_gradients(
        &self,
        job: &mut Job<'_, B>,
        weights: ArrayView2<'_, f32>,
        mask: ArrayView2<'_, bool>,
        steps: usize,
    ) -> Result<Array2<f32>> {
        job.uses(Operation::Refit);
        let damped = self.diagonal.damped(job.settings.damping, None);
        let h = (self.hessian.matrix(), &*damped);
        descend(job, self.dense, weights, mask, |backend, descent| {
            let (refitted, target, pruned) = descent;
            backend.refit(Refit::new(refitted, target, h, pruned, steps))
        })
    }
}

/// Takes weights to the device, with the dense ones and what the mask (`true` = kept) prunes, and brings back what `step` makes
/// of them.
fn descend<B: Backend>(
    job: &Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    weights: ArrayView2<'_, f32>,
    mask: ArrayView2<'_, bool>,
    step: impl FnOnce(&B, (&mut B::Matrix, &B::Matrix, &B::Mask)) -> Result<(), B::Error>,
) -> Result<Array2<f32>> {
    let target = job.upload(dense)?;
    let mut refitted = job.upload(weights)?;
    let pruned = job.upload_mask(mask.mapv(|kept| !kept).view())?;
    step(job.backend, (&mut refitted, &target, &pruned))
        .map_err(|e| job.failed(Stage::Refit, e))?;
    job.download_owned(refitted)
}
