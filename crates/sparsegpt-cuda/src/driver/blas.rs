//! cuBLAS, where it is present and asked for.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::result::{self, CublasError};
use cudarc::cublas::sys;
use cudarc::driver::CudaStream;

use super::failure::library_failed;
use super::queue::Queue;
use crate::device::Product;
use crate::error::CudaError;

/// cuBLAS on a queue.
pub(super) struct Blas {
    handle: Mutex<Handle>,
    /// Outlives the handle, which enqueues on its stream.
    queue: Arc<Queue>,
}

struct Handle(sys::cublasHandle_t);

// SAFETY: cuBLAS allows a handle's use from any thread, one at a time; the mutex around it sees to the latter.
unsafe impl Send for Handle {}

impl fmt::Debug for Blas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blas").finish_non_exhaustive()
    }
}

fn failed(error: CublasError, queue: &Queue) -> CudaError {
    library_failed("cuBLAS", format!("{:?}", error.0), queue)
}

impl Blas {
    /// The library must be known to be present.
    pub(super) fn new(queue: &Arc<Queue>) -> Result<Self, CudaError> {
        queue.gpu.bind()?;
        let blas = Self {
            handle: Mutex::new(Handle(
                result::create_handle().map_err(|error| failed(error, queue))?,
            )),
            queue: queue.clone(),
        };
        blas.with(|handle, stream| {
            // SAFETY: the handle was made just now; the queue, and with it the stream, outlives it.
            unsafe { result::set_stream(handle, stream.cu_stream().cast()) }?;
            // Products as exact as those of the kernels: no TF32.
            // SAFETY: the handle was made just now.
            unsafe { sys::cublasSetMathMode(handle, sys::cublasMath_t::CUBLAS_PEDANTIC_MATH) }
                .result()
        })?;
        Ok(blas)
    }

    fn with(
        &self,
        call: impl FnOnce(sys::cublasHandle_t, &CudaStream) -> Result<(), CublasError>,
    ) -> Result<(), CudaError> {
        self.queue.gpu.bind()?;
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        call(handle.0, &self.queue.stream).map_err(|error| failed(error, &self.queue))
    }

    /// C ← C + alpha·A·B; `None` where a number is larger than the library takes.
    pub(super) fn gemm(&self, product: &Product) -> Option<Result<(), CudaError>> {
        let int = |value: usize| i32::try_from(value).ok();
        let (rows, cols, depth) = (int(product.rows)?, int(product.cols)?, int(product.depth)?);
        let (a, b, c) = (
            int(product.a.1.max(1))?,
            int(product.b.1.max(1))?,
            int(product.c.1.max(1))?,
        );
        Some(self.with(|handle, _| {
            use sys::cublasOperation_t::CUBLAS_OP_N as AS_IT_IS;
            // cuBLAS reads column by column, so that it sees the transposes: Cᵀ ← Cᵀ + alpha·Bᵀ·Aᵀ.
            // SAFETY: alpha and beta are on the host and read before the call returns, as is cuBLAS' default; the caller's
            // matrices have these sizes.
            unsafe {
                result::sgemm(
                    handle,
                    AS_IT_IS,
                    AS_IT_IS,
                    cols,
                    rows,
                    depth,
                    &raw const product.alpha,
                    address(product.b.0),
                    b,
                    address(product.a.0),
                    a,
                    &raw const ONE,
                    address(product.c.0).cast_mut(),
                    c,
                )
            }
        }))
    }
}

static ONE: f32 = 1.0;

/// An address on the device in the form that cuBLAS takes; never followed on the host.
fn address(address: u64) -> *const f32 {
    std::ptr::without_provenance(address as usize)
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.queue.gpu.bind_to_drop();
        let handle = self
            .handle
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made in `new`, destroyed once. A failure leaks it; there is nobody to tell.
        let _ = unsafe { result::destroy_handle(handle.0) };
    }
}
