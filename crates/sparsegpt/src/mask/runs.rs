//! Runs of consecutive weights that are pruned together.

use ndarray::{Array2, s};

use super::BlockScores;

/// The `count` runs of `run` columns with the least sum of saliencies that hold no protected weight, as a mask
/// (`true` = prune). Ties go by column, then row.
pub(crate) fn lowest(scores: &BlockScores<'_>, run: usize, count: usize) -> Array2<bool> {
    let (rows, width) = scores.weights.dim();
    let mut runs: Vec<(f64, usize, usize)> = free(scores, run)
        .map(|(first, row)| {
            let sum = (first..first + run)
                .map(|column| scores.saliency(row, column))
                .sum();
            (sum, first, row)
        })
        .collect();
    let order = |a: &(f64, usize, usize), b: &(f64, usize, usize)| {
        a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
    };
    if count < runs.len() {
        runs.select_nth_unstable_by(count, order);
        runs.truncate(count);
    }
    let mut mask = Array2::from_elem((rows, width), false);
    for (_, first, row) in runs {
        mask.slice_mut(s![row, first..first + run]).fill(true);
    }
    mask
}

/// Runs without a protected weight, as (first column, row).
pub(crate) fn free(scores: &BlockScores<'_>, run: usize) -> impl Iterator<Item = (usize, usize)> {
    let (rows, width) = scores.weights.dim();
    (0..width).step_by(run).flat_map(move |first| {
        (0..rows)
            .filter(move |&row| {
                !(first..first + run).any(|column| scores.is_protected(row, column))
            })
            .map(move |row| (first, row))
    })
}
