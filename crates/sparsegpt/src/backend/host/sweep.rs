//! The fused sweep over the columns of a block.

use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};

use crate::backend::{GridKind, SelectRule};

/// What a host sweep prunes; see [`PruneRef`](crate::backend::PruneRef).
#[derive(Clone, Copy, Debug)]
pub enum SweepPrune<'a> {
    /// Nothing.
    Keep,
    /// The weights marked `true` (rows x width).
    Fixed(ArrayView2<'a, bool>),
    /// `zeros` in each `group` columns, chosen on the way.
    NofM {
        /// Weights to prune in each group.
        zeros: usize,
        /// Columns in a group.
        group: usize,
    },
}

/// What a host sweep rounds to; see [`GridRef`](crate::backend::GridRef).
#[derive(Clone, Copy, Debug)]
pub struct SweepGrid<'a> {
    /// What kind of levels.
    pub kind: GridKind<'a>,
    /// rows x groups.
    pub scale: ArrayView2<'a, f32>,
    /// rows x groups.
    pub zero: ArrayView2<'a, f32>,
    /// The group of each column of the sweep.
    pub groups: &'a [usize],
}

/// Arguments of [`update_rows`]: views of just the sweep's columns.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// Current weights, rows x width.
    pub weights: ArrayViewMut2<'a, f32>,
    /// The block of R, width x width; only the upper triangle is read.
    pub factor: ArrayView2<'a, f32>,
    /// Written, rows x width.
    pub errors: ArrayViewMut2<'a, f32>,
    /// Grows, one entry a row.
    pub losses: ArrayViewMut1<'a, f32>,
    /// What to prune.
    pub prune: SweepPrune<'a>,
    /// What to round to.
    pub grid: Option<SweepGrid<'a>>,
}

/// The sweep that [`UpdateRows`](crate::backend::UpdateRows) describes; returns the mask chosen on the way
/// for [`SweepPrune::NofM`].
///
/// # Panics
/// If the shapes do not match.
pub fn update_rows(sweep: Sweep<'_>) -> Option<Array2<bool>> {
    let Sweep {
        mut weights,
        factor,
        mut errors,
        mut losses,
        prune,
        grid,
    } = sweep;
    let (rows, width) = weights.dim();
    assert_eq!(factor.dim(), (width, width), "factor must be width x width");
    assert_eq!(errors.dim(), (rows, width), "errors must be rows x width");
    let diagonal = factor.diag().to_owned();
    let mut chosen = Array2::from_elem((rows, width), false);
    for row in 0..rows {
        let mut w = weights.row_mut(row);
        for j in 0..width {
            if let SweepPrune::NofM { zeros, group } = prune
                && j % group == 0
            {
                let columns = s![j..j + group];
                let choice = super::select(
                    w.slice(columns).insert_axis(Axis(0)),
                    diagonal.slice(columns),
                    SelectRule::NofM { zeros, group },
                    None,
                    None,
                );
                chosen
                    .slice_mut(s![row, j..j + group])
                    .assign(&choice.row(0));
            }
            let pruned = match prune {
                SweepPrune::Keep => false,
                SweepPrune::Fixed(mask) => mask[[row, j]],
                SweepPrune::NofM { .. } => chosen[[row, j]],
            };
            let quantized = match &grid {
                _ if pruned => 0.0,
                None => w[j],
                Some(grid) => {
                    let group = grid.groups[j];
                    round_to_grid(
                        grid.kind,
                        w[j],
                        grid.scale[[row, group]],
                        grid.zero[[row, group]],
                    )
                }
            };
            let error = (w[j] - quantized) / factor[[j, j]];
            for k in j + 1..width {
                w[k] -= error * factor[[j, k]];
            }
            w[j] = quantized;
            errors[[row, j]] = error;
            losses[row] += error * error;
        }
    }
    matches!(prune, SweepPrune::NofM { .. }).then_some(chosen)
}

/// The level of a grid nearest to `w`; see [`GridKind`].
#[must_use]
pub fn round_to_grid(kind: GridKind<'_>, w: f32, scale: f32, zero: f32) -> f32 {
    match kind {
        GridKind::Affine { max_code } => {
            let code = ((w / scale).round_ties_even() + zero).clamp(0.0, max_code as f32);
            (code - zero) * scale
        }
        GridKind::Codebook { levels } => scale * levels[nearest(levels, w / scale)],
    }
}

/// Index of the level nearest to `value`, the lower one of two equally near; `levels` ascend.
pub(crate) fn nearest(levels: &[f32], value: f32) -> usize {
    let above = levels.partition_point(|&level| level < value);
    if above == 0 {
        0
    } else if above == levels.len() || value - levels[above - 1] <= levels[above] - value {
        above - 1
    } else {
        above
    }
}
