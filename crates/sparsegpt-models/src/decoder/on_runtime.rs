//! Any checkpoint on the sparse runtime, without packing it first.

use std::collections::HashMap;
use std::sync::Arc;

use half::{bf16, f16};
use ndarray::ArrayView2;
use safetensors::Dtype;
use serde_json::Value as Json;
use sparsegpt_runtime::{DenseMatrix, LinearLayer, SparseLinear, Value};

use super::TransformerConfig;
use super::weights::{Multiplied, multiplied};
use crate::{Error, Result, TensorInfo, TensorSource};

/// How the runtime is to store matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stored {
    /// Each one sparse or dense, whichever is faster at its density.
    Faster,
    /// All dense.
    Dense,
}

/// A source whose matrices are layers of the sparse runtime, in the types of the checkpoint, made in memory when they are
/// asked for.
#[derive(Debug)]
pub struct OnRuntime {
    base: Arc<dyn TensorSource>,
    layers: HashMap<String, Multiplied>,
    stored: Stored,
}

impl OnRuntime {
    /// A model's tensors, held against its `config.json`.
    ///
    /// # Errors
    /// As [`Transformer::load`](super::Transformer::load); no weight is read yet.
    pub fn new(config: &Json, base: Arc<dyn TensorSource>, stored: Stored) -> Result<Self> {
        let layers = multiplied(TransformerConfig::from_json(config)?, Arc::clone(&base))?;
        Ok(Self {
            base,
            layers: layers.into_iter().collect(),
            stored,
        })
    }

    fn make<V: Value>(&self, name: &str, shape: Multiplied) -> Result<Arc<dyn LinearLayer>> {
        let values = self.base.read_f32(name)?;
        let values = values.into_iter().map(V::from_f32).collect();
        Ok(Arc::new(linear::<V>(name, values, shape, self.stored)?))
    }
}

impl TensorSource for OnRuntime {
    fn names(&self) -> Vec<String> {
        self.base.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.base.info(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.base.read_f32(name)
    }

    fn equal(&self, one: &str, other: &str) -> Result<bool> {
        self.base.equal(one, other)
    }

    fn layer(&self, name: &str) -> Result<Option<Arc<dyn LinearLayer>>> {
        let (Some(&shape), Some(info)) = (self.layers.get(name), self.info(name)) else {
            return Ok(None);
        };
        Ok(Some(match info.dtype {
            Dtype::BF16 => self.make::<bf16>(name, shape)?,
            Dtype::F16 => self.make::<f16>(name, shape)?,
            _ => self.make::<f32>(name, shape)?,
        }))
    }
}

/// A layer of these values, in the order in which the checkpoint has them.
pub(crate) fn linear<V: Value>(
    name: &str,
    values: Vec<V>,
    shape: Multiplied,
    stored: Stored,
) -> Result<SparseLinear<V>> {
    if let Some(at) = values.iter().position(|value| !value.to_f32().is_finite()) {
        let found = values[at].to_f32();
        return Err(Error::tensor(
            name,
            format!("holds {found} at position {at}; expected finite weights"),
        ));
    }
    let Multiplied {
        rows,
        cols,
        transposed,
    } = shape;
    let weight = match transposed {
        true => ArrayView2::from_shape((cols, rows), &values).map(ArrayView2::reversed_axes),
        false => ArrayView2::from_shape((rows, cols), &values),
    };
    let weight = weight.map_err(|error| Error::tensor(name, error.to_string()))?;
    Ok(match stored {
        Stored::Faster => SparseLinear::new(weight, None),
        Stored::Dense => SparseLinear::dense(DenseMatrix::from_dense(weight), None),
    }?)
}
