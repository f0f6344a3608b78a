//! Causal attention, head by head, in blocks of queries: no score is computed that a later mask would drop,
//! and only one block of scores is held a thread.

use candle_core::{Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::product::values;
use crate::Result;

/// Queries whose scores are held at a time.
const QUERY_BLOCK: usize = 128;

/// Where the queries stand and what they see. Query i stands at position `past + i` and sees the keys at its
/// own and earlier positions, at most `window` of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Causal {
    pub(super) past: usize,
    pub(super) window: Option<usize>,
}

impl Causal {
    /// softmax(Q Kᵀ / √d) V for queries (batch x heads x time x d) and keys and values (batch x kv_heads x
    /// past + time x d); neighbouring query heads share a key head. The result has the queries' shape.
    pub(super) fn attend(
        self,
        queries: &Tensor,
        keys: &Tensor,
        values_of: &Tensor,
    ) -> Result<Tensor> {
        let (batch, heads, time, width) = queries.dims4()?;
        let (_, kv_heads, seen, _) = keys.dims4()?;
        let (queries, keys, values_of) = (
            queries.contiguous()?,
            keys.contiguous()?,
            values_of.contiguous()?,
        );
        let (q, q_layout) = queries.storage_and_layout();
        let (k, k_layout) = keys.storage_and_layout();
        let (v, v_layout) = values_of.storage_and_layout();
        let (q, k, v) = (
            values(&q, q_layout)?,
            values(&k, k_layout)?,
            values(&v, v_layout)?,
        );
        let mut mixed = vec![0.0_f32; q.len()];
        mixed
            .par_chunks_mut(time * width)
            .enumerate()
            .for_each(|(head, mixed)| {
                let shared = head * kv_heads / heads;
                let q = MatRef::from_row_major_slice(
                    &q[head * time * width..][..time * width],
                    time,
                    width,
                );
                let key_head = shared * seen * width..(shared + 1) * seen * width;
                let k = MatRef::from_row_major_slice(&k[key_head.clone()], seen, width);
                let v = MatRef::from_row_major_slice(&v[key_head], seen, width);
                self.attend_head(
                    q,
                    k,
                    v,
                    MatMut::from_row_major_slice_mut(mixed, time, width),
                );
            });
        Ok(Tensor::from_vec(
            mixed,
            (batch, heads, time, width),
            &Device::Cpu,
        )?)
    }

    fn attend_head(
        self,
        q: MatRef<'_, f32>,
        k: MatRef<'_, f32>,
        v: MatRef<'_, f32>,
        mut mixed: MatMut<'_, f32>,
    ) {
        let (time, width) = (q.nrows(), q.ncols());
        let scale = (width as f32).sqrt().recip();
        let mut scores = Vec::new();
        for start in (0..time).step_by(QUERY_BLOCK) {
            let count = QUERY_BLOCK.min(time - start);
            // Keys that any query of the block sees.
            let first = self.first_key(start);
            let keys = self.past + start + count - first;
            scores.resize(count * keys, 0.0);
            matmul(
                MatMut::from_row_major_slice_mut(&mut scores, count, keys),
                Accum::Replace,
                q.subrows(start, count),
                k.subrows(first, keys).transpose(),
                scale,
                Par::Seq,
            );
            for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                let query = start + row;
                softmax(
                    scores,
                    self.first_key(query) - first,
                    self.past + query + 1 - first,
                );
            }
            matmul(
                mixed.rb_mut().subrows_mut(start, count),
                Accum::Replace,
                MatRef::from_row_major_slice(&scores, count, keys),
                v.subrows(first, keys),
                1.0,
                Par::Seq,
            );
        }
    }

    /// The first key that a query sees.
    fn first_key(self, query: usize) -> usize {
        self.window
            .map_or(0, |window| (self.past + query + 1).saturating_sub(window))
    }
}

/// Normalizes the scores `first..end` to weights; the others become zero.
fn softmax(scores: &mut [f32], first: usize, end: usize) {
    scores[..first].fill(0.0);
    scores[end..].fill(0.0);
    let seen = &mut scores[first..end];
    let highest = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in seen.iter_mut() {
        *score = (*score - highest).exp();
        sum += *score;
    }
    for score in seen.iter_mut() {
        *score /= sum;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn equals_attention_written_out() {
        let (batch, heads, kv_heads, width) = (2, 4, 2, 6);
        for (time, past) in [(1, 0), (5, 0), (1, 7), (5, 3), (QUERY_BLOCK + 3, 2)] {
            for window in [None, Some(1), Some(3), Some(1000)] {
                let random = |heads, time| {
                    Tensor::randn(0.0_f32, 1.0, (batch, heads, time, width), &Device::Cpu).unwrap()
                };
                let (q, k) = (random(heads, time), random(kv_heads, past + time));
                let v = random(kv_heads, past + time);
                let found = Causal { past, window }.attend(&q, &k, &v).unwrap();
                let flat = |tensor: &Tensor| -> Vec<f32> {
                    tensor.flatten_all().unwrap().to_vec1().unwrap()
                };
                let (found, q, k, v) = (flat(&found), flat(&q), flat(&k), flat(&v));
                for row in 0..batch * heads * time {
                    let (head, query) = (row / time, row % time);
                    let position = past + query;
                    let base = head * kv_heads / heads * (past + time);
                    let visible = (0..=position)
                        .filter(|key| window.is_none_or(|window| position - key < window));
                    let weights: Vec<(usize, f64)> = visible
                        .map(|key| {
                            let dot: f64 = (0..width)
                                .map(|d| {
                                    f64::from(q[row * width + d])
                                        * f64::from(k[(base + key) * width + d])
                                })
                                .sum();
                            (key, (dot / (width as f64).sqrt()).exp())
                        })
                        .collect();
                    let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
                    for d in 0..width {
                        let expected: f64 = weights
                            .iter()
                            .map(|(key, weight)| {
                                weight / sum * f64::from(v[(base + key) * width + d])
                            })
                            .sum();
                        assert!((expected - f64::from(found[row * width + d])).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
