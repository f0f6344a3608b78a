//! OBQ: weights rounded one at a time.

use ndarray::{Array2, ArrayView1, ArrayView2};

use super::elimination::Elimination;
use super::{same_shape, square};
use crate::backend::GridKind;
use crate::backend::host::{SweepGrid, round_to_grid};
use crate::error::{Error, Result};
use crate::threads::map_rows;

/// More steps off its level than rounding makes, with what f32 adds to half a step.
const OUTLIER: f64 = 0.5 + 1e-4;

/// The levels of a grid that a greedy Optimal Brain Surgeon rounds to (OBQ; Frantar, Singh & Alistarh 2022, arXiv
/// 2208.11580, section 6). Weights that `pruned` marks (`true`) become zero, and stay so.
///
/// In each row the pruned weights go first. Then, with q_j the level nearest to the current w_j, the weight with the lowest
/// price (w_j − q_j)² / \[H⁻¹\]_jj is set to its level, the others make up for it,
/// w ← w − ((w_j − q_j) / \[H⁻¹\]_jj)·\[H⁻¹\]_j, and row and column j are eliminated from the row's inverse; and so on. A weight
/// that has been pushed out of the range of an affine grid, by more than half a step, is set at once, the furthest one first,
/// while others are left to make up for it.
///
/// `dense` is rows x cols, `inverse` the [inverse](super::inverse) of the damped H, cols x cols; `grid` has the scales and zero
/// points of each row, fitted beforehand. 2/3·cols³ flops a row, 8·cols² bytes for each thread: what GPTQ's sweep does in a
/// fixed order for 2/3·cols times less. For small layers.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not match.
pub fn obq(
    dense: ArrayView2<'_, f32>,
    pruned: ArrayView2<'_, bool>,
    inverse: ArrayView2<'_, f64>,
    grid: SweepGrid<'_>,
) -> Result<Array2<f32>> {
    let (rows, cols) = dense.dim();
    square(inverse, cols)?;
    same_shape("the mask", pruned, dense.dim())?;
    let groups = grid.groups.iter().max().map_or(0, |last| last + 1);
    for (what, values) in [("the scales", grid.scale), ("the zero points", grid.zero)] {
        if grid.groups.len() != cols || values.nrows() != rows || values.ncols() < groups {
            return Err(Error::Shape {
                layer: String::new(),
                what,
                expected: format!("{rows} x {groups}, and the group of each of {cols} columns"),
                found_rows: values.nrows(),
                found_cols: values.ncols(),
            });
        }
    }
    let rounded = map_rows(rows, Elimination::default, |elimination, row| {
        elimination.begin(dense.row(row), inverse);
        let levels = Levels { grid, row };
        let mut weights = vec![0.0; cols];
        for column in (0..cols).filter(|&at| pruned[[row, at]]) {
            if let Some(place) = elimination.place_of(column) {
                elimination.settle(place, 0.0);
            }
        }
        while let Some(place) = levels.next(elimination) {
            let (column, weight) = (elimination.columns[place], elimination.weights[place]);
            let level = levels.nearest(column, weight);
            weights[column] = level;
            elimination.settle(place, f64::from(level));
        }
        weights
    });
    let mut weights = Array2::zeros((rows, cols));
    for (mut to, row) in weights.rows_mut().into_iter().zip(rounded) {
        to.assign(&ArrayView1::from(&row));
    }
    Ok(weights)
}

/// The grid of one row.
#[derive(Debug)]
struct Levels<'a> {
    grid: SweepGrid<'a>,
    row: usize,
}

