//! The trait's operations on a device that runs kernels.

use std::ops::Range;

use ndarray::{Array2, ArrayView2};
use sparsegpt::Activations;
use sparsegpt::backend::{
    Backend, BackendInfo, FitGrid, Gemm, Operation, Precision, Project, Refit, Select, UpdateRows,
};

use crate::device::Device;
use crate::error::CudaError;
use crate::matrix::{DeviceMask, DeviceMatrix};
use crate::operations::{blocks, elementwise, factor, gemm, gram, grid, iterate, select, sweep};

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
        // Adam has no kernels: it is a yardstick, and goes over the host.
        let native = Operation::ALL
            .into_iter()
            .filter(|it| *it != Operation::Adam);
        BackendInfo::new("cuda", self.device.describe(), &native.collect::<Vec<_>>())
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
        gram::gram_update(&self.device, h, x, alpha, beta)
    }

    fn inverse_factor(
        &self,
        h: &mut DeviceMatrix<D>,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), CudaError> {
        factor::inverse_factor(&self.device, h, diagonal, blocks, precision)
    }

    fn diagonal(&self, matrix: &DeviceMatrix<D>) -> Result<Vec<f32>, CudaError> {
        elementwise::diagonal(&self.device, matrix)
    }

    fn set_diagonal(
        &self,
        matrix: &mut DeviceMatrix<D>,
        diagonal: &[f32],
    ) -> Result<(), CudaError> {
        elementwise::set_diagonal(&self.device, matrix, diagonal)
    }

    fn combine(
        &self,
        target: &mut DeviceMatrix<D>,
        alpha: f32,
        other: &DeviceMatrix<D>,
        beta: f32,
    ) -> Result<(), CudaError> {
        elementwise::combine(&self.device, target, alpha, other, beta)
    }

    fn permute_hessian(
        &self,
        h: &DeviceMatrix<D>,
        order: &[usize],
    ) -> Result<DeviceMatrix<D>, CudaError> {
        elementwise::permute_hessian(&self.device, h, order)
    }

    fn row_energies(
        &self,
        w: &DeviceMatrix<D>,
        h: &DeviceMatrix<D>,
        diagonal: &[f32],
    ) -> Result<Vec<f64>, CudaError> {
        elementwise::row_energies(&self.device, w, h, diagonal)
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

    fn open_block(
        &self,
        weights: &mut DeviceMatrix<D>,
        rest: &DeviceMatrix<D>,
        factor: &DeviceMatrix<D>,
        columns: Range<usize>,
    ) -> Result<(), CudaError> {
        blocks::open_block(&self.device, weights, rest, factor, columns)
    }

    fn close_block(
        &self,
        rest: &mut DeviceMatrix<D>,
        weights: &DeviceMatrix<D>,
        columns: Range<usize>,
    ) -> Result<(), CudaError> {
        blocks::close_block(&self.device, rest, weights, columns)
    }

    fn gemm(&self, args: Gemm<'_, Self>) -> Result<(), CudaError> {
        gemm::gemm(&self.device, args)
    }

    fn inverse(
        &self,
        h: &DeviceMatrix<D>,
        diagonal: &[f32],
        precision: Precision,
    ) -> Result<DeviceMatrix<D>, CudaError> {
        iterate::inverse(&self.device, h, diagonal, precision)
    }

    fn project(&self, args: Project<'_, Self>) -> Result<(), CudaError> {
        iterate::project(&self.device, args)
    }

    fn refit(&self, args: Refit<'_, Self>) -> Result<(), CudaError> {
        iterate::refit(&self.device, args)
    }
}
