//! What a layer is to become: its dense weights, or weights with which it gives the dense model's outputs on the inputs that it has
//! now.
//!
//! Those are the W* of the least ‖X_d Wᵀ − X W*ᵀ‖², with X the inputs and X_d the dense model's in their place:
//! W* = W + W·C·H⁻¹ with C = 2/(sequences) Σ (X_d − X)ᵀX. As ‖X_d Wᵀ − X Ŵᵀ‖² is ‖X(W* − Ŵ)ᵀ‖² and a rest that does not depend on
//! Ŵ, every method finds the best it can for the dense outputs from W* in the place of W.

use ndarray::{Array2, ArrayView2};

use super::job::Job;
use super::prepare::{Diagonal, invert, ladder};
use crate::backend::{Backend, Gemm, Operation};
use crate::error::{Error, Result, Stage};
use crate::hessian::Hessian;
use crate::report::FactorReport;

/// C·(H + λI)⁻¹, which layers with the same input share.
#[derive(Debug)]
pub(super) struct Recentring<B: Backend> {
    matrix: B::Matrix,
    /// λ as a fraction of the mean diagonal, as asked for.
    damping: f64,
    /// What the inverse took.
    inverted: FactorReport,
}

/// The weights to aim at, where they are not the dense ones: W + strength·W·C·(H + λI)⁻¹, and what the inverse took.
pub(super) fn of_layer<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &Hessian<B>,
    shared: &mut Option<Recentring<B>>,
) -> Result<Option<(Array2<f32>, FactorReport)>> {
    let (strength, damping) = (job.settings.dense_targets, job.settings.damping);
    let Some((drift, factor)) = hessian.drift().filter(|_| strength > 0.0) else {
        return Ok(None);
    };
    job.uses(Operation::Gemm);
    if shared.as_ref().is_none_or(|known| known.damping != damping) {
        *shared = None;
        let (matrix, inverted) = job.timed(Stage::Factor, |job| {
            let diagonal = Diagonal::of(hessian, job.layer)?;
            let damped = |damping| diagonal.damped(damping, None);
            let (inverse, inverted) = invert(job, hessian, ladder(damping), damped)?;
            let mut matrix = job.zeros(job.cols, job.cols)?;
            product(job, &mut matrix, factor, drift, &inverse)?;
            Ok::<_, Error>((matrix, inverted))
        })?;
        *shared = Some(Recentring {
            matrix,
            damping,
            inverted,
        });
    }
    let Some(recentring) = shared.as_ref() else {
        return Ok(None);
    };
    job.timed(Stage::Trailing, |job| {
        let dense = job.upload(dense)?;
        let mut target = job.copy(&dense)?;
        product(
            job,
            &mut target,
            strength as f32,
            &dense,
            &recentring.matrix,
        )?;
        let target = job.download_owned(target)?;
        Ok(Some((target, recentring.inverted)))
    })
}

/// C += alpha·A·B, all columns of each.
fn product<B: Backend>(
    job: &Job<'_, B>,
    c: &mut B::Matrix,
    alpha: f32,
    a: &B::Matrix,
    b: &B::Matrix,
) -> Result<()> {
    let all = 0..job.cols;
    let args = Gemm::new(
        (c, all.clone()),
        alpha,
        (a, all.clone()),
        (b, all.clone(), all),
    );
    job.backend
        .gemm(args)
        .map_err(|e| job.failed(Stage::Trailing, e))
}