impl Levels<'_> {
    fn nearest(&self, column: usize, weight: f64) -> f32 {
        let at = [self.row, self.grid.groups[column]];
        let (scale, zero) = (self.grid.scale[at], self.grid.zero[at]);
        round_to_grid(self.grid.kind, weight as f32, scale, zero)
    }

    fn off(&self, column: usize, weight: f64) -> f64 {
        (weight - f64::from(self.nearest(column, weight))).abs()
    }

    /// How many steps a weight out of the range of an affine grid is off its level.
    fn beyond(&self, column: usize, weight: f64) -> Option<f64> {
        let GridKind::Affine { .. } = self.grid.kind else {
            return None;
        };
        let scale = self.grid.scale[[self.row, self.grid.groups[column]]];
        let steps = self.off(column, weight) / f64::from(scale);
        (steps > OUTLIER).then_some(steps)
    }

    /// The place of the weight to set next.
    fn next(&self, elimination: &Elimination) -> Option<usize> {
        let places = elimination.columns.iter().zip(&elimination.weights);
        let outliers = places
            .enumerate()
            .filter_map(|(place, (&column, &weight))| {
                let steps = self.beyond(column, weight)?;
                Some((place, column, steps))
            });
        // Of equally far ones the first column's.
        let furthest = outliers.max_by(|a, b| a.2.total_cmp(&b.2).then(b.1.cmp(&a.1)));
        if let Some((place, _, _)) = furthest {
            return Some(place);
        }
        let cheapest =
            elimination.cheapest(|column, weight| Some(self.off(column, weight).powi(2)));
        cheapest.map(|(place, _)| place)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::{Array1, Array2};

    use super::super::{exact_refit, inverse, truth};
    use super::*;

    const MAX_CODE: u32 = 7;

    /// Settles one weight at a time and inverts what is left anew each time; counts the outliers.
    fn brute(
        dense: &Array1<f64>,
        pruned: &[bool],
        h: &Array2<f64>,
        (scale, zero): (f64, f64),
        outliers: &mut usize,
    ) -> Vec<f64> {
        let cols = dense.len();
        let all: Vec<usize> = (0..cols).collect();
        let mut settled: Vec<Option<f64>> =
            pruned.iter().map(|&pruned| pruned.then_some(0.0)).collect();
        let level = |w: f64| {
            let code = ((w / scale).round_ties_even() + zero).clamp(0.0, f64::from(MAX_CODE));
            (code - zero) * scale
        };
        loop {
            let left: Vec<usize> = (0..cols).filter(|&at| settled[at].is_none()).collect();
            if left.is_empty() {
                return settled.into_iter().flatten().collect();
            }
            let inverse = truth::inverse(&truth::part(h, &left, &left));
            // The best of the rest: w_S + (H_SS)⁻¹ H_SF (w_F − q_F).
            let off: Array1<f64> = (0..cols)
                .map(|at| settled[at].map_or(0.0, |value| dense[at] - value))
                .collect();
            let added = inverse.dot(&truth::part(h, &left, &all).dot(&off));
            let current: Vec<f64> = left
                .iter()
                .zip(added)
                .map(|(&at, add)| dense[at] + add)
                .collect();
            let off = |place: usize| (current[place] - level(current[place])).abs();
            let outlier = (0..left.len())
                .filter(|&place| off(place) > OUTLIER * scale)
                .max_by(|&a, &b| off(a).total_cmp(&off(b)));
            *outliers += usize::from(outlier.is_some());
            let price = |place: usize| off(place).powi(2) / inverse[[place, place]];
            let next = outlier.unwrap_or_else(|| {
                (0..left.len())
                    .min_by(|&a, &b| price(a).total_cmp(&price(b)))
                    .unwrap()
            });
            settled[left[next]] = Some(level(current[next]));
        }
    }

    fn case(seed: u64) -> (Array2<f32>, Array2<bool>, Array2<f64>) {
        let (dense, h) = truth::layer(3, 11, seed);
        let pruned = Array2::from_shape_fn((3, 11), |(row, col)| row > 0 && (col + row) % 3 == 0);
        (dense, pruned, h)
    }

    #[test]
    fn rounds_as_brute_force_does() {
        let mut outliers = 0;
        for seed in 500..520 {
            let (dense, pruned, h) = case(seed);
            // The range covers less than the weights do.
            let scale = Array2::from_elem((3, 1), 0.2_f32);
            let zero = Array2::from_elem((3, 1), 3.0_f32);
            let grid = SweepGrid {
                kind: GridKind::Affine { max_code: MAX_CODE },
                scale: scale.view(),
                zero: zero.view(),
                groups: &[0; 11],
            };
            let inverse = inverse(h.view()).unwrap();
            let rounded = obq(dense.view(), pruned.view(), inverse.view(), grid).unwrap();
            for row in 0..3 {
                let wide = dense.row(row).mapv(f64::from);
                let mask = pruned.row(row).to_vec();
                let grid = (f64::from(0.2_f32), 3.0);
                let expected = brute(&wide, &mask, &h, grid, &mut outliers);
                for (found, expected) in rounded.row(row).iter().zip(expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "seed {seed}");
                }
            }
        }
        assert!(outliers > 0);
    }

    #[test]
    fn a_fine_grid_changes_little_and_zeros_stay() {
        let (dense, pruned, h) = case(530);
        let (scale, zero) = (
            Array2::from_elem((3, 2), 1e-4_f32),
            Array2::from_elem((3, 2), 131_072.0_f32),
        );
        let groups: Vec<usize> = (0..11).map(|column| column / 6).collect();
        let grid = SweepGrid {
            kind: GridKind::Affine { max_code: 262_143 },
            scale: scale.view(),
            zero: zero.view(),
            groups: &groups,
        };
        let inverse = inverse(h.view()).unwrap();
        let rounded = obq(dense.view(), pruned.view(), inverse.view(), grid).unwrap();
        let best = exact_refit(dense.view(), pruned.view(), h.view()).unwrap();
        for (at, &weight) in rounded.indexed_iter() {
            assert!(
                (weight - best[at]).abs() < 0.02,
                "{at:?}: {weight}, {}",
                best[at]
            );
            assert!(!pruned[at] || weight == 0.0);
        }
        let short = SweepGrid {
            groups: &groups[1..],
            ..grid
        };
        let error = obq(dense.view(), pruned.view(), inverse.view(), short).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }));
    }
}
