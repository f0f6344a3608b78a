//! What can go wrong, and whose turn it is to act.
//!
//! Two error types meet here. A backend has an error type of its own and says what happened through
//! [`BackendError::kind`]; the library's [`Error`] wraps it together with the layer and the stage, and
//! is therefore not generic over the backend.

use std::error::Error as StdError;
use std::fmt;

use crate::backend::Precision;

/// The result of a call into this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong inside a backend, in terms a caller can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// The damped Hessian is not positive definite; `column` is the one whose pivot failed, the first that the
    /// factorization came to. It begins at the last column.
    /// The solver answers with more precision, then with more damping.
    NotPositiveDefinite {
        /// Column of the matrix, counted from 0.
        column: usize,
    },
    /// The device or the host has no memory left for this call.
    OutOfMemory,
    /// No such device, driver or library on this machine.
    DeviceUnavailable,
    /// The device was there and is gone or no longer answers.
    DeviceLost,
    /// The backend cannot do this, now or ever.
    Unsupported,
    /// Anything else; the error's source says more.
    Other,
}

impl fmt::Display for BackendErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPositiveDefinite { column } => {
                write!(f, "matrix not positive definite at column {column}")
            }
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::DeviceUnavailable => f.write_str("device unavailable"),
            Self::DeviceLost => f.write_str("device lost"),
            Self::Unsupported => f.write_str("operation not supported"),
            Self::Other => f.write_str("backend failure"),
        }
    }
}

/// The error type of a [`Backend`](crate::backend::Backend).
pub trait BackendError: StdError + Send + Sync + 'static {
    /// The kind of failure, for callers that decide by it.
    fn kind(&self) -> BackendErrorKind;

    /// Wraps a failure of one of the default bodies, which run on the host. None of them fails by itself today; it
    /// serves a backend's own calls of host functions as well.
    fn from_host(error: HostError) -> Self;
}

/// The error type of the host implementation, and of every default body of the backend trait.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A pivot of the factorization was not positive.
    #[error("matrix not positive definite: pivot of column {column} is not positive")]
    NotPositiveDefinite {
        /// Column of the matrix, counted from 0.
        column: usize,
    },
    /// A thread pool could not be made.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the operating system said.
        reason: String,
    },
    /// An allocation failed.
    #[error("cannot allocate {bytes} bytes on the host")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The processor cannot do what an option asks for.
    #[error("{what}: this processor does not have {missing}; leave the option out")]
    Unsupported {
        /// The option.
        what: &'static str,
        /// What the processor lacks.
        missing: String,
    },
}

impl BackendError for HostError {
    fn kind(&self) -> BackendErrorKind {
        match self {
            Self::NotPositiveDefinite { column } => {
                BackendErrorKind::NotPositiveDefinite { column: *column }
            }
            Self::Threads { .. } => BackendErrorKind::DeviceUnavailable,
            Self::OutOfMemory { .. } => BackendErrorKind::OutOfMemory,
            Self::Unsupported { .. } => BackendErrorKind::Unsupported,
        }
    }

    fn from_host(error: HostError) -> Self {
        error
    }
}

/// The step of a layer's treatment in which something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Stage {
    /// Accumulation of the Hessian from activations.
    Hessian,
    /// Copies to and from the device.
    Transfer,
    /// Factorization of the damped Hessian.
    Factor,
    /// Choice of the weights to prune.
    Select,
    /// Fit of the quantization grid.
    Grid,
    /// The sweep over the columns of one block.
    UpdateRows,
    /// The lazy update of the columns behind a block.
    Trailing,
    /// Improving the weights on the mask that came out.
    Refit,
    /// Measuring the reconstruction error.
    Measure,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hessian => "Hessian accumulation",
            Self::Transfer => "transfer",
            Self::Factor => "factorization",
            Self::Select => "mask selection",
            Self::Grid => "grid fit",
            Self::UpdateRows => "row update",
            Self::Trailing => "trailing update",
            Self::Refit => "refit",
            Self::Measure => "error measurement",
        })
    }
}

