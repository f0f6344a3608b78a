//! Memory that goes round: the buffers of dropped matrices serve the next ones.
//!
//! The first touch of fresh memory costs more than all other passes over a layer's weights together, so the
//! large buffers of one layer are kept for the next.

use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use crate::error::HostError;

/// Values from which a buffer is worth keeping (1 MiB); the allocator keeps smaller ones itself.
const KEPT: usize = 1 << 18;
/// Values handled by one thread at a time: a huge page.
const CHUNK: usize = 1 << 19;

/// A matrix of the [`Cpu`](super::Cpu) backend.
#[derive(Debug)]
pub struct CpuMatrix(pub(super) Array2<f32>, Option<Buffers>);

impl CpuMatrix {
    /// Takes in a matrix of somebody else's making. Its memory is not kept: what comes from outside again and
    /// again would pile up.
    pub(super) fn adopt(values: Array2<f32>) -> Self {
        Self(values, None)
    }

    /// The values themselves, without a copy.
    pub(super) fn into_array(mut self) -> Array2<f32> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for CpuMatrix {
    fn drop(&mut self) {
        let (values, _) = std::mem::take(&mut self.0).into_raw_vec_and_offset();
        if let Some(home) = &self.1 {
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
        if let Some(values) = matrix.0.as_slice_mut() {
            values
                .par_chunks_mut(CHUNK)
                .for_each(|values| values.fill(0.0));
        }
        Ok(matrix)
    }

    /// A copy; runs inside the backend's threads.
    pub(super) fn copy(&self, host: ArrayView2<'_, f32>) -> Result<CpuMatrix, HostError> {
        let (rows, cols) = host.dim();
        let mut matrix = self.any(rows, cols)?;
        match (host.as_slice(), matrix.0.as_slice_mut()) {
            (Some(from), Some(to)) => to
                .par_chunks_mut(CHUNK)
                .zip(from.par_chunks(CHUNK))
                .for_each(|(to, from)| to.copy_from_slice(from)),
            _ => matrix.0.assign(&host),
        }
        Ok(matrix)
    }

    /// A matrix that may hold anything.
    fn any(&self, rows: usize, cols: usize) -> Result<CpuMatrix, HostError> {
        let len = super::super::host::count_of(rows, cols)?;
        let mut values = match self.take(len) {
            Some(values) => values,
            None => fresh(len)?,
        };
        values.truncate(len);
        values.resize(len, 0.0);
        let values = Array2::from_shape_vec((rows, cols), values)
            .unwrap_or_else(|_| Array2::zeros((rows, cols)));
        Ok(CpuMatrix(values, Some(self.clone())))
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

    fn keep(&self, values: Vec<f32>) {
        if values.capacity() >= KEPT {
            let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            buffers.push(values);
        }
    }
}

/// New memory, asked for in huge pages where the system has them: a tenth of the page faults' cost.
#[allow(
    unsafe_code,
    reason = "advice to the system; first touch by all threads"
)]
fn fresh(len: usize) -> Result<Vec<f32>, HostError> {
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
    // The system hands out pages at the first touch, one thread at a time for each that asks.
    values.spare_capacity_mut()[..len]
        .par_chunks_mut(CHUNK)
        .for_each(|values| {
            for value in values {
                value.write(0.0);
            }
        });
    // SAFETY: the first `len` values were just written.
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
        first.0.fill(7.0);
        let place = first.0.as_ptr();
        drop(first);
        let second = buffers.zeros(1024, 500)?;
        assert_eq!(second.0.as_ptr(), place);
        assert!(second.0.iter().all(|&value| value == 0.0));
        assert!(held(&buffers).is_empty());
        Ok(())
    }

    #[test]
    fn what_comes_from_outside_does_not_pile_up() -> Result<(), HostError> {
        let buffers = Buffers::default();
        for _ in 0..3 {
            drop(CpuMatrix::adopt(buffers.zeros(512, 512)?.into_array()));
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
        assert_eq!(held(&buffers), [2048 * 2048]);
        drop(buffers.zeros(1, 8)?);
        assert_eq!(held(&buffers), [2048 * 2048]);
        Ok(())
    }

    #[test]
    fn more_than_any_machine_has_is_an_error() {
        let impossible = Buffers::default().zeros(usize::MAX, 2);
        assert!(matches!(impossible, Err(HostError::OutOfMemory { .. })));
    }
}
