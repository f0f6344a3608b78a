//! Writing a packed copy of a checkpoint.

use std::collections::BTreeSet;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use serde::Serialize;
use sparsegpt_runtime::{
    ContainerWriter, LinearLayer, QuantizedLinear, SparseLinear, Value, Width,
};

use super::dtype::encode;
use super::packed_folder::{PackedIndex, WEIGHT};
use super::shard::{ShardLayout, StoredBytes};
use super::writer::{OutputFolder, preallocate, sync_folder};
use super::{
    Checkpoint, CheckpointSource, DENSE_FILE, Dtype, PACKED_FILE, PACKED_INDEX_FILE, write_json,
};
use crate::decoder::{Multiplied, Stored, TransformerConfig, linear, multiplied};
use crate::staging::{Leftovers, Staging};
use crate::{Error, Result, TensorInfo};

/// A finished packed model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PackedCheckpoint {
    /// The folder.
    pub path: PathBuf,
    /// The matrices that it multiplies by, in the order of the model.
    pub layers: Vec<PackedLayer>,
    /// Bytes of all tensors as they were, of quantized layers those of their weights in f32.
    pub dense_bytes: u64,
    /// Bytes of the weight files.
    pub bytes: u64,
}

/// What became of one matrix.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PackedLayer {
    /// Its name in the checkpoint.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// What its values are stored as, `int4` and `int8` for codes of a grid.
    pub dtype: &'static str,
    /// Whether it is stored sparse, and why.
    pub storage: String,
    /// The same for programs.
    pub sparse: bool,
    /// Weights that sparse storage keeps, all but +0, over weights.
    pub density: f64,
    /// Weights that are -0, which is kept to give them back bit for bit.
    pub negative_zeros: usize,
    /// Bytes as it was.
    pub dense_bytes: u64,
    /// Bytes as it is packed.
    pub bytes: u64,
}

/// A packed model being written, in a hidden folder beside its final place. Dropped before
/// [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct Packing<'a> {
    checkpoint: &'a Checkpoint,
    /// Those of a type that the runtime multiplies by.
    layers: Vec<(String, Multiplied)>,
    staging: Staging,
    leftovers: Leftovers,
    /// Dropped last: parents made for it can go only after the staging folder.
    out: OutputFolder,
}

impl<'a> Packing<'a> {
    pub(super) fn begin(checkpoint: &'a Checkpoint, out: &Path, force: bool) -> Result<Self> {
        if checkpoint.is_packed() {
            return Err(Error::format(checkpoint.path(), "is packed already"));
        }
        let source = checkpoint.tensors();
        let mut layers = multiplied(TransformerConfig::of(checkpoint)?, Arc::clone(&source))?;
        layers.retain(|(name, _)| {
            let dtype = source.info(name).map(|info| info.dtype);
            name.ends_with(WEIGHT) && matches!(dtype, Some(Dtype::F32 | Dtype::BF16 | Dtype::F16))
        });
        let out = OutputFolder::check(out, checkpoint.path(), force)?;
        let leftovers = Leftovers::clear(&out.path);
        let staging = Staging::beside(&out.path)?;
        Ok(Self {
            checkpoint,
            layers,
            staging,
            leftovers,
            out,
        })
    }

    /// The hidden folder that is removed if this is dropped; for a signal handler that ends the process without
    /// dropping it.
    #[must_use]
    pub fn staging(&self) -> &Path {
        &self.staging.path
    }

    /// What runs that were killed had left beside the output.
    #[must_use]
    pub fn leftovers(&self) -> &Leftovers {
        &self.leftovers
    }

