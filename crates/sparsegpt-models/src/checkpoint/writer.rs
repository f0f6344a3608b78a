//! Writing a copy of a checkpoint in which some tensors are replaced.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use sparsegpt::quant::QuantizedLayer;

use super::dtype::{byte_len, config_name, element_count, encode, is_float, round_through};
use super::overlay::check_length;
use super::packed::Packed;
use super::shard::PlannedShard;
use super::verify::{CastZeros, ExpectedLayer, verify};
use super::{
    CONFIG_FILE, Checkpoint, CheckpointSource, Dtype, INDEX_FILE, SINGLE_FILE, StoredTensor,
    WeightSink, read_json,
};
use crate::decoder::{TransformerConfig, check_forward};
use crate::resume::StateFolder;
use crate::staging::{Leftovers, MadeParents, Staging, canonical, parent_of, rename, sync_names};
use crate::{Error, Result, TensorInfo};

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputOptions {
    /// The type of all float tensors: f32, f16 or bf16. `None` keeps the source's types (f32 for
    /// a GGUF file, whose quantized types a folder cannot hold).
    pub dtype: Option<Dtype>,
    /// Replace a folder that is not empty. The old one stays until the new one has been checked.
    pub force: bool,
}

/// A finished checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WrittenCheckpoint {
    /// The folder.
    pub path: PathBuf,
    /// Tensors in it.
    pub tensors: usize,
    /// Bytes of their values.
    pub bytes: u64,
    /// Weight files.
    pub files: usize,
    /// Tensors in which the cast to the stored type made zeros of values too small for it, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cast_zeros: Vec<CastZeros>,
}

/// A checkpoint that is complete and has been checked, still in its hidden folder. Dropped, it leaves nothing behind.
#[derive(Debug)]
#[must_use]
pub struct ProvenCheckpoint {
    summary: WrittenCheckpoint,
    staging: Staging,
    /// Dropped last: parents made for it can go only after the staging folder.
    out: OutputFolder,
}

impl ProvenCheckpoint {
    /// What was written, with the path it will have.
    #[must_use]
    pub fn summary(&self) -> &WrittenCheckpoint {
        &self.summary
    }

    /// The hidden folder. Files put there now, as a report of what was found, appear with the others.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging.path
    }

    /// Opens the checkpoint once more and runs a few tokens through it; see [`check_forward`].
    ///
    /// # Errors
    /// As [`check_forward`], and if the checkpoint cannot be opened.
    pub fn check_forward(&self) -> Result<()> {
        let written = Checkpoint::open(&self.staging.path)?;
        check_forward(written.config(), &written.tensors())
    }

    /// Gives the checkpoint its name.
    ///
    /// # Errors
    /// If a file cannot be flushed to the disk, or the folder not be renamed. The place of the output is then as it
    /// was before.
    pub fn put_in_place(mut self) -> Result<WrittenCheckpoint> {
        sync_folder(&self.staging.path)?;
        self.out.replace_by(&self.staging.path)?;
        self.staging.renamed = true;
        Ok(self.summary)
    }
}

/// Where a tensor stands in the copy, and whether it is there yet.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) info: TensorInfo,
    shard: usize,
    position: u64,
    pub(super) written: Written,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Missing,
    /// Byte for byte from the source.
    Copied,
    /// A part of a packed layer, proven with the whole of it.
    Packed,
    /// Stored or cast values.
    Values {
        zeros: u64,
        /// Of those, zeros that the cast made.
        cast_zeros: u64,
    },
}

/// A checkpoint being written, in a hidden folder beside its final place. Each tensor goes to its
/// place in its file as soon as it is stored. Dropped before [`finish`](Self::finish), it leaves
/// nothing behind.
pub struct CheckpointWriter {
    staging: Staging,
    out: OutputFolder,
    leftovers: Leftovers,
    source: Arc<dyn CheckpointSource>,
    dtype: Option<Dtype>,
    shards: Vec<OpenShard>,
    slots: HashMap<String, Slot>,
    packed: Option<Packed>,
}

struct OpenShard {
    path: PathBuf,
    file_name: String,
    file: File,
    data_len: u64,
}

