//! Low-rank adapters beside a checkpoint, as folders that PEFT and what follows it read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array2, s};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use serde_json::{Value, json};
use sparsegpt::repair::LowRank;

use super::Checkpoint;
use super::writer::{OutputFolder, sync_folder, write_json};
use crate::decoder::{ModelKind, TransformerConfig};
use crate::staging::{Leftovers, Staging};
use crate::{Error, Result};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT writes before the names of a model's modules.
const PREFIX: &str = "base_model.model.";

/// A layer and what is added to its weights.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// The layer's name in the checkpoint, without `.weight`.
    pub name: String,
    /// up·down has the shape of the layer, output x input features.
    pub low_rank: LowRank,
}

/// A finished adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WrittenLora {
    /// The folder.
    pub path: PathBuf,
    /// The rank of all layers.
    pub rank: usize,
    /// Layers in it.
    pub layers: usize,
    /// Bytes of their values.
    pub bytes: usize,
}

/// Writes an adapter folder for `base`, `adapter_config.json` and `adapter_model.safetensors` (f32), as PEFT's `save_pretrained`
/// does for LoRA with `lora_alpha` = `r`: what it adds is B·A, not scaled. Layers of a lower rank than others get zeros to
/// fill it up. The folder appears under its name when it is complete.
///
/// # Errors
/// If there is no layer, a layer is none of the checkpoint's or has another shape, the output may not be replaced (as with
/// [`Checkpoint::create_output`]), or a write fails.
pub fn write_lora(
    base: &Checkpoint,
    layers: &[LoraLayer],
    out: &Path,
    force: bool,
) -> Result<WrittenLora> {
    let rank = layers.iter().map(|layer| layer.low_rank.rank()).max();
    let Some(rank) = rank else {
        return Err(Error::setting("layers of an adapter", "at least 1", 0));
    };
    let turned = layers
        .iter()
        .map(|layer| is_turned(base, layer))
        .collect::<Result<Vec<_>>>()?;
    let out = OutputFolder::check(out, base.path(), force)?;
    let _leftovers = Leftovers::clear(&out.path);
    let mut staging = Staging::beside(&out.path)?;
    write_json(
        &staging.path.join(CONFIG_FILE),
        &config(base, layers, rank, turned.contains(&true)),
    )?;
    let tensors: Vec<(String, Array2<f32>)> = layers
        .iter()
        .flat_map(|LoraLayer { name, low_rank }| {
            let (own, (rows, cols)) = (
                low_rank.rank(),
                (low_rank.up.nrows(), low_rank.down.ncols()),
            );
            let mut down = Array2::zeros((rank, cols));
            down.slice_mut(s![..own, ..]).assign(&low_rank.down);
            let mut up = Array2::zeros((rows, rank));
            up.slice_mut(s![.., ..own]).assign(&low_rank.up);
            [
                (format!("{PREFIX}{name}.lora_A.weight"), down),
                (format!("{PREFIX}{name}.lora_B.weight"), up),
            ]
        })
        .collect();
    let bytes = write_tensors(&staging.path.join(WEIGHTS_FILE), &tensors)?;
    sync_folder(&staging.path)?;
    out.replace_by(&staging.path)?;
    staging.renamed = true;
    Ok(WrittenLora {
        path: out.path,
        rank,
        layers: layers.len(),
        bytes,
    })
}

/// Whether [`write_lora`] could write there, for callers whose work before that is long.
///
/// # Errors
/// If the output may not be replaced.
pub fn check_lora_output(base: &Checkpoint, out: &Path, force: bool) -> Result<()> {
    OutputFolder::check(out, base.path(), force).map(drop)
}

/// Whether the checkpoint holds the layer as input x output features; `false` where that cannot be told, as it is square.
fn is_turned(base: &Checkpoint, layer: &LoraLayer) -> Result<bool> {
    let name = format!("{}.weight", layer.name);
    let (rows, cols) = (layer.low_rank.up.nrows(), layer.low_rank.down.ncols());
    let info = base.tensors().info(&name);
    let info =
        info.ok_or_else(|| Error::tensor(&name, format!("not in {}", base.path().display())))?;
    match *info.shape {
        [first, second] if (first, second) == (rows, cols) => Ok(false),
        [first, second] if (second, first) == (rows, cols) => Ok(true),
        ref other => Err(Error::tensor(
            &name,
            format!("has the shape {other:?}, the repair {rows} x {cols}"),
        )),
    }
}

/// PEFT's name of what the model is for; it has none for masked tokens.
fn task(base: &Checkpoint) -> Option<&'static str> {
    match TransformerConfig::of(base).map(|config| config.kind()) {
        Ok(ModelKind::Encoder) => None,
        Ok(ModelKind::EncoderDecoder) => Some("SEQ_2_SEQ_LM"),
        _ => Some("CAUSAL_LM"),
    }
}

