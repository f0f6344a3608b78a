//! Tests of reading and writing checkpoints.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;

use serde_json::json;
use tempfile::{TempDir, tempdir};

use super::fixtures::{Model, Tensor, tensor, tensor_of};
use super::*;
use crate::decoder::TransformerConfig;

const UP: &str = "model.layers.0.mlp.up_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn two_layers(dtype: Dtype) -> Vec<Tensor> {
    let values: Vec<f32> = (1..=8).map(|value| value as f32 * 0.25).collect();
    vec![
        tensor_of(UP, dtype, &[2, 4], &values),
        tensor_of(DOWN, dtype, &[4, 2], &values),
    ]
}

fn write(model: &Model) -> (TempDir, PathBuf) {
    let root = tempdir().unwrap();
    let folder = root.path().join("model");
    model.write(&folder);
    (root, folder)
}

fn simple() -> (TempDir, PathBuf) {
    write(&Model::new(two_layers(Dtype::F32)))
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn open_error(folder: &Path) -> String {
    Checkpoint::open(folder).unwrap_err().to_string()
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

// --- damaged input -------------------------------------------------------------------------

fn with_weights(bytes: &[u8]) -> String {
    let (_root, folder) = simple();
    fs::write(folder.join(SINGLE_FILE), bytes).unwrap();
    open_error(&folder)
}

fn with_header(header: &str, data: usize) -> String {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    with_weights(&bytes)
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let (_root, folder) = simple();
    let whole = fs::read(folder.join(SINGLE_FILE)).unwrap();
    for len in 0..whole.len() {
        let error = with_weights(&whole[..len]);
        assert_contains(&error, &["model.safetensors"]);
    }
    let mut longer = whole;
    longer.push(0);
    assert_contains(&with_weights(&longer), &["model.safetensors", "64", "65"]);
}

#[test]
fn damage_anywhere_in_the_header_never_panics() {
    let (_root, folder) = simple();
    let whole = fs::read(folder.join(SINGLE_FILE)).unwrap();
    for position in 0..whole.len() - 64 {
        for damage in [b'0', b'9', b'"', b'}', 0x00, 0xff] {
            let mut bytes = whole.clone();
            bytes[position] = damage;
            fs::write(folder.join(SINGLE_FILE), bytes).unwrap();
            let Ok(read) = Checkpoint::open(&folder) else {
                continue;
            };
            for name in read.tensors().names() {
                let _ = read.tensors().read_f32(&name);
            }
        }
    }
}

#[test]
fn huge_header_is_refused_without_allocating_it() {
    for len in [u64::MAX, u64::MAX - 7, 1 << 40, 100_000_001] {
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert_contains(&with_weights(&bytes), &["header", &len.to_string()]);
    }
}

#[test]
fn contradictory_headers_are_refused() {
    // Overlap, gap, and a shape that is not what the bytes hold.
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert_contains(&with_header(overlap, 12), &["offset", "b"]);
    let gap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert_contains(&with_header(gap, 8), &["offset", "a"]);
    let short = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
    assert_contains(&with_header(short, 8), &["shape"]);
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    assert_contains(&with_header(huge, 8), &["overflow"]);
    // Sizes whose sum passes the largest number a usize holds.
    let one = "2305843009213693951";
    let mut start = 0_u64;
    let mut parts = Vec::new();
    for index in 0..8 {
        let end = start + one.parse::<u64>().unwrap();
        parts.push(format!(
            r#""t{index}":{{"dtype":"U8","shape":[{one}],"data_offsets":[{start},{end}]}}"#
        ));
        start = end;
    }
    assert_contains(
        &with_header(&format!("{{{}}}", parts.join(",")), 8),
        &["holds 8"],
    );
    assert_contains(&with_header("[1, 2]", 0), &["header"]);
    let unknown = r#"{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}"#;
    assert_contains(&with_header(unknown, 4), &["F7"]);
}

#[test]
fn an_index_never_leads_out_of_the_folder() {
    for file in [
        "../x.safetensors",
        "/etc/passwd",
        "a/../../x",
        "sub/x.safetensors",
        "..",
        "",
        "a\\b",
    ] {
        let (_root, folder) = simple();
        fs::remove_file(folder.join(SINGLE_FILE)).unwrap();
        let index = json!({ "weight_map": { UP: file } });
        fs::write(folder.join(INDEX_FILE), index.to_string()).unwrap();
        assert_contains(&open_error(&folder), &[INDEX_FILE, "points to", UP]);
    }
}

#[test]
fn damaged_indices_are_refused() {
    let sharded = || {
        let mut model = Model::new(Vec::new());
        model.shards = two_layers(Dtype::F32)
            .into_iter()
            .map(|tensor| vec![tensor])
            .collect();
        write(&model)
    };
    let (_root, folder) = sharded();
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    assert_contains(&open_error(&folder), &["model-00002-of-00002.safetensors"]);

    for (index, said) in [
        ("[]", "object"),
        ("{", "EOF"),
        (r#"{"weight_map": {}}"#, "no tensor"),
        (r#"{"weight_map": {"a": 1}}"#, "file name"),
    ] {
        let (_root, folder) = sharded();
        fs::write(folder.join(INDEX_FILE), index).unwrap();
        assert_contains(&open_error(&folder), &[INDEX_FILE, said]);
    }

    let (_root, folder) = sharded();
    let index = json!({ "weight_map": {
        UP: "model-00001-of-00002.safetensors",
        "absent": "model-00002-of-00002.safetensors",
    } });
    fs::write(folder.join(INDEX_FILE), index.to_string()).unwrap();
    assert_contains(&open_error(&folder), &["absent", "no shard has it"]);

    let (_root, folder) = sharded();
    let first = folder.join("model-00001-of-00002.safetensors");
    fs::copy(&first, folder.join("model-00002-of-00002.safetensors")).unwrap();
    assert_contains(
        &open_error(&folder),
        &[UP, "model-00002-of-00002.safetensors"],
    );
}

#[test]
fn folders_that_are_no_models_are_refused() {
    let root = tempdir().unwrap();
    assert_contains(&open_error(&root.path().join("absent")), &["absent"]);
    assert_contains(&open_error(root.path()), &["config.json", ".gguf"]);
    fs::write(root.path().join(CONFIG_FILE), "{}").unwrap();
    assert_contains(&open_error(root.path()), &["no weights", SINGLE_FILE]);
    fs::write(root.path().join(CONFIG_FILE), "[]").unwrap();
    assert_contains(&open_error(root.path()), &["config.json", "object"]);
    fs::write(root.path().join(CONFIG_FILE), "{").unwrap();
    assert_contains(&open_error(root.path()), &["config.json", "EOF"]);
    let file = root.path().join("weights.bin");
    fs::write(&file, b"something else").unwrap();
    assert_contains(&open_error(&file), &["weights.bin", "GGUF"]);
}

#[test]
fn a_configuration_that_is_not_understood_is_told_with_its_file() {
    let (_root, folder) = simple();
    let error = TransformerConfig::of(&Checkpoint::open(&folder).unwrap()).unwrap_err();
    let file = folder.join(CONFIG_FILE).display().to_string();
    assert_contains(&error.to_string(), &[&file, "hidden_size"]);
}

#[test]
fn reading_refuses_absent_and_integer_tensors() {
    let ids = Tensor {
        name: "ids".into(),
        dtype: Dtype::I64,
        shape: vec![1],
        bytes: vec![0; 8],
    };
    let (_root, folder) = write(&Model::new(vec![ids, tensor("a", &[1], &[1.0])]));
    let tensors = Checkpoint::open(&folder).unwrap().tensors();
    assert_eq!(tensors.names(), ["a", "ids"]);
    assert_contains(
        &tensors.read_f32("ids").unwrap_err().to_string(),
        &["ids", "I64"],
    );
    assert_contains(&tensors.read_f32("b").unwrap_err().to_string(), &["b"]);
    assert!(tensors.info("b").is_none());
}

// --- writing -------------------------------------------------------------------------------

#[test]
fn round_trip_in_each_float_type_keeps_zeros_and_the_rest() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut tensors = two_layers(dtype);
        tensors.push(Tensor {
            name: "ids".into(),
            dtype: Dtype::I64,
            shape: vec![1],
            bytes: 7_i64.to_le_bytes().to_vec(),
        });
        // An infinity in a tensor that is only copied is the source's own affair.
        tensors.push(Tensor {
            name: "bias".into(),
            dtype: Dtype::F32,
            shape: vec![1],
            bytes: f32::NEG_INFINITY.to_le_bytes().to_vec(),
        });
        let (root, folder) = write(&Model::new(tensors));
        let source = Checkpoint::open(&folder).unwrap();
        let out = root.path().join("out");
        let mut writer = source
            .create_output(&out, &OutputOptions::default())
            .unwrap();
        let pruned = [0.0, -0.0, 0.5, 1.0 / 3.0, 0.0, 3.0, -7.0, 0.0];
        let stored = writer.store(UP, &pruned).unwrap();
        assert_eq!(stored.zeros, 4);
        assert!(!out.exists());
        let layer = ExpectedLayer {
            tensor: UP.into(),
            zeros: 4,
            pattern: Some((2, 4)),
        };
        let summary = writer.finish(&[layer]).unwrap();
        assert_eq!((summary.tensors, summary.files), (4, 1));
        assert_eq!(summary.path, fs::canonicalize(&out).unwrap());

        let written = Checkpoint::open(&out).unwrap();
        for name in source.tensors().names() {
            assert_eq!(
                written.tensors().info(&name),
                source.tensors().info(&name),
                "{name}"
            );
        }
        let values = written.tensors().read_f32(UP).unwrap();
        for (value, pruned) in values.iter().zip(pruned) {
            assert!((value - pruned).abs() <= 0.002 * pruned.abs());
            assert_eq!(*value == 0.0, pruned == 0.0);
        }
        for name in [DOWN, "ids", "bias"] {
            assert_eq!(
                written.source.stored_bytes(name).unwrap(),
                source.source.stored_bytes(name).unwrap()
            );
        }
        assert_eq!(entries(root.path()), ["model", "out"]);
    }
}

#[test]
fn an_unchanged_copy_is_the_same_file() {
    let (root, folder) = write(&Model::new(two_layers(Dtype::BF16)));
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    source
        .create_output(&out, &OutputOptions::default())
        .unwrap()
        .finish(&[])
        .unwrap();
    for name in [SINGLE_FILE, CONFIG_FILE] {
        assert_eq!(
            fs::read(out.join(name)).unwrap(),
            fs::read(folder.join(name)).unwrap()
        );
    }
}

#[test]
fn dtype_casts_all_float_tensors_and_the_configuration() {
    let mut model = Model::new(two_layers(Dtype::F32));
    model.config = json!({ "model_type": "llama", "dtype": "float32", "kept": [1, 2] });
    model.shards[0].push(tensor("tiny", &[2], &[1e-30, 1.0]));
    model.shards[0].push(Tensor {
        name: "mask".into(),
        dtype: Dtype::U8,
        shape: vec![3],
        bytes: vec![1, 2, 3],
    });
    let (root, folder) = write(&model);
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    let options = OutputOptions {
        dtype: Some(Dtype::F16),
        force: false,
    };
    let mut writer = source.create_output(&out, &options).unwrap();
    // 1e-30 becomes zero in f16 and is counted.
    let stored = writer
        .store(UP, &[0.0, 1e-30, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0])
        .unwrap();
    assert_eq!(stored.zeros, 4);
    let summary = writer
        .finish(&[ExpectedLayer {
            tensor: UP.into(),
            zeros: 3,
            pattern: None,
        }])
        .unwrap();
    // What the report does not count is told, of tensors that are only copied too.
    let cast_zeros = |tensor: &str| CastZeros {
        tensor: tensor.into(),
        zeros: 1,
    };
    assert_eq!(summary.cast_zeros, [cast_zeros(UP), cast_zeros("tiny")]);

    let written = Checkpoint::open(&out).unwrap();
    let dtype = |name: &str| written.tensors().info(name).unwrap().dtype;
    assert_eq!(
        [UP, DOWN, "tiny", "mask"].map(dtype),
        [Dtype::F16, Dtype::F16, Dtype::F16, Dtype::U8]
    );
    assert_eq!(written.tensors().read_f32("tiny").unwrap(), [0.0, 1.0]);
    assert_eq!(written.tensors().read_f32(DOWN).unwrap()[7], 2.0);
    assert_eq!(
        *written.config(),
        json!({ "model_type": "llama", "dtype": "float16", "kept": [1, 2] })
    );
    let options = OutputOptions {
        dtype: Some(Dtype::I8),
        force: false,
    };
    let error = source
        .create_output(&root.path().join("other"), &options)
        .unwrap_err();
    assert_contains(&error.to_string(), &["dtype", "bf16", "I8"]);
}

#[test]
fn values_that_do_not_fit_are_refused_and_nothing_is_left() {
    let (root, folder) = write(&Model::new(vec![
        tensor(UP, &[2], &[1.0, 2.0]),
        tensor(DOWN, &[1], &[1e6]),
    ]));
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    let options = OutputOptions {
        dtype: Some(Dtype::F16),
        force: false,
    };
    let mut writer = source.create_output(&out, &options).unwrap();
    let refused = |writer: &mut CheckpointWriter, name: &str, values: &[f32]| {
        writer.store(name, values).unwrap_err().to_string()
    };
    assert_contains(
        &refused(&mut writer, UP, &[1.0, 70_000.0]),
        &[UP, "70000", "overflows", "F16"],
    );
    assert_contains(&refused(&mut writer, UP, &[f32::NAN, 1.0]), &[UP, "NaN"]);
    assert_contains(&refused(&mut writer, UP, &[1.0]), &[UP, "[2]", "found 1"]);
    assert_contains(
        &refused(&mut writer, "lm_head.weight", &[1.0]),
        &["lm_head.weight"],
    );
    // The copied tensor overflows, too.
    let error = writer.finish(&[]).unwrap_err().to_string();
    assert_contains(&error, &[DOWN, "1000000", "overflows"]);
    assert_eq!(entries(root.path()), ["model"]);
}

#[test]
fn shards_and_companions_are_carried_along() {
    let mut model = Model::new(Vec::new());
    model.shards = two_layers(Dtype::F32)
        .into_iter()
        .map(|tensor| vec![tensor])
        .collect();
    model.companions = vec![
        ("tokenizer.json", b"{}".to_vec()),
        ("generation_config.json", b"{\"eos_token_id\": 2}".to_vec()),
        ("README.md", b"# Model".to_vec()),
        ("pytorch_model.bin", vec![1]),
        ("pytorch_model.bin.index.json", vec![1]),
        ("tf_model.h5", vec![1]),
        ("adapter.safetensors", vec![1]),
        ("model.onnx", vec![1]),
    ];
    let (root, folder) = write(&model);
    fs::create_dir(folder.join("original")).unwrap();
    fs::write(folder.join("original/params.json"), b"{}").unwrap();
    fs::write(folder.join("original/consolidated.00.bin"), [1]).unwrap();
    fs::create_dir(folder.join("onnx")).unwrap();
    fs::write(folder.join("onnx/model.onnx"), [1]).unwrap();
    let mut read_only = fs::metadata(folder.join(CONFIG_FILE))
        .unwrap()
        .permissions();
    read_only.set_readonly(true);
    fs::set_permissions(folder.join(CONFIG_FILE), read_only).unwrap();
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    let options = OutputOptions {
        dtype: Some(Dtype::BF16),
        force: false,
    };
    let mut writer = source.create_output(&out, &options).unwrap();
    writer.store(DOWN, &[0.0; 8]).unwrap();
    let summary = writer.finish(&[]).unwrap();
    assert_eq!((summary.files, summary.bytes), (2, 32));
    assert_eq!(
        entries(&out),
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            INDEX_FILE,
            "original",
            "tokenizer.json",
        ]
    );
    assert_eq!(entries(&out.join("original")), ["params.json"]);
    assert!(
        !fs::metadata(out.join(CONFIG_FILE))
            .unwrap()
            .permissions()
            .readonly()
    );
    let index = read_json(&out.join(INDEX_FILE)).unwrap();
    assert_eq!(
        index,
        json!({
            "metadata": { "total_size": 32, "total_parameters": 7 },
            "weight_map": {
                UP: "model-00001-of-00002.safetensors",
                DOWN: "model-00002-of-00002.safetensors",
            },
        })
    );
    let shard = shard::Shard::open(&out.join("model-00002-of-00002.safetensors")).unwrap();
    let metadata = shard.layout(String::new()).metadata.unwrap();
    assert_eq!(metadata.get("format").map(String::as_str), Some("pt"));
    let written = Checkpoint::open(&out).unwrap();
    assert_eq!(written.tensors().read_f32(DOWN).unwrap(), [0.0; 8]);
    assert_eq!(written.tensors().read_f32(UP).unwrap()[7], 2.0);
}

#[test]
fn a_checkpoint_without_head_stays_without() {
    let mut model = Model::new(vec![tensor(
        "model.embed_tokens.weight",
        &[2, 2],
        &[1.0; 4],
    )]);
    model.config = json!({ "tie_word_embeddings": true });
    let (root, folder) = write(&model);
    let out = root.path().join("out");
    let source = Checkpoint::open(&folder).unwrap();
    source
        .create_output(&out, &OutputOptions::default())
        .unwrap()
        .finish(&[])
        .unwrap();
    let written = Checkpoint::open(&out).unwrap();
    assert_eq!(written.tensors().names(), ["model.embed_tokens.weight"]);
    assert_eq!(written.config()["tie_word_embeddings"], true);
}

#[test]
fn a_place_in_use_is_refused() {
    let (root, folder) = simple();
    let source = Checkpoint::open(&folder).unwrap();
    let refused = |out: &Path, force: bool| {
        let options = OutputOptions { dtype: None, force };
        source.create_output(out, &options).unwrap_err().to_string()
    };
    let full = root.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine.txt"), "kept").unwrap();
    assert_contains(&refused(&full, false), &["full", "not empty", "--force"]);
    for force in [false, true] {
        assert_contains(&refused(&folder, force), &["source"]);
        assert_contains(&refused(&folder.join("pruned"), force), &["source"]);
        assert_contains(&refused(root.path(), force), &["source"]);
        assert_contains(&refused(&full.join("mine.txt"), force), &["no folder"]);
        assert_contains(&refused(Path::new("/"), force), &["/"]);
    }
    assert_eq!(fs::read(full.join("mine.txt")).unwrap(), b"kept");
    assert_eq!(entries(root.path()), ["full", "model"]);

    // What others put there while the run went on stays, too.
    let taken = root.path().join("taken");
    let run = source
        .create_output(&taken, &OutputOptions::default())
        .unwrap();
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("mine.txt"), "kept").unwrap();
    let error = run.finish(&[]).unwrap_err().to_string();
    assert_contains(&error, &["taken", "not empty now", "--force"]);
    assert_eq!(fs::read(taken.join("mine.txt")).unwrap(), b"kept");
    fs::remove_dir_all(&taken).unwrap();

    // An empty folder is free.
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    source
        .create_output(&empty, &OutputOptions::default())
        .unwrap()
        .finish(&[])
        .unwrap();
    assert!(Checkpoint::open(&empty).is_ok());
    assert_eq!(entries(root.path()), ["empty", "full", "model"]);
}

