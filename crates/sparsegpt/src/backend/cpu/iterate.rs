//! What the iterative methods do between products: rows in parallel.

use rayon::iter::IndexedParallelIterator;
use rayon::prelude::*;

use super::products::Engine;
use super::{Cpu, CpuMask, CpuMatrix};
use crate::backend::host::{AdamStep, CONVERGED};
use crate::backend::{Adam, Project, Refit};

/// See [`Project`].
pub(super) fn project(args: Project<'_, Cpu>) {
    let Project {
        sums,
        duals,
        dense,
        mask,
        weights,
    } = args;
    let weights = &weights.padded()[..weights.dim().1];
    rows_mut(sums)
        .zip(rows_mut(duals))
        .zip(rows(dense).zip(rows_of_mask(mask)))
        .for_each(|((sums, duals), (dense, mask))| {
            let outputs = sums.iter_mut().zip(duals);
            for ((sum, dual), ((&dense, &pruned), &weight)) in
                outputs.zip(dense.iter().zip(mask).zip(weights))
            {
                let (kept, left) = if pruned { (0.0, *sum) } else { (*sum, 0.0) };
                *dual = left;
                *sum = (kept - left - dense) * weight;
            }
        });
}

/// See [`Refit`]. `full` is H with both triangles, the others three matrices of zeros of the layer's size.
pub(super) fn refit(
    args: Refit<'_, Cpu>,
    full: &CpuMatrix,
    [residual, direction, product]: [&mut CpuMatrix; 3],
    engine: Engine,
) {
    let Refit {
        weights,
        dense,
        diagonal,
        mask,
        steps,
        ..
    } = args;
    let inverse_diagonal: Vec<f32> = diagonal.iter().map(|diagonal| diagonal.recip()).collect();
    let mut states = vec![Progress::default(); weights.dim().0];

    // The direction's memory holds d − q until g = ((d − q)H)⊙m is made of it.
    subtract(direction, dense, weights);
    engine.add_product(residual.faer_mut(), 1.0, direction.faer(), full.faer());
    rows_mut(residual)
        .zip(rows_mut(direction))
        .zip(rows_of_mask(mask).zip(&mut states))
        .for_each(|((g, p), (mask, state))| {
            clear(g, mask);
            for ((p, g), inverse) in p.iter_mut().zip(&*g).zip(&inverse_diagonal) {
                *p = g * inverse;
            }
            state.gz = dot(g, p);
            state.smallest = CONVERGED * state.gz;
        });
    for _ in 0..steps {
        product.padded_mut().fill(0.0);
        engine.add_product(product.faer_mut(), 1.0, direction.faer(), full.faer());
        rows_mut(weights)
            .zip(rows_mut(residual))
            .zip(rows_mut(direction).zip(rows_mut(product)))
            .zip(rows_of_mask(mask).zip(&mut states))
            .for_each(|(((q, g), (p, t)), (mask, state))| {
                clear(t, mask);
                state.step(q, g, (p, t), &inverse_diagonal);
            });
    }
}

/// See [`Adam`]. `full` is H with both triangles, the others four matrices of zeros of the layer's size. Moments are
/// kept in f32 and moved in f64.
pub(super) fn adam(
    args: Adam<'_, Cpu>,
    full: &CpuMatrix,
    [difference, product, first, second]: [&mut CpuMatrix; 4],
    engine: Engine,
) {
    let Adam {
        weights,
        dense,
        mask,
        pace,
        ..
    } = args;
    for number in 1..=pace.steps {
        let step = AdamStep::new(pace, number);
        subtract(difference, dense, weights);
        product.padded_mut().fill(0.0);
        engine.add_product(product.faer_mut(), 1.0, difference.faer(), full.faer());
        rows_mut(weights)
            .zip(rows_mut(first))
            .zip(rows_mut(second).zip(rows_mut(product)))
            .zip(rows_of_mask(mask))
            .for_each(|(((q, first), (second, product)), mask)| {
                clear(product, mask);
                let moments = first.iter_mut().zip(second);
                for ((q, &mut product), (first, second)) in q.iter_mut().zip(product).zip(moments) {
                    let mut wide = (f64::from(*first), f64::from(*second));
                    *q -= step.move_by(f64::from(product), &mut wide.0, &mut wide.1) as f32;
                    (*first, *second) = (wide.0 as f32, wide.1 as f32);
                }
            });
    }
}

/// to = a − b.
fn subtract(to: &mut CpuMatrix, a: &CpuMatrix, b: &CpuMatrix) {
    rows_mut(to)
        .zip(rows(a).zip(rows(b)))
        .for_each(|(to, (a, b))| {
            for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
                *to = a - b;
            }
        });
}

/// How far a row has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// g·z.
    gz: f64,
    smallest: f64,
    stopped: bool,
}

impl Progress {
    /// One step, `t` = (pH)⊙m.
    fn step(
        &mut self,
        q: &mut [f32],
        g: &mut [f32],
        (p, t): (&mut [f32], &[f32]),
        inverse_diagonal: &[f32],
    ) {
        let pt = dot(p, t);
        self.stopped |= !(pt > 0.0 && self.gz > self.smallest);
        if self.stopped {
            return;
        }
        let alpha = (self.gz / pt) as f32;
        for (((q, g), p), t) in q.iter_mut().zip(&mut *g).zip(&*p).zip(t) {
            *q += alpha * p;
            *g -= alpha * t;
        }
        let next = sum_of(g.len(), |at| {
            f64::from(g[at]) * f64::from(g[at] * inverse_diagonal[at])
        });
        let beta = (next / self.gz) as f32;
        self.gz = next;
        for ((p, g), inverse) in p.iter_mut().zip(&*g).zip(inverse_diagonal) {
            *p = g * inverse + beta * *p;
        }
    }
}

/// Zero where the mask prunes.
fn clear(row: &mut [f32], mask: &[bool]) {
    for (value, &pruned) in row.iter_mut().zip(mask) {
        *value = if pruned { 0.0 } else { *value };
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum_of(a.len().min(b.len()), |at| {
        f64::from(a[at]) * f64::from(b[at])
    })
}

/// In partial sums, so that a sum does not wait for itself.
fn sum_of(len: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    for at in 0..len {
        sums[at % 8] += term(at);
    }
    sums.iter().sum()
}

fn rows_mut(matrix: &mut CpuMatrix) -> impl IndexedParallelIterator<Item = &mut [f32]> {
    let ((_, cols), stride) = (matrix.dim(), matrix.stride());
    matrix
        .padded_mut()
        .par_chunks_mut(stride)
        .map(move |row| &mut row[..cols])
}

fn rows(matrix: &CpuMatrix) -> impl IndexedParallelIterator<Item = &[f32]> {
    let ((_, cols), stride) = (matrix.dim(), matrix.stride());
    matrix
        .padded()
        .par_chunks(stride)
        .map(move |row| &row[..cols])
}

fn rows_of_mask(mask: &CpuMask) -> impl IndexedParallelIterator<Item = &[bool]> {
    let cols = mask.0.ncols();
    mask.0.as_slice().unwrap_or_default().par_chunks(cols)
}
