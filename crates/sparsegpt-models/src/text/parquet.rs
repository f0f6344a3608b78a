//! The rows of one text column of a parquet file.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use ::parquet::basic::Type as PhysicalType;
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};

use crate::{Error, Result};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

/// How the parquet crate's error for a codec left out of the build starts.
const CODEC_LEFT_OUT: &str = "Disabled feature at compile time: ";

/// Reads the rows of one column in order, a batch at a time.
pub(super) struct Rows {
    path: PathBuf,
    column_name: String,
    reader: SerializedFileReader<File>,
    column_index: usize,
    /// The definition level of a row that is not null.
    present_level: i16,
    next_row_group: usize,
    column: Option<ColumnReaderImpl<ByteArrayType>>,
    batch: IntoIter<ByteArray>,
    /// Number of the row handed out last, from 1.
    row: usize,
}

impl Rows {
    pub(super) fn new(file: File, path: &Path, column_name: &str) -> Result<Self> {
        let reader = guarded(path, || SerializedFileReader::new(file))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let column_index = schema
            .columns()
            .iter()
            .position(|column| column.path().string() == column_name)
            .ok_or_else(|| {
                let names: Vec<_> = schema
                    .columns()
                    .iter()
                    .map(|column| column.path().string())
                    .collect();
                Error::format(
                    path,
                    format!(
                        "expected the column {column_name:?}, found the columns {names:?}; name \
                         the one that holds the text"
                    ),
                )
            })?;
        let column = schema.column(column_index);
        if column.physical_type() != PhysicalType::BYTE_ARRAY || column.max_rep_level() > 0 {
            let repeated = if column.max_rep_level() > 0 {
                "repeated "
            } else {
                ""
            };
            return Err(Error::format(
                path,
                format!(
                    "column {column_name:?}: expected strings (BYTE_ARRAY), found {repeated}{}",
                    column.physical_type()
                ),
            ));
        }
        let present_level = column.max_def_level();
        Ok(Self {
            path: path.to_owned(),
            column_name: column_name.to_owned(),
            reader,
            column_index,
            present_level,
            next_row_group: 0,
            column: None,
            batch: Vec::new().into_iter(),
            row: 0,
        })
    }

    /// Decodes the next batch; `false` at the end of the file.
    fn fill_batch(&mut self) -> Result<bool> {
        loop {
            if self.column.is_none() {
                if self.next_row_group == self.reader.num_row_groups() {
                    return Ok(false);
                }
                self.column = Some(self.open_column(self.next_row_group)?);
                self.next_row_group += 1;
            }
            let Some(column) = &mut self.column else {
                continue;
            };
            let mut values = Vec::new();
            let mut definition_levels = Vec::new();
            let (records, present, _) = guarded(&self.path, || {
                column.read_records(BATCH_ROWS, Some(&mut definition_levels), None, &mut values)
            })?;
            if records == 0 {
                self.column = None;
                continue;
            }
            if present < records {
                let missing = definition_levels
                    .iter()
                    .position(|&level| level < self.present_level);
                let row = self.row + missing.unwrap_or_default() + 1;
                return Err(Error::format(
                    &self.path,
                    format!(
                        "row {row}: expected a string in the column {:?}, found null",
                        self.column_name
                    ),
                ));
            }
            self.batch = values.into_iter();
            return Ok(true);
        }
    }

    fn open_column(&self, row_group: usize) -> Result<ColumnReaderImpl<ByteArrayType>> {
        let column = guarded(&self.path, || {
            self.reader
                .get_row_group(row_group)?
                .get_column_reader(self.column_index)
        })?;
        match column {
            ColumnReader::ByteArrayColumnReader(column) => Ok(column),
            _ => Err(Error::format(
                &self.path,
                format!("row group {row_group}: the column's type differs from the file's schema"),
            )),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.batch.as_slice().is_empty() {
            match self.fill_batch() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        let value = self.batch.next()?;
        self.row += 1;
        let text = std::str::from_utf8(value.data())
            .map(str::to_owned)
            .map_err(|invalid| {
                Error::format(
                    &self.path,
                    format!(
                        "row {}: expected UTF-8 text in the column {:?}, found an invalid byte at \
                     position {}",
                        self.row,
                        self.column_name,
                        invalid.valid_up_to()
                    ),
                )
            });
        Some(text)
    }
}

/// Calls into the parquet crate. Its decoders assert on some damaged files; a file from outside
/// must end in an error all the same. What was being read is dropped after an error, so no broken
/// invariant is seen afterwards.
pub(crate) fn guarded<T>(
    path: &Path,
    call: impl FnOnce() -> std::result::Result<T, ParquetError>,
) -> Result<T> {
    let result = catch_unwind(AssertUnwindSafe(call))
        .map_err(|_| Error::format(path, "the parquet file is damaged: its decoder gave up"))?;
    result.map_err(|error| {
        let message = error.to_string();
        let reason = match message.split_once(CODEC_LEFT_OUT) {
            Some((_, codec)) => format!(
                "the parquet file is compressed with {codec}, which this build cannot read; write \
                 it with snappy, gzip, lz4, brotli or no compression, or convert it to JSON lines"
            ),
            None => format!("the parquet file cannot be read ({message})"),
        };
        Error::format(path, reason)
    })
}
