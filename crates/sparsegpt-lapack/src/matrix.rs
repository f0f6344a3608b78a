//! Matrices as BLAS takes them.

use std::ops::Range;

use sparsegpt::ndarray::{Array2, ArrayView2};

use crate::blas::{Rows, RowsMut};
use crate::error::{LapackError, room};

/// A matrix of the [`Lapack`](crate::Lapack) backend.
#[derive(Debug)]
pub struct LapackMatrix {
    rows: usize,
    cols: usize,
    /// Row after row.
    pub(crate) values: Vec<f32>,
}

impl LapackMatrix {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Result<Self, LapackError> {
        let mut values = room(rows, cols)?;
        values.resize(rows * cols, 0.0);
        Ok(Self { rows, cols, values })
    }

    pub(crate) fn from_host(host: ArrayView2<'_, f32>) -> Result<Self, LapackError> {
        let (rows, cols) = host.dim();
        let mut values = room(rows, cols)?;
        values.extend(host);
        Ok(Self { rows, cols, values })
    }

    pub(crate) fn to_host(&self) -> Result<Array2<f32>, LapackError> {
        let mut values = room(self.rows, self.cols)?;
        values.extend_from_slice(&self.values);
        Array2::from_shape_vec(self.dim(), values)
            .map_err(|error| LapackError::Routine(Box::new(error)))
    }

    pub(crate) fn copy(&self) -> Result<Self, LapackError> {
        let mut values = room(self.rows, self.cols)?;
        values.extend_from_slice(&self.values);
        Ok(Self { values, ..*self })
    }

    pub(crate) fn dim(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    pub(crate) fn part(
        &self,
        rows: Range<usize>,
        cols: Range<usize>,
    ) -> Result<Rows<'_>, LapackError> {
        // An empty part may begin behind the end.
        let first = rows.start * self.cols + cols.start;
        let values = self.values.get(first..).unwrap_or_default();
        Rows::new(values, rows.len(), cols.len(), self.cols)
    }

    pub(crate) fn columns_mut(&mut self, cols: Range<usize>) -> Result<RowsMut<'_>, LapackError> {
        let values = self.values.get_mut(cols.start..).unwrap_or_default();
        RowsMut::new(values, self.rows, cols.len(), self.cols)
    }
}
