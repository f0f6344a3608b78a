//! Packed models: the same text and the same bits.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Tensor, entries, fail, load, model, perplexity, save, succeed, text};
use serde_json::Value;

/// The bundled model pruned by magnitude, in `dtype`, and packed.
struct Packed {
    _folder: tempfile::TempDir,
    pruned: PathBuf,
    packed: PathBuf,
    report: Value,
}

fn pack(pattern: &str, dtype: &str) -> Packed {
    let folder = tempfile::tempdir().unwrap();
    let (pruned, packed) = (folder.path().join("pruned"), folder.path().join("packed"));
    succeed(&[
        "prune",
        text(&model()),
        "--method",
        "magnitude",
        "--pattern",
        pattern,
        "--dtype",
        dtype,
        "--out",
        text(&pruned),
    ]);
    let report = succeed(&["pack", text(&pruned), "--out", text(&packed), "--json"]).json();
    Packed {
        _folder: folder,
        pruned,
        packed,
        report,
    }
}

fn generated(model: &Path) -> Value {
    let report = succeed(&[
        "generate",
        text(model),
        "--prompt",
        "A hacker is",
        "--max-new-tokens",
        "40",
        "--json",
    ])
    .json();
    report["models"][0]["samples"].clone()
}

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

/// The same model, and its checkpoint back from it.
fn is_the_model(made: &Packed) {
    assert_eq!(generated(&made.packed), generated(&made.pruned));
    let (before, after) = (perplexity(&made.pruned), perplexity(&made.packed));
    assert!((after / before - 1.0).abs() < 1e-3, "{before} {after}");
    let inspected = |folder: &Path| succeed(&["inspect", text(folder), "--json"]).json();
    assert_eq!(inspected(&made.packed), inspected(&made.pruned));

    let out = made.packed.with_file_name("unpacked");
    succeed(&["unpack", text(&made.packed), "--out", text(&out)]);
    assert!(weights(&out) == weights(&made.pruned));
    assert_eq!(entries(&out), entries(&made.pruned));
    for name in entries(&out) {
        let bytes = |folder: &Path| fs::read(folder.join(&name)).unwrap();
        assert!(bytes(&out) == bytes(&made.pruned), "{name}");
    }
}

#[test]
fn a_packed_model_is_the_model_in_f32() {
    let made = pack("50%", "f32");
    is_the_model(&made);
    for layer in made.report["layers"].as_array().unwrap() {
        let name = layer["name"].as_str().unwrap();
        let (bytes, dense) = (
            layer["bytes"].as_f64().unwrap(),
            layer["dense_bytes"].as_f64().unwrap(),
        );
        // A bit and half of 32 a weight; the head has no zeros.
        let sparse = name.contains("layers");
        assert_eq!(layer["sparse"], sparse, "{layer}");
        assert!(!sparse || bytes < 0.54 * dense, "{layer}");
    }
    let bytes = |key: &str| made.report[key].as_f64().unwrap();
    let on_disk: u64 = ["packed.safetensors", "dense.safetensors"]
        .map(|name| fs::metadata(made.packed.join(name)).unwrap().len())
        .iter()
        .sum();
    assert_eq!(bytes("bytes"), on_disk as f64);
    assert!(
        bytes("bytes") < 0.7 * bytes("dense_bytes"),
        "{}",
        made.report
    );
}

#[test]
fn a_packed_model_is_the_model_in_bf16() {
    is_the_model(&pack("2:4", "bf16"));
}

#[test]
fn logits_of_a_packed_model_are_those_of_the_model() {
    let made = pack("50%", "f16");
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.safetensors");
    let ids: Vec<i32> = (0..40).map(|id| id * 7 % 1000).collect();
    save(&tokens, &[("tokens", Tensor::i32(&[2, 20], &ids))]);
    let logits = |model: &Path, name: &str| {
        let out = folder.path().join(name);
        succeed(&[
            "logits",
            text(model),
            "--tokens",
            text(&tokens),
            "--out",
            text(&out),
        ]);
        load(&out)["logits"].to_f32()
    };
    let (before, after) = (logits(&made.pruned, "a"), logits(&made.packed, "b"));
    let largest = before
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    for (before, after) in before.iter().zip(&after) {
        assert!((before - after).abs() < 1e-4 * largest, "{before} {after}");
    }
    // A packed model can be pruned further, as the checkpoint that it is.
    let further = folder.path().join("further");
    succeed(&[
        "prune",
        text(&made.packed),
        "--method",
        "magnitude",
        "--pattern",
        "60%",
        "--out",
        text(&further),
    ]);
    let direct = folder.path().join("direct");
    succeed(&[
        "prune",
        text(&made.pruned),
        "--method",
        "magnitude",
        "--pattern",
        "60%",
        "--out",
        text(&direct),
    ]);
    assert!(weights(&further) == weights(&direct));
}

