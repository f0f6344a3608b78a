//! The best weights on a mask.

use ndarray::{Array2, ArrayView1, ArrayView2};

use super::cholesky::Cholesky;
use super::{not_positive, same_shape, square};
use crate::error::Result;
use crate::threads::map_rows;

/// The weights that are zero where `pruned` says so (`true`) and leave the least (w − q)H(w − q)ᵀ in each row.
///
/// With S the columns that a row keeps and P those it loses, the normal equations H_SS q_S = H_S: w give
/// q_S = w_S + (H_SS)⁻¹ H_SP w_P, the closed form of removing all of P at once (Optimal Brain Surgeon, Hassibi & Stork 1993;
/// for a group Kurtić et al. 2022, arXiv 2203.07259). A Cholesky factorization a row: |S|³/3 + 2·|S|·cols flops, and
/// 4·|S|² bytes for each thread. Where that is too much, conjugate gradients
/// ([`Refit::ConjugateGradients`](crate::solver::Refit)) come close in a few products.
///
/// `dense` is rows x cols, `h` is cols x cols, symmetric, with damping added.
///
/// ```
/// use sparsegpt::ndarray::array;
/// use sparsegpt::rowwise::exact_refit;
/// // Two inputs that are nearly the same: the one that stays takes over the weight of the other.
/// let h = array![[1.0, 0.5], [0.5, 1.0]];
/// let weights = exact_refit(array![[2.0, 3.0]].view(), array![[false, true]].view(), h.view())?;
/// assert_eq!(weights, array![[3.5, 0.0]]);
/// # Ok::<(), sparsegpt::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the shapes do not match,
/// [`Error::NotPositiveDefinite`](crate::Error::NotPositiveDefinite) if H_SS of a row is not positive definite.
pub fn exact_refit(
    dense: ArrayView2<'_, f32>,
    pruned: ArrayView2<'_, bool>,
    h: ArrayView2<'_, f64>,
) -> Result<Array2<f32>> {
    square(h, dense.ncols())?;
    same_shape("the mask", pruned, dense.dim())?;
    let rows = map_rows(dense.nrows(), Cholesky::default, |factor, row| {
        refit_row(dense.row(row), pruned.row(row), h, factor)
    });
    let mut weights = Array2::zeros(dense.dim());
    for (mut to, row) in weights.rows_mut().into_iter().zip(rows) {
        for (column, weight) in row.map_err(not_positive)? {
            to[column] = weight;
        }
    }
    Ok(weights)
}

/// Columns kept with their weights, or the column whose pivot failed.
fn refit_row(
    dense: ArrayView1<'_, f32>,
    pruned: ArrayView1<'_, bool>,
    h: ArrayView2<'_, f64>,
    factor: &mut Cholesky,
) -> Result<Vec<(usize, f32)>, usize> {
    let (lost, kept): (Vec<usize>, Vec<usize>) = (0..dense.len()).partition(|&at| pruned[at]);
    let mut taken_over = vec![0.0; kept.len()];
    if !lost.is_empty() {
        factor
            .factor(kept.len(), |row, col| h[[kept[row], kept[col]]])
            .map_err(|place| kept[place])?;
        for (sum, &row) in taken_over.iter_mut().zip(&kept) {
            let h = h.row(row);
            *sum = lost.iter().map(|&at| h[at] * f64::from(dense[at])).sum();
        }
        factor.solve(&mut taken_over);
    }
    let weights = taken_over.iter().zip(&kept);
    Ok(weights
        .map(|(taken_over, &at)| (at, (f64::from(dense[at]) + taken_over) as f32))
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use approx::assert_relative_eq;
    use ndarray::Array2;

    use super::super::truth;
    use super::*;
    use crate::Error;

    #[test]
    fn the_normal_equations_hold() {
        let (dense, h) = truth::layer(9, 21, 2);
        // Row 0 keeps everything, row 8 nothing.
        let pruned = Array2::from_shape_fn(dense.dim(), |(row, col)| (col * 5 + row) % 8 < row);
        let weights = exact_refit(dense.view(), pruned.view(), h.view()).unwrap();
        assert_eq!(weights.row(0), dense.row(0));
        assert!(weights.row(8).iter().all(|&weight| weight == 0.0));
        for row in 1..8 {
            let wide = dense.row(row).mapv(f64::from);
            let kept: Vec<usize> = (0..21).filter(|&at| !pruned[[row, at]]).collect();
            for (&at, expected) in kept.iter().zip(truth::refit(&wide, &kept, &h)) {
                assert_relative_eq!(f64::from(weights[[row, at]]), expected, max_relative = 1e-6);
            }
            // The gradient (w − q)H is zero where weights are kept.
            let gradient = h.dot(&(&wide - &weights.row(row).mapv(f64::from)));
            for &at in &kept {
                assert!(gradient[at].abs() < 1e-5 * h[[at, at]], "{row}, {at}");
            }
            for at in (0..21).filter(|at| !kept.contains(at)) {
                assert_eq!(weights[[row, at]], 0.0);
            }
        }
    }

    #[test]
    fn a_singular_part_is_an_error() {
        let (dense, mut h) = truth::layer(1, 4, 3);
        h.fill(1.0);
        let pruned = Array2::from_shape_fn((1, 4), |(_, col)| col == 1);
        let error = exact_refit(dense.view(), pruned.view(), h.view()).unwrap_err();
        assert!(matches!(
            error,
            Error::NotPositiveDefinite { column: 2, .. }
        ));
        let wide = Array2::from_elem((1, 5), false);
        let error = exact_refit(dense.view(), wide.view(), h.view()).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }));
    }
}