    /// Packs, opens the result, compares it bit for bit with the source, and gives it its name. `progress` gets the
    /// layers done and those in all, and returns `false` to stop. The packed layers are in memory until they are
    /// written.
    ///
    /// # Errors
    /// If a weight is not finite, a write fails, or the result is not the source. The place of the output is then as it
    /// was before.
    pub fn finish(
        mut self,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<PackedCheckpoint> {
        let source = &*self.checkpoint.source;
        let folder = self.staging.path.clone();
        source.write_companions(&folder)?;
        let reports = self.write_container(source, progress)?;
        self.write_rest(source)?;
        let transposed = self.layers.iter().filter(|(_, shape)| shape.transposed);
        let transposed: BTreeSet<String> = transposed.map(|(name, _)| name.clone()).collect();
        let index = serde_json::to_value(PackedIndex::of(source, transposed))
            .map_err(|error| Error::format(folder.join(PACKED_INDEX_FILE), error.to_string()))?;
        write_json(&folder.join(PACKED_INDEX_FILE), &index)?;

        let mut dense_bytes = 0;
        let packed = Checkpoint::open(&folder)?;
        for name in source.names() {
            let info = source.info(&name).ok_or_else(|| missing(&name))?;
            let (before, after) = (
                bytes_of(source, &name, &info)?,
                packed.source.stored_bytes(&name)?,
            );
            if after.as_ref() != Some(&before) {
                return Err(Error::tensor(name, "was packed and is not what it was"));
            }
            dense_bytes += before.len() as u64;
        }
        drop(packed);
        let mut bytes = 0;
        for file in [PACKED_FILE, DENSE_FILE] {
            let path = folder.join(file);
            let metadata = path.metadata().map_err(|e| Error::io("read", &path, e))?;
            bytes += metadata.len();
        }
        sync_folder(&folder)?;
        self.out.replace_by(&folder)?;
        self.staging.renamed = true;
        Ok(PackedCheckpoint {
            path: self.out.path.clone(),
            layers: reports,
            dense_bytes,
            bytes,
        })
    }

    fn write_container(
        &self,
        source: &dyn CheckpointSource,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Vec<PackedLayer>> {
        let mut packed = Vec::with_capacity(self.layers.len());
        for (done, (name, shape)) in self.layers.iter().enumerate() {
            if !progress(done, self.layers.len()) {
                return Err(Error::Stopped);
            }
            packed.push(AnyPacked::new(source, name, *shape)?);
        }
        let mut writer = ContainerWriter::new();
        let mut reports = Vec::with_capacity(packed.len());
        for ((name, _), (layer, negative_zeros)) in self.layers.iter().zip(&packed) {
            layer.add(&mut writer, name.strip_suffix(WEIGHT).unwrap_or(name))?;
            reports.push(report(name, layer, *negative_zeros));
        }
        writer.write(&self.staging.path.join(PACKED_FILE))?;
        Ok(reports)
    }

    fn write_rest(&self, source: &dyn CheckpointSource) -> Result<()> {
        let layers: BTreeSet<&str> = self.layers.iter().map(|(name, _)| name.as_str()).collect();
        let names = source.names().into_iter();
        let rest = names.filter(|name| !layers.contains(name.as_str()));
        let tensors = rest.map(|name| {
            let info = source.info(&name).ok_or_else(|| missing(&name))?;
            Ok((name, info))
        });
        let layout = ShardLayout {
            file_name: DENSE_FILE.to_owned(),
            metadata: None,
            tensors: tensors.collect::<Result<_>>()?,
        };
        let path = self.staging.path.join(DENSE_FILE);
        let plan = layout.plan(&path)?;
        let mut file = preallocate(&path, &plan)?;
        for (name, info, position) in plan.places {
            let bytes = bytes_of(source, &name, &info)?;
            file.seek(SeekFrom::Start(position))
                .and_then(|_| file.write_all(&bytes))
                .map_err(|error| Error::io(format!("write tensor {name:?} to"), &path, error))?;
        }
        Ok(())
    }
}

fn missing(name: &str) -> Error {
    Error::tensor(name, "is listed, but not there")
}

/// A tensor's bytes in the type that the source tells.
fn bytes_of<'s>(
    source: &'s dyn CheckpointSource,
    name: &str,
    info: &TensorInfo,
) -> Result<StoredBytes<'s>> {
    match source.stored_bytes(name)? {
        Some(bytes) => Ok(bytes),
        None => {
            let encoded = encode(name, info.dtype, &source.read_f32(name)?)?;
            Ok(StoredBytes::Owned(encoded.bytes))
        }
    }
}

/// A layer of one of the types that containers hold.
enum AnyPacked {
    F32(SparseLinear<f32>),
    Bf16(SparseLinear<bf16>),
    F16(SparseLinear<f16>),
    Codes(QuantizedLinear),
}

impl AnyPacked {
    /// The layer, and how many of its weights are -0.
    fn new(source: &dyn CheckpointSource, name: &str, shape: Multiplied) -> Result<(Self, usize)> {
        if let Some(layer) = source.quantized_layer(name)? {
            return Ok((Self::Codes(layer), 0));
        }
        let info = source.info(name).ok_or_else(|| missing(name))?;
        let bytes = bytes_of(source, name, &info)?;
        let layer = match info.dtype {
            Dtype::BF16 => Self::Bf16(packed(name, &bytes, shape)?),
            Dtype::F16 => Self::F16(packed(name, &bytes, shape)?),
            _ => Self::F32(packed(name, &bytes, shape)?),
        };
        Ok((layer, negative_zeros(info.dtype, &bytes)))
    }

    fn layer(&self) -> &dyn LinearLayer {
        match self {
            Self::F32(layer) => layer,
            Self::Bf16(layer) => layer,
            Self::F16(layer) => layer,
            Self::Codes(layer) => layer,
        }
    }

    /// What the values are stored as.
    fn stored(&self) -> &'static str {
        match self {
            Self::Codes(layer) => match layer.width() {
                Width::Four => "int4",
                _ => "int8",
            },
            other => other.layer().dtype(),
        }
    }

    fn add<'a>(&'a self, writer: &mut ContainerWriter<'a>, name: &str) -> Result<()> {
        Ok(match self {
            Self::F32(layer) => writer.add(name, layer),
            Self::Bf16(layer) => writer.add(name, layer),
            Self::F16(layer) => writer.add(name, layer),
            Self::Codes(layer) => writer.add_quantized(name, layer),
        }?)
    }
}

fn packed<V: Value>(name: &str, bytes: &[u8], shape: Multiplied) -> Result<SparseLinear<V>> {
    // Not where they lie, as a file may begin them anywhere.
    let mut values = vec![V::zeroed(); bytes.len() / size_of::<V>()];
    bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
    linear(name, values, shape, Stored::Faster)
}

/// Values that are nothing but a sign, which is the last bit of each.
fn negative_zeros(dtype: Dtype, bytes: &[u8]) -> usize {
    let values = bytes.chunks_exact(dtype.bitsize() / 8);
    let is_sign = |value: &[u8]| {
        value
            .split_last()
            .is_some_and(|(last, rest)| *last == 0x80 && rest.iter().all(|&byte| byte == 0))
    };
    values.filter(|value| is_sign(value)).count()
}

fn report(name: &str, packed: &AnyPacked, negative_zeros: usize) -> PackedLayer {
    let layer = packed.layer();
    let storage = layer.storage();
    PackedLayer {
        name: name.to_owned(),
        rows: layer.rows(),
        cols: layer.cols(),
        dtype: packed.stored(),
        storage: storage.to_string(),
        sparse: storage.is_sparse(),
        density: storage.density(),
        negative_zeros,
        dense_bytes: layer.unpacked_bytes() as u64,
        bytes: layer.bytes() as u64,
    }
}
