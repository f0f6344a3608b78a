//! The two ends of a block of columns.

use std::ops::Range;

use super::elementwise::combine_columns;
use super::product::{Counts, Multiplication, Operand, TILE, Units};
use crate::device::Device;
use crate::error::CudaError;
use crate::matrix::DeviceMatrix;

/// See [`Backend::open_block`](sparsegpt::backend::Backend::open_block).
pub(crate) fn open_block<D: Device>(
    device: &D,
    weights: &DeviceMatrix<D>,
    rest: &DeviceMatrix<D>,
    factor: &DeviceMatrix<D>,
    columns: Range<usize>,
) -> Result<(), CudaError> {
    if weights.rows == 0 {
        return Ok(());
    }
    let (first, leading) = (columns.start, weights.leading());
    let mut end = columns.end;
    // From the last columns, since each reads those before it and itself, but none behind it. So many at a time as one block of
    // threads owns, so that it may overwrite what it has read.
    while end > first {
        let start = first + (end - first - 1) / TILE * TILE;
        // Smaller than a matrix has columns, which are u32.
        let diagonal = (start - first) as i32;
        let product = Multiplication::new(
            (weights.rows, end - start, end - first),
            Operand::along_rows(weights.at(device, 0, first), leading),
            Operand::along_columns(factor.at(device, first, start), factor.leading()),
            (weights.at(device, 0, start), leading),
        );
        Multiplication {
            plus: Some(((rest.at(device, 0, start), rest.leading()), 1.0)),
            b_counts: Counts::UpTo(diagonal),
            ..product
        }
        .launch(device, Units::of(device.limits()))?;
        end = start;
    }
    Ok(())
}

/// See [`Backend::close_block`](sparsegpt::backend::Backend::close_block).
pub(crate) fn close_block<D: Device>(
    device: &D,
    rest: &DeviceMatrix<D>,
    weights: &DeviceMatrix<D>,
    columns: Range<usize>,
) -> Result<(), CudaError> {
    combine_columns(device, (rest, 1.0), (weights, -1.0), columns)
}
