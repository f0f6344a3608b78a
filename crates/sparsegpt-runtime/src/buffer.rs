//! Values in memory of our own or in a mapped file.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::{Mmap, MmapMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Arrays from this size on are asked for in huge pages.
const HUGE: usize = 4 << 20;

/// An array that begins with a cache line. The allocator would begin large ones 16 bytes into a line, and every other
/// vector of 32 bytes would lie across two.
pub(crate) struct Aligned<T> {
    memory: Memory<T>,
    len: usize,
}

enum Memory<T> {
    /// With the index of the first value that begins a line.
    Heap(Vec<T>, usize),
    /// In huge pages where the system gives them: products read them front to back, and both the prefetcher and the
    /// translation of addresses start anew with each page.
    Pages(MmapMut),
}

impl<T: Pod> Aligned<T> {
    pub(crate) fn zeroed(len: usize) -> Self {
        let memory = Self::pages(len).unwrap_or_else(|| {
            let values = vec![T::zeroed(); len + LINE / size_of::<T>().max(1)];
            // At most a line of values for the types of this crate, whose sizes divide it.
            let start = values.as_ptr().align_offset(LINE);
            let start = start.min(values.len() - len);
            Memory::Heap(values, start)
        });
        Self { memory, len }
    }

    fn pages(len: usize) -> Option<Memory<T>> {
        let bytes = len.checked_mul(size_of::<T>());
        let map = MmapMut::map_anon(bytes.filter(|&bytes| bytes >= HUGE)?).ok()?;
        // Advice that is not taken changes nothing but the time.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Memory::Pages(map))
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.memory {
            Memory::Heap(values, start) => &values[*start..*start + self.len],
            Memory::Pages(map) => bytemuck::cast_slice(map),
        }
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Heap(values, start) => &mut values[*start..*start + self.len],
            Memory::Pages(map) => bytemuck::cast_slice_mut(map),
        }
    }
}

impl<T: Pod> From<&[T]> for Aligned<T> {
    fn from(values: &[T]) -> Self {
        let mut aligned = Self::zeroed(values.len());
        aligned.copy_from_slice(values);
        aligned
    }
}

/// The bytes of a container. Clones share them.
#[derive(Clone)]
pub(crate) enum Source {
    File(Arc<Mmap>),
    Memory(Arc<Aligned<u8>>),
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::File(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// A read-only array.
pub(crate) enum Buffer<T> {
    Owned(Aligned<T>),
    /// A part of a container. [`Buffer::within`] has checked that it is whole, aligned values.
    Within(Source, Range<usize>),
}

impl<T: Pod> Buffer<T> {
    /// The values at these bytes of a container, if it has them, aligned and in whole numbers.
    pub(crate) fn within(container: &Source, bytes: Range<usize>) -> Option<Self> {
        let slice = container.get(bytes.clone())?;
        bytemuck::try_cast_slice::<u8, T>(slice).ok()?;
        Some(Self::Within(container.clone(), bytes))
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Within(container, bytes) => bytemuck::cast_slice(&container[bytes.clone()]),
        }
    }
}

impl<T: Pod> Clone for Buffer<T> {
    /// The clone of a container's part shares it.
    fn clone(&self) -> Self {
        match self {
            Self::Owned(values) => Self::Owned(Aligned::from(&**values)),
            Self::Within(container, bytes) => Self::Within(container.clone(), bytes.clone()),
        }
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned(values) => write!(formatter, "{} values", values.len),
            Self::Within(_, bytes) => write!(formatter, "bytes {bytes:?} of a container"),
        }
    }
}

impl<T: Pod> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(Aligned::from(values.as_slice()))
    }
}

impl<T> From<Aligned<T>> for Buffer<T> {
    fn from(values: Aligned<T>) -> Self {
        Self::Owned(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_begin_with_a_line() {
        for len in [0, 1, 15, 1000, 1_000_000, 3_000_001] {
            let single = Aligned::from(vec![1.0_f32; len].as_slice());
            assert_eq!(single.as_ptr().align_offset(LINE), 0);
            assert!(single.len() == len && single.iter().all(|value| *value == 1.0));
            let brain = Aligned::<half::bf16>::zeroed(len);
            assert_eq!(brain.as_ptr().align_offset(LINE), 0);
        }
    }
}
