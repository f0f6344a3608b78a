//! The choice of the weights to prune.

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::backend::SelectRule;

/// The mask (true = prune) that [`Select`](crate::backend::Select) describes, for the given columns.
///
/// # Panics
/// If the shapes do not match.
#[must_use]
pub fn select(
    weights: ArrayView2<'_, f32>,
    scales: ArrayView1<'_, f32>,
    rule: SelectRule<'_>,
    forced: Option<ArrayView2<'_, bool>>,
    protected: Option<ArrayView2<'_, bool>>,
) -> Array2<bool> {
    let (rows, width) = weights.dim();
    let mut mask = Array2::from_elem((rows, width), false);
    let mut choose = |candidates: &mut dyn Iterator<Item = (usize, usize)>, count: usize| {
        let mut order: Vec<(usize, usize)> = candidates
            .filter(|&at| !protected.as_ref().is_some_and(|protected| protected[at]))
            .collect();
        let key = |at: (usize, usize)| {
            let free = !forced.as_ref().is_some_and(|forced| forced[at]);
            (free, (weights[at] / scales[at.1]).abs())
        };
        order.sort_by(|&a, &b| {
            let ((free_a, saliency_a), (free_b, saliency_b)) = (key(a), key(b));
            free_a
                .cmp(&free_b)
                .then(saliency_a.total_cmp(&saliency_b))
                .then((a.1, a.0).cmp(&(b.1, b.0)))
        });
        for &at in order.iter().take(count) {
            mask[at] = true;
        }
    };
    match rule {
        SelectRule::Lowest { count } => {
            choose(
                &mut (0..rows).flat_map(|row| (0..width).map(move |col| (row, col))),
                count,
            );
        }
        SelectRule::LowestPerRow { counts } => {
            for row in 0..rows {
                choose(&mut (0..width).map(|col| (row, col)), counts[row]);
            }
        }
        SelectRule::NofM { zeros, group } => {
            assert_eq!(
                width % group,
                0,
                "the width must be a multiple of the group"
            );
            for row in 0..rows {
                for start in (0..width).step_by(group) {
                    choose(&mut (start..start + group).map(|col| (row, col)), zeros);
                }
            }
        }
    }
    mask
}
