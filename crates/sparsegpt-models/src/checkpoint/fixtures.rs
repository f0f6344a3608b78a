//! Small checkpoints on disk, and the paths of the large ones, for tests.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::dtype::encode;

pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn tensor_of(name: &str, dtype: Dtype, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = encode(name, dtype, values).unwrap().bytes;
    Tensor {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        bytes,
    }
}

pub(crate) fn tensor(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    tensor_of(name, Dtype::F32, shape, values)
}

/// A model folder to be: its shards and what else lies in it.
pub(crate) struct Model {
    pub(crate) config: serde_json::Value,
    pub(crate) shards: Vec<Vec<Tensor>>,
    pub(crate) companions: Vec<(&'static str, Vec<u8>)>,
}

impl Model {
    pub(crate) fn new(tensors: Vec<Tensor>) -> Self {
        let config = serde_json::json!({ "model_type": "llama", "torch_dtype": "float32" });
        Self {
            config,
            shards: vec![tensors],
            companions: Vec::new(),
        }
    }

    pub(crate) fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        for (name, bytes) in &self.companions {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        let count = self.shards.len();
        let mut weight_map = serde_json::Map::new();
        for (index, tensors) in self.shards.iter().enumerate() {
            let file = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            for tensor in tensors {
                weight_map.insert(tensor.name.clone(), file.clone().into());
            }
            let views = tensors.iter().map(|tensor| {
                let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
                (tensor.name.as_str(), view.unwrap())
            });
            let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            let bytes = safetensors::serialize(views, Some(metadata)).unwrap();
            std::fs::write(folder.join(file), bytes).unwrap();
        }
        if count > 1 {
            let index = serde_json::json!({
                "metadata": { "total_size": 1, "total_parameters": 7 },
                "weight_map": weight_map,
            });
            std::fs::write(
                folder.join("model.safetensors.index.json"),
                index.to_string(),
            )
            .unwrap();
        }
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The model that comes with the command.
pub(crate) fn bundled() -> PathBuf {
    workspace().join("crates/sparsegpt-cli/assets/jargon")
}

fn present(path: PathBuf, variable: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there (set {variable})", path.display());
    None
}

/// A path below the folder of golden files; `None`, said on stderr, where there is none.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let variable = "SPARSEGPT_SHARED";
    let root = std::env::var_os(variable).map(PathBuf::from);
    present(
        root.unwrap_or_else(|| workspace().join("../shared"))
            .join(path),
        variable,
    )
}

/// The GGUF file that scripts/fetch-smollm2.sh fetches; `None`, said on stderr, where it is not.
pub(crate) fn smollm2() -> Option<PathBuf> {
    let variable = "SPARSEGPT_SMOLLM2";
    let file = "data-local/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let path = std::env::var_os(variable).map(PathBuf::from);
    present(path.unwrap_or_else(|| workspace().join(file)), variable)
}
