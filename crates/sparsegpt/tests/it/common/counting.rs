//! The host backend with a count of what it does, and a memory of its own that it only tells the size of.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, ArrayView2};
use sparsegpt::Activations;
use sparsegpt::backend::{Backend, BackendInfo, GridRef, Host, Precision, PruneRef, UpdateRows};
use sparsegpt::error::HostError;

#[derive(Debug, Default)]
pub(crate) struct Counting {
    free: Option<usize>,
    factorizations: AtomicUsize,
    updates: AtomicUsize,
    /// The update of a Hessian that runs out of memory, counted from 1; 0 for none.
    failing_update: usize,
    rows_swept: AtomicUsize,
    copies: Mutex<Vec<Copied>>,
}

/// A copy from or to the host, with rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    To(usize, usize),
    From(usize, usize),
}

impl Counting {
    /// With so many bytes of memory.
    pub(crate) fn with_free(free: Option<usize>) -> Self {
        Self {
            free,
            ..Self::default()
        }
    }

    /// One whose memory does not suffice for an update of a Hessian, counted from 1.
    pub(crate) fn failing_at_update(number: usize) -> Self {
        Self {
            failing_update: number,
            ..Self::default()
        }
    }

    pub(crate) fn factorizations(&self) -> usize {
        self.factorizations.load(Ordering::Relaxed)
    }

    /// Copies since the last call, in order.
    pub(crate) fn take_copies(&self) -> Vec<Copied> {
        std::mem::take(&mut *self.copies.lock().unwrap())
    }

    /// Rows of the largest matrix swept.
    pub(crate) fn rows_swept(&self) -> usize {
        self.rows_swept.load(Ordering::Relaxed)
    }
}

impl Backend for Counting {
    type Matrix = Array2<f32>;
    type Mask = Array2<bool>;
    type Error = HostError;

    fn info(&self) -> BackendInfo {
        Host.info()
    }
    fn fork(&self) -> Result<Self, HostError> {
        Ok(Self::with_free(self.free))
    }
    fn synchronize(&self) -> Result<(), HostError> {
        Ok(())
    }
    fn free_bytes(&self) -> Result<Option<usize>, HostError> {
        Ok(self.free)
    }
    fn zeros(&self, rows: usize, cols: usize) -> Result<Array2<f32>, HostError> {
        Host.zeros(rows, cols)
    }
    fn shape(&self, matrix: &Array2<f32>) -> (usize, usize) {
        Host.shape(matrix)
    }
    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Array2<f32>, HostError> {
        let (rows, cols) = host.dim();
        self.copies.lock().unwrap().push(Copied::To(rows, cols));
        Host.upload(host)
    }
    fn download(&self, matrix: &Array2<f32>) -> Result<Array2<f32>, HostError> {
        let (rows, cols) = matrix.dim();
        self.copies.lock().unwrap().push(Copied::From(rows, cols));
        Host.download(matrix)
    }
    fn copy(&self, matrix: &Array2<f32>) -> Result<Array2<f32>, HostError> {
        Host.copy(matrix)
    }
    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Array2<bool>, HostError> {
        Host.upload_mask(host)
    }
    fn download_mask(&self, mask: &Array2<bool>) -> Result<Array2<bool>, HostError> {
        Host.download_mask(mask)
    }
    fn gram_update(
        &self,
        h: &mut Array2<f32>,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), HostError> {
        if self.updates.fetch_add(1, Ordering::Relaxed) + 1 == self.failing_update {
            return Err(HostError::OutOfMemory { bytes: 1 << 40 });
        }
        Host.gram_update(h, x, alpha, beta)
    }
    fn inverse_factor(
        &self,
        h: &mut Array2<f32>,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), HostError> {
        self.factorizations.fetch_add(1, Ordering::Relaxed);
        Host.inverse_factor(h, diagonal, blocks, precision)
    }
    fn update_rows(&self, args: UpdateRows<'_, Self>) -> Result<Option<Array2<bool>>, HostError> {
        self.rows_swept
            .fetch_max(args.weights.nrows(), Ordering::Relaxed);
        let UpdateRows {
            weights,
            factor,
            errors,
            error_offset,
            losses,
            columns,
            prune,
            grid,
            ..
        } = args;
        let prune = match prune {
            PruneRef::Fixed { mask, offset } => PruneRef::Fixed { mask, offset },
            PruneRef::NofM { zeros, group } => PruneRef::NofM { zeros, group },
            _ => PruneRef::Keep,
        };
        let grid = grid.map(|grid| GridRef::new(grid.kind, grid.scale, grid.zero, grid.groups));
        let sweep = UpdateRows::new(weights, factor, (errors, error_offset), losses, columns);
        Host.update_rows(sweep.pruning(prune).rounding(grid))
    }
}
