//! Layers whose type of weights is known at run time only.

use std::fmt::Debug;

use ndarray::{Array2, ArrayView2};

use crate::error::{Result, expect_row};
use crate::linear::{QuantizedLinear, QuantizedWeights, SparseLinear, Storage, Weights};
use crate::value::Value;

/// y = Wx + b, whatever W is stored as: what an engine holds that reads its layers from files.
///
/// ```
/// use std::sync::Arc;
/// use sparsegpt_runtime::{LinearLayer, SparseLinear};
/// use sparsegpt_runtime::ndarray::array;
///
/// let layer: Arc<dyn LinearLayer> = Arc::new(SparseLinear::new(array![[0.0_f32, 2.0]].view(), None)?);
/// assert_eq!((layer.rows(), layer.cols(), layer.dtype()), (1, 2, "f32"));
/// assert_eq!(layer.forward(array![[1.0, 3.0]].view())?, array![[6.0]]);
/// # Ok::<(), sparsegpt_runtime::Error>(())
/// ```
pub trait LinearLayer: Debug + Send + Sync {
    /// Output features.
    fn rows(&self) -> usize;

    /// Input features.
    fn cols(&self) -> usize;

    /// The type that [`unpack_bytes`](Self::unpack_bytes) gives, as in `bf16`.
    fn dtype(&self) -> &'static str;

    /// How the weights are stored, and why.
    fn storage(&self) -> Storage;

    /// Bytes of the weights in memory.
    fn bytes(&self) -> usize;

    /// Bytes of the weights as [`unpack_bytes`](Self::unpack_bytes) gives them.
    fn unpacked_bytes(&self) -> usize;

    /// Y = XWᵀ + b for `x` of tokens x cols; the result is tokens x rows.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `x` has another number of columns.
    fn forward(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>>;

    /// A row of W, widened to f32: what a table of embeddings is asked for.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) if there is no such row.
    fn row(&self, row: usize) -> Result<Vec<f32>>;

    /// The weights as they were, bit for bit, the low byte first: row by row, or column by column if `transposed`.
    fn unpack_bytes(&self, transposed: bool) -> Vec<u8>;
}

impl<V: Value> LinearLayer for SparseLinear<V> {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn cols(&self) -> usize {
        self.cols()
    }

    fn dtype(&self) -> &'static str {
        V::NAME
    }

    fn storage(&self) -> Storage {
        self.storage()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn unpacked_bytes(&self) -> usize {
        self.rows() * self.cols() * size_of::<V>()
    }

    fn forward(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        self.forward(x)
    }

    fn row(&self, row: usize) -> Result<Vec<f32>> {
        expect_row(row, self.rows())?;
        let values = match self.weights() {
            Weights::Sparse(weight) => weight.row(row),
            Weights::Pattern(weight) => weight.row(row),
            Weights::Dense(weight) => weight.row(row),
        };
        Ok(values.into_iter().map(V::to_f32).collect())
    }

    fn unpack_bytes(&self, transposed: bool) -> Vec<u8> {
        bytes_of(&self.unpack(), transposed)
    }
}

/// Unpacks to f32, which holds what the codes stand for.
impl LinearLayer for QuantizedLinear {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn cols(&self) -> usize {
        self.cols()
    }

    fn dtype(&self) -> &'static str {
        f32::NAME
    }

    fn storage(&self) -> Storage {
        self.storage()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }

    fn unpacked_bytes(&self) -> usize {
        self.rows() * self.cols() * size_of::<f32>()
    }

    fn forward(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        self.forward(x)
    }

    fn row(&self, row: usize) -> Result<Vec<f32>> {
        expect_row(row, self.rows())?;
        Ok(match self.weights() {
            QuantizedWeights::Sparse(weight) => weight.row(row),
            QuantizedWeights::Dense(weight) => weight.row(row),
        })
    }

    fn unpack_bytes(&self, transposed: bool) -> Vec<u8> {
        bytes_of(&self.unpack(), transposed)
    }
}

fn bytes_of<V: Value>(weight: &Array2<V>, transposed: bool) -> Vec<u8> {
    let weight = match transposed {
        true => weight.t(),
        false => weight.view(),
    };
    let values: Vec<V> = weight.iter().copied().collect();
    bytemuck::cast_slice(&values).to_vec()
}
