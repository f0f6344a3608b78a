//! Everything in a block that is not a product, rows in parallel, compiled for the processor at hand.
//!
//! The loops are plain; [`pulp`] has them compiled for each instruction set, and picks one at run time.

use ndarray::Array2;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::config::Activation;
use super::rope::RotaryTables;

/// Values handled by one thread at a time.
const CHUNK: usize = 1 << 14;
/// Partial sums of a row, so that a sum does not wait for itself.
const LANES: usize = 16;

/// eˣ to 2 units in the last place, between e⁻⁸⁷ and e⁸⁸ (beyond that, the nearer of the two); NaN stays NaN.
/// Free of branches and calls, so that loops over it become SIMD code.
///
/// x = n·ln 2 + r, with ln 2 in two parts (Cody and Waite), and the Taylor polynomial of eʳ for |r| ≤ ln 2 / 2.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which is then in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut power = 1.0 / 5040.0;
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        power = power * r + coefficient;
    }
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    power * scale
}

/// gate ← activation(gate)·up, element by element.
pub(super) fn gate(activation: Activation, gate: &mut Array2<f32>, up: &Array2<f32>) {
    let arch = Arch::new();
    if let (Some(gate), Some(up)) = (gate.as_slice_mut(), up.as_slice()) {
        gate.par_chunks_mut(CHUNK)
            .zip(up.par_chunks(CHUNK))
            .for_each(|(gate, up)| {
                arch.dispatch(Gate {
                    activation,
                    gate,
                    up,
                });
            });
    }
}

/// x ← activation(x), element by element.
pub(super) fn activate(activation: Activation, x: &mut Array2<f32>) {
    let arch = Arch::new();
    if let Some(x) = x.as_slice_mut() {
        x.par_chunks_mut(CHUNK)
            .for_each(|x| arch.dispatch(Activate { activation, x }));
    }
}

struct Activate<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl NullaryFnOnce for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let values = self.x.iter_mut().map(|x| (x, ()));
        each(self.activation, values, |()| 1.0);
    }
}

struct Gate<'a> {
    activation: Activation,
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl NullaryFnOnce for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        each(self.activation, self.gate.iter_mut().zip(self.up), |up| *up);
    }
}

/// x ← activation(x)·factor.
#[inline(always)]
fn each<'x, T>(
    activation: Activation,
    items: impl Iterator<Item = (&'x mut f32, T)>,
    factor: impl Fn(T) -> f32,
) {
    match activation {
        Activation::Silu => items.for_each(|(x, by)| *x = *x / (1.0 + exp(-*x)) * factor(by)),
        Activation::Gelu => items.for_each(|(x, by)| *x = gelu_erf(*x) * factor(by)),
        Activation::GeluTanh => items.for_each(|(x, by)| *x = gelu_tanh(*x) * factor(by)),
        Activation::QuickGelu => {
            items.for_each(|(x, by)| *x = *x / (1.0 + exp(-1.702 * *x)) * factor(by));
        }
        Activation::Tanh => items.for_each(|(x, by)| *x = x.tanh() * factor(by)),
        Activation::Relu => {
            items.for_each(|(x, by)| *x = if *x > 0.0 { *x } else { 0.0 } * factor(by));
        }
    }
}

fn gelu_erf(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// x/2·(1 + tanh(z)) = x/(1 + e⁻²ᶻ), z = √(2/π)·(x + 0.044715 x³).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let z = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * z))
}

/// Each run of as many values of `x` as there are weights over its root mean square, times `weight`, into
/// `normalized`.
pub(super) fn rms_norm(x: &Array2<f32>, weight: &[f32], eps: f32, normalized: &mut Array2<f32>) {
    in_rows(x, normalized, |x, normalized| RmsNorm {
        x,
        normalized,
        weight,
        eps,
    });
}

/// Each run of `width` values of `x`, less its mean, over its standard deviation, times `weight`, plus `bias`, into `normalized`.
/// Weights and biases are those of one run, or of all of a row.
pub(super) fn layer_norm(
    x: &Array2<f32>,
    weight: &[f32],
    bias: &[f32],
    (width, eps): (usize, f32),
    normalized: &mut Array2<f32>,
) {
    in_rows(x, normalized, |x, normalized| LayerNorm {
        x,
        normalized,
        weight,
        bias,
        width,
        eps,
    });
}

/// Runs a kernel on some rows of `x` and of the result at a time.
fn in_rows<'a, K: NullaryFnOnce>(
    x: &'a Array2<f32>,
    result: &'a mut Array2<f32>,
    kernel: impl Fn(&'a [f32], &'a mut [f32]) -> K + Sync,
) {
    let arch = Arch::new();
    let width = x.ncols();
    if let (Some(x), Some(result)) = (x.as_slice(), result.as_slice_mut()) {
        let values = (CHUNK / width.max(1)).max(1) * width.max(1);
        result
            .par_chunks_mut(values)
            .zip(x.par_chunks(values))
            .for_each(|(result, x)| {
                arch.dispatch(kernel(x, result));
            });
    }
}

