//! Rotary position embedding: frequencies and tables.

use super::config::{Positions, TransformerConfig};
use crate::{Error, Result};

/// How the frequencies are stretched for longer contexts.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Dynamic NTK: a larger base for sequences beyond the original context, the larger the longer they are.
    Dynamic {
        /// How fast the base grows: θ·(factor·n/original − (factor − 1))^(d/(d − 2)) for n positions and heads of d dimensions.
        factor: f64,
        /// The context the model was trained with.
        original_positions: f64,
    },
    /// LLaMA 3.1: low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_positions / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context the model was first trained with.
        original_positions: f64,
    },
    /// YaRN: pairs that turn often within the original context are kept, those that turn seldom are divided by `factor`,
    /// a straight passage over the pairs between.
    Yarn {
        /// The divisor of the slow pairs.
        factor: f64,
        /// Turns from which on a pair is kept.
        beta_fast: f64,
        /// Turns up to which a pair is divided.
        beta_slow: f64,
        /// Whether the passage begins and ends at whole pairs.
        truncate: bool,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
        /// The context the model was first trained with.
        original_positions: f64,
    },
    /// LongRoPE: each pair divided by a factor of its own, another one for sequences beyond the original context.
    LongRope {
        /// The divisors of sequences up to `original_positions`.
        short: Vec<f64>,
        /// Those of longer ones.
        long: Vec<f64>,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
        /// The context the model was first trained with.
        original_positions: f64,
    },
}

/// Base and scaling of the rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryConfig {
    theta: f64,
    scaling: RopeScaling,
}

