//! How many zeros a layer may have, and how real shares become integers that add up.

use super::Budget;
use crate::driver::PlannedLayer;
use crate::error::{Error, Result};
use crate::solver::LayerSettings;

/// A layer to which zeros are allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerRoom {
    /// The layer's name.
    pub name: String,
    /// Its block.
    pub block: usize,
    /// Rows: output features.
    pub rows: usize,
    /// Columns: input features.
    pub cols: usize,
    /// The number of zeros is a multiple of this.
    pub step: u64,
    /// Fewest zeros.
    pub low: u64,
    /// Most zeros.
    pub high: u64,
}

impl LayerRoom {
    /// Rows times columns.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.rows as u64 * self.cols as u64
    }

    /// Whether the layer can have this many zeros.
    #[must_use]
    pub fn takes(&self, zeros: u64) -> bool {
        (self.low..=self.high).contains(&zeros) && zeros.is_multiple_of(self.step)
    }

    /// The largest possible number of zeros at or below this fraction of the layer, within its bounds.
    fn at_or_below(&self, fraction: f64) -> u64 {
        let zeros = (fraction * self.weights() as f64).max(0.0) as u64;
        (zeros / self.step * self.step).clamp(self.low, self.high)
    }
}

/// The layers that a plan treats, with what the budget allows each.
pub(super) fn rooms(planned: &[Vec<PlannedLayer>], budget: &Budget) -> Result<Vec<LayerRoom>> {
    let mut rooms = Vec::new();
    for (block, layers) in planned.iter().enumerate() {
        for planned in layers {
            let Some(settings) = &planned.settings else {
                continue;
            };
            let layer = &planned.layer;
            let step = step(settings, layer.rows, layer.cols)
                .ok_or_else(|| no_choice(&layer.name, settings))?;
            let weights = layer.rows as u64 * layer.cols as u64;
            let low = budget.floor.count(weights) / step * step;
            // ceil(ceiling · weights) to a whole step above, as far as the layer goes.
            let below = budget.ceiling.count(weights) / step * step;
            let high = if (below as f64) < budget.ceiling.fraction() * weights as f64 - 1e-6 {
                (below + step).min(weights / step * step)
            } else {
                below
            };
            rooms.push(LayerRoom {
                name: layer.name.clone(),
                block,
                rows: layer.rows,
                cols: layer.cols,
                step,
                low,
                high,
            });
        }
    }
    Ok(rooms)
}

/// In which portions a layer's zeros come.
fn step(settings: &LayerSettings, rows: usize, cols: usize) -> Option<u64> {
    let of_pattern = settings.mask.zeros_step(rows, cols)?.max(1);
    // Wanda reads a sparsity of the layer as one of each row; blocks are no such sparsity.
    let by_row = settings.compares_within_rows() && settings.mask.group() == 1;
    Some(if by_row {
        least_common_multiple(of_pattern, rows as u64)?
    } else {
        of_pattern
    })
}

pub(super) fn no_choice(layer: &str, settings: &LayerSettings) -> Error {
    Error::incompatible(
        layer,
        format!(
            "pattern {} has no sparsity to allocate: it fixes the number of zeros itself",
            settings.mask.describe()
        ),
        "use a pattern with a percentage (50%, row:50%, block:16:50%), or skip the layer",
    )
}

/// `None` where it is too large to count.
pub(super) fn least_common_multiple(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).checked_mul(b)
}