#[test]
fn force_replaces_only_by_a_proven_checkpoint() {
    let (root, folder) = simple();
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("old.txt"), "old").unwrap();
    let options = OutputOptions {
        dtype: None,
        force: true,
    };

    let mut writer = source.create_output(&out, &options).unwrap();
    writer
        .store(UP, &[0.0, 0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0])
        .unwrap();
    let layer = ExpectedLayer {
        tensor: UP.into(),
        zeros: 3,
        pattern: Some((2, 4)),
    };
    let error = writer.finish(&[layer]).unwrap_err().to_string();
    assert_contains(&error, &[UP, "2:4", "row 1", "columns 0 to 3"]);
    assert_eq!(entries(&out), ["old.txt"]);
    assert_eq!(entries(root.path()), ["model", "out"]);

    source
        .create_output(&out, &options)
        .unwrap()
        .finish(&[])
        .unwrap();
    assert_eq!(entries(&out), [CONFIG_FILE, SINGLE_FILE]);
    assert_eq!(entries(root.path()), ["model", "out"]);
}

#[test]
fn reports_that_the_file_does_not_bear_out_are_refused() {
    let (root, folder) = simple();
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    let finish = |stored: bool, layer: ExpectedLayer| {
        let mut writer = source
            .create_output(&out, &OutputOptions::default())
            .unwrap();
        if stored {
            writer
                .store(UP, &[0.0, 0.0, 1.0, 2.0, 0.0, 1.0, 0.0, 3.0])
                .unwrap();
        }
        writer.finish(&[layer]).unwrap_err().to_string()
    };
    let layer = |tensor: &str, zeros, pattern| ExpectedLayer {
        tensor: tensor.into(),
        zeros,
        pattern,
    };
    assert_contains(&finish(true, layer(UP, 5, None)), &[UP, "5", "found 4"]);
    // No cast explains a zero more in f32.
    assert_contains(&finish(true, layer(UP, 3, None)), &[UP, "3", "found 4"]);
    assert_contains(
        &finish(true, layer(UP, 4, Some((1, 2)))),
        &[UP, "1:2", "row 0", "columns 2"],
    );
    assert_contains(
        &finish(true, layer(UP, 4, Some((1, 3)))),
        &[UP, "1:3", "does not fit 4"],
    );
    assert_contains(&finish(true, layer(UP, 4, Some((1, 0)))), &[UP, "1:0"]);
    assert_contains(&finish(false, layer(UP, 0, None)), &[UP, "no new weight"]);
    assert_contains(&finish(true, layer("absent", 0, None)), &["absent"]);
    assert_eq!(entries(root.path()), ["model"]);
}

