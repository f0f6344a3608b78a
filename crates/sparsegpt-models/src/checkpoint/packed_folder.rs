//! A folder whose linear layers are packed for the sparse runtime.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sparsegpt_runtime::{Container, LinearLayer};

use super::dtype::decode;
use super::folder::{copy_companions, is_plain_file_name};
use super::shard::{MappedShard, ShardLayout, StoredBytes};
use super::{
    CONFIG_FILE, CheckpointSource, DENSE_FILE, Dtype, PACKED_FILE, PACKED_INDEX_FILE,
    element_count, read_json,
};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, TensorInfo, TensorSource};

/// Of the layout below.
const VERSION: u32 = 1;
/// What a linear layer's weight ends in; the container has the name without it.
pub(super) const WEIGHT: &str = ".weight";
/// What the name of a shard ends in.
const SHARD_ENDING: &str = ".safetensors";

/// packed.safetensors.index.json: the checkpoint that was packed, so that unpacking gives the same files.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PackedIndex {
    version: u32,
    /// Weights of the container that the checkpoint has as input x output features.
    transposed: BTreeSet<String>,
    shards: Vec<IndexShard>,
    /// What the shard index says beside the sizes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    metadata: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct IndexShard {
    file: String,
    /// The `__metadata__` of its header.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    metadata: Option<BTreeMap<String, String>>,
    /// In the order of their values.
    tensors: Vec<IndexTensor>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct IndexTensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl PackedIndex {
    pub(super) fn of(source: &dyn CheckpointSource, transposed: BTreeSet<String>) -> Self {
        let shard = |layout: ShardLayout| IndexShard {
            file: layout.file_name,
            metadata: layout
                .metadata
                .map(|metadata| metadata.into_iter().collect()),
            tensors: layout
                .tensors
                .into_iter()
                .map(|(name, info)| IndexTensor {
                    name,
                    dtype: info.dtype,
                    shape: info.shape,
                })
                .collect(),
        };
        Self {
            version: VERSION,
            transposed,
            shards: source.shards().into_iter().map(shard).collect(),
            metadata: source.index_metadata().cloned(),
        }
    }
}

pub(super) struct PackedFolder {
    path: PathBuf,
    index: PackedIndex,
    container: Container,
    rest: MappedShard,
    /// All tensors, as the checkpoint had them.
    infos: BTreeMap<String, TensorInfo>,
    /// Those that are layers of the container.
    layers: BTreeSet<String>,
}

impl fmt::Debug for PackedFolder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PackedFolder")
            .field("path", &self.path)
            .field("layers", &self.layers.len())
            .field("tensors", &self.infos.len())
            .finish_non_exhaustive()
    }
}

