//! Methods that give every row an inverse or a factor of its own, on the host and in f64.
//!
//! They need no backend: weights and masks are views of the host's, H is the full symmetric matrix with its damping
//! already on the diagonal. Their cost grows with rows · cols³, where everything in [`backend`](crate::backend) grows with
//! rows · cols²: for small layers, and as a yardstick for the others. With the feature `cpu` rows are treated in
//! parallel, on the threads of the pool that the caller runs in; what comes out does not depend on their number.

mod cholesky;
mod elimination;
mod exact;
mod obc;
mod obq;
mod runs;
mod swaps;

use ndarray::{Array2, ArrayView2};

pub use exact::exact_refit;
pub use obc::obc_mask;
pub use obq::obq;
pub use runs::obc_runs;
pub use swaps::{Swaps, swap_refine};

use crate::error::{Error, Result};
use crate::threads::map_rows;
use cholesky::Cholesky;

/// Weights (rows x cols) over which a mask has no choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds<'a> {
    /// Those that are pruned whatever they cost.
    pub forced: Option<ArrayView2<'a, bool>>,
    /// Those that stay, also where they are forced.
    pub protected: Option<ArrayView2<'a, bool>>,
}

impl Bounds<'_> {
    fn check(&self, dim: (usize, usize)) -> Result<()> {
        let bounds = [
            ("the forced weights", self.forced),
            ("the protected weights", self.protected),
        ];
        for (what, mask) in bounds {
            mask.map_or(Ok(()), |mask| same_shape(what, mask, dim))?;
        }
        Ok(())
    }

    fn is_forced(&self, at: (usize, usize)) -> bool {
        self.forced.is_some_and(|mask| mask[at]) && !self.is_protected(at)
    }

    fn is_protected(&self, at: (usize, usize)) -> bool {
        self.protected.is_some_and(|mask| mask[at])
    }
}

/// The inverse of a symmetric positive definite matrix, of which the lower triangle is read: 2·cols³ flops.
///
/// # Errors
/// [`Error::Shape`] if it is not square, [`Error::NotPositiveDefinite`] if it is not positive definite.
pub fn inverse(h: ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    square(h, h.ncols())?;
    let cols = h.ncols();
    let mut factor = Cholesky::default();
    factor
        .factor(cols, |row, col| h[[row, col]])
        .map_err(not_positive)?;
    let columns = map_rows(cols, Vec::new, |_: &mut Vec<f64>, column| {
        let mut unit = vec![0.0; cols];
        unit[column] = 1.0;
        factor.solve(&mut unit);
        unit
    });
    // The two halves differ by rounding.
    Ok(Array2::from_shape_fn((cols, cols), |(row, col)| {
        0.5 * (columns[row][col] + columns[col][row])
    }))
}

fn square(h: ArrayView2<'_, f64>, cols: usize) -> Result<()> {
    if h.dim() == (cols, cols) {
        return Ok(());
    }
    Err(Error::Shape {
        layer: String::new(),
        what: "the Hessian",
        expected: format!("{cols} x {cols}"),
        found_rows: h.nrows(),
        found_cols: h.ncols(),
    })
}

fn same_shape(
    what: &'static str,
    mask: ArrayView2<'_, bool>,
    (rows, cols): (usize, usize),
) -> Result<()> {
    if mask.dim() == (rows, cols) {
        return Ok(());
    }
    Err(Error::Shape {
        layer: String::new(),
        what,
        expected: format!("{rows} x {cols}, as the weights"),
        found_rows: mask.nrows(),
        found_cols: mask.ncols(),
    })
}

/// Damping is the caller's, who knows how much of it there is.
fn not_positive(column: usize) -> Error {
    Error::NotPositiveDefinite {
        layer: String::new(),
        column,
        damping: 0.0,
        precision: crate::backend::Precision::F64,
    }
}

#[cfg(test)]
mod truth {
    //! What the tests compare with: no code of this module is used.

    #![allow(clippy::unwrap_used)]

    use ndarray::{Array1, Array2, Axis};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Correlated inputs' H with damping, and weights.
    pub(super) fn layer(rows: usize, cols: usize, seed: u64) -> (Array2<f32>, Array2<f64>) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut matrix = |rows, cols| {
            Array2::from_shape_fn((rows, cols), |_| random.random_range(-1.0..1.0_f64))
        };
        let weights = matrix(rows, cols).mapv(|weight| weight as f32);
        let mixed = matrix(3 * cols, cols).dot(&(matrix(cols, cols) + 0.5));
        let mut h = mixed.t().dot(&mixed);
        let mean = h.diag().mean().unwrap();
        h.diag_mut().mapv_inplace(|entry| entry + 0.01 * mean);
        (weights, h)
    }

    /// Gauss-Jordan with row pivots.
    pub(super) fn inverse(matrix: &Array2<f64>) -> Array2<f64> {
        let size = matrix.nrows();
        let mut left = matrix.clone();
        let mut right = Array2::eye(size);
        for column in 0..size {
            let pivot = (column..size)
                .max_by(|&a, &b| left[[a, column]].abs().total_cmp(&left[[b, column]].abs()))
                .unwrap();
            for matrix in [&mut left, &mut right] {
                for at in 0..size {
                    matrix.swap([pivot, at], [column, at]);
                }
            }
            let scale = left[[column, column]];
            for matrix in [&mut left, &mut right] {
                matrix.row_mut(column).mapv_inplace(|entry| entry / scale);
            }
            for row in (0..size).filter(|&row| row != column) {
                let factor = left[[row, column]];
                for matrix in [&mut left, &mut right] {
                    let from = matrix.row(column).to_owned();
                    matrix.row_mut(row).scaled_add(-factor, &from);
                }
            }
        }
        right
    }

    /// The rows and columns of `places`.
    pub(super) fn part(matrix: &Array2<f64>, rows: &[usize], columns: &[usize]) -> Array2<f64> {
        matrix.select(Axis(0), rows).select(Axis(1), columns)
    }

    /// w_S = (H_SS)⁻¹ H_S: w.
    pub(super) fn refit(weights: &Array1<f64>, kept: &[usize], h: &Array2<f64>) -> Array1<f64> {
        let all: Vec<usize> = (0..weights.len()).collect();
        inverse(&part(h, kept, kept)).dot(&part(h, kept, &all).dot(weights))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn the_inverse_is_one() {
        for cols in [1, 2, 7, 40] {
            let (_, h) = truth::layer(1, cols, 1);
            let product = inverse(h.view()).unwrap().dot(&h);
            let off = (product - Array2::<f64>::eye(cols)).mapv(f64::abs);
            assert!(off.iter().all(|&off| off < 1e-9), "{cols}: {off}");
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_named() {
        let h = array![[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let error = inverse(h.view()).unwrap_err();
        assert!(matches!(
            error,
            Error::NotPositiveDefinite { column: 1, .. }
        ));
        assert!(matches!(
            inverse(h.slice(ndarray::s![..2, ..])).unwrap_err(),
            Error::Shape { .. }
        ));
    }
}
