//! A linear layer on the storage that is faster.

use std::fmt;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, aview1};

use crate::dense::DenseMatrix;
use crate::error::{Error, Result, expect_len};
use crate::kernel::{
    Dense, Packed, SHAPES, dense_tokens, dense_vectors, packed_tokens, packed_vectors,
};
use crate::level::Level;
use crate::packed::PackedMatrix;
use crate::pattern::{PatternMatrix, View};
use crate::quantized::{Codes, QuantizedDense, QuantizedMatrix, Width};
use crate::value::Value;

/// Layers denser than this are stored dense, as products with many tokens get slower (16-bit values first), and then those with one. Measured;
/// `docs/runtime.md` says how, and which are slower below it: with AVX2 some with 16 to 28 tokens.
pub const MOST_SPARSE_DENSITY: f64 = 0.55;

/// Up to so many tokens, a dense panel is multiplied by one after the other; more are multiplied in tiles of tokens.
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
    /// The values that an N:M pattern leaves, and numbers for their places.
    Pattern {
        /// Zeros in a group.
        zeros: usize,
        /// Columns of a group.
        group: usize,
        /// Values over weights.
        density: f64,
    },
    /// Every weight.
    Dense {
        /// Weights that sparse storage would keep, all but +0, over weights.
        density: f64,
    },
}

impl Storage {
    /// Stored values over weights, or where all are stored, those that sparse storage would keep.
    #[must_use]
    pub fn density(&self) -> f64 {
        match self {
            Self::Sparse { density } | Self::Pattern { density, .. } | Self::Dense { density } => {
                *density
            }
        }
    }

    /// Whether zeros are left out.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        !matches!(self, Self::Dense { .. })
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (percent, most) = (self.density() * 100.0, MOST_SPARSE_DENSITY * 100.0);
        match self {
            Self::Sparse { .. } => {
                write!(formatter, "sparse: {percent:.1}% of the weights are stored")
            }
            Self::Pattern { zeros, group, .. } => write!(
                formatter,
                "{zeros}:{group}: {percent:.1}% of the weights are stored"
            ),
            Self::Dense { .. } if self.density() > MOST_SPARSE_DENSITY => write!(
                formatter,
                "dense: {percent:.1}% of the weights would be stored, more than {most:.0}%"
            ),
            Self::Dense { .. } => write!(
                formatter,
                "dense, where {percent:.1}% of the weights would be stored"
            ),
        }
    }
}

/// Y = XWᵀ + b on a storage, for few tokens and for many.
trait Product {
    /// Up to so many are few.
    fn few(&self, level: Level) -> usize;
    fn vectors(&self, level: Level, x: ArrayView2<'_, f32>, bias: Option<&[f32]>, y: &mut [f32]);
    fn tokens(
        &self,
        level: Level,
        x: ArrayView2<'_, f32>,
        bias: Option<&[f32]>,
        y: ArrayViewMut2<'_, f32>,
    );
}

struct OfPacked<'a, M>(&'a M);
struct OfDense<'a, M>(&'a M);

impl<M: Packed> Product for OfPacked<'_, M> {
    fn few(&self, level: Level) -> usize {
        self.0.few(level)
    }

    fn vectors(&self, level: Level, x: ArrayView2<'_, f32>, bias: Option<&[f32]>, y: &mut [f32]) {
        packed_vectors(level, self.0, x, bias, y);
    }

    fn tokens(
        &self,
        level: Level,
        x: ArrayView2<'_, f32>,
        bias: Option<&[f32]>,
        y: ArrayViewMut2<'_, f32>,
    ) {
        packed_tokens(level, self.0, x, bias, y);
    }
}

impl<M: Dense> Product for OfDense<'_, M> {
    fn few(&self, _level: Level) -> usize {
        MOST_VECTORS
    }

    fn vectors(&self, level: Level, x: ArrayView2<'_, f32>, bias: Option<&[f32]>, y: &mut [f32]) {
        dense_vectors(level, self.0, x, bias, y);
    }

    fn tokens(
        &self,
        level: Level,
        x: ArrayView2<'_, f32>,
        bias: Option<&[f32]>,
        y: ArrayViewMut2<'_, f32>,
    ) {
        dense_tokens(level, self.0, x, bias, y);
    }
}

/// `product` on all of `x`, whose columns fit; the result is tokens x rows.
fn run(
    product: &dyn Product,
    rows: usize,
    level: Level,
    x: ArrayView2<'_, f32>,
    bias: Option<&[f32]>,
) -> Array2<f32> {
    let mut y = Array2::zeros((x.nrows(), rows));
    if x.nrows() <= product.few(level) {
        product.vectors(level, x, bias, y.as_slice_mut().unwrap_or_default());
    } else {
        product.tokens(level, x, bias, y.view_mut());
    }
    y
}