impl RotaryConfig {
    /// A base (`rope_theta`) and a scaling.
    ///
    /// # Errors
    /// [`Error::Config`] for a base or factors that are not positive.
    pub fn new(theta: f64, scaling: RopeScaling) -> Result<Self> {
        let positive = |key: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                Ok(())
            } else {
                Err(Error::config(
                    key,
                    format!("expected a positive number, found {value}"),
                ))
            }
        };
        positive("rope_theta", theta)?;
        match &scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("factor", *factor)?,
            RopeScaling::Dynamic {
                factor,
                original_positions,
            } => {
                positive("factor", *factor)?;
                positive("max_position_embeddings", *original_positions)?;
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                original_positions,
                ..
            } => {
                positive("factor", *factor)?;
                positive("beta_slow", *beta_slow)?;
                positive("beta_fast - beta_slow", beta_fast - beta_slow)?;
                positive("attention_factor", *attention_factor)?;
                positive("original_max_position_embeddings", *original_positions)?;
            }
            RopeScaling::LongRope {
                short,
                long,
                attention_factor,
                original_positions,
            } => {
                for (key, factors) in [("short_factor", short), ("long_factor", long)] {
                    factors
                        .iter()
                        .try_for_each(|&factor| positive(key, factor))?;
                }
                positive("attention_factor", *attention_factor)?;
                positive("original_max_position_embeddings", *original_positions)?;
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("original_max_position_embeddings", *original_positions)?;
                positive(
                    "high_freq_factor - low_freq_factor",
                    high_freq_factor - low_freq_factor,
                )?;
            }
        }
        Ok(Self { theta, scaling })
    }

    /// The base.
    #[must_use]
    pub fn theta(&self) -> f64 {
        self.theta
    }

    /// The scaling.
    #[must_use]
    pub fn scaling(&self) -> &RopeScaling {
        &self.scaling
    }

    /// The angle per position of each pair of the `head_dim` dimensions that turn, in sequences of up to `positions`.
    #[must_use]
    pub fn frequencies(&self, head_dim: usize, positions: usize) -> Vec<f64> {
        let base = self.base(head_dim, positions);
        (0..head_dim / 2)
            .map(|pair| {
                let plain = base.powf(-2.0 * pair as f64 / head_dim as f64);
                match self.scaling {
                    RopeScaling::None | RopeScaling::Dynamic { .. } => plain,
                    RopeScaling::Yarn {
                        factor,
                        beta_fast,
                        beta_slow,
                        truncate,
                        original_positions,
                        ..
                    } => {
                        // The pair that makes so many turns within the original context (YaRN, section 3.2).
                        let pair_of = |turns: f64| {
                            let wavelength = original_positions / (turns * std::f64::consts::TAU);
                            head_dim as f64 * wavelength.ln() / (2.0 * self.theta.ln())
                        };
                        let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
                        if truncate {
                            (low, high) = (low.floor(), high.ceil());
                        }
                        (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
                        if low == high {
                            high += 0.001;
                        }
                        let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        plain * (divided / factor + 1.0 - divided)
                    }
                    RopeScaling::LongRope {
                        ref short,
                        ref long,
                        original_positions,
                        ..
                    } => {
                        let factors = match positions as f64 > original_positions {
                            true => long,
                            false => short,
                        };
                        plain / factors.get(pair).copied().unwrap_or(1.0)
                    }
                    RopeScaling::Linear { factor } => plain / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_positions,
                    } => {
                        // Turns that this pair makes within the original context.
                        let turns = original_positions * plain / std::f64::consts::TAU;
                        let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        let kept = kept.clamp(0.0, 1.0);
                        plain * (kept + (1.0 - kept) / factor)
                    }
                }
            })
            .collect()
    }

    /// The base of sequences of up to so many positions: θ·(f·n/m − (f − 1))^(d/(d − 2)) with dynamic scaling by f beyond m positions
    /// (`_compute_dynamic_ntk_parameters` of transformers).
    fn base(&self, head_dim: usize, positions: usize) -> f64 {
        match self.scaling {
            RopeScaling::Dynamic {
                factor,
                original_positions,
            } if positions as f64 > original_positions => {
                let longer = factor * positions as f64 / original_positions - (factor - 1.0);
                let dim = head_dim as f64;
                self.theta * longer.powf(dim / (dim - 2.0))
            }
            _ => self.theta,
        }
    }

    /// What sines and cosines are multiplied by.
    fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Whether a sequence that grows from `before` to `after` tokens changes the angles of the tokens it had.
    pub(super) fn changes(&self, before: usize, after: usize) -> bool {
        match self.scaling {
            RopeScaling::LongRope {
                original_positions, ..
            } => before as f64 <= original_positions && after as f64 > original_positions,
            RopeScaling::Dynamic {
                original_positions, ..
            } => before < after && after as f64 > original_positions,
            _ => false,
        }
    }

    /// Divisors of a scaling that has one for each pair.
    pub(super) fn pairs(&self) -> Option<[usize; 2]> {
        match &self.scaling {
            RopeScaling::LongRope { short, long, .. } => Some([short.len(), long.len()]),
            _ => None,
        }
    }

    /// Cosines and sines for positions `start..start + count`.
    pub(super) fn tables(
        &self,
        dimensions: usize,
        interleaved: bool,
        start: usize,
        count: usize,
    ) -> RotaryTables {
        let frequencies = self.frequencies(dimensions, start + count);
        let factor = self.attention_factor();
        // transformers computes frequencies and angles in f32; follow its rounding.
        let angles: Vec<f32> = (start..start + count)
            .flat_map(|position| frequencies.iter().map(move |&f| position as f32 * f as f32))
            .collect();
        RotaryTables {
            time: count,
            pairs: frequencies.len(),
            interleaved,
            cos: angles.iter().map(|angle| factor * angle.cos()).collect(),
            sin: angles.iter().map(|angle| factor * angle.sin()).collect(),
        }
    }
}

impl TransformerConfig {
    /// Whether a sequence that grows from `before` to `after` tokens changes the angles of the tokens it had.
    pub(crate) fn turns_anew(&self, before: usize, after: usize) -> bool {
        match &self.positions {
            Positions::Rotary { angles, local, .. } => {
                let all = [Some(angles), local.as_ref()];
                let mut all = all.into_iter().flatten();
                before > 0 && all.any(|angles| angles.changes(before, after))
            }
            _ => false,
        }
    }

    /// The tables for positions `start..start + count`, for rotary families.
    pub(super) fn rotary_tables(&self, start: usize, count: usize) -> Option<AllTables> {
        match &self.positions {
            Positions::Rotary {
                angles,
                local,
                dimensions,
                interleaved,
            } => {
                let tables = |of: &RotaryConfig| of.tables(*dimensions, *interleaved, start, count);
                Some(AllTables {
                    all: tables(angles),
                    local: local.as_ref().map(tables),
                })
            }
            Positions::Learned { .. } | Positions::Alibi | Positions::Relative { .. } => None,
        }
    }
}

/// The angles of some consecutive positions in all blocks.
#[derive(Clone, Debug)]
pub(super) struct AllTables {
    all: RotaryTables,
    /// In blocks with a sliding window, where they are others.
    local: Option<RotaryTables>,
}

