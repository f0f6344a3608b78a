//! What linear layers multiply by: tensors in f32, or layers of the sparse runtime, which it multiplies itself.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use faer::Accum;
use ndarray::{Array2, ArrayView2};
use sparsegpt_runtime::LinearLayer;

use super::product::products;
use super::tensors::with_rows;
use crate::{Error, Result};

/// rows x cols = output x input features.
#[derive(Clone, Debug)]
pub(super) enum Weight {
    /// In f32, contiguous.
    Tensor(Tensor),
    /// As the checkpoint holds it.
    Packed(Arc<dyn LinearLayer>),
}

impl Weight {
    pub(super) fn shape(&self) -> Result<(usize, usize)> {
        Ok(match self {
            Self::Tensor(weight) => weight.dims2()?,
            Self::Packed(layer) => (layer.rows(), layer.cols()),
        })
    }

    /// In memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Tensor(weight) => weight.elem_count() * size_of::<f32>(),
            Self::Packed(layer) => layer.bytes(),
        }
    }

    /// All of it, in f32.
    pub(super) fn values(&self) -> Result<Array2<f32>> {
        match self {
            Self::Tensor(weight) => with_rows(weight, |weight| Ok(weight.to_owned())),
            Self::Packed(layer) => {
                let all: Vec<u32> = (0..layer.rows() as u32).collect();
                self.rows(&all)
            }
        }
    }

    /// Some rows, in f32.
    pub(super) fn rows(&self, rows: &[u32]) -> Result<Array2<f32>> {
        match self {
            Self::Tensor(weight) => {
                let rows = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
                let rows = weight.index_select(&rows, 0)?;
                with_rows(&rows, |rows| Ok(rows.to_owned()))
            }
            Self::Packed(layer) => {
                let mut values = Array2::zeros((rows.len(), layer.cols()));
                for (mut to, &row) in values.rows_mut().into_iter().zip(rows) {
                    to.assign(&ndarray::aview1(&layer.row(row as usize)?));
                }
                Ok(values)
            }
        }
    }
}

/// As [`products`], for weights of both kinds.
pub(super) fn weigh(
    x: ArrayView2<'_, f32>,
    pairs: Vec<(&mut Array2<f32>, Accum, &Weight)>,
) -> Result<()> {
    let mut of_tensors = Vec::with_capacity(pairs.len());
    for (y, accum, weight) in pairs {
        match weight {
            Weight::Tensor(weight) => of_tensors.push((y, accum, weight)),
            Weight::Packed(layer) => {
                let made = layer.forward(x).map_err(Error::from)?;
                match accum {
                    Accum::Replace => y.assign(&made),
                    Accum::Add => *y += &made,
                }
            }
        }
    }
    match of_tensors.is_empty() {
        true => Ok(()),
        false => products(x, of_tensors),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sparsegpt_runtime::{DenseMatrix, SparseLinear};

    use super::*;
    use crate::decoder::TOGETHER;

    /// As for tensors in f32; the runtime has its own number of tokens from which on it sums otherwise.
    #[test]
    fn a_few_tokens_on_the_runtime_give_the_bits_of_each_alone() {
        let (rows, cols) = (300, 200);
        let value = |place: usize| match place % 3 {
            0 => 0.0,
            _ => ((place * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0,
        };
        let weight = Array2::from_shape_fn((rows, cols), |(row, col)| value(row * cols + col));
        let sparse = SparseLinear::smallest(weight.view(), None).unwrap();
        let dense = DenseMatrix::from_dense(weight.view());
        let dense = SparseLinear::dense(dense, None).unwrap();
        for layer in [sparse, dense] {
            let weight = Weight::Packed(Arc::new(layer));
            let made = |x: ArrayView2<'_, f32>| {
                let mut y = Array2::zeros((x.nrows(), rows));
                weigh(x, vec![(&mut y, Accum::Replace, &weight)]).unwrap();
                y
            };
            let x = Array2::from_shape_fn((TOGETHER, cols), |(t, col)| value(37 * t + 5 * col));
            let together = made(x.view());
            for token in 0..TOGETHER {
                let alone = made(x.slice(ndarray::s![token..token + 1, ..]));
                assert_eq!(together.row(token), alone.row(0), "token {token}");
            }
        }
    }
}
