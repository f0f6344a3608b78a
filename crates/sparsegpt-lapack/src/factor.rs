//! The factor of the Hessian: one `potrf`, and a triangular solve for each diagonal block.
//!
//! With J the matrix that reverses the order of the columns, JHJ = LLᵀ gives H = UUᵀ for U = JLJ, upper triangular.
//! LAPACK finds L, and the inverse of a diagonal block of L is, reversed, that of the block of U.

use std::cmp::Ordering;

use lax::error::Error as Lax;
use ndarray_linalg::error::LinalgError;
use ndarray_linalg::types::{Lapack, Scalar};
use ndarray_linalg::{CholeskyInplace, Diag, SolveTriangularInto, UPLO};
use sparsegpt::ndarray::{Array2, ShapeBuilder};

use crate::error::{LapackError, room};

/// U above the diagonal blocks that end at `blocks`, and U_BB⁻¹ in them, into the upper triangle of `h` (row-major); see
/// [`Backend::inverse_factor`](sparsegpt::backend::Backend::inverse_factor). The strict lower triangle is only read.
pub(crate) fn inverse_factor<T>(
    h: &mut [f32],
    diagonal: &[f32],
    blocks: &[usize],
    narrow: impl Fn(T) -> f32,
) -> Result<(), LapackError>
where
    T: Scalar + Lapack + From<f32> + PartialOrd,
{
    let n = diagonal.len();
    let zero: T = 0.0.into();
    // The lower triangle of JHJ.
    let l = cholesky(column_major(n, |i, j| {
        let (i, j) = (n - 1 - i, n - 1 - j);
        match i.cmp(&j) {
            Ordering::Less => h[j * n + i].into(),
            Ordering::Equal => diagonal[i].into(),
            Ordering::Greater => zero,
        }
    })?)?;
    let mut first = 0;
    for &end in blocks {
        // Columns first..end of U are n − end..n − first of L.
        let block = column_major(end - first, |i, j| l[[n - end + i, n - end + j]])?;
        let identity = column_major(end - first, |i, j| f32::from(u8::from(i == j)).into())?;
        let inverse = block.solve_triangular_into(UPLO::Lower, Diag::NonUnit, identity)?;
        for j in first..end {
            for i in 0..first {
                h[i * n + j] = narrow(l[[n - 1 - i, n - 1 - j]]);
            }
            for i in first..=j {
                h[i * n + j] = narrow(inverse[[end - 1 - i, end - 1 - j]]);
            }
        }
        first = end;
    }
    Ok(())
}

/// A square matrix, column-major as LAPACK wants it.
fn column_major<T>(n: usize, entry: impl Fn(usize, usize) -> T) -> Result<Array2<T>, LapackError> {
    let mut values = room(n, n)?;
    for j in 0..n {
        values.extend((0..n).map(|i| entry(i, j)));
    }
    Ok(Array2::from_shape_vec((n, n).f(), values).map_err(LinalgError::from)?)
}

/// L with LLᵀ = `matrix`; fails with the column in the order of H, which is the reverse of the matrix's.
fn cholesky<T>(mut matrix: Array2<T>) -> Result<Array2<T>, LapackError>
where
    T: Scalar + Lapack + From<f32> + PartialOrd,
{
    let n = matrix.nrows();
    let pivots = match matrix.cholesky_inplace(UPLO::Lower) {
        Ok(_) => n,
        // LAPACK returns the order of the leading minor that is not positive.
        Err(LinalgError::Lapack(Lax::LapackComputationalFailure { return_code })) => {
            usize::try_from(return_code).unwrap_or(n).saturating_sub(1)
        }
        Err(error) => return Err(error.into()),
    };
    // OpenBLAS asks only whether a pivot is ≤ 0, so that NaN and infinity pass.
    let (zero, infinity): (T, T) = (0.0.into(), f32::INFINITY.into());
    let good = matrix
        .diag()
        .iter()
        .take(pivots)
        .take_while(|&&pivot| pivot > zero && pivot < infinity)
        .count();
    if good < n {
        return Err(LapackError::NotPositiveDefinite {
            column: n - 1 - good,
        });
    }
    Ok(matrix)
}
