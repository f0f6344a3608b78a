//! Attention, head by head, in blocks of queries: no score is computed that causality or a window would drop, and only
//! one block of scores is held a thread.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView3, Axis};
use pulp::Arch;
use rayon::prelude::*;

use super::elementwise::exponentials;
use crate::{Error, Result};

/// Queries whose scores are held at a time.
const QUERY_BLOCK: usize = 128;

/// Where the queries stand and what they see. Query i of a sequence stands at position `past + i`. If `causal` it sees
/// the keys at its own and earlier positions, at most `window` of them; otherwise all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixer<'a> {
    pub(super) past: usize,
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
    /// `true` for every key that counts, sequence by sequence; the others are not seen. `None`: all count.
    pub(super) counts: Option<&'a [bool]>,
    pub(super) head_dim: usize,
    /// What the products of queries and keys are multiplied by.
    pub(super) scale: f32,
    /// By how much a score falls with each position between query and key, head by head (ALiBi); empty for not at
    /// all.
    pub(super) slopes: &'a [f32],
    /// What is added to a score by the distance between query and key, head by head.
    pub(super) relative: Option<&'a RelativeBias>,
    /// Scores s become c·tanh(s/c).
    pub(super) softcap: Option<f32>,
}

impl Mixer<'_> {
    /// softmax(scale·Q Kᵀ − slope·distance) V for the queries of some sequences after each other (batch·time x heads·d), and their
    /// keys and values (batch x (past + time) x kv_heads·d, those of a sequence together); neighbouring query heads share a key
    /// head. The result, in `mixed`, has the queries' shape.
    pub(super) fn attend(
        self,
        queries: &Array2<f32>,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        mixed: &mut Array2<f32>,
    ) {
        let (batch, seen, width) = keys.dim();
        let time = queries.nrows() / batch;
        let (heads, kv_heads) = (queries.ncols() / self.head_dim, width / self.head_dim);
        let pair = |sequence| Some((of_sequence(keys, sequence)?, of_sequence(values, sequence)?));
        let pairs: Option<Vec<_>> = (0..batch).map(pair).collect();
        let (Some(q), Some(pairs), Some(result)) =
            (queries.as_slice(), pairs, mixed.as_slice_mut())
        else {
            return;
        };
        let q = MatRef::from_row_major_slice(q, batch * time, heads * self.head_dim);
        let result = MatMut::from_row_major_slice_mut(result, batch * time, heads * self.head_dim);
        let arch = Arch::new();
        let last = self.past + time - 1;
        let relative = self
            .relative
            .map(|relative| relative.by_distance(last, seen));
        let sequences = result.par_row_chunks_mut(time).enumerate();
        sequences.for_each(|(sequence, mixed)| {
            let heads_of_sequence = mixed.par_col_chunks_mut(self.head_dim).enumerate();
            heads_of_sequence.for_each(|(head, mixed)| {
                let own = (sequence * time, head * self.head_dim);
                let shared = head * kv_heads / heads * self.head_dim;
                let (k, v) = pairs[sequence];
                let biases = Biases {
                    slope: self.slopes.get(head).copied(),
                    relative: relative.as_ref().map(|heads| (&*heads[head], last)),
                    counts: self.counts.map(|counts| &counts[sequence * seen..][..seen]),
                };
                self.attend_head(
                    arch,
                    biases,
                    q.submatrix(own.0, own.1, time, self.head_dim),
                    k.subcols(shared, self.head_dim),
                    v.subcols(shared, self.head_dim),
                    mixed,
                );
            });
        });
    }

    fn attend_head(
        self,
        arch: Arch,
        biases: Biases<'_>,
        q: MatRef<'_, f32>,
        k: MatRef<'_, f32>,
        v: MatRef<'_, f32>,
        mut mixed: MatMut<'_, f32>,
    ) {
        let time = q.nrows();
        let (mut scores, mut sums) = (Vec::new(), Vec::new());
        for start in (0..time).step_by(QUERY_BLOCK) {
            let count = QUERY_BLOCK.min(time - start);
            // Keys that any query of the block sees.
            let first = self.seen(start, k.nrows()).start;
            let keys = self.seen(start + count - 1, k.nrows()).end - first;
            scores.resize(count * keys, 0.0);
            matmul(
                MatMut::from_row_major_slice_mut(&mut scores, count, keys),
                Accum::Replace,
                q.subrows(start, count),
                k.subrows(first, keys).transpose(),
                self.scale,
                Par::Seq,
            );
            if let Some(cap) = self.softcap {
                scores
                    .iter_mut()
                    .for_each(|score| *score = cap * (*score / cap).tanh());
            }
            for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
                biases.add(scores, self.past + start + row, first);
            }
            let seen = |row| {
                let seen = self.seen(start + row, k.nrows());
                seen.start - first..seen.end - first
            };
            exponentials(arch, &mut scores, keys, seen, &mut sums);
            let mut mixed = mixed.rb_mut().subrows_mut(start, count);
            matmul(
                mixed.rb_mut(),
                Accum::Replace,
                MatRef::from_row_major_slice(&scores, count, keys),
                v.subrows(first, keys),
                1.0,
                Par::Seq,
            );
            // Dividing the sums of few values is less work than dividing each of many weights.
            for (mixed, sum) in mixed.row_iter_mut().zip(&sums) {
                for value in mixed.iter_mut() {
                    *value /= sum;
                }
            }
        }
    }

    /// The keys that a query sees, of so many.
    fn seen(self, query: usize, keys: usize) -> Range<usize> {
        if !self.causal {
            return 0..keys;
        }
        let end = self.past + query + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// The tokens of one sequence, if they are together in memory.
fn of_sequence(all: ArrayView3<'_, f32>, sequence: usize) -> Option<MatRef<'_, f32>> {
    let rows = all.index_axis_move(Axis(0), sequence);
    let (tokens, width) = rows.dim();
    Some(MatRef::from_row_major_slice(
        rows.to_slice()?,
        tokens,
        width,
    ))
}

/// Tokens of some sequences after each other, sequence by sequence.
pub(super) fn by_sequence(tokens: &Array2<f32>, batch: usize) -> Result<ArrayView3<'_, f32>> {
    let shape = (batch, tokens.nrows() / batch, tokens.ncols());
    let tokens = tokens.view().into_shape_with_order(shape);
    tokens.map_err(|error| Error::tensor("(keys and values)", error.to_string()))
}

/// What is added to the scores of one head in one sequence.
#[derive(Clone, Copy, Debug)]
struct Biases<'a> {
    slope: Option<f32>,
    /// By the distance from query to key, and where in the list distance 0 stands.
    relative: Option<(&'a [f32], usize)>,
    counts: Option<&'a [bool]>,
}

impl Biases<'_> {
    /// Adds to the scores of the query at a position, of which the first is that of the key at `first`.
    fn add(self, scores: &mut [f32], position: usize, first: usize) {
        if let Some(slope) = self.slope {
            for (key, score) in scores.iter_mut().enumerate() {
                *score += slope * ((first + key) as f32 - position as f32);
            }
        }
        if let Some((biases, zero)) = self.relative {
            for (score, bias) in scores.iter_mut().zip(&biases[zero + first - position..]) {
                *score += bias;
            }
        }
        if let Some(counts) = self.counts {
            for (score, counts) in scores.iter_mut().zip(&counts[first..]) {
                if !counts {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Learned biases on scores, one for each head and bucket of distances (T5).
#[derive(Clone, Debug)]
pub(super) struct RelativeBias {
    /// Buckets x heads.
    pub(super) table: Vec<f32>,
    pub(super) heads: usize,
    /// Distances from which on there is no other bucket.
    pub(super) max_distance: usize,
    /// Whether keys behind the query have buckets of their own.
    pub(super) both_ways: bool,
}

impl RelativeBias {
    /// For each head the biases of distances `-last..keys` from query to key.
    fn by_distance(&self, last: usize, keys: usize) -> Vec<Vec<f32>> {
        let bias = |head: usize, distance| self.table[self.bucket(distance) * self.heads + head];
        let distances = -(last as i64)..keys as i64;
        let of_head = |head| {
            distances
                .clone()
                .map(|distance| bias(head, distance))
                .collect()
        };
        (0..self.heads).map(of_head).collect()
    }

    /// Half of the buckets (of each direction) hold one distance each, the others grow with its logarithm, as in
    /// `T5Attention._relative_position_bucket` of transformers, which computes in f32.
    fn bucket(&self, distance: i64) -> usize {
        let all = self.table.len() / self.heads;
        let (buckets, first, distance) = match self.both_ways {
            true => (
                all / 2,
                if distance > 0 { all / 2 } else { 0 },
                distance.abs(),
            ),
            false => (all, 0, -distance.min(0)),
        };
        let (distance, exact) = (distance as usize, buckets / 2);
        if distance < exact {
            return first + distance;
        }
        let growth = (distance as f32 / exact as f32).ln()
            / (self.max_distance as f64 / exact as f64).ln() as f32
            * (buckets - exact) as f32;
        first + (exact + growth as usize).min(buckets - 1)
    }
}

/// The slopes of ALiBi: 2^(−8/n·h) for h = 1..=n heads where n is a power of two; otherwise those of the power
/// below, and then every other one of the power above.
pub(super) fn alibi_slopes(heads: usize) -> Vec<f32> {
    let below = match heads {
        0 => return Vec::new(),
        heads => 1_usize << heads.ilog2(),
    };
    let slope = |of: usize, head: usize| (-8.0 * head as f64 / of as f64).exp2() as f32;
    let own = (1..=below).map(|head| slope(below, head));
    let between = (1..).step_by(2).map(|head| slope(2 * below, head));
    own.chain(between).take(heads).collect()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn equals_attention_written_out() {
        let (batch, heads, kv_heads, width) = (2, 4, 2, 6);
        let mut random = ChaCha8Rng::seed_from_u64(0);
        for (time, past) in [(1, 0), (5, 0), (1, 7), (5, 3), (QUERY_BLOCK + 3, 2)] {
            for (window, slopes) in [
                (None, &[][..]),
                (Some(1), &[][..]),
                (Some(3), &[0.5, 0.3, 0.0, 0.1][..]),
                (Some(1000), &[0.5, 0.3, 0.0, 0.1][..]),
            ] {
                let mut tokens = |heads, time| {
                    Array2::from_shape_simple_fn((batch * time, heads * width), || {
                        random.random_range(-2.0..2.0_f32)
                    })
                };
                let seen = past + time;
                let (q, k, v) = (
                    tokens(heads, time),
                    tokens(kv_heads, seen),
                    tokens(kv_heads, seen),
                );
                let causal = Mixer {
                    past,
                    causal: true,
                    window,
                    counts: None,
                    head_dim: width,
                    scale: 0.3,
                    slopes,
                    relative: None,
                    softcap: window.map(|window| window as f32),
                };
                let mut found = Array2::zeros(q.dim());
                let [k3, v3] = [&k, &v].map(|of| by_sequence(of, batch).unwrap());
                causal.attend(&q, k3, v3, &mut found);
                for row in 0..batch * time {
                    let (sequence, query) = (row / time, row % time);
                    let position = past + query;
                    for head in 0..heads {
                        let shared = head * kv_heads / heads * width;
                        let visible = (0..=position)
                            .filter(|key| window.is_none_or(|window| position - key < window));
                        let weights: Vec<(usize, f64)> = visible
                            .map(|key| {
                                let slope = slopes.get(head).copied().unwrap_or(0.0);
                                let bias = f64::from(slope) * (position - key) as f64;
                                let key = sequence * seen + key;
                                let dot: f64 = (0..width)
                                    .map(|d| {
                                        f64::from(q[[row, head * width + d]])
                                            * f64::from(k[[key, shared + d]])
                                    })
                                    .sum();
                                let score = match window {
                                    Some(cap) => cap as f64 * (dot * 0.3 / cap as f64).tanh(),
                                    None => dot * 0.3,
                                };
                                (key, (score - bias).exp())
                            })
                            .collect();
                        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
                        for d in 0..width {
                            let expected: f64 = weights
                                .iter()
                                .map(|&(key, weight)| {
                                    weight / sum * f64::from(v[[key, shared + d]])
                                })
                                .sum();
                            let found = f64::from(found[[row, head * width + d]]);
                            assert!((expected - found).abs() < 1e-5);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_causality_all_keys_that_count_are_seen() {
        // More queries than one block of them, other keys than queries, as in cross-attention.
        let (batch, heads, width, time, seen) = (2, 2, 4, QUERY_BLOCK + 2, 5);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut tokens = |time| {
            Array2::from_shape_simple_fn((batch * time, heads * width), || {
                random.random_range(-2.0..2.0_f32)
            })
        };
        let (q, k, v) = (tokens(time), tokens(seen), tokens(seen));
        let counts = [
            true, false, true, true, true, true, true, true, false, false,
        ];
        let relative = RelativeBias {
            table: (0..16 * heads).map(|i| (i as f32 * 0.7).sin()).collect(),
            heads,
            max_distance: 20,
            both_ways: true,
        };
        let mixer = Mixer {
            past: 0,
            causal: false,
            window: None,
            counts: Some(&counts),
            head_dim: width,
            scale: 0.5,
            slopes: &[],
            relative: Some(&relative),
            softcap: None,
        };
        let mut found = Array2::zeros(q.dim());
        let [k3, v3] = [&k, &v].map(|of| by_sequence(of, batch).unwrap());
        mixer.attend(&q, k3, v3, &mut found);
        for ((row, col), found) in found.indexed_iter() {
            let (sequence, head) = (row / time, col / width * width);
            let keys = (sequence * seen..(sequence + 1) * seen).filter(|&key| counts[key]);
            let weights: Vec<(usize, f64)> = keys
                .map(|key| {
                    let dot: f32 = (head..head + width)
                        .map(|d| q[[row, d]] * k[[key, d]])
                        .sum();
                    let distance = (key % seen) as i64 - (row % time) as i64;
                    let bias = relative.table[relative.bucket(distance) * heads + head / width];
                    (key, f64::from(dot * 0.5 + bias).exp())
                })
                .collect();
            let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
            let mixed = weights
                .iter()
                .map(|&(key, weight)| weight * f64::from(v[[key, col]]));
            let expected = mixed.sum::<f64>() / sum;
            assert!((expected - f64::from(*found)).abs() < 1e-5, "{row}, {col}");
        }
    }

    /// Against values of `T5Attention._relative_position_bucket`.
    #[test]
    fn buckets_are_those_of_transformers() {
        let bias = |both_ways| RelativeBias {
            table: vec![0.0; 32],
            heads: 1,
            max_distance: 128,
            both_ways,
        };
        let distances = [-1000, -128, -64, -32, -17, -8, -1, 0, 1, 7, 8, 16, 90, 500];
        let found = |both_ways| distances.map(|distance| bias(both_ways).bucket(distance));
        assert_eq!(
            found(true),
            [15, 15, 14, 12, 10, 8, 1, 0, 17, 23, 24, 26, 30, 31]
        );
        assert_eq!(
            found(false),
            [31, 31, 26, 21, 16, 8, 1, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn slopes_are_those_of_the_paper_for_any_number_of_heads() {
        let eight: Vec<f32> = (1..=8).map(|h| 0.5_f32.powi(h)).collect();
        assert_eq!(alibi_slopes(8), eight);
        // Of sixteen heads every other one, from the first on, behind those of eight.
        let root = 0.5_f64.sqrt();
        let found = alibi_slopes(12);
        assert_eq!(found[..8], eight);
        for (slope, power) in found[8..].iter().zip([1, 3, 5, 7]) {
            assert!((f64::from(*slope) - root.powi(power)).abs() < 1e-7);
        }
        assert_eq!(alibi_slopes(1), [0.5_f32.powi(8)]);
        assert!(alibi_slopes(0).is_empty());
    }
}
