//! The factor of the inverse Hessian from a library's.
//!
//! Libraries factor H = LLᵀ from the first column on; wanted is H = UUᵀ from the last. With J the matrix that reverses an order,
//! JHJ = LLᵀ gives U = JLJ. Libraries go column by column, so what to them is the lower triangle is the upper one here. It
//! gets the lower triangle of H by half a turn, and L's place (row b, column a for L's value (a, b)) is reflected in the other
//! diagonal to U's (row n − 1 − a, column n − 1 − b). The lower triangle stays as it was.

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

/// A factorization that is enqueued.
pub(super) struct LibraryFactor<D: Device> {
    outcome: D::Buffer,
}

impl<D: Device> LibraryFactor<D> {
    /// Factors H, and inverts the pieces of its diagonal, which are all columns in order and have 128 at most each.
    pub(super) fn enqueue(
        device: &D,
        h: &DeviceMatrix<D>,
        new_diagonal: &[f32],
        pieces: &[Range<usize>],
    ) -> Result<Self, CudaError> {
        over_square(device, &TURN, h, grid(WHAT, h.cols, h.cols)?)?;
        let reversed: Vec<f32> = new_diagonal.iter().rev().copied().collect();
        set_diagonal(device, h, &reversed)?;
        let outcome = device.allocate(size_of::<u32>())?;
        device.clear(device.address(&outcome), size_of::<u32>())?;
        device.library_factor(&Factorization {
            cols: h.cols,
            h: (h.at(device, 0, 0), h.leading()),
            outcome: device.address(&outcome),
        })?;
        let tiles = size_u32(WHAT, h.cols)?.div_ceil(MIRROR_TILE);
        over_square(device, &REFLECT, h, [tiles, tiles, 1])?;
        invert(device, h, pieces)?;
        Ok(Self { outcome })
    }

    /// Waits for it, and says whether H was positive definite.
    pub(super) fn succeeded(&self, device: &D, h: &DeviceMatrix<D>) -> Result<bool, CudaError> {
        let mut outcome = [0_u32];
        let bytes = size_of_val(&outcome);
        let address = device.address(&self.outcome);
        device.download_rows(
            bytemuck::cast_slice_mut(&mut outcome),
            address,
            bytes,
            bytes,
        )?;
        if outcome[0] != 0 {
            return Ok(false);
        }
        // Not every library takes offence at a pivot that is no number, or infinite. What is on the diagonal by now is one over
        // the pivot's root.
        let pivots = diagonal(device, h)?;
        Ok(pivots.iter().all(|pivot| pivot.is_finite() && *pivot > 0.0))
    }
}

/// Launches a kernel on a square matrix.
fn over_square<D: Device>(
    device: &D,
    kernel: &'static Kernel,
    h: &DeviceMatrix<D>,
    grid: [u32; 3],
) -> Result<(), CudaError> {
    device.launch(
        kernel,
        grid,
        &[
            Argument::Address(h.at(device, 0, 0)),
            size(WHAT, h.leading())?,
            size(WHAT, h.cols)?,
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
