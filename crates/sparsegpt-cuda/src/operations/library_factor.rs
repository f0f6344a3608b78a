//! The factor of the inverse Hessian from a library's.
//!
//! Libraries factor H = LLᵀ from the first column on; wanted is H = UUᵀ from the last. With J the matrix that reverses an order,
//! JHJ = LLᵀ gives U = JLJ. Libraries go column by column, so what to them is the lower triangle is the upper one here. They get the
//! lower triangle of H by half a turn, in memory of its own, and L's place there (row b, column a for L's value (a, b)) is reflected in
//! the other diagonal to U's (row n − 1 − a, column n − 1 − b). The lower triangle of H is out of their reach.

use std::ops::Range;

use super::elementwise::{MIRROR_TILE, diagonal, grid, set_diagonal};
use super::{size, size_u32};
use crate::device::{Argument, Device, Factorization};
use crate::error::CudaError;
use crate::kernels::Kernel;
use crate::kernels::elementwise::{REFLECT, TURN};
use crate::kernels::invert::INVERT_TRIANGLES;
use crate::matrix::{DeviceMatrix, upload_values};

const WHAT: &str = "inverse_factor";

/// Factors H, inverts the pieces of its diagonal, which are all columns in order and have 128 at most each, waits for it, and says
/// whether that went well. If not, the upper triangle holds nothing of use: H was not positive definite, there was no room for a
/// second matrix, or the library did not serve.
pub(super) fn factor<D: Device>(
    device: &D,
    h: &DeviceMatrix<D>,
    new_diagonal: &[f32],
    pieces: &[Range<usize>],
) -> Result<bool, CudaError> {
    // Zeros, so that there are numbers too where a library should not look.
    let turned = match DeviceMatrix::zeros(device, h.rows, h.cols) {
        Err(CudaError::OutOfMemory { .. }) => return Ok(false),
        turned => turned?,
    };
    from_to(device, &TURN, h, &turned, grid(WHAT, h.cols, h.cols)?)?;
    let reversed: Vec<f32> = new_diagonal.iter().rev().copied().collect();
    set_diagonal(device, &turned, &reversed)?;
    let outcome = device.allocate(size_of::<u32>())?;
    let outcome_address = device.address(&outcome);
    device.clear(outcome_address, size_of::<u32>())?;
    let served = device.library_factor(&Factorization {
        cols: h.cols,
        h: (turned.at(device, 0, 0), turned.leading()),
        outcome: outcome_address,
    });
    match served {
        Ok(()) => {}
        Err(lost @ CudaError::Lost { .. }) => return Err(lost),
        Err(_) => return Ok(false),
    }
    let tiles = size_u32(WHAT, h.cols)?.div_ceil(MIRROR_TILE);
    from_to(device, &REFLECT, &turned, h, [tiles, tiles, 1])?;
    invert(device, h, pieces)?;

    let mut failed = [0_u32];
    let bytes = size_of_val(&failed);
    let on_host = bytemuck::cast_slice_mut(&mut failed);
    device.download_rows(on_host, outcome_address, bytes, bytes)?;
    if failed[0] != 0 {
        return Ok(false);
    }
    // Not every library takes offence at a pivot that is no number, or infinite. What is on the diagonal by now is one over the
    // pivot's root.
    let pivots = diagonal(device, h)?;
    Ok(pivots.iter().all(|pivot| pivot.is_finite() && *pivot > 0.0))
}

/// Launches a kernel that brings values of one square matrix to another.
fn from_to<D: Device>(
    device: &D,
    kernel: &'static Kernel,
    from: &DeviceMatrix<D>,
    to: &DeviceMatrix<D>,
    grid: [u32; 3],
) -> Result<(), CudaError> {
    device.launch(
        kernel,
        grid,
        &[
            Argument::Address(from.at(device, 0, 0)),
            size(WHAT, from.leading())?,
            Argument::Address(to.at(device, 0, 0)),
            size(WHAT, to.leading())?,
            size(WHAT, from.cols)?,
        ],
    )
}

/// Replaces triangles on the diagonal by their inverses.
fn invert<D: Device>(
    device: &D,
    h: &DeviceMatrix<D>,
    pieces: &[Range<usize>],
) -> Result<(), CudaError> {
    let ends = pieces.iter().map(|piece| size_u32(WHAT, piece.end));
    let bounds = std::iter::once(Ok(0)).chain(ends);
    let bounds = upload_values(device, &bounds.collect::<Result<Vec<_>, _>>()?)?;
    device.launch(
        &INVERT_TRIANGLES,
        [size_u32(WHAT, pieces.len())?, 1, 1],
        &[
            Argument::Address(h.at(device, 0, 0)),
            size(WHAT, h.leading())?,
            Argument::Address(device.address(&bounds)),
        ],
    )
}
