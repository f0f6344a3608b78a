//! The key-value part of a GGUF file.

use crate::{Error, Result};

/// Numbers of the types as the GGUF specification gives them.
mod kind {
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

/// Keys and values, as they stand in the file.
#[derive(Debug, Default)]
pub(super) struct Fields {
    bytes: Vec<u8>,
    count: u64,
}

/// Length and bytes.
pub(super) fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Fields {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn begin(&mut self, key: &str, kind: u32) {
        text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.count += 1;
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.begin(key, kind::TEXT);
        text(&mut self.bytes, value);
    }

    pub(super) fn integer(&mut self, key: &str, value: usize) -> Result<()> {
        let value = u32::try_from(value)
            .map_err(|_| Error::config(key, format!("{value} is too large for GGUF")))?;
        self.begin(key, kind::U32);
        self.bytes.extend(value.to_le_bytes());
        Ok(())
    }

    pub(super) fn float(&mut self, key: &str, value: f64) {
        self.begin(key, kind::F32);
        self.bytes.extend((value as f32).to_le_bytes());
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.begin(key, kind::BOOL);
        self.bytes.push(u8::from(value));
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.begin(key, kind::ARRAY);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    pub(super) fn texts(&mut self, key: &str, values: &[String]) {
        self.array(key, kind::TEXT, values.len());
        for value in values {
            text(&mut self.bytes, value);
        }
    }

    pub(super) fn integers(&mut self, key: &str, values: &[i32]) {
        self.array(key, kind::I32, values.len());
        self.bytes
            .extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }

    pub(super) fn floats(&mut self, key: &str, values: &[f32]) {
        self.array(key, kind::F32, values.len());
        self.bytes
            .extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
}