#[test]
fn what_is_damaged_is_refused() {
    let made = pack("50%", "f16");
    let file = made.packed.join("packed.safetensors");
    let sound = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(*sound.first_chunk().unwrap()) as usize;
    let generate = [
        "generate",
        text(&made.packed),
        "--prompt",
        "A",
        "--max-new-tokens",
        "1",
    ];
    let refused = |bytes: &[u8], named: &str| {
        fs::write(&file, bytes).unwrap();
        let run = fail(&generate, 3, named);
        assert!(run.stderr.contains("packed.safetensors"), "{run:?}");
    };
    refused(&sound[..sound.len() - 1], "no whole safetensors file");
    refused(&sound[..header / 2], "no whole safetensors file");
    refused(b"", "empty");
    let mut flipped = sound.clone();
    // The widest type comes first, and of that the first layer's masks.
    flipped[header + 3] ^= 1;
    refused(&flipped, "layer ");
    // Also where a process of its own finds it.
    let run = fail(&["bench", text(&made.packed)], 3, "layer ");
    assert!(!run.stderr.contains("on its own"), "{run:?}");
    // Another model's layers.
    let names = String::from_utf8_lossy(&sound[..header]).replace("layers.0.", "layers.9.");
    refused(&[names.as_bytes(), &sound[header..]].concat(), "layers.0.");
    fs::remove_file(&file).unwrap();
    let run = fail(&generate, 3, "packed.safetensors");
    assert_eq!(run.stderr.matches("No such file").count(), 1, "{run:?}");
    fs::write(&file, &sound).unwrap();
    succeed(&generate);

    let index = made.packed.join("packed.safetensors.index.json");
    let sound = fs::read_to_string(&index).unwrap();
    for (from, to, named) in [
        ("\"version\": 1", "\"version\": 2", "expected version 1"),
        (
            "model.norm.weight",
            "model.form.weight",
            "model.form.weight",
        ),
        ("\"transposed\"", "\"transported\"", "transported"),
    ] {
        assert!(sound.contains(from), "{from}");
        fs::write(&index, sound.replace(from, to)).unwrap();
        let run = fail(&generate, 3, named);
        assert!(run.stderr.contains("index.json"), "{run:?}");
    }
    fs::write(&index, &sound).unwrap();
    let missing = made.packed.join("dense.safetensors");
    fs::remove_file(&missing).unwrap();
    fail(&generate, 3, "dense.safetensors");
}

#[test]
fn outputs_and_inputs_are_checked() {
    let made = pack("50%", "f16");
    let out = text(&made.packed);
    fail(&["pack", text(&made.pruned), "--out", out], 2, "--force");
    succeed(&["pack", text(&made.pruned), "--out", out, "--force"]);
    let other = made.packed.with_file_name("other");
    fail(&["pack", out, "--out", text(&other)], 3, "packed already");
    fail(
        &["unpack", text(&made.pruned), "--out", text(&other)],
        3,
        "is not packed",
    );
    assert!(!other.exists());
    // Nothing else was left beside the results.
    let parent = made.packed.parent().unwrap();
    assert_eq!(entries(parent), ["packed", "pruned"]);
}

