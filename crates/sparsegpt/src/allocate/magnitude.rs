//! One magnitude threshold for the whole model.

use ndarray::ArrayView2;

use super::{Allocator, Budget, LayerRoom, Shares, Survey};
use crate::error::Result;

/// As many zeros for each layer as it has among the smallest |w| of the whole model.
///
/// With [`Method::Magnitude`](crate::Method::Magnitude) and an unstructured pattern this is global magnitude pruning:
/// exactly floor(p · weights) weights of the model go, those of the smallest |w|, ties in the order of the layers and
/// within one by column, then row. Other methods take the counts and choose by their own measure.
///
/// The threshold is found by its bits, from 2048 counts a layer and three passes over the weights; no forward pass, no
/// copy of the weights. A layer that floor or ceiling holds takes no part in the threshold. Known to be worse than a
/// uniform sparsity on language models, whose layers have weights of different size: a baseline, not advice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalMagnitude;

/// The 31 bits of a |w|, from the highest, in digits of 11, 10 and 10: how far right each lies and how wide it is.
const DIGITS: [(u32, u32); 3] = [(20, 11), (10, 10), (0, 10)];

impl Allocator for GlobalMagnitude {
    fn describe(&self) -> String {
        "global magnitude".to_owned()
    }

    fn allocate(&self, model: &mut dyn Survey, budget: &Budget) -> Result<Shares> {
        let layers = model.layers().to_vec();
        let zeros = budget.zeros(&layers);
        let mut search = Search {
            prefix: 0,
            below: vec![0; layers.len()],
            at: Vec::new(),
        };
        for (shift, width) in DIGITS {
            let mut counts = vec![vec![0_u64; 1 << width]; layers.len()];
            model.weights(&mut |index, weights| {
                search.count(&mut counts[index], weights, shift, width);
                Ok(())
            })?;
            search.descend(&layers, zeros, &counts, width);
        }
        Ok(Shares::new(search.shares(&layers, zeros)))
    }
}

/// The search for the threshold, a digit at a time.
#[derive(Debug)]
struct Search {
    /// The digits found so far.
    prefix: u32,
    /// Weights of each layer that are smaller than any with these digits.
    below: Vec<u64>,
    /// Weights of each layer with these digits.
    at: Vec<u64>,
}

impl Search {
    /// Counts by their next digit the weights that begin with the digits found.
    fn count(&self, counts: &mut [u64], weights: ArrayView2<'_, f32>, shift: u32, width: u32) {
        let mask = (1_u32 << width) - 1;
        for weight in weights {
            let bits = weight.abs().to_bits() >> shift;
            if bits >> width == self.prefix {
                counts[(bits & mask) as usize] += 1;
            }
        }
    }

    /// Takes the first digit up to which there are enough weights.
    fn descend(&mut self, layers: &[LayerRoom], zeros: u64, counts: &[Vec<u64>], width: u32) {
        let last = (1_u32 << width) - 1;
        for digit in 0..=last {
            self.at = counts.iter().map(|counts| counts[digit as usize]).collect();
            let with_it = self
                .below
                .iter()
                .zip(&self.at)
                .map(|(below, at)| below + at);
            let enough = layers
                .iter()
                .zip(with_it)
                .map(|(layer, count)| whole(layer, count))
                .sum::<u64>()
                >= zeros;
            if enough || digit == last {
                self.prefix = (self.prefix << width) | digit;
                return;
            }
            for (below, at) in self.below.iter_mut().zip(&self.at) {
                *below += at;
            }
        }
    }

    /// All below the threshold, and those at it in the order of the layers as far as the budget goes.
    fn shares(&self, layers: &[LayerRoom], zeros: u64) -> Vec<u64> {
        let mut shares: Vec<u64> = layers
            .iter()
            .zip(&self.below)
            .map(|(layer, &count)| whole(layer, count))
            .collect();
        let mut left = zeros.saturating_sub(shares.iter().sum());
        for ((share, layer), (below, at)) in shares
            .iter_mut()
            .zip(layers)
            .zip(self.below.iter().zip(&self.at))
        {
            let more = (whole(layer, below + at) - *share).min(left) / layer.step * layer.step;
            *share += more;
            left -= more;
        }
        // Portions larger than 1 may leave some of the budget where a layer has none at the threshold.
        for (share, layer) in shares.iter_mut().zip(layers) {
            let more = (layer.high - *share).min(left) / layer.step * layer.step;
            *share += more;
            left -= more;
        }
        shares
    }
}

/// A number of zeros as the layer takes it.
fn whole(layer: &LayerRoom, zeros: u64) -> u64 {
    (zeros / layer.step * layer.step).clamp(layer.low, layer.high)
}
