//! What the iterative methods do between products.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Zip};

/// Below this part of where it began, the squared residual of a row is rounding.
pub(in crate::backend) const CONVERGED: f64 = 1e-14;

/// S = W + U split by the mask: see [`Project`](crate::backend::Project).
///
/// # Panics
/// If the shapes do not match.
pub fn project(
    mut sums: ArrayViewMut2<'_, f32>,
    mut duals: ArrayViewMut2<'_, f32>,
    dense: ArrayView2<'_, f32>,
    mask: ArrayView2<'_, bool>,
    weights: ArrayView1<'_, f32>,
) {
    let weights = weights.broadcast(sums.dim());
    assert!(weights.is_some(), "one weight a column");
    let Some(weights) = weights else { return };
    Zip::from(&mut sums)
        .and(&mut duals)
        .and(&dense)
        .and(&mask)
        .and(&weights)
        .for_each(|sum, dual, &dense, &pruned, &weight| {
            // Z is the sum where the weight is kept and 0 elsewhere; U what is left of it.
            let (kept, left) = if pruned { (0.0, *sum) } else { (*sum, 0.0) };
            *dual = left;
            *sum = (kept - left - dense) * weight;
        });
}

/// Conjugate gradients, row by row: see [`Refit`](crate::backend::Refit).
///
/// # Panics
/// If the shapes do not match.
pub fn refit(
    mut weights: ArrayViewMut2<'_, f32>,
    dense: ArrayView2<'_, f32>,
    (h, diagonal): (ArrayView2<'_, f32>, &[f32]),
    mask: ArrayView2<'_, bool>,
    steps: usize,
) {
    assert_eq!(h.nrows(), weights.ncols(), "h must be cols x cols");
    let rows = weights.rows_mut().into_iter();
    for ((weights, dense), mask) in rows.zip(dense.rows()).zip(mask.rows()) {
        refit_row(weights, dense, (h, diagonal), mask, steps);
    }
}

fn refit_row(
    mut q: ArrayViewMut1<'_, f32>,
    d: ArrayView1<'_, f32>,
    (h, diagonal): (ArrayView2<'_, f32>, &[f32]),
    pruned: ArrayView1<'_, bool>,
    steps: usize,
) {
    let cols = q.len();
    // (vH)⊙m, with H symmetric and only its lower triangle given.
    let masked_product = |v: &[f64]| -> Vec<f64> {
        let entry = |i: usize, j: usize| match i.cmp(&j) {
            std::cmp::Ordering::Equal => diagonal[i],
            std::cmp::Ordering::Greater => h[[i, j]],
            std::cmp::Ordering::Less => h[[j, i]],
        };
        (0..cols)
            .map(|j| match pruned[j] {
                true => 0.0,
                false => (0..cols).map(|i| v[i] * f64::from(entry(i, j))).sum(),
            })
            .collect()
    };
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let precondition = |g: &[f64]| -> Vec<f64> {
        g.iter()
            .zip(diagonal)
            .map(|(g, &diagonal)| g / f64::from(diagonal))
            .collect()
    };
    let difference: Vec<f64> = (0..cols)
        .map(|j| f64::from(d[j]) - f64::from(q[j]))
        .collect();
    let mut g = masked_product(&difference);
    let mut p = precondition(&g);
    let mut gz = dot(&g, &p);
    let smallest = CONVERGED * gz;
    for _ in 0..steps {
        let t = masked_product(&p);
        let pt = dot(&p, &t);
        if !(pt > 0.0 && gz > smallest) {
            return;
        }
        let alpha = gz / pt;
        for j in 0..cols {
            q[j] += (alpha * p[j]) as f32;
            g[j] -= alpha * t[j];
        }
        let z = precondition(&g);
        let next = dot(&g, &z);
        let beta = next / gz;
        gz = next;
        for j in 0..cols {
            p[j] = z[j] + beta * p[j];
        }
    }
}
