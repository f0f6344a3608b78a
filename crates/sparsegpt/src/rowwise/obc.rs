//! ExactOBS: which weights go if they go one at a time.

use ndarray::{Array2, ArrayView2};

use super::elimination::Elimination;
use super::{Bounds, square};
use crate::backend::SelectRule;
use crate::error::Result;
use crate::threads::map_rows;

/// The weights (`true`) that a greedy Optimal Brain Surgeon prunes (ExactOBS; Frantar, Singh & Alistarh 2022, arXiv
/// 2208.11580, sections 4 and 5).
///
/// In each row the weight with the lowest price w_j² / \[H⁻¹\]_jj goes, the others make up for it,
/// w ← w − (w_j / \[H⁻¹\]_jj)·\[H⁻¹\]_j, and row and column j are eliminated from the row's inverse,
/// H⁻¹ ← H⁻¹ − \[H⁻¹\]_jᵀ\[H⁻¹\]_j / \[H⁻¹\]_jj; and so on. With [`SelectRule::Lowest`] rows compete: of their next removals
/// the cheapest comes first, until `count` weights are gone. With [`SelectRule::NofM`] groups that have their zeros are
/// closed. [`SelectRule::LowestPerRow`] takes its counts as they are. The rules treat forced and protected weights as
/// [`Select`](crate::backend::Select) says; forced ones are eliminated first.
///
/// The weights that the eliminations leave are the best on their mask: give it to [`exact_refit`](super::exact_refit).
///
/// `weights` is rows x cols, `inverse` the [inverse](super::inverse) of the damped H, cols x cols. At most 2/3·cols³ flops a
/// row (7/8 of that where half of its weights go), 8·cols² bytes for each thread, and with
/// [`SelectRule::Lowest`] 40 bytes a weight. That is 2/3·cols times the work of a sweep: for small layers, and to see what
/// the sweep's shared inverse costs.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the shapes do not match.
pub fn obc_mask(
    weights: ArrayView2<'_, f32>,
    inverse: ArrayView2<'_, f64>,
    rule: SelectRule<'_>,
    bounds: Bounds<'_>,
) -> Result<Array2<bool>> {
    let (rows, cols) = weights.dim();
    square(inverse, cols)?;
    bounds.check(weights.dim())?;
    let traces = map_rows(rows, Elimination::default, |elimination, row| {
        elimination.begin(weights.row(row), inverse);
        trace(elimination, rule, row, bounds)
    });
    let counts = match rule {
        SelectRule::Lowest { count } => cheapest(&traces, count),
        SelectRule::LowestPerRow { .. } | SelectRule::NofM { .. } => {
            traces.iter().map(|trace| trace.columns.len()).collect()
        }
    };
    let mut mask = Array2::from_elem((rows, cols), false);
    for ((mut mask, trace), count) in mask.rows_mut().into_iter().zip(&traces).zip(counts) {
        for &column in &trace.columns[..count] {
            mask[column] = true;
        }
    }
    Ok(mask)
}

/// A row's removals in their order.
#[derive(Debug, Default)]
pub(super) struct Trace {
    pub(super) columns: Vec<usize>,
    /// The highest price up to each removal: once that has been paid, what is cheaper behind it comes at once.
    prices: Vec<f64>,
}

impl Trace {
    pub(super) fn push(&mut self, column: usize, price: f64) {
        let before = self.prices.last().copied().unwrap_or(f64::NEG_INFINITY);
        self.columns.push(column);
        self.prices.push(before.max(price));
    }
}

/// How far each trace goes when the cheapest next removal of all rows comes first; equal prices by column, then row.
pub(super) fn cheapest(traces: &[Trace], count: usize) -> Vec<usize> {
    let mut removals: Vec<(f64, usize, usize)> = traces
        .iter()
        .enumerate()
        .flat_map(|(row, trace)| {
            let removals = trace.prices.iter().zip(&trace.columns);
            removals.map(move |(&price, &column)| (price, column, row))
        })
        .collect();
    if count < removals.len() {
        removals.select_nth_unstable_by(count, |a, b| {
            a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
        });
        removals.truncate(count);
    }
    let mut counts = vec![0; traces.len()];
    for (_, _, row) in removals {
        counts[row] += 1;
    }
    counts
}

