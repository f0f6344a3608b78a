//! βH + αXᵀX on the lower triangle.
//!
//! XᵀX has one operand, which is packed twice: once for all threads as the right one, and by each task as the left one of its
//! rows. Half precision is widened on the way into the panels.

use faer::MatMut;
use ndarray::ArrayView2;

use super::memory::CpuMatrix;
use super::packed::{Element, Kernel, Packed};
use crate::hessian::Activations;

/// H ← βH + αXᵀX. `kernel` is one of f32 values; `bf16` multiplies bf16 values in pairs, where there is such a kernel.
pub(super) fn add_gram(
    kernel: Kernel,
    bf16: Option<Kernel>,
    h: &mut CpuMatrix,
    x: Activations<'_>,
    scales: (f32, f32),
) {
    if x.tokens() == 0 {
        scale_lower(h, scales.1);
        return;
    }
    let h = h.faer_mut();
    match x {
        Activations::F32(x) => add(kernel, h, x, scales),
        Activations::F16(x) => add(kernel, h, x, scales),
        Activations::Bf16(x) => add(bf16.unwrap_or(kernel), h, x, scales),
    }
}

fn add<T: Element>(
    kernel: Kernel,
    h: MatMut<'_, f32>,
    x: ArrayView2<'_, T>,
    (alpha, beta): (f32, f32),
) {
    let gram = Packed {
        kernel,
        alpha,
        beta,
        a: x,
        b: x,
    };
    gram.add_to_lower(h);
}

/// H ← βH.
fn scale_lower(h: &mut CpuMatrix, beta: f32) {
    let stride = h.stride();
    for (row, values) in h.padded_mut().chunks_mut(stride).enumerate() {
        for value in &mut values[..=row] {
            *value *= beta;
        }
    }
}