impl fmt::Debug for CheckpointWriter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CheckpointWriter")
            .field("out", &self.out.path)
            .field("staging", &self.staging.path)
            .field("tensors", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl CheckpointWriter {
    pub(super) fn create(
        checkpoint: &Checkpoint,
        out: &Path,
        options: &OutputOptions,
        packed: Option<Packed>,
    ) -> Result<Self> {
        if let Some(dtype) = options.dtype
            && config_name(dtype).is_none()
        {
            return Err(Error::setting("dtype", "f32, f16 or bf16", dtype));
        }
        let source = Arc::clone(&checkpoint.source);
        let out = OutputFolder::check(out, checkpoint.path(), options.force)?;
        let leftovers = Leftovers::clear(&out.path);
        let staging = Staging::beside(&out.path)?;
        source.write_companions(&staging.path)?;

        let mut shards = Vec::new();
        let mut slots = HashMap::new();
        for mut layout in source.shards() {
            let path = staging.path.join(&layout.file_name);
            for (_, info) in &mut layout.tensors {
                let target = options.dtype.filter(|_| is_float(info.dtype));
                info.dtype = target.unwrap_or(info.dtype);
            }
            if let Some(packed) = &packed {
                layout = packed.layout(layout);
            }
            let plan = layout.plan(&path)?;
            let file = preallocate(&path, &plan)?;
            for (name, info, position) in plan.places {
                let slot = Slot {
                    info,
                    shard: shards.len(),
                    position,
                    written: Written::Missing,
                };
                slots.insert(name, slot);
            }
            let data_len = plan.data_len;
            shards.push(OpenShard {
                path,
                file_name: layout.file_name,
                file,
                data_len,
            });
        }
        Ok(Self {
            staging,
            out,
            leftovers,
            source,
            dtype: options.dtype,
            shards,
            slots,
            packed,
        })
    }

    /// The hidden folder that is removed if the writer is dropped; for a signal handler that ends
    /// the process without dropping it.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging.path
    }

    /// The final place.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.out.path
    }

    /// What runs that were killed had left beside the output.
    #[must_use]
    pub fn leftovers(&self) -> &Leftovers {
        &self.leftovers
    }

    /// The type that a tensor is stored in; `None` where there is none of that name.
    #[must_use]
    pub fn stored_type(&self, name: &str) -> Option<Dtype> {
        Some(self.slots.get(name)?.info.dtype)
    }

    /// Copies all tensors that were not stored, opens and checks the result, and gives it its
    /// name. `expected` is what was reported of the pruned layers.
    ///
    /// # Errors
    /// If a write fails, a copied value overflows the asked-for type, or the written checkpoint
    /// is not as expected. The place of the output is then as it was before.
    pub fn finish(self, expected: &[ExpectedLayer]) -> Result<WrittenCheckpoint> {
        self.prove(expected)?.put_in_place()
    }

    /// All but the last step of [`finish`](Self::finish): the checkpoint is complete and checked, and not yet in its
    /// place.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn prove(mut self, expected: &[ExpectedLayer]) -> Result<ProvenCheckpoint> {
        self.copy_missing()?;
        self.write_index()?;
        self.write_dtype()?;
        self.write_quantization_config()?;
        // `out` stands first to be dropped last: parents made for it can go only after the staging folder.
        let Self {
            out,
            staging,
            source,
            shards,
            slots,
            packed,
            ..
        } = self;
        let bytes = shards.iter().map(|shard| shard.data_len).sum();
        let files = shards.len();
        // Closed before they are mapped and renamed.
        drop(shards);
        let cast_zeros = verify(
            &staging.path,
            source.as_ref(),
            &slots,
            packed.as_ref(),
            expected,
        )?;
        Ok(ProvenCheckpoint {
            summary: WrittenCheckpoint {
                path: out.path.clone(),
                tensors: slots.len(),
                bytes,
                files,
                cast_zeros,
            },
            staging,
            out,
        })
    }

    fn slot(&self, name: &str) -> Result<&Slot> {
        self.slots
            .get(name)
            .ok_or_else(|| Error::tensor(name, "the source has no tensor of that name"))
    }

    fn write(&mut self, name: &str, bytes: &[u8], written: Written) -> Result<()> {
        let Some(slot) = self.slots.get_mut(name) else {
            return Ok(());
        };
        let shard = &mut self.shards[slot.shard];
        shard
            .file
            .seek(SeekFrom::Start(slot.position))
            .and_then(|_| shard.file.write_all(bytes))
            .map_err(|source| {
                Error::io(format!("write tensor {name:?} to"), &shard.path, source)
            })?;
        slot.written = written;
        Ok(())
    }

    fn write_values(&mut self, name: &str, values: &[f32]) -> Result<StoredTensor> {
        let slot = self.slot(name)?;
        check_length(name, &slot.info, values)?;
        let encoded = encode(name, slot.info.dtype, values)?;
        let zeros = encoded.zeros;
        let written = Written::Values {
            zeros,
            cast_zeros: encoded.cast_zeros,
        };
        self.write(name, &encoded.bytes, written)?;
        Ok(StoredTensor { zeros })
    }

    /// Packs a layer that this copy was started for, by its name without `.weight`.
    ///
    /// # Errors
    /// If it is none of those, its grid is not of the checkpoint's scheme, or the write fails.
    pub fn store_packed(&mut self, name: &str, layer: &QuantizedLayer) -> Result<()> {
        let Some(packed) = &self.packed else {
            return Err(Error::tensor(name, "no layer of this checkpoint is packed"));
        };
        let scale_type = self.scale_type(name).unwrap_or(Dtype::F32);
        for (part, bytes) in packed.encode(name, layer, scale_type)? {
            let expected = self.slot(&part)?.info.clone();
            let len = element_count(&expected.shape).and_then(|n| byte_len(expected.dtype, n));
            if len != Some(bytes.len()) {
                let found = bytes.len();
                return Err(Error::tensor(
                    part,
                    format!("{found} bytes for {expected:?}"),
                ));
            }
            self.write(&part, &bytes, Written::Packed)?;
        }
        Ok(())
    }

    /// The type in which a packed layer's scales are stored, by the layer's name without `.weight`; `None` for one that is not
    /// packed.
    #[must_use]
    pub fn scale_type(&self, layer: &str) -> Option<Dtype> {
        let scales = self.packed.as_ref()?.scheme.format.scales();
        self.stored_type(&format!("{layer}.{scales}"))
    }

    /// Says in config.json how packed layers are to be read.
    fn write_quantization_config(&self) -> Result<()> {
        let Some(packed) = &self.packed else {
            return Ok(());
        };
        let mut dense: Vec<&str> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.info.shape.len() == 2 && is_float(slot.info.dtype))
            .filter_map(|(name, _)| name.strip_suffix(".weight"))
            .collect();
        dense.sort_unstable();
        let path = self.staging.path.join(CONFIG_FILE);
        let config = read_json(&path)?;
        let head = TransformerConfig::from_json(&config).map_or("lm_head", |model| model.head());
        let Value::Object(mut config) = config else {
            return Ok(());
        };
        let quantization = packed.quantization_config(&dense, head);
        config.insert("quantization_config".to_owned(), quantization);
        write_json(&path, &Value::Object(config))
    }

    fn copy_missing(&mut self) -> Result<()> {
        let source = Arc::clone(&self.source);
        let mut missing: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.written == Written::Missing)
            .map(|(name, slot)| (slot.shard, slot.position, name.clone(), slot.info.dtype))
            .collect();
        missing.sort_unstable_by_key(|(shard, position, ..)| (*shard, *position));
        for (_, _, name, dtype) in missing {
            let unchanged = source.info(&name).is_some_and(|info| info.dtype == dtype);
            let bytes = match unchanged {
                true => source.stored_bytes(&name)?,
                false => None,
            };
            match bytes {
                Some(bytes) => self.write(&name, &bytes, Written::Copied)?,
                None => {
                    self.write_values(&name, &source.read_f32(&name)?)?;
                }
            }
        }
        Ok(())
    }

    fn write_index(&self) -> Result<()> {
        let single = self.shards.len() == 1 && self.shards[0].file_name == SINGLE_FILE;
        if single {
            return Ok(());
        }
        let mut metadata = self.source.index_metadata().cloned().unwrap_or_default();
        let total: u64 = self.shards.iter().map(|shard| shard.data_len).sum();
        metadata.insert("total_size".to_owned(), total.into());
        let weight_map: BTreeMap<&str, &str> = self
            .slots
            .iter()
            .map(|(name, slot)| (name.as_str(), self.shards[slot.shard].file_name.as_str()))
            .collect();
        let index = serde_json::json!({ "metadata": metadata, "weight_map": weight_map });
        write_json(&self.staging.path.join(INDEX_FILE), &index)
    }

    /// Keeps config.json true where the type was changed.
    fn write_dtype(&self) -> Result<()> {
        let Some(name) = self.dtype.and_then(config_name) else {
            return Ok(());
        };
        let path = self.staging.path.join(CONFIG_FILE);
        let Value::Object(mut config) = read_json(&path)? else {
            return Ok(());
        };
        if set_dtype(&mut config, name) {
            write_json(&path, &Value::Object(config))?;
        }
        Ok(())
    }
}

