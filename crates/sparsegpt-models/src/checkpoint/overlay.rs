//! Replaced tensors over an unchanged source, in memory.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use super::dtype::{decode, element_count, encode, round_through};
use super::{StoredTensor, WeightSink};
use crate::source::equal_values;
use crate::{Error, Result, TensorInfo, TensorSource};

/// A model whose weights are replaced in memory: reads as if the stored tensors had been written
/// and the result opened again, so they go through the source's type.
///
/// Clones share the replaced tensors: one clone is the sink, another the source.
#[derive(Clone)]
pub struct Overlay {
    base: Arc<dyn TensorSource>,
    /// Bytes in the type of the base.
    replaced: Arc<RwLock<HashMap<String, Arc<[u8]>>>>,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Overlay")
            .field("base", &self.base)
            .field("replaced", &self.replaced_count())
            .finish()
    }
}

impl Overlay {
    /// Over `base`, with nothing replaced yet.
    #[must_use]
    pub fn new(base: Arc<dyn TensorSource>) -> Self {
        Self {
            base,
            replaced: Arc::default(),
        }
    }

    /// How many tensors are replaced.
    #[must_use]
    pub fn replaced_count(&self) -> usize {
        self.replaced
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn known(&self, name: &str) -> Result<TensorInfo> {
        self.base
            .info(name)
            .ok_or_else(|| Error::tensor(name, "the source has no tensor of that name"))
    }

    fn replaced_bytes(&self, name: &str) -> Option<Arc<[u8]>> {
        self.replaced
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }
}

impl TensorSource for Overlay {
    fn names(&self) -> Vec<String> {
        self.base.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.base.info(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match (self.replaced_bytes(name), self.base.info(name)) {
            (Some(bytes), Some(info)) => decode(name, info.dtype, &bytes),
            _ => self.base.read_f32(name),
        }
    }

    fn equal(&self, one: &str, other: &str) -> Result<bool> {
        match [one, other].map(|name| self.replaced_bytes(name)) {
            [None, None] => self.base.equal(one, other),
            _ => equal_values(self, one, other),
        }
    }
}

impl WeightSink for Overlay {
    fn rounded(&self, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
        round_through(name, self.known(name)?.dtype, values)
    }

    fn store(&mut self, name: &str, values: &[f32]) -> Result<StoredTensor> {
        let info = self.known(name)?;
        check_length(name, &info, values)?;
        let encoded = encode(name, info.dtype, values)?;
        let mut replaced = self
            .replaced
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        replaced.insert(name.to_owned(), encoded.bytes.into());
        Ok(StoredTensor {
            zeros: encoded.zeros,
        })
    }
}

pub(super) fn check_length(name: &str, info: &TensorInfo, values: &[f32]) -> Result<()> {
    if element_count(&info.shape) == Some(values.len()) {
        return Ok(());
    }
    Err(Error::tensor(
        name,
        format!(
            "expected the {:?} values of the source, found {}",
            info.shape,
            values.len()
        ),
    ))
}
