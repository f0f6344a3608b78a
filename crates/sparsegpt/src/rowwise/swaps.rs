//! Swaps: a better mask next to a given one.

use std::ops::Range;

use ndarray::{Array2, ArrayView1, ArrayView2};

use super::{Bounds, same_shape, square};
use crate::error::{Error, Result};
use crate::threads::map_rows;

/// A swap must lower a row's loss by more than this part of what it was at first: less is rounding, or worth no search.
const LEAST_GAIN: f64 = 1e-9;

/// How far [`swap_refine`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swaps {
    /// Swaps in each row at most.
    pub limit: usize,
    /// Consecutive columns among which weights are swapped: the group of an N:M pattern, or all columns.
    pub group: usize,
}

/// A mask (`true` = pruned) that loses less than `pruned`, with as many zeros in each group of each row (SparseSwaps,
/// arXiv 2512.10922).
///
/// What a row loses if nothing makes up for its zeros is eHeᵀ, with e its weights where they are pruned and 0 elsewhere. With
/// c = eH, pruning p in place of u changes that by exactly
///
/// ΔL = 2w_p c_p + w_p² H_pp − 2w_u c_u + w_u² H_uu − 2w_p w_u H_pu.
///
/// In each row the best swap is done, c ← c + w_p H_p − w_u H_u, and so on until none gains or the limit is reached. The
/// search is exact: a p is left out only where its own terms and |H_pu| ≤ (H_pp·H_uu)^½ say that it cannot win. Up to
/// 5·cols²/4 flops a swap (5·cols·group/4 for groups), rarely more than a small part of it, beside 2·cols² a row to begin
/// with; 60·cols bytes for each thread. For masks that were chosen at one look (magnitude, Wanda, RIA), before whatever sets
/// the weights.
///
/// `weights` is rows x cols, `h` cols x cols, symmetric, undamped.
///
/// ```
/// use sparsegpt::ndarray::array;
/// use sparsegpt::rowwise::{Bounds, Swaps, swap_refine};
/// // The first input is the negative of the second, so their weights cancel: both can go.
/// let h = array![[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
/// let weights = array![[2.0, 2.0, 1.0]];
/// let magnitude = array![[true, false, true]];
/// let swaps = Swaps { limit: 1, group: 3 };
/// let mask = swap_refine(weights.view(), magnitude.view(), h.view(), swaps, Bounds::default())?;
/// assert_eq!(mask, array![[true, true, false]]);
/// # Ok::<(), sparsegpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if the shapes do not match, [`Error::InvalidSetting`] for a group of 0 columns.
pub fn swap_refine(
    weights: ArrayView2<'_, f32>,
    pruned: ArrayView2<'_, bool>,
    h: ArrayView2<'_, f64>,
    swaps: Swaps,
    bounds: Bounds<'_>,
) -> Result<Array2<bool>> {
    let (rows, cols) = weights.dim();
    square(h, cols)?;
    same_shape("the mask", pruned, weights.dim())?;
    bounds.check(weights.dim())?;
    if swaps.group == 0 {
        return Err(Error::setting(
            "columns among which to swap",
            "at least 1",
            swaps.group,
        ));
    }
    let refined = map_rows(
        rows,
        || (),
        |(), row| {
            let is_free = |at| !bounds.is_forced((row, at)) && !bounds.is_protected((row, at));
            let free = (0..cols).map(is_free).collect();
            let mut state = Row::new(weights.row(row), pruned.row(row), free, h);
            state.refine(swaps);
            state.pruned
        },
    );
    let mut mask = pruned.to_owned();
    for (mut to, row) in mask.rows_mut().into_iter().zip(refined) {
        to.assign(&ArrayView1::from(&row));
    }
    Ok(mask)
}

/// `prune` goes in place of `keep`.
#[derive(Clone, Copy, Debug)]
struct Swap {
    prune: usize,
    keep: usize,
    /// ΔL.
    change: f64,
}

/// A row and what it loses.
#[derive(Debug)]
struct Row<'a> {
    weights: Vec<f64>,
    pruned: Vec<bool>,
    /// Whether a weight may be swapped.
    free: Vec<bool>,
    h: ArrayView2<'a, f64>,
    /// c = eH.
    products: Vec<f64>,
}

