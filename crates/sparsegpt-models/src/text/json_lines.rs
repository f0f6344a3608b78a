//! The records of a JSON lines file.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use super::plain::Lines;
use crate::error::listed;
use crate::{Error, Result};

/// Reads the string under one key of each line's object. Blank lines are passed over.
#[derive(Debug)]
pub(super) struct Records {
    lines: Lines,
    key: String,
}

impl Records {
    pub(super) fn new(file: File, path: &Path, key: &str) -> Self {
        Self {
            lines: Lines::new(file, path),
            key: key.to_owned(),
        }
    }

    fn text(&self, line: &str) -> Result<String> {
        let Self { lines, key } = self;
        let error =
            |reason| Error::format(lines.path(), format!("line {}: {reason}", lines.line()));
        let value = serde_json::from_str::<Value>(line).map_err(|invalid| {
            error(format!(
                "expected one JSON object, found text that does not parse as JSON ({invalid})"
            ))
        })?;
        let Value::Object(mut record) = value else {
            return Err(error(format!(
                "expected a JSON object, found {}",
                kind(&value)
            )));
        };
        match record.remove(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(error(format!(
                "expected a string under the key {key:?}, found {}",
                kind(&other)
            ))),
            None => {
                let keys: Vec<_> = record.keys().collect();
                Err(error(format!(
                    "expected the key {key:?}, found the keys {}; name the one that holds the text",
                    listed(&keys)
                )))
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.lines.next()? {
                Ok(line) => line,
                Err(error) => return Some(Err(error)),
            };
            if !line.trim().is_empty() {
                return Some(self.text(&line));
            }
        }
    }
}

/// What a value is, for error messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
