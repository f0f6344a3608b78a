//! Activations times weights on faer: the same product through candle's `matmul` (transposed right operand)
//! reaches about half the rate.

use candle_core::{Device, Layout, Storage, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::{Error, Result};

/// Multiplications from which on a product runs on all threads.
const PARALLEL_FROM: usize = 1 << 22;

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) fn values<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    let (Storage::Cpu(storage), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        return Err(Error::tensor(
            "(activations)",
            "are not contiguous on the CPU",
        ));
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// x·wᵀ for x (tokens x cols) and w (rows x cols); the result is tokens x rows.
pub(super) fn times_transposed(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (tokens, cols) = x.dims2()?;
    let (rows, w_cols) = w.dims2()?;
    if cols != w_cols {
        return Err(Error::tensor(
            "(activations)",
            format!("have {cols} features, the weight has {w_cols} columns"),
        ));
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let ((x, x_layout), (w, w_layout)) = (x.storage_and_layout(), w.storage_and_layout());
    let x = MatRef::from_row_major_slice(values(&x, x_layout)?, tokens, cols);
    let w = MatRef::from_row_major_slice(values(&w, w_layout)?, rows, cols);
    let mut product = vec![0.0_f32; tokens * rows];
    let y = MatMut::from_row_major_slice_mut(&mut product, tokens, rows);
    // A product this small is done before a second thread has woken up.
    let par = if tokens * rows * cols < PARALLEL_FROM {
        Par::Seq
    } else {
        Par::rayon(0)
    };
    matmul(y, Accum::Replace, x, w.transpose(), 1.0, par);
    Ok(Tensor::from_vec(product, (tokens, rows), &Device::Cpu)?)
}
