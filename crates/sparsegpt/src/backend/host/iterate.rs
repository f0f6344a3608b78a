//! What the iterative methods do between products.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Zip};

use crate::backend::AdamPace;

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

/// (vH)⊙m, with H symmetric and only its lower triangle given.
fn masked_product(
    v: &[f64],
    (h, diagonal): (ArrayView2<'_, f32>, &[f32]),
    pruned: ArrayView1<'_, bool>,
) -> Vec<f64> {
    let cols = v.len();
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
}

fn refit_row(
    mut q: ArrayViewMut1<'_, f32>,
    d: ArrayView1<'_, f32>,
    h: (ArrayView2<'_, f32>, &[f32]),
    pruned: ArrayView1<'_, bool>,
    steps: usize,
) {
    let cols = q.len();
    let diagonal = h.1;
    let masked_product = |v: &[f64]| masked_product(v, h, pruned);
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

/// Decay of Adam's moments, and what keeps its division from zero (Kingma & Ba 2015, Algorithm 1).
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// Adam, row by row: see [`Adam`](crate::backend::Adam).
///
/// # Panics
/// If the shapes do not match.
pub fn adam(
    mut weights: ArrayViewMut2<'_, f32>,
    dense: ArrayView2<'_, f32>,
    (h, diagonal): (ArrayView2<'_, f32>, &[f32]),
    mask: ArrayView2<'_, bool>,
    pace: AdamPace,
) {
    assert_eq!(h.nrows(), weights.ncols(), "h must be cols x cols");
    let rows = weights.rows_mut().into_iter();
    for ((mut q, d), pruned) in rows.zip(dense.rows()).zip(mask.rows()) {
        let mut moments = vec![(0.0, 0.0); q.len()];
        for number in 1..=pace.steps {
            let step = AdamStep::new(pace, number);
            let lost: Vec<f64> = d
                .iter()
                .zip(&q)
                .map(|(&d, &q)| f64::from(d) - f64::from(q))
                .collect();
            let product = masked_product(&lost, (h, diagonal), pruned);
            for ((q, product), (first, second)) in q.iter_mut().zip(product).zip(&mut moments) {
                *q -= step.move_by(product, first, second) as f32;
            }
        }
    }
}

/// One step of Adam: how far each weight goes.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) struct AdamStep {
    pace: AdamPace,
    /// What the moments are divided by, as they began at zero.
    corrections: [f64; 2],
}

impl AdamStep {
    /// The step of this number, from 1.
    pub(in crate::backend) fn new(pace: AdamPace, number: usize) -> Self {
        Self {
            pace,
            corrections: BETAS.map(|beta| 1.0 - beta.powf(number as f64)),
        }
    }

    /// What to take from a weight, whose part of (d − q)H is `product`, zero where it is pruned.
    #[inline]
    pub(in crate::backend) fn move_by(
        self,
        product: f64,
        first: &mut f64,
        second: &mut f64,
    ) -> f64 {
        let gradient = -2.0 * self.pace.scale * product;
        *first = BETAS[0] * *first + (1.0 - BETAS[0]) * gradient;
        *second = BETAS[1] * *second + (1.0 - BETAS[1]) * gradient * gradient;
        let (first, second) = (*first / self.corrections[0], *second / self.corrections[1]);
        self.pace.rate * first / (second.sqrt() + EPSILON)
    }
}
