//! Rotary position embedding: frequencies and tables.

use super::config::{LlamaConfig, Positions};
use crate::{Error, Result};

/// How the frequencies are stretched for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
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
}

/// Base and scaling of the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
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
        match scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("factor", factor)?,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("original_max_position_embeddings", original_positions)?;
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
    pub fn scaling(&self) -> RopeScaling {
        self.scaling
    }

    /// The angle per position of each pair of the `head_dim` dimensions that turn.
    #[must_use]
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|pair| {
                let plain = self.theta.powf(-2.0 * pair as f64 / head_dim as f64);
                match self.scaling {
                    RopeScaling::None => plain,
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

    /// Cosines and sines for positions `start..start + count`.
    pub(super) fn tables(
        &self,
        dimensions: usize,
        interleaved: bool,
        start: usize,
        count: usize,
    ) -> RotaryTables {
        let frequencies = self.frequencies(dimensions);
        // transformers computes frequencies and angles in f32; follow its rounding.
        let angles: Vec<f32> = (start..start + count)
            .flat_map(|position| frequencies.iter().map(move |&f| position as f32 * f as f32))
            .collect();
        RotaryTables {
            time: count,
            pairs: frequencies.len(),
            interleaved,
            cos: angles.iter().copied().map(f32::cos).collect(),
            sin: angles.iter().copied().map(f32::sin).collect(),
        }
    }
}

impl LlamaConfig {
    /// The tables for positions `start..start + count`, for rotary families.
    pub(super) fn rotary_tables(&self, start: usize, count: usize) -> Option<AllTables> {
        match self.positions {
            Positions::Rotary {
                angles,
                local,
                dimensions,
                interleaved,
            } => {
                let tables = |of: RotaryConfig| of.tables(dimensions, interleaved, start, count);
                Some(AllTables {
                    all: tables(angles),
                    local: local.map(tables),
                })
            }
            Positions::Learned { .. } | Positions::Alibi => None,
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
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let plain = RotaryConfig::new(500_000.0, RopeScaling::None)
            .unwrap()
            .frequencies(128);
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 8192.0,
        };
        let scaled = RotaryConfig::new(500_000.0, scaling)
            .unwrap()
            .frequencies(128);
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
