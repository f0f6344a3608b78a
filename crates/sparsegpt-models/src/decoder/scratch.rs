//! Memory that goes round: the matrices of one block's forward pass serve the next.
//!
//! They are as large as the allocator's limit for returning memory to the system, and getting it back page by page
//! costs a tenth of the whole pass.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use ndarray::Array2;

/// Buffers without an owner.
#[derive(Debug, Default)]
pub(super) struct Scratch(Mutex<Vec<Vec<f32>>>);

impl Scratch {
    /// A matrix that may hold anything.
    pub(super) fn matrix(&self, rows: usize, cols: usize) -> Scrap<'_> {
        let len = rows * cols;
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let smallest_fitting = (0..buffers.len())
            .filter(|&at| buffers[at].len() >= len)
            .min_by_key(|&at| buffers[at].len());
        let mut values = match smallest_fitting {
            Some(at) => buffers.swap_remove(at),
            None => buffers.pop().unwrap_or_default(),
        };
        drop(buffers);
        // Shortened only in what is seen of it: growing again would write zeros.
        if values.len() < len {
            values.resize(len, 0.0);
        }
        let rest = values.split_off(len);
        let matrix = Array2::from_shape_vec((rows, cols), values)
            .unwrap_or_else(|_| Array2::zeros((rows, cols)));
        drop(rest);
        Scrap { matrix, home: self }
    }
}
