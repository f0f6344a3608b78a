//! Models on disk: opened from a HuggingFace folder or a GGUF file, written back as a folder.
//!
//! A [`Checkpoint`] is read one tensor at a time through a memory map. [`Checkpoint::create_output`]
//! starts a copy in which some tensors are replaced as they become known; nothing appears under
//! the final name before the copy is complete and has been opened and checked.

mod dtype;
#[cfg(test)]
pub(crate) mod fixtures;
mod folder;
mod lora;
mod outline;
mod overlay;
mod packed;
mod packed_folder;
mod packing;
mod quantized_folder;
mod set;
mod shard;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use sparsegpt_runtime::QuantizedLinear;

use crate::gguf::{self, GgufModel};
use crate::resume::digest_of_files;
use crate::text::BYTE_ORDER_MARK;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, TensorSource};
use folder::SafetensorsFolder;
use packed::Packed;
use packed_folder::PackedFolder;
use quantized_folder::{QUANTIZATION_CONFIG, QuantizedFolder};

pub use crate::gguf::{GgufType, WrittenGguf};
pub use dtype::parse_dtype;
pub use lora::{LoraLayer, WrittenLora, check_lora_output, write_lora};
pub use overlay::Overlay;
pub use packed::{LeastZero, PackedFormat, PackedScheme, PackedShape, round_to_scales};
pub use packing::{PackedCheckpoint, PackedLayer, Packing};
pub use safetensors::Dtype;
pub use set::CheckpointSet;
pub use verify::{CastZeros, ExpectedLayer};
pub use writer::{CheckpointWriter, OutputOptions, ProvenCheckpoint, WrittenCheckpoint};

pub(crate) use dtype::{decode, element_count, encode, is_float};
pub(crate) use shard::{MappedShard, ShardLayout, StoredBytes, map_file};
pub(crate) use writer::write_json;

pub(crate) const CONFIG_FILE: &str = "config.json";
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// What makes a folder a packed one. The ending is one of weight files, so that no copy takes it along.
const PACKED_INDEX_FILE: &str = "packed.safetensors.index.json";
/// The linear layers of a packed folder, and its other tensors.
const PACKED_FILE: &str = "packed.safetensors";
const DENSE_FILE: &str = "dense.safetensors";

/// A JSON file of a model folder larger than this is refused (the largest known tokenizers are
/// below 40 MB).
const MAX_JSON_BYTES: u64 = 256 << 20;

/// Where pruned weights go as soon as they are known: into a checkpoint being written
/// ([`CheckpointWriter`]), or into memory ([`Overlay`]).
pub trait WeightSink: Debug + Send {
    /// Replaces the tensor `name` by `values`, row-major in the shape it has in the source.
    ///
    /// # Errors
    /// If the source has no such float tensor, the number of values differs, a value is not
    /// finite or overflows the stored type, or the write fails.
    fn store(&mut self, name: &str, values: &[f32]) -> Result<StoredTensor>;

    /// The values as they will be read back: rounded to the type that `name` is stored in. What is computed
    /// with them is computed with what the result will hold. By default they are, as f32, unchanged.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    fn rounded(&self, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
        let _ = name;
        Ok(values)
    }
}

/// What became of a tensor that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Zeros after the cast to the stored type: at least as many as were handed over.
    pub zeros: u64,
}

/// What a checkpoint's copy is made from.
pub(crate) trait CheckpointSource: TensorSource {
    /// The files that make up the model: its configuration and its weights.
    fn files(&self) -> Vec<PathBuf>;

    /// The files that a copy has, with the tensors and types of this source.
    fn shards(&self) -> Vec<ShardLayout>;

    /// What the shard index says beside the sizes, where there is one.
    fn index_metadata(&self) -> Option<&Map<String, Value>> {
        None
    }

    /// A tensor's bytes where they can be copied as they are: little-endian, of the type that
    /// `info` tells.
    ///
    /// # Errors
    /// If they have to be unpacked, and are damaged.
    fn stored_bytes(&self, name: &str) -> Result<Option<StoredBytes<'_>>>;

    /// Whether linear layers are packed for the sparse runtime.
    fn is_packed(&self) -> bool {
        false
    }

    /// A linear layer whose codes the source has, for the sparse runtime and stored sparse, where that has its kind.
    ///
    /// # Errors
    /// If it is damaged.
    fn quantized_layer(&self, name: &str) -> Result<Option<QuantizedLinear>> {
        let _ = name;
        Ok(None)
    }

    /// Whether there are no values, only what config.json calls for.
    fn is_outline(&self) -> bool {
        false
    }

    fn tokenizer(&self) -> Result<Tokenizer>;

    /// Writes everything but the weights: configuration, tokenizer, and what else there is.
    fn write_companions(&self, folder: &Path) -> Result<()>;
}