/// The sum of `of` each value.
#[inline(always)]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += of(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}

struct RmsNorm<'a> {
    x: &'a [f32],
    normalized: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl NullaryFnOnce for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.weight.len();
        let rows = self.normalized.chunks_exact_mut(width);
        for (normalized, x) in rows.zip(self.x.chunks_exact(width)) {
            let square = sum(x, |x| x * x);
            let scale = (square / width as f32 + self.eps).sqrt().recip();
            for ((to, x), weight) in normalized.iter_mut().zip(x).zip(self.weight) {
                *to = x * scale * weight;
            }
        }
    }
}

struct LayerNorm<'a> {
    x: &'a [f32],
    normalized: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    width: usize,
    eps: f32,
}

impl NullaryFnOnce for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.width;
        let rows = self.normalized.chunks_exact_mut(width);
        let affine = self.weight.chunks_exact(width);
        let affine = affine.zip(self.bias.chunks_exact(width)).cycle();
        for ((normalized, x), (weight, bias)) in rows.zip(self.x.chunks_exact(width)).zip(affine) {
            let mean = sum(x, |x| x) / width as f32;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
            let scale = (variance + self.eps).sqrt().recip();
            let affine = weight.iter().zip(bias);
            for ((to, x), (weight, bias)) in normalized.iter_mut().zip(x).zip(affine) {
                *to = (x - mean) * scale * weight + bias;
            }
        }
    }
}

/// Turns each head of queries or keys (tokens x heads·head_dim, whole sequences after each other) by the angles of
/// its position. Of the turned dimensions of a head, the first half are the cosine parts, the second the sine parts
/// (rotary embedding as in the LLaMA code of transformers); interleaved, they alternate (as in its GPT-J code). The
/// dimensions behind them stay as they are.
pub(super) fn rotate(x: &mut Array2<f32>, head_dim: usize, tables: &RotaryTables) {
    let arch = Arch::new();
    let (width, pairs) = (x.ncols(), tables.pairs);
    if let Some(values) = x.as_slice_mut() {
        values
            .par_chunks_mut(width)
            .with_min_len((CHUNK / width.max(1)).max(1))
            .enumerate()
            .for_each(|(token, heads)| {
                let first = token % tables.time * pairs;
                arch.dispatch(Rotate {
                    heads,
                    head_dim,
                    interleaved: tables.interleaved,
                    cos: &tables.cos[first..first + pairs],
                    sin: &tables.sin[first..first + pairs],
                });
            });
    }
}

struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    interleaved: bool,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl NullaryFnOnce for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let half = self.cos.len();
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let turned = &mut head[..2 * half];
            let angles = self.cos.iter().zip(self.sin);
            if self.interleaved {
                let (pairs, _) = turned.as_chunks_mut::<2>();
                for ([x, y], (cos, sin)) in pairs.iter_mut().zip(angles) {
                    (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
                }
            } else {
                let (first, second) = turned.split_at_mut(half);
                for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                    (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
                }
            }
        }
    }
}

/// Turns the rows of a block of scores into e^(score − highest of the row) where `seen` says that the query sees
/// the key, and zero elsewhere. Returns each row's sum, for dividing later.
pub(super) fn exponentials(
    arch: Arch,
    scores: &mut [f32],
    keys: usize,
    seen: impl Fn(usize) -> std::ops::Range<usize>,
    sums: &mut Vec<f32>,
) {
    sums.clear();
    for (row, scores) in scores.chunks_exact_mut(keys).enumerate() {
        let seen = seen(row);
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        sums.push(arch.dispatch(Exponentials(&mut scores[seen])));
    }
}

struct Exponentials<'a>(&'a mut [f32]);

