//! Matrices and masks in a device's memory.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, Axis};

use crate::device::Device;
use crate::error::CudaError;
use crate::operations::elementwise::pack_mask;

/// Bytes of a matrix in another order than row by row that are put in order on the host at a time.
const CHUNK: usize = 16 << 20;

/// Weights of a mask in a word.
pub(crate) const PACKED: usize = 32;
/// The marks of eight weights by the byte that they are packed in, the first one in the lowest bit.
const EIGHT: [[bool; 8]; 256] = {
    let mut marks = [[false; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            marks[byte][bit] = byte >> bit & 1 == 1;
            bit += 1;
        }
        byte += 1;
    }
    marks
};

/// A matrix of f32, row-major. Rows begin at multiples of 16 bytes where there is more than one column, so that
/// kernels may load four values at once; what stands between two rows is not defined.
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

/// Bytes between the beginnings of two rows of a matrix; none where they cannot be counted.
fn pitch_of(cols: usize) -> Option<usize> {
    leading_dimension(cols).checked_mul(size_of::<f32>())
}

/// Copies values to the device as they are.
pub(crate) fn upload_values<D: Device, T: bytemuck::Pod>(
    device: &D,
    values: &[T],
) -> Result<D::Buffer, CudaError> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let buffer = device.allocate_for_upload(bytes.len())?;
    if !bytes.is_empty() {
        device.upload_rows(&buffer, 0, bytes.len(), bytes, bytes.len())?;
    }
    Ok(buffer)
}

/// Bytes of rows that are `pitch` bytes apart.
fn bytes_of<D: Device>(device: &D, rows: usize, pitch: Option<usize>) -> Result<usize, CudaError> {
    match pitch.and_then(|pitch| rows.checked_mul(pitch)) {
        Some(bytes) => Ok(bytes),
        None => Err(CudaError::OutOfMemory {
            bytes: usize::MAX,
            free: device.free_bytes()?,
        }),
    }
}

/// A matrix of the host in memory of its own, rows `pitch` bytes apart.
fn upload<D: Device, T: bytemuck::NoUninit>(
    device: &D,
    pitch: Option<usize>,
    host: ArrayView2<'_, T>,
) -> Result<D::Buffer, CudaError> {
    let to = device.allocate_for_upload(bytes_of(device, host.nrows(), pitch)?)?;
    // Where it could not be counted, there was no memory either.
    upload_rows(device, &to, pitch.unwrap_or(0), host)?;
    Ok(to)
}

/// Copies a matrix of the host to rows `pitch` bytes apart, some at a time where they do not lie one behind the other.
pub(crate) fn upload_rows<D: Device, T: bytemuck::NoUninit>(
    device: &D,
    to: &D::Buffer,
    pitch: usize,
    host: ArrayView2<'_, T>,
) -> Result<(), CudaError> {
    let row_bytes = host.ncols() * size_of::<T>();
    if host.is_empty() {
        return Ok(());
    }
    if let Some(values) = host.as_slice() {
        return device.upload_rows(to, 0, pitch, bytemuck::cast_slice(values), row_bytes);
    }
    let rows = (CHUNK / row_bytes).max(1);
    let mut ordered = Vec::new();
    for (chunk, part) in host.axis_chunks_iter(Axis(0), rows).enumerate() {
        ordered.clear();
        ordered.extend(part.iter().copied());
        let bytes = bytemuck::cast_slice(&ordered);
        device.upload_rows(to, chunk * rows * pitch, pitch, bytes, row_bytes)?;
    }
    Ok(())
}

impl<D: Device> DeviceMatrix<D> {
    /// A matrix whose contents are not defined.
    pub(crate) fn new(device: &D, rows: usize, cols: usize) -> Result<Self, CudaError> {
        let bytes = bytes_of(device, rows, pitch_of(cols))?;
        Ok(Self {
            buffer: device.allocate(bytes)?,
            rows,
            cols,
        })
    }

