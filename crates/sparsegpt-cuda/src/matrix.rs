//! Matrices and masks in a device's memory.

use std::ops::Range;

use crate::device::Device;

/// A matrix of f32, row-major. Rows begin at multiples of 16 bytes where there is more than one column, so that
/// kernels may load four values at once.
#[derive(Debug)]
pub struct DeviceMatrix<D: Device> {
    pub(crate) buffer: D::Buffer,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// A mask, one byte a weight, row-major, rows `cols` bytes apart; 1 means prune.
#[derive(Debug)]
pub struct DeviceMask<D: Device> {
    pub(crate) buffer: D::Buffer,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// Values between the beginnings of two rows of a matrix.
pub(crate) fn leading_dimension(cols: usize) -> usize {
    if cols == 1 {
        1
    } else {
        cols.next_multiple_of(4)
    }
}

impl<D: Device> DeviceMatrix<D> {
    /// Values between the beginnings of two rows.
    pub(crate) fn leading(&self) -> usize {
        leading_dimension(self.cols)
    }

    /// The address of a value.
    pub(crate) fn at(&self, device: &D, row: usize, col: usize) -> u64 {
        device.address(&self.buffer) + ((row * self.leading() + col) * size_of::<f32>()) as u64
    }

    /// The address of a column range's first value.
    pub(crate) fn columns(&self, device: &D, columns: &Range<usize>) -> u64 {
        self.at(device, 0, columns.start)
    }
}

impl<D: Device> DeviceMask<D> {
    /// The address of a weight's byte.
    pub(crate) fn at(&self, device: &D, row: usize, col: usize) -> u64 {
        device.address(&self.buffer) + (row * self.cols + col) as u64
    }
}
