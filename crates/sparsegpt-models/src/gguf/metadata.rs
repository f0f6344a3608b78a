//! The key-value part of a GGUF file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;

use crate::{Error, Result};

/// Typed access to the metadata, with errors that name the key.
#[derive(Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    architecture: String,
    values: HashMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(path: &Path, values: HashMap<String, Value>) -> Result<Self> {
        let mut metadata = Self {
            path: path.to_path_buf(),
            architecture: String::new(),
            values,
        };
        metadata.architecture = metadata.required_text("general.architecture")?;
        Ok(metadata)
    }

    pub(super) fn architecture(&self) -> &str {
        &self.architecture
    }

    /// `suffix` under the architecture's own prefix, as in `llama.block_count`.
    pub(super) fn model_key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    pub(super) fn refuse(&self, key: &str, reason: &str) -> Error {
        Error::format(&self.path, format!("metadata {key:?}: {reason}"))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| {
            self.refuse(
                key,
                &format!("expected {expected}, found {:?}", value.value_type()),
            )
        })
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.refuse(key, "is missing"))
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an unsigned integer", |value| {
            usize::try_from(integer(value)?).ok()
        })
    }

    pub(super) fn required_integer(&self, key: &str) -> Result<usize> {
        self.required(key, self.integer(key)?)
    }

    /// A float as the shortest decimal that stands for it: GGUF stores 1e-5 in f32.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a float", |value| match value {
            Value::F32(value) => value.to_string().parse().ok(),
            Value::F64(value) => Some(*value),
            _ => None,
        })
    }

    pub(super) fn required_float(&self, key: &str) -> Result<f64> {
        self.required(key, self.float(key)?)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |value| value.to_bool().ok())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        match value {
            Value::String(text) => Ok(Some(text)),
            _ => Err(self.refuse(key, "expected a text")),
        }
    }

    pub(super) fn required_text(&self, key: &str) -> Result<String> {
        self.required(key, self.text(key)?.map(str::to_owned))
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let refuse = || self.refuse(key, &format!("expected a list of {expected}"));
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => items
                .iter()
                .map(convert)
                .collect::<Option<_>>()
                .map(Some)
                .ok_or_else(refuse),
            Some(_) => Err(refuse()),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.list(key, "texts", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.list(key, "integers", integer)
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.list(key, "floats", |value| value.to_f32().ok())
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::U8(value) => Some((*value).into()),
        Value::I8(value) => Some((*value).into()),
        Value::U16(value) => Some((*value).into()),
        Value::I16(value) => Some((*value).into()),
        Value::U32(value) => Some((*value).into()),
        Value::I32(value) => Some((*value).into()),
        Value::I64(value) => Some(*value),
        Value::U64(value) => i64::try_from(*value).ok(),
        _ => None,
    }
}

/// Refuses a header that candle's reader would stop at with a panic rather than an error: it
/// divides by `general.alignment`. Walks the key-value pairs without keeping them; a header that
/// is damaged otherwise is left to the reader.
pub(super) fn check_alignment(path: &Path, bytes: &[u8]) -> Result<()> {
    let zero = header_alignment(bytes) == Some(0);
    if zero {
        return Err(Error::format(
            path,
            "metadata \"general.alignment\": expected at least 1",
        ));
    }
    Ok(())
}

/// `general.alignment` where it is an integer; the last one if there are several.
fn header_alignment(bytes: &[u8]) -> Option<i64> {
    let mut rest = Walker { bytes };
    rest.take(4 + 4 + 8)?; // magic, version, number of tensors
    let pairs = rest.u64()?;
    let mut alignment = None;
    for _ in 0..pairs {
        // Whatever comes after damage is not read by the reader either.
        let Some(key) = rest.text() else {
            return alignment;
        };
        let Some(kind) = rest.u32() else {
            return alignment;
        };
        let Some(value) = rest.value(kind, 0) else {
            return alignment;
        };
        if key == b"general.alignment" {
            alignment = value;
        }
    }
    alignment
}

struct Walker<'a> {
    bytes: &'a [u8],
}

impl<'a> Walker<'a> {
    /// As deep as candle's reader follows lists of lists.
    const MAX_DEPTH: usize = 64;

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u64()?).ok()?;
        self.take(len)
    }

    /// Passes a value; `Some(Some(_))` for an integer.
    fn value(&mut self, kind: u32, depth: usize) -> Option<Option<i64>> {
        // Numbers of the types as the GGUF specification gives them.
        match kind {
            0 | 1 | 7 => Some(Some(i64::from(self.take(1)?[0]))),
            2 | 3 => Some(Some(i64::from(u16::from_le_bytes(
                self.take(2)?.try_into().ok()?,
            )))),
            4 | 5 => Some(Some(i64::from(self.u32()?))),
            6 => self.take(4).map(|_| None),
            8 => self.text().map(|_| None),
            9 if depth < Self::MAX_DEPTH => {
                let kind = self.u32()?;
                for _ in 0..self.u64()? {
                    self.value(kind, depth + 1)?;
                }
                Some(None)
            }
            10..=12 => self.take(8).map(|_| None),
            _ => None,
        }
    }
}
