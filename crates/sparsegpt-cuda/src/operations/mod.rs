//! The operations of the trait as launches. One file an operation, or a family of them.

pub(crate) mod blocks;
pub(crate) mod elementwise;
pub(crate) mod factor;
pub(crate) mod gemm;
pub(crate) mod gram;
pub(crate) mod grid;
pub(crate) mod iterate;
mod library_factor;
mod product;
pub(crate) mod select;
pub(crate) mod sweep;

use crate::device::Argument;
use crate::error::CudaError;

/// A size or an index as an argument; `what` is the operation.
pub(crate) fn size(what: &'static str, value: usize) -> Result<Argument, CudaError> {
    Ok(Argument::U32(size_u32(what, value)?))
}

/// A size or an index as kernels count; `what` is the operation.
pub(crate) fn size_u32(what: &'static str, value: usize) -> Result<u32, CudaError> {
    u32::try_from(value).map_err(|_| CudaError::Failed {
        what: what.to_owned(),
        reason: format!(
            "{value} is more than the {} that kernels count to",
            u32::MAX
        ),
    })
}