impl AllTables {
    /// Those of a block with a sliding window or without.
    pub(super) fn of(&self, window: bool) -> &RotaryTables {
        let local = self.local.as_ref().filter(|_| window);
        local.unwrap_or(&self.all)
    }
}

/// The angles of some consecutive positions.
#[derive(Clone, Debug)]
pub(super) struct RotaryTables {
    /// Positions.
    pub(super) time: usize,
    /// Pairs of dimensions that turn.
    pub(super) pairs: usize,
    /// Whether a pair's dimensions are neighbours.
    pub(super) interleaved: bool,
    /// Cosines, time x pairs.
    pub(super) cos: Vec<f32>,
    /// Sines, time x pairs.
    pub(super) sin: Vec<f32>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.0,
            original_positions: 4096.0,
        };
        let of = |scaling| {
            RotaryConfig::new(10_000.0, scaling)
                .unwrap()
                .frequencies(128, 10)
        };
        let (plain, scaled) = (of(RopeScaling::None), of(scaling));
        // 32 turns in 4096 positions: pair 20.9; one turn: pair 45.02.
        for (pair, (plain, scaled)) in plain.iter().zip(&scaled).enumerate() {
            let divided = ((pair as f64 - 20.0) / 26.0).clamp(0.0, 1.0);
            let expected = plain * (1.0 - divided) + plain / 4.0 * divided;
            assert!((scaled / expected - 1.0).abs() < 1e-12, "{pair}");
        }
    }

    #[test]
    fn long_sequences_have_divisors_of_their_own() {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![3.0, 8.0],
            attention_factor: 1.5,
            original_positions: 32.0,
        };
        let rotary = RotaryConfig::new(100.0, scaling).unwrap();
        let close = |found: Vec<f64>, expected: [f64; 2]| {
            let pairs = found.iter().zip(expected);
            pairs
                .into_iter()
                .all(|(found, expected)| (found - expected).abs() < 1e-12)
        };
        assert!(close(rotary.frequencies(4, 32), [1.0, 0.05]));
        assert!(close(rotary.frequencies(4, 33), [1.0 / 3.0, 0.1 / 8.0]));
        // The last of 33 positions is the first that makes a sequence long.
        assert_eq!(
            rotary.tables(4, false, 32, 1).cos[0],
            1.5 * (32.0_f32 / 3.0).cos()
        );
        assert_eq!(rotary.tables(4, false, 31, 1).cos[0], 1.5 * 31.0_f32.cos());
    }

    /// The published formula for a sequence of one and a half contexts, factor 2: the base of a context of 2·1.5 − 1 times the length.
    #[test]
    fn a_sequence_beyond_its_context_has_a_larger_base() {
        let scaling = RopeScaling::Dynamic {
            factor: 2.0,
            original_positions: 32.0,
        };
        let rotary = RotaryConfig::new(100.0, scaling).unwrap();
        let plain = RotaryConfig::new(100.0, RopeScaling::None).unwrap();
        assert_eq!(rotary.frequencies(8, 32), plain.frequencies(8, 32));
        let larger = RotaryConfig::new(100.0 * 2_f64.powf(8.0 / 6.0), RopeScaling::None).unwrap();
        let pairs = rotary
            .frequencies(8, 48)
            .into_iter()
            .zip(larger.frequencies(8, 48));
        for (found, expected) in pairs {
            assert!((found / expected - 1.0).abs() < 1e-12);
        }
        assert!(!rotary.changes(10, 32) && rotary.changes(32, 33) && rotary.changes(40, 41));
    }

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let plain = RotaryConfig::new(500_000.0, RopeScaling::None)
            .unwrap()
            .frequencies(128, 10);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        };
        let scaled = RotaryConfig::new(500_000.0, scaling)
            .unwrap()
            .frequencies(128, 10);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[63] / scaled[63] - 8.0).abs() < 1e-9);
        // The published formula, written with wavelengths.
        for (plain, scaled) in plain.iter().zip(&scaled) {
            let wavelength = std::f64::consts::TAU / plain;
            let expected = if wavelength < 8192.0 / 4.0 {
                *plain
            } else if wavelength > 8192.0 {
                plain / 8.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (1.0 - smooth) * plain / 8.0 + smooth * plain
            };
            assert!((scaled / expected - 1.0).abs() < 1e-12);
        }
    }
}
