//! Between candle's tensors, which callers see, and the matrices that the decoder computes with.

use candle_core::{Device, Layout, Shape, Storage, Tensor};
use ndarray::{Array2, ArrayView2};

use crate::{Error, Result};

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) fn values<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    let (Storage::Cpu(storage), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        return Err(Error::tensor(
            "(activations)",
            "are not contiguous on the CPU",
        ));
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Looks at a tensor as a matrix whose rows are its last dimension.
pub(super) fn with_rows<T>(
    tensor: &Tensor,
    look: impl FnOnce(ArrayView2<'_, f32>) -> Result<T>,
) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let width = tensor.dims().last().copied().unwrap_or(1);
    let (storage, layout) = tensor.storage_and_layout();
    let rows = tensor.elem_count() / width.max(1);
    let view = ArrayView2::from_shape((rows, width), values(&storage, layout)?)
        .map_err(|error| Error::tensor("(activations)", error.to_string()))?;
    look(view)
}

/// A matrix as a tensor of a shape with as many values.
pub(super) fn tensor(matrix: Array2<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    let (values, _) = matrix.into_raw_vec_and_offset();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
