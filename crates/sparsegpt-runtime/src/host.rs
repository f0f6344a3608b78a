//! The products as formulas say them: plain loops over dense weights, in f64. Every kernel is held to them.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::value::Value;

/// y = Wx + b. `weight` is rows x cols, `x` has cols values, `bias` rows.
///
/// # Panics
/// If the shapes do not fit.
#[must_use]
pub fn matrix_vector<V: Value>(
    weight: ArrayView2<'_, V>,
    x: ArrayView1<'_, f32>,
    bias: Option<ArrayView1<'_, f32>>,
) -> Array1<f64> {
    assert_eq!(
        weight.ncols(),
        x.len(),
        "columns of the weight and values of x"
    );
    Array1::from_shape_fn(weight.nrows(), |row| {
        let start = bias.map_or(0.0, |bias| f64::from(bias[row]));
        (0..x.len()).fold(start, |sum, col| {
            sum + f64::from(weight[[row, col]].to_f32()) * f64::from(x[col])
        })
    })
}

/// Y = XWᵀ + b. `weight` is rows x cols, `x` tokens x cols, the result tokens x rows.
///
/// # Panics
/// If the shapes do not fit.
#[must_use]
pub fn matrix_tokens<V: Value>(
    weight: ArrayView2<'_, V>,
    x: ArrayView2<'_, f32>,
    bias: Option<ArrayView1<'_, f32>>,
) -> Array2<f64> {
    let mut y = Array2::zeros((x.nrows(), weight.nrows()));
    for (x, mut y) in x.rows().into_iter().zip(y.rows_mut()) {
        y.assign(&matrix_vector(weight, x, bias));
    }
    y
}
