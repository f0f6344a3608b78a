//! What can go wrong.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, where, and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array of a wrong shape.
    #[error("{what}: expected {expected} values, found {found}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// The size that fits.
        expected: usize,
        /// The size it has.
        found: usize,
    },
    /// Parts of a packed matrix that contradict each other.
    #[error("packed matrix of {rows} x {cols}: {reason}")]
    Packed {
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// What was expected and what was found.
        reason: String,
    },
    /// A setting outside its range.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A file that could not be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file that is no container, or a damaged one.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A layer of a container that is damaged, missing, or of another type.
    #[error("{}: layer {layer}: {reason}", path.display())]
    Layer {
        /// The file.
        path: PathBuf,
        /// The layer.
        layer: String,
        /// What was expected and what was found.
        reason: String,
    },
}

impl Error {
    pub(crate) fn packed(rows: usize, cols: usize, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Packed { rows, cols, reason }
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        let (path, reason) = (path.to_path_buf(), reason.into());
        Self::Format { path, reason }
    }

    pub(crate) fn layer(path: &Path, layer: &str, reason: impl Into<String>) -> Self {
        Self::Layer {
            path: path.to_path_buf(),
            layer: layer.to_owned(),
            reason: reason.into(),
        }
    }
}

/// A row must be below the number of rows.
pub(crate) fn expect_row(row: usize, rows: usize) -> Result<()> {
    if row < rows {
        return Ok(());
    }
    Err(Error::Setting {
        name: "row",
        expected: "one of the matrix",
        found: format!("row {row} of {rows}"),
    })
}

/// An array must have this many values.
pub(crate) fn expect_len(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Shape {
        what,
        expected,
        found,
    })
}
