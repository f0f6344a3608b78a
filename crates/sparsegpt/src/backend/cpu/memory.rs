//! The matrices of the backend, and memory that goes round: the buffers of dropped ones serve the next.
//!
//! The first touch of fresh memory costs more than all other passes over a layer's weights together, so the
//! large buffers of one layer are kept for the next.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use faer::{MatMut, MatRef};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use crate::error::HostError;

/// Values from which a buffer is worth keeping (1 MiB); the allocator keeps smaller ones itself.
const KEPT: usize = 1 << 18;
/// Values handled by one thread at a time: a huge page.
const CHUNK: usize = 1 << 19;
/// Values between the ends of two rows and the starts of the next, where the rows are [`ALIASING`]: a cache line.
const PADDING: usize = 16;
/// Rows a multiple of this long (1 KiB) start in the same few sets of the caches, and push each other out.
const ALIASING: usize = 256;

/// A matrix of the [`Cpu`](super::Cpu) backend, row-major; its rows may be padded.
#[derive(Debug)]
pub struct CpuMatrix {
    /// rows x stride.
    values: Array2<f32>,
    cols: usize,
    home: Option<Buffers>,
}

impl CpuMatrix {
    /// Takes in a matrix of somebody else's making. Its memory is not kept: what comes from outside again and
    /// again would pile up.
    pub(super) fn adopt(values: Array2<f32>) -> Self {
        Self {
            cols: values.ncols(),
            values,
            home: None,
        }
    }

    pub(super) fn dim(&self) -> (usize, usize) {
        (self.values.nrows(), self.cols)
    }

    /// Values from the start of a row to that of the next.
    pub(super) fn stride(&self) -> usize {
        self.values.ncols()
    }

    pub(super) fn view(&self) -> ArrayView2<'_, f32> {
        self.values.slice(s![.., ..self.cols])
    }

    pub(super) fn view_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        self.values.slice_mut(s![.., ..self.cols])
    }

    /// The rows after each other, each [`stride`](Self::stride) long.
    pub(super) fn padded(&self) -> &[f32] {
        self.values.as_slice().unwrap_or_default()
    }

    /// The rows after each other, each [`stride`](Self::stride) long.
    pub(super) fn padded_mut(&mut self) -> &mut [f32] {
        self.values.as_slice_mut().unwrap_or_default()
    }

    /// As faer sees it.
    pub(super) fn faer(&self) -> MatRef<'_, f32> {
        let (rows, stride) = self.values.dim();
        MatRef::from_row_major_slice(self.padded(), rows, stride).subcols(0, self.cols)
    }

    /// As faer sees it.
    pub(super) fn faer_mut(&mut self) -> MatMut<'_, f32> {
        let ((rows, stride), cols) = (self.values.dim(), self.cols);
        MatMut::from_row_major_slice_mut(self.padded_mut(), rows, stride).subcols_mut(0, cols)
    }

    /// The values themselves, without a copy where the rows are not padded; runs inside the backend's threads.
    #[allow(unsafe_code, reason = "first touch by all threads")]
    pub(super) fn into_array(mut self) -> Result<Array2<f32>, HostError> {
        if self.stride() == self.cols {
            return Ok(std::mem::take(&mut self.values));
        }
        let (dim, stride) = (self.dim(), self.stride());
        let rows_a_chunk = (CHUNK / self.cols).max(1);
        let from = self.padded().par_chunks(rows_a_chunk * stride);
        let copy = |to: &mut [MaybeUninit<f32>], from: &[f32]| {
            let rows = to.chunks_exact_mut(dim.1).zip(from.chunks_exact(stride));
            for (to, from) in rows {
                for (to, &from) in to.iter_mut().zip(from) {
                    to.write(from);
                }
            }
        };
        // SAFETY: there are as many rows on either side, and those of `from` are at least as long.
        let values = unsafe { written(dim.0 * dim.1, rows_a_chunk * self.cols, from, copy)? };
        Ok(Array2::from_shape_vec(dim, values).unwrap_or_else(|_| Array2::zeros(dim)))
    }
}

