//! What runs kernels.

use std::fmt;

use crate::error::CudaError;
use crate::kernels::{Kernel, Parameter};

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

/// Holds arguments to a kernel's parameters: a difference is a mistake in this crate's launch code.
///
/// # Errors
/// [`CudaError::Failed`] that names the first difference.
pub fn check_arguments(kernel: &Kernel, arguments: &[Argument]) -> Result<(), CudaError> {
    let wrong = |reason: String| CudaError::Failed {
        what: format!("the launch of {}", kernel.name),
        reason,
    };
    if arguments.len() != kernel.parameters.len() {
        return Err(wrong(format!(
            "it has {} parameters, given were {}",
            kernel.parameters.len(),
            arguments.len()
        )));
    }
    for (argument, (name, parameter)) in arguments.iter().zip(kernel.parameters) {
        let fits = matches!(
            (argument, parameter),
            (Argument::Address(_), Parameter::Address)
                | (Argument::U32(_), Parameter::U32)
                | (Argument::F32(_), Parameter::F32)
        );
        if !fits {
            return Err(wrong(format!(
                "{name} is {parameter:?}, given was {argument:?}"
            )));
        }
    }
    Ok(())
}

/// C ← C + alpha·A·B, each matrix by the address of its first value and the values between the beginnings of two rows.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Product {
    /// Rows of A and C.
    pub rows: usize,
    /// Columns of B and C.
    pub cols: usize,
    /// Columns of A, rows of B.
    pub depth: usize,
    /// The factor of the product.
    pub alpha: f32,
    /// A.
    pub a: (u64, usize),
    /// B.
    pub b: (u64, usize),
    /// C.
    pub c: (u64, usize),
}

/// H = L·Lᵀ in place, by the address of its first value and the values between the beginnings of two columns. Column by column,
/// as libraries have it: L is the lower triangle; what is above the diagonal is of no use to anybody.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Factorization {
    /// Rows and columns.
    pub cols: usize,
    /// H, then L.
    pub h: (u64, usize),
    /// A word for how it ended: 0 if every pivot was positive.
    pub outcome: u64,
}

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Compute capability, as in (9, 0).
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
}

impl Limits {
    /// All of them.
    #[must_use]
    pub fn new(compute_capability: (u32, u32), multiprocessors: u32) -> Self {
        Self {
            compute_capability,
            multiprocessors,
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

    /// The same for memory that [`upload_rows`](Self::upload_rows) fills before anything else uses it: a device may then copy
    /// while it still works on what was enqueued before.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    fn allocate_for_upload(&self, bytes: usize) -> Result<Self::Buffer, CudaError> {
        self.allocate(bytes)
    }

    /// The address of a buffer's first byte, a multiple of 256.
    fn address(&self, buffer: &Self::Buffer) -> u64;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// [`CudaError::Lost`], [`CudaError::Failed`].
    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError>;

    /// Copies rows of `row_bytes` bytes from the host; on the device they are `pitch` bytes apart, the first one `offset` bytes
    /// from the buffer's beginning. The host's memory may be used again when this returns.
    ///
    /// # Errors
    /// [`CudaError::Lost`], [`CudaError::Failed`].
    fn upload_rows(
        &self,
        to: &Self::Buffer,
        offset: usize,
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

    /// Enqueues a kernel on `grid` blocks of [`Kernel::threads`] threads. A grid with a zero in it is nothing to do. `arguments` are those of
    /// [`Kernel::parameters`].
    ///
    /// # Errors
    /// [`CudaError::Failed`], [`CudaError::Lost`].
    fn launch(
        &self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        arguments: &[Argument],
    ) -> Result<(), CudaError>;

    /// A product by a library of the device's own; `None` where there is none, or none that is to be used.
    fn library_gemm(&self, product: &Product) -> Option<Result<(), CudaError>> {
        let _ = product;
        None
    }

    /// Whether [`library_factor`](Self::library_factor) is there for a matrix of so many columns, and to be used.
    fn has_library_factor(&self, cols: usize) -> bool {
        let _ = cols;
        false
    }

    /// A factorization by a library of the device's own, where there is one.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`], [`CudaError::Failed`]; also where there is none.
    fn library_factor(&self, factorization: &Factorization) -> Result<(), CudaError> {
        Err(CudaError::Failed {
            what: format!("a factorization of {} columns", factorization.cols),
            reason: "no library is there for it".to_owned(),
        })
    }
}
