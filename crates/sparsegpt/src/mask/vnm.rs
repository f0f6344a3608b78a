//! V:N:M: the same columns for some rows, and N zeros in M within each.

use ndarray::{Array2, ArrayView2};

use super::BlockScores;
use crate::error::{Error, Result};

/// The zeros of a mask that stand in columns which none of a block's rows keeps. A row without zeros is a protected one, and has no say.
pub(super) fn outside_survivors(
    pruned: ArrayView2<'_, bool>,
    (block_rows, group): (usize, usize),
) -> Array2<bool> {
    let (rows, width) = pruned.dim();
    let mut outside = Array2::from_elem((rows, width), false);
    for first_row in (0..rows).step_by(block_rows) {
        let block = first_row..(first_row + block_rows).min(rows);
        for first in (0..width).step_by(group) {
            let columns = first..(first + group).min(width);
            let has_zeros = |&row: &usize| columns.clone().any(|column| pruned[[row, column]]);
            let free: Vec<usize> = block.clone().filter(has_zeros).collect();
            for column in columns.clone() {
                if free.iter().all(|&row| pruned[[row, column]]) {
                    free.iter().for_each(|&row| outside[[row, column]] = true);
                }
            }
        }
    }
    outside
}

/// The mask of some columns, a multiple of M of them, `true` = prune. Ties go to the earlier column.
pub(super) fn choose(
    layer: &str,
    scores: &BlockScores<'_>,
    (block_rows, zeros, group): (usize, usize, usize),
) -> Result<Array2<bool>> {
    let (rows, width) = scores.weights.dim();
    let kept = group - zeros;
    let mut mask = Array2::from_elem((rows, width), false);
    for first_row in (0..rows).step_by(block_rows) {
        let block = first_row..(first_row + block_rows).min(rows);
        for first in (0..width).step_by(group) {
            let columns = first..(first + group).min(width);
            let protected = columns
                .clone()
                .filter(|&column| (0..rows).all(|row| scores.is_protected(row, column)))
                .count();
            if protected > kept {
                return Err(Error::incompatible(
                    layer,
                    format!(
                        "V:N:M leaves {kept} of {group} columns in a row, and {protected} of them are protected"
                    ),
                    "protect less or ask for fewer zeros",
                ));
            }
            // A protected row keeps all of its weights and has no say in the columns of the others.
            let free: Vec<usize> = block
                .clone()
                .filter(|&row| {
                    !columns
                        .clone()
                        .all(|column| scores.is_protected(row, column))
                })
                .collect();
            let column_scores = columns.clone().map(|column| {
                free.iter()
                    .map(|&row| guarded(scores, row, column))
                    .sum::<f64>()
            });
            let mut surviving: Vec<(usize, f64)> = columns.clone().zip(column_scores).collect();
            drop_lowest(&mut surviving, group - 2 * kept);
            for row in free {
                let mut left: Vec<(usize, f64)> = surviving
                    .iter()
                    .map(|&(column, _)| (column, guarded(scores, row, column)))
                    .collect();
                drop_lowest(&mut left, kept);
                mask.row_mut(row)
                    .slice_mut(ndarray::s![columns.clone()])
                    .fill(true);
                for (column, _) in left {
                    mask[[row, column]] = false;
                }
            }
        }
    }
    Ok(mask)
}

/// The saliency; without bound for a protected weight.
fn guarded(scores: &BlockScores<'_>, row: usize, column: usize) -> f64 {
    if scores.is_protected(row, column) {
        f64::INFINITY
    } else {
        scores.saliency(row, column)
    }
}

/// Takes out the `count` columns of the lowest score, of equals the earlier one.
fn drop_lowest(columns: &mut Vec<(usize, f64)>, count: usize) {
    columns.sort_by(|(a, x), (b, y)| x.total_cmp(y).then(a.cmp(b)));
    columns.drain(..count);
}
