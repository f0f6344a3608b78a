//! What can go wrong on a device.

use sparsegpt::error::{BackendError, BackendErrorKind, HostError};

/// A failure of the CUDA backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No driver, no device, or one that is too old.
    #[error("no CUDA device: {reason}")]
    Unavailable {
        /// What was looked for and what was found.
        reason: String,
    },
    /// The device has no memory left.
    #[error("the device cannot allocate {bytes} bytes: {free} are free")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes free at that time.
        free: usize,
    },
    /// There was no memory for something whose size only the driver knows: a context, a queue, pinned memory of the host.
    #[error("no memory is left for {what}: {reason}; another program may hold the device's")]
    Exhausted {
        /// What was to be made.
        what: String,
        /// The driver's error.
        reason: String,
    },
    /// The driver refused a module.
    #[error("the driver refuses {module}.ptx: {reason}\n{log}")]
    Module {
        /// The module.
        module: &'static str,
        /// The driver's error.
        reason: String,
        /// The log of the driver's assembler.
        log: String,
    },
    /// A kernel or a copy failed.
    #[error("{what} failed on the device: {reason}")]
    Failed {
        /// The kernel or the copy.
        what: String,
        /// The driver's error.
        reason: String,
    },
    /// The device no longer answers.
    #[error("the device was lost in {what}: {reason}")]
    Lost {
        /// The kernel or the copy.
        what: String,
        /// The driver's error.
        reason: String,
    },
    /// A pivot of the factorization was not positive.
    #[error("matrix not positive definite: pivot of column {column} is not positive")]
    NotPositiveDefinite {
        /// Column of the matrix, counted from 0.
        column: usize,
    },
    /// A step on the host failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl BackendError for CudaError {
    fn kind(&self) -> BackendErrorKind {
        match self {
            Self::Unavailable { .. } => BackendErrorKind::DeviceUnavailable,
            Self::OutOfMemory { .. } | Self::Exhausted { .. } => BackendErrorKind::OutOfMemory,
            Self::Lost { .. } => BackendErrorKind::DeviceLost,
            Self::NotPositiveDefinite { column } => {
                BackendErrorKind::NotPositiveDefinite { column: *column }
            }
            Self::Host(error) => error.kind(),
            Self::Module { .. } | Self::Failed { .. } => BackendErrorKind::Other,
        }
    }

    fn from_host(error: HostError) -> Self {
        Self::Host(error)
    }
}
