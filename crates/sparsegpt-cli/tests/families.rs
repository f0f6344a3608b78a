//! The commands on tiny models that are no plain decoders: an encoder, an encoder with a decoder, experts.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Tensor, fail, load, noise, save, succeed, text};
use serde_json::{Value, json};
use tempfile::TempDir;

const VOCABULARY: usize = 40;
const WIDTH: usize = 16;
const INNER: usize = 24;

/// A checkpoint of random weights: norms (one size) around 1, the rest around 0.
fn checkpoint(folder: &Path, config: &Value, shapes: &[(String, Vec<usize>)]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let tensors: Vec<(&str, Tensor)> = shapes
        .iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let is_norm = shape.len() == 1 && name.ends_with("weight");
            let values: Vec<f32> = noise(shape.iter().product(), seed as u64 + 1)
                .into_iter()
                .map(|value| 0.3 * value + if is_norm { 1.0 } else { 0.0 })
                .collect();
            (name.as_str(), Tensor::f32(shape, &values))
        })
        .collect();
    save(&folder.join("model.safetensors"), &tensors);
}

fn bert(folder: &Path) {
    let mut shapes = Vec::new();
    let mut weight = |name: &str, shape: &[usize]| {
        shapes.push((format!("{name}.weight"), shape.to_vec()));
    };
    weight("bert.embeddings.word_embeddings", &[VOCABULARY, WIDTH]);
    weight("bert.embeddings.position_embeddings", &[32, WIDTH]);
    weight("bert.embeddings.token_type_embeddings", &[2, WIDTH]);
    let mut biased = vec![
        ("bert.embeddings.LayerNorm".to_owned(), vec![WIDTH]),
        (
            "cls.predictions.transform.dense".to_owned(),
            vec![WIDTH, WIDTH],
        ),
        (
            "cls.predictions.transform.LayerNorm".to_owned(),
            vec![WIDTH],
        ),
    ];
    for block in 0..2 {
        for (part, shape) in [
            ("attention.self.query", vec![WIDTH, WIDTH]),
            ("attention.self.key", vec![WIDTH, WIDTH]),
            ("attention.self.value", vec![WIDTH, WIDTH]),
            ("attention.output.dense", vec![WIDTH, WIDTH]),
            ("attention.output.LayerNorm", vec![WIDTH]),
            ("intermediate.dense", vec![INNER, WIDTH]),
            ("output.dense", vec![WIDTH, INNER]),
            ("output.LayerNorm", vec![WIDTH]),
        ] {
            biased.push((format!("bert.encoder.layer.{block}.{part}"), shape));
        }
    }
    for (name, shape) in biased {
        shapes.push((format!("{name}.bias"), vec![shape[0]]));
        shapes.push((format!("{name}.weight"), shape));
    }
    shapes.push(("cls.predictions.bias".to_owned(), vec![VOCABULARY]));
    let config = json!({
        "model_type": "bert", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 32,
    });
    checkpoint(folder, &config, &shapes);
}

fn t5(folder: &Path) {
    let mut shapes = vec![("shared.weight".to_owned(), vec![VOCABULARY, WIDTH])];
    for (stack, parts) in [
        ("encoder", &["SelfAttention"][..]),
        ("decoder", &["SelfAttention", "EncDecAttention"]),
    ] {
        shapes.push((format!("{stack}.final_layer_norm.weight"), vec![WIDTH]));
        let bias = "block.0.layer.0.SelfAttention.relative_attention_bias";
        shapes.push((format!("{stack}.{bias}.weight"), vec![32, 2]));
        for block in 0..2 {
            let mut add = |layer: usize, part: &str, shape: &[usize]| {
                let name = format!("{stack}.block.{block}.layer.{layer}.{part}.weight");
                shapes.push((name, shape.to_vec()));
            };
            for (layer, attention) in parts.iter().enumerate() {
                add(layer, "layer_norm", &[WIDTH]);
                for part in ["q", "k", "v", "o"] {
                    add(layer, &format!("{attention}.{part}"), &[WIDTH, WIDTH]);
                }
            }
            add(parts.len(), "layer_norm", &[WIDTH]);
            add(parts.len(), "DenseReluDense.wi", &[INNER, WIDTH]);
            add(parts.len(), "DenseReluDense.wo", &[WIDTH, INNER]);
        }
    }
    let config = json!({
        "model_type": "t5", "d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": 2, "num_heads": 2,
        "vocab_size": VOCABULARY, "is_encoder_decoder": true, "decoder_start_token_id": 0,
    });
    checkpoint(folder, &config, &shapes);
}