impl NullaryFnOnce for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        let (chunks, rest) = self.0.as_chunks_mut::<LANES>();
        let mut highest = [f32::NEG_INFINITY; LANES];
        for chunk in &*chunks {
            for (highest, &score) in highest.iter_mut().zip(chunk) {
                *highest = if score > *highest { score } else { *highest };
            }
        }
        let highest = highest.iter().chain(&*rest).copied();
        let highest = highest.fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            for (sum, score) in sums.iter_mut().zip(chunk) {
                *score = exp(*score - highest);
                *sum += *score;
            }
        }
        let mut sum: f32 = sums.iter().sum();
        for score in rest {
            *score = exp(*score - highest);
            sum += *score;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn exponentials_are_right_to_two_units_in_the_last_place() {
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (found / expected - 1.0).abs() < 2.0 * f64::from(f32::EPSILON),
                "{x}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(f32::INFINITY) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn activations_are_those_of_their_definitions() {
        let x = Array2::from_shape_fn((7, 33), |(i, j)| (i * 33 + j) as f32 / 12.0 - 9.0);
        let up = Array2::from_shape_fn((7, 33), |(i, j)| (i + 2 * j) as f32 / 30.0 - 1.0);
        let sqrt_2_over_pi = (2.0 / std::f64::consts::PI).sqrt();
        let cases: [(Activation, &dyn Fn(f64) -> f64); 4] = [
            (Activation::Relu, &|x| x.max(0.0)),
            (Activation::Silu, &|x| x / (1.0 + (-x).exp())),
            // Φ(x) as the area under the density.
            (Activation::Gelu, &|x| {
                let steps = 20_000;
                let step = x / f64::from(steps);
                let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
                let area: f64 = (0..steps)
                    .map(|i| density((f64::from(i) + 0.5) * step) * step)
                    .sum();
                x * (0.5 + area)
            }),
            (Activation::GeluTanh, &|x| {
                0.5 * x * (1.0 + (sqrt_2_over_pi * (x + 0.044_715 * x.powi(3))).tanh())
            }),
        ];
        for (activation, expected) in cases {
            let mut found = x.clone();
            gate(activation, &mut found, &up);
            for ((found, &x), &up) in found.iter().zip(&x).zip(&up) {
                let expected = expected(f64::from(x)) * f64::from(up);
                assert!(
                    (f64::from(*found) - expected).abs() < 2e-6,
                    "{activation:?} {x}"
                );
            }
            let (mut alone, mut gated) = (x.clone(), x.clone());
            activate(activation, &mut alone);
            gate(activation, &mut gated, &Array2::ones(x.dim()));
            assert_eq!(alone, gated);
        }
    }

    #[test]
    fn rows_are_normalized() {
        let x = Array2::from_shape_fn((5, 37), |(i, j)| (i as f32 + 1.0) * (j as f32 - 11.0));
        let weight: Vec<f32> = (0..37).map(|j| 0.5 + j as f32 / 37.0).collect();
        let mut found = Array2::zeros(x.dim());
        rms_norm(&x, &weight, 1e-5, &mut found);
        for (found, x) in found.rows().into_iter().zip(x.rows()) {
            let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 37.0;
            for ((&found, &x), &weight) in found.iter().zip(x).zip(&weight) {
                let expected = f64::from(x) / (square + 1e-5).sqrt() * f64::from(weight);
                assert!((f64::from(found) - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn rows_are_centred_and_scaled() {
        // Two runs of 37 a row, as heads are, with the same weights or with weights of their own.
        let x = Array2::from_shape_fn((5, 74), |(i, j)| (i as f32 + 1.0) * (j as f32 - 11.0));
        let weight: Vec<f32> = (0..74).map(|j| 0.5 + j as f32 / 37.0).collect();
        let bias: Vec<f32> = (0..74).map(|j| j as f32 / 9.0 - 2.0).collect();
        for values in [37, 74] {
            normalized_runs(&x, &weight[..values], &bias[..values]);
        }
    }

    fn normalized_runs(x: &Array2<f32>, weight: &[f32], bias: &[f32]) {
        let mut found = Array2::zeros(x.dim());
        layer_norm(x, weight, bias, (37, 1e-5), &mut found);
        let (found, x) = (found.as_slice().unwrap(), x.as_slice().unwrap());
        let affine = weight.chunks(37).zip(bias.chunks(37)).cycle();
        for ((found, x), (weight, bias)) in found.chunks(37).zip(x.chunks(37)).zip(affine) {
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / 37.0;
            let variance = x
                .iter()
                .map(|&x| (f64::from(x) - mean).powi(2))
                .sum::<f64>()
                / 37.0;
            for (at, (&found, &x)) in found.iter().zip(x).enumerate() {
                let plain = (f64::from(x) - mean) / (variance + 1e-5).sqrt();
                let expected = plain * f64::from(weight[at]) + f64::from(bias[at]);
                assert!((f64::from(found) - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn heads_turn_by_their_position() {
        // Two sequences of 3 tokens, two heads of 6 dimensions of which 4 turn.
        let before = Array2::from_shape_fn((6, 12), |(t, d)| (t * 12 + d) as f32);
        let angles: Vec<f32> = (0..6).map(|i| i as f32 * 0.3).collect();
        for interleaved in [false, true] {
            let tables = RotaryTables {
                time: 3,
                pairs: 2,
                interleaved,
                cos: angles.iter().copied().map(f32::cos).collect(),
                sin: angles.iter().copied().map(f32::sin).collect(),
            };
            let mut x = before.clone();
            rotate(&mut x, 6, &tables);
            for token in 0..6 {
                for head in 0..2 {
                    for pair in 0..2 {
                        let angle = angles[token % 3 * 2 + pair];
                        let (at, other) = match interleaved {
                            false => (head * 6 + pair, head * 6 + pair + 2),
                            true => (head * 6 + 2 * pair, head * 6 + 2 * pair + 1),
                        };
                        let (a, b) = (before[[token, at]], before[[token, other]]);
                        let cos = a * angle.cos() - b * angle.sin();
                        let sin = a * angle.sin() + b * angle.cos();
                        assert!((x[[token, at]] - cos).abs() < 1e-5);
                        assert!((x[[token, other]] - sin).abs() < 1e-5);
                    }
                    for still in [head * 6 + 4, head * 6 + 5] {
                        assert_eq!(x[[token, still]], before[[token, still]]);
                    }
                }
            }
        }
    }
}