fn config(base: &Checkpoint, layers: &[LoraLayer], rank: usize, turned: bool) -> Value {
    let modules: BTreeSet<&str> = layers
        .iter()
        .map(|layer| layer.name.rsplit('.').next().unwrap_or_default())
        .collect();
    json!({
        "peft_type": "LORA",
        "task_type": task(base),
        "base_model_name_or_path": base.path(),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "inference_mode": true,
        "target_modules": modules,
        "modules_to_save": null,
        "use_rslora": false,
        "use_dora": false,
    })
}

/// Writes tensors in f32, and says how many bytes they are.
fn write_tensors(path: &Path, tensors: &[(String, Array2<f32>)]) -> Result<usize> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, tensor)| {
            tensor
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let broken = |error: safetensors::SafeTensorError| Error::format(path, error.to_string());
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, tensor), bytes)| {
            let view = TensorView::new(Dtype::F32, tensor.shape().to_vec(), bytes);
            Ok((name, view.map_err(broken)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let file = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
    fs::write(path, file).map_err(|source| Error::io("write", path, source))?;
    Ok(bytes.iter().map(Vec::len).sum())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::array;
    use safetensors::SafeTensors;
    use tempfile::tempdir;

    use super::super::fixtures::{Model, tensor};
    use super::*;

    const UP: &str = "model.layers.0.mlp.up_proj";
    const DOWN: &str = "model.layers.0.mlp.down_proj";

    fn base(root: &Path, turned: bool) -> Checkpoint {
        let folder = root.join("base");
        let (up, down) = if turned {
            ([3, 2], [2, 3])
        } else {
            ([2, 3], [3, 2])
        };
        let values = [1.0; 6];
        let tensors = vec![
            tensor(&format!("{UP}.weight"), &up, &values),
            tensor(&format!("{DOWN}.weight"), &down, &values),
        ];
        Model::new(tensors).write(&folder);
        Checkpoint::open(&folder).unwrap()
    }

    fn layers() -> Vec<LoraLayer> {
        let layer = |name: &str, down, up| LoraLayer {
            name: name.to_owned(),
            low_rank: LowRank::new(down, up).unwrap(),
        };
        vec![
            layer(
                UP,
                array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
                array![[1.0, 0.5], [0.25, 2.0]],
            ),
            layer(DOWN, array![[7.0, 8.0]], array![[1.0], [2.0], [3.0]]),
        ]
    }

    #[test]
    fn the_folder_is_what_peft_reads() {
        for turned in [false, true] {
            let root = tempdir().unwrap();
            let (base, out) = (base(root.path(), turned), root.path().join("adapter"));
            let written = write_lora(&base, &layers(), &out, false).unwrap();
            assert_eq!(
                (written.rank, written.layers, written.bytes),
                (2, 2, 4 * 20)
            );
            let config: Value =
                serde_json::from_slice(&fs::read(out.join("adapter_config.json")).unwrap())
                    .unwrap();
            assert_eq!(config["peft_type"], "LORA");
            // B·A is added as it is.
            assert_eq!(
                (&config["r"], &config["lora_alpha"]),
                (&json!(2), &json!(2))
            );
            assert_eq!(config["target_modules"], json!(["down_proj", "up_proj"]));
            assert_eq!(config["fan_in_fan_out"], turned);

            let bytes = fs::read(out.join("adapter_model.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let values = |name: &str| {
                let view = tensors.tensor(&format!("base_model.model.{name}")).unwrap();
                let values = view.data().as_chunks().0.iter();
                let values: Vec<f32> = values.map(|&bytes| f32::from_le_bytes(bytes)).collect();
                (view.shape().to_vec(), values)
            };
            assert_eq!(
                values(&format!("{UP}.lora_A.weight")),
                (vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
            );
            // The lower rank is filled up.
            assert_eq!(
                values(&format!("{DOWN}.lora_A.weight")),
                (vec![2, 2], vec![7.0, 8.0, 0.0, 0.0])
            );
            assert_eq!(
                values(&format!("{DOWN}.lora_B.weight")),
                (vec![3, 2], vec![1.0, 0.0, 2.0, 0.0, 3.0, 0.0])
            );
        }
    }

    #[test]
    fn nothing_is_replaced_unasked_and_strangers_are_named() {
        let root = tempdir().unwrap();
        let (base, out) = (base(root.path(), false), root.path().join("adapter"));
        write_lora(&base, &layers(), &out, false).unwrap();
        let again = write_lora(&base, &layers(), &out, false).unwrap_err();
        assert!(again.to_string().contains("--force"), "{again}");
        write_lora(&base, &layers()[..1], &out, true).unwrap();
        let mut stranger = layers();
        stranger[1].name = "model.layers.1.mlp.down_proj".to_owned();
        let error = write_lora(&base, &stranger, &out, true).unwrap_err();
        assert!(error.to_string().contains("layers.1"), "{error}");
        stranger[1].name = UP.to_owned();
        stranger[1].low_rank = LowRank::new(array![[1.0]], array![[1.0]]).unwrap();
        assert!(write_lora(&base, &stranger, &out, true).is_err());
        assert!(write_lora(&base, &[], &out, true).is_err());
        // What was there before the errors is there still.
        let names = fs::read_dir(root.path()).unwrap().count();
        assert_eq!(names, 2);
    }
}
