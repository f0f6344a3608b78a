//! The quantization hook.
//!
//! A [`Quantizer`] says at which granularity it works and turns weights into a [`Grid`]: plain data (scales,
//! zero points, levels) that any backend's kernel can round to. [`UniformGrid`] is the usual one; a
//! backend may fit it on the device. Quantizers of your own return a [`Grid`] and run everywhere.

mod grid;
mod uniform;

use std::fmt::Debug;

use ndarray::ArrayView2;

#[cfg(feature = "cpu")]
pub(crate) use grid::ROUNDER;
pub use grid::{Grid, GridLevels, QuantizedLayer};
pub use uniform::{UniformFit, UniformGrid};

use crate::error::{Error, Result};

/// Over which weights one scale and zero point extend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Granularity {
    /// The whole matrix, found once on the dense weights.
    PerTensor,
    /// Each row, found once on the dense weights.
    PerRow,
    /// Each row in each group of `size` consecutive columns (the last group may be narrower).
    Group {
        /// Columns in a group.
        size: usize,
        /// `true`: all grids are found beforehand on the dense weights, in the original column order.
        /// `false`: a group's grid is found when the solver reaches it, on the weights as compensated so
        /// far, in the order of processing.
        fixed: bool,
    },
}

impl Granularity {
    /// Checks that groups have columns.
    pub(crate) fn validate(self) -> Result<()> {
        match self {
            Self::Group { size: 0, .. } => {
                Err(Error::setting("group size", "at least 1 column", 0))
            }
            _ => Ok(()),
        }
    }
}

/// A quantization scheme, lowered to plain data.
pub trait Quantizer: Debug + Send + Sync {
    /// One line for reports, as in `4 bit asymmetric, groups of 128`.
    fn describe(&self) -> String;

    /// Over which weights one scale extends.
    fn granularity(&self) -> Granularity;

    /// Whether 0 is exactly a level of every grid. Pruning is refused where it is not.
    fn represents_zero(&self) -> bool;

    /// Checks the scheme's own settings.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a setting out of range.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Fits levels to weights (rows x columns of one group, or the whole matrix): one scale and zero point
    /// a row; with [`Granularity::PerTensor`] all rows get the same.
    ///
    /// # Errors
    /// Whatever keeps the scheme from fitting these weights.
    fn fit(&self, weights: ArrayView2<'_, f32>) -> Result<Grid>;

    /// The kind of levels [`fit`](Self::fit) returns; the same for every call.
    fn levels(&self) -> GridLevels;

    /// The scheme as a [`UniformGrid`], where it is one: a backend may then fit it on the device.
    fn as_uniform(&self) -> Option<&UniformGrid> {
        None
    }
}
