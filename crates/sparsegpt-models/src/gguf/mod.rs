//! GGUF files of the LLaMA family, read as if they were HuggingFace checkpoints, and written from them.
//!
//! The format is read by `candle_core::quantized::gguf_file`; here offsets and sizes are checked
//! against the file, names and the configuration are translated, and the reordering of q and k
//! that llama.cpp's converter makes is undone.

mod config;
mod metadata;
mod names;
#[cfg(test)]
mod tests;
mod tokenizer;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, TensorInfo as GgufTensorInfo};
use memmap2::Mmap;
use serde_json::Value;

use self::config::{Sizes, TensorFacts, TokenNumbers};
use self::metadata::{Metadata, check_alignment};
use crate::checkpoint::{
    CONFIG_FILE, CheckpointSource, Dtype, SINGLE_FILE, ShardLayout, StoredBytes, element_count,
    map_file, write_json,
};
use crate::tokenizer::{GENERATION_CONFIG_FILE, Tokenizer};
use crate::{Error, Result, TensorInfo, TensorSource};

pub use write::{GgufType, WrittenGguf};

pub(crate) use write::write;

const MAGIC: [u8; 4] = *b"GGUF";
/// Not weights but settings of the rotary embedding.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// An opened GGUF file.
pub(crate) struct GgufModel {
    path: PathBuf,
    map: Mmap,
    data_start: u64,
    metadata: Metadata,
    config: Value,
    /// By HuggingFace name.
    tensors: BTreeMap<String, GgufTensor>,
}

#[derive(Debug)]
struct GgufTensor {
    info: GgufTensorInfo,
    /// Heads whose rows are interleaved, for q and k of some architectures.
    interleaved_heads: Option<usize>,
}

impl fmt::Debug for GgufModel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GgufModel")
            .field("path", &self.path)
            .field("architecture", &self.metadata.architecture())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl GgufModel {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        if map.get(..MAGIC.len()) != Some(&MAGIC) {
            let in_model = path
                .parent()
                .is_some_and(|folder| folder.join(CONFIG_FILE).is_file());
            let remedy = match in_model {
                true => "; give the folder that it lies in",
                false => "",
            };
            return Err(Error::format(
                path,
                format!(
                    "expected a HuggingFace model folder or a GGUF file; this is a file of another kind{remedy}"
                ),
            ));
        }
        check_alignment(path, &map)?;
        let content = Content::read(&mut Cursor::new(&map[..])).map_err(|source| {
            let reason = format!("not a whole GGUF file: {}", without_trace(&source));
            Error::format(path, reason)
        })?;
        check_places(path, &content, map.len() as u64)?;
        let Content {
            metadata,
            mut tensor_infos,
            tensor_data_offset: data_start,
            ..
        } = content;

        let metadata = Metadata::new(path, metadata)?;
        let sizes = Sizes::read(&metadata)?;
        let rope_factors = tensor_infos
            .remove(ROPE_FACTORS)
            .map(|info| dequantize(path, ROPE_FACTORS, &info, &map, data_start))
            .transpose()?;
        let tensors = translate(tensor_infos, &sizes)?;
        let embeddings = tensors.get("model.embed_tokens.weight");
        let Some(&[vocab_size, _]) = embeddings.map(|tensor| tensor.info.shape.dims()) else {
            return Err(Error::tensor(
                "token_embd.weight",
                "expected a matrix of embeddings",
            ));
        };
        let facts = TensorFacts {
            vocab_size,
            tied: !tensors.contains_key("lm_head.weight"),
            attention_bias: tensors.contains_key("model.layers.0.self_attn.q_proj.bias"),
            mlp_bias: tensors.contains_key("model.layers.0.mlp.up_proj.bias"),
            rope_factors,
        };
        let config = config::config(&metadata, &sizes, &facts)?;
        Ok(Self {
            path: path.to_path_buf(),
            map,
            data_start,
            metadata,
            config,
            tensors,
        })
    }

    pub(crate) fn config(&self) -> &Value {
        &self.config
    }
}

impl TensorSource for GgufModel {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let shape = self.tensors.get(name)?.info.shape.dims().to_vec();
        Some(TensorInfo {
            dtype: Dtype::F32,
            shape,
        })
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::tensor(name, format!("not in {}", self.path.display())))?;
        let values = dequantize(&self.path, name, &tensor.info, &self.map, self.data_start)?;
        match tensor.interleaved_heads {
            Some(heads) => Ok(split_rotary_pairs(&values, heads, tensor.info.shape.dims())),
            None => Ok(values),
        }
    }
}

impl CheckpointSource for GgufModel {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn shards(&self) -> Vec<ShardLayout> {
        let tensors = self
            .names()
            .into_iter()
            .filter_map(|name| Some((self.info(&name)?, name)));
        vec![ShardLayout {
            file_name: SINGLE_FILE.to_owned(),
            metadata: Some(HashMap::from([("format".to_owned(), "pt".to_owned())])),
            tensors: tensors.map(|(info, name)| (name, info)).collect(),
        }]
    }