/// Levels are checked here: kernels run whatever they are told.
fn checked(level: Level) -> Result<Level> {
    if level.is_available() {
        return Ok(level);
    }
    Err(Error::Setting {
        name: "level",
        expected: "an instruction set of this processor",
        found: level.to_string(),
    })
}

#[derive(Clone, Debug)]
pub(crate) enum Weights<V: Value> {
    Sparse(PackedMatrix<V>),
    Pattern(PatternMatrix<V>),
    Dense(DenseMatrix<V>),
}

impl<V: Value> Weights<V> {
    /// The smallest form that leaves out zeros.
    fn smallest(weight: ArrayView2<'_, V>) -> Result<Self> {
        let packed = PackedMatrix::from_dense(weight);
        for shape in &SHAPES {
            // Its values alone may be more.
            let least = packed.rows() * packed.cols() * shape.kept / 8 * size_of::<V>();
            if least == 0 || least >= packed.bytes() {
                continue;
            }
            let pattern = PatternMatrix::from_dense(weight, shape.zeros, shape.group)?;
            if let Some(pattern) = pattern.filter(|pattern| pattern.bytes() < packed.bytes()) {
                return Ok(Self::Pattern(pattern));
            }
        }
        Ok(Self::Sparse(packed))
    }
}

/// y = Wx + b with W rows x cols = output x input features.
///
/// ```
/// use sparsegpt_runtime::SparseLinear;
/// use sparsegpt_runtime::ndarray::array;
///
/// let weight = array![[0.0_f32, 2.0, 0.0], [1.0, 0.0, 0.0]];
/// let layer = SparseLinear::new(weight.view(), Some(array![0.5, 0.0].view()))?;
/// assert_eq!(layer.storage().to_string(), "sparse: 33.3% of the weights are stored");
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
            Weights::smallest(weight)?
        } else {
            Weights::Dense(DenseMatrix::from_dense(weight))
        };
        Self::from_weights(weights, bias.map(|bias| bias.to_vec()))
    }

    /// A layer stored without zeros, whatever its density: by an N:M pattern if that is smaller, or else by bits.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn smallest(weight: ArrayView2<'_, V>, bias: Option<Vec<f32>>) -> Result<Self> {
        Self::from_weights(Weights::smallest(weight)?, bias)
    }

    /// A layer stored by an N:M pattern.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn pattern(weight: PatternMatrix<V>, bias: Option<Vec<f32>>) -> Result<Self> {
        Self::from_weights(Weights::Pattern(weight), bias)
    }

    /// A layer stored sparse by bits, whatever its density.
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
        Self::from_weights(Weights::Dense(weight), bias)
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
        let level = checked(level)?;
        Ok(Self { level, ..self })
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        match &self.weights {
            Weights::Sparse(weight) => weight.rows(),
            Weights::Pattern(weight) => weight.rows(),
            Weights::Dense(weight) => weight.rows(),
        }
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        match &self.weights {
            Weights::Sparse(weight) => weight.cols(),
            Weights::Pattern(weight) => weight.cols(),
            Weights::Dense(weight) => weight.cols(),
        }
    }

    /// The bias, a value for each row.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// How the weights are stored, and why. Of dense ones all are counted.
    #[must_use]
    pub fn storage(&self) -> Storage {
        match &self.weights {
            Weights::Sparse(weight) => Storage::Sparse {
                density: weight.density(),
            },
            Weights::Pattern(weight) => {
                let (zeros, group) = weight.pattern();
                Storage::Pattern {
                    zeros,
                    group,
                    density: weight.density(),
                }
            }
            Weights::Dense(weight) => Storage::Dense {
                density: weight.density(),
            },
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
            Weights::Pattern(weight) => weight.bytes(),
            Weights::Dense(weight) => weight.bytes(),
        }
    }

    /// The weights as they were, bit for bit.
    #[must_use]
    pub fn unpack(&self) -> Array2<V> {
        match &self.weights {
            Weights::Sparse(weight) => weight.unpack(),
            Weights::Pattern(weight) => weight.unpack(),
            Weights::Dense(weight) => weight.unpack(),
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
        let run = |product: &dyn Product| run(product, self.rows(), self.level, x, self.bias());
        Ok(match &self.weights {
            Weights::Sparse(weight) => run(&OfPacked(weight)),
            Weights::Pattern(weight) => match weight.view() {
                View::TwoOfFour(weight) => run(&OfPacked(&weight)),
                View::FourOfEight(weight) => run(&OfPacked(&weight)),
                View::OneOfFour(weight) => run(&OfPacked(&weight)),
                View::TwoOfEight(weight) => run(&OfPacked(&weight)),
            },
            Weights::Dense(weight) => run(&OfDense(weight)),
        })
    }
}

