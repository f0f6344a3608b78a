//! What the iterative methods need beside products of column ranges: the inverse of H, ADMM's step between two products, and
//! conjugate gradients.

use sparsegpt::backend::{Precision, Project, Refit};

use super::elementwise::{ROWS, combine, grid, mirror, set_diagonal};
use super::factor::inverse_factor;
use super::product::{Counts, Multiplication, Operand, Part, Units};
use super::{size, size_u32};
use crate::backend::CudaBackend;
use crate::device::{Argument, Device};
use crate::error::CudaError;
use crate::kernels::Kernel;
use crate::kernels::iterate::{PROJECT, REFIT_BEGIN, REFIT_STEP};
use crate::matrix::{DeviceMask, DeviceMatrix, upload_values};

const WHAT: &str = "refit";

/// See [`Backend::inverse`](sparsegpt::backend::Backend::inverse): H⁻¹ = RᵀR for the factor as one block. Its lower
/// triangle, of which R(k, j) with k ≤ j ≤ i is all that counts, and then the other.
pub(crate) fn inverse<D: Device>(
    device: &D,
    h: &DeviceMatrix<D>,
    diagonal: &[f32],
    precision: Precision,
) -> Result<DeviceMatrix<D>, CudaError> {
    let cols = diagonal.len();
    let factor = h.copy(device)?;
    inverse_factor(device, &factor, diagonal, &[cols], precision)?;
    let inverse = DeviceMatrix::new(device, cols, cols)?;
    let r = Operand::along_columns(factor.at(device, 0, 0), factor.leading());
    let c = (inverse.at(device, 0, 0), inverse.leading());
    Multiplication {
        b_counts: Counts::UpTo(0),
        part: Part::Lower,
        ..Multiplication::new((cols, cols, cols), r, r, c)
    }
    .launch(device, Units::of(device.limits()))?;
    mirror(device, &inverse)?;
    Ok(inverse)
}

/// See [`Project`].
pub(crate) fn project<D: Device>(
    device: &D,
    args: Project<'_, CudaBackend<D>>,
) -> Result<(), CudaError> {
    const WHAT: &str = "project";
    let Project {
        sums,
        duals,
        dense,
        mask,
        weights,
        ..
    } = args;
    device.launch(
        &PROJECT,
        grid(WHAT, sums.rows, sums.cols)?,
        &[
            Argument::Address(sums.at(device, 0, 0)),
            size(WHAT, sums.leading())?,
            Argument::Address(duals.at(device, 0, 0)),
            size(WHAT, duals.leading())?,
            Argument::Address(dense.at(device, 0, 0)),
            size(WHAT, dense.leading())?,
            Argument::Address(mask.at(device, 0, 0)),
            size(WHAT, mask.cols)?,
            Argument::Address(weights.at(device, 0, 0)),
            size(WHAT, sums.rows)?,
            size(WHAT, sums.cols)?,
        ],
    )
}

/// See [`Refit`]. Three matrices of the layer's size, and H with both triangles.
pub(crate) fn refit<D: Device>(
    device: &D,
    args: Refit<'_, CudaBackend<D>>,
) -> Result<(), CudaError> {
    let Refit {
        weights,
        dense,
        h,
        diagonal,
        mask,
        steps,
        ..
    } = args;
    if weights.rows == 0 || weights.cols == 0 {
        return Ok(());
    }
    let full = h.copy(device)?;
    set_diagonal(device, &full, diagonal)?;
    mirror(device, &full)?;
    let inverse: Vec<f32> = diagonal.iter().map(|entry| entry.recip()).collect();
    let bytes_of_progress = weights.rows * 2 * size_of::<f64>();
    let descent = Descent {
        device,
        weights,
        residual: DeviceMatrix::new(device, weights.rows, weights.cols)?,
        direction: dense.copy(device)?,
        product: DeviceMatrix::new(device, weights.rows, weights.cols)?,
        inverse: upload_values(device, &inverse)?,
        mask,
        progress: device.allocate(bytes_of_progress)?,
    };
    // The direction's memory holds d − q until g = (d − q)H is made of it.
    combine(device, &descent.direction, 1.0, weights, -1.0)?;
    descent.times(&full, &descent.residual)?;
    let (residual, direction, product) = (&descent.residual, &descent.direction, &descent.product);
    descent.launch(&REFIT_BEGIN, &[residual, direction])?;
    for _ in 0..steps {
        descent.times(&full, product)?;
        descent.launch(&REFIT_STEP, &[weights, residual, direction, product])?;
    }
    Ok(())
}

/// Conjugate gradients under way.
struct Descent<'a, D: Device> {
    device: &'a D,
    weights: &'a DeviceMatrix<D>,
    residual: DeviceMatrix<D>,
    direction: DeviceMatrix<D>,
    product: DeviceMatrix<D>,
    /// One over the diagonal of H.
    inverse: D::Buffer,
    mask: &'a DeviceMask<D>,
    /// Two f64 a row: see the kernels.
    progress: D::Buffer,
}

impl<D: Device> Descent<'_, D> {
    /// `to` ← direction · H.
    fn times(&self, h: &DeviceMatrix<D>, to: &DeviceMatrix<D>) -> Result<(), CudaError> {
        let (rows, cols) = (self.weights.rows, self.weights.cols);
        let (p, h_start) = (
            self.direction.at(self.device, 0, 0),
            h.at(self.device, 0, 0),
        );
        Multiplication::new(
            (rows, cols, cols),
            Operand::along_rows(p, self.direction.leading()),
            Operand::along_columns(h_start, h.leading()),
            (to.at(self.device, 0, 0), to.leading()),
        )
        .launch(self.device, Units::of(self.device.limits()))
    }

    /// A warp a row, on these matrices and what is the same for all kernels.
    fn launch(
        &self,
        kernel: &'static Kernel,
        matrices: &[&DeviceMatrix<D>],
    ) -> Result<(), CudaError> {
        let mut arguments = Vec::new();
        for matrix in matrices {
            arguments.push(Argument::Address(matrix.at(self.device, 0, 0)));
            arguments.push(size(WHAT, matrix.leading())?);
        }
        arguments.extend([
            Argument::Address(self.device.address(&self.inverse)),
            Argument::Address(self.mask.at(self.device, 0, 0)),
            size(WHAT, self.mask.cols)?,
            Argument::Address(self.device.address(&self.progress)),
            size(WHAT, self.weights.rows)?,
            size(WHAT, self.weights.cols)?,
        ]);
        let blocks = size_u32(WHAT, self.weights.rows)?.div_ceil(ROWS);
        self.device.launch(kernel, [blocks, 1, 1], &arguments)
    }
}
