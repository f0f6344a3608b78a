//! Products and sums of matrices.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Zip};

use crate::hessian::Activations;

/// H ← beta·H + alpha·XᵀX on the lower triangle of `h` (cols x cols); `x` is tokens x cols.
///
/// # Panics
/// If the shapes do not match.
pub fn gram_update(mut h: ArrayViewMut2<'_, f32>, x: Activations<'_>, alpha: f32, beta: f32) {
    let cols = x.cols();
    assert_eq!(h.dim(), (cols, cols), "h must be cols x cols");
    for i in 0..cols {
        for j in 0..=i {
            h[[i, j]] *= beta;
        }
    }
    let mut row = vec![0.0; cols];
    for token in 0..x.tokens() {
        x.widen_token(token, &mut row);
        for i in 0..cols {
            let scaled = alpha * row[i];
            for j in 0..=i {
                h[[i, j]] += scaled * row[j];
            }
        }
    }
}

/// target ← alpha·target + beta·other.
///
/// # Panics
/// If the shapes differ.
pub fn combine(
    mut target: ArrayViewMut2<'_, f32>,
    alpha: f32,
    other: ArrayView2<'_, f32>,
    beta: f32,
) {
    Zip::from(&mut target)
        .and(&other)
        .for_each(|t, &o| *t = alpha * *t + beta * o);
}

/// Rows and columns of the symmetric matrix in the strict lower triangle of `h`, in another order: lower
/// triangle of the result at (i, j) is H at (order\[i\], order\[j\]).
///
/// # Panics
/// If `order` is not as long as `h` or points outside it.
#[must_use]
pub fn permute_hessian(h: ArrayView2<'_, f32>, order: &[usize]) -> Array2<f32> {
    assert_eq!(h.nrows(), order.len(), "order must have one entry a column");
    Array2::from_shape_fn(h.dim(), |(i, j)| {
        let (a, b) = (order[i], order[j]);
        if i <= j { 0.0 } else { h[[a.max(b), a.min(b)]] }
    })
}

/// wᵢ H wᵢᵀ for every row of `w`, in f64; H has the strict lower triangle of `h` and `diagonal`.
///
/// # Panics
/// If the shapes do not match.
#[must_use]
pub fn row_energies(w: ArrayView2<'_, f32>, h: ArrayView2<'_, f32>, diagonal: &[f32]) -> Vec<f64> {
    assert_eq!(w.ncols(), h.nrows(), "w must be rows x cols");
    w.rows()
        .into_iter()
        .map(|row| {
            let mut energy = 0.0;
            for i in 0..row.len() {
                let mut product = 0.5 * f64::from(diagonal[i]) * f64::from(row[i]);
                for j in 0..i {
                    product += f64::from(h[[i, j]]) * f64::from(row[j]);
                }
                energy += 2.0 * product * f64::from(row[i]);
            }
            energy
        })
        .collect()
}

/// W ← D + W·R with R upper triangular: columns of a block brought up to date, where `weights` W holds the
/// updates gathered from the columns before it.
///
/// With H = UUᵀ and e_k the loss of column k, the current weights of a block B are
/// D_B + (Σ_k e_k U_kB)·U_BB⁻¹ (QuIP's LDLQ form, Chee et al. 2023, for blocks).
///
/// # Panics
/// If the shapes do not match.
pub fn open_block(
    mut weights: ArrayViewMut2<'_, f32>,
    rest: ArrayView2<'_, f32>,
    factor: ArrayView2<'_, f32>,
) {
    let width = weights.ncols();
    assert_eq!(factor.dim(), (width, width), "factor must be width x width");
    for (mut row, dense) in weights.rows_mut().into_iter().zip(rest.rows()) {
        // From the last column, which alone reads itself.
        for j in (0..width).rev() {
            let update: f32 = (0..=j).map(|k| row[k] * factor[[k, j]]).sum();
            row[j] = dense[j] + update;
        }
    }
}

/// C += alpha · A · B.
///
/// # Panics
/// If the shapes do not match.
pub fn gemm(
    mut c: ArrayViewMut2<'_, f32>,
    alpha: f32,
    a: ArrayView2<'_, f32>,
    b: ArrayView2<'_, f32>,
) {
    assert_eq!(a.ncols(), b.nrows(), "inner sizes must match");
    assert_eq!(c.dim(), (a.nrows(), b.ncols()), "outer sizes must match");
    for (mut c_row, a_row) in c.rows_mut().into_iter().zip(a.rows()) {
        for (&scale, b_row) in a_row.iter().zip(b.rows()) {
            c_row.scaled_add(alpha * scale, &b_row);
        }
    }
}
