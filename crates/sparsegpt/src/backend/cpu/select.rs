//! The choice of the weights to prune, without a full sort.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use super::lowest::{Candidates, lowest as lowest_of_block};
use crate::backend::{SelectRule, host};

/// As [`host::select`]; see there for the meaning.
pub(super) fn select(
    arch: pulp::Arch,
    weights: ArrayView2<'_, f32>,
    scales: ArrayView1<'_, f32>,
    rule: SelectRule<'_>,
    forced: Option<ArrayView2<'_, bool>>,
    protected: Option<ArrayView2<'_, bool>>,
) -> Array2<bool> {
    let (rows, width) = weights.dim();
    // A key orders by (free before forced, saliency, column, row). The saliency is not negative, so its
    // bits order as its value; position fits 32 bits for any layer up to 2³² weights.
    let key = |row: usize, col: usize| -> Option<u64> {
        if protected
            .as_ref()
            .is_some_and(|protected| protected[[row, col]])
        {
            return None;
        }
        let free = !forced.as_ref().is_some_and(|forced| forced[[row, col]]);
        let saliency = (weights[[row, col]] / scales[col]).abs();
        let position = (col * rows + row) as u64;
        Some(u64::from(free) << 63 | u64::from(saliency.to_bits()) << 32 | position)
    };
    if u32::try_from(rows * width).is_err() {
        return host::select(weights, scales, rule, forced, protected);
    }
    if let SelectRule::Lowest { count } = rule {
        let candidates = Candidates {
            weights,
            scales,
            forced,
            protected,
        };
        if let Some(mask) = lowest_of_block(arch, candidates, count) {
            return mask;
        }
    }
    let mut mask = Array2::from_elem((rows, width), false);
    match rule {
        SelectRule::Lowest { count } => {
            let mut keys: Vec<u64> = (0..width)
                .into_par_iter()
                .flat_map_iter(|col| (0..rows).filter_map(move |row| key(row, col)))
                .collect();
            for &chosen in lowest(&mut keys, count) {
                let position = (chosen & u64::from(u32::MAX)) as usize;
                mask[[position % rows, position / rows]] = true;
            }
        }
        SelectRule::LowestPerRow { counts } => {
            for_each_row(&mut mask, |row, mask| {
                let mut keys: Vec<u64> = (0..width).filter_map(|col| key(row, col)).collect();
                for &chosen in lowest(&mut keys, counts[row]) {
                    mask[(chosen & u64::from(u32::MAX)) as usize / rows] = true;
                }
            });
        }
        SelectRule::NofM { zeros, group } => {
            for_each_row(&mut mask, |row, mask| {
                let mut keys = Vec::with_capacity(group);
                for start in (0..width).step_by(group) {
                    keys.clear();
                    keys.extend((start..start + group).filter_map(|col| key(row, col)));
                    for &chosen in lowest(&mut keys, zeros) {
                        mask[(chosen & u64::from(u32::MAX)) as usize / rows] = true;
                    }
                }
            });
        }
    }
    mask
}

/// The `count` lowest keys, in no particular order.
fn lowest(keys: &mut [u64], count: usize) -> &[u64] {
    if count == 0 {
        return &[];
    }
    if count < keys.len() {
        keys.select_nth_unstable(count - 1);
    }
    &keys[..count.min(keys.len())]
}

fn for_each_row(mask: &mut Array2<bool>, step: impl Fn(usize, &mut [bool]) + Sync + Send) {
    let width = mask.len_of(Axis(1));
    if let Some(values) = mask.as_slice_mut() {
        values
            .par_chunks_mut(width)
            .enumerate()
            .for_each(|(row, mask)| step(row, mask));
    }
}
