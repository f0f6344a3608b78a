//! The next layer's dense weights, on their way to a device with memory of its own while this layer's columns are swept.

use ndarray::ArrayView2;

use super::job::Job;
use super::method::{MaskSource, Method, Refit, WeightSolver};
use super::order::ColumnOrder;
use super::settings::LayerSettings;
use crate::backend::Backend;

/// What is known of the layer that comes next.
#[derive(Debug)]
pub(super) struct Ahead<'t, B: Backend> {
    next: Option<ArrayView2<'t, f32>>,
    uploaded: Option<(ArrayView2<'t, f32>, B::Matrix)>,
}

impl<B: Backend> Default for Ahead<'_, B> {
    fn default() -> Self {
        Self {
            next: None,
            uploaded: None,
        }
    }
}

/// Whether all a method does is one sweep over the dense weights as they are.
pub(super) fn is_one_sweep(settings: &LayerSettings) -> bool {
    let parts = settings.parts();
    (parts.mask, parts.weights, parts.refit)
        == (MaskSource::Solver, WeightSolver::Sweep, Refit::None)
        && parts.swaps == 0
        && settings.method != Method::Best
        && settings.order == ColumnOrder::Natural
        && settings.dense_targets == 0.0
}

impl<'t, B: Backend> Ahead<'t, B> {
    /// Says which weights come after those of the layer that is about to be treated.
    pub(super) fn announce(&mut self, next: Option<ArrayView2<'t, f32>>) {
        self.next = next;
    }

    /// Sends them, as all of this layer's sweep is enqueued: to a device that tells of its memory, and has room. They are
    /// sent again in their turn if that fails.
    pub(super) fn send(&mut self, job: &Job<'_, B>) {
        let Some(next) = self.next.take() else {
            return;
        };
        let bytes = next.len() * size_of::<f32>();
        // As much again is left for this layer's results.
        let has_room = matches!(job.backend.free_bytes(), Ok(Some(free)) if free / 2 >= bytes);
        if has_room {
            self.uploaded = job.upload(next).ok().map(|matrix| (next, matrix));
        }
    }

    /// The copy of these weights, if it was made.
    pub(super) fn take(&mut self, weights: ArrayView2<'_, f32>) -> Option<B::Matrix> {
        let (of, matrix) = self.uploaded.take()?;
        let same = of.as_ptr() == weights.as_ptr()
            && of.dim() == weights.dim()
            && of.strides() == weights.strides();
        same.then_some(matrix)
    }
}