/// Zeros of each layer from ideal sparsities, one a layer (any real numbers): in all `zeros`, or as much of it as steps
/// larger than 1 allow.
///
/// All sparsities are moved by the same t, chosen so that Σ clamp((s + t) · weights, low, high) is `zeros`. Then each
/// is rounded down to a whole step, and what is left goes, a step at a time, to the layers that lost most of a
/// step by it; ties go to the earlier layer. Takes a time proportional to the number of layers, sorting aside.
///
/// # Errors
/// If the bounds of the layers do not leave room for `zeros`, or the numbers are not one a layer and finite.
pub fn apportion(layers: &[LayerRoom], sparsities: &[f64], zeros: u64) -> Result<Vec<u64>> {
    if sparsities.len() != layers.len() || sparsities.iter().any(|s| !s.is_finite()) {
        return Err(Error::setting(
            "ideal sparsities",
            format!("{} finite numbers, one a layer", layers.len()),
            format!("{sparsities:?}"),
        ));
    }
    let (low, high) = layers.iter().fold((0, 0), |(low, high), layer| {
        (low + layer.low, high + layer.high)
    });
    let largest_step = layers.iter().map(|layer| layer.step).max().unwrap_or(1);
    if zeros < low || zeros >= high.saturating_add(largest_step) {
        return Err(Error::setting(
            "zeros of the whole model",
            format!("from {low} to {high}, which floor and ceiling of the layers leave"),
            zeros,
        ));
    }
    let real = |layer: &LayerRoom, sparsity: f64| {
        (sparsity * layer.weights() as f64).clamp(layer.low as f64, layer.high as f64)
    };
    let moved = |t: f64| -> f64 {
        let ideal = layers.iter().zip(sparsities);
        ideal
            .map(|(layer, sparsity)| real(layer, sparsity + t))
            .sum()
    };
    let reach = 1.0 + sparsities.iter().fold(0.0_f64, |most, s| most.max(s.abs()));
    let (mut below, mut above) = (-reach, reach);
    for _ in 0..128 {
        let middle = 0.5 * (below + above);
        if moved(middle) < zeros as f64 {
            below = middle;
        } else {
            above = middle;
        }
    }
    let mut counts: Vec<u64> = layers
        .iter()
        .zip(sparsities)
        .map(|(layer, sparsity)| layer.at_or_below(sparsity + above))
        .collect();
    let mut order: Vec<(f64, usize)> = layers
        .iter()
        .zip(sparsities)
        .zip(&counts)
        .map(|((layer, sparsity), &count)| {
            (real(layer, sparsity + above) - count as f64) / layer.step as f64
        })
        .zip(0..)
        .collect();
    order.sort_by(|(a, i), (b, j)| b.total_cmp(a).then(i.cmp(j)));
    let mut given: u64 = counts.iter().sum();
    // Where rounding of the real shares gave a zero too much, those that lost least give it back.
    while given > zeros {
        for &(_, at) in order.iter().rev() {
            let layer = &layers[at];
            if given > zeros && counts[at] >= layer.low + layer.step {
                counts[at] -= layer.step;
                given -= layer.step;
            }
        }
    }
    loop {
        let before = given;
        for &(_, at) in &order {
            let layer = &layers[at];
            if given + layer.step <= zeros && counts[at] + layer.step <= layer.high {
                counts[at] += layer.step;
                given += layer.step;
            }
        }
        if given == before {
            return Ok(counts);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn room(weights: u64, step: u64, low: u64, high: u64) -> LayerRoom {
        LayerRoom {
            name: String::new(),
            block: 0,
            rows: 1,
            cols: weights as usize,
            step,
            low,
            high,
        }
    }

    proptest! {
        #[test]
        fn shares_add_up_within_their_bounds(
            layers in proptest::collection::vec((1_u64..5000, 0_u64..=100, 0_u64..=100, -1.0_f64..2.0), 1..20),
            at in 0.0_f64..=1.0,
        ) {
            let (rooms, ideal): (Vec<_>, Vec<_>) = layers
                .iter()
                .map(|&(weights, a, b, sparsity)| {
                    let (low, high) = (a.min(b) * weights / 100, a.max(b) * weights / 100);
                    (room(weights, 1, low, high), sparsity)
                })
                .unzip();
            let (low, high) = rooms.iter().fold((0, 0), |(l, h), room| (l + room.low, h + room.high));
            let zeros = low + (at * (high - low) as f64) as u64;
            let counts = apportion(&rooms, &ideal, zeros).unwrap();
            prop_assert_eq!(counts.iter().sum::<u64>(), zeros);
            for (room, &count) in rooms.iter().zip(&counts) {
                prop_assert!(room.takes(count));
            }
            prop_assert!(apportion(&rooms, &ideal, high + 1).is_err());
        }

        #[test]
        fn steps_leave_less_than_the_largest_over(
            layers in proptest::collection::vec((1_u64..50, 1_u64..40), 1..20),
            percent in 0_u64..=100,
        ) {
            let rooms: Vec<_> = layers
                .iter()
                .map(|&(step, count)| room(step * count, step, 0, step * count))
                .collect();
            let zeros = rooms.iter().map(LayerRoom::weights).sum::<u64>() * percent / 100;
            let ideal = vec![percent as f64 / 100.0; rooms.len()];
            let counts = apportion(&rooms, &ideal, zeros).unwrap();
            let given: u64 = counts.iter().sum();
            let largest = rooms.iter().map(|room| room.step).max().unwrap();
            prop_assert!(given <= zeros && zeros - given < largest);
            prop_assert!(rooms.iter().zip(&counts).all(|(room, &count)| room.takes(count)));
        }
    }

    #[test]
    fn the_largest_fractions_get_what_is_left() {
        let rooms = [room(10, 1, 0, 10), room(15, 1, 0, 15), room(13, 1, 0, 13)];
        // 3.3, 4.95, 4.29: 11 are given, 12 wanted.
        assert_eq!(apportion(&rooms, &[0.33; 3], 12).unwrap(), [3, 5, 4]);
    }

    #[test]
    fn multiples_in_common() {
        assert_eq!(least_common_multiple(4, 6), Some(12));
        assert_eq!(least_common_multiple(1, 7), Some(7));
        assert_eq!(least_common_multiple(u64::MAX, u64::MAX - 1), None);
    }
}
