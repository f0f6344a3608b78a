//! Values in memory of our own or in a mapped file.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::Mmap;

/// A read-only array.
pub(crate) enum Buffer<T> {
    Owned(Vec<T>),
    /// Bytes of a mapped file. [`Buffer::mapped`] has checked that they are whole, aligned values.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl<T: Pod> Buffer<T> {
    /// The values at these bytes of the file, if the file has them, aligned and in whole numbers.
    pub(crate) fn mapped(map: &Arc<Mmap>, bytes: Range<usize>) -> Option<Self> {
        let slice = map.get(bytes.clone())?;
        bytemuck::try_cast_slice::<u8, T>(slice).ok()?;
        Some(Self::Mapped(Arc::clone(map), bytes))
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped(map, bytes) => bytemuck::cast_slice(&map[bytes.clone()]),
        }
    }
}

impl<T: Clone> Clone for Buffer<T> {
    /// The clone of a mapped array shares the mapping.
    fn clone(&self) -> Self {
        match self {
            Self::Owned(values) => Self::Owned(values.clone()),
            Self::Mapped(map, bytes) => Self::Mapped(Arc::clone(map), bytes.clone()),
        }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned(values) => write!(formatter, "{} values", values.len()),
            Self::Mapped(_, bytes) => write!(formatter, "bytes {bytes:?} of a file"),
        }
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(values)
    }
}
