//! The error type of this crate.

use std::path::PathBuf;

use crate::checkpoint::CONFIG_FILE;

/// The result of a call into this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong around a model. Every variant names the file, tensor or setting, what was expected,
/// what was found, and where it is not obvious, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{path}: cannot {action}")]
    Io {
        /// What was being done, as in `read` or `rename to …`.
        action: String,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Expected and found.
        reason: String,
    },
    /// A tensor is missing, surplus, or of the wrong type or shape.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// Expected and found.
        reason: String,
    },
    /// A model configuration that is not understood.
    #[error("{path}: {key}: {reason}")]
    Config {
        /// The file, `config.json` alone where a configuration came without one.
        path: PathBuf,
        /// The key.
        key: String,
        /// Expected and found.
        reason: String,
    },
    /// A text, or token ids, that do not suit the model or the call.
    #[error("{what}: expected {expected}, found {found}")]
    Data {
        /// Which data.
        what: String,
        /// What is needed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A setting of a call is out of range.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The tokenizer failed.
    #[error("{path}: tokenizer: {reason}")]
    Tokenizer {
        /// The file that the tokenizer came from.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A chat template is missing, broken, or does not take the conversation.
    #[error("{path}: chat template: {reason}")]
    ChatTemplate {
        /// The file that the template came from.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// A result may not be written where the caller asked.
    #[error("{path}: {reason}")]
    OutputRefused {
        /// The asked-for folder.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A callback of the caller's asked to stop.
    #[error("stopped by the caller")]
    Stopped,
    /// A tensor operation of the forward pass failed.
    #[error("forward pass")]
    Forward(#[from] candle_core::Error),
    /// A file of packed layers is damaged, or the sparse runtime failed.
    #[error(transparent)]
    Runtime(#[from] sparsegpt_runtime::Error),
    /// The pruning library failed.
    #[error(transparent)]
    Prune(#[from] sparsegpt::Error),
}

/// Names for an error message: the first dozen, and how many there are besides.
pub(crate) fn listed(names: &[impl std::fmt::Debug]) -> String {
    const MOST: usize = 12;
    match names.len().saturating_sub(MOST) {
        0 => format!("{names:?}"),
        more => format!("{:?} and {more} more", &names[..MOST]),
    }
}

impl Error {
    pub(crate) fn io(
        action: impl Into<String>,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::Io {
            action: action.into(),
            path: path.into(),
            source,
        }
    }

    pub(crate) fn format(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Format {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor {
            name: name.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            path: PathBuf::from(CONFIG_FILE),
            key: key.into(),
            reason: reason.into(),
        }
    }

    /// The same error with the file that a configuration came from.
    pub(crate) fn of_config(mut self, file: PathBuf) -> Self {
        if let Self::Config { path, .. } = &mut self {
            *path = file;
        }
        self
    }

    pub(crate) fn output_refused(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::OutputRefused {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn tokenizer(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self::Tokenizer {
            path: path.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn chat_template(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::ChatTemplate {
            path: path.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn data(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Data {
            what: what.into(),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    pub(crate) fn setting(
        name: &'static str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Setting {
            name,
            expected: expected.into(),
            found: found.to_string(),
        }
    }
}