/// y = Wx + b with the weights of W codes of a grid.
///
/// ```
/// use sparsegpt_runtime::{Codes, QuantizedLinear, Width};
/// use sparsegpt_runtime::ndarray::array;
///
/// let (codes, scales, zeros) = (array![[128, 130, 128]], array![[0.5_f32]], array![[128]]);
/// let codes = Codes {
///     width: Width::Eight,
///     codes: codes.view(),
///     scales: scales.view(),
///     zeros: zeros.view(),
///     group: 64,
/// };
/// let layer = QuantizedLinear::new(&codes, None)?;
/// assert_eq!(layer.forward(array![[1.0, 2.0, 3.0]].view())?, array![[2.0]]);
/// # Ok::<(), sparsegpt_runtime::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct QuantizedLinear {
    weights: QuantizedWeights,
    bias: Option<Vec<f32>>,
    level: Level,
}

#[derive(Clone, Debug)]
pub(crate) enum QuantizedWeights {
    Sparse(QuantizedMatrix),
    Dense(QuantizedDense),
}

impl QuantizedLinear {
    /// A layer stored sparse or dense, whichever its density asks for.
    ///
    /// # Errors
    /// [`Error::Packed`] if codes and grid do not fit each other, [`Error::Shape`] if the bias has not one value for each row.
    pub fn new(codes: &Codes<'_>, bias: Option<Vec<f32>>) -> Result<Self> {
        codes.check()?;
        match codes.density() <= MOST_SPARSE_DENSITY {
            true => Self::sparse(QuantizedMatrix::from_codes(codes)?, bias),
            false => Self::dense(QuantizedDense::from_codes(codes)?, bias),
        }
    }

    /// A layer stored sparse, whatever its density.
    ///
    /// # Errors
    /// [`Error::Shape`] if the bias has not one value for each row.
    pub fn sparse(weight: QuantizedMatrix, bias: Option<Vec<f32>>) -> Result<Self> {
        Self::from_weights(QuantizedWeights::Sparse(weight), bias)
    }

    /// A layer stored dense, whatever its density.
    ///
    /// # Errors
    /// As [`sparse`](Self::sparse).
    pub fn dense(weight: QuantizedDense, bias: Option<Vec<f32>>) -> Result<Self> {
        Self::from_weights(QuantizedWeights::Dense(weight), bias)
    }

    fn from_weights(weights: QuantizedWeights, bias: Option<Vec<f32>>) -> Result<Self> {
        let layer = Self {
            weights,
            bias,
            level: Level::detect(),
        };
        if let Some(bias) = &layer.bias {
            expect_len("bias", layer.rows(), bias.len())?;
        }
        Ok(layer)
    }

    /// The same on another instruction set, for tests.
    ///
    /// # Errors
    /// [`Error::Setting`] if this processor does not have it.
    #[doc(hidden)]
    pub fn at_level(self, level: Level) -> Result<Self> {
        let level = checked(level)?;
        Ok(Self { level, ..self })
    }

    /// Output features.
    #[must_use]
    pub fn rows(&self) -> usize {
        match &self.weights {
            QuantizedWeights::Sparse(weight) => weight.rows(),
            QuantizedWeights::Dense(weight) => weight.rows(),
        }
    }

    /// Input features.
    #[must_use]
    pub fn cols(&self) -> usize {
        match &self.weights {
            QuantizedWeights::Sparse(weight) => weight.cols(),
            QuantizedWeights::Dense(weight) => weight.cols(),
        }
    }

    /// Bits of a code.
    #[must_use]
    pub fn width(&self) -> Width {
        match &self.weights {
            QuantizedWeights::Sparse(weight) => weight.width(),
            QuantizedWeights::Dense(weight) => weight.width(),
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
            QuantizedWeights::Sparse(weight) => Storage::Sparse {
                density: weight.density(),
            },
            QuantizedWeights::Dense(weight) => Storage::Dense {
                density: weight.density(),
            },
        }
    }

    /// Bytes of the weights in memory, grid included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.weights {
            QuantizedWeights::Sparse(weight) => weight.bytes(),
            QuantizedWeights::Dense(weight) => weight.bytes(),
        }
    }

    /// The weights that the codes stand for.
    #[must_use]
    pub fn unpack(&self) -> Array2<f32> {
        match &self.weights {
            QuantizedWeights::Sparse(weight) => weight.unpack(),
            QuantizedWeights::Dense(weight) => weight.unpack(),
        }
    }

    pub(crate) fn weights(&self) -> &QuantizedWeights {
        &self.weights
    }

    /// Y = XWᵀ + b for `x` of tokens x cols; the result is tokens x rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` has another number of columns.
    pub fn forward(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
        expect_len("input features", self.cols(), x.ncols())?;
        let run = |product: &dyn Product| run(product, self.rows(), self.level, x, self.bias());
        Ok(match &self.weights {
            QuantizedWeights::Sparse(weight) => run(&OfPacked(weight)),
            QuantizedWeights::Dense(weight) => run(&OfDense(weight)),
        })
    }
}
