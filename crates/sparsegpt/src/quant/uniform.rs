//! Uniform integer grids.

use ndarray::{Array1, ArrayView1, ArrayView2};

use super::{Granularity, Grid, GridLevels, Quantizer};
use crate::backend::GridKind;
use crate::backend::host::round_to_grid;
use crate::error::{Error, Result};

/// Scales and zero points as [`UniformGrid::fit`] finds them.
pub type UniformFit = Grid;

/// A uniform grid of 2 to 8 bits: w ≈ scale·(code − zero), code in 0..=2^bits − 1, zero an integer.
///
/// Asymmetric: the range is min(0, min w) ..= max(0, max w), so 0 is always a level. Symmetric: the range
/// is ±max |w| and zero = 2^(bits−1). With [`mse`](Self::with_mse) the range is shrunk by 0, 1, … 79 % and
/// the best is kept, by Σ |w − q|^2.4 (Frantar et al. 2022, GPTQ, reference code).
///
/// ```
/// use sparsegpt::quant::{Quantizer, UniformGrid};
/// let grid = UniformGrid::new(4)?.with_groups(128).with_mse(true);
/// assert_eq!(grid.describe(), "4 bit asymmetric, groups of 128, MSE range");
/// assert!(UniformGrid::new(9).is_err());
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Unchecked"))]
pub struct UniformGrid {
    bits: u32,
    symmetric: bool,
    mse: bool,
    granularity: Granularity,
}

/// A grid as it is read, before anything is known of its bits.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Unchecked {
    bits: u32,
    symmetric: bool,
    mse: bool,
    granularity: Granularity,
}

#[cfg(feature = "serde")]
impl TryFrom<Unchecked> for UniformGrid {
    type Error = Error;

    fn try_from(read: Unchecked) -> Result<Self> {
        let grid = Self {
            bits: read.bits,
            symmetric: read.symmetric,
            mse: read.mse,
            granularity: read.granularity,
        };
        grid.validate()?;
        Ok(grid)
    }
}

/// Exponent of the range search (GPTQ reference code).
const MSE_NORM: f32 = 2.4;
/// Shrink steps of one per cent tried by the range search (GPTQ reference code).
const MSE_STEPS: u32 = 80;

impl UniformGrid {
    /// An asymmetric grid of `bits` bits, one scale and zero point a row.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] unless `bits` is 2 to 8.
    pub fn new(bits: u32) -> Result<Self> {
        let grid = Self {
            bits,
            symmetric: false,
            mse: false,
            granularity: Granularity::PerRow,
        };
        grid.validate()?;
        Ok(grid)
    }

    /// Symmetric (true) or asymmetric (false, the default).
    #[must_use]
    pub fn with_symmetric(mut self, symmetric: bool) -> Self {
        self.symmetric = symmetric;
        self
    }

    /// With (true) or without (false, the default) a search for the range of least error.
    #[must_use]
    pub fn with_mse(mut self, mse: bool) -> Self {
        self.mse = mse;
        self
    }

    /// Another granularity; the default is [`Granularity::PerRow`].
    #[must_use]
    pub fn with_granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// Groups of `size` columns, each with a grid found when the solver reaches it.
    #[must_use]
    pub fn with_groups(self, size: usize) -> Self {
        self.with_granularity(Granularity::Group { size, fixed: false })
    }

    /// Groups of `size` columns with grids found beforehand on the dense weights.
    #[must_use]
    pub fn with_static_groups(self, size: usize) -> Self {
        self.with_granularity(Granularity::Group { size, fixed: true })
    }

    /// Bits per weight.
    #[must_use]
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The largest code, 2^bits − 1.
    #[must_use]
    pub fn max_code(&self) -> u32 {
        (1 << self.bits) - 1
    }

    /// Whether the grid is symmetric.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// Whether the range of least error is searched for.
    #[must_use]
    pub fn is_mse(&self) -> bool {
        self.mse
    }

    /// Scale and zero point of each row of `weights` (rows x cols), or the same for all rows where
    /// `per_tensor`. Rows of zeros get the range ±1.
    #[must_use]
    pub fn fit(&self, weights: ArrayView2<'_, f32>, per_tensor: bool) -> UniformFit {
        if per_tensor {
            let (scale, zero) = self.fit_values(weights.iter().copied());
            let rows = weights.nrows();
            Grid::new(
                Array1::from_elem(rows, scale),
                Array1::from_elem(rows, zero),
            )
        } else {
            let (scale, zero): (Vec<_>, Vec<_>) = weights
                .rows()
                .into_iter()
                .map(|row| self.fit_row(row))
                .unzip();
            Grid::new(scale.into(), zero.into())
        }
    }

    pub(crate) fn fit_row(&self, row: ArrayView1<'_, f32>) -> (f32, f32) {
        self.fit_values(row.iter().copied())
    }

