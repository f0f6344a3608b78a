//! SparseGPT on an NVIDIA GPU: the [`Backend`](sparsegpt::backend::Backend) trait on hand-written PTX.
//!
//! The kernels (`src/kernels/*.ptx`) are text in this crate, loaded through the driver when a device is opened; nothing
//! of CUDA is needed to build. [`CudaBackend`] is the backend over anything that runs kernels ([`Device`]): the driver,
//! or an emulator where there is no GPU.

mod backend;
mod device;
mod driver;
mod error;
mod kernels;
mod matrix;
mod operations;

pub use backend::CudaBackend;
pub use device::{Argument, Device, Factorization, Limits, Product, check_arguments};
pub use driver::{Buffer, Cuda, Driver};
pub use error::CudaError;
pub use kernels::{Kernel, Module, Parameter, all as kernels};
pub use matrix::{DeviceMask, DeviceMatrix};
