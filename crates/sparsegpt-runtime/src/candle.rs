//! Layers of this crate in candle's models, with the feature `candle`.
//!
//! ```
//! use std::sync::Arc;
//! use candle_core::{Device, Module, Tensor};
//! use sparsegpt_runtime::SparseLinear;
//! use sparsegpt_runtime::candle::Linear;
//! use sparsegpt_runtime::ndarray::array;
//!
//! let weight = array![[0.0_f32, 2.0, 0.0], [1.0, 0.0, 0.0]];
//! let layer = Linear::new(Arc::new(SparseLinear::new(weight.view(), None)?));
//! let x = Tensor::new(&[[1.0_f32, 2.0, 3.0]], &Device::Cpu)?;
//! assert_eq!(layer.forward(&x)?.to_vec2::<f32>()?, [[4.0, 1.0]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Module, Result, Shape, Tensor, bail};
use half::{bf16, f16};
use ndarray::ArrayView2;

use crate::layer::LinearLayer;

/// In place of a model's `candle_nn::Linear`: takes tensors of ... x cols and gives ... x rows, in the type it was given
/// (f32, bf16 or f16; sums are formed in f32).
#[derive(Clone, Debug)]
pub struct Linear {
    op: SparseOp,
}

impl Linear {
    /// From a layer of any storage.
    #[must_use]
    pub fn new(layer: Arc<dyn LinearLayer>) -> Self {
        Self {
            op: SparseOp(layer),
        }
    }

    /// The layer.
    #[must_use]
    pub fn layer(&self) -> &Arc<dyn LinearLayer> {
        &self.op.0
    }
}

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(&self.op)
    }
}

/// The product as an operation of candle's, for contiguous tensors on the CPU.
#[derive(Clone, Debug)]
pub struct SparseOp(pub Arc<dyn LinearLayer>);

impl CustomOp1 for SparseOp {
    fn name(&self) -> &'static str {
        "sparse-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("sparse-linear: expected a contiguous tensor; call contiguous() first");
        };
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut() else {
            bail!("sparse-linear: expected a tensor of at least one dimension, found a scalar");
        };
        let cols = std::mem::replace(last, self.0.rows());
        let tokens = dims[..dims.len() - 1].iter().product();
        let run = |x: &[f32]| {
            let x = ArrayView2::from_shape((tokens, cols), x).map_err(candle_core::Error::wrap)?;
            let y = self.0.forward(x).map_err(candle_core::Error::wrap)?;
            Ok::<_, candle_core::Error>(y.into_raw_vec_and_offset().0)
        };
        let result = match storage {
            CpuStorage::F32(x) => CpuStorage::F32(run(&x[start..end])?),
            CpuStorage::BF16(x) => {
                let x: Vec<f32> = x[start..end].iter().map(|x| x.to_f32()).collect();
                CpuStorage::BF16(run(&x)?.into_iter().map(bf16::from_f32).collect())
            }
            CpuStorage::F16(x) => {
                let x: Vec<f32> = x[start..end].iter().map(|x| x.to_f32()).collect();
                CpuStorage::F16(run(&x)?.into_iter().map(f16::from_f32).collect())
            }
            other => bail!(
                "sparse-linear: expected activations of {:?}, {:?} or {:?}, found {:?}",
                DType::F32,
                DType::BF16,
                DType::F16,
                candle_core::backend::BackendStorage::dtype(other)
            ),
        };
        Ok((result, Shape::from_dims(&dims)))
    }
}
