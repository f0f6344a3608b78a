//! The records of a task's file: JSON lines, a JSON array, parquet or CSV.

use std::path::{Path, PathBuf};

use ::parquet::file::reader::SerializedFileReader;
use ::parquet::record::reader::RowIter;
use ::parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::csv;
use crate::error::listed;
use crate::text::{Lines, TextFormat, guarded, kind, open};
use crate::{Error, Result};

/// One record, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Record {
    file: PathBuf,
    /// As in `line 3`.
    place: String,
    fields: Map<String, Value>,
}

impl Record {
    pub(super) fn new(file: &Path, place: String, fields: Map<String, Value>) -> Self {
        Self {
            file: file.to_owned(),
            place,
            fields,
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// An error about this record.
    pub(super) fn error(&self, reason: impl AsRef<str>) -> Error {
        Error::format(&self.file, format!("{}: {}", self.place, reason.as_ref()))
    }

    fn unfit(&self, key: &str, expected: &str, found: &Value) -> Error {
        let found = match found {
            Value::String(_) | Value::Number(_) | Value::Bool(_) => found.to_string(),
            other => kind(other).to_owned(),
        };
        self.error(format!("field {key:?}: expected {expected}, found {found}"))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.fields.get(key).is_some_and(|value| !value.is_null())
    }

    pub(super) fn value(&self, key: &str) -> Result<&Value> {
        self.fields.get(key).ok_or_else(|| {
            let names: Vec<_> = self.fields.keys().collect();
            self.error(format!(
                "expected the field {key:?}, found the fields {}",
                listed(&names)
            ))
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<&str> {
        match self.value(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.unfit(key, "a string", other)),
        }
    }

    /// A list of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let value = self.value(key)?;
        let texts = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| self.unfit(key, "a list of strings", value))
    }

    /// A record within this one.
    pub(super) fn inner(&self, key: &str) -> Result<Self> {
        match self.value(key)? {
            Value::Object(fields) => Ok(Self {
                file: self.file.clone(),
                place: format!("{}: {key:?}", self.place),
                fields: fields.clone(),
            }),
            other => Err(self.unfit(key, "an object", other)),
        }
    }

    /// A list of records within this one.
    pub(super) fn items(&self, key: &str) -> Result<Vec<Self>> {
        let value = self.value(key)?;
        let items = value.as_array().into_iter().flatten().enumerate();
        items
            .map(|(number, item)| match item {
                Value::Object(fields) => Ok(Self {
                    file: self.file.clone(),
                    place: format!("{}: {key:?}, item {number}", self.place),
                    fields: fields.clone(),
                }),
                other => Err(self.unfit(key, "a list of objects", other)),
            })
            .collect()
    }

    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.fields.insert(key.to_owned(), value);
    }

    /// A number, also one written as a string, of which `first` counts as 0 and which is less than `count` then.
    pub(super) fn index(&self, key: &str, first: u64, count: usize) -> Result<usize> {
        // That there are no choices is for the one to say who counts them.
        let count = count.max(1);
        let value = self.value(key)?;
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_u64(),
        };
        let index = number
            .and_then(|number: u64| number.checked_sub(first))
            .and_then(|index| usize::try_from(index).ok())
            .filter(|&index| index < count);
        index.ok_or_else(|| {
            let last = first + count as u64 - 1;
            self.unfit(key, &format!("a number from {first} to {last}"), value)
        })
    }
}

/// The first records of a file (`limit` at most).
pub(super) fn read(path: &Path, limit: usize) -> Result<Vec<Record>> {
    if is_csv(path) {
        return csv::records(path, limit);
    }
    match TextFormat::of(path)? {
        TextFormat::Parquet => parquet_rows(path, limit),
        TextFormat::JsonLines => json(path, limit),
        TextFormat::Plain => Err(Error::format(
            path,
            "expected JSON lines, a JSON array, parquet or CSV by the file's ending (.jsonl, .json, .parquet, .csv)",
        )),
    }
}

fn is_csv(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ending.eq_ignore_ascii_case("csv"))
}

fn json(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let mut lines = Lines::new(open(path)?, path);
    let mut records = Vec::new();
    while let Some(line) = lines.next() {
        let line = line?;
        // Some writers put a byte order mark before the first record.
        let text = line.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            continue;
        }
        if records.is_empty() && text.starts_with('[') {
            return json_array(path, limit);
        }
        if records.len() == limit {
            break;
        }
        let place = format!("line {}", lines.line());
        let value: Value = serde_json::from_str(text).map_err(|invalid| {
            Error::format(
                path,
                format!("{place}: expected one JSON object, found text that does not parse as JSON ({invalid})"),
            )
        })?;
        records.push(object(path, place, value)?);
    }
    Ok(records)
}

fn json_array(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    let values: Vec<Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|invalid| Error::format(path, format!("expected a JSON array ({invalid})")))?;
    let numbered = values.into_iter().take(limit).zip(1..);
    numbered
        .map(|(value, number)| object(path, format!("record {number}"), value))
        .collect()
}

fn object(path: &Path, place: String, value: Value) -> Result<Record> {
    match value {
        Value::Object(fields) => Ok(Record::new(path, place, fields)),
        other => Err(Error::format(
            path,
            format!("{place}: expected a JSON object, found {}", kind(&other)),
        )),
    }
}

fn parquet_rows(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let file = open(path)?;
    let mut rows = guarded(path, || {
        let reader = SerializedFileReader::new(file)?;
        Ok(RowIter::from_file_into(Box::new(reader)))
    })?;
    let mut records = Vec::new();
    while records.len() < limit {
        let Some(row) = guarded(path, || rows.next().transpose())? else {
            break;
        };
        let place = format!("row {}", records.len() + 1);
        records.push(Record::new(path, place, fields(&row)));
    }
    Ok(records)
}

fn fields(row: &Row) -> Map<String, Value> {
    row.get_column_iter()
        .map(|(name, field)| (name.clone(), value(field)))
        .collect()
}

/// A parquet value as JSON; null where JSON has nothing like it.
fn value(field: &Field) -> Value {
    match field {
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(value) => value.as_str().into(),
        // Strings of writers that do not say so.
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Into::into),
        Field::Group(row) => Value::Object(fields(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => Value::Null,
    }
}
