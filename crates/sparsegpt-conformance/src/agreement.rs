//! Whether two solutions of one layer are the same but for rounding.

use sparsegpt::ndarray::{Array2, ArrayView1};

use crate::check::{Verdict, ensure};
use crate::tolerance::{Agreement, LOSS_FLOOR};
use crate::truth::{energy, widen};

/// A layer as both solutions saw it.
pub(crate) struct Layer<'a> {
    pub(crate) dense: &'a Array2<f32>,
    /// Symmetric and undamped.
    pub(crate) hessian: &'a Array2<f64>,
}

impl Layer<'_> {
    /// tr(ΔW H ΔWᵀ) in f64.
    pub(crate) fn error(&self, weights: &Array2<f32>) -> f64 {
        energy(
            &(widen(self.dense.view()) - widen(weights.view())),
            self.hessian,
        )
    }

    /// Compares zeros, errors and weights. `spare` is the number of entries in which the zeros may differ
    /// beyond the agreement, since the two count differently.
    pub(crate) fn ensure_agreement(
        &self,
        what: &str,
        ours: &Array2<f32>,
        theirs: &Array2<f32>,
        spare: usize,
        limits: &Agreement,
    ) -> Verdict {
        let differing = ours
            .iter()
            .zip(theirs)
            .filter(|(a, b)| (**a == 0.0) != (**b == 0.0))
            .count();
        let allowed = spare + ((1.0 - limits.pattern) * ours.len() as f64) as usize;
        ensure!(
            differing <= allowed,
            "{what}: {differing} of {} entries are zero in one solution only, allowed are {allowed} ({})",
            ours.len(),
            limits.reason
        );
        let (our_error, their_error) = (self.error(ours), self.error(theirs));
        // What is left of an exact solution is rounding.
        let floor = LOSS_FLOOR * energy(&widen(self.dense.view()), self.hessian);
        ensure!(
            our_error <= limits.error_ratio * their_error + floor,
            "{what}: error {our_error:e} against {their_error:e}, ratio {}, allowed is {} ({})",
            our_error / their_error,
            limits.error_ratio,
            limits.reason
        );
        let largest = largest(theirs);
        for (row, (ours, theirs)) in ours.rows().into_iter().zip(theirs.rows()).enumerate() {
            let Some((difference, col)) = largest_difference(ours, theirs) else {
                continue;
            };
            ensure!(
                f64::from(difference) <= limits.weights * largest,
                "{what}: row {row} has the same zeros, but column {col} is {} against {} ({})",
                ours[col],
                theirs[col],
                limits.reason
            );
        }
        Ok(())
    }
}

fn largest(weights: &Array2<f32>) -> f64 {
    weights
        .iter()
        .fold(0.0, |largest, w| f64::from(w.abs()).max(largest))
}

/// The largest difference in a row whose zeros agree, and where it is.
fn largest_difference(
    ours: ArrayView1<'_, f32>,
    theirs: ArrayView1<'_, f32>,
) -> Option<(f32, usize)> {
    let same = ours
        .iter()
        .zip(theirs)
        .all(|(a, b)| (*a == 0.0) == (*b == 0.0));
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).zip(0..);
    same.then(|| differences.fold((0.0, 0), |a, b| if b.0 > a.0 { b } else { a }))
}
