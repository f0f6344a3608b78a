//! The host backend with a count of its factorizations.

use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array2, ArrayView2};
use sparsegpt::Activations;
use sparsegpt::backend::{Backend, BackendInfo, Host, Precision};
use sparsegpt::error::HostError;

#[derive(Debug, Default)]
pub(crate) struct Counting {
    factorizations: AtomicUsize,
}

impl Counting {
    pub(crate) fn factorizations(&self) -> usize {
        self.factorizations.load(Ordering::Relaxed)
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
        Ok(Self::default())
    }
    fn synchronize(&self) -> Result<(), HostError> {
        Ok(())
    }
    fn zeros(&self, rows: usize, cols: usize) -> Result<Array2<f32>, HostError> {
        Host.zeros(rows, cols)
    }
    fn shape(&self, matrix: &Array2<f32>) -> (usize, usize) {
        Host.shape(matrix)
    }
    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Array2<f32>, HostError> {
        Host.upload(host)
    }
    fn download(&self, matrix: &Array2<f32>) -> Result<Array2<f32>, HostError> {
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
}
