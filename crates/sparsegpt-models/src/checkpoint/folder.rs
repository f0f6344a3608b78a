//! A HuggingFace folder as a source of tensors.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;
use serde_json::{Map, Value};

use super::dtype::decode;
use super::shard::{Shard, ShardLayout, StoredBytes};
use super::{CONFIG_FILE, CheckpointSource, INDEX_FILE, SINGLE_FILE, read_json};
use crate::source::equal_values;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, TensorInfo, TensorSource};

/// Endings of weight files: those of this checkpoint are written anew, those of other frameworks
/// would hold the weights from before.
const WEIGHT_ENDINGS: [&str; 14] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".ot",
    ".tflite",
];

pub(super) struct SafetensorsFolder {
    path: PathBuf,
    shards: Vec<(String, Shard)>,
    /// Tensor to position in `shards`.
    shard_of: BTreeMap<String, usize>,
    /// The shard that was read last, and its position: one is mapped at a time, so that what counts as the process's own of
    /// a model larger than memory stays small.
    mapped: Mutex<Option<(usize, Arc<Mmap>)>>,
    index_metadata: Option<Map<String, Value>>,
}

impl fmt::Debug for SafetensorsFolder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SafetensorsFolder")
            .field("path", &self.path)
            .field("shards", &self.shards.len())
            .field("tensors", &self.shard_of.len())
            .finish()
    }
}

impl SafetensorsFolder {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let index_path = path.join(INDEX_FILE);
        if path.join(SINGLE_FILE).is_file() {
            Self::from_shards(path, vec![SINGLE_FILE.to_owned()], None)
        } else if index_path.is_file() {
            let index = ShardIndex::read(&index_path)?;
            let folder = Self::from_shards(path, index.files(), Some(index.metadata.clone()))?;
            index.check(&index_path, &folder)?;
            Ok(folder)
        } else {
            Err(Error::format(
                path,
                format!("no weights: expected {SINGLE_FILE}, or shards with {INDEX_FILE}"),
            ))
        }
    }

    fn from_shards(
        path: &Path,
        files: Vec<String>,
        index_metadata: Option<Map<String, Value>>,
    ) -> Result<Self> {
        let mut shards = Vec::with_capacity(files.len());
        let mut shard_of = BTreeMap::new();
        for (position, file) in files.into_iter().enumerate() {
            let shard = Shard::open(&path.join(&file))?;
            for name in shard.names() {
                if shard_of.insert(name.clone(), position).is_some() {
                    let reason = format!("stands in {file} and in a shard before it");
                    return Err(Error::tensor(name, reason));
                }
            }
            shards.push((file, shard));
        }
        Ok(Self {
            path: path.to_path_buf(),
            shards,
            shard_of,
            mapped: Mutex::new(None),
            index_metadata,
        })
    }

    fn shard(&self, name: &str) -> Option<&Shard> {
        self.shard_of
            .get(name)
            .map(|&position| &self.shards[position].1)
    }

    fn bytes(&self, name: &str) -> Result<Option<StoredBytes<'static>>> {
        let place = self.shard(name).and_then(|shard| shard.place(name));
        let (Some(&position), Some(place)) = (self.shard_of.get(name), place) else {
            return Ok(None);
        };
        Ok(Some(StoredBytes::Mapped(self.map(position)?, place)))
    }

    fn map(&self, position: usize) -> Result<Arc<Mmap>> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, map)) = &*mapped
            && *at == position
        {
            return Ok(Arc::clone(map));
        }
        // The one before goes first, unless somebody still reads it.
        *mapped = None;
        let map = Arc::new(self.shards[position].1.map()?);
        *mapped = Some((position, Arc::clone(&map)));
        Ok(map)
    }
}

impl TensorSource for SafetensorsFolder {
    fn names(&self) -> Vec<String> {
        self.shard_of.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.shard(name)?.info(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::tensor(name, format!("not in {}", self.path.display()));
        let shard = self.shard(name).ok_or_else(missing)?;
        let info = shard.info(name).ok_or_else(missing)?;
        decode(name, info.dtype, &self.bytes(name)?.ok_or_else(missing)?)
    }

    fn equal(&self, one: &str, other: &str) -> Result<bool> {
        match (self.info(one), self.info(other)) {
            (Some(info), Some(other_info)) if info == other_info => {
                Ok(self.bytes(one)? == self.bytes(other)?)
            }
            _ => equal_values(self, one, other),
        }
    }
}

impl CheckpointSource for SafetensorsFolder {
    fn files(&self) -> Vec<PathBuf> {
        let shards = self.shards.iter().map(|(file, _)| file.as_str());
        [CONFIG_FILE]
            .into_iter()
            .chain(shards)
            .map(|file| self.path.join(file))
            .collect()
    }

    fn shards(&self) -> Vec<ShardLayout> {
        self.shards
            .iter()
            .map(|(file, shard)| shard.layout(file.clone()))
            .collect()
    }

    fn index_metadata(&self) -> Option<&Map<String, Value>> {
        self.index_metadata.as_ref()
    }

    fn stored_bytes(&self, name: &str) -> Result<Option<StoredBytes<'_>>> {
        self.bytes(name)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_folder(&self.path)
    }

    fn write_companions(&self, folder: &Path) -> Result<()> {
        copy_companions(&self.path, folder, 0)
    }
}

/// Folders within folders beyond this depth are refused: a link back up would never end.
const MAX_DEPTH: usize = 16;

