//! A linear layer on the storage that is faster.

use std::fmt;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, aview1};

use crate::dense::DenseMatrix;
use crate::error::{Error, Result, expect_len};
use crate::kernel::{dense_tokens, dense_vectors, packed_tokens, packed_vectors};
use crate::level::Level;
use crate::packed::PackedMatrix;
use crate::value::Value;

/// Layers denser than this are stored dense, so that no product gets slower. Measured; `docs/runtime.md` says how.
pub const MOST_SPARSE_DENSITY: f64 = 0.75;

/// Up to so many tokens each weight is read once for all of them; more are multiplied in tiles of tokens.
const MOST_VECTORS: usize = 4;

/// How a layer's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Storage {
    /// Bits and the values that are not zero.
    Sparse {
        /// Values over weights.
        density: f64,
    },
    /// Every weight.
    Dense {
        /// Weights that are not zero over weights.
        density: f64,
    },
}

impl fmt::Display for Storage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, density, relation) = match self {
            Self::Sparse { density } => ("sparse", density, "at most"),
            Self::Dense { density } => ("dense", density, "more than"),
        };
        let (percent, most) = (density * 100.0, MOST_SPARSE_DENSITY * 100.0);
        write!(
            formatter,
            "{name}: {percent:.1}% of the weights are not zero, {relation} {most:.0}%"
        )
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Weights<V: Value> {
    Sparse(PackedMatrix<V>),
    Dense(DenseMatrix<V>, f64),
}

/// y = Wx + b with W rows x cols = output x input features.
///
/// ```
/// use sparsegpt_runtime::SparseLinear;
/// use sparsegpt_runtime::ndarray::array;
///
/// let weight = array![[0.0_f32, 2.0, 0.0], [1.0, 0.0, 0.0]];
/// let layer = SparseLinear::new(weight.view(), Some(array![0.5, 0.0].view()))?;
/// assert_eq!(layer.storage().to_string(), "sparse: 33.3% of the weights are not zero, at most 75%");
/// let x = array![[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]];
/// assert_eq!(layer.forward(x.view())?, array![[4.5, 1.0], [2.5, 0.0]]);
/// # Ok::<(), sparsegpt_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SparseLinear<V: Value> {
    weights: Weights<V>,
    bias: Option<Vec<f32>>,
    level: Level,
}

impl<V: Value> SparseLinear<V> {
    /// A layer stored sparse or dense, whichever its density asks for.
    ///
    /// # Errors
    /// [`Error::Shape`] if the bias has not one value for each row.
    pub fn new(weight: ArrayView2<'_, V>, bias: Option<ArrayView1<'_, f32>>) -> Result<Self> {
        let nonzeros = weight.iter().filter(|value| !value.is_absent()).count();
        let density = nonzeros as f64 / weight.len().max(1) as f64;
        let weights = if density <= MOST_SPARSE_DENSITY {
            Weights::Sparse(PackedMatrix::from_dense(weight))
        } else {
            Weights::Dense(DenseMatrix::from_dense(weight), density)
        };
        Self::from_weights(weights, bias.map(|bias| bias.to_vec()))
    }

    /// A layer stored sparse, whatever its density.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn sparse(weight: PackedMatrix<V>, bias: Option<Vec<f32>>) -> Result<Self> {
        Self::from_weights(Weights::Sparse(weight), bias)
    }

    /// A layer stored dense, whatever its density.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn dense(weight: DenseMatrix<V>, bias: Option<Vec<f32>>) -> Result<Self> {
        let nonzeros = weight
            .values()
            .iter()
            .filter(|value| !value.is_absent())
            .count();
        let density = nonzeros as f64 / (weight.rows() * weight.cols()).max(1) as f64;
        Self::from_weights(Weights::Dense(weight, density), bias)
    }

    fn from_weights(weights: Weights<V>, bias: Option<Vec<f32>>) -> Result<Self> {
        let layer = Self {
            weights,
            bias: None,
            level: Level::detect(),
        };
        layer.with_bias(bias)
    }

    /// The same with another bias or none.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has not one value for each row.
    pub fn with_bias(self, bias: Option<Vec<f32>>) -> Result<Self> {
        if let Some(bias) = &bias {
            expect_len("bias", self.rows(), bias.len())?;
        }
        Ok(Self { bias, ..self })
    }

    /// The same on another instruction set, for tests.
    ///
    /// # Errors
    /// [`Error::Setting`] if this processor does not have it.
    #[doc(hidden)]
    pub fn at_level(self, level: Level) -> Result<Self> {
        if !level.is_available() {
            return Err(Error::Setting {
                name: "level",
                expected: "an instruction set of this processor",
                found: level.to_string(),
            });
        }
        Ok(Self { level, ..self })
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        match &self.weights {
            Weights::Sparse(weight) => weight.rows(),
            Weights::Dense(weight, _) => weight.rows(),
        }
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        match &self.weights {
            Weights::Sparse(weight) => weight.cols(),
            Weights::Dense(weight, _) => weight.cols(),
        }
    }

    /// The bias, a value for each row.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// How the weights are stored, and why.
    #[must_use]
    pub fn storage(&self) -> Storage {
        match &self.weights {
            Weights::Sparse(weight) => Storage::Sparse {
                density: weight.density(),
            },
            Weights::Dense(_, density) => Storage::Dense { density: *density },
        }
    }

    /// The instruction set that the products run on.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Bytes of the weights in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::Sparse(weight) => weight.bytes(),
            Weights::Dense(weight, _) => weight.bytes(),
        }
    }

    /// The weights as they were, bit for bit.
    #[must_use]
    pub fn unpack(&self) -> Array2<V> {
        match &self.weights {
            Weights::Sparse(weight) => weight.unpack(),
            Weights::Dense(weight, _) => weight.unpack(),
        }
    }

    pub(crate) fn weights(&self) -> &Weights<V> {
        &self.weights
    }

    /// y = Wx + b.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` has not a value for each column.
    pub fn forward_one(&self, x: ArrayView1<'_, f32>) -> Result<Array1<f32>> {
        let x = x.as_standard_layout();
        let x = aview1(x.as_slice().unwrap_or_default());
        Ok(self
            .forward(x.insert_axis(ndarray::Axis(0)))?
            .index_axis_move(ndarray::Axis(0), 0))
    }

    /// Y = XWᵀ + b for `x` of tokens x cols; the result is tokens x rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` has another number of columns.
    pub fn forward(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        expect_len("input features", self.cols(), x.ncols())?;
        let mut y = Array2::zeros((x.nrows(), self.rows()));
        let bias = self.bias();
        if x.nrows() <= MOST_VECTORS {
            let y = y.as_slice_mut().unwrap_or_default();
            match &self.weights {
                Weights::Sparse(weight) => packed_vectors(self.level, weight, x, bias, y),
                Weights::Dense(weight, _) => dense_vectors(self.level, weight, x, bias, y),
            }
        } else {
            match &self.weights {
                Weights::Sparse(weight) => {
                    packed_tokens(self.level, weight, x, bias, y.view_mut());
                }
                Weights::Dense(weight, _) => {
                    dense_tokens(self.level, weight, x, bias, y.view_mut());
                }
            }
        }
        Ok(y)
    }
}
