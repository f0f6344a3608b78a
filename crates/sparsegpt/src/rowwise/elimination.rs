//! One row's columns, settled one at a time.

use ndarray::{ArrayView1, ArrayView2};

use super::cholesky::Cholesky;

/// A row with its current weights and inverse, of the columns that are left, in no order.
#[derive(Debug, Default)]
pub(super) struct Elimination {
    pub(super) columns: Vec<usize>,
    pub(super) weights: Vec<f64>,
    /// Row by row; of each the first `columns.len()` entries are used.
    inverse: Vec<f64>,
    stride: usize,
    pivot: Vec<f64>,
}

impl Elimination {
    /// All columns of a row, H⁻¹ whole.
    pub(super) fn begin(&mut self, weights: ArrayView1<'_, f32>, inverse: ArrayView2<'_, f64>) {
        self.stride = weights.len();
        self.columns.clear();
        self.columns.extend(0..weights.len());
        self.weights.clear();
        self.weights.extend(weights.iter().map(|&w| f64::from(w)));
        self.inverse.clear();
        self.inverse.extend(inverse.iter());
    }

    /// The place of the lowest price and that price; of equal ones the first column's. `square` tells of a column and its
    /// weight the square of what the weight would change by; `None` leaves it out.
    pub(super) fn cheapest(
        &self,
        square: impl Fn(usize, f64) -> Option<f64>,
    ) -> Option<(usize, f64)> {
        let mut best = None;
        for (place, (&weight, &column)) in self.weights.iter().zip(&self.columns).enumerate() {
            let Some(square) = square(column, weight) else {
                continue;
            };
            let entry = self.inverse[place * self.stride + place];
            // Rounding may leave nothing of an entry; such a weight cannot be made up for.
            let price = match entry > 0.0 {
                true => square / entry,
                false => f64::INFINITY,
            };
            let is_better = best.is_none_or(|(at, lowest): (usize, f64)| {
                price < lowest || (price == lowest && column < self.columns[at])
            });
            if is_better {
                best = Some((place, price));
            }
        }
        best
    }

    /// w_P((H⁻¹)_PP)⁻¹w_Pᵀ, what it costs to set the weights at some places to zero together.
    pub(super) fn price_together(
        &self,
        places: &[usize],
        factor: &mut Cholesky,
        solved: &mut Vec<f64>,
    ) -> f64 {
        let entry = |row: usize, col: usize| self.inverse[places[row] * self.stride + places[col]];
        // As in `cheapest`, where rounding has left nothing of them they cannot be made up for.
        if factor.factor(places.len(), entry).is_err() {
            return f64::INFINITY;
        }
        solved.clear();
        solved.extend(places.iter().map(|&place| self.weights[place]));
        factor.solve(solved);
        let pairs = solved.iter().zip(places);
        pairs
            .map(|(solved, &place)| solved * self.weights[place])
            .sum()
    }

    pub(super) fn place_of(&self, column: usize) -> Option<usize> {
        self.columns.iter().position(|&at| at == column)
    }

    /// Sets a weight for good: the others make up for it, and its column leaves.
    pub(super) fn settle(&mut self, place: usize, value: f64) {
        let (left, stride) = (self.columns.len(), self.stride);
        self.pivot.clear();
        let start = place * stride;
        self.pivot.extend(&self.inverse[start..start + left]);
        let entry = self.pivot[place];
        if entry > 0.0 {
            let step = (self.weights[place] - value) / entry;
            for (weight, pivot) in self.weights.iter_mut().zip(&self.pivot) {
                *weight -= step * pivot;
            }
            for (row, inverse) in self.inverse.chunks_mut(stride).take(left).enumerate() {
                let factor = self.pivot[row] / entry;
                if row != place && factor != 0.0 {
                    for (inverse, pivot) in inverse[..left].iter_mut().zip(&self.pivot) {
                        *inverse -= factor * pivot;
                    }
                }
            }
        }
        // The last column takes the place.
        let last = left - 1;
        self.columns.swap_remove(place);
        self.weights.swap_remove(place);
        let from = last * stride;
        self.inverse.copy_within(from..from + left, start);
        for row in self.inverse.chunks_mut(stride).take(last) {
            row[place] = row[last];
        }
    }
}
