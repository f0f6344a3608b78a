//! ExactOBS with blocks: runs of consecutive weights that go together.

use ndarray::{Array2, ArrayView2, s};

use super::cholesky::Cholesky;
use super::elimination::Elimination;
use super::obc::{Trace, cheapest};
use super::{same_shape, square};
use crate::error::{Error, Result};
use crate::threads::map_rows;

/// The weights (`true`) that a greedy Optimal Brain Surgeon prunes in `count` runs of `run` consecutive columns, from multiples
/// of `run` on (ExactOBS; Frantar, Singh & Alistarh 2022, arXiv 2208.11580, section 4, "block" pruning).
///
/// In each row the run B with the lowest price w_B((H⁻¹)_BB)⁻¹w_Bᵀ goes, the others make up for it,
/// w ← w − w_B((H⁻¹)_BB)⁻¹(H⁻¹)_B, and the rows and columns of B are eliminated from the row's inverse; and so on. Rows compete as
/// in [`obc_mask`](super::obc_mask), which this is for runs of one column: of their next runs the cheapest comes first.
/// Runs that hold a `protected` weight (`true`) stay; where there are fewer others than `count`, those go.
///
/// The weights that the eliminations leave are the best on their mask: give it to [`exact_refit`](super::exact_refit).
///
/// `weights` is rows x cols, `inverse` the [inverse](super::inverse) of the damped H, cols x cols. At most
/// 2/3·cols³ + 1/6·run·cols² flops a row, 8·cols² bytes for each thread: for small layers.
///
/// ```
/// use sparsegpt::ndarray::array;
/// use sparsegpt::rowwise::{inverse, obc_runs};
/// // The first two weights are large, but almost the same input with opposite signs.
/// let h = array![
///     [1.0, 0.99, 0.0, 0.0], [0.99, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
/// ];
/// let weights = array![[2.0, -2.0, 0.5, 0.5]];
/// let pruned = obc_runs(weights.view(), inverse(h.view())?.view(), (2, 1), None)?;
/// assert_eq!(pruned, array![[true, true, false, false]]);
/// # Ok::<(), sparsegpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes do not match, [`Error::InvalidSetting`] if `run` does not divide the columns.
pub fn obc_runs(
    weights: ArrayView2<'_, f32>,
    inverse: ArrayView2<'_, f64>,
    (run, count): (usize, usize),
    protected: Option<ArrayView2<'_, bool>>,
) -> Result<Array2<bool>> {
    let (rows, cols) = weights.dim();
    square(inverse, cols)?;
    if let Some(protected) = protected {
        same_shape("the protected weights", protected, weights.dim())?;
    }
    if run == 0 || !cols.is_multiple_of(run) {
        return Err(Error::setting(
            "weights in a block",
            format!("a divisor of the {cols} columns"),
            run,
        ));
    }
    let traces = map_rows(rows, Scratch::default, |scratch, row| {
        let open = (0..cols).step_by(run).filter(|&first| {
            let is_protected = |mask: ArrayView2<'_, bool>| {
                let block = mask.slice_move(s![row, first..first + run]);
                block.iter().any(|&protected| protected)
            };
            !protected.is_some_and(is_protected)
        });
        let open = open.collect();
        scratch.elimination.begin(weights.row(row), inverse);
        scratch.trace(run, count, open)
    });
    let mut mask = Array2::from_elem((rows, cols), false);
    for (row, (trace, count)) in traces.iter().zip(cheapest(&traces, count)).enumerate() {
        for &first in &trace.columns[..count] {
            mask.slice_mut(s![row, first..first + run]).fill(true);
        }
    }
    Ok(mask)
}

/// What rows that one thread treats share.
#[derive(Debug, Default)]
struct Scratch {
    elimination: Elimination,
    factor: Cholesky,
    /// The place of each column that is left.
    places: Vec<usize>,
    solved: Vec<f64>,
}