impl<'a> Row<'a> {
    fn new(
        weights: ArrayView1<'_, f32>,
        pruned: ArrayView1<'_, bool>,
        free: Vec<bool>,
        h: ArrayView2<'a, f64>,
    ) -> Self {
        let mut row = Self {
            weights: weights.iter().map(|&weight| f64::from(weight)).collect(),
            pruned: pruned.to_vec(),
            free,
            h,
            products: vec![0.0; weights.len()],
        };
        for column in (0..weights.len()).filter(|&at| pruned[at]) {
            row.add(row.weights[column], column);
        }
        row
    }

    /// c ← c + factor·H_column
    fn add(&mut self, factor: f64, column: usize) {
        for (product, h) in self.products.iter_mut().zip(self.h.row(column)) {
            *product += factor * h;
        }
    }

    /// eHeᵀ
    fn loss(&self) -> f64 {
        let terms = self.weights.iter().zip(&self.products).zip(&self.pruned);
        terms
            .filter(|&(_, &pruned)| pruned)
            .map(|((weight, product), _)| weight * product)
            .sum()
    }

    fn refine(&mut self, swaps: Swaps) {
        let cols = self.weights.len();
        let least = LEAST_GAIN * self.loss();
        for _ in 0..swaps.limit {
            let groups = (0..cols)
                .step_by(swaps.group)
                .map(|first| first..(first + swaps.group).min(cols));
            let best = groups
                .filter_map(|group| self.best(group))
                .min_by(|a, b| a.change.total_cmp(&b.change));
            match best {
                Some(swap) if -swap.change > least => self.apply(swap),
                _ => return,
            }
        }
    }

    /// The terms of ΔL that know of one weight only, for pruning it or keeping it.
    fn alone(&self, column: usize) -> f64 {
        let (weight, product) = (self.weights[column], self.products[column]);
        let sign = if self.pruned[column] { -1.0 } else { 1.0 };
        weight * (sign * 2.0 * product + weight * self.h[[column, column]])
    }

