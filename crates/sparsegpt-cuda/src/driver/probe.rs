//! Which libraries of NVIDIA's this machine has, found out before the first call into cudarc, which panics where a library
//! or a function of it is missing.

use std::ffi::c_int;
use std::sync::OnceLock;

use libloading::Library;

use crate::error::CudaError;

/// The driver's library, under the names that cudarc tries too.
const DRIVER: &[&str] = if cfg!(windows) {
    &["nvcuda.dll"]
} else {
    &["libcuda.so", "libcuda.so.1"]
};

/// cuBLAS, under the names that cudarc tries too.
const CUBLAS: &[&str] = if cfg!(windows) {
    &["cublas64_13.dll", "cublas64_12.dll", "cublas64_11.dll"]
} else {
    &[
        "libcublas.so",
        "libcublas.so.13",
        "libcublas.so.12",
        "libcublas.so.11",
    ]
};

/// cuSOLVER, under the names that cudarc tries too.
const CUSOLVER: &[&str] = if cfg!(windows) {
    &["cusolver64_12.dll", "cusolver64_11.dll"]
} else {
    &["libcusolver.so", "libcusolver.so.12", "libcusolver.so.11"]
};

/// The oldest driver API that cudarc knows; stream-ordered allocation is part of it.
const OLDEST: c_int = 11_040;

/// What this crate calls in the driver. cudarc looks each of them up when it is first called.
const FUNCTIONS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetDefaultMemPool",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemPoolGetAttribute",
    "cuMemPoolSetAttribute",
    "cuMemPoolTrimTo",
    "cuMemcpy2DAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// What this crate calls in cuBLAS.
const CUBLAS_FUNCTIONS: &[&str] = &[
    "cublasCreate_v2",
    "cublasDestroy_v2",
    "cublasSetMathMode",
    "cublasSetStream_v2",
    "cublasSgemm_v2",
];

/// What this crate calls in cuSOLVER.
const CUSOLVER_FUNCTIONS: &[&str] = &[
    "cusolverDnCreate",
    "cusolverDnCreateParams",
    "cusolverDnDestroy",
    "cusolverDnDestroyParams",
    "cusolverDnSetStream",
    "cusolverDnXpotrf",
    "cusolverDnXpotrf_bufferSize",
];

/// The version of the driver's API, as in 12040 for 12.4.
///
/// # Errors
/// [`CudaError::Unavailable`] if there is no driver, or too old a one.
pub(super) fn driver() -> Result<c_int, CudaError> {
    static FOUND: OnceLock<Result<c_int, String>> = OnceLock::new();
    FOUND
        .get_or_init(look_for_driver)
        .clone()
        .map_err(|reason| CudaError::Unavailable { reason })
}

fn look_for_driver() -> Result<c_int, String> {
    let Some((name, library)) = open(DRIVER) else {
        return Err(format!(
            "the NVIDIA driver's library is not on this machine (looked for {})",
            DRIVER.join(", ")
        ));
    };
    let version = version_of(&library).map_err(|reason| format!("{name}: {reason}"))?;
    if version < OLDEST {
        return Err(format!(
            "the NVIDIA driver is of CUDA {}, at least {} is needed; install a newer driver",
            dotted(version),
            dotted(OLDEST)
        ));
    }
    if let Some(missing) = missing(&library, FUNCTIONS) {
        return Err(format!(
            "{name} says it is of CUDA {} and has no {missing}; reinstall the NVIDIA driver",
            dotted(version)
        ));
    }
    // For the rest of the process: cudarc has it open as well.
    std::mem::forget(library);
    Ok(version)
}

fn version_of(library: &Library) -> Result<c_int, String> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: the driver's documentation declares this function so, in every version.
    let get = unsafe { library.get::<GetVersion>(b"cuDriverGetVersion\0") }
        .map_err(|error| error.to_string())?;
    let mut version = 0;
    // SAFETY: it writes one int, may be called before cuInit, and the library is still open.
    match unsafe { get(&raw mut version) } {
        0 => Ok(version),
        code => Err(format!("cuDriverGetVersion returns error {code}")),
    }
}

/// `12040` as `12.4`.
pub(super) fn dotted(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The libraries beside the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Libraries {
    /// The name cuBLAS was found under, with every function that is called.
    pub(super) cublas: Option<&'static str>,
    /// The same of cuSOLVER.
    pub(super) cusolver: Option<&'static str>,
}

impl Libraries {
    /// Looks for them once in a process.
    pub(super) fn find() -> &'static Self {
        static FOUND: OnceLock<Libraries> = OnceLock::new();
        FOUND.get_or_init(|| {
            // cudarc's list of names depends on what it was built beside, and it panics where none of them is there.
            // SAFETY: as in `open`.
            let [cublas, cusolver] = unsafe {
                [
                    cudarc::cublas::sys::is_culib_present(),
                    cudarc::cusolver::sys::is_culib_present(),
                ]
            };
            let present =
                |found: bool, names, functions| found.then(|| present(names, functions)).flatten();
            Self {
                cublas: present(cublas, CUBLAS, CUBLAS_FUNCTIONS),
                cusolver: present(cusolver, CUSOLVER, CUSOLVER_FUNCTIONS),
            }
        })
    }
}

/// The name of a library that has some functions. It stays open, so that what was found stays true.
fn present(names: &[&'static str], functions: &[&str]) -> Option<&'static str> {
    let (name, library) = open(names)?;
    missing(&library, functions).is_none().then(|| {
        std::mem::forget(library);
        name
    })
}

fn open(names: &[&'static str]) -> Option<(&'static str, Library)> {
    names.iter().find_map(|&name| {
        // SAFETY: running the initialization of NVIDIA's libraries is what every CUDA program does; the names are theirs.
        let library = unsafe { Library::new(name) }.ok()?;
        Some((name, library))
    })
}

/// The first function that a library lacks.
fn missing<'a>(library: &Library, functions: &[&'a str]) -> Option<&'a str> {
    functions.iter().copied().find(|function| {
        // SAFETY: the symbol is looked up and neither called nor read.
        unsafe { library.get::<*const ()>(function.as_bytes()) }.is_err()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(dotted(12_040), "12.4");
        assert_eq!(dotted(11_080), "11.8");
        assert_eq!(dotted(OLDEST), "11.4");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_without_a_function_is_not_present() {
        assert_eq!(present(&["libm.so.6"], &["cos"]), Some("libm.so.6"));
        assert_eq!(present(&["libm.so.6"], &["cos", "cuInit"]), None);
        assert_eq!(present(&["libsuch-a-name-is-not-there.so"], &[]), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_is_no_driver_is_told_from_one() {
        let (_, library) = open(&["libm.so.6"]).unwrap();
        assert!(version_of(&library).is_err());
        assert_eq!(missing(&library, FUNCTIONS), Some("cuCtxGetCurrent"));
    }
}