/// Everything that can go wrong in this library.
///
/// Each variant names the layer it is about (empty where the caller gave no name), what was expected and
/// what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is outside its range.
    #[error("{name}: expected {expected}, found {found}")]
    InvalidSetting {
        /// The setting.
        name: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Two settings, or a setting and a layer, do not go together.
    #[error("layer {layer:?}: {reason}; {remedy}")]
    Incompatible {
        /// The layer.
        layer: String,
        /// What does not go together.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// A matrix has the wrong shape.
    #[error("layer {layer:?}: {what}: found {found_rows} x {found_cols}, expected {expected}")]
    Shape {
        /// The layer.
        layer: String,
        /// Which matrix.
        what: &'static str,
        /// The shape that fits, in words.
        expected: String,
        /// Rows found.
        found_rows: usize,
        /// Columns found.
        found_cols: usize,
    },
    /// A matrix holds NaN or infinity.
    #[error(
        "layer {layer:?}: {value} in {what} at row {row}, column {col}; expected finite numbers"
    )]
    NonFinite {
        /// The layer.
        layer: String,
        /// Which matrix.
        what: &'static str,
        /// The value found.
        value: f32,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// The result is not finite although weights and Hessian are.
    #[error(
        "layer {layer:?}: the result overflows to {value} at row {row}, column {col}; weights and activations should not be that far from 1"
    )]
    Overflow {
        /// The layer.
        layer: String,
        /// The value found.
        value: f32,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// A Hessian that no activations have.
    #[error(
        "layer {layer:?}: the Hessian has {value} on its diagonal at column {column}, where XᵀX has nothing below 0; give H = Σ XᵀX, undamped"
    )]
    NegativeDiagonal {
        /// The layer.
        layer: String,
        /// The column.
        column: usize,
        /// The value found.
        value: f32,
    },
    /// No activation reached the layer, or all of them were zero.
    #[error(
        "layer {layer:?}: the Hessian is zero ({tokens} tokens seen); calibrate with inputs that reach this layer, or skip it"
    )]
    ZeroHessian {
        /// The layer.
        layer: String,
        /// Tokens accumulated.
        tokens: u64,
    },
    /// The damped Hessian could not be factored, even in the highest precision that the backend has and with
    /// the largest damping tried.
    #[error(
        "layer {layer:?}: Hessian not positive definite at column {column}, even in {precision} with damping {damping}; give more calibration tokens or a larger damping"
    )]
    NotPositiveDefinite {
        /// The layer.
        layer: String,
        /// The column whose pivot failed last.
        column: usize,
        /// The largest damping tried, as a fraction of the mean diagonal.
        damping: f64,
        /// The precision of that attempt: f32 where the backend cannot factor in f64.
        precision: Precision,
    },
    /// A backend failed.
    #[error("layer {layer:?}: {backend} backend, {stage}: {kind}")]
    Backend {
        /// The layer.
        layer: String,
        /// The backend's name.
        backend: String,
        /// The step that failed.
        stage: Stage,
        /// The kind of failure.
        kind: BackendErrorKind,
        /// The backend's own error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Calibration statistics of one backend were handed to a solver of another.
    #[error(
        "layer {layer:?}: calibration statistics were not made by this solver's backend ({backend}); make them with the solver that prunes"
    )]
    ForeignStatistics {
        /// The layer.
        layer: String,
        /// The backend of the solver.
        backend: String,
    },
    /// The model adapter failed.
    #[error("block {block}, {action}")]
    Adapter {
        /// The block of the model.
        block: usize,
        /// What was being done.
        action: String,
        /// The adapter's own error.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The rules leave nothing to prune.
    #[error("no layer to prune: {reason}")]
    NothingToPrune {
        /// Why, and what to do.
        reason: String,
    },
    /// The run was stopped by its progress callback.
    #[error("stopped by the caller before block {block}")]
    Cancelled {
        /// The block that was about to start.
        block: usize,
    },
}

impl Error {
    pub(crate) fn setting(
        name: &'static str,
        expected: impl Into<String>,
        found: impl fmt::Display,
    ) -> Self {
        Self::InvalidSetting {
            name,
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    pub(crate) fn incompatible(
        layer: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Incompatible {
            layer: layer.to_owned(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn backend<E: BackendError>(
        layer: &str,
        backend: &str,
        stage: Stage,
        source: E,
    ) -> Self {
        Self::Backend {
            layer: layer.to_owned(),
            backend: backend.to_owned(),
            stage,
            kind: source.kind(),
            source: Box::new(source),
        }
    }

    /// The same error with the layer's name filled in where it was still empty.
    #[must_use]
    pub fn for_layer(mut self, name: &str) -> Self {
        match &mut self {
            Self::Incompatible { layer, .. }
            | Self::Shape { layer, .. }
            | Self::NonFinite { layer, .. }
            | Self::Overflow { layer, .. }
            | Self::NegativeDiagonal { layer, .. }
            | Self::ZeroHessian { layer, .. }
            | Self::NotPositiveDefinite { layer, .. }
            | Self::Backend { layer, .. }
            | Self::ForeignStatistics { layer, .. }
                if layer.is_empty() =>
            {
                name.clone_into(layer);
            }
            _ => {}
        }
        self
    }

    /// The layer this error is about, where it is about one and its name is known.
    #[must_use]
    pub fn layer(&self) -> Option<&str> {
        match self {
            Self::Incompatible { layer, .. }
            | Self::Shape { layer, .. }
            | Self::NonFinite { layer, .. }
            | Self::Overflow { layer, .. }
            | Self::NegativeDiagonal { layer, .. }
            | Self::ZeroHessian { layer, .. }
            | Self::NotPositiveDefinite { layer, .. }
            | Self::Backend { layer, .. }
            | Self::ForeignStatistics { layer, .. }
                if !layer.is_empty() =>
            {
                Some(layer)
            }
            _ => None,
        }
    }
}
