//! What mask sources that look once at the dense weights sort by.

use ndarray::{Array2, ArrayView2, Axis};

use super::job::Job;
use super::method::MaskSource;
use super::own;
use super::prepare::{Diagonal, invert, ladder};
use crate::backend::{Backend, Operation};
use crate::error::{Error, Result, Stage};
use crate::hessian::Hessian;
use crate::report::FactorReport;

/// The score of weight (i, j) is |w_ij| / scale_j, as in [`Select`](crate::backend::Select).
#[derive(Debug)]
pub(super) struct Scores<B: Backend> {
    /// Where not the weights themselves are scored.
    pub(super) weights: Option<B::Matrix>,
    /// 1 x cols.
    pub(super) scales: B::Matrix,
}

impl<B: Backend> Scores<B> {
    /// Of a job's mask source; where the solver chooses, as with magnitude. Tells what an inverse took, where there is one.
    pub(super) fn of(
        job: &mut Job<'_, B>,
        dense: ArrayView2<'_, f32>,
        statistics: Option<(&Diagonal, &Hessian<B>)>,
    ) -> Result<(Self, Option<FactorReport>)> {
        let source = job.settings.parts().mask;
        if source == MaskSource::Own {
            return Ok((Self::own(job, dense, statistics)?, None));
        }
        let diagonal = statistics.map(|(diagonal, _)| diagonal);
        let (inverse, factored) = match statistics {
            Some((diagonal, hessian)) if source == MaskSource::Obs => {
                let (inverse, factored) = inverse_diagonal(job, diagonal, hessian)?;
                (Some(inverse), Some(factored))
            }
            _ => (None, None),
        };
        // ‖x_j‖ to this power; w²·H_jj orders as |w|·‖x_j‖.
        let power = match source {
            MaskSource::Wanda => 1.0,
            MaskSource::Ria => 0.5,
            MaskSource::Solver | MaskSource::Magnitude | MaskSource::Obs | MaskSource::Own => 0.0,
        };
        let scales =
            Array2::from_shape_fn((1, job.cols), |(_, column)| match (diagonal, &inverse) {
                (Some(diagonal), _) if diagonal.dead[column] => 1.0,
                (_, Some(inverse)) => inverse[column].sqrt(),
                (Some(diagonal), None) if power > 0.0 => {
                    diagonal.values[column].sqrt().powf(power).recip()
                }
                _ => 1.0,
            });
        let weights = (source == MaskSource::Ria)
            .then(|| job.upload_owned(relative_importance(dense)))
            .transpose()?;
        let scores = Self {
            weights,
            scales: job.upload(scales.view())?,
        };
        Ok((scores, factored))
    }

    fn own(
        job: &mut Job<'_, B>,
        dense: ArrayView2<'_, f32>,
        statistics: Option<(&Diagonal, &Hessian<B>)>,
    ) -> Result<Self> {
        let own = job.settings.own.mask_source.as_ref();
        let source = own::given(own, job.layer, "a mask source")?;
        let part = (&*source.describe(), Operation::Select);
        let given = (dense, statistics, None);
        let scores = own::ask(job, part, given, |problem| source.scores(problem))?;
        let (weights, scales) = given_scores(job, scores)?;
        Ok(Self {
            weights: Some(weights),
            scales,
        })
    }
}

/// Scores of the caller's as weights to be scored, and scales. They are compared by their magnitude, so that one below 0 would mean
/// something else than it says. Weights of dead inputs go first: N:M patterns, runs and policies of the caller's are not told which
/// they are.
pub(super) fn given_scores<B: Backend>(
    job: &Job<'_, B>,
    mut scores: Array2<f32>,
) -> Result<(B::Matrix, B::Matrix)> {
    if let Some((at, score)) = scores.indexed_iter().find(|(_, score)| **score < 0.0) {
        return Err(Error::incompatible(
            job.layer,
            format!("weight {at:?} has the score {score}"),
            "give scores from 0; the least go",
        ));
    }
    for (column, mut scores) in scores.columns_mut().into_iter().enumerate() {
        if job.is_dead(column) {
            scores.fill(0.0);
        }
    }
    let ones = Array2::ones((1, job.cols));
    Ok((job.upload_owned(scores)?, job.upload(ones.view())?))
}

/// The diagonal of (H + λI)⁻¹, with as much damping as it takes.
fn inverse_diagonal<B: Backend>(
    job: &mut Job<'_, B>,
    diagonal: &Diagonal,
    hessian: &Hessian<B>,
) -> Result<(Vec<f32>, FactorReport)> {
    let rungs = ladder(job.settings.damping);
    let (inverse, factored) = invert(job, hessian, rungs, |damping| {
        diagonal.damped(damping, None)
    })?;
    let entries = job
        .backend
        .diagonal(&inverse)
        .map_err(|error| job.failed(Stage::Factor, error))?;
    Ok((entries, factored))
}

/// |w_ij|/Σ_i|w_ij| + |w_ij|/Σ_j|w_ij| (Zhang et al. 2024, Eq. 2).
fn relative_importance(weights: ArrayView2<'_, f32>) -> Array2<f32> {
    let magnitudes = weights.mapv(f32::abs);
    // A sum of zero has only zeros in it, whose importance is none.
    let inverse = |sum: f32| if sum > 0.0 { sum.recip() } else { 0.0 };
    let of_columns = magnitudes.sum_axis(Axis(0)).mapv(inverse);
    let of_rows = magnitudes.sum_axis(Axis(1)).mapv(inverse);
    Array2::from_shape_fn(weights.dim(), |(row, col)| {
        magnitudes[[row, col]] * (of_columns[col] + of_rows[row])
    })
}