impl PackedFolder {
    /// Checks headers and index against each other; a layer's masks are checked when it is used.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let index_path = path.join(PACKED_INDEX_FILE);
        let index: PackedIndex = serde_json::from_value(read_json(&index_path)?)
            .map_err(|source| Error::format(&index_path, source.to_string()))?;
        let refuse = |reason: String| Err(Error::format(&index_path, reason));
        if index.version != VERSION {
            return refuse(format!(
                "expected version {VERSION}, found {}",
                index.version
            ));
        }
        let mut files = BTreeSet::new();
        for IndexShard { file, .. } in &index.shards {
            if !(is_plain_file_name(file) && file.ends_with(SHARD_ENDING)) {
                return refuse(format!(
                    "a shard {file:?}: unpacked shards lie in one folder, so only a file name that ends in {SHARD_ENDING} is allowed"
                ));
            }
            if !files.insert(file) {
                return refuse(format!("lists the shard {file:?} twice"));
            }
        }
        // SAFETY: as with every mapped checkpoint, the folder's files must not be changed while it is in use; what this program
        // writes replaces them by others.
        let container = unsafe { Container::open(&path.join(PACKED_FILE)) }?;
        let rest = MappedShard::open(&path.join(DENSE_FILE))?;
        let names = container.names().into_iter();
        let layers: BTreeSet<String> = names.map(|name| name + WEIGHT).collect();
        let mut infos = BTreeMap::new();
        for tensor in index.shards.iter().flat_map(|shard| &shard.tensors) {
            let name = &tensor.name;
            let info = TensorInfo {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
            };
            let found = match name.strip_suffix(WEIGHT).filter(|_| layers.contains(name)) {
                Some(layer) => container
                    .dtype(layer)
                    .is_some_and(|dtype| dtype == info.dtype.to_string().to_lowercase()),
                None => rest.info(name).as_ref() == Some(&info),
            };
            if !found || element_count(&info.shape).is_none() {
                return refuse(format!(
                    "expected {name:?} of {} and shape {:?} in {PACKED_FILE} or {DENSE_FILE}, \
                     which have none like that",
                    info.dtype, info.shape
                ));
            }
            if infos.insert(name.clone(), info).is_some() {
                return refuse(format!("lists {name:?} twice"));
            }
        }
        let all = layers.iter().cloned().chain(rest.names());
        if let Some(surplus) = all.into_iter().find(|name| !infos.contains_key(name)) {
            return refuse(format!("does not list {surplus:?}, which the folder has"));
        }
        Ok(Self {
            path: path.to_path_buf(),
            index,
            container,
            rest,
            infos,
            layers,
        })
    }

    fn packed(&self, name: &str) -> Result<Option<Arc<dyn LinearLayer>>> {
        let (Some(info), Some(layer)) = (self.infos.get(name), name.strip_suffix(WEIGHT)) else {
            return Ok(None);
        };
        if !self.layers.contains(name) {
            return Ok(None);
        }
        let layer = self.container.any_layer(layer)?;
        let mut shape = [layer.rows(), layer.cols()];
        if self.is_transposed(name) {
            shape.reverse();
        }
        if info.shape != shape {
            return Err(Error::format(
                self.path.join(PACKED_FILE),
                format!(
                    "layer of {name:?}: expected shape {:?}, found {shape:?}",
                    info.shape
                ),
            ));
        }
        Ok(Some(layer))
    }

    fn is_transposed(&self, name: &str) -> bool {
        self.index.transposed.contains(name)
    }
}

impl TensorSource for PackedFolder {
    fn names(&self) -> Vec<String> {
        self.infos.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.infos.get(name).cloned()
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::tensor(name, format!("not in {}", self.path.display()));
        let info = self.infos.get(name).ok_or_else(missing)?;
        let bytes = self.stored_bytes(name)?.ok_or_else(missing)?;
        decode(name, info.dtype, &bytes)
    }

    fn layer(&self, name: &str) -> Result<Option<Arc<dyn LinearLayer>>> {
        self.packed(name)
    }
}

impl CheckpointSource for PackedFolder {
    fn files(&self) -> Vec<PathBuf> {
        [CONFIG_FILE, DENSE_FILE, PACKED_FILE, PACKED_INDEX_FILE]
            .into_iter()
            .map(|file| self.path.join(file))
            .collect()
    }

    fn shards(&self) -> Vec<ShardLayout> {
        let layout = |shard: &IndexShard| ShardLayout {
            file_name: shard.file.clone(),
            metadata: shard.metadata.as_ref().map(|metadata| {
                let entries = metadata.iter();
                entries
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect::<HashMap<_, _>>()
            }),
            tensors: shard
                .tensors
                .iter()
                .map(|tensor| {
                    let info = TensorInfo {
                        dtype: tensor.dtype,
                        shape: tensor.shape.clone(),
                    };
                    (tensor.name.clone(), info)
                })
                .collect(),
        };
        self.index.shards.iter().map(layout).collect()
    }

    fn index_metadata(&self) -> Option<&Map<String, Value>> {
        self.index.metadata.as_ref()
    }

    fn stored_bytes(&self, name: &str) -> Result<Option<StoredBytes<'_>>> {
        if let Some(layer) = self.packed(name)? {
            let bytes = layer.unpack_bytes(self.is_transposed(name));
            return Ok(Some(StoredBytes::Owned(bytes)));
        }
        Ok(self.rest.bytes(name).map(StoredBytes::Borrowed))
    }

    fn is_packed(&self) -> bool {
        true
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_folder(&self.path)
    }

    fn write_companions(&self, folder: &Path) -> Result<()> {
        copy_companions(&self.path, folder, 0)
    }
}