    fn stored_bytes(&self, _name: &str) -> Result<Option<StoredBytes<'_>>> {
        Ok(None)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        let files = tokenizer::files(&self.metadata)?;
        let generation = TokenNumbers::read(&self.metadata)?.generation_config();
        Tokenizer::from_files(&self.path, files, &[generation])
    }

    fn write_companions(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(CONFIG_FILE), &self.config)?;
        let generation = TokenNumbers::read(&self.metadata)?.generation_config();
        write_json(&folder.join(GENERATION_CONFIG_FILE), &generation)?;
        self.tokenizer()?.save(folder)
    }
}

/// Checks that every tensor lies in the file and apart from the others, before anything is
/// allocated for it.
fn check_places(path: &Path, content: &Content, file_len: u64) -> Result<()> {
    let mut places = Vec::with_capacity(content.tensor_infos.len());
    // Of several that are wrong, the same one is named each time.
    let mut infos: Vec<_> = content.tensor_infos.iter().collect();
    infos.sort_unstable_by_key(|(name, info)| (info.offset, *name));
    for (name, info) in infos {
        let (block, dtype) = (info.ggml_dtype.block_size(), info.ggml_dtype);
        let shape = info.shape.dims();
        if !shape
            .last()
            .is_some_and(|columns| columns.is_multiple_of(block))
        {
            let reason =
                format!("expected a multiple of {block} columns for {dtype:?}, found {shape:?}");
            return Err(Error::tensor(name, reason));
        }
        // candle would make a slice from the pointer of an empty vector.
        if shape.contains(&0) {
            let reason = format!("expected values, found the shape {shape:?}");
            return Err(Error::tensor(name, reason));
        }
        let end = element_count(shape)
            .and_then(|count| (count / block).checked_mul(dtype.type_size()))
            .and_then(|len| u64::try_from(len).ok())
            .and_then(|len| len.checked_add(content.tensor_data_offset.checked_add(info.offset)?))
            .filter(|&end| end <= file_len);
        let Some(end) = end else {
            let reason = format!(
                "{dtype:?} values of shape {shape:?} at {} do not fit in the {file_len} bytes of \
                 {}; the file is truncated or damaged",
                info.offset,
                path.display()
            );
            return Err(Error::tensor(name, reason));
        };
        // The sum was checked just above.
        places.push((content.tensor_data_offset + info.offset, end, name));
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if let [(_, end, before), (start, _, name)] = pair
            && start < end
        {
            let reason = format!("overlaps {before:?} in the file");
            return Err(Error::tensor(*name, reason));
        }
    }
    Ok(())
}

fn translate(
    infos: HashMap<String, GgufTensorInfo>,
    sizes: &Sizes,
) -> Result<BTreeMap<String, GgufTensor>> {
    let mut tensors = BTreeMap::new();
    for (gguf_name, info) in infos {
        let translated = names::to_hugging_face(&gguf_name).ok_or_else(|| {
            Error::tensor(
                &gguf_name,
                "is no tensor of the LLaMA family; the model is not supported",
            )
        })?;
        if let Some((block, _)) = translated.block
            && block >= sizes.blocks
        {
            let reason = format!("the model says it has {} blocks", sizes.blocks);
            return Err(Error::tensor(gguf_name, reason));
        }
        let heads = match translated.block {
            Some((_, "attn_q")) => Some(sizes.heads),
            Some((_, "attn_k")) => Some(sizes.key_value_heads),
            _ => None,
        };
        if let Some(heads) = heads {
            let rows = heads.checked_mul(sizes.head_dim);
            if info.shape.dims().first().copied() != rows {
                let reason = format!(
                    "expected {heads} heads of {} rows, found the shape {:?}",
                    sizes.head_dim,
                    info.shape.dims()
                );
                return Err(Error::tensor(gguf_name, reason));
            }
        }
        let interleaved_heads = heads.filter(|_| sizes.architecture.interleaved_rotary);
        if tensors
            .insert(
                translated.name,
                GgufTensor {
                    info,
                    interleaved_heads,
                },
            )
            .is_some()
        {
            return Err(Error::tensor(gguf_name, "stands in the file twice"));
        }
    }
    Ok(tensors)
}

fn dequantize(
    path: &Path,
    name: &str,
    info: &GgufTensorInfo,
    map: &Mmap,
    data_start: u64,
) -> Result<Vec<f32>> {
    info.read(&mut Cursor::new(&map[..]), data_start, &Device::Cpu)
        .and_then(|tensor| tensor.dequantize(&Device::Cpu))
        .and_then(|tensor| tensor.flatten_all()?.to_vec1())
        .map_err(|source| {
            let reason = format!("tensor {name:?}: {}", without_trace(&source));
            Error::format(path, reason)
        })
}

/// An error about a file, without the stack trace that candle puts behind it where the environment asks for one.
fn without_trace(error: &candle_core::Error) -> &candle_core::Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => without_trace(inner),
        other => other,
    }
}

/// Undoes the reordering of llama.cpp's converter. In its files, rows 2i and 2i+1 of a head are
/// turned together by the rotary embedding; HuggingFace pairs rows i and i + (head size)/2.
fn split_rotary_pairs(values: &[f32], heads: usize, shape: &[usize]) -> Vec<f32> {
    let rows = shape.first().copied().unwrap_or(0);
    let columns: usize = shape.iter().skip(1).product();
    let half = rows / heads / 2;
    let mut ordered = Vec::with_capacity(values.len());
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..half {
                let row = head * 2 * half + 2 * pair + side;
                ordered.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    ordered
}
