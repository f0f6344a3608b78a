//! Where tensors come from: a HuggingFace folder, a packed one or a GGUF file, behind one small trait.

use std::fmt::Debug;
use std::sync::Arc;

use safetensors::Dtype;
use sparsegpt_runtime::LinearLayer;

use crate::Result;

/// Stored type and shape of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type in the file. Quantized GGUF tensors say [`Dtype::F32`]: they are read dequantized.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

/// A checkpoint's tensors by their HuggingFace names, read one at a time.
pub trait TensorSource: Debug + Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// Type and shape of a tensor, `None` where there is none of that name.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// A tensor's values, row-major, widened or dequantized to f32.
    ///
    /// # Errors
    /// If there is no such tensor, or it is not of a float type.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>>;

    /// Whether two tensors hold the same values in the same shape. By default both are read; a source that can tell with less
    /// memory should.
    ///
    /// # Errors
    /// As [`read_f32`](Self::read_f32).
    fn equal(&self, one: &str, other: &str) -> Result<bool> {
        equal_values(self, one, other)
    }

    /// The weight of a linear layer ready to multiply by, output x input features whichever way round it is stored,
    /// where the source has it so. By default it has none.
    ///
    /// # Errors
    /// If the layer is damaged.
    fn layer(&self, name: &str) -> Result<Option<Arc<dyn LinearLayer>>> {
        let _ = name;
        Ok(None)
    }
}

/// [`TensorSource::equal`] by reading.
pub(crate) fn equal_values<S: TensorSource + ?Sized>(
    source: &S,
    one: &str,
    other: &str,
) -> Result<bool> {
    let shape = |name: &str| source.info(name).map(|info| info.shape);
    Ok(shape(one) == shape(other) && source.read_f32(one)? == source.read_f32(other)?)
}