    /// A matrix of zeros.
    pub(crate) fn zeros(device: &D, rows: usize, cols: usize) -> Result<Self, CudaError> {
        let matrix = Self::new(device, rows, cols)?;
        if matrix.bytes() > 0 {
            device.clear(device.address(&matrix.buffer), matrix.bytes())?;
        }
        Ok(matrix)
    }

    /// A matrix of the host, of any layout.
    pub(crate) fn upload(device: &D, host: ArrayView2<'_, f32>) -> Result<Self, CudaError> {
        let (rows, cols) = host.dim();
        Ok(Self {
            buffer: upload(device, pitch_of(cols), host)?,
            rows,
            cols,
        })
    }

    /// The matrix on the host.
    pub(crate) fn download(&self, device: &D) -> Result<Array2<f32>, CudaError> {
        let mut host = Array2::zeros((self.rows, self.cols));
        if let Some(values) = host.as_slice_mut().filter(|values| !values.is_empty()) {
            device.download_rows(
                bytemuck::cast_slice_mut(values),
                device.address(&self.buffer),
                self.pitch(),
                self.cols * size_of::<f32>(),
            )?;
        }
        Ok(host)
    }

    /// A second matrix with the same contents.
    pub(crate) fn copy(&self, device: &D) -> Result<Self, CudaError> {
        let copy = Self::new(device, self.rows, self.cols)?;
        if self.bytes() > 0 {
            let (to, from) = (device.address(&copy.buffer), device.address(&self.buffer));
            device.copy(to, from, self.bytes())?;
        }
        Ok(copy)
    }

    /// Values between the beginnings of two rows.
    pub(crate) fn leading(&self) -> usize {
        leading_dimension(self.cols)
    }

    /// Bytes between the beginnings of two rows.
    pub(crate) fn pitch(&self) -> usize {
        self.leading() * size_of::<f32>()
    }

    /// Bytes on the device.
    pub(crate) fn bytes(&self) -> usize {
        self.rows * self.pitch()
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
    /// A mask whose contents are not defined.
    pub(crate) fn new(device: &D, rows: usize, cols: usize) -> Result<Self, CudaError> {
        Ok(Self {
            buffer: device.allocate(bytes_of(device, rows, Some(cols))?)?,
            rows,
            cols,
        })
    }

    /// A mask that prunes nothing.
    pub(crate) fn zeros(device: &D, rows: usize, cols: usize) -> Result<Self, CudaError> {
        let mask = Self::new(device, rows, cols)?;
        if rows * cols > 0 {
            device.clear(device.address(&mask.buffer), rows * cols)?;
        }
        Ok(mask)
    }

    /// A mask of the host, of any layout.
    pub(crate) fn upload(device: &D, host: ArrayView2<'_, bool>) -> Result<Self, CudaError> {
        let (rows, cols) = host.dim();
        Ok(Self {
            buffer: upload(device, Some(cols), host)?,
            rows,
            cols,
        })
    }

    /// The mask on the host. A bit a weight goes over the bus.
    pub(crate) fn download(&self, device: &D) -> Result<Array2<bool>, CudaError> {
        let weights = self.rows * self.cols;
        let mut packed = vec![0_u8; weights.div_ceil(PACKED) * size_of::<u32>()];
        if !packed.is_empty() {
            let words = device.allocate(packed.len())?;
            let (from, bytes) = (device.address(&words), packed.len());
            pack_mask(device, self.at(device, 0, 0), from, weights)?;
            device.download_rows(&mut packed, from, bytes, bytes)?;
        }
        let mut marks = vec![false; packed.len() * EIGHT[0].len()];
        for (marks, &byte) in marks.chunks_exact_mut(EIGHT[0].len()).zip(&packed) {
            marks.copy_from_slice(&EIGHT[usize::from(byte)]);
        }
        marks.truncate(weights);
        Array2::from_shape_vec((self.rows, self.cols), marks).map_err(|error| CudaError::Failed {
            what: "a mask".to_owned(),
            reason: error.to_string(),
        })
    }

    /// The address of a weight's byte.
    pub(crate) fn at(&self, device: &D, row: usize, col: usize) -> u64 {
        device.address(&self.buffer) + (row * self.cols + col) as u64
    }
}
