//! Documents and texts from plain text files, JSON lines and parquet files, and the preparation of
//! evaluation texts.
//!
//! A file is a sequence of *documents*: the lines of a plain text file (with their line ends), the
//! records of a JSON lines file, the rows of a parquet file. [`documents`] reads them one at a
//! time, [`read_text`] makes one text of them, and [`prepare`] joins them as a published
//! perplexity [`Recipe`] says.

mod json_lines;
mod parquet;
mod plain;
mod recipe;

use std::fmt::{self, Debug};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use crate::{Error, Result};

pub(crate) use json_lines::kind;
pub(crate) use parquet::guarded;
pub(crate) use plain::Lines;
pub use recipe::{Recipe, prepare, prepare_with_key};

/// The key (JSON lines) or column (parquet) that holds the text where the caller names none.
pub const DEFAULT_TEXT_KEY: &str = "text";

/// What some editors put at the beginning of a UTF-8 file; it is no part of the text.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How many bytes at the start of a file of unknown ending are looked at to tell what it is.
const SNIFFED_BYTES: u64 = 64 * 1024;

/// What a text file is, by the ending of its name, otherwise by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFormat {
    /// UTF-8 text; a document is a line, its line end included.
    Plain,
    /// One JSON object a line; a document is the string under the text key.
    JsonLines,
    /// A parquet file; a document is a row of the text column.
    Parquet,
}

impl TextFormat {
    /// Tells the format of a file. `.parquet`, `.jsonl`, `.ndjson`, `.json`, `.txt`, `.text`,
    /// `.raw` and `.md` decide by themselves; any other file is parquet if it starts with the
    /// parquet magic number, JSON lines if its first non-blank line is a JSON object, and plain
    /// text otherwise.
    ///
    /// # Errors
    /// If a file without a telling ending cannot be read, or is compressed.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path
            .extension()
            .and_then(|e| e.to_str())
            .map(str::to_ascii_lowercase);
        match ending.as_deref() {
            Some("parquet") => return Ok(Self::Parquet),
            Some("jsonl" | "ndjson" | "json") => return Ok(Self::JsonLines),
            Some("txt" | "text" | "raw" | "md") => return Ok(Self::Plain),
            _ => {}
        }
        let mut start = Vec::new();
        open(path)?
            .take(SNIFFED_BYTES)
            .read_to_end(&mut start)
            .map_err(|source| Error::io("read", path, source))?;
        Ok(Self::of_content(&start))
    }

    fn of_content(start: &[u8]) -> Self {
        if start.starts_with(b"PAR1") {
            return Self::Parquet;
        }
        let cut_off = start.len() as u64 == SNIFFED_BYTES;
        let start = start.strip_prefix(BYTE_ORDER_MARK).unwrap_or(start);
        let first_line = start
            .split_inclusive(|&byte| byte == b'\n')
            .find(|line| !line.trim_ascii().is_empty());
        let is_json_object = first_line.is_some_and(|line| {
            let whole = line.ends_with(b"\n") || !cut_off;
            // A first line longer than what was read cannot be parsed: its brace must do.
            line.trim_ascii_start().starts_with(b"{")
                && (!whole || serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok())
        });
        if is_json_object {
            Self::JsonLines
        } else {
            Self::Plain
        }
    }

    /// What stands between two documents where a file is read as one text: nothing in plain text,
    /// whose lines keep their ends, and a newline otherwise.
    pub fn separator(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::JsonLines | Self::Parquet => "\n",
        }
    }
}

/// The documents of one file, read as they are asked for. Made by [`documents`].
///
/// After an error the iterator ends.
pub struct Documents {
    format: TextFormat,
    inner: Box<dyn Iterator<Item = Result<String>>>,
    failed: bool,
}

impl Documents {
    /// What the file is.
    pub fn format(&self) -> TextFormat {
        self.format
    }
}

impl Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Documents")
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

impl Iterator for Documents {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let document = self.inner.next();
        self.failed = matches!(document, Some(Err(_)));
        document
    }
}

/// Opens a file for reading its documents one at a time. `text_key` is the key of a JSON object or
/// the column of a parquet file that holds the text; plain text has no use for it.
///
/// # Errors
/// If the file cannot be opened, is empty or compressed, or is a parquet file without that column.
/// The iterator itself ends with an error that names file and line (or row) at invalid UTF-8, a
/// line that is no JSON object, a missing key, or a value that is not a string.
pub fn documents(path: &Path, text_key: &str) -> Result<Documents> {
    let file = open(path)?;
    let format = TextFormat::of(path)?;
    let inner: Box<dyn Iterator<Item = Result<String>>> = match format {
        TextFormat::Plain => Box::new(Lines::new(file, path)),
        TextFormat::JsonLines => Box::new(json_lines::Records::new(file, path, text_key)),
        TextFormat::Parquet => Box::new(parquet::Rows::new(file, path, text_key)?),
    };
    Ok(Documents {
        format,
        inner,
        failed: false,
    })
}

/// Reads a whole file as one text: a plain text file byte for byte but for a byte order mark at its beginning, the documents of
/// the other formats joined by a newline.
///
/// # Errors
/// Those of [`documents`], and if there is no document.
pub fn read_text(path: &Path, text_key: &str) -> Result<String> {
    let documents = documents(path, text_key)?;
    let separator = documents.format().separator();
    join(path, documents, separator)
}

/// Joins documents to one text; an error if there are none.
fn join(
    path: &Path,
    documents: impl Iterator<Item = Result<String>>,
    separator: &str,
) -> Result<String> {
    let mut text = String::new();
    let mut count = 0_usize;
    for document in documents {
        if count > 0 {
            text.push_str(separator);
        }
        text.push_str(&document?);
        count += 1;
    }
    if count == 0 {
        return Err(no_document(path));
    }
    Ok(text)
}

pub(crate) fn no_document(path: &Path) -> Error {
    Error::format(path, "expected text, found no document in the file")
}

/// Opens a file that must not be empty nor compressed as a whole.
pub(crate) fn open(path: &Path) -> Result<File> {
    let read_error = |source| Error::io("read", path, source);
    let mut file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    if path.is_dir() {
        return Err(Error::format(
            path,
            "expected a file of plain text, JSON lines or parquet, found a directory",
        ));
    }
    let mut start = Vec::with_capacity(4);
    (&mut file)
        .take(4)
        .read_to_end(&mut start)
        .map_err(read_error)?;
    if start.is_empty() {
        return Err(Error::format(path, "expected text, found an empty file"));
    }
    // Magic numbers: RFC 1952 for gzip, RFC 8878 for Zstandard.
    let compression = match start.as_slice() {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("Zstandard"),
        _ => None,
    };
    if let Some(compression) = compression {
        return Err(Error::format(
            path,
            format!(
                "expected plain text, JSON lines or parquet, found a file compressed with \
                 {compression}; decompress it first"
            ),
        ));
    }
    file.rewind().map_err(read_error)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