/// An opened model: a HuggingFace folder (config.json with model.safetensors, or with shards and
/// model.safetensors.index.json), a [packed](Checkpoint::pack) folder, or a GGUF file. A folder with layers in GPTQ's layout or
/// compressed-tensors' `pack-quantized` is read as the float32 checkpoint that it stands for, w = (code - zero) scale.
///
/// ```no_run
/// use std::path::Path;
/// use sparsegpt_models::checkpoint::Checkpoint;
///
/// let checkpoint = Checkpoint::open(Path::new("models/tiny-llama"))?;
/// let tensors = checkpoint.tensors();
/// for name in tensors.names() {
///     println!("{name}: {} values", tensors.read_f32(&name)?.len());
/// }
/// # Ok::<(), sparsegpt_models::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    source: Arc<dyn CheckpointSource>,
}

impl Checkpoint {
    /// Opens a model and checks its headers and its index; values are read later.
    ///
    /// # Errors
    /// If there is no model at `path`, a file is missing, truncated or contradicts itself.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        if !metadata.is_dir() {
            let model = GgufModel::open(path)?;
            let config = model.config().clone();
            return Ok(Self {
                path: path.to_path_buf(),
                config,
                source: Arc::new(model),
            });
        }
        let config_path = path.join(CONFIG_FILE);
        if !config_path.is_file() {
            return Err(Error::format(
                path,
                format!(
                    "no {CONFIG_FILE}: expected a HuggingFace model folder \
                     ({CONFIG_FILE} and {SINGLE_FILE}) or a .gguf file"
                ),
            ));
        }
        let mut config = read_json(&config_path)?;
        let Some(object) = config.as_object() else {
            return Err(Error::format(config_path, "expected a JSON object"));
        };
        let quantized = object
            .get(QUANTIZATION_CONFIG)
            .is_some_and(|of| !of.is_null());
        let source: Arc<dyn CheckpointSource> = if path.join(PACKED_INDEX_FILE).is_file() {
            Arc::new(PackedFolder::open(path)?)
        } else if quantized {
            let folder = QuantizedFolder::open(path, config)?;
            config = folder.config().clone();
            Arc::new(folder)
        } else {
            Arc::new(SafetensorsFolder::open(path)?)
        };
        Ok(Self {
            path: path.to_path_buf(),
            config,
            source,
        })
    }

    /// A HuggingFace folder with the tensors that it stores, quantized layers in their parts.
    pub(crate) fn as_stored(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            config: read_json(&path.join(CONFIG_FILE))?,
            source: Arc::new(SafetensorsFolder::open(path)?),
        })
    }

    /// What can be told without weights: the names, shapes and type of the tensors that a config.json calls for. `path`
    /// is that file or its folder. Whatever would read a tensor, or copy one, fails.
    ///
    /// # Errors
    /// If there is no config.json, or it is of no supported model ([`Outline::new`](crate::decoder::Outline::new)).
    pub fn outline(path: &Path) -> Result<Self> {
        let source = outline::OutlinedFolder::open(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            config: source.config().clone(),
            source: Arc::new(source),
        })
    }

    /// [`open`](Self::open), or the [outline](Self::outline) of a config.json that is given itself, or that lies in a
    /// folder without weights.
    ///
    /// # Errors
    /// As those.
    pub fn open_or_outline(path: &Path) -> Result<Self> {
        match outline::has_no_weights(path) {
            true => Self::outline(path),
            false => Self::open(path),
        }
    }

    /// Whether this is an [outline](Self::outline).
    #[must_use]
    pub fn is_outline(&self) -> bool {
        self.source.is_outline()
    }

    /// Bytes of the files that hold the weights; for an [outline](Self::outline), of the weights that it calls for.
    ///
    /// # Errors
    /// If a file cannot be looked at.
    pub fn weight_bytes(&self) -> Result<u64> {
        let config = self.config_file();
        if self.is_outline() {
            let names = self.source.names().into_iter();
            return Ok(names
                .filter_map(|name| self.source.info(&name))
                .map(|info| {
                    let elements: u64 = info.shape.iter().map(|&size| size as u64).product();
                    elements * info.dtype.bitsize() as u64 / 8
                })
                .sum());
        }
        let files = self.source.files().into_iter();
        files
            .filter(|file| !self.path.is_dir() || *file != config)
            .map(|file| match fs::metadata(&file) {
                Ok(metadata) => Ok(metadata.len()),
                Err(source) => Err(Error::io("read", &file, source)),
            })
            .sum()
    }

    /// The folder or file it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// config.json; for a GGUF file one made from its metadata, in HuggingFace's terms.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Where that stands.
    pub(crate) fn config_file(&self) -> PathBuf {
        if self.path.is_dir() {
            self.path.join(CONFIG_FILE)
        } else {
            self.path.clone()
        }
    }

    /// The tensors under their HuggingFace names.
    #[must_use]
    pub fn tensors(&self) -> Arc<dyn TensorSource> {
        Arc::clone(&self.source) as Arc<dyn TensorSource>
    }

    /// Identifies configuration and weights: SHA-256 of the names, lengths and contents of their files, hexadecimal. Reads
    /// them as a whole; `go_on` is asked now and then, and returns `false` to stop.
    ///
    /// # Errors
    /// If a file cannot be read, and [`Error::Stopped`].
    pub fn fingerprint(&self, go_on: &dyn Fn() -> bool) -> Result<String> {
        let files = self.source.files();
        digest_of_files(files.iter().map(PathBuf::as_path), go_on)
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        self.source.tokenizer()
    }

    /// Starts a copy of this checkpoint, with the same files and types, to be named `out` once it
    /// is finished. Tensors that are never stored are copied from this one.
    ///
    /// # Errors
    /// If `out` is not empty and `options.force` is not set, if it contains this checkpoint, lies
    /// in it or is it, if the dtype is none of f32, f16, bf16, or if the disk is full.
    pub fn create_output(&self, out: &Path, options: &OutputOptions) -> Result<CheckpointWriter> {
        CheckpointWriter::create(self, out, options, None)
    }

    /// Whether an output could be named `out` now; what [`create_output`](Self::create_output) checks first.
    ///
    /// # Errors
    /// If `out` is refused as there.
    pub fn check_output(&self, out: &Path, force: bool) -> Result<()> {
        writer::OutputFolder::check(out, self.path(), force).map(drop)
    }

    /// Starts a copy in which some layers are quantized and packed: their weights are not stored, but
    /// [packed](CheckpointWriter::store_packed).
    ///
    /// # Errors
    /// As [`create_output`](Self::create_output) and [`PackedScheme::check`].
    pub fn create_packed_output(
        &self,
        out: &Path,
        options: &OutputOptions,
        scheme: PackedScheme,
        layers: Vec<PackedShape>,
    ) -> Result<CheckpointWriter> {
        scheme.check(&layers)?;
        let layers = layers.into_iter().map(|layer| (layer.name.clone(), layer));
        let packed = Packed {
            scheme,
            layers: layers.collect(),
        };
        CheckpointWriter::create(self, out, options, Some(packed))
    }

    /// Writes the model as a GGUF file for llama.cpp and its kin, which appears under its name when it is whole. Matrices get
    /// the type `stored`, norms and biases stay f32. `go_on` is asked before each tensor, and returns `false` to stop.
    ///
    /// # Errors
    /// If GGUF has no name for the family or the tokenizer, a value does not fit the type, `go_on` said so, or the write
    /// fails.
    pub fn export_gguf(
        &self,
        path: &Path,
        stored: GgufType,
        go_on: &dyn Fn() -> bool,
    ) -> Result<WrittenGguf> {
        gguf::write(self, path, stored, go_on)
    }

    /// Whether the linear layers are packed for the sparse runtime, as [`pack`](Self::pack) makes them.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.source.is_packed()
    }

    /// Starts a packed copy, to be named `out` once it is finished: every matrix that the model multiplies by is stored
    /// as the sparse runtime uses it, whichever of sparse and dense is faster, and all other tensors as they are.
    /// A packed model is opened as any other, and runs on the runtime. A [copy](Self::create_output) of it
    /// without changes is the checkpoint that was packed, bit for bit.
    ///
    /// # Errors
    /// If this is no model that the decoder runs, or is packed already, or `out` is refused as in
    /// [`create_output`](Self::create_output).
    pub fn pack(&self, out: &Path, force: bool) -> Result<Packing<'_>> {
        Packing::begin(self, out, force)
    }

    /// Starts a folder of several copies of this checkpoint, to be named `out` once they are all finished.
    ///
    /// # Errors
    /// As [`create_output`](Self::create_output).
    pub fn create_outputs(&self, out: &Path, options: &OutputOptions) -> Result<CheckpointSet<'_>> {
        CheckpointSet::create(self, out, options)
    }
}

/// Reads a JSON file of a model folder.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = read_small_file(path)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::format(path, source.to_string()))
}

/// Without a byte order mark, which no JSON parser takes.
pub(crate) fn read_small_file(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|source| Error::io("read", path, source))?;
    if metadata.len() > MAX_JSON_BYTES {
        return Err(Error::format(
            path,
            format!(
                "{} bytes, expected at most {MAX_JSON_BYTES}",
                metadata.len()
            ),
        ));
    }
    let mut bytes = fs::read(path).map_err(|source| Error::io("read", path, source))?;
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}
