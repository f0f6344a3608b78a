//! The methods of [`rowwise`](crate::rowwise) as parts of a layer's treatment: they run on the host, whatever the backend.

use ndarray::{Array2, ArrayView2};

use super::in_processing_order;
use super::job::Job;
use super::prepare::{Diagonal, ladder};
use crate::backend::{Backend, Operation, Precision};
use crate::error::{Error, Result};
use crate::hessian::Hessian;
use crate::rowwise;

/// The best weights where `pruned` leaves any, on the damped H.
pub(super) fn exact_refit<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    (hessian, diagonal): (&Hessian<B>, &Diagonal),
    pruned: ArrayView2<'_, bool>,
) -> Result<Array2<f32>> {
    job.host_operation(Operation::Refit);
    let start = in_processing_order(job, dense);
    let refitted = damped_enough(job, hessian, diagonal, |h| {
        rowwise::exact_refit(start.view(), pruned, h)
    })?;
    Ok(refitted.value)
}

/// What came out with the first damping for which H is positive definite.
#[derive(Debug)]
struct Damped<T> {
    value: T,
}

/// Runs `step` on H + λI, and again with the dampings of the ladder while that is not positive definite.
fn damped_enough<B: Backend, T>(
    job: &Job<'_, B>,
    hessian: &Hessian<B>,
    diagonal: &Diagonal,
    step: impl Fn(ArrayView2<'_, f64>) -> Result<T>,
) -> Result<Damped<T>> {
    let mut h = symmetric(hessian)?;
    let mut last = (0, job.settings.damping);
    let dampings = ladder(job.settings.damping).filter(|&(_, p)| p == Precision::F64);
    for (damping, _) in dampings {
        let entries = diagonal.damped(damping, None);
        for (to, &entry) in h.diag_mut().iter_mut().zip(&entries) {
            *to = f64::from(entry);
        }
        match step(h.view()) {
            Ok(value) => return Ok(Damped { value }),
            Err(Error::NotPositiveDefinite { column, .. }) => last = (column, damping),
            Err(error) => return Err(error.for_layer(job.layer)),
        }
    }
    Err(Error::NotPositiveDefinite {
        layer: job.layer.to_owned(),
        column: last.0,
        damping: last.1,
        precision: Precision::F64,
    })
}

/// Both triangles of H, in f64.
fn symmetric<B: Backend>(hessian: &Hessian<B>) -> Result<Array2<f64>> {
    let lower = hessian.to_array()?;
    Ok(Array2::from_shape_fn(lower.dim(), |(row, col)| {
        f64::from(lower[[row.max(col), row.min(col)]])
    }))
}
