//! The bundled model from end to end.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::common::{Tensor, calibration, entries, fail, load, model, save, succeed, text};

#[test]
fn a_pruned_model_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pruned");
    let (model, calibration) = (model(), calibration());
    let report = succeed(&[
        "prune",
        text(&model),
        "--calibration",
        text(&calibration),
        "--pattern",
        "50%",
        "--rule",
        "*down_proj=2:4",
        "--skip",
        "block:4",
        "--samples",
        "8",
        "--sequence-length",
        "64",
        "--out",
        text(&out),
        "--json",
    ])
    .json();
    assert_eq!(entries(folder.path()), ["pruned"]);
    let stored: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("sparsegpt_report.json")).unwrap()).unwrap();
    for key in ["version", "settings", "layers", "seconds", "calibration"] {
        assert_eq!(stored[key], report[key], "{key}");
    }
    assert_eq!(report["settings"]["rule"][0], "*down_proj=2:4");
    assert_eq!(report["calibration"]["sequence_length"], 64);
    assert_eq!(
        report["calibration"]["fingerprint"].as_str().unwrap().len(),
        16
    );
    assert_eq!(report["skipped"].as_array().unwrap().len(), 7);
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 28);

    let found = succeed(&["inspect", text(&out), "--json"]).json();
    for found in found["layers"].as_array().unwrap() {
        let name = found["name"]
            .as_str()
            .unwrap()
            .strip_suffix(".weight")
            .unwrap();
        let reported = layers.iter().find(|layer| layer["layer"] == name);
        if name.contains("layers.4.") {
            assert!(reported.is_none(), "{name}");
            assert!(found["fraction"].as_f64().unwrap() < 0.01, "{name}");
            continue;
        }
        let half = found["rows"].as_u64().unwrap() * found["columns"].as_u64().unwrap() / 2;
        assert_eq!(reported.unwrap()["pruned"], half, "{name}");
        // Rounding to f16 may make a zero more.
        assert!(found["zeros"].as_u64().unwrap() >= half, "{name}");
        let patterns = found["patterns"].to_string();
        assert_eq!(
            patterns.contains(r#"{"group":4,"zeros":2}"#),
            name.contains("down_proj"),
            "{name}: {patterns}"
        );
    }
    assert!(succeed(&["inspect", text(&out)]).stdout.contains("2:4"));

    let held_out = model.join("heldout.txt");
    let perplexity = |model: &str| {
        let args = [
            "eval",
            model,
            "--text",
            text(&held_out),
            "--limit",
            "6",
            "--json",
        ];
        let result = succeed(&args).json();
        assert_eq!(
            (&result["chunks"], &result["sequence_length"]),
            (&6.into(), &256.into())
        );
        result["perplexity"].as_f64().unwrap()
    };
    let (dense, pruned) = (perplexity(text(&model)), perplexity(text(&out)));
    assert!((20.0..60.0).contains(&dense), "{dense}");
    assert!(pruned > dense && pruned < 2.0 * dense, "{dense} {pruned}");

    let generate = [
        "generate",
        text(&out),
        "--prompt",
        "A hacker is",
        "--max-new-tokens",
        "12",
    ];
    let streamed = succeed(&generate).stdout;
    let mut args = generate.to_vec();
    args.push("--json");
    let whole = succeed(&args).json();
    assert_eq!(
        streamed.trim_end_matches('\n'),
        whole["text"].as_str().unwrap()
    );
    args.extend(["--temperature", "1", "--seed", "3"]);
    let drawn = succeed(&args).json();
    assert_eq!(drawn, succeed(&args).json());
    assert_ne!(drawn["tokens"], whole["tokens"]);
}

