//! The trait's operations on a device that runs kernels.

use ndarray::{Array2, ArrayView2};
use sparsegpt::Activations;
use sparsegpt::backend::{
    Backend, BackendInfo, FitGrid, Operation, Precision, Select, UpdateRows, host,
};

use crate::device::Device;
use crate::error::CudaError;
use crate::matrix::{DeviceMask, DeviceMatrix};
use crate::operations::{grid, select, sweep};

/// The operations that have kernels.
const NATIVE: &[Operation] = &[Operation::Select, Operation::FitGrid, Operation::UpdateRows];

/// The backend on a device: a GPU, or an emulator.
#[derive(Debug)]
pub struct CudaBackend<D: Device> {
    device: D,
}

impl<D: Device> CudaBackend<D> {
    /// The backend on a device.
    #[must_use]
    pub fn new(device: D) -> Self {
        Self { device }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }
}

impl<D: Device> Backend for CudaBackend<D> {
    type Matrix = DeviceMatrix<D>;
    type Mask = DeviceMask<D>;
    type Error = CudaError;

    fn info(&self) -> BackendInfo {
        BackendInfo::new("cuda", self.device.describe(), NATIVE)
    }

    fn fork(&self) -> Result<Self, CudaError> {
        Ok(Self::new(self.device.fork()?))
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.device.synchronize()
    }

    fn free_bytes(&self) -> Result<Option<usize>, CudaError> {
        self.device.free_bytes().map(Some)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<DeviceMatrix<D>, CudaError> {
        DeviceMatrix::zeros(&self.device, rows, cols)
    }

    fn shape(&self, matrix: &DeviceMatrix<D>) -> (usize, usize) {
        (matrix.rows, matrix.cols)
    }

    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<DeviceMatrix<D>, CudaError> {
        DeviceMatrix::upload(&self.device, host)
    }

    fn download(&self, matrix: &DeviceMatrix<D>) -> Result<Array2<f32>, CudaError> {
        matrix.download(&self.device)
    }

    fn copy(&self, matrix: &DeviceMatrix<D>) -> Result<DeviceMatrix<D>, CudaError> {
        matrix.copy(&self.device)
    }

    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<DeviceMask<D>, CudaError> {
        DeviceMask::upload(&self.device, host)
    }

    fn download_mask(&self, mask: &DeviceMask<D>) -> Result<Array2<bool>, CudaError> {
        mask.download(&self.device)
    }

    fn gram_update(
        &self,
        h: &mut DeviceMatrix<D>,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), CudaError> {
        let mut on_host = self.download(h)?;
        host::gram_update(on_host.view_mut(), x, alpha, beta);
        *h = self.upload(on_host.view())?;
        Ok(())
    }

    fn inverse_factor(
        &self,
        h: &mut DeviceMatrix<D>,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), CudaError> {
        let mut on_host = self.download(h)?;
        host::inverse_factor(on_host.view_mut(), diagonal, blocks, precision)?;
        *h = self.upload(on_host.view())?;
        Ok(())
    }

    fn select(&self, args: Select<'_, Self>) -> Result<DeviceMask<D>, CudaError> {
        select::select(&self.device, &args)
    }

    fn fit_grid(&self, args: FitGrid<'_, Self>) -> Result<(), CudaError> {
        grid::fit_grid(&self.device, args)
    }

    fn update_rows(&self, args: UpdateRows<'_, Self>) -> Result<Option<DeviceMask<D>>, CudaError> {
        sweep::update_rows(&self.device, args)
    }
}
