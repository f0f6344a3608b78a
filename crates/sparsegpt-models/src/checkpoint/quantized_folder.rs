//! A folder with quantized layers of another engine's format, as the float checkpoint that it stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use sparsegpt_runtime::{LinearLayer, QuantizedLinear};

use super::folder::SafetensorsFolder;
use super::packed::PackedShape;
use super::packed::read::ReadScheme;
use super::shard::{ShardLayout, StoredBytes};
use super::{CONFIG_FILE, CheckpointSource, Dtype, element_count, write_json};
use crate::decoder::TransformerConfig;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, TensorInfo, TensorSource};

/// The key of config.json that tells of them.
pub(super) const QUANTIZATION_CONFIG: &str = "quantization_config";
const WEIGHT: &str = ".weight";

pub(super) struct QuantizedFolder {
    folder: SafetensorsFolder,
    scheme: ReadScheme,
    /// config.json as it is without the quantization.
    config: Value,
    /// By the names that their weights would have.
    layers: BTreeMap<String, PackedShape>,
    /// Those of them that the family has as input x output features.
    transposed: BTreeSet<String>,
}

impl fmt::Debug for QuantizedFolder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("QuantizedFolder")
            .field("folder", &self.folder)
            .field("layers", &self.layers.len())
            .finish_non_exhaustive()
    }
}

impl QuantizedFolder {
    /// Opens a folder whose config.json, given here, has a `quantization_config`. Headers are checked, codes are read later.
    pub(super) fn open(path: &Path, mut config: Value) -> Result<Self> {
        let quantization = config
            .as_object_mut()
            .and_then(|config| config.remove(QUANTIZATION_CONFIG))
            .unwrap_or_default();
        let scheme = ReadScheme::of(&quantization)
            .map_err(|error| error.of_config(path.join(CONFIG_FILE)))?;
        let folder = SafetensorsFolder::open(path)?;
        let codes = scheme.endings()[0];
        let mut layers = BTreeMap::new();
        for name in folder.names() {
            let Some(layer) = name.strip_suffix(codes) else {
                continue;
            };
            let shape = scheme.shape(&folder, layer)?;
            let weight = format!("{layer}{WEIGHT}");
            if folder.info(&weight).is_some() || element_count(&[shape.rows, shape.cols]).is_none()
            {
                return Err(Error::tensor(
                    weight,
                    "stands beside its own quantized form, or is too large",
                ));
            }
            layers.insert(weight, shape);
        }
        if layers.is_empty() {
            return Err(Error::format(
                path,
                format!("{CONFIG_FILE} tells of quantized layers, and no tensor ends in {codes}"),
            ));
        }
        let known = TransformerConfig::from_json(&config).ok();
        let transposed = layers
            .keys()
            .filter(|name| {
                known
                    .as_ref()
                    .is_some_and(|known| known.stores_transposed(name))
            })
            .cloned()
            .collect();
        Ok(Self {
            folder,
            scheme,
            config,
            layers,
            transposed,
        })
    }

    /// config.json without the quantization.
    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    fn is_transposed(&self, name: &str) -> bool {
        self.transposed.contains(name)
    }

    /// Whether a stored tensor is a part of a quantized layer, and of which.
    fn layer_of(&self, stored: &str) -> Option<(&str, &PackedShape)> {
        let ending = self
            .scheme
            .endings()
            .iter()
            .find_map(|ending| stored.strip_suffix(ending))?;
        let entry = self.layers.get_key_value(&format!("{ending}{WEIGHT}"))?;
        Some((entry.0, entry.1))
    }

    fn info_of(&self, name: &str, shape: &PackedShape) -> TensorInfo {
        let mut sides = vec![shape.rows, shape.cols];
        if self.is_transposed(name) {
            sides.reverse();
        }
        TensorInfo {
            dtype: Dtype::F32,
            shape: sides,
        }
    }

    fn values(&self, name: &str, shape: &PackedShape) -> Result<Vec<f32>> {
        let weights = self.scheme.read(&self.folder, shape)?.weights();
        let weights = match self.is_transposed(name) {
            true => weights.reversed_axes(),
            false => weights,
        };
        Ok(weights.iter().copied().collect())
    }
}

impl TensorSource for QuantizedFolder {
    fn names(&self) -> Vec<String> {
        let stored = self.folder.names().into_iter();
        let rest = stored.filter(|name| self.layer_of(name).is_none());
        let mut names: Vec<String> = rest.chain(self.layers.keys().cloned()).collect();
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        match self.layers.get(name) {
            Some(shape) => Some(self.info_of(name, shape)),
            None => self
                .folder
                .info(name)
                .filter(|_| self.layer_of(name).is_none()),
        }
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self.layers.get(name) {
            Some(shape) => self.values(name, shape),
            None => self.folder.read_f32(name),
        }
    }

    fn layer(&self, name: &str) -> Result<Option<Arc<dyn LinearLayer>>> {
        let Some(shape) = self.layers.get(name) else {
            return Ok(None);
        };
        let layer = self.scheme.read(&self.folder, shape)?.linear(false)?;
        Ok(layer.map(|layer| Arc::new(layer) as Arc<dyn LinearLayer>))
    }
}

impl CheckpointSource for QuantizedFolder {
    fn files(&self) -> Vec<PathBuf> {
        self.folder.files()
    }

    /// Those of the float checkpoint: a weight stands where its codes are.
    fn shards(&self) -> Vec<ShardLayout> {
        let mut shards = self.folder.shards();
        for shard in &mut shards {
            let stored = std::mem::take(&mut shard.tensors);
            for (name, info) in stored {
                match self.layer_of(&name) {
                    None => shard.tensors.push((name, info)),
                    Some((weight, shape)) if name.ends_with(self.scheme.endings()[0]) => {
                        let info = self.info_of(weight, shape);
                        shard.tensors.push((weight.to_owned(), info));
                    }
                    Some(_) => {}
                }
            }
        }
        shards.retain(|shard| !shard.tensors.is_empty());
        shards
    }

    fn index_metadata(&self) -> Option<&Map<String, Value>> {
        self.folder.index_metadata()
    }

    fn stored_bytes(&self, name: &str) -> Result<Option<StoredBytes<'_>>> {
        match self.layers.get(name) {
            Some(shape) => {
                let values = self.values(name, shape)?;
                let bytes = values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                Ok(Some(StoredBytes::Owned(bytes)))
            }
            None => self.folder.stored_bytes(name),
        }
    }

    fn quantized_layer(&self, name: &str) -> Result<Option<QuantizedLinear>> {
        match self.layers.get(name) {
            Some(shape) => self.scheme.read(&self.folder, shape)?.linear(true),
            None => Ok(None),
        }
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        self.folder.tokenizer()
    }

    fn write_companions(&self, folder: &Path) -> Result<()> {
        self.folder.write_companions(folder)?;
        write_json(&folder.join(CONFIG_FILE), &self.config)
    }
}