/// Copies all files but weights, and folders where there is something to copy in them.
pub(super) fn copy_companions(from: &Path, to: &Path, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::format(
            from,
            format!("folders nested more than {MAX_DEPTH} deep"),
        ));
    }
    let entries = fs::read_dir(from).map_err(|source| Error::io("list", from, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| Error::io("list", from, source))?;
        let (path, name) = (entry.path(), entry.file_name());
        let text = name.to_string_lossy();
        let is_weight = WEIGHT_ENDINGS.iter().any(|ending| text.ends_with(ending));
        // `is_file` follows the links that download caches are made of.
        if path.is_file() && !is_weight {
            copy_contents(&path, &to.join(&name))
                .map_err(|source| Error::io("copy", &path, source))?;
        } else if path.is_dir() && !text.starts_with('.') {
            let inner = to.join(&name);
            fs::create_dir(&inner).map_err(|source| Error::io("create", &inner, source))?;
            copy_companions(&path, &inner, depth + 1)?;
            // Of a folder of other weights nothing is left; one that holds anything stays.
            let _ = fs::remove_dir(&inner);
        }
    }
    Ok(())
}

/// Copies a file without its permissions: a copy of a read-only file is to be changed and flushed.
fn copy_contents(from: &Path, to: &Path) -> std::io::Result<u64> {
    std::io::copy(&mut File::open(from)?, &mut File::create_new(to)?)
}

/// `model.safetensors.index.json`.
struct ShardIndex {
    metadata: Map<String, Value>,
    /// Tensor to file.
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    fn read(path: &Path) -> Result<Self> {
        let Value::Object(mut index) = read_json(path)? else {
            return Err(Error::format(path, "expected a JSON object"));
        };
        let Some(Value::Object(entries)) = index.remove("weight_map") else {
            return Err(Error::format(path, "expected an object `weight_map`"));
        };
        let mut weight_map = BTreeMap::new();
        for (name, file) in entries {
            let Value::String(file) = file else {
                return Err(Error::format(
                    path,
                    format!("weight_map: {name:?}: expected a file name"),
                ));
            };
            if !is_plain_file_name(&file) {
                return Err(Error::format(
                    path,
                    format!(
                        "weight_map: {name:?} points to {file:?}; a shard lies in the folder \
                         itself, so only a file name is allowed"
                    ),
                ));
            }
            weight_map.insert(name, file);
        }
        if weight_map.is_empty() {
            return Err(Error::format(path, "`weight_map` names no tensor"));
        }
        let metadata = match index.remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        Ok(Self {
            metadata,
            weight_map,
        })
    }

    /// Each file once, sorted.
    fn files(&self) -> Vec<String> {
        let files: std::collections::BTreeSet<_> = self.weight_map.values().cloned().collect();
        files.into_iter().collect()
    }

    fn check(&self, path: &Path, folder: &SafetensorsFolder) -> Result<()> {
        for (name, file) in &self.weight_map {
            let found = folder
                .shard_of
                .get(name)
                .map(|&position| &folder.shards[position].0);
            if found != Some(file) {
                let found = match found {
                    Some(other) => format!("it is in {other}"),
                    None => "no shard has it".to_owned(),
                };
                let reason = format!("weight_map: {name:?} should be in {file}, but {found}");
                return Err(Error::format(path, reason));
            }
        }
        Ok(())
    }
}

/// Whether the text names a file of the folder itself, on every operating system.
pub(super) fn is_plain_file_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    let single = matches!(components.next(), Some(Component::Normal(part)) if part == file);
    single && components.next().is_none() && !file.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tempfile::tempdir;

    use super::*;
    use crate::checkpoint::fixtures::{Model, tensor};

    fn sharded(path: &Path) -> SafetensorsFolder {
        let mut model = Model::new(vec![tensor("a", &[2, 2], &[1.0; 4])]);
        model.shards.push(vec![tensor("b", &[3], &[2.0; 3])]);
        model.write(path);
        SafetensorsFolder::open(path).unwrap()
    }

    #[test]
    fn one_shard_is_mapped_at_a_time() {
        let root = tempdir().unwrap();
        let folder = sharded(root.path());
        let mapped = || {
            let mapped = folder.mapped.lock().unwrap();
            mapped
                .as_ref()
                .map(|(at, map)| (*at, Arc::strong_count(map)))
        };
        assert_eq!(mapped(), None);
        assert_eq!(folder.read_f32("a").unwrap(), [1.0; 4]);
        assert_eq!(mapped(), Some((0, 1)));
        // What is still held stays.
        let held = folder.stored_bytes("a").unwrap().unwrap();
        assert_eq!(mapped(), Some((0, 2)));
        assert_eq!(folder.read_f32("b").unwrap(), [2.0; 3]);
        assert_eq!(mapped(), Some((1, 1)));
        assert_eq!(*held, [1.0_f32.to_le_bytes(); 4].concat());
        assert!(folder.equal("a", "a").unwrap());
        assert!(!folder.equal("a", "b").unwrap());
        assert!(folder.stored_bytes("c").unwrap().is_none());
    }

    #[test]
    fn a_shard_that_became_shorter_is_an_error() {
        let root = tempdir().unwrap();
        let folder = sharded(root.path());
        let path = root.path().join(&folder.shards[1].0);
        let length = fs::metadata(&path).unwrap().len();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(length - 4).unwrap();
        let error = folder.read_f32("b").unwrap_err().to_string();
        assert!(error.contains("changed"), "{error}");
    }
}
