//! What runs kernels.

use std::fmt;

use crate::error::CudaError;
use crate::kernels::Kernel;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Argument {
    /// An address in the device's memory; 0 where there is none.
    Address(u64),
    /// A count, an index or a choice.
    U32(u32),
    /// A factor.
    F32(f32),
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Compute capability, as in (9, 0).
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory one block may ask for.
    pub shared_bytes: u32,
}

impl Limits {
    /// All of them.
    #[must_use]
    pub fn new(compute_capability: (u32, u32), multiprocessors: u32, shared_bytes: u32) -> Self {
        Self {
            compute_capability,
            multiprocessors,
            shared_bytes,
        }
    }
}

/// A device and a queue on it: memory, copies, launches. What is enqueued runs in order.
///
/// Addresses are plain numbers, so that a range of a matrix is the address of its first value and the distance of its
/// rows; the buffer they lie in is kept alive by whoever computed them.
pub trait Device: fmt::Debug + Send + Sync + Sized + 'static {
    /// Memory on the device, given back when it is dropped, after everything enqueued before.
    type Buffer: fmt::Debug + Send + Sync;

    /// The device in words.
    fn describe(&self) -> String;

    /// What it can do.
    fn limits(&self) -> Limits;

    /// Bytes of device memory that are free now.
    ///
    /// # Errors
    /// [`CudaError::Lost`].
    fn free_bytes(&self) -> Result<usize, CudaError>;

    /// A second queue on the same device.
    ///
    /// # Errors
    /// If the device refuses.
    fn fork(&self) -> Result<Self, CudaError>;

    /// Waits for everything enqueued so far.
    ///
    /// # Errors
    /// Whatever went wrong in the meantime.
    fn synchronize(&self) -> Result<(), CudaError>;

    /// Memory whose contents are not defined. `bytes` may be 0.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    fn allocate(&self, bytes: usize) -> Result<Self::Buffer, CudaError>;

    /// The address of a buffer's first byte, a multiple of 256.
    fn address(&self, buffer: &Self::Buffer) -> u64;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// [`CudaError::Lost`], [`CudaError::Failed`].
    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError>;

    /// Copies rows of `row_bytes` bytes from the host; on the device they are `pitch` bytes apart.
    /// The host's memory may be used again when this returns.
    ///
    /// # Errors
    /// [`CudaError::Lost`], [`CudaError::Failed`].
    fn upload_rows(
        &self,
        to: u64,
        pitch: usize,
        from: &[u8],
        row_bytes: usize,
    ) -> Result<(), CudaError>;

    /// Copies rows of `row_bytes` bytes to the host, and waits for it.
    ///
    /// # Errors
    /// [`CudaError::Lost`], [`CudaError::Failed`], also of everything enqueued before.
    fn download_rows(
        &self,
        to: &mut [u8],
        from: u64,
        pitch: usize,
        row_bytes: usize,
    ) -> Result<(), CudaError>;

    /// Copies bytes on the device; the ranges do not overlap.
    ///
    /// # Errors
    /// [`CudaError::Lost`], [`CudaError::Failed`].
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError>;

    /// Enqueues a kernel on `grid` blocks of [`Kernel::threads`] threads, with `dynamic_shared` bytes of shared memory beside
    /// what the kernel declares. A grid with a zero in it is nothing to do. `arguments` are those of
    /// [`Kernel::parameters`].
    ///
    /// # Errors
    /// [`CudaError::Failed`], [`CudaError::Lost`].
    fn launch(
        &self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        dynamic_shared: u32,
        arguments: &[Argument],
    ) -> Result<(), CudaError>;
}
