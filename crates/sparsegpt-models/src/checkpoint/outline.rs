//! A config.json as a checkpoint whose tensors have names and shapes, and no values.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::folder::copy_companions;
use super::shard::{ShardLayout, StoredBytes};
use super::{CONFIG_FILE, CheckpointSource, INDEX_FILE, PACKED_INDEX_FILE, SINGLE_FILE, read_json};
use crate::decoder::{Outline, unread};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, TensorInfo, TensorSource};

#[derive(Debug)]
pub(super) struct OutlinedFolder {
    folder: PathBuf,
    file: PathBuf,
    config: Value,
    outline: Outline,
}

/// Whether a path is a JSON file, or a folder that holds a config.json and none of the files that weights stand in.
pub(super) fn has_no_weights(path: &Path) -> bool {
    if path.is_dir() {
        let has = |name: &str| path.join(name).is_file();
        return has(CONFIG_FILE)
            && ![SINGLE_FILE, INDEX_FILE, PACKED_INDEX_FILE]
                .iter()
                .any(|name| has(name));
    }
    path.is_file()
        && path
            .extension()
            .is_some_and(|extension| extension == "json")
}

impl OutlinedFolder {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = match path.is_dir() {
            true => path.join(CONFIG_FILE),
            false => path.to_path_buf(),
        };
        let config = read_json(&file)?;
        if !config.is_object() {
            return Err(Error::format(file, "expected a JSON object"));
        }
        let outline = Outline::new(&config).map_err(|error| error.of_config(file.clone()))?;
        let parent = file.parent().map(Path::to_path_buf);
        Ok(Self {
            folder: parent.unwrap_or_default(),
            file,
            config,
            outline,
        })
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }
}

impl TensorSource for OutlinedFolder {
    fn names(&self) -> Vec<String> {
        self.outline.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.outline.info(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.outline.read_f32(name)
    }
}

impl CheckpointSource for OutlinedFolder {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }

    /// None, so that nothing is made room for that could never be filled.
    fn shards(&self) -> Vec<ShardLayout> {
        Vec::new()
    }

    fn stored_bytes(&self, name: &str) -> Result<Option<StoredBytes<'_>>> {
        Err(unread(name))
    }

    fn is_outline(&self) -> bool {
        true
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_folder(&self.folder)
    }

    fn write_companions(&self, folder: &Path) -> Result<()> {
        copy_companions(&self.folder, folder, 0)
    }
}
