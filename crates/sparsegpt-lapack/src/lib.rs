#![doc = include_str!("../README.md")]

mod blas;
mod error;
mod factor;
mod matrix;

use sparsegpt::Activations;
use sparsegpt::backend::{Backend, BackendInfo, Gemm, Operation, Precision};
use sparsegpt::ndarray::{Array2, ArrayView2};

pub use error::LapackError;
pub use matrix::LapackMatrix;

/// Tokens that are widened to f32 and multiplied at a time.
const TILE_TOKENS: usize = 256;

/// The LAPACK backend. OpenBLAS is one for the whole process, so values have nothing of their own.
///
/// ```
/// use sparsegpt::backend::Backend;
/// use sparsegpt_lapack::Lapack;
/// assert_eq!(Lapack.info().name, "lapack");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lapack;

impl Backend for Lapack {
    type Matrix = LapackMatrix;
    type Mask = Array2<bool>;
    type Error = LapackError;

    fn info(&self) -> BackendInfo {
        let device = format!("OpenBLAS, {}, {} threads", blas::core(), blas::threads());
        BackendInfo::new("lapack", device, &[Operation::Gemm])
    }

    fn fork(&self) -> Result<Self, LapackError> {
        Ok(*self)
    }

    fn synchronize(&self) -> Result<(), LapackError> {
        Ok(())
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<LapackMatrix, LapackError> {
        LapackMatrix::zeros(rows, cols)
    }

    fn shape(&self, matrix: &LapackMatrix) -> (usize, usize) {
        matrix.dim()
    }

    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<LapackMatrix, LapackError> {
        LapackMatrix::from_host(host)
    }

    fn download(&self, matrix: &LapackMatrix) -> Result<Array2<f32>, LapackError> {
        matrix.to_host()
    }

    fn copy(&self, matrix: &LapackMatrix) -> Result<LapackMatrix, LapackError> {
        matrix.copy()
    }

    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Array2<bool>, LapackError> {
        Ok(host.to_owned())
    }

    fn download_mask(&self, mask: &Array2<bool>) -> Result<Array2<bool>, LapackError> {
        Ok(mask.clone())
    }

    fn gram_update(
        &self,
        h: &mut LapackMatrix,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), LapackError> {
        let (tokens, cols) = (x.tokens(), x.cols());
        let mut tile = LapackMatrix::zeros(TILE_TOKENS.min(tokens), cols)?;
        let (mut start, mut beta) = (0, beta);
        // Once at least: without tokens H is still scaled.
        loop {
            let end = tokens.min(start + TILE_TOKENS);
            for (token, row) in (start..end).zip(tile.values.chunks_exact_mut(cols)) {
                x.widen_token(token, row);
            }
            let widened = tile.part(0..end - start, 0..cols)?;
            blas::gram(beta, h.columns_mut(0..cols)?, alpha, widened);
            (start, beta) = (end, 1.0);
            if end == tokens {
                return Ok(());
            }
        }
    }

    fn inverse_factor(
        &self,
        h: &mut LapackMatrix,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), LapackError> {
        let h = &mut h.values;
        match precision {
            Precision::F32 => factor::inverse_factor(h, diagonal, blocks, |value: f32| value),
            Precision::F64 => {
                factor::inverse_factor(h, diagonal, blocks, |value: f64| value as f32)
            }
            other => Err(LapackError::Precision(other)),
        }
    }

    fn gemm(&self, args: Gemm<'_, Self>) -> Result<(), LapackError> {
        let Gemm {
            c,
            c_columns,
            alpha,
            a,
            a_columns,
            b,
            b_rows,
            b_columns,
            ..
        } = args;
        let a_rows = 0..a.dim().0;
        blas::add_product(
            c.columns_mut(c_columns)?,
            alpha,
            a.part(a_rows, a_columns)?,
            b.part(b_rows, b_columns)?,
        );
        Ok(())
    }
}
