//! Diagonals, sums, reordering, and energies.

use std::ops::Range;

use super::product::{Counts, Multiplication, Operand, Units};
use super::{size, size_u32};
use crate::device::{Argument, Device};
use crate::error::CudaError;
use crate::kernels::Kernel;
use crate::kernels::elementwise::{
    ADD_ENERGIES, COMBINE, MIRROR, PACK_MASK, PERMUTE, READ_DIAGONAL, WRITE_DIAGONAL,
};
use crate::matrix::{DeviceMatrix, PACKED, upload_values};

/// Rows and columns of a block of threads.
pub(super) const ROWS: u32 = 8;
const COLUMNS: u32 = 128;
/// Rows and columns of a block of threads that mirrors.
pub(super) const MIRROR_TILE: u32 = 32;
/// Columns of W Lᵀ that are on the device at a time.
const PANEL: usize = 512;

/// The grid for all values of a matrix.
pub(super) fn grid(what: &'static str, rows: usize, cols: usize) -> Result<[u32; 3], CudaError> {
    Ok([
        size_u32(what, rows)?.div_ceil(ROWS),
        size_u32(what, cols)?.div_ceil(COLUMNS),
        1,
    ])
}

/// The diagonal of a square matrix.
pub(crate) fn diagonal<D: Device>(
    device: &D,
    matrix: &DeviceMatrix<D>,
) -> Result<Vec<f32>, CudaError> {
    let mut host = vec![0.0; matrix.cols];
    if host.is_empty() {
        return Ok(host);
    }
    let bytes = size_of_val(&*host);
    let values = device.allocate(bytes)?;
    let address = device.address(&values);
    move_diagonal(device, &READ_DIAGONAL, matrix, address)?;
    device.download_rows(bytemuck::cast_slice_mut(&mut host), address, bytes, bytes)?;
    Ok(host)
}

/// Packs the bytes of so many weights' marks into words of a bit each.
pub(crate) fn pack_mask<D: Device>(
    device: &D,
    mask: u64,
    words: u64,
    weights: usize,
) -> Result<(), CudaError> {
    const WHAT: &str = "pack_mask";
    let count = size_u32(WHAT, weights.div_ceil(PACKED))?;
    let last = size_u32(WHAT, weights - (weights.div_ceil(PACKED) - 1) * PACKED)?;
    device.launch(
        &PACK_MASK,
        [count.div_ceil(PACK_MASK.threads), 1, 1],
        &[
            Argument::Address(mask),
            Argument::Address(words),
            Argument::U32(count),
            Argument::U32(last),
        ],
    )
}

/// Overwrites the diagonal of a square matrix.
pub(crate) fn set_diagonal<D: Device>(
    device: &D,
    matrix: &DeviceMatrix<D>,
    diagonal: &[f32],
) -> Result<(), CudaError> {
    let values = upload_values(device, diagonal)?;
    move_diagonal(device, &WRITE_DIAGONAL, matrix, device.address(&values))
}

fn move_diagonal<D: Device>(
    device: &D,
    kernel: &'static Kernel,
    matrix: &DeviceMatrix<D>,
    values: u64,
) -> Result<(), CudaError> {
    const WHAT: &str = "diagonal";
    let count = size_u32(WHAT, matrix.cols)?;
    device.launch(
        kernel,
        [count.div_ceil(kernel.threads), 1, 1],
        &[
            Argument::Address(matrix.at(device, 0, 0)),
            size(WHAT, matrix.leading())?,
            Argument::Address(values),
            Argument::U32(count),
        ],
    )
}

/// Copies the strict lower triangle of a square matrix to the strict upper one.
pub(super) fn mirror<D: Device>(device: &D, matrix: &DeviceMatrix<D>) -> Result<(), CudaError> {
    const WHAT: &str = "mirror";
    let tiles = size_u32(WHAT, matrix.cols)?.div_ceil(MIRROR_TILE);
    device.launch(
        &MIRROR,
        [tiles, tiles, 1],
        &[
            Argument::Address(matrix.at(device, 0, 0)),
            size(WHAT, matrix.leading())?,
            size(WHAT, matrix.cols)?,
        ],
    )
}

/// See [`Backend::combine`](sparsegpt::backend::Backend::combine).
pub(crate) fn combine<D: Device>(
    device: &D,
    target: &DeviceMatrix<D>,
    alpha: f32,
    other: &DeviceMatrix<D>,
    beta: f32,
) -> Result<(), CudaError> {
    let columns = 0..target.cols;
    combine_columns(device, (target, alpha), (other, beta), columns)
}