#[test]
fn logits_agree_with_greedy_generation() {
    let folder = tempfile::tempdir().unwrap();
    let (tokens, out) = (
        folder.path().join("t.safetensors"),
        folder.path().join("l.safetensors"),
    );
    let model = model();
    let generated = succeed(&[
        "generate",
        text(&model),
        "--prompt",
        "The",
        "--max-new-tokens",
        "6",
        "--json",
    ]);
    let ids: Vec<i32> = generated.json()["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_i64().unwrap() as i32)
        .collect();
    save(&tokens, &[("tokens", Tensor::i32(&[2, 3], &ids))]);
    let args = [
        "logits",
        text(&model),
        "--tokens",
        text(&tokens),
        "--out",
        text(&out),
        "--json",
    ];
    assert_eq!(
        succeed(&args).json()["shape"],
        serde_json::json!([2, 3, 1024])
    );
    let logits = &load(&out)["logits"];
    assert_eq!(logits.shape, [2, 3, 1024]);
    // The first sequence alone gives the same logits: nothing leaks between sequences.
    let alone = folder.path().join("alone.safetensors");
    save(&tokens, &[("tokens", Tensor::i32(&[1, 3], &ids[..3]))]);
    let args = [
        "logits",
        text(&model),
        "--tokens",
        text(&tokens),
        "--out",
        text(&alone),
    ];
    succeed(&args);
    let (both, alone) = (logits.to_f32(), load(&alone)["logits"].to_f32());
    assert_eq!(both[..3 * 1024], alone);
    assert!(both.iter().all(|value| value.is_finite()));
    fail(&args, 2, "--force");

    let missing = folder.path().join("new.safetensors");
    for (tensor, named) in [
        (Tensor::i32(&[6], &ids), "batch x time"),
        (Tensor::i32(&[1, 1], &[-1]), "-1"),
        (Tensor::i32(&[1, 2], &[7, 5000]), "found 5000"),
        (Tensor::i32(&[1, 257], &[1; 257]), "at most 256"),
        (Tensor::f32(&[1, 1], &[1.0]), "F32"),
    ] {
        save(&tokens, &[("tokens", tensor)]);
        let args = [
            "logits",
            text(&model),
            "--tokens",
            text(&tokens),
            "--out",
            text(&missing),
        ];
        let run = fail(&args, 3, named);
        assert!(run.stderr.contains("t.safetensors"), "{run:?}");
        assert!(!missing.exists());
    }
}

#[test]
fn a_recipe_file_says_what_the_flags_say() {
    let folder = tempfile::tempdir().unwrap();
    let (model, calibration) = (model(), calibration());
    let recipe = folder.path().join("recipe.toml");
    fs::write(
        &recipe,
        format!(
            "pattern = '2:4'\nbits = 3\ngroup-size = 64\nsymmetric = true\nonly = ['block:1']\n\
             samples = 2\nsequence-length = 32\nseed = 5\nthreads = 1\ncalibration = {:?}\n",
            text(&calibration)
        ),
    )
    .unwrap();
    let by_recipe = folder.path().join("by_recipe");
    let by_flags = folder.path().join("by_flags");
    let first = succeed(&[
        "prune",
        text(&model),
        "--recipe-file",
        text(&recipe),
        "--bits",
        "4",
        "--out",
        text(&by_recipe),
        "--json",
    ])
    .json();
    let second = succeed(&[
        "prune",
        text(&model),
        "--pattern",
        "2:4",
        "--bits",
        "4",
        "--group-size",
        "64",
        "--symmetric",
        "--only",
        "block:1",
        "--samples",
        "2",
        "--sequence-length",
        "32",
        "--seed",
        "5",
        "--threads",
        "1",
        "--calibration",
        text(&calibration),
        "--out",
        text(&by_flags),
        "--json",
    ])
    .json();
    assert_eq!(first["settings"], second["settings"]);
    assert_eq!(first["settings"]["bits"], 4);
    assert_eq!(
        first["layers"][0]["quantization"],
        "4 bit symmetric, groups of 64"
    );
    assert_eq!(first["layers"].as_array().unwrap().len(), 7);
    let weights = |out: &std::path::Path| fs::read(out.join("model.safetensors")).unwrap();
    assert!(weights(&by_recipe) == weights(&by_flags));

    fs::write(&recipe, "patern = '2:4'\n").unwrap();
    let out = folder.path().join("none");
    fail(
        &[
            "prune",
            text(&model),
            "--recipe-file",
            text(&recipe),
            "--out",
            text(&out),
        ],
        3,
        "patern",
    );
    assert!(!out.exists());
}

#[test]
fn the_type_can_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let model = model();
    let args = [
        "prune",
        text(&model),
        "--method",
        "magnitude",
        "--pattern",
        "row:40%",
        "--dtype",
        "bf16",
        "--out",
        text(&out),
    ];
    let summary = succeed(&args).stdout;
    assert!(summary.contains("same speed"), "{summary}");
    let tensors = load(&out.join("model.safetensors"));
    assert!(
        tensors
            .values()
            .all(|tensor| tensor.dtype == safetensors::Dtype::BF16)
    );
}

