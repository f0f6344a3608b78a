//! The same mathematics in f64, by other routes than the library's.

use sparsegpt::ndarray::{Array2, ArrayView2, Axis, s};

pub(crate) fn widen(matrix: ArrayView2<'_, f32>) -> Array2<f64> {
    matrix.mapv(f64::from)
}

/// The symmetric matrix with the strict lower triangle of `h` and a diagonal.
pub(crate) fn symmetric(h: ArrayView2<'_, f32>, diagonal: &[f32]) -> Array2<f64> {
    Array2::from_shape_fn(h.dim(), |(i, j)| {
        f64::from(if i == j {
            diagonal[i]
        } else {
            h[[i.max(j), i.min(j)]]
        })
    })
}

/// L with LLᵀ = A; `None` if A is not positive definite.
pub(crate) fn cholesky(a: &Array2<f64>) -> Option<Array2<f64>> {
    let n = a.nrows();
    let mut l = Array2::zeros((n, n));
    for i in 0..n {
        for j in 0..=i {
            let rest: f64 = a[[i, j]] - l.slice(s![i, ..j]).dot(&l.slice(s![j, ..j]));
            if i > j {
                l[[i, j]] = rest / l[[j, j]];
            } else if rest > 0.0 {
                l[[j, j]] = rest.sqrt();
            } else {
                return None;
            }
        }
    }
    Some(l)
}

/// L⁻¹B for a lower triangular L.
fn forward_substitution(l: &Array2<f64>, mut b: Array2<f64>) -> Array2<f64> {
    for i in 0..l.nrows() {
        let (done, mut rest) = b.view_mut().split_at(Axis(0), i);
        let mut row = rest.row_mut(0);
        for (k, done) in done.rows().into_iter().enumerate() {
            row.scaled_add(-l[[i, k]], &done);
        }
        row /= l[[i, i]];
    }
    b
}

pub(crate) fn inverse(a: &Array2<f64>) -> Option<Array2<f64>> {
    let l = forward_substitution(&cholesky(a)?, Array2::eye(a.nrows()));
    Some(l.t().dot(&l))
}

/// Upper R with RᵀR = H⁻¹ as the paper's reference takes it: factor, inverse, factor of the inverse.
pub(crate) fn inverse_factor(h: &Array2<f64>) -> Option<Array2<f64>> {
    Some(cholesky(&inverse(h)?)?.reversed_axes())
}

/// tr(ΔW H ΔWᵀ).
pub(crate) fn energy(difference: &Array2<f64>, h: &Array2<f64>) -> f64 {
    (difference.dot(h) * difference).sum()
}

/// The least tr(ΔW H ΔWᵀ) that any weights with these zeros can have: for a row with pruned set P,
/// w_P ((H⁻¹)_PP)⁻¹ w_Pᵀ, from the normal equations of the kept weights.
pub(crate) fn least_energy(
    weights: ArrayView2<'_, f32>,
    h: &Array2<f64>,
    kept: &Array2<bool>,
) -> Option<f64> {
    let inverse = inverse(h)?;
    let mut sum = 0.0;
    for (row, kept) in weights.rows().into_iter().zip(kept.rows()) {
        let pruned: Vec<usize> = (0..kept.len()).filter(|&col| !kept[col]).collect();
        let block = inverse.select(Axis(0), &pruned).select(Axis(1), &pruned);
        let values = Array2::from_shape_fn((pruned.len(), 1), |(at, _)| f64::from(row[pruned[at]]));
        let solved = forward_substitution(&cholesky(&block)?, values);
        sum += solved.iter().map(|value| value * value).sum::<f64>();
    }
    Some(sum)
}

/// The inverse of an upper triangular matrix.
pub(crate) fn inverse_of_upper(u: &Array2<f64>) -> Array2<f64> {
    let n = u.nrows();
    let mut inverse = Array2::zeros((n, n));
    for j in 0..n {
        for i in (0..=j).rev() {
            let sum: f64 = (i + 1..=j).map(|k| u[[i, k]] * inverse[[k, j]]).sum();
            inverse[[i, j]] = (f64::from(u8::from(i == j)) - sum) / u[[i, i]];
        }
    }
    inverse
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use sparsegpt::ndarray::arr2;

    use super::*;

    #[test]
    fn the_factor_times_the_matrix_is_the_identity() {
        let h = arr2(&[[4.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 2.0]]);
        let r = inverse_factor(&h).unwrap();
        let residual = r.t().dot(&r).dot(&h) - Array2::<f64>::eye(3);
        assert!(residual.iter().all(|entry| entry.abs() < 1e-14));
        assert_eq!(r[[2, 0]], 0.0);
        assert!(cholesky(&arr2(&[[1.0, 2.0], [2.0, 1.0]])).is_none());
    }

    #[test]
    fn the_least_energy_is_that_of_the_normal_equations() {
        // One row, second weight pruned: the first moves to w0 + w1·h01/h00.
        let h = arr2(&[[2.0, 1.0], [1.0, 3.0]]);
        let weights = arr2(&[[1.0_f32, 4.0]]);
        let kept = arr2(&[[true, false]]);
        let moved = arr2(&[[-4.0 * 0.5, 4.0]]);
        let expected = energy(&moved, &h);
        assert!((least_energy(weights.view(), &h, &kept).unwrap() - expected).abs() < 1e-12);
    }
}