/// Removes weights of a row in turn.
fn trace(
    elimination: &mut Elimination,
    rule: SelectRule<'_>,
    row: usize,
    bounds: Bounds<'_>,
) -> Trace {
    let cols = elimination.columns.len();
    let (limit, zeros, group): (usize, usize, usize) = match rule {
        SelectRule::Lowest { count } => (count, cols, cols),
        SelectRule::LowestPerRow { counts } => (counts.get(row).copied().unwrap_or(0), cols, cols),
        SelectRule::NofM { zeros, group } => (cols, zeros, group.max(1)),
    };
    let mut zeros_of = vec![0; cols.div_ceil(group.max(1))];
    let mut trace = Trace::default();
    let mut due: Vec<usize> = (0..cols)
        .filter(|&at| bounds.is_forced((row, at)))
        .collect();
    due.reverse();
    while trace.columns.len() < limit {
        let is_open = |at| zeros_of[at / group] < zeros;
        let next = match due.pop() {
            Some(column) if !is_open(column) => continue,
            Some(column) => {
                let place = elimination.place_of(column);
                place.map(|place| (place, f64::NEG_INFINITY))
            }
            None => elimination.cheapest(|at, weight| {
                let may_go = is_open(at) && !bounds.is_protected((row, at));
                may_go.then_some(weight * weight)
            }),
        };
        let Some((place, price)) = next else { break };
        let column = elimination.columns[place];
        zeros_of[column / group] += 1;
        trace.push(column, price);
        elimination.settle(place, 0.0);
    }
    trace
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::{Array1, Array2};

    use super::super::{exact_refit, inverse, truth};
    use super::*;

    /// Removes one weight at a time and inverts what is left anew each time.
    struct Brute {
        rows: Vec<Array1<f64>>,
        h: Array2<f64>,
        kept: Vec<Vec<usize>>,
    }

    impl Brute {
        fn new(weights: &Array2<f32>, h: &Array2<f64>) -> Self {
            let (rows, cols) = weights.dim();
            Self {
                rows: (0..rows)
                    .map(|row| weights.row(row).mapv(f64::from))
                    .collect(),
                h: h.clone(),
                kept: vec![(0..cols).collect(); rows],
            }
        }

        fn price(&self, row: usize, place: usize) -> f64 {
            let kept = &self.kept[row];
            let inverse = truth::inverse(&truth::part(&self.h, kept, kept));
            let current = truth::refit(&self.rows[row], kept, &self.h);
            current[place].powi(2) / inverse[[place, place]]
        }

        /// Removes the cheapest of some weights.
        fn step(&mut self, allowed: impl Fn(&Self, usize, usize) -> bool) {
            let mut best = (f64::INFINITY, 0, 0);
            for row in 0..self.rows.len() {
                for place in 0..self.kept[row].len() {
                    let price = match allowed(self, row, self.kept[row][place]) {
                        true => self.price(row, place),
                        false => f64::INFINITY,
                    };
                    if price < best.0 {
                        best = (price, row, place);
                    }
                }
            }
            assert!(best.0.is_finite());
            self.kept[best.1].remove(best.2);
        }

        fn mask(&self) -> Array2<bool> {
            let dim = (self.rows.len(), self.h.nrows());
            Array2::from_shape_fn(dim, |(row, col)| !self.kept[row].contains(&col))
        }
    }

    fn obc(weights: &Array2<f32>, h: &Array2<f64>, rule: SelectRule<'_>) -> Array2<bool> {
        let inverse = inverse(h.view()).unwrap();
        obc_mask(weights.view(), inverse.view(), rule, Bounds::default()).unwrap()
    }

    fn zeros(mask: &Array2<bool>) -> usize {
        mask.iter().filter(|&&pruned| pruned).count()
    }

    #[test]
    fn rows_compete_as_in_brute_force() {
        for seed in 0..6 {
            let (weights, h) = truth::layer(3, 9, 100 + seed);
            let mut brute = Brute::new(&weights, &h);
            for count in 1..=27 {
                brute.step(|_, _, _| true);
                let mask = obc(&weights, &h, SelectRule::Lowest { count });
                assert_eq!(mask, brute.mask(), "seed {seed}, {count} zeros");
            }
        }
    }

    #[test]
    fn groups_close_as_in_brute_force() {
        for (seed, zeros, group) in [(1, 2, 4), (2, 1, 4), (3, 3, 4), (4, 2, 3), (5, 1, 2)] {
            let (weights, h) = truth::layer(2, 12, 200 + seed);
            let mut brute = Brute::new(&weights, &h);
            for _ in 0..2 * 12 / group * zeros {
                brute.step(|brute, row, column| {
                    let first = column / group * group;
                    let kept = brute.kept[row].iter();
                    let left = kept
                        .filter(|&&at| (first..first + group).contains(&at))
                        .count();
                    group - left < zeros
                });
            }
            let mask = obc(&weights, &h, SelectRule::NofM { zeros, group });
            assert_eq!(mask, brute.mask(), "{zeros}:{group}");
        }
    }

    #[test]
    fn what_the_eliminations_leave_is_the_best_on_the_mask() {
        let (weights, h) = truth::layer(1, 30, 300);
        let inverse = inverse(h.view()).unwrap();
        let mut elimination = Elimination::default();
        elimination.begin(weights.row(0), inverse.view());
        let rule = SelectRule::Lowest { count: 18 };
        let trace = trace(&mut elimination, rule, 0, Bounds::default());
        let mask = Array2::from_shape_fn((1, 30), |(_, col)| trace.columns.contains(&col));
        let refitted = exact_refit(weights.view(), mask.view(), h.view()).unwrap();
        for (&column, &weight) in elimination.columns.iter().zip(&elimination.weights) {
            let expected = f64::from(refitted[[0, column]]);
            assert!((weight - expected).abs() < 1e-6, "{weight} {expected}");
        }
    }

    #[test]
    fn counts_are_exact_and_bounds_hold() {
        let (weights, h) = truth::layer(4, 12, 400);
        let inverse = inverse(h.view()).unwrap();
        let forced = Array2::from_shape_fn((4, 12), |(row, col)| row == 1 && col < 3);
        let protected = Array2::from_shape_fn((4, 12), |(row, col)| row == 2 || col == 11);
        let bounds = Bounds {
            forced: Some(forced.view()),
            protected: Some(protected.view()),
        };
        let run = |rule| obc_mask(weights.view(), inverse.view(), rule, bounds).unwrap();
        let counts = [4, 5, 0, 11];
        let rules = [
            (SelectRule::Lowest { count: 17 }, 17),
            (SelectRule::Lowest { count: 3 }, 3),
            (SelectRule::LowestPerRow { counts: &counts }, 20),
            (SelectRule::NofM { zeros: 3, group: 4 }, 27),
        ];
        for (rule, count) in rules {
            let mask = run(rule);
            assert_eq!(zeros(&mask), count, "{rule:?}");
            for (at, &pruned) in mask.indexed_iter() {
                assert!(!(pruned && protected[at]), "{rule:?}: {at:?}");
                assert!(pruned || !forced[at], "{rule:?}: {at:?}");
            }
            if let SelectRule::LowestPerRow { counts } = rule {
                for (row, &count) in mask.rows().into_iter().zip(counts) {
                    assert_eq!(row.iter().filter(|&&pruned| pruned).count(), count);
                }
            }
        }
    }
}