/// Sets `dtype` (transformers 5) and `torch_dtype` (before), whichever is there; says whether
/// anything changed.
fn set_dtype(config: &mut Map<String, Value>, name: &str) -> bool {
    let mut keys: Vec<_> = ["dtype", "torch_dtype"]
        .into_iter()
        .filter(|&key| config.contains_key(key))
        .collect();
    if keys.is_empty() {
        keys.push("torch_dtype");
    }
    let mut changed = false;
    for key in keys {
        let old = config.insert(key.to_owned(), name.into());
        changed |= old.as_ref().and_then(Value::as_str) != Some(name);
    }
    changed
}

impl WeightSink for CheckpointWriter {
    fn store(&mut self, name: &str, values: &[f32]) -> Result<StoredTensor> {
        self.write_values(name, values)
    }

    fn rounded(&self, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
        round_through(name, self.slot(name)?.info.dtype, values)
    }
}

pub(super) fn preallocate(path: &Path, plan: &PlannedShard) -> Result<File> {
    let mut file = File::create_new(path).map_err(|source| Error::io("create", path, source))?;
    file.set_len(plan.file_len)
        .and_then(|()| file.write_all(&plan.prefix))
        .map_err(|source| Error::io("write", path, source))?;
    Ok(file)
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|source| Error::format(path, source.to_string()))?;
    fs::write(path, text + "\n").map_err(|source| Error::io("write", path, source))
}