/// The same for some columns.
pub(super) fn combine_columns<D: Device>(
    device: &D,
    (target, alpha): (&DeviceMatrix<D>, f32),
    (other, beta): (&DeviceMatrix<D>, f32),
    columns: Range<usize>,
) -> Result<(), CudaError> {
    const WHAT: &str = "combine";
    device.launch(
        &COMBINE,
        grid(WHAT, target.rows, columns.len())?,
        &[
            Argument::Address(target.columns(device, &columns)),
            size(WHAT, target.leading())?,
            Argument::Address(other.columns(device, &columns)),
            size(WHAT, other.leading())?,
            size(WHAT, target.rows)?,
            size(WHAT, columns.len())?,
            Argument::F32(alpha),
            Argument::F32(beta),
        ],
    )
}

/// See [`Backend::permute_hessian`](sparsegpt::backend::Backend::permute_hessian).
pub(crate) fn permute_hessian<D: Device>(
    device: &D,
    h: &DeviceMatrix<D>,
    order: &[usize],
) -> Result<DeviceMatrix<D>, CudaError> {
    const WHAT: &str = "permute_hessian";
    let order = order
        .iter()
        .map(|&column| size_u32(WHAT, column))
        .collect::<Result<Vec<_>, _>>()?;
    let order = upload_values(device, &order)?;
    let to = DeviceMatrix::new(device, h.rows, h.cols)?;
    device.launch(
        &PERMUTE,
        grid(WHAT, h.rows, h.cols)?,
        &[
            Argument::Address(h.at(device, 0, 0)),
            size(WHAT, h.leading())?,
            Argument::Address(device.address(&order)),
            Argument::Address(to.at(device, 0, 0)),
            size(WHAT, to.leading())?,
            size(WHAT, h.cols)?,
        ],
    )?;
    Ok(to)
}

/// See [`Backend::row_energies`](sparsegpt::backend::Backend::row_energies). With L the strict lower triangle of H,
/// w H wᵀ = Σ_j w_j (2 (w Lᵀ)_j + H_jj w_j): half the products of w H. They are f32, the sums over j f64.
pub(crate) fn row_energies<D: Device>(
    device: &D,
    w: &DeviceMatrix<D>,
    h: &DeviceMatrix<D>,
    diagonal: &[f32],
) -> Result<Vec<f64>, CudaError> {
    const WHAT: &str = "row_energies";
    let mut host = vec![0.0_f64; w.rows];
    if host.is_empty() || w.cols == 0 {
        return Ok(host);
    }
    let bytes = size_of_val(&*host);
    let energies = device.allocate(bytes)?;
    let energies_address = device.address(&energies);
    device.clear(energies_address, bytes)?;
    let diagonal = upload_values(device, diagonal)?;
    let product = DeviceMatrix::new(device, w.rows, PANEL.min(w.cols))?;
    for start in (0..w.cols).step_by(PANEL) {
        let end = w.cols.min(start + PANEL);
        // Row i of L ends before column i. Less than the columns of a matrix, which are u32.
        let before = start as i32 - 1;
        let by_rows_of_l = Multiplication::new(
            (w.rows, end - start, end - 1),
            Operand::along_rows(w.at(device, 0, 0), w.leading()),
            Operand::along_rows(h.at(device, start, 0), h.leading()),
            (product.at(device, 0, 0), product.leading()),
        );
        Multiplication {
            b_counts: Counts::UpTo(before),
            ..by_rows_of_l
        }
        .launch(device, Units::of(device.limits()))?;
        device.launch(
            &ADD_ENERGIES,
            [size_u32(WHAT, w.rows)?.div_ceil(ROWS), 1, 1],
            &[
                Argument::Address(w.at(device, 0, start)),
                size(WHAT, w.leading())?,
                Argument::Address(product.at(device, 0, 0)),
                size(WHAT, product.leading())?,
                Argument::Address(device.address(&diagonal) + (start * size_of::<f32>()) as u64),
                Argument::Address(energies_address),
                size(WHAT, w.rows)?,
                size(WHAT, end - start)?,
            ],
        )?;
    }
    device.download_rows(
        bytemuck::cast_slice_mut(&mut host),
        energies_address,
        bytes,
        bytes,
    )?;
    Ok(host)
}
