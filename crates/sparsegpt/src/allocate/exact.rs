//! Losses measured at several sparsities, and the division with the least sum.

use super::room::least_common_multiple;
use super::{Allocator, Budget, LayerLoss, LayerRoom, Prediction, Shares, Survey, apportion};
use crate::error::{Error, Result};

/// How the losses of layers are made comparable before they are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum LossScale {
    /// Over tr(W H Wᵀ), the energy of the layer's output, and times the layer's number of weights: layers whose outputs suffer
    /// alike get the same sparsity, whatever their size.
    #[default]
    Weighted,
    /// Over tr(W H Wᵀ): every layer's loss goes from 0 to about 1. A zero in a small layer then costs more than in
    /// a large one, and the small ones stay denser.
    Relative,
    /// As it is, tr(ΔW H ΔWᵀ): layers with large outputs, often the last blocks, decide nearly alone.
    Absolute,
}

/// The division with the least sum of measured losses.
///
/// Every layer is solved at `points` sparsities between floor and ceiling, its inputs being those of the dense
/// model; all of them share one factor. Between neighbouring points its loss e_l(z) is taken as linear in the number of
/// zeros z. Then Σ e_l(z_l) becomes as small as it can with Σ z_l = floor(p · weights) and z_l = u_l + k_l · q, where u
/// is the uniform division, k_l are integers with Σ k_l = 0, and q is the quantum, about weights / `resolution`. So
/// the budget is met exactly, the uniform division is among the candidates, and what is predicted is never
/// above it; with q = 1 it is the best of all divisions in integers.
///
/// The minimum is found by dynamic programming over the layers: the least sum of the first l layers for each
/// Σ k so far. With K_l choices in layer l and S sums within reach that takes Σ S·K_l ≤ `resolution`² steps and S numbers a
/// layer, whatever their number.
/// (Layer-wise losses and dynamic programming: OBC, Frantar et al. 2022, and SPDY, Frantar & Alistarh 2022, for
/// time budgets; for counts of zeros of one-shot pruning no other tool has it.)
///
/// Costs one calibration pass and `points` solutions of every layer. The losses of layers are added as if they did not
/// depend on each other, and a low sum is not yet a low perplexity (`docs/method.md` has a model on which the uniform
/// division stays ahead): judge by the model. Bounds (`Budget::with_floor`, `with_ceiling`) keep single layers from being
/// emptied, and put the points where they are needed.
///
/// ```
/// use sparsegpt::allocate::{Exact, LossScale};
/// let exact = Exact { points: 5, scale: LossScale::Absolute, ..Exact::default() };
/// # let _ = exact;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Exact {
    /// Sparsities at which each layer is solved, floor and ceiling included. At least 2.
    pub points: usize,
    /// How losses are compared.
    pub scale: LossScale,
    /// Quanta in the model, about. At least 1; where the model has no more weights than this, every division is looked at.
    pub resolution: u64,
}

impl Default for Exact {
    /// 9 points, weighted losses, 8192 quanta.
    fn default() -> Self {
        Self {
            points: 9,
            scale: LossScale::Weighted,
            resolution: 8192,
        }
    }
}

impl Allocator for Exact {
    fn describe(&self) -> String {
        let scale = match self.scale {
            LossScale::Relative => "relative",
            LossScale::Weighted => "weighted",
            LossScale::Absolute => "absolute",
        };
        format!("exact ({scale} losses at {} sparsities)", self.points)
    }

    fn needs_calibration(&self) -> bool {
        true
    }

    fn allocate(&self, model: &mut dyn Survey, budget: &Budget) -> Result<Shares> {
        if self.points < 2 {
            return Err(Error::setting(
                "sparsities to measure",
                "at least 2",
                self.points,
            ));
        }
        if self.resolution == 0 {
            return Err(Error::setting("quanta in the model", "at least 1", 0));
        }
        let layers = model.layers().to_vec();
        let ideal = vec![budget.sparsity.fraction(); layers.len()];
        let uniform = apportion(&layers, &ideal, budget.zeros(&layers))?;
        let quantum = self.quantum(&layers)?;
        let zeros: Vec<Vec<u64>> = layers.iter().map(|layer| self.measured(layer)).collect();
        let curves: Vec<Curve> = model
            .losses(&zeros)?
            .iter()
            .zip(&layers)
            .map(|(losses, layer)| Curve::new(losses, self.scale, layer.weights()))
            .collect();
        let loss = |layer: usize, zeros: u64| curves[layer].at(zeros);
        let zeros = least_sum(&layers, &uniform, quantum, &loss);
        let losses = |zeros: &[u64]| -> Vec<f64> {
            zeros
                .iter()
                .enumerate()
                .map(|(layer, &z)| loss(layer, z))
                .collect()
        };
        Ok(Shares {
            prediction: Some(Prediction {
                layers: losses(&zeros),
                uniform: losses(&uniform).iter().sum(),
            }),
            zeros,
        })
    }
}