impl Drop for CpuMatrix {
    fn drop(&mut self) {
        let (values, _) = std::mem::take(&mut self.values).into_raw_vec_and_offset();
        if let Some(home) = &self.home {
            home.keep(values);
        }
    }
}

/// Buffers without an owner, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<f32>>>>);

impl Buffers {
    /// A matrix of zeros; runs inside the backend's threads.
    pub(super) fn zeros(&self, rows: usize, cols: usize) -> Result<CpuMatrix, HostError> {
        let mut matrix = self.any(rows, cols)?;
        matrix
            .padded_mut()
            .par_chunks_mut(CHUNK)
            .for_each(|values| values.fill(0.0));
        Ok(matrix)
    }

    /// A copy; runs inside the backend's threads.
    pub(super) fn copy(&self, host: ArrayView2<'_, f32>) -> Result<CpuMatrix, HostError> {
        let (rows, cols) = host.dim();
        let mut matrix = self.any(rows, cols)?;
        let stride = matrix.stride();
        let chunk = (CHUNK / stride.max(1)).max(1);
        matrix
            .padded_mut()
            .par_chunks_mut(chunk * stride.max(1))
            .enumerate()
            .for_each(|(index, to)| {
                let first = index * chunk;
                for (row, to) in to.chunks_exact_mut(stride).enumerate() {
                    let (to, padding) = to.split_at_mut(cols);
                    match host.row(first + row).to_slice() {
                        Some(from) => to.copy_from_slice(from),
                        None => host
                            .row(first + row)
                            .iter()
                            .zip(to)
                            .for_each(|(from, to)| *to = *from),
                    }
                    padding.fill(0.0);
                }
            });
        Ok(matrix)
    }

    /// A matrix that may hold anything; runs inside the backend's threads.
    pub(super) fn any(&self, rows: usize, cols: usize) -> Result<CpuMatrix, HostError> {
        let stride = padded_stride(rows, cols);
        let len = super::super::host::count_of(rows, stride)?;
        let mut values = match self.take(len) {
            Some(values) => values,
            None => fresh(len)?,
        };
        values.truncate(len);
        values.resize(len, 0.0);
        let values = Array2::from_shape_vec((rows, stride), values)
            .unwrap_or_else(|_| Array2::zeros((rows, stride)));
        Ok(CpuMatrix {
            values,
            cols,
            home: Some(self.clone()),
        })
    }

    /// The smallest buffer that is large enough and not wastefully large. Where there is none, the oldest go
    /// to make room for a new one, so that no more is held than was once needed at a time.
    fn take(&self, len: usize) -> Option<Vec<f32>> {
        if len < KEPT {
            return None;
        }
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..buffers.len())
            .filter(|&at| (len..=len.saturating_mul(2)).contains(&buffers[at].capacity()))
            .min_by_key(|&at| buffers[at].capacity());
        if let Some(at) = fitting {
            return Some(buffers.remove(at));
        }
        let mut freed = 0;
        while freed < len && !buffers.is_empty() {
            freed += buffers.remove(0).capacity();
        }
        None
    }

    /// Bytes without an owner.
    pub(super) fn bytes(&self) -> usize {
        let buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let values: usize = buffers.iter().map(Vec::capacity).sum();
        values * size_of::<f32>()
    }

    /// Frees them.
    pub(super) fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn keep(&self, values: Vec<f32>) {
        if values.capacity() >= KEPT {
            let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            buffers.push(values);
        }
    }
}

/// The stride of rows `cols` long: longer where they would alias, and the matrix is large enough to care.
fn padded_stride(rows: usize, cols: usize) -> usize {
    let aliasing = cols.is_multiple_of(ALIASING) && rows.saturating_mul(cols) >= KEPT;
    cols + if aliasing { PADDING } else { 0 }
}

