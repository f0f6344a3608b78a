//! All weights, in panels of rows: what sparse products are compared with, and what is used where too few weights are zero.
//!
//! A panel is [`PANEL_ROWS`] rows, column by column, so that rows are the lanes of vectors: one token's product reads it
//! front to back, and with many tokens a panel's part stays in the cache while tokens pass by.

use ndarray::{Array2, ArrayView2};

use crate::buffer::{Aligned, Buffer};
use crate::error::{Error, Result, expect_len};
use crate::kernel::{Dense, Lanes, StoredPanel};
use crate::value::Value;

/// Rows of a panel.
pub(crate) const PANEL_ROWS: usize = 16;

/// A dense matrix, rows x cols.
///
/// ```
/// use sparsegpt_runtime::DenseMatrix;
/// use sparsegpt_runtime::ndarray::array;
///
/// let dense = array![[1.0_f32, 1.5], [-2.0, 0.0]];
/// assert_eq!(DenseMatrix::from_dense(dense.view()).unpack(), dense);
/// ```
#[derive(Clone, Debug)]
pub struct DenseMatrix<V: Value> {
    rows: usize,
    cols: usize,
    /// Panels x cols x [`PANEL_ROWS`]; rows that are not there are zero.
    values: Buffer<V>,
}

impl<V: Value> DenseMatrix<V> {
    /// Arranges a matrix.
    #[must_use]
    pub fn from_dense(dense: ArrayView2<'_, V>) -> Self {
        let (rows, cols) = dense.dim();
        let mut values = Aligned::zeroed(rows.div_ceil(PANEL_ROWS) * cols * PANEL_ROWS);
        for row in 0..rows {
            let panel = &mut values[row / PANEL_ROWS * cols * PANEL_ROWS..];
            let slot = slot::<V>(row % PANEL_ROWS);
            for (col, &value) in dense.row(row).iter().enumerate() {
                panel[col * PANEL_ROWS + slot] = value;
            }
        }
        Self {
            rows,
            cols,
            values: values.into(),
        }
    }

    pub(crate) fn from_buffer(rows: usize, cols: usize, values: Buffer<V>) -> Result<Self> {
        let panels = rows.div_ceil(PANEL_ROWS);
        let expected = panels.saturating_mul(PANEL_ROWS).saturating_mul(cols);
        expect_len("dense weights", expected, values.len())?;
        let matrix = Self { rows, cols, values };
        let behind = rows..panels * PANEL_ROWS;
        if behind
            .into_iter()
            .any(|row| matrix.row(row).iter().any(|value| !value.is_absent()))
        {
            return Err(Error::packed(
                rows,
                cols,
                "weights behind the last row are not zero",
            ));
        }
        Ok(matrix)
    }

    /// Weights that sparse storage would keep, over all. Reads all of them.
    #[must_use]
    pub fn density(&self) -> f64 {
        let kept = self
            .values
            .iter()
            .filter(|value| !value.is_absent())
            .count();
        kept as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// The matrix as it was, bit for bit.
    #[must_use]
    pub fn unpack(&self) -> Array2<V> {
        Array2::from_shape_fn((self.rows, self.cols), |(row, col)| {
            self.panel_values(row / PANEL_ROWS)[col * PANEL_ROWS + slot::<V>(row % PANEL_ROWS)]
        })
    }

    /// The row as it was; it must be one of the matrix.
    pub(crate) fn row(&self, row: usize) -> Vec<V> {
        let slot = slot::<V>(row % PANEL_ROWS);
        let columns = self.panel_values(row / PANEL_ROWS).chunks_exact(PANEL_ROWS);
        columns.map(|column| column[slot]).collect()
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.values)
    }

    pub(crate) fn values(&self) -> &[V] {
        &self.values
    }

    /// cols x [`PANEL_ROWS`] values.
    fn panel_values(&self, panel: usize) -> &[V] {
        let len = self.cols * PANEL_ROWS;
        &self.values[panel * len..(panel + 1) * len]
    }
}

impl<V: Value> Dense for DenseMatrix<V> {
    type Panel<'a> = StoredPanel<'a, V>;

    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn panel(&self, panel: usize) -> StoredPanel<'_, V> {
        StoredPanel(self.panel_values(panel))
    }
}

/// Where a column of a panel has this row.
pub(crate) fn slot<V: Lanes>(row: usize) -> usize {
    const HALF: usize = PANEL_ROWS / 2;
    if V::INTERLEAVED {
        row % HALF * 2 + row / HALF
    } else {
        row
    }
}
