//! cuSOLVER, where it is present and asked for.

use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cusolver::result::{self, CusolverError};
use cudarc::cusolver::sys::{self, cublasFillMode_t, cudaDataType};

use super::buffer::Buffer;
use super::failure::{failed as driver_failed, library_failed};
use super::queue::Queue;
use crate::device::Factorization;
use crate::error::CudaError;

/// Below, the kernels are as fast (docs/benchmarks.md: at 512 columns both take the same time, at 256 cuSOLVER more).
pub(super) const LEAST_COLUMNS: usize = 768;

/// cuSOLVER's dense part on a queue.
pub(super) struct Dense {
    handle: Mutex<Handle>,
    /// Outlives the handle, which enqueues on its stream.
    queue: Arc<Queue>,
}

struct Handle {
    dense: sys::cusolverDnHandle_t,
    params: sys::cusolverDnParams_t,
}

// SAFETY: cuSOLVER allows a handle's use from any thread, one at a time; the mutex around it sees to the latter.
unsafe impl Send for Handle {}

impl fmt::Debug for Dense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dense").finish_non_exhaustive()
    }
}

fn failed(error: CusolverError, queue: &Queue) -> CudaError {
    library_failed("cuSOLVER", format!("{:?}", error.0), queue)
}

impl Dense {
    /// The library must be known to be present.
    pub(super) fn new(queue: &Arc<Queue>) -> Result<Self, CudaError> {
        queue.gpu.bind()?;
        let failed = |error| failed(error, queue);
        let mut handle = Handle {
            dense: result::dn_create().map_err(failed)?,
            params: ptr::null_mut(),
        };
        // SAFETY: the handle was made just now; the queue, and with it the stream, outlives it.
        unsafe { result::dn_set_stream(handle.dense, queue.stream.cu_stream().cast()) }
            .map_err(failed)?;
        handle.params = result::dn_create_params().map_err(failed)?;
        Ok(Self {
            handle: Mutex::new(handle),
            queue: queue.clone(),
        })
    }

    /// H = L·Lᵀ.
    pub(super) fn factor(&self, factorization: &Factorization) -> Result<(), CudaError> {
        const LOWER: cublasFillMode_t = cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;
        const F32: cudaDataType = cudaDataType::CUDA_R_32F;
        // No matrix on a device has 2⁶³ columns.
        let [cols, leading] = [factorization.cols, factorization.h.1].map(|count| count as i64);
        let h = address(factorization.h.0);
        let failed = |error| failed(error, &self.queue);
        self.queue.gpu.bind()?;
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut device_bytes, mut host_bytes) = (0, 0);
        // SAFETY: the handle is alive; the two sizes are written before the call returns, the matrix is not read.
        unsafe {
            sys::cusolverDnXpotrf_bufferSize(
                handle.dense,
                handle.params,
                LOWER,
                cols,
                F32,
                h,
                leading,
                F32,
                &raw mut device_bytes,
                &raw mut host_bytes,
            )
        }
        .result()
        .map_err(failed)?;
        let on_device = Buffer::new(&self.queue, device_bytes)?;
        let mut on_host = vec![0_u8; host_bytes];
        // SAFETY: the caller's matrix has this size and its word for the outcome is there; both workspaces are as large as was
        // asked for. That on the device is freed in the stream's order, behind this call; that on the host when the stream
        // has been waited for, below.
        let called = unsafe {
            sys::cusolverDnXpotrf(
                handle.dense,
                handle.params,
                LOWER,
                cols,
                F32,
                h,
                leading,
                F32,
                address(on_device.address_for(&self.queue)),
                device_bytes,
                on_host.as_mut_ptr().cast(),
                host_bytes,
                address(factorization.outcome).cast(),
            )
        };
        if host_bytes > 0 {
            let waited = self.queue.stream.synchronize();
            waited.map_err(|error| driver_failed("a factorization by cuSOLVER", error))?;
        }
        called.result().map_err(failed)
    }
}

/// An address on the device in the form that cuSOLVER takes; never followed on the host.
fn address(address: u64) -> *mut std::ffi::c_void {
    ptr::without_provenance_mut(address as usize)
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made in `Dense::new`, destroyed once. A failure leaks them; there is nobody to tell.
        unsafe {
            if !self.params.is_null() {
                let _ = result::dn_destroy_params(self.params);
            }
            let _ = result::dn_destroy(self.dense);
        }
    }
}

impl Drop for Dense {
    fn drop(&mut self) {
        // The handle goes after this.
        self.queue.gpu.bind_to_drop();
    }
}