/// New memory, written by all threads.
#[allow(unsafe_code, reason = "first touch by all threads")]
fn fresh(len: usize) -> Result<Vec<f32>, HostError> {
    let chunks = rayon::iter::repeat_n((), len.div_ceil(CHUNK));
    let zero = |to: &mut [MaybeUninit<f32>], ()| {
        for value in to {
            value.write(0.0);
        }
    };
    // SAFETY: every value is written.
    unsafe { written(len, CHUNK, chunks, zero) }
}

/// New memory, asked for in huge pages where the system has them (a tenth of the page faults' cost), and written
/// `chunk` values at a time from as many sources.
///
/// The system hands out pages at the first touch, one thread at a time for each that asks.
///
/// # Safety
/// `write` must write all of the values it is given.
#[allow(
    unsafe_code,
    reason = "advice to the system; first touch by all threads"
)]
unsafe fn written<S: Send>(
    len: usize,
    chunk: usize,
    sources: impl IndexedParallelIterator<Item = S>,
    write: impl Fn(&mut [MaybeUninit<f32>], S) + Send + Sync,
) -> Result<Vec<f32>, HostError> {
    let mut values: Vec<f32> = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| HostError::OutOfMemory {
            bytes: len * size_of::<f32>(),
        })?;
    #[cfg(target_os = "linux")]
    {
        const HUGE_PAGE: usize = 2 << 20;
        let start = (values.as_mut_ptr() as usize).next_multiple_of(HUGE_PAGE);
        let end = values.as_mut_ptr() as usize + values.capacity() * size_of::<f32>();
        if end > start + HUGE_PAGE {
            // SAFETY: the range lies in the allocation of `values`, which is ours alone, and this advice changes
            // how pages are mapped, never what they hold. A refusal is of no consequence.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    values.spare_capacity_mut()[..len]
        .par_chunks_mut(chunk)
        .zip_eq(sources)
        .for_each(|(to, source)| write(to, source));
    // SAFETY: `zip_eq` has paired each chunk of the first `len` values with a source, and by this function's contract
    // `write` has written all of it.
    unsafe { values.set_len(len) };
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(buffers: &Buffers) -> Vec<usize> {
        let buffers = buffers.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffers.iter().map(Vec::capacity).collect()
    }

    #[test]
    fn a_dropped_matrix_serves_the_next_and_starts_at_zero() -> Result<(), HostError> {
        let buffers = Buffers::default();
        let mut first = buffers.zeros(512, 1024)?;
        first.view_mut().fill(7.0);
        let place = first.padded().as_ptr();
        drop(first);
        let second = buffers.zeros(1024, 500)?;
        assert_eq!(second.padded().as_ptr(), place);
        assert!(second.padded().iter().all(|&value| value == 0.0));
        assert!(held(&buffers).is_empty());
        Ok(())
    }

    #[test]
    fn what_comes_from_outside_does_not_pile_up() -> Result<(), HostError> {
        let buffers = Buffers::default();
        for _ in 0..3 {
            drop(CpuMatrix::adopt(buffers.zeros(512, 512)?.into_array()?));
            drop(buffers.zeros(512, 512)?);
        }
        assert_eq!(held(&buffers).len(), 1);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_makes_room() -> Result<(), HostError> {
        let buffers = Buffers::default();
        drop((buffers.zeros(512, 512)?, buffers.zeros(512, 513)?));
        assert_eq!(held(&buffers).len(), 2);
        drop(buffers.zeros(2048, 2048)?);
        assert_eq!(held(&buffers), [2048 * (2048 + PADDING)]);
        drop(buffers.zeros(1, 8)?);
        assert_eq!(held(&buffers), [2048 * (2048 + PADDING)]);
        Ok(())
    }

    #[test]
    fn more_than_any_machine_has_is_an_error() {
        let impossible = Buffers::default().zeros(usize::MAX, 2);
        assert!(matches!(impossible, Err(HostError::OutOfMemory { .. })));
    }
}
