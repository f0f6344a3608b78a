//! Causal softmax in place: scale, mask and normalization in one pass over the scores.

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

/// Turns scores (.. x queries x keys) into attention weights. Query i stands at position `past + i` and sees
/// the keys at its own and earlier positions, at most `window` of them.
pub(super) struct CausalSoftmax {
    pub(super) scale: f32,
    pub(super) queries: usize,
    pub(super) past: usize,
    pub(super) window: Option<usize>,
}

impl CausalSoftmax {
    pub(super) fn apply(&self, scores: &Tensor) -> candle_core::Result<()> {
        scores.inplace_op1(self)
    }
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("causal softmax needs contiguous scores");
        };
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("causal softmax needs f32 scores");
        };
        let keys = layout.dims().last().copied().unwrap_or(1).max(1);
        values[start..end].par_chunks_mut(keys).enumerate().for_each(|(row, scores)| {
            let position = self.past + row % self.queries;
            let last = (position + 1).min(keys);
            let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let (hidden_before, rest) = scores.split_at_mut(first.min(last));
            let (seen, hidden_after) = rest.split_at_mut(last - first.min(last));
            hidden_before.fill(0.0);
            hidden_after.fill(0.0);
            let highest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for score in seen.iter_mut() {
                *score = ((*score - highest) * self.scale).exp();
                sum += *score;
            }
            let normalization = 1.0 / sum;
            for score in seen.iter_mut() {
                *score *= normalization;
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn equals_masking_and_normalizing_one_by_one() {
        let (queries, past, scale) = (5, 3, 0.7);
        let keys = past + queries;
        for window in [None, Some(1), Some(3), Some(100)] {
            let scores =
                Tensor::randn(0.0_f32, 1.0, (2, queries, keys), &Device::Cpu).unwrap();
            let before: Vec<Vec<Vec<f32>>> = scores.to_vec3().unwrap();
            CausalSoftmax { scale, queries, past, window }.apply(&scores).unwrap();
            let after: Vec<Vec<Vec<f32>>> = scores.to_vec3().unwrap();
            for (before, after) in before.iter().flatten().zip(after.iter().flatten()).enumerate().map(|(row, (b, a))| ((row, b), a)) {
                let (row, before) = before;
                let position = past + row % queries;
                let visible = |key: usize| {
                    key <= position && window.is_none_or(|window| position - key < window)
                };
                let weights: Vec<f64> = before
                    .iter()
                    .enumerate()
                    .map(|(key, &s)| if visible(key) { f64::from(s * scale).exp() } else { 0.0 })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (expected, &found) in weights.iter().zip(after) {
                    assert!((expected / sum - f64::from(found)).abs() < 1e-6);
                }
            }
        }
    }
}