    /// The swap that gains most, of those that gain; equal ones by the column that is kept last.
    fn best(&self, group: Range<usize>) -> Option<Swap> {
        let reach = |at: usize| self.weights[at].abs() * self.h[[at, at]].max(0.0).sqrt();
        let (pruned, kept): (Vec<usize>, Vec<usize>) = group
            .filter(|&at| self.free[at])
            .partition(|&at| self.pruned[at]);
        let pruned: Vec<(usize, f64)> = pruned.into_iter().map(|at| (at, self.alone(at))).collect();
        let least = pruned
            .iter()
            .map(|&(_, alone)| alone)
            .fold(f64::INFINITY, f64::min);
        let furthest = pruned.iter().map(|&(at, _)| reach(at)).fold(0.0, f64::max);
        // What pruning one changes, and what it changes at best together with keeping another.
        let mut kept: Vec<(f64, f64, usize)> = kept
            .into_iter()
            .map(|at| {
                let alone = self.alone(at);
                (alone + least - 2.0 * reach(at) * furthest, alone, at)
            })
            .collect();
        kept.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.2.cmp(&b.2)));
        let mut best: Option<Swap> = None;
        for (bound, alone, prune) in kept {
            let lowest = best.map_or(0.0, |swap| swap.change);
            if bound >= lowest {
                break;
            }
            let (h, twice) = (self.h.row(prune), 2.0 * self.weights[prune]);
            let changes = pruned.iter().map(|&(keep, of_keep)| Swap {
                prune,
                keep,
                change: alone + of_keep - twice * self.weights[keep] * h[keep],
            });
            best = changes
                .chain(best)
                .filter(|swap| swap.change < 0.0)
                .min_by(|a, b| a.change.total_cmp(&b.change));
        }
        best
    }

    fn apply(&mut self, swap: Swap) {
        self.add(self.weights[swap.prune], swap.prune);
        self.add(-self.weights[swap.keep], swap.keep);
        self.pruned[swap.prune] = true;
        self.pruned[swap.keep] = false;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::Array1;
    use proptest::prelude::*;

    use super::super::truth;
    use super::*;

    /// eHeᵀ, summed anew.
    fn loss(weights: ArrayView1<'_, f32>, pruned: &[bool], h: &Array2<f64>) -> f64 {
        let e: Array1<f64> = weights
            .iter()
            .zip(pruned)
            .map(|(&weight, &pruned)| if pruned { f64::from(weight) } else { 0.0 })
            .collect();
        e.dot(&h.dot(&e))
    }

    fn swapped(pruned: &[bool], prune: usize, keep: usize) -> Vec<bool> {
        let mut pruned = pruned.to_vec();
        (pruned[prune], pruned[keep]) = (true, false);
        pruned
    }

    fn zeros(pruned: impl IntoIterator<Item = bool>) -> usize {
        pruned.into_iter().filter(|&pruned| pruned).count()
    }

    proptest! {
        #[test]
        fn the_best_swap_is_the_best_and_changes_what_it_says(
            (seed, cols) in (0_u64..1000, 2_usize..14),
            bits in any::<u16>(),
            frozen in any::<u16>(),
        ) {
            let (weights, h) = truth::layer(1, cols, seed);
            let pruned: Vec<bool> = (0..cols).map(|at| bits >> at & 1 == 1).collect();
            let free: Vec<bool> = (0..cols).map(|at| frozen >> at & 3 != 3).collect();
            let view = ArrayView1::from(&pruned);
            let row = Row::new(weights.row(0), view, free.clone(), h.view());
            let before = loss(weights.row(0), &pruned, &h);
            let scale = before + loss(weights.row(0), &vec![true; cols], &h);
            let mut least = 0.0_f64;
            for prune in (0..cols).filter(|&at| free[at] && !pruned[at]) {
                for keep in (0..cols).filter(|&at| free[at] && pruned[at]) {
                    let after = swapped(&pruned, prune, keep);
                    least = least.min(loss(weights.row(0), &after, &h) - before);
                }
            }
            match row.best(0..cols) {
                None => prop_assert!(least > -1e-9 * scale, "{least} was missed"),
                Some(swap) => {
                    prop_assert!((swap.change - least).abs() < 1e-9 * scale);
                    let after = swapped(&pruned, swap.prune, swap.keep);
                    let after = loss(weights.row(0), &after, &h);
                    prop_assert!((after - before - swap.change).abs() < 1e-9 * scale);
                    let mut row = row;
                    row.apply(swap);
                    prop_assert!((row.loss() - after).abs() < 1e-9 * scale);
                }
            }
        }

        #[test]
        fn no_row_loses_more_and_counts_stay(
            seed in 0_u64..1000,
            group in prop::sample::select(vec![2_usize, 4, 12]),
            limit in 0_usize..20,
            bits in any::<u64>(),
        ) {
            let (weights, h) = truth::layer(3, 12, seed);
            let pruned = Array2::from_shape_fn((3, 12), |(row, col)| {
                bits >> (12 * row + col) & 1 == 1
            });
            let forced = Array2::from_shape_fn((3, 12), |(row, col)| row == 1 && pruned[[row, col]]);
            let protected = Array2::from_shape_fn((3, 12), |at| at.1 == 5 && !pruned[at]);
            let bounds = Bounds {
                forced: Some(forced.view()),
                protected: Some(protected.view()),
            };
            let swaps = Swaps { limit, group };
            let mask =
                swap_refine(weights.view(), pruned.view(), h.view(), swaps, bounds).unwrap();
            for row in 0..3 {
                let (before, after) = (pruned.row(row).to_vec(), mask.row(row).to_vec());
                for (before, after) in before.chunks(group).zip(after.chunks(group)) {
                    prop_assert_eq!(zeros(before.iter().copied()), zeros(after.iter().copied()));
                }
                let (lost, loses) = (
                    loss(weights.row(row), &before, &h),
                    loss(weights.row(row), &after, &h),
                );
                prop_assert!(loses <= lost * (1.0 + 1e-12), "{} above {}", loses, lost);
                if limit == 0 || row == 1 {
                    prop_assert_eq!(before, after);
                }
            }
            for (at, &pruned) in mask.indexed_iter() {
                prop_assert!(!(pruned && protected[at]));
            }
        }
    }

    #[test]
    fn swaps_end_where_none_gains() {
        let (weights, h) = truth::layer(2, 16, 7);
        let pruned = Array2::from_shape_fn((2, 16), |(row, col)| (row + col) % 2 == 0);
        let swaps = Swaps {
            limit: usize::MAX,
            group: 16,
        };
        let refine = |mask: &Array2<bool>| {
            let bounds = Bounds::default();
            swap_refine(weights.view(), mask.view(), h.view(), swaps, bounds).unwrap()
        };
        let mask = refine(&pruned);
        assert_ne!(mask, pruned);
        assert_eq!(refine(&mask), mask);
        let zero = Swaps { group: 0, ..swaps };
        let error = swap_refine(
            weights.view(),
            pruned.view(),
            h.view(),
            zero,
            Bounds::default(),
        );
        assert!(matches!(error, Err(Error::InvalidSetting { .. })));
    }
}
