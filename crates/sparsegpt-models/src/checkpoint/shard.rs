//! One safetensors file: read through a memory map, or laid out before its values are known.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo as Placed};
use serde::Serialize;

use super::dtype::{byte_len, element_count};
use crate::{Error, Result, TensorInfo};

/// Bytes of the length that a safetensors file starts with.
const LENGTH_BYTES: usize = 8;
/// The limit of the safetensors format.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Maps a whole file for reading; an empty file is an error.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    map(path, &file)
}

fn map(path: &Path, file: &File) -> Result<Mmap> {
    let size = file
        .metadata()
        .map_err(|source| Error::io("read", path, source))?
        .len();
    if size == 0 {
        return Err(Error::format(path, "the file is empty"));
    }
    // SAFETY: the map is only ever read. As with every memory map, another process that shortens
    // the file while it is mapped ends this one with a bus error; the writer of this crate never
    // changes a file in place, it renames a finished folder.
    unsafe { Mmap::map(file) }.map_err(|source| Error::io("map", path, source))
}

/// A tensor's bytes as they are stored.
#[derive(Debug)]
pub(crate) enum StoredBytes<'a> {
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
    /// In a file that stays mapped as long as they are there.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl Deref for StoredBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Mapped(map, place) => map.get(place.clone()).unwrap_or_default(),
        }
    }
}

impl PartialEq for StoredBytes<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// An opened safetensors file whose header has been checked against its size. It takes no address space until it is mapped.
pub(crate) struct Shard {
    path: PathBuf,
    file: File,
    data_start: usize,
    metadata: Metadata,
}

impl fmt::Debug for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shard")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Shard {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let map = map(path, &file)?;
        let refuse = |reason: String| Error::format(path, format!("safetensors: {reason}"));
        let (length, rest) = map
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or_else(|| refuse(format!("only {} bytes, no header", map.len())))?;
        let header_len = u64::from_le_bytes(*length);
        let header = usize::try_from(header_len)
            .ok()
            .filter(|&len| len <= MAX_HEADER_BYTES)
            .and_then(|len| rest.get(..len))
            .ok_or_else(|| {
                refuse(format!(
                    "the header claims {header_len} bytes of the {} that follow; \
                     the file is truncated or no safetensors file",
                    rest.len()
                ))
            })?;
        // `Metadata` refuses overlaps, gaps, and sizes that disagree with shape and type.
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|source| refuse(format!("bad header: {source}")))?;
        let data_len = rest.len() - header.len();
        if metadata.data_len() != data_len {
            return Err(refuse(format!(
                "the header describes {} bytes of values, the file holds {data_len}; \
                 it is truncated or damaged",
                metadata.data_len()
            )));
        }
        let data_start = LENGTH_BYTES + header.len();
        Ok(Self {
            path: path.to_path_buf(),
            file,
            data_start,
            metadata,
        })
    }

    /// The whole file, as long as when it was opened.
    pub(crate) fn map(&self) -> Result<Mmap> {
        let map = map(&self.path, &self.file)?;
        match map.len() == self.data_start + self.metadata.data_len() {
            true => Ok(map),
            false => Err(Error::format(
                &self.path,
                format!(
                    "has {} bytes, and had {} when it was opened: it was changed meanwhile",
                    map.len(),
                    self.data_start + self.metadata.data_len()
                ),
            )),
        }
    }

    /// Where a tensor's values stand in the file.
    pub(crate) fn place(&self, name: &str) -> Option<Range<usize>> {
        let (start, end) = self.metadata.info(name)?.data_offsets;
        Some(self.data_start + start..self.data_start + end)
    }

    /// Names in the order of their values.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    pub(crate) fn info(&self, name: &str) -> Option<TensorInfo> {
        let placed = self.metadata.info(name)?;
        Some(TensorInfo {
            dtype: placed.dtype,
            shape: placed.shape.clone(),
        })
    }

    pub(super) fn layout(&self, file_name: String) -> ShardLayout {
        let names = self.names();
        let tensors = names
            .into_iter()
            .filter_map(|name| Some((self.info(&name)?, name)));
        ShardLayout {
            file_name,
            metadata: self.metadata.metadata().clone(),
            tensors: tensors.map(|(info, name)| (name, info)).collect(),
        }
    }
}

/// A safetensors file that stays mapped.
#[derive(Debug)]
pub(crate) struct MappedShard {
    shard: Shard,
    map: Mmap,
}