    /// Scale and zero point for some weights.
    fn fit_values(&self, values: impl Iterator<Item = f32> + Clone) -> (f32, f32) {
        let (mut low, mut high) = values.clone().fold((0.0_f32, 0.0_f32), |(low, high), w| {
            (low.min(w), high.max(w))
        });
        if self.symmetric {
            high = high.max(-low);
            low = -high;
        }
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        let grid_of_range = |shrink: f32| {
            let scale = shrink * (high - low) / self.max_code() as f32;
            // The range may underflow to nothing for denormal weights.
            let scale = scale.max(f32::MIN_POSITIVE);
            let zero = if self.symmetric {
                (1 << (self.bits - 1)) as f32
            } else {
                (-(shrink * low) / scale)
                    .round_ties_even()
                    .clamp(0.0, self.max_code() as f32)
            };
            (scale, zero)
        };
        if !self.mse {
            return grid_of_range(1.0);
        }
        let kind = GridKind::Affine {
            max_code: self.max_code(),
        };
        let mut best = (f32::INFINITY, grid_of_range(1.0));
        for step in 0..MSE_STEPS {
            let (scale, zero) = grid_of_range(1.0 - step as f32 / 100.0);
            let error: f32 = values
                .clone()
                .map(|w| {
                    (round_to_grid(kind, w, scale, zero) - w)
                        .abs()
                        .powf(MSE_NORM)
                })
                .sum();
            if error < best.0 {
                best = (error, (scale, zero));
            }
        }
        best.1
    }
}

impl Quantizer for UniformGrid {
    fn describe(&self) -> String {
        let symmetry = if self.symmetric {
            "symmetric"
        } else {
            "asymmetric"
        };
        let granularity = match self.granularity {
            Granularity::PerTensor => "per tensor".to_owned(),
            Granularity::PerRow => "per row".to_owned(),
            Granularity::Group { size, fixed: false } => format!("groups of {size}"),
            Granularity::Group { size, fixed: true } => format!("static groups of {size}"),
        };
        let mse = if self.mse { ", MSE range" } else { "" };
        format!("{} bit {symmetry}, {granularity}{mse}", self.bits)
    }

    fn granularity(&self) -> Granularity {
        self.granularity
    }

    fn represents_zero(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<()> {
        if !(2..=8).contains(&self.bits) {
            return Err(Error::setting("quantizer bits", "2 to 8", self.bits));
        }
        self.granularity.validate()
    }

    fn fit(&self, weights: ArrayView2<'_, f32>) -> Result<Grid> {
        Ok(Self::fit(
            self,
            weights,
            self.granularity == Granularity::PerTensor,
        ))
    }

    fn levels(&self) -> GridLevels {
        GridLevels::Affine {
            max_code: self.max_code(),
        }
    }

    fn as_uniform(&self) -> Option<&UniformGrid> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::arr2;

    use super::*;

    #[test]
    fn zero_is_a_level_of_every_grid() {
        let weights = arr2(&[
            [0.3, -0.7, 0.11],
            [2.0, 1.0, 0.5],
            [-1.0, -2.0, -0.3],
            [0.0, 0.0, 0.0],
        ]);
        for bits in 2..=8 {
            for symmetric in [false, true] {
                for mse in [false, true] {
                    let grid = UniformGrid::new(bits)
                        .unwrap()
                        .with_symmetric(symmetric)
                        .with_mse(mse);
                    let fit = grid.fit(weights.view(), false);
                    let kind = GridKind::Affine {
                        max_code: grid.max_code(),
                    };
                    for (&scale, &zero) in fit.scale.iter().zip(&fit.zero) {
                        assert!(scale > 0.0);
                        assert_eq!(zero.fract(), 0.0);
                        assert_eq!(round_to_grid(kind, 0.0, scale, zero), 0.0);
                    }
                }
            }
        }
    }

    #[test]
    fn extremes_of_the_range_are_levels() {
        let grid = UniformGrid::new(4).unwrap();
        let weights = arr2(&[[-0.5_f32, 1.0, 0.25]]);
        let fit = grid.fit(weights.view(), false);
        let kind = GridKind::Affine { max_code: 15 };
        for &w in &weights {
            let level = round_to_grid(kind, w, fit.scale[0], fit.zero[0]);
            assert!((level - w).abs() <= fit.scale[0] / 2.0 + 1e-6);
        }
    }

    #[test]
    fn the_range_search_never_raises_its_own_error() {
        let weights = arr2(&[[
            0.01_f32, -0.02, 0.03, 0.9, -0.015, 0.02, 0.005, -0.01, 0.012, 0.03,
        ]]);
        let error = |grid: &UniformGrid| -> f32 {
            let fit = grid.fit(weights.view(), false);
            let kind = GridKind::Affine {
                max_code: grid.max_code(),
            };
            let round = |w: f32| round_to_grid(kind, w, fit.scale[0], fit.zero[0]);
            weights
                .iter()
                .map(|&w| (round(w) - w).abs().powf(MSE_NORM))
                .sum()
        };
        let plain = UniformGrid::new(3).unwrap();
        assert!(error(&plain.clone().with_mse(true)) <= error(&plain));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn grids_are_checked_when_they_are_read() {
        let grid = UniformGrid::new(3).unwrap().with_groups(16).with_mse(true);
        let text = serde_json::to_string(&grid).unwrap();
        assert_eq!(serde_json::from_str::<UniformGrid>(&text).unwrap(), grid);
        for (from, to) in [("\"bits\":3", "\"bits\":40"), ("\"size\":16", "\"size\":0")] {
            assert!(text.contains(from), "{text}");
            assert!(serde_json::from_str::<UniformGrid>(&text.replace(from, to)).is_err());
        }
    }

    #[test]
    fn bits_outside_two_to_eight_are_refused() {
        for bits in [0, 1, 9, 16, 33] {
            let error = UniformGrid::new(bits).unwrap_err().to_string();
            assert!(error.contains("2 to 8"), "{error}");
        }
    }
}
