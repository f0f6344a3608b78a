//! Calibration activations as the caller holds them.

use crate::finite::first_non_finite;
use half::{bf16, f16};
use ndarray::{ArrayView2, s};

/// A view of activations, tokens x columns (the layer's input features), row-major or not.
///
/// Half-precision activations are consumed as they are: no backend widens the whole batch on the host.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Activations<'a> {
    /// 32-bit floats.
    F32(ArrayView2<'a, f32>),
    /// bfloat16.
    Bf16(ArrayView2<'a, bf16>),
    /// IEEE half precision.
    F16(ArrayView2<'a, f16>),
}

impl<'a> From<ArrayView2<'a, f32>> for Activations<'a> {
    fn from(view: ArrayView2<'a, f32>) -> Self {
        Self::F32(view)
    }
}
impl<'a> From<ArrayView2<'a, bf16>> for Activations<'a> {
    fn from(view: ArrayView2<'a, bf16>) -> Self {
        Self::Bf16(view)
    }
}
impl<'a> From<ArrayView2<'a, f16>> for Activations<'a> {
    fn from(view: ArrayView2<'a, f16>) -> Self {
        Self::F16(view)
    }
}

impl<'a> Activations<'a> {
    /// Number of tokens (rows of the view).
    #[must_use]
    pub fn tokens(&self) -> usize {
        match self {
            Self::F32(view) => view.nrows(),
            Self::Bf16(view) => view.nrows(),
            Self::F16(view) => view.nrows(),
        }
    }

    /// Number of input features (columns of the view).
    #[must_use]
    pub fn cols(&self) -> usize {
        match self {
            Self::F32(view) => view.ncols(),
            Self::Bf16(view) => view.ncols(),
            Self::F16(view) => view.ncols(),
        }
    }

    /// The tokens `start..end`.
    ///
    /// # Panics
    /// If the range lies outside the view.
    #[must_use]
    pub fn slice_tokens(&self, start: usize, end: usize) -> Self {
        match self {
            Self::F32(view) => Self::F32(view.slice_move(s![start..end, ..])),
            Self::Bf16(view) => Self::Bf16(view.slice_move(s![start..end, ..])),
            Self::F16(view) => Self::F16(view.slice_move(s![start..end, ..])),
        }
    }

    /// One activation, widened to f32 (exact for both half formats).
    ///
    /// # Panics
    /// If the position lies outside the view.
    #[must_use]
    pub fn get(&self, token: usize, col: usize) -> f32 {
        match self {
            Self::F32(view) => view[[token, col]],
            Self::Bf16(view) => view[[token, col]].to_f32(),
            Self::F16(view) => view[[token, col]].to_f32(),
        }
    }

    /// Writes one token's activations, widened to f32, into `row` (length [`Self::cols`]).
    ///
    /// # Panics
    /// If the lengths differ or the token lies outside the view.
    pub fn widen_token(&self, token: usize, row: &mut [f32]) {
        assert_eq!(
            row.len(),
            self.cols(),
            "row length must equal the number of columns"
        );
        match self {
            Self::F32(view) => {
                for (to, from) in row.iter_mut().zip(view.row(token)) {
                    *to = *from;
                }
            }
            Self::Bf16(view) => {
                for (to, from) in row.iter_mut().zip(view.row(token)) {
                    *to = from.to_f32();
                }
            }
            Self::F16(view) => {
                for (to, from) in row.iter_mut().zip(view.row(token)) {
                    *to = from.to_f32();
                }
            }
        }
    }

    /// The first non-finite activation, as (token, column, value).
    pub(crate) fn first_non_finite(&self) -> Option<(usize, usize, f32)> {
        let found = match self {
            Self::F32(view) => first_non_finite(*view),
            Self::Bf16(view) => first_non_finite(*view),
            Self::F16(view) => first_non_finite(*view),
        };
        found.map(|(token, col)| (token, col, self.get(token, col)))
    }
}

/// One call's worth of calibration data: activations, the number of sequences they come from, and which
/// of the tokens count.
///
/// ```
/// use sparsegpt::{Batch, ndarray::Array2};
/// let activations = Array2::<f32>::ones((8, 4));
/// let real = [true, true, true, false, true, true, true, true];
/// let batch = Batch::new(activations.view()).sequences(2).token_mask(&real);
/// # let _ = batch;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Batch<'a> {
    pub(crate) activations: Activations<'a>,
    pub(crate) sequences: u64,
    pub(crate) token_mask: Option<&'a [bool]>,
}

impl<'a> Batch<'a> {
    /// Activations (tokens x cols) of one sequence in which every token counts.
    pub fn new(activations: impl Into<Activations<'a>>) -> Self {
        Self {
            activations: activations.into(),
            sequences: 1,
            token_mask: None,
        }
    }

    /// The number of sequences these tokens come from (at least 1).
    pub fn sequences(mut self, sequences: u64) -> Self {
        self.sequences = sequences;
        self
    }

    /// `true` for every token that counts; padding is `false` and stays out of the Hessian.
    pub fn token_mask(mut self, mask: &'a [bool]) -> Self {
        self.token_mask = Some(mask);
        self
    }

    /// The activations.
    #[must_use]
    pub fn activations(&self) -> Activations<'a> {
        self.activations
    }
}

impl<'a, T: Into<Activations<'a>>> From<T> for Batch<'a> {
    fn from(activations: T) -> Self {
        Self::new(activations)
    }
}