fn mixtral(folder: &Path, active: usize) {
    let mut shapes = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, WIDTH],
        ),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for block in 0..2 {
        let mut add = |part: &str, shape: &[usize]| {
            shapes.push((
                format!("model.layers.{block}.{part}.weight"),
                shape.to_vec(),
            ));
        };
        for part in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{part}_proj"), &[WIDTH, WIDTH]);
        }
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
        add("block_sparse_moe.gate", &[4, WIDTH]);
        for expert in 0..4 {
            for (part, shape) in [
                ("w1", [INNER, WIDTH]),
                ("w2", [WIDTH, INNER]),
                ("w3", [INNER, WIDTH]),
            ] {
                add(&format!("block_sparse_moe.experts.{expert}.{part}"), &shape);
            }
        }
    }
    let config = json!({
        "model_type": "mixtral", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "num_local_experts": 4,
        "num_experts_per_tok": active, "max_position_embeddings": 64, "sliding_window": null,
    });
    checkpoint(folder, &config, &shapes);
}

/// Ready token ids without special ones, rows x 12.
fn ids(rows: usize) -> Tensor {
    let ids: Vec<i32> = noise(rows * 12, 77)
        .into_iter()
        .map(|value| 20 + (value.abs() * 19.0) as i32)
        .collect();
    Tensor::i32(&[rows, 12], &ids)
}

/// A tokenizer of words w20 to w39 and of these special tokens, `before` and `behind` a text.
fn tokenizer(folder: &Path, special: &[(&str, usize)], before: &str, behind: &str) {
    let mut vocabulary = serde_json::Map::new();
    let mut added = Vec::new();
    for &(token, id) in special {
        vocabulary.insert(token.to_owned(), id.into());
        added.push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    for id in 20..VOCABULARY {
        vocabulary.insert(format!("w{id}"), id.into());
    }
    let of = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let mut template = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut tokens = serde_json::Map::new();
    for (at, token) in [(0, before), (usize::MAX, behind)] {
        if token.is_empty() {
            continue;
        }
        template.insert(at.min(template.len()), of(token));
        let id = vocabulary[token].clone();
        tokens.insert(
            token.to_owned(),
            json!({ "id": token, "ids": [id], "tokens": [token] }),
        );
    }
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing", "single": template, "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } },
            ], "special_tokens": tokens,
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": special[0].0 },
    });
    fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
}

fn words(folder: &Path) -> PathBuf {
    let path = folder.join("words.txt");
    let words: Vec<String> = noise(600, 5)
        .into_iter()
        .map(|value| format!("w{}", 20 + (value.abs() * 19.0) as usize))
        .collect();
    fs::write(&path, words.join(" ")).unwrap();
    path
}

