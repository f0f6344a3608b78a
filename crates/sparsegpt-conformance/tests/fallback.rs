//! The least backend there can be: memory, `gram_update` and `inverse_factor`, with matrices of its own.
//! Everything else runs through the default bodies of the trait. A second one refuses f64, as the contract
//! allows.

use std::process::ExitCode;

use sparsegpt::Activations;
use sparsegpt::backend::{Backend, BackendInfo, Precision};
use sparsegpt::error::{BackendError, BackendErrorKind, HostError};
use sparsegpt::ndarray::{Array2, ArrayView2};
use sparsegpt_conformance::Suite;

/// Columns one after the other, unlike everything in the library.
#[derive(Debug)]
struct Columns {
    rows: usize,
    columns: Vec<Vec<f32>>,
}

impl Columns {
    fn get(&self, row: usize, col: usize) -> f32 {
        self.columns[col][row]
    }
}

#[derive(Debug)]
struct Bits(Array2<u8>);

#[derive(Debug)]
enum LeastError {
    NotPositiveDefinite(usize),
    NoF64,
    OfHost(HostError),
}

impl std::fmt::Display for LeastError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotPositiveDefinite(column) => write!(f, "pivot of column {column} failed"),
            Self::NoF64 => f.write_str("factors in f32 only"),
            Self::OfHost(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LeastError {}

impl BackendError for LeastError {
    fn kind(&self) -> BackendErrorKind {
        match self {
            Self::NotPositiveDefinite(column) => {
                BackendErrorKind::NotPositiveDefinite { column: *column }
            }
            Self::NoF64 => BackendErrorKind::Unsupported,
            Self::OfHost(error) => error.kind(),
        }
    }

    fn from_host(error: HostError) -> Self {
        Self::OfHost(error)
    }
}

#[derive(Debug)]
struct Least {
    factors_in_f64: bool,
}

impl Backend for Least {
    type Matrix = Columns;
    type Mask = Bits;
    type Error = LeastError;

    fn info(&self) -> BackendInfo {
        BackendInfo::new("least", "columns on the host", &[])
    }

    fn fork(&self) -> Result<Self, LeastError> {
        Ok(Self { ..*self })
    }

    fn synchronize(&self) -> Result<(), LeastError> {
        Ok(())
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Columns, LeastError> {
        Ok(Columns {
            rows,
            columns: vec![vec![0.0; rows]; cols],
        })
    }

    fn shape(&self, matrix: &Columns) -> (usize, usize) {
        (matrix.rows, matrix.columns.len())
    }

    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Columns, LeastError> {
        let columns = host
            .columns()
            .into_iter()
            .map(|column| column.to_vec())
            .collect();
        Ok(Columns {
            rows: host.nrows(),
            columns,
        })
    }

    fn download(&self, matrix: &Columns) -> Result<Array2<f32>, LeastError> {
        Ok(Array2::from_shape_fn(self.shape(matrix), |(row, col)| {
            matrix.get(row, col)
        }))
    }

    fn copy(&self, matrix: &Columns) -> Result<Columns, LeastError> {
        Ok(Columns {
            rows: matrix.rows,
            columns: matrix.columns.clone(),
        })
    }

    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Bits, LeastError> {
        Ok(Bits(host.mapv(u8::from)))
    }

    fn download_mask(&self, mask: &Bits) -> Result<Array2<bool>, LeastError> {
        Ok(mask.0.mapv(|bit| bit == 1))
    }

    fn gram_update(
        &self,
        h: &mut Columns,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), LeastError> {
        for (j, column) in h.columns.iter_mut().enumerate() {
            for (i, entry) in column.iter_mut().enumerate().skip(j) {
                let sum: f64 = (0..x.tokens())
                    .map(|token| f64::from(x.get(token, i)) * f64::from(x.get(token, j)))
                    .sum();
                *entry = (f64::from(beta) * f64::from(*entry) + f64::from(alpha) * sum) as f32;
            }
        }
        Ok(())
    }

    /// More exact than f32 asks for: U column by column from the last one, then the inverses of its blocks.
    fn inverse_factor(
        &self,
        h: &mut Columns,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), LeastError> {
        if precision == Precision::F64 && !self.factors_in_f64 {
            return Err(LeastError::NoF64);
        }
        let n = diagonal.len();
        let mut u = vec![vec![0.0_f64; n]; n];
        for j in (0..n).rev() {
            for i in (0..=j).rev() {
                let entry = if i == j { diagonal[j] } else { h.get(j, i) };
                let sum: f64 = (j + 1..n).map(|k| u[i][k] * u[j][k]).sum();
                let rest = f64::from(entry) - sum;
                if i < j {
                    u[i][j] = rest / u[j][j];
                } else if rest > 0.0 && rest.is_finite() {
                    u[j][j] = rest.sqrt();
                } else {
                    return Err(LeastError::NotPositiveDefinite(j));
                }
            }
        }
        for j in 0..n {
            let mut r = vec![0.0; n];
            let first = blocks.iter().copied().filter(|&end| end <= j).max();
            let first = first.unwrap_or(0);
            for i in 0..first {
                h.columns[j][i] = u[i][j] as f32;
            }
            for i in (first..=j).rev() {
                let sum: f64 = (i + 1..=j).map(|k| u[i][k] * r[k]).sum();
                r[i] = (f64::from(u8::from(i == j)) - sum) / u[i][i];
                h.columns[j][i] = r[i] as f32;
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    Suite::new()
        .with("least", || {
            Ok(Least {
                factors_in_f64: true,
            })
        })
        .with("least, f32 only", || {
            Ok(Least {
                factors_in_f64: false,
            })
        })
        .run()
}
