//! OWL: layers with more outliers stay denser.

use ndarray::ArrayView2;

use super::{Allocator, Budget, LayerRoom, Shares, Survey, apportion};
use crate::error::{Error, Result};

/// Whose outliers are counted together, and who gets one sparsity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum OwlUnit {
    /// The layers of a block, as published.
    #[default]
    Block,
    /// Each layer.
    Layer,
}

/// Outlier-weighed layer-wise sparsity (OWL: Yin et al. 2023, arXiv 2310.05175).
///
/// With z_ij = |W_ij| · ‖X_j‖ of a unit u (a block, or a layer), D_u is the share of its weights with
/// z > M · mean(z). The shares are scaled to a width of 2λ, D̂_u = 2λ (D_u − min D) / (max D − min D), and
/// S_u = p − (D̂_u − mean D̂): the more outliers, the denser. All are then moved by the same amount, so that the model has
/// floor(p · weights) zeros (the published one is right on average over units, whatever their size).
///
/// One calibration pass over the dense model, no layer is solved; memory for the scores of one unit. For high
/// sparsities (the paper's are 70 % and more), where a uniform one ruins some blocks. It does not always help: the paper
/// has models that are worse with it, and [`Exact`](super::Exact) measures what OWL guesses.
///
/// ```
/// use sparsegpt::allocate::{Owl, OwlUnit};
/// let owl = Owl { lambda: 0.05, unit: OwlUnit::Layer, ..Owl::default() };
/// # let _ = owl;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Owl {
    /// M: a score this many times the mean is an outlier. More than 0.
    pub factor: f64,
    /// λ: sparsities lie in a range of 2λ. From 0 to 0.5.
    pub lambda: f64,
    /// Whose outliers are counted together.
    pub unit: OwlUnit,
}

impl Default for Owl {
    /// M = 5 and λ = 0.08, block by block.
    fn default() -> Self {
        Self {
            factor: 5.0,
            lambda: 0.08,
            unit: OwlUnit::Block,
        }
    }
}

impl Owl {
    fn validate(&self) -> Result<()> {
        if !(self.factor > 0.0 && self.factor.is_finite()) {
            return Err(Error::setting(
                "OWL outlier factor",
                "a number above 0",
                self.factor,
            ));
        }
        if !(0.0..=0.5).contains(&self.lambda) {
            return Err(Error::setting("OWL lambda", "from 0 to 0.5", self.lambda));
        }
        Ok(())
    }

    fn unit_of(&self, layers: &[LayerRoom], index: usize) -> usize {
        match self.unit {
            OwlUnit::Block => layers[index].block,
            OwlUnit::Layer => index,
        }
    }
}

impl Allocator for Owl {
    fn describe(&self) -> String {
        let Self { factor, lambda, .. } = self;
        match self.unit {
            OwlUnit::Block => format!("owl (M = {factor}, lambda = {lambda})"),
            OwlUnit::Layer => format!("owl (M = {factor}, lambda = {lambda}, layer by layer)"),
        }
    }

    fn needs_calibration(&self) -> bool {
        true
    }

    fn allocate(&self, model: &mut dyn Survey, budget: &Budget) -> Result<Shares> {
        self.validate()?;
        let layers = model.layers().to_vec();
        let mut outliers = vec![0.0; layers.len()];
        let mut unit = Unit::default();
        model.inputs(&mut |seen| {
            let of_layer = self.unit_of(&layers, seen.layer);
            if unit
                .layers
                .first()
                .is_some_and(|&(first, _)| self.unit_of(&layers, first) != of_layer)
            {
                unit.finish(self.factor, &mut outliers);
            }
            unit.add(seen.layer, seen.weights, seen.norms);
            Ok(())
        })?;
        unit.finish(self.factor, &mut outliers);
        let sparsities = self.sparsities(&layers, &outliers, budget.sparsity.fraction());
        Ok(Shares::new(apportion(
            &layers,
            &sparsities,
            budget.zeros(&layers),
        )?))
    }
}

impl Owl {
    /// S of each layer, from D of each.
    fn sparsities(&self, layers: &[LayerRoom], outliers: &[f64], sparsity: f64) -> Vec<f64> {
        // Each unit once.
        let mut ratios: Vec<(usize, f64)> = outliers
            .iter()
            .enumerate()
            .map(|(index, &ratio)| (self.unit_of(layers, index), ratio))
            .collect();
        ratios.dedup_by_key(|(unit, _)| *unit);
        let smallest = ratios.iter().map(|r| r.1).fold(f64::INFINITY, f64::min);
        let largest = ratios.iter().map(|r| r.1).fold(0.0, f64::max);
        let width = largest - smallest;
        let scaled = |ratio: f64| {
            if width > 0.0 {
                2.0 * self.lambda * (ratio - smallest) / width
            } else {
                0.0
            }
        };
        let mean = ratios.iter().map(|r| scaled(r.1)).sum::<f64>() / ratios.len().max(1) as f64;
        outliers
            .iter()
            .map(|&ratio| sparsity - (scaled(ratio) - mean))
            .collect()
    }
}

/// The scores of one unit.
#[derive(Debug, Default)]
struct Unit {
    /// Each with its scores.
    layers: Vec<(usize, Vec<f32>)>,
}

impl Unit {
    fn add(&mut self, index: usize, weights: ArrayView2<'_, f32>, norms: &[f64]) {
        let scores = weights
            .rows()
            .into_iter()
            .flat_map(|row| {
                let scores: Vec<f32> = row
                    .iter()
                    .zip(norms)
                    .map(|(weight, norm)| (f64::from(weight.abs()) * norm) as f32)
                    .collect();
                scores
            })
            .collect();
        self.layers.push((index, scores));
    }

    /// Counts the outliers and forgets the scores.
    fn finish(&mut self, factor: f64, outliers: &mut [f64]) {
        let scores = || self.layers.iter().flat_map(|(_, scores)| scores);
        let count = scores().count().max(1) as f64;
        let bound = factor * scores().map(|&score| f64::from(score)).sum::<f64>() / count;
        let above = scores().filter(|&&score| f64::from(score) > bound).count();
        for (index, _) in self.layers.drain(..) {
            outliers[index] = above as f64 / count;
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::super::room::tests::room;
    use super::*;

    #[test]
    fn outliers_are_counted_over_the_layers_of_a_unit() {
        let mut unit = Unit::default();
        // Scores 1, 2, 3, 30 and 4, 0: mean 40/6, two times that 13.3.
        unit.add(0, arr2(&[[1.0, -1.0], [3.0, 15.0]]).view(), &[1.0, 2.0]);
        unit.add(1, arr2(&[[4.0, 0.0]]).view(), &[1.0, 2.0]);
        let mut outliers = [0.0; 2];
        unit.finish(2.0, &mut outliers);
        assert_eq!(outliers, [1.0 / 6.0; 2]);
        assert!(unit.layers.is_empty());
    }

    #[test]
    fn sparsities_have_the_published_width_and_mean() {
        let owl = Owl {
            unit: OwlUnit::Layer,
            ..Owl::default()
        };
        let layers = [room(10, 1, 0, 10), room(10, 1, 0, 10), room(10, 1, 0, 10)];
        let found = owl.sparsities(&layers, &[0.01, 0.03, 0.02], 0.7);
        for (found, published) in found.iter().zip([0.78, 0.62, 0.70]) {
            assert!((found - published).abs() < 1e-12, "{found} {published}");
        }
        // Equal shares: uniform.
        assert_eq!(owl.sparsities(&layers, &[0.02; 3], 0.7), [0.7; 3]);
    }
}