#[test]
fn an_encoder_is_pruned_and_has_no_perplexity() {
    let folder = TempDir::new().unwrap();
    let nowhere = folder.path().join("nowhere");
    let nowhere = text(&nowhere);
    let (model, out) = (folder.path().join("bert"), folder.path().join("pruned"));
    bert(&model);
    let file = folder.path().join("ids.safetensors");
    let mut mask = vec![1; 8 * 12];
    mask[7..12].fill(0);
    save(
        &file,
        &[
            ("tokens", ids(8)),
            ("attention_mask", Tensor::i32(&[8, 12], &mask)),
        ],
    );
    let (model, file) = (text(&model), text(&file));
    let prune = [
        "prune",
        model,
        "--calibration",
        file,
        "--pattern",
        "50%",
        "--json",
    ];
    let run = succeed(&[&prune[..], &["--out", text(&out)]].concat()).json();
    let layers = run["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 12);
    assert!(layers.iter().all(|layer| layer["tokens"] == 8 * 12 - 5));

    let logits = folder.path().join("logits.safetensors");
    succeed(&[
        "logits",
        text(&out),
        "--tokens",
        file,
        "--out",
        text(&logits),
    ]);
    assert_eq!(load(&logits)["logits"].shape, [8, 12, VOCABULARY]);
    fail(&["eval", model, "--text", file], 3, "bert is an encoder");
    fail(
        &["generate", model, "--prompt", "w20"],
        3,
        "bert is an encoder",
    );

    // Hiding ready ids takes a token that hides.
    let masked = [&prune[..], &["--mask-rate", "30%", "--out", nowhere]].concat();
    fail(&masked, 3, "tokenizer.json");
    let masked = [
        &prune[..],
        &["--mask-rate", "30%", "--mask-token", "4", "--out"],
    ]
    .concat();
    let out = folder.path().join("masked");
    let run = succeed(&[&masked[..], &[text(&out)]].concat()).json();
    let source = run["calibration"]["source"].as_str().unwrap();
    assert!(source.contains("30 % of the tokens hidden"), "{source}");
}

#[test]
fn an_encoder_is_calibrated_on_text_with_tokens_hidden() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("bert");
    bert(&model);
    let special = [
        ("[UNK]", 4),
        ("[PAD]", 0),
        ("[CLS]", 1),
        ("[SEP]", 2),
        ("[MASK]", 3),
    ];
    tokenizer(&model, &special, "[CLS]", "[SEP]");
    let words = words(folder.path());
    let run = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        let args = [
            "prune",
            text(&model),
            "--calibration",
            text(&words),
            "--pattern",
            "50%",
            "--samples",
            "9",
            "--sequence-length",
            "30",
            "--seed",
            seed,
            "--json",
            "--out",
            text(&out),
        ];
        let report = succeed(&args).json();
        (
            report["calibration"].clone(),
            fs::read(out.join("model.safetensors")).unwrap(),
        )
    };
    let (calibration, weights) = run("a", "1");
    assert_eq!(calibration["sequence_length"], 30);
    let source = calibration["source"].as_str().unwrap();
    assert!(source.contains("15 % of the tokens hidden"), "{source}");
    assert_eq!(run("b", "1"), (calibration.clone(), weights));
    assert_ne!(run("c", "2").0["fingerprint"], calibration["fingerprint"]);
}

#[test]
fn an_encoder_with_a_decoder_is_calibrated_on_text_with_spans_taken_out() {
    let folder = TempDir::new().unwrap();
    let nowhere = folder.path().join("nowhere");
    let nowhere = text(&nowhere);
    let model = folder.path().join("t5");
    t5(&model);
    let prune = |out: &str, calibration: &Path| {
        let args = [
            "prune",
            text(&model),
            "--calibration",
            text(calibration),
            "--pattern",
            "2:4",
            "--samples",
            "4",
            "--json",
            "--out",
            out,
        ];
        args.map(str::to_owned).to_vec()
    };
    let run = |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        succeed(&args).json()
    };
    let ready = folder.path().join("ready.safetensors");
    save(&ready, &[("tokens", ids(4)), ("decoder_tokens", ids(4))]);
    let out = folder.path().join("of_ids");
    let report = run(prune(text(&out), &ready));
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2 * 6 + 2 * 10);
    assert!(
        layers[0]["layer"]
            .as_str()
            .unwrap()
            .starts_with("encoder.block.0")
    );
    let logits = folder.path().join("logits.safetensors");
    succeed(&[
        "logits",
        text(&out),
        "--tokens",
        text(&ready),
        "--out",
        text(&logits),
    ]);
    assert_eq!(load(&logits)["logits"].shape, [4, 12, VOCABULARY]);
    // Ids of the encoder alone.
    let alone = folder.path().join("alone.safetensors");
    save(&alone, &[("tokens", ids(4))]);
    let args = prune(nowhere, &alone);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let failed = common::run(&args);
    assert!(failed.stderr.contains("decoder tokens"), "{failed:?}");
    fail(
        &[
            "logits",
            text(&model),
            "--tokens",
            text(&alone),
            "--out",
            nowhere,
        ],
        3,
        "decoder_tokens",
    );

    let sentinels = [
        "<extra_id_0>",
        "<extra_id_1>",
        "<extra_id_2>",
        "<extra_id_3>",
    ];
    let mut special = vec![("<unk>", 2), ("<pad>", 0), ("</s>", 1)];
    special.extend(
        sentinels
            .iter()
            .zip((10..14).rev())
            .map(|(&name, id)| (name, id)),
    );
    tokenizer(&model, &special, "", "</s>");
    let words = words(folder.path());
    let length = ["--sequence-length", "40"].map(str::to_owned);
    let out = folder.path().join("of_text");
    let report = run([prune(text(&out), &words), length.to_vec()].concat());
    // 6 of 40 tokens in 2 spans: 34 + 2 sentinels + the end, and the start + 2 sentinels + 6.
    assert_eq!(report["calibration"]["sequence_length"], 37);
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers[0]["tokens"], 4 * 37);
    assert_eq!(layers.last().unwrap()["tokens"], 4 * 9);
    fail(
        &["eval", text(&model), "--text", text(&words)],
        3,
        "t5 is an encoder with a decoder",
    );
}

