//! The factor of the inverse Hessian, without the inverse.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::backend::Precision;
use crate::error::HostError;

/// A float type the factorization can run in.
trait Real:
    Copy
    + PartialOrd
    + std::ops::Neg<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::AddAssign
{
    const ZERO: Self;
    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
    fn sqrt(self) -> Self;
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($type:ty, $narrow:expr) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            fn from_f32(value: f32) -> Self {
                value.into()
            }
            fn to_f32(self) -> f32 {
                $narrow(self)
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn is_finite(self) -> bool {
                self.is_finite()
            }
        }
    };
}
real!(f32, |value| value);
real!(f64, |value| value as f32);

/// H = UUᵀ with U upper triangular and positive on the diagonal, into the upper triangle of `h`: U above the
/// diagonal blocks, R_BB = U_BB⁻¹ in them. `blocks` are the ends of the blocks. H is given by the strict
/// lower triangle of `h`, which stays as it is, and `diagonal`.
///
/// This Cholesky factorization starts at the last column. H⁻¹ = U⁻ᵀU⁻¹, so R = U⁻¹ has RᵀR = H⁻¹. Row j of
/// R is row j of the inverse Hessian of the columns j.. , divided by the square root of its diagonal
/// entry: what the paper's section 3.4 takes from chol(H⁻¹). The diagonal blocks of R are the inverses
/// of those of U.
///
/// # Errors
/// [`HostError::NotPositiveDefinite`] with the first column (from the last) whose pivot is not a positive
/// finite number.
///
/// # Panics
/// If `h` is not square, `diagonal` has another length, or `blocks` do not end with the last column.
pub fn inverse_factor(
    h: ArrayViewMut2<'_, f32>,
    diagonal: &[f32],
    blocks: &[usize],
    precision: Precision,
) -> Result<(), HostError> {
    assert!(
        h.is_square() && h.nrows() == diagonal.len(),
        "h must be cols x cols"
    );
    assert_eq!(
        blocks.last(),
        Some(&diagonal.len()),
        "blocks must cover the columns"
    );
    match precision {
        Precision::F32 => factor_in::<f32>(h, diagonal, blocks),
        Precision::F64 => factor_in::<f64>(h, diagonal, blocks),
    }
}

fn factor_in<T: Real>(
    mut h: ArrayViewMut2<'_, f32>,
    diagonal: &[f32],
    blocks: &[usize],
) -> Result<(), HostError> {
    let n = diagonal.len();
    let mut u = Array2::from_elem((n, n), T::ZERO);
    for j in (0..n).rev() {
        for i in (0..=j).rev() {
            // H is symmetric; only its lower triangle is given.
            let mut rest = if i == j {
                T::from_f32(diagonal[j])
            } else {
                T::from_f32(h[[j, i]])
            };
            for k in j + 1..n {
                rest = rest - u[[i, k]] * u[[j, k]];
            }
            if i == j {
                if !(rest > T::ZERO && rest.is_finite()) {
                    return Err(HostError::NotPositiveDefinite { column: j });
                }
                u[[j, j]] = rest.sqrt();
            } else {
                u[[i, j]] = rest / u[[j, j]];
            }
        }
    }
    // U R = I in each diagonal block, column by column from the diagonal upwards.
    let mut r = vec![T::ZERO; n];
    let mut block = 0;
    let mut first = 0;
    for j in 0..n {
        if j == blocks[block] {
            first = j;
            block += 1;
        }
        for i in 0..first {
            h[[i, j]] = u[[i, j]].to_f32();
        }
        for i in (first..=j).rev() {
            let mut sum = if i == j { T::from_f32(1.0) } else { T::ZERO };
            for k in i + 1..=j {
                sum = sum - u[[i, k]] * r[k];
            }
            r[i] = sum / u[[i, i]];
            h[[i, j]] = r[i].to_f32();
        }
    }
    Ok(())
}

/// H⁻¹ = RᵀR, both triangles, from R in the upper triangle of `factor` (one block of all columns).
#[must_use]
pub fn inverse_from_factor(factor: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut inverse = Array2::zeros(factor.dim());
    for i in 0..factor.nrows() {
        for j in 0..=i {
            let sum: f64 = (0..=j)
                .map(|k| f64::from(factor[[k, i]]) * f64::from(factor[[k, j]]))
                .sum();
            inverse[[i, j]] = sum as f32;
            inverse[[j, i]] = sum as f32;
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;
    use ndarray::{Array2, arr2};

    use super::*;

    #[test]
    fn factor_of_the_inverse_times_h_is_the_identity() {
        let h = arr2(&[[4.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.5, -1.0, 2.0]]);
        let full = arr2(&[[4.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 2.0]]);
        for precision in [Precision::F32, Precision::F64] {
            let mut r = h.clone();
            inverse_factor(r.view_mut(), &[4.0, 3.0, 2.0], &[3], precision).unwrap();
            for (i, j) in [(1, 0), (2, 0), (2, 1)] {
                assert_eq!(r[[i, j]], h[[i, j]], "the strict lower triangle must stay");
                r[[i, j]] = 0.0;
            }
            let identity = r.t().dot(&r).dot(&full);
            let (identity, expected) = (identity.as_slice().unwrap(), Array2::<f32>::eye(3));
            assert_abs_diff_eq!(identity, expected.as_slice().unwrap(), epsilon = 1e-6);
        }
    }

    #[test]
    fn a_failing_pivot_names_its_column() {
        let mut h = arr2(&[[1.0, 0.0], [2.0, 1.0]]);
        let error = inverse_factor(h.view_mut(), &[1.0, 1.0], &[2], Precision::F64).unwrap_err();
        assert_eq!(error, HostError::NotPositiveDefinite { column: 0 });
        let error =
            inverse_factor(h.view_mut(), &[1.0, f32::NAN], &[1, 2], Precision::F32).unwrap_err();
        assert_eq!(error, HostError::NotPositiveDefinite { column: 1 });
    }
}