#[test]
fn a_model_is_measured_dense_and_sparse() {
    let made = pack("50%", "bf16");
    let chart = made.packed.with_file_name("chart.svg");
    let measure = |model: &Path, more: &[&str]| {
        let mut args = vec!["bench", text(model), "--seconds", "0", "--json"];
        args.extend(["--prompt-tokens", "9", "--new-tokens", "3"]);
        args.extend(more);
        succeed(&args).json()
    };
    let of_packed = measure(&made.packed, &["--chart", text(&chart)]);
    let of_pruned = measure(&made.pruned, &[]);
    for report in [&of_packed, &of_pruned] {
        assert_eq!(report["same_tokens"], true, "{report}");
        assert!(report["runs"].as_u64().unwrap() >= 3, "{report}");
        for kind in ["dense", "sparse"] {
            for speed in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
                assert!(report[kind][speed].as_f64().unwrap() > 0.0, "{report}");
            }
        }
        let bytes = |kind: &str, of: &str| report[kind][of].as_f64().unwrap();
        // (1 + 16 / 2) / 16 of bf16, and a little for the offsets.
        let share = bytes("sparse", "linear_bytes") / bytes("dense", "linear_bytes");
        assert!((0.55..0.58).contains(&share), "{share}");
        assert!(bytes("sparse", "matrix_bytes") > bytes("sparse", "linear_bytes"));
        if cfg!(target_os = "linux") {
            assert!(bytes("dense", "peak_bytes") > bytes("dense", "matrix_bytes"));
        }
    }
    assert_eq!(
        of_packed["sparse"]["linear_bytes"],
        of_pruned["sparse"]["linear_bytes"]
    );
    let svg = fs::read_to_string(chart).unwrap();
    assert!(
        svg.contains("<svg") && svg.contains("decode, tokens/s sparse"),
        "{svg}"
    );

    let model = text(&made.packed);
    fail(&["bench", model, "--new-tokens", "0"], 2, "--new-tokens");
    fail(
        &["bench", model, "--prompt-tokens", "300"],
        2,
        "--prompt-tokens",
    );
    fail(&["bench", model, "--layer", "4x4"], 2, "--layer");
    for flag in [
        ["--tokens", "2"],
        ["--sparsity", "0.5"],
        ["--pattern", "2:4"],
        ["--dtype", "bf16"],
    ] {
        fail(&["bench", model, flag[0], flag[1]], 2, flag[0]);
    }
    fail(&["bench"], 2, "--layer");
}

#[test]
fn zeros_below_zero_are_kept_and_told() {
    let made = pack("50%", "f32");
    let file = made.pruned.join("model.safetensors");
    let negative = |value: f32| if value == 0.0 { -0.0 } else { value };
    let tensors = load(&file).into_iter().map(|(name, tensor)| {
        let values: Vec<f32> = tensor.to_f32().into_iter().map(negative).collect();
        let tensor = Tensor::f32(&tensor.shape, &values);
        (name, tensor)
    });
    let tensors: Vec<_> = tensors.collect();
    let named: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    save(&file, &named);
    let packed = made.packed.with_file_name("negative");
    let run = succeed(&["pack", text(&made.pruned), "--out", text(&packed)]);
    assert!(
        run.stdout.contains("are -0 and are stored"),
        "{}",
        run.stdout
    );
    let report = succeed(&[
        "pack",
        text(&made.pruned),
        "--out",
        text(&packed),
        "--force",
        "--json",
    ])
    .json();
    let layers = report["layers"].as_array().unwrap();
    let sum = |key: &str| {
        layers
            .iter()
            .filter_map(|layer| layer[key].as_u64())
            .sum::<u64>()
    };
    assert!(sum("negative_zeros") > 0);
    assert_eq!(made.report["layers"][0]["negative_zeros"], 0);
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_no_place_for_a_model() {
    let made = pack("50%", "f32");
    let link = made.packed.with_file_name("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    fail(
        &["pack", text(&made.pruned), "--out", text(&link)],
        2,
        "link to nothing",
    );
}

#[test]
fn shards_of_a_packed_index_stay_in_their_folder() {
    let made = pack("50%", "f16");
    let index = made.packed.join("packed.safetensors.index.json");
    let sound: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    let out = made.packed.with_file_name("out");
    let before = entries(made.packed.parent().unwrap());
    let absolute = made.packed.with_file_name("absolute.safetensors");
    for file in [
        "../beside.safetensors",
        text(&absolute),
        "a/b.safetensors",
        "..",
        "",
        "config.json",
    ] {
        let mut evil = sound.clone();
        evil["shards"][0]["file"] = file.into();
        fs::write(&index, evil.to_string()).unwrap();
        let name = "packed.safetensors.index.json";
        for command in ["unpack", "prune"] {
            let mut args = vec![command, text(&made.packed), "--out", text(&out)];
            if command == "prune" {
                args.extend(["--method", "magnitude", "--pattern", "60%"]);
            }
            fail(&args, 3, name);
        }
        fail(&["inspect", text(&made.packed)], 3, name);
        assert_eq!(entries(made.packed.parent().unwrap()), before, "{file}");
    }
    let mut twice = sound;
    let shard = twice["shards"][0].clone();
    twice["shards"].as_array_mut().unwrap().push(shard);
    fs::write(&index, twice.to_string()).unwrap();
    fail(&["inspect", text(&made.packed)], 3, "twice");
}
