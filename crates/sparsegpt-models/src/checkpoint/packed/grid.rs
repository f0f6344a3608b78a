//! Grids whose zero point is never 0.

use ndarray::ArrayView2;
use sparsegpt::quant::{Granularity, Grid, GridLevels, Quantizer, UniformGrid};

/// A [`UniformGrid`] in which every zero point is at least 1, as GPTQ's version 1, which stores it less 1, can hold it in a
/// way that all its readers understand. Only grids with no weight as far below 0 as half a step differ: they give up one level.
#[derive(Clone, Debug)]
pub struct LeastZero(UniformGrid);

impl LeastZero {
    /// For this grid.
    #[must_use]
    pub fn new(grid: UniformGrid) -> Self {
        Self(grid)
    }
}

impl Quantizer for LeastZero {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn granularity(&self) -> Granularity {
        self.0.granularity()
    }

    fn represents_zero(&self) -> bool {
        true
    }

    fn validate(&self) -> sparsegpt::Result<()> {
        self.0.validate()
    }

    fn fit(&self, weights: ArrayView2<'_, f32>) -> sparsegpt::Result<Grid> {
        let mut grid = Quantizer::fit(&self.0, weights)?;
        // From zero point 0 the largest level is max_code; from 1 it is one less, of a step that is larger by as much.
        let steps = self.0.max_code() as f32;
        for (scale, zero) in grid.scale.iter_mut().zip(&mut grid.zero) {
            if *zero < 1.0 {
                *zero = 1.0;
                *scale *= steps / (steps - 1.0);
            }
        }
        Ok(grid)
    }

    fn levels(&self) -> GridLevels {
        self.0.levels()
    }
}
