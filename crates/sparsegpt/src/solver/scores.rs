//! What mask sources that look once at the dense weights sort by.

use ndarray::{Array2, ArrayView2, Axis};

use super::job::Job;
use super::method::MaskSource;
use super::prepare::Diagonal;
use crate::backend::Backend;
use crate::error::Result;

/// The score of weight (i, j) is |w_ij| / scale_j, as in [`Select`](crate::backend::Select).
#[derive(Debug)]
pub(super) struct Scores<B: Backend> {
    /// Where not the weights themselves are scored.
    pub(super) weights: Option<B::Matrix>,
    /// 1 x cols.
    pub(super) scales: B::Matrix,
}

impl<B: Backend> Scores<B> {
    /// Of a job's mask source; where the solver chooses, as with magnitude.
    pub(super) fn of(
        job: &Job<'_, B>,
        dense: ArrayView2<'_, f32>,
        diagonal: Option<&Diagonal>,
    ) -> Result<Self> {
        let source = job.settings.parts().mask;
        // ‖x_j‖ to this power; w²·H_jj orders as |w|·‖x_j‖.
        let power = match source {
            MaskSource::Wanda => 1.0,
            MaskSource::Ria => 0.5,
            MaskSource::Solver | MaskSource::Magnitude => 0.0,
        };
        let scales = Array2::from_shape_fn((1, job.cols), |(_, column)| match diagonal {
            Some(diagonal) if power > 0.0 && !diagonal.dead[column] => {
                diagonal.values[column].sqrt().powf(power).recip()
            }
            _ => 1.0,
        });
        let weights = (source == MaskSource::Ria)
            .then(|| job.upload_owned(relative_importance(dense)))
            .transpose()?;
        Ok(Self {
            weights,
            scales: job.upload(scales.view())?,
        })
    }
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