impl Exact {
    /// A multiple of every layer's step, so that what one layer gives another can take.
    fn quantum(&self, layers: &[LayerRoom]) -> Result<u64> {
        let weights: u64 = layers.iter().map(LayerRoom::weights).sum();
        let step = layers
            .iter()
            .try_fold(1, |step, layer| least_common_multiple(step, layer.step))
            .ok_or_else(|| {
                Error::setting(
                    "zeros of a layer",
                    "portions with a common multiple below 2^64",
                    "larger ones",
                )
            })?;
        let multiple = weights
            .div_ceil(self.resolution.saturating_mul(step))
            .max(1);
        Ok(step.saturating_mul(multiple))
    }

    /// Evenly spaced numbers of zeros from the least to the most.
    fn measured(&self, layer: &LayerRoom) -> Vec<u64> {
        let last = self.points as u64 - 1;
        let range = layer.high - layer.low;
        (0..=last)
            .map(|point| {
                let exact = u128::from(range) * u128::from(point) / u128::from(last);
                layer.low + exact as u64 / layer.step * layer.step
            })
            .collect()
    }
}

/// A layer's loss over its zeros.
#[derive(Debug)]
struct Curve(Vec<(u64, f64)>);

impl Curve {
    fn new(losses: &[LayerLoss], scale: LossScale, weights: u64) -> Self {
        Self(
            losses
                .iter()
                .map(|loss| match scale {
                    LossScale::Relative => (loss.zeros, loss.relative),
                    LossScale::Weighted => (loss.zeros, loss.relative * weights as f64),
                    LossScale::Absolute => (loss.zeros, loss.error),
                })
                .collect(),
        )
    }

    /// Linear between measured points.
    fn at(&self, zeros: u64) -> f64 {
        let behind = self.0.partition_point(|&(known, _)| known < zeros);
        match (behind.checked_sub(1).map(|i| self.0[i]), self.0.get(behind)) {
            (Some((left, a)), Some(&(right, b))) => {
                let share = (zeros - left) as f64 / (right - left) as f64;
                a + share * (b - a)
            }
            (None, Some(&(_, loss))) | (Some((_, loss)), None) => loss,
            (None, None) => 0.0,
        }
    }
}

/// z_l = start_l + k_l · quantum within the layers' bounds, Σ k_l = 0, of the least Σ loss(l, z_l). Of equal sums
/// one with fewer zeros in later layers.
fn least_sum(
    layers: &[LayerRoom],
    start: &[u64],
    quantum: u64,
    loss: &dyn Fn(usize, u64) -> f64,
) -> Vec<u64> {
    let moves: Vec<(i64, i64)> = layers
        .iter()
        .zip(start)
        .map(|(layer, &start)| {
            let down = (start - layer.low) / quantum;
            let up = (layer.high - start) / quantum;
            (-(down as i64), up as i64)
        })
        .collect();
    // Sums that the layers behind can still bring back to 0.
    let mut reach = vec![(0_i64, 0_i64)];
    for &(down, up) in moves.iter().rev() {
        let &(low, high) = reach.last().unwrap_or(&(0, 0));
        reach.push((low - up, high - down));
    }
    reach.reverse();

    let mut best = Sums {
        first: 0,
        values: vec![0.0],
    };
    let mut chosen: Vec<(i64, Vec<i64>)> = Vec::with_capacity(layers.len());
    for (layer, &(down, up)) in moves.iter().enumerate() {
        let losses: Vec<f64> = (down..=up)
            .map(|k| {
                loss(
                    layer,
                    start[layer].saturating_add_signed(k * quantum as i64),
                )
            })
            .collect();
        let (low, high) = reach[layer + 1];
        let first = (best.first + down).max(low);
        let last = (best.last() + up).min(high);
        let mut values = Vec::with_capacity((last - first + 1).max(0) as usize);
        let mut choices = Vec::with_capacity(values.capacity());
        for sum in first..=last {
            let mut least = (f64::INFINITY, down);
            for k in down.max(sum - best.last())..=up.min(sum - best.first) {
                let total =
                    best.values[(sum - k - best.first) as usize] + losses[(k - down) as usize];
                if total < least.0 {
                    least = (total, k);
                }
            }
            values.push(least.0);
            choices.push(least.1);
        }
        chosen.push((first, choices));
        best = Sums { first, values };
    }
    let mut sum = 0;
    let mut zeros = start.to_vec();
    for (layer, (first, choices)) in chosen.iter().enumerate().rev() {
        let k = choices[(sum - first) as usize];
        zeros[layer] = start[layer].saturating_add_signed(k * quantum as i64);
        sum -= k;
    }
    zeros
}