impl Scratch {
    /// Removes runs of a row in turn, by their first columns; `open` are those that may go.
    fn trace(&mut self, run: usize, count: usize, mut open: Vec<usize>) -> Trace {
        let Self {
            elimination,
            factor,
            places,
            solved,
        } = self;
        places.resize(elimination.columns.len(), 0);
        let mut trace = Trace::default();
        while trace.columns.len() < count {
            for (place, &column) in elimination.columns.iter().enumerate() {
                places[column] = place;
            }
            // Of equal prices the first column's.
            let mut next: Option<(usize, f64)> = None;
            for (at, &first) in open.iter().enumerate() {
                let price = elimination.price_together(&places[first..first + run], factor, solved);
                if next.is_none_or(|(_, lowest)| price < lowest) {
                    next = Some((at, price));
                }
            }
            let Some((at, price)) = next else { break };
            let first = open.remove(at);
            trace.push(first, price);
            // One at a time they are eliminated as they would be together.
            for column in first..first + run {
                if let Some(place) = elimination.place_of(column) {
                    elimination.settle(place, 0.0);
                }
            }
        }
        trace
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::Array2;

    use super::super::{Bounds, inverse, obc_mask, truth};
    use super::*;
    use crate::backend::SelectRule;

    /// (w − q)H(w − q)ᵀ of the best q without some columns.
    fn error(weights: &Array2<f32>, h: &Array2<f64>, row: usize, pruned: &[usize]) -> f64 {
        let wide = weights.row(row).mapv(f64::from);
        let kept: Vec<usize> = (0..wide.len()).filter(|at| !pruned.contains(at)).collect();
        let mut lost = wide.clone();
        for (&at, weight) in kept.iter().zip(truth::refit(&wide, &kept, h)) {
            lost[at] -= weight;
        }
        lost.dot(&h.dot(&lost))
    }

    /// Removes one run at a time, after a search through all rows and runs that solves each anew.
    fn brute(weights: &Array2<f32>, h: &Array2<f64>, run: usize, count: usize) -> Array2<bool> {
        let (rows, cols) = weights.dim();
        let mut pruned = vec![Vec::new(); rows];
        for _ in 0..count {
            let mut best = (f64::INFINITY, 0, 0);
            for (row, pruned) in pruned.iter().enumerate() {
                let now = error(weights, h, row, pruned);
                for first in (0..cols).step_by(run).filter(|at| !pruned.contains(at)) {
                    let mut next = pruned.clone();
                    next.extend(first..first + run);
                    let price = error(weights, h, row, &next) - now;
                    if price < best.0 {
                        best = (price, row, first);
                    }
                }
            }
            pruned[best.1].extend(best.2..best.2 + run);
        }
        Array2::from_shape_fn((rows, cols), |(row, col)| pruned[row].contains(&col))
    }

    #[test]
    fn runs_go_as_in_brute_force() {
        for (seed, run) in [(600, 2), (601, 3), (602, 4), (603, 6)] {
            let (weights, h) = truth::layer(3, 12, seed);
            let inverse = inverse(h.view()).unwrap();
            for count in 0..3 * 12 / run {
                let found = obc_runs(weights.view(), inverse.view(), (run, count), None).unwrap();
                let expected = brute(&weights, &h, run, count);
                assert_eq!(found, expected, "{count} runs of {run}");
            }
        }
    }

    #[test]
    fn runs_of_one_column_are_single_weights() {
        let (weights, h) = truth::layer(5, 20, 610);
        let inverse = inverse(h.view()).unwrap();
        let rule = SelectRule::Lowest { count: 47 };
        let single = obc_mask(weights.view(), inverse.view(), rule, Bounds::default()).unwrap();
        let runs = obc_runs(weights.view(), inverse.view(), (1, 47), None).unwrap();
        assert_eq!(runs, single);
    }

    #[test]
    fn protected_runs_stay_and_wrong_widths_are_named() {
        let (weights, h) = truth::layer(3, 12, 620);
        let inverse = inverse(h.view()).unwrap();
        let protected = Array2::from_shape_fn((3, 12), |(row, col)| row == 0 || col == 5);
        let all = (4, 9);
        let mask = obc_runs(weights.view(), inverse.view(), all, Some(protected.view())).unwrap();
        let expected =
            Array2::from_shape_fn((3, 12), |(row, col)| row > 0 && !(4..8).contains(&col));
        assert_eq!(mask, expected);
        let error = obc_runs(weights.view(), inverse.view(), (5, 1), None).unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    }
}
