//! The smallest backend that is correct: memory, `gram_update` and `inverse_factor`, plain and slow. Everything else
//! runs through the default bodies of the trait. `docs/writing-a-backend.md` goes through this file part by part.
//!
//! `cargo run --release -p sparsegpt-conformance --example minimal_backend`

use sparsegpt::Activations;
use sparsegpt::backend::{Backend, BackendInfo, Precision};
use sparsegpt::error::{BackendError, BackendErrorKind, HostError};
use sparsegpt::ndarray::{Array2, ArrayView2};

/// A device that holds matrices column by column, and may lack float64.
#[derive(Clone, Copy, Debug)]
pub struct Minimal {
    /// Whether it factors in float64.
    pub has_f64: bool,
}

/// A matrix on the device: one entry a column, of one value a row.
#[derive(Clone, Debug)]
pub struct Columns {
    rows: usize,
    columns: Vec<Vec<f32>>,
}

/// What can go wrong on the device.
#[derive(Debug, thiserror::Error)]
pub enum MinimalError {
    /// A pivot of the factorization was not a positive number.
    #[error("pivot of column {column} is not a positive number")]
    NotPositiveDefinite {
        /// Column of the Hessian, counted from 0.
        column: usize,
    },
    /// The device cannot factor in this.
    #[error("this device does not factor in {0}")]
    Precision(Precision),
    /// A default body of the trait failed.
    #[error(transparent)]
    Host(HostError),
}

impl BackendError for MinimalError {
    fn kind(&self) -> BackendErrorKind {
        match self {
            Self::NotPositiveDefinite { column } => {
                BackendErrorKind::NotPositiveDefinite { column: *column }
            }
            Self::Precision(_) => BackendErrorKind::Unsupported,
            Self::Host(error) => error.kind(),
        }
    }

    fn from_host(error: HostError) -> Self {
        Self::Host(error)
    }
}

impl Backend for Minimal {
    type Matrix = Columns;
    type Mask = Array2<bool>;
    type Error = MinimalError;

    fn info(&self) -> BackendInfo {
        BackendInfo::new("minimal", "columns on the host, 1 thread", &[])
    }

    fn fork(&self) -> Result<Self, MinimalError> {
        Ok(*self)
    }

    fn synchronize(&self) -> Result<(), MinimalError> {
        Ok(())
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Columns, MinimalError> {
        let columns = vec![vec![0.0; rows]; cols];
        Ok(Columns { rows, columns })
    }

    fn shape(&self, matrix: &Columns) -> (usize, usize) {
        (matrix.rows, matrix.columns.len())
    }

    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Columns, MinimalError> {
        let columns = host.columns().into_iter().map(|column| column.to_vec());
        Ok(Columns {
            rows: host.nrows(),
            columns: columns.collect(),
        })
    }

    fn download(&self, matrix: &Columns) -> Result<Array2<f32>, MinimalError> {
        let value = |(row, col): (usize, usize)| matrix.columns[col][row];
        Ok(Array2::from_shape_fn(self.shape(matrix), value))
    }

    fn copy(&self, matrix: &Columns) -> Result<Columns, MinimalError> {
        Ok(matrix.clone())
    }

    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Array2<bool>, MinimalError> {
        Ok(host.to_owned())
    }

    fn download_mask(&self, mask: &Array2<bool>) -> Result<Array2<bool>, MinimalError> {
        Ok(mask.clone())
    }

    fn gram_update(
        &self,
        h: &mut Columns,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), MinimalError> {
        let (alpha, beta) = (f64::from(alpha), f64::from(beta));
        for (j, column) in h.columns.iter_mut().enumerate() {
            for (i, entry) in column.iter_mut().enumerate().skip(j) {
                let sum: f64 = (0..x.tokens())
                    .map(|token| f64::from(x.get(token, i)) * f64::from(x.get(token, j)))
                    .sum();
                *entry = (beta * f64::from(*entry) + alpha * sum) as f32;
            }
        }
        Ok(())
    }

    fn inverse_factor(
        &self,
        h: &mut Columns,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), MinimalError> {
        // What a device cannot do, and what a later version of the library may ask for.
        if precision != Precision::F32 && !(self.has_f64 && precision == Precision::F64) {
            return Err(MinimalError::Precision(precision));
        }
        // U, from the last column. H(i, j) with i < j stands at row j, column i.
        let n = diagonal.len();
        let mut u = Array2::<f64>::zeros((n, n));
        for j in (0..n).rev() {
            for i in (0..=j).rev() {
                let entry = if i == j { diagonal[j] } else { h.columns[i][j] };
                let sum: f64 = (j + 1..n).map(|k| u[[i, k]] * u[[j, k]]).sum();
                let rest = f64::from(entry) - sum;
                if i < j {
                    u[[i, j]] = rest / u[[j, j]];
                } else if rest > 0.0 && rest.is_finite() {
                    u[[j, j]] = rest.sqrt();
                } else {
                    return Err(MinimalError::NotPositiveDefinite { column: j });
                }
            }
        }
        // Only now is `h` written: U above each diagonal block, and U_BB·R = I solved upwards inside it.
        let mut first = 0;
        for &end in blocks {
            for j in first..end {
                let mut r = vec![0.0; n];
                for i in (0..=j).rev() {
                    h.columns[j][i] = if i < first {
                        u[[i, j]] as f32
                    } else {
                        let identity = if i == j { 1.0 } else { 0.0 };
                        let sum: f64 = (i + 1..=j).map(|k| u[[i, k]] * r[k]).sum();
                        r[i] = (identity - sum) / u[[i, i]];
                        r[i] as f32
                    };
                }
            }
            first = end;
        }
        Ok(())
    }
}

fn main() -> std::process::ExitCode {
    sparsegpt_conformance::Suite::new()
        .with("minimal", || Ok(Minimal { has_f64: true }))
        .with("minimal, f32 only", || Ok(Minimal { has_f64: false }))
        .run()
}
