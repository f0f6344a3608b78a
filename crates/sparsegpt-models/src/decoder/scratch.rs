//! Memory that goes round: the matrices of one forward pass serve the next.
//!
//! They are as large as what an allocator returns to the system, and getting them back page by page costs about
//! a tenth of the whole pass.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use ndarray::Array2;

/// Buffers without an owner.
#[derive(Debug, Default)]
pub(super) struct Scratch(Mutex<Vec<Vec<f32>>>);

/// A matrix whose memory goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Scrap<'a> {
    matrix: Array2<f32>,
    home: &'a Scratch,
}

impl Scratch {
    /// A matrix that may hold anything.
    pub(super) fn matrix(&self, rows: usize, cols: usize) -> Scrap<'_> {
        let len = rows * cols;
        let mut values = self.take(len);
        values.truncate(len);
        values.resize(len, 0.0);
        Scrap {
            matrix: Array2::from_shape_vec((rows, cols), values)
                .unwrap_or_else(|_| Array2::zeros((rows, cols))),
            home: self,
        }
    }

    /// The smallest buffer that is large enough, or else a new one.
    fn take(&self, len: usize) -> Vec<f32> {
        if len == 0 {
            return Vec::new();
        }
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..buffers.len())
            .filter(|&at| buffers[at].capacity() >= len)
            .min_by_key(|&at| buffers[at].capacity());
        match fitting {
            Some(at) => buffers.swap_remove(at),
            // No more is held than was once needed at a time.
            None => {
                buffers.pop();
                Vec::with_capacity(len)
            }
        }
    }
}

impl Deref for Scrap<'_> {
    type Target = Array2<f32>;

    fn deref(&self) -> &Array2<f32> {
        &self.matrix
    }
}

impl DerefMut for Scrap<'_> {
    fn deref_mut(&mut self) -> &mut Array2<f32> {
        &mut self.matrix
    }
}

impl Drop for Scrap<'_> {
    fn drop(&mut self) {
        let (values, _) = std::mem::take(&mut self.matrix).into_raw_vec_and_offset();
        if values.capacity() > 0 {
            let mut buffers = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
            buffers.push(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_round() {
        let scratch = Scratch::default();
        let place = scratch.matrix(8, 100).as_ptr();
        let second = scratch.matrix(10, 70);
        assert_eq!((second.as_ptr(), second.dim()), (place, (10, 70)));
        drop(scratch.matrix(30, 30));
        drop(second);
        let held = |scratch: &Scratch| scratch.0.lock().map_or(0, |buffers| buffers.len());
        assert_eq!(held(&scratch), 2);
        drop(scratch.matrix(100, 100));
        assert_eq!(held(&scratch), 2);
    }
}
