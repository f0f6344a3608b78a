//! The driver's errors as this crate's.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use super::queue::Queue;
use crate::error::CudaError;

/// The error in words, as `CUDA_ERROR_INVALID_VALUE (invalid argument)`.
pub(super) fn words(error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy());
    let text = error.error_string().map(|text| text.to_string_lossy());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{name} ({text})"),
        _ => format!("error {:?}", error.0),
    }
}

/// What an error of `what` means.
pub(super) fn failed(what: impl Into<String>, error: DriverError) -> CudaError {
    let (what, reason) = (what.into(), words(error));
    if loses_the_device(error.0) {
        CudaError::Lost { what, reason }
    } else if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        CudaError::Exhausted { what, reason }
    } else {
        CudaError::Failed { what, reason }
    }
}

/// What a library's error means: where the device is lost, the library's own word for it says nothing.
pub(super) fn library_failed(library: &str, status: String, queue: &Queue) -> CudaError {
    match queue.stream.synchronize() {
        Err(error) => failed(library, error),
        Ok(()) => CudaError::Failed {
            what: library.to_owned(),
            reason: status,
        },
    }
}

/// Whether nothing can be done on the device after this error: a kernel was stopped and its context with it, or the device
/// is gone.
fn loses_the_device(code: CUresult) -> bool {
    use CUresult as C;
    matches!(
        code,
        C::CUDA_ERROR_ILLEGAL_ADDRESS
            | C::CUDA_ERROR_MISALIGNED_ADDRESS
            | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | C::CUDA_ERROR_INVALID_PC
            | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | C::CUDA_ERROR_HARDWARE_STACK_ERROR
            | C::CUDA_ERROR_ASSERT
            | C::CUDA_ERROR_LAUNCH_FAILED
            | C::CUDA_ERROR_LAUNCH_TIMEOUT
            | C::CUDA_ERROR_ECC_UNCORRECTABLE
            | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | C::CUDA_ERROR_DEVICE_UNAVAILABLE
            | C::CUDA_ERROR_DEINITIALIZED
            | C::CUDA_ERROR_MPS_CLIENT_TERMINATED
            | C::CUDA_ERROR_NO_DEVICE
            | C::CUDA_ERROR_INVALID_DEVICE
            | C::CUDA_ERROR_SYSTEM_NOT_READY
            | C::CUDA_ERROR_EXTERNAL_DEVICE
            // What drivers say of a device that has fallen off its bus, among other things; nothing works after those either.
            | C::CUDA_ERROR_UNKNOWN
    )
}
