//! The plain host implementation: loops that say what each operation means.
//!
//! This is the specification. Every backend is tested against it, and operations that a backend does not
//! have natively run through it. It favours reading over speed; for speed take [`Cpu`](super::Cpu).

mod factor;
mod iterate;
mod linear;
mod select;
mod sweep;

use ndarray::{Array2, ArrayView2};

pub use factor::{inverse_factor, inverse_from_factor};
#[cfg(feature = "cpu")]
pub(super) use iterate::{AdamStep, CONVERGED};
pub use iterate::{adam, project, refit};
pub use linear::{combine, gemm, gram_update, open_block, permute_hessian, row_energies};
pub use select::select;
pub(crate) use sweep::nearest;
pub use sweep::{Sweep, SweepGrid, SweepPrune, round_to_grid, update_rows};

use super::{Backend, BackendInfo, Operation, Precision};
use crate::error::HostError;
use crate::hessian::Activations;

/// The plain host backend: one thread, matrices are [`Array2<f32>`].
///
/// ```
/// use sparsegpt::backend::{Backend, Host};
/// assert_eq!(Host.info().name, "host");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host;

impl Backend for Host {
    type Matrix = Array2<f32>;
    type Mask = Array2<bool>;
    type Error = HostError;

    fn info(&self) -> BackendInfo {
        BackendInfo::new("host", "plain loops, 1 thread", &Operation::ALL)
    }

    fn fork(&self) -> Result<Self, HostError> {
        Ok(*self)
    }

    fn synchronize(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Array2<f32>, HostError> {
        zeros(rows, cols)
    }

    fn shape(&self, matrix: &Array2<f32>) -> (usize, usize) {
        matrix.dim()
    }

    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Array2<f32>, HostError> {
        Ok(host.as_standard_layout().into_owned())
    }

    fn download(&self, matrix: &Array2<f32>) -> Result<Array2<f32>, HostError> {
        Ok(matrix.clone())
    }

    fn copy(&self, matrix: &Array2<f32>) -> Result<Array2<f32>, HostError> {
        Ok(matrix.clone())
    }

    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Array2<bool>, HostError> {
        Ok(host.to_owned())
    }

    fn download_mask(&self, mask: &Array2<bool>) -> Result<Array2<bool>, HostError> {
        Ok(mask.clone())
    }

    fn gram_update(
        &self,
        h: &mut Array2<f32>,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), HostError> {
        gram_update(h.view_mut(), x, alpha, beta);
        Ok(())
    }

    fn inverse_factor(
        &self,
        h: &mut Array2<f32>,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), HostError> {
        inverse_factor(h.view_mut(), diagonal, blocks, precision)
    }

    // The other operations keep their default bodies, which run the functions of this module.
}

/// A matrix of zeros, or an error where its size overflows.
pub(super) fn zeros(rows: usize, cols: usize) -> Result<Array2<f32>, HostError> {
    count_of(rows, cols)?;
    Ok(Array2::zeros((rows, cols)))
}

/// Values in a matrix, where their bytes can be counted.
pub(super) fn count_of(rows: usize, cols: usize) -> Result<usize, HostError> {
    let largest = isize::MAX as usize / size_of::<f32>();
    match rows.checked_mul(cols) {
        Some(values) if values <= largest => Ok(values),
        values => Err(HostError::OutOfMemory {
            bytes: values
                .and_then(|values| values.checked_mul(size_of::<f32>()))
                .unwrap_or(usize::MAX),
        }),
    }
}