#[test]
fn zeros_that_the_cast_makes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("source"), folder.path().join("out"));
    fs::create_dir(&source).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(model().join(name), source.join(name)).unwrap();
    }
    // In two layers, half of each row is too small for f16; in f32 nothing is.
    let tiny = ["self_attn.q_proj.weight", "mlp.up_proj.weight"].map(|part| {
        let name = format!("model.layers.1.{part}");
        let shape = load(&model().join("model.safetensors"))[&name]
            .shape
            .clone();
        (name, shape)
    });
    let mut tensors = load(&model().join("model.safetensors"));
    for tensor in tensors.values_mut() {
        let halves = tensor.bytes.as_chunks().0.iter();
        let values: Vec<f32> = halves
            .map(|&bytes| half::f16::from_le_bytes(bytes).to_f32())
            .collect();
        *tensor = Tensor::f32(&tensor.shape, &values);
    }
    for (name, shape) in &tiny {
        let values: Vec<f32> = (0..shape[0] * shape[1])
            .map(|at| if at % 2 == 0 { 1e-9 } else { 0.5 })
            .collect();
        tensors.insert(name.clone(), Tensor::f32(shape, &values));
    }
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    save(&source.join("model.safetensors"), &tensors);
    let mut args = vec!["prune", text(&source), "--out", text(&out), "--force"];
    args.extend(["--method", "magnitude", "--pattern", "row:25%"]);
    args.extend(["--only", "block:1"]);
    let as_f16 = [&args[..], &["--dtype", "f16"]].concat();

    // A quarter is pruned, another quarter is lost in the cast.
    let told = succeed(&as_f16).stdout;
    let lost: Vec<usize> = tiny
        .iter()
        .map(|(_, shape)| shape[0] * shape[1] / 4)
        .collect();
    assert!(told.contains("more zeros"), "{told}");
    let report = succeed(&[&as_f16[..], &["--json"]].concat()).json();
    for (name, &lost) in tiny.iter().map(|(name, _)| name).zip(&lost) {
        let listed = report["cast_zeros"].as_array().unwrap();
        let of_layer = listed.iter().find(|cast| cast["tensor"] == **name);
        assert_eq!(of_layer.unwrap()["zeros"], lost, "{report}");
    }
    let stored = fs::read(out.join("sparsegpt_report.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&stored).unwrap();
    assert_eq!(stored["cast_zeros"], report["cast_zeros"]);
    // What is told and what is in the file agree.
    let found = succeed(&["inspect", text(&out), "--json"]).json();
    let found = found["layers"].as_array().unwrap();
    for layer in report["layers"].as_array().unwrap() {
        let name = format!("{}.weight", layer["layer"].as_str().unwrap());
        let cast = report["cast_zeros"].as_array().unwrap();
        let cast = cast.iter().find(|cast| cast["tensor"] == name);
        let cast = cast.map_or(0, |cast| cast["zeros"].as_u64().unwrap());
        let in_file = found.iter().find(|found| found["name"] == name).unwrap();
        assert_eq!(
            in_file["zeros"].as_u64().unwrap(),
            layer["zeros"].as_u64().unwrap() + cast,
            "{name}"
        );
    }

    // Nothing is lost in f32, and nothing is told.
    let told = succeed(&args).stdout;
    assert!(!told.contains("more zeros"), "{told}");
}

#[test]
fn the_demo_compares_methods() {
    let report = succeed(&["demo", "--limit", "8", "--json"]).json();
    let rows = report["rows"].as_array().unwrap();
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row["pattern"].as_str().unwrap(),
                row["method"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        cells,
        [
            ("dense", ""),
            ("50%", "magnitude"),
            ("50%", "sparsegpt"),
            ("2:4", "magnitude"),
            ("2:4", "sparsegpt")
        ]
    );
    let rise = |row: usize| rows[row]["rise"].as_f64().unwrap();
    assert!(
        rise(1) > 1.4 * rise(2) && rise(3) > 1.4 * rise(4),
        "{rows:?}"
    );
    assert!(rise(2) > 0.0);
    assert!(rows[1..].iter().all(|row| row["zeros"] == 0.5));
    assert!(
        rows.iter()
            .all(|row| !row["sample"].as_str().unwrap().is_empty())
    );
}
