//! What can go wrong in LAPACK, and on the way there.

use ndarray_linalg::error::LinalgError;
use sparsegpt::backend::Precision;
use sparsegpt::error::{BackendError, BackendErrorKind, HostError};

/// The error type of the [`Lapack`](crate::Lapack) backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LapackError {
    /// A pivot of the factorization was not a positive number.
    #[error("matrix not positive definite: pivot of column {column} is not a positive number")]
    NotPositiveDefinite {
        /// Column of the matrix, counted from 0.
        column: usize,
    },
    /// LAPACK has no factorization in this precision.
    #[error("LAPACK does not factor in {0}, only in f32 and f64")]
    Precision(Precision),
    /// BLAS and LAPACK count with 32 bits.
    #[error(
        "{size} rows or columns are more than BLAS can count; it counts up to {}",
        i32::MAX
    )]
    TooLarge {
        /// Rows or columns.
        size: usize,
    },
    /// An allocation failed.
    #[error("cannot allocate {bytes} bytes")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// LAPACK refused its arguments.
    #[error("LAPACK failed")]
    Routine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A default body of the trait failed.
    #[error(transparent)]
    Host(HostError),
}

impl From<LinalgError> for LapackError {
    fn from(error: LinalgError) -> Self {
        Self::Routine(Box::new(error))
    }
}

impl BackendError for LapackError {
    fn kind(&self) -> BackendErrorKind {
        match self {
            Self::NotPositiveDefinite { column } => {
                BackendErrorKind::NotPositiveDefinite { column: *column }
            }
            Self::Precision(_) | Self::TooLarge { .. } => BackendErrorKind::Unsupported,
            Self::OutOfMemory { .. } => BackendErrorKind::OutOfMemory,
            Self::Routine(_) => BackendErrorKind::Other,
            Self::Host(error) => error.kind(),
        }
    }

    fn from_host(error: HostError) -> Self {
        Self::Host(error)
    }
}

/// An empty vector with room for `rows` x `cols` values.
pub(crate) fn room<T>(rows: usize, cols: usize) -> Result<Vec<T>, LapackError> {
    let count = rows.saturating_mul(cols);
    let mut values = Vec::new();
    values
        .try_reserve_exact(count)
        .map_err(|_| LapackError::OutOfMemory {
            bytes: count.saturating_mul(size_of::<T>()),
        })?;
    Ok(values)
}