#[test]
fn a_file_changed_behind_the_writer_is_found() {
    let (root, folder) = simple();
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    // A zero that the writer did not count: the same file seen through its hidden folder.
    let mut writer = source
        .create_output(&out, &OutputOptions::default())
        .unwrap();
    writer.store(UP, &[1.0; 8]).unwrap();
    let weights = writer.staging().join(SINGLE_FILE);
    let mut bytes = fs::read(&weights).unwrap();
    let at = bytes
        .windows(4)
        .position(|window| window == 1.0_f32.to_le_bytes())
        .unwrap();
    bytes[at..at + 4].copy_from_slice(&0.0_f32.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let error = writer.finish(&[]).unwrap_err().to_string();
    assert_contains(&error, &[UP, "the 0 zeros", "found 1"]);
    assert_eq!(entries(root.path()), ["model"]);
}

#[test]
fn a_layer_rounded_before_it_is_stored_tells_its_cast_too() {
    let (root, folder) = write(&Model::new(two_layers(Dtype::F16)));
    let source = Checkpoint::open(&folder).unwrap();
    let out = root.path().join("out");
    let mut writer = source
        .create_output(&out, &OutputOptions::default())
        .unwrap();
    let values = vec![0.0, 1e-9, 1.0, 2.0, 0.0, -1e-9, 3.0, 4.0];
    let values = writer.rounded(UP, values).unwrap();
    writer.store(UP, &values).unwrap();
    let layer = ExpectedLayer {
        tensor: UP.into(),
        zeros: 2,
        pattern: None,
    };
    let proven = writer.prove(&[layer]).unwrap();
    assert!(!out.exists());
    let [CastZeros { tensor, zeros: 2 }] = &proven.summary().cast_zeros[..] else {
        panic!("{:?}", proven.summary());
    };
    assert_eq!(tensor, UP);
    fs::write(proven.staging().join("report.json"), "{}").unwrap();
    proven.put_in_place().unwrap();
    assert_eq!(entries(&out), [CONFIG_FILE, SINGLE_FILE, "report.json"]);
}

#[test]
fn a_proven_checkpoint_that_is_dropped_leaves_nothing() {
    let (root, folder) = simple();
    let source = Checkpoint::open(&folder).unwrap();
    let writer = source
        .create_output(&root.path().join("new/out"), &OutputOptions::default())
        .unwrap();
    drop(writer.prove(&[]).unwrap());
    assert_eq!(entries(root.path()), ["model"]);
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let (root, folder) = simple();
    let source = Checkpoint::open(&folder).unwrap();
    let writer = source
        .create_output(&root.path().join("out"), &OutputOptions::default())
        .unwrap();
    let staging = writer.staging().to_path_buf();
    assert!(staging.exists());
    drop(writer);
    assert!(!staging.exists());
    assert_eq!(entries(root.path()), ["model"]);
}

#[test]
fn parse_dtype_knows_the_usual_names() {
    for (name, dtype) in [
        ("F32", Dtype::F32),
        ("float16", Dtype::F16),
        ("half", Dtype::F16),
        ("bf16", Dtype::BF16),
    ] {
        assert_eq!(parse_dtype(name).unwrap(), dtype);
    }
    assert_contains(
        &parse_dtype("f64").unwrap_err().to_string(),
        &["dtype", "f64"],
    );
}

#[test]
fn an_overlay_reads_as_the_written_checkpoint_would() {
    let (root, folder) = write(&Model::new(two_layers(Dtype::F16)));
    let source = Checkpoint::open(&folder).unwrap();
    let overlay = Overlay::new(source.tensors());
    let pruned = [0.0, 1.0 / 3.0, 0.1, 0.0, 1e-30, 5.0, 6.0, 7.0];
    let mut sink = overlay.clone();
    assert_eq!(sink.store(UP, &pruned).unwrap().zeros, 3);
    assert!(sink.store(UP, &pruned[1..]).is_err());
    assert!(sink.store(UP, &[1e6; 8]).is_err());
    assert!(sink.store("absent", &pruned).is_err());
    assert_eq!(overlay.replaced_count(), 1);

    let out = root.path().join("out");
    let mut writer = source
        .create_output(&out, &OutputOptions::default())
        .unwrap();
    writer.store(UP, &pruned).unwrap();
    writer.finish(&[]).unwrap();
    let written = Checkpoint::open(&out).unwrap().tensors();
    assert_eq!(overlay.names(), written.names());
    for name in overlay.names() {
        assert_eq!(overlay.info(&name), written.info(&name));
        assert_eq!(
            overlay.read_f32(&name).unwrap(),
            written.read_f32(&name).unwrap()
        );
    }
}