/// The least loss for each sum of moves from `first` on.
#[derive(Debug)]
struct Sums {
    first: i64,
    values: Vec<f64>,
}

impl Sums {
    fn last(&self) -> i64 {
        self.first + self.values.len() as i64 - 1
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::room::tests::room;
    use super::*;

    /// The least sum over all divisions.
    fn brute_force(
        layers: &[LayerRoom],
        losses: &[Vec<f64>],
        zeros: u64,
        fits: &dyn Fn(usize, u64) -> bool,
    ) -> f64 {
        let Some((last, before)) = layers.split_last() else {
            return if zeros == 0 { 0.0 } else { f64::INFINITY };
        };
        let at = before.len();
        (last.low..=last.high.min(zeros))
            .filter(|&z| fits(at, z))
            .map(|z| brute_force(before, losses, zeros - z, fits) + losses[at][z as usize])
            .fold(f64::INFINITY, f64::min)
    }

    proptest! {
        #[test]
        fn no_division_is_better(
            layers in proptest::collection::vec(
                (1_u64..9, 0_u64..3, proptest::collection::vec(0.0_f64..1.0, 10)), 1..5),
            at in 0.0_f64..=1.0,
            quantum in 1_u64..4,
        ) {
            let rooms: Vec<_> = layers
                .iter()
                .map(|(weights, low, _)| room(*weights, 1, (*low).min(*weights), *weights))
                .collect();
            let losses: Vec<Vec<f64>> = layers.into_iter().map(|layer| layer.2).collect();
            let (low, high) = rooms.iter().fold((0, 0), |(l, h), room| (l + room.low, h + room.high));
            let budget = low + (at * (high - low) as f64) as u64;
            let start = apportion(&rooms, &vec![0.5; rooms.len()], budget).unwrap();
            let loss = |layer: usize, zeros: u64| losses[layer][zeros as usize];
            let zeros = least_sum(&rooms, &start, quantum, &loss);
            prop_assert_eq!(zeros.iter().sum::<u64>(), budget);
            let sum = |zeros: &[u64]| zeros.iter().enumerate().map(|(l, &z)| loss(l, z)).sum::<f64>();
            let fits = |layer: usize, z: u64| z.abs_diff(start[layer]).is_multiple_of(quantum);
            prop_assert_eq!(sum(&zeros), brute_force(&rooms, &losses, budget, &fits));
            prop_assert!(sum(&zeros) <= sum(&start));
            prop_assert!(rooms.iter().zip(&zeros).all(|(room, &zeros)| room.takes(zeros)));
        }
    }

    #[test]
    fn curves_are_linear_between_points() {
        let point = |zeros, error| LayerLoss {
            zeros,
            error,
            relative: error / 8.0,
        };
        let curve = Curve::new(
            &[point(0, 0.0), point(4, 2.0), point(4, 2.0), point(10, 8.0)],
            LossScale::Absolute,
            10,
        );
        assert_eq!(
            [0, 2, 4, 7, 10].map(|z| curve.at(z)),
            [0.0, 1.0, 2.0, 5.0, 8.0]
        );
        let relative = Curve::new(&[point(0, 0.0), point(10, 8.0)], LossScale::Relative, 10);
        assert_eq!(relative.at(5), 0.5);
    }

    #[test]
    fn quanta_are_multiples_of_all_steps() {
        let layers = [room(600, 4, 0, 600), room(600, 6, 0, 600)];
        let quantum = |resolution| {
            Exact {
                resolution,
                ..Exact::default()
            }
            .quantum(&layers)
            .unwrap()
        };
        assert_eq!(quantum(1000), 12);
        assert_eq!(quantum(50), 24);
    }
}