#[test]
fn starved_experts_follow_the_flags_and_stand_in_the_report() {
    let folder = TempDir::new().unwrap();
    let nowhere = folder.path().join("nowhere");
    let nowhere = text(&nowhere);
    let model = folder.path().join("mixtral");
    mixtral(&model, 1);
    let file = folder.path().join("ids.safetensors");
    save(&file, &[("tokens", ids(3))]);
    let out = |name: &str| folder.path().join(name);
    let run = |name: &str, flags: &[&str]| {
        let out = out(name);
        let args = [
            "prune",
            text(&model),
            "--calibration",
            text(&file),
            "--pattern",
            "50%",
            "--json",
            "--out",
            text(&out),
        ];
        succeed(&[&args[..], flags].concat()).json()
    };
    let shared = run(
        "shared",
        &["--starved-experts", "share", "--min-expert-tokens", "37"],
    );
    let starved = shared["starved"].as_array().unwrap();
    // 36 tokens in all: each expert has too few.
    assert_eq!(starved.len(), 2 * 4 * 3);
    assert!(
        starved
            .iter()
            .all(|s| s["treatment"] == "share" && s["least_tokens"] == 37)
    );
    let tokens = |report: &Value| -> u64 {
        let layers = report["layers"].as_array().unwrap().iter();
        let gates = layers.filter(|layer| layer["layer"].as_str().unwrap().ends_with(".w1"));
        gates.map(|layer| layer["tokens"].as_u64().unwrap()).sum()
    };
    assert_eq!(tokens(&shared), 2 * 4 * 36);
    let routed = run("routed", &["--min-expert-tokens", "0"]);
    // An expert without any token is starved whatever the number.
    assert_eq!(tokens(&routed), 2 * 36);
    let starved = routed["starved"].as_array().unwrap();
    assert!(starved.iter().all(|s| s["tokens"] == 0));
    let magnitude = run("magnitude", &["--min-expert-tokens", "300%"]);
    assert!(
        magnitude["starved"]
            .as_array()
            .unwrap()
            .iter()
            .all(|s| s["treatment"] == "magnitude")
    );
    let refused = [
        "prune",
        text(&model),
        "--calibration",
        text(&file),
        "--pattern",
        "50%",
        "--out",
        nowhere,
        "--starved-experts",
        "error",
        "--min-expert-tokens",
    ];
    let failed = common::run(&[&refused[..], &["37"]].concat());
    assert!(
        failed.stderr.contains("block_sparse_moe.experts.0.w1"),
        "{failed:?}"
    );
    assert!(failed.stderr.contains("fewer than the 37"), "{failed:?}");
    fail(
        &[&refused[..], &["few"]].concat(),
        2,
        "--min-expert-tokens few",
    );
    fail(
        &[&refused[..8], &["--mask-rate", "15%"]].concat(),
        2,
        "--mask-rate and --mask-token are for encoders",
    );

    // A plan counts for an expert the tokens that it may expect.
    let flops = |active: usize| {
        let model = out(&format!("active_{active}"));
        mixtral(&model, active);
        let args = [
            "prune",
            text(&model),
            "--calibration",
            text(&file),
            "--pattern",
            "50%",
            "--dry-run",
            "--json",
        ];
        succeed(&args).json()["flops"].as_f64().unwrap()
    };
    // Each further expert of a token runs three layers twice in block 0 and once in block 1, and adds to its Hessians.
    let step = |experts: usize| flops(experts + 1) - flops(experts);
    let running = 3.0 * 2.0 * 36.0 * (3 * WIDTH * INNER) as f64;
    let grams = 2.0 * 36.0 * (WIDTH * WIDTH + INNER * INNER) as f64;
    for experts in 1..4 {
        assert!(
            (step(experts) / (running + grams) - 1.0).abs() < 1e-9,
            "{experts}"
        );
    }
}
