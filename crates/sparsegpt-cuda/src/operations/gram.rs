//! H ← beta·H + alpha·XᵀX.

use std::ops::Range;

use ndarray::{ArrayView2, s};
use sparsegpt::Activations;

use super::product::{Multiplication, Operand, Part, TILE, Units};
use super::{size, size_u32};
use crate::device::{Argument, Device};
use crate::error::CudaError;
use crate::kernels::gram::GRAM_16;
use crate::matrix::{DeviceMatrix, leading_dimension, upload_rows};

const WHAT: &str = "gram_update";

/// Bytes of activations on the device at a time: large enough that H, read and written once for each, costs little beside
/// the products.
const CHUNK: usize = 64 << 20;
/// Tokens that the 16-bit kernel multiplies at a time.
const SLAB: usize = 32;
/// 16-bit values in the 16 bytes it copies at a time.
const VECTOR: usize = 8;

/// See [`Backend::gram_update`](sparsegpt::backend::Backend::gram_update).
pub(crate) fn gram_update<D: Device>(
    device: &D,
    h: &DeviceMatrix<D>,
    x: Activations<'_>,
    alpha: f32,
    beta: f32,
) -> Result<(), CudaError> {
    if h.cols == 0 {
        return Ok(());
    }
    match x {
        Activations::F32(x) => single(device, h, x, alpha, beta),
        Activations::Bf16(x) => half(device, h, x, alpha, beta, true),
        Activations::F16(x) => half(device, h, x, alpha, beta, false),
        x => Err(CudaError::Failed {
            what: WHAT.to_owned(),
            reason: format!("activations of a kind unknown to this backend: {x:?}"),
        }),
    }
}

/// Chunks of at most so many tokens, one of none where there are none: H is scaled with the first.
fn chunks(tokens: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let most = most.max(1);
    let starts = (0..tokens.max(1)).step_by(most);
    starts.map(move |start| start..tokens.min(start + most))
}

fn single<D: Device>(
    device: &D,
    h: &DeviceMatrix<D>,
    x: ArrayView2<'_, f32>,
    alpha: f32,
    beta: f32,
) -> Result<(), CudaError> {
    let cols = x.ncols();
    let leading = leading_dimension(cols);
    let pitch = leading * size_of::<f32>();
    let c = (h.at(device, 0, 0), h.leading());
    for chunk in chunks(x.nrows(), CHUNK / pitch) {
        let beta = if chunk.start == 0 { beta } else { 1.0 };
        let x = x.slice(s![chunk, ..]);
        let buffer = device.allocate_for_upload(x.nrows() * pitch)?;
        upload_rows(device, &buffer, pitch, x)?;
        let x_transposed = Operand::along_columns(device.address(&buffer), leading);
        let product = Multiplication::new((cols, cols, x.nrows()), x_transposed, x_transposed, c);
        Multiplication {
            alpha,
            plus: Some((c, beta)),
            part: Part::Lower,
            ..product
        }
        .launch(device, Units::of(device.limits()))?;
    }
    Ok(())
}

fn half<D: Device, T: bytemuck::Pod>(
    device: &D,
    h: &DeviceMatrix<D>,
    x: ArrayView2<'_, T>,
    alpha: f32,
    beta: f32,
    brain: bool,
) -> Result<(), CudaError> {
    let cols = x.ncols();
    let leading = cols.next_multiple_of(VECTOR);
    let pitch = leading * size_of::<T>();
    let most = (CHUNK / pitch).max(SLAB) / SLAB * SLAB;
    for chunk in chunks(x.nrows(), most) {
        let beta = if chunk.start == 0 { beta } else { 1.0 };
        let x = x.slice(s![chunk, ..]);
        let tokens = x.nrows().next_multiple_of(SLAB);
        let buffer = device.allocate_for_upload(tokens * pitch)?;
        if tokens > 0 && (tokens, leading) != x.dim() {
            device.clear(device.address(&buffer), tokens * pitch)?;
        }
        upload_rows(device, &buffer, pitch, x)?;
        let address = device.address(&buffer);
        let tiles = size_u32(WHAT, cols.div_ceil(TILE))?;
        device.launch(
            &GRAM_16,
            [tiles, tiles, 1],
            &[
                Argument::Address(address),
                size(WHAT, leading)?,
                Argument::Address(h.at(device, 0, 0)),
                size(WHAT, h.leading())?,
                size(WHAT, cols)?,
                size(WHAT, tokens)?,
                Argument::F32(alpha),
                Argument::F32(beta),
                Argument::U32(brain.into()),
            ],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_chunk() {
        let found = |tokens, most| chunks(tokens, most).collect::<Vec<_>>();
        assert_eq!(found(10, 4), [0..4, 4..8, 8..10]);
        assert_eq!(found(8, 4), [0..4, 4..8]);
        // One without tokens, with which H is scaled.
        assert!(found(0, 4).iter().eq([&(0..0)]));
        // A row longer than a chunk.
        assert_eq!(found(2, 0), [0..1, 1..2]);
    }
}
