//! A low-rank adapter for a pruned model.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Tensor, calibration, entries, fail, load, model, save, succeed, text};

struct Models {
    folder: tempfile::TempDir,
    pruned: PathBuf,
    adapter: PathBuf,
}

/// The bundled model with 2 zeros in 3 by magnitude, in f32.
fn models() -> Models {
    let folder = tempfile::tempdir().unwrap();
    let (pruned, adapter) = (folder.path().join("pruned"), folder.path().join("adapter"));
    let dense = model();
    let mut args = vec!["prune", text(&dense), "--out", text(&pruned)];
    args.extend([
        "--method",
        "magnitude",
        "--pattern",
        "67%",
        "--dtype",
        "f32",
    ]);
    succeed(&args);
    Models {
        folder,
        pruned,
        adapter,
    }
}

/// `repair` of these models, quickly, with more flags.
fn repair(models: &Models, more: &[&str]) -> Vec<String> {
    let (dense, calibration) = (model(), calibration());
    let mut args = vec!["repair", text(&dense), text(&models.pruned)];
    args.extend(["--out", text(&models.adapter)]);
    args.extend(["--calibration", text(&calibration)]);
    args.extend(["--samples", "16", "--sequence-length", "64"]);
    args.extend(["--threads", "2"]);
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}

fn as_args(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The pruned model with B·A added to its layers.
fn merge(models: &Models) -> PathBuf {
    let merged = models.folder.path().join("merged");
    fs::create_dir(&merged).unwrap();
    for name in entries(&models.pruned) {
        fs::copy(models.pruned.join(&name), merged.join(&name)).unwrap();
    }
    let mut tensors = load(&models.pruned.join("model.safetensors"));
    let adapter = load(&models.adapter.join("adapter_model.safetensors"));
    for (name, up) in &adapter {
        let Some(layer) = name.strip_suffix(".lora_B.weight") else {
            continue;
        };
        let down = &adapter[&format!("{layer}.lora_A.weight")];
        let weight = format!(
            "{}.weight",
            layer.strip_prefix("base_model.model.").unwrap()
        );
        let (rows, rank, cols) = (up.shape[0], up.shape[1], down.shape[1]);
        let mut values = tensors[&weight].to_f32();
        let (up, down) = (up.to_f32(), down.to_f32());
        for row in 0..rows {
            for col in 0..cols {
                let of = |which| up[row * rank + which] * down[which * cols + col];
                values[row * cols + col] += (0..rank).map(of).sum::<f32>();
            }
        }
        tensors.insert(weight, Tensor::f32(&[rows, cols], &values));
    }
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (&**name, tensor.clone()))
        .collect();
    save(&merged.join("model.safetensors"), &tensors);
    merged
}

fn perplexity(folder: &Path) -> f64 {
    let held_out = model().join("heldout.txt");
    let mut args = vec!["eval", text(folder), "--text", text(&held_out)];
    args.extend(["--limit", "12", "--json"]);
    succeed(&args).json()["perplexity"].as_f64().unwrap()
}

#[test]
fn the_adapter_gives_back_a_part_of_what_was_lost() {
    let models = models();
    let report = succeed(&as_args(&repair(&models, &["--rank", "16", "--json"]))).json();
    let layers = report["layers"].as_array().unwrap();
    // Five blocks of seven layers.
    assert_eq!(layers.len(), 35);
    for layer in layers {
        let of = |key: &str| layer[key].as_f64().unwrap();
        assert!(0.0 < of("after") && of("after") < of("before"), "{layer}");
    }
    assert_eq!(report["output"]["rank"], 16);
    assert_eq!(
        entries(&models.adapter),
        ["adapter_config.json", "adapter_model.safetensors"]
    );
    let (before, after) = (perplexity(&models.pruned), perplexity(&merge(&models)));
    assert!(after < before, "{after} with the adapter, {before} without");
}

#[test]
fn some_layers_are_repaired_and_nothing_is_replaced_unasked() {
    let models = models();
    let some = ["--rank", "2", "--only", "down_proj", "--skip", "block:0"];
    let run = succeed(&as_args(&repair(&models, &some)));
    assert!(run.stdout.contains("layers.1.mlp.down_proj"), "{run:?}");
    assert!(
        !run.stdout.contains("layers.0.") && !run.stdout.contains("up_proj"),
        "{run:?}"
    );
    fail(&as_args(&repair(&models, &some)), 2, "--force");
    let mut again = some.to_vec();
    again.push("--force");
    succeed(&as_args(&repair(&models, &again)));
    fail(&as_args(&repair(&models, &["--rank", "0"])), 2, "--rank 0");
    fail(
        &as_args(&repair(&models, &["--only", "nothing", "--force"])),
        2,
        "nothing",
    );
    let mut swapped = repair(&models, &["--force"]);
    swapped.swap(1, 2);
    fail(&as_args(&swapped), 2, "give the dense model first");
    let itself = Models {
        pruned: model(),
        ..models
    };
    fail(
        &as_args(&repair(&itself, &["--only", "block:0", "--force"])),
        2,
        "nothing to repair",
    );
}