impl MappedShard {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shard = Shard::open(path)?;
        Ok(Self {
            map: shard.map()?,
            shard,
        })
    }

    /// Names in the order of their values.
    pub(crate) fn names(&self) -> Vec<String> {
        self.shard.names()
    }

    pub(crate) fn info(&self, name: &str) -> Option<TensorInfo> {
        self.shard.info(name)
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.map.get(self.shard.place(name)?)
    }
}

/// What one file holds, in order.
#[derive(Clone, Debug)]
pub(crate) struct ShardLayout {
    pub(crate) file_name: String,
    /// The `__metadata__` of the header, as in `format: pt`.
    pub(crate) metadata: Option<HashMap<String, String>>,
    pub(crate) tensors: Vec<(String, TensorInfo)>,
}

/// A header with its metadata sorted, so that the same checkpoint is written as the same bytes.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__", skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'a String, &'a String>>,
    #[serde(flatten)]
    tensors: Metadata,
}

/// The header of a file to be, with the place of every tensor in it.
pub(crate) struct PlannedShard {
    /// Length and header, as they stand at the start of the file.
    pub(crate) prefix: Vec<u8>,
    /// Name, type and shape, and the position of the values from the start of the file.
    pub(crate) places: Vec<(String, TensorInfo, u64)>,
    pub(crate) file_len: u64,
    /// Bytes of values.
    pub(super) data_len: u64,
}

impl ShardLayout {
    /// Places the tensors, those of wider types first as the format asks for alignment.
    pub(crate) fn plan(&self, path: &Path) -> Result<PlannedShard> {
        let mut tensors = self.tensors.clone();
        // Stable, so that a file that was in order keeps its order.
        tensors.sort_by_key(|(_, info)| std::cmp::Reverse(info.dtype));

        let mut end = 0_usize;
        let mut placed = Vec::with_capacity(tensors.len());
        for (name, info) in &tensors {
            let start = end;
            end = element_count(&info.shape)
                .and_then(|elements| byte_len(info.dtype, elements))
                .and_then(|len| start.checked_add(len))
                .ok_or_else(|| {
                    Error::tensor(name, format!("shape {:?} is too large", info.shape))
                })?;
            let place = Placed {
                dtype: info.dtype,
                shape: info.shape.clone(),
                data_offsets: (start, end),
            };
            placed.push((name.clone(), place));
        }
        let refuse = |reason: String| Error::format(path, format!("safetensors: {reason}"));
        let header = Header {
            metadata: self.metadata.as_ref().map(|m| m.iter().collect()),
            tensors: Metadata::new(None, placed.clone())
                .map_err(|source| refuse(source.to_string()))?,
        };
        let mut header =
            serde_json::to_vec(&header).map_err(|source| refuse(source.to_string()))?;
        header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');

        let mut prefix = (header.len() as u64).to_le_bytes().to_vec();
        prefix.append(&mut header);
        let data_start = prefix.len() as u64;
        let places = tensors
            .into_iter()
            .zip(&placed)
            .map(|((name, info), (_, place))| {
                (name, info, data_start + place.data_offsets.0 as u64)
            })
            .collect();
        let data_len = end as u64;
        Ok(PlannedShard {
            prefix,
            places,
            file_len: data_start + data_len,
            data_len,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use safetensors::Dtype;

    use super::*;

    #[test]
    fn the_same_layout_gives_the_same_bytes() {
        // Every map of the standard library has an order of its own.
        let layout = || ShardLayout {
            file_name: "model.safetensors".to_owned(),
            metadata: Some(
                (0..12)
                    .map(|i| (format!("key {i}"), i.to_string()))
                    .collect(),
            ),
            tensors: vec![(
                "weight".to_owned(),
                TensorInfo {
                    dtype: Dtype::F32,
                    shape: vec![2, 3],
                },
            )],
        };
        let prefix = || {
            let plan = layout().plan(Path::new("")).unwrap();
            plan.prefix
        };
        let first = prefix();
        assert!((0..3).all(|_| prefix() == first));
        let read: Metadata = serde_json::from_slice(&first[LENGTH_BYTES..]).unwrap();
        assert_eq!(read.metadata(), &layout().metadata);
        assert_eq!(read.info("weight").unwrap().shape, [2, 3]);
    }
}
