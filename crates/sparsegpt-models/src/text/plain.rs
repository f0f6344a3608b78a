//! The lines of a plain text file.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::BYTE_ORDER_MARK;
use crate::{Error, Result};

/// Reads numbered lines of UTF-8 with their line ends, without a byte order mark at the file's beginning.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// Number of the line read last, from 1.
    line: usize,
}

impl Lines {
    pub(crate) fn new(file: File, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            reader: BufReader::new(file),
            line: 0,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn line(&self) -> usize {
        self.line
    }
}

impl Iterator for Lines {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        match self.reader.read_until(b'\n', &mut bytes) {
            Err(source) => return Some(Err(Error::io("read", &self.path, source))),
            Ok(0) => return None,
            Ok(_) => self.line += 1,
        }
        if self.line == 1 && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        let line = String::from_utf8(bytes).map_err(|invalid| {
            let position = invalid.utf8_error().valid_up_to();
            let byte = invalid
                .as_bytes()
                .get(position)
                .copied()
                .unwrap_or_default();
            Error::format(
                &self.path,
                format!(
                    "line {}: expected UTF-8 text, found the byte 0x{byte:02x} at position \
                     {position} of the line; convert the file to UTF-8",
                    self.line
                ),
            )
        });
        Some(line)
    }
}
