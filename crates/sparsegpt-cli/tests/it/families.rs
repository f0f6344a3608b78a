//! The commands on tiny models that are no plain decoders: an encoder, an encoder with a decoder, experts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use crate::common::families::{INNER, VOCABULARY, WIDTH, bert, ids, mixtral, t5, tokenizer, words};
use crate::common::{self, Tensor, fail, load, save, succeed, text};
use serde_json::Value;
use tempfile::TempDir;

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
    // Each further expert of a token runs two layers to calibrate, in both blocks, and all three to go on from block 0, and
    // adds to its Hessians.
    let step = |experts: usize| flops(experts + 1) - flops(experts);
    let running = (2.0 * 2.0 + 3.0) * 2.0 * 36.0 * (WIDTH * INNER) as f64;
    let grams = 2.0 * 36.0 * (WIDTH * WIDTH + INNER * INNER) as f64;
    for experts in 1..4 {
        assert!(
            (step(experts) / (running + grams) - 1.0).abs() < 1e-9,
            "{experts}"
        );
    }
}