/// Waits until the files of a folder, and their names, are on the disk.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|source| Error::io("list", folder, source))?;
    for entry in entries {
        let path = entry
            .map_err(|source| Error::io("list", folder, source))?
            .path();
        if path.is_dir() {
            sync_folder(&path)?;
            continue;
        }
        // Opened for writing, as Windows asks for it.
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|source| Error::io("flush", path, source))?;
    }
    sync_names(folder)
}

/// The final place, checked to be free or replaceable.
#[derive(Debug)]
pub(super) struct OutputFolder {
    pub(super) path: PathBuf,
    /// Whether what stands there may be replaced.
    force: bool,
    _parents: MadeParents,
}

impl OutputFolder {
    pub(super) fn check(out: &Path, source: &Path, force: bool) -> Result<Self> {
        let refuse = |reason: String| Err(Error::output_refused(out, reason));
        let Some(name) = out.file_name() else {
            return refuse("expected the name of a folder".to_owned());
        };
        let parent = parent_of(out);
        let made = MadeParents::make(parent)?;
        let parent = canonical(parent)?;
        let path = parent.join(name);
        let source = canonical(source)?;
        // A link is followed here, so that one to the source does not hide it.
        let target = if path.exists() {
            canonical(&path)?
        } else {
            path.clone()
        };
        if target.starts_with(&source) || source.starts_with(&target) {
            return refuse(format!(
                "the output may not be, contain, or lie in the source {}; choose another folder",
                source.display()
            ));
        }
        let current = std::env::current_dir().and_then(fs::canonicalize);
        if current.is_ok_and(|current| current.starts_with(&target)) {
            return refuse("the output may not contain the working directory".to_owned());
        }
        if path.exists() && !target.is_dir() {
            return refuse("exists and is no folder; choose another name".to_owned());
        }
        if path.is_symlink() && !path.exists() {
            return refuse("is a link to nothing; remove it or choose another name".to_owned());
        }
        if is_mount_point(&target) {
            return refuse(
                "is a mount point, which no finished folder can take the place of; choose a folder in it".to_owned(),
            );
        }
        if is_taken(&target)? && !force {
            let mut reason =
                "exists and is not empty; choose another folder, or allow replacing it (--force)"
                    .to_owned();
            let kept = StateFolder::place(&target);
            if kept.is_dir() {
                reason += &format!(
                    "; {} is what a run that was killed has kept, and can be removed if this is its result",
                    kept.display()
                );
            }
            return refuse(reason);
        }
        Ok(Self {
            path: target,
            force,
            _parents: made,
        })
    }

    /// Puts the proven folder in place; what was there is removed only after that. What others have put there since the
    /// run began is no more replaced than what stood there before.
    pub(super) fn replace_by(&self, staging: &Path) -> Result<()> {
        if is_taken(&self.path)? && !self.force {
            return Err(Error::output_refused(
                &self.path,
                "was free when this run began and is not empty now; choose another folder, or allow replacing it (--force)",
            ));
        }
        let aside = if self.path.exists() {
            let aside = Staging::beside(&self.path)?;
            aside.set_aside(&self.path)?;
            Some(aside)
        } else {
            None
        };
        let result = rename(staging, &self.path);
        match (&result, aside) {
            (Ok(()), Some(aside)) => aside.replaced(),
            (Err(_), Some(aside)) => aside.put_back(&self.path),
            (_, None) => {}
        }
        result?;
        self.path.parent().map_or(Ok(()), sync_names)
    }
}

/// Whether a folder lies in another file system than its parent: a folder of either cannot be renamed to it.
#[cfg(unix)]
fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    match (device(folder), device(parent_of(folder))) {
        (Ok(own), Ok(outer)) => own != outer,
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_mount_point(_folder: &Path) -> bool {
    false
}

/// Whether a folder is there and not empty.
fn is_taken(folder: &Path) -> Result<bool> {
    if !folder.exists() {
        return Ok(false);
    }
    let mut entries = fs::read_dir(folder).map_err(|source| Error::io("list", folder, source))?;
    Ok(entries.next().is_some())
}
