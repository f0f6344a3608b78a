//! Results in the layouts of other engines, and masks as files.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::common::{
    self, Tensor, calibration, entries, fail, load, model, perplexity, save, succeed, text,
};
use serde_json::Value;

/// A short run to `out`.
fn arguments<'a>(
    model: &'a str,
    calibration: &'a str,
    out: &'a str,
    more: &[&'a str],
) -> Vec<&'a str> {
    let mut arguments = vec!["prune", model, "--calibration", calibration, "--out", out];
    arguments.extend(["--samples", "4", "--sequence-length", "48"]);
    arguments.extend(more);
    arguments
}

fn run(out: &Path, more: &[&str]) -> common::Run {
    let (model, calibration) = (model(), calibration());
    succeed(&arguments(
        text(&model),
        text(&calibration),
        text(out),
        more,
    ))
}

fn refused(out: &Path, more: &[&str], named: &str) {
    let (model, calibration) = (model(), calibration());
    let arguments = arguments(text(&model), text(&calibration), text(out), more);
    fail(&arguments, 2, named);
    assert!(!out.exists());
}

#[test]
fn runs_that_aim_at_the_dense_model_are_packed_and_leave_their_masks() {
    let folder = tempfile::tempdir().unwrap();
    let (out, masks) = (folder.path().join("out"), folder.path().join("masks"));
    let joint = ["--pattern", "2:4", "--bits", "4", "--group-size", "64"];
    let more = ["--dense-targets", "0.25", "--format", "compressed-tensors"];
    let kept = ["--save-masks", text(&masks)];
    run(&out, &[&joint[..], &more, &kept].concat());
    let found = load(&out.join("model.safetensors"));
    let name = "model.layers.0.mlp.down_proj";
    assert_eq!(
        found[&format!("{name}.weight_packed")].shape,
        [192, 512 / 8]
    );
    assert_eq!(load(&masks)[name].shape, [192, 512]);
}

fn config(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap()
}

#[test]
fn packed_layers_stand_in_the_place_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let joint = ["--pattern", "2:4", "--bits", "4", "--group-size", "64"];
    let name = "model.layers.2.mlp.down_proj";
    let gptq = folder.path().join("gptq");
    let more = [&joint[..], &["--format", "gptq", "--first", "1"]].concat();
    run(&gptq, &more);
    let found = load(&gptq.join("model.safetensors"));
    assert!(!found.contains_key(&format!("{name}.weight")));
    let shape = |part: &str| found[&format!("{name}.{part}")].shape.clone();
    assert_eq!(shape("qweight"), [512 / 8, 192]);
    assert_eq!(shape("qzeros"), [8, 192 / 8]);
    assert_eq!(shape("scales"), [8, 192]);
    assert_eq!(shape("g_idx"), [512]);
    assert!(found.contains_key("model.layers.0.mlp.down_proj.weight"));
    let quantization = config(&gptq)["quantization_config"].clone();
    assert_eq!(quantization["quant_method"], "gptq");
    let left_out = quantization["dynamic"].as_object().unwrap();
    assert!(left_out.contains_key(r"-:^model\.layers\.0\.mlp\.down_proj$"));
    assert_eq!(entries(folder.path()), ["gptq"]);

    let compressed = folder.path().join("compressed");
    let more = [
        &joint[..],
        &["--format", "compressed-tensors", "--symmetric"],
    ]
    .concat();
    run(&compressed, &more);
    let found = load(&compressed.join("model.safetensors"));
    let shape = |part: &str| found[&format!("{name}.{part}")].shape.clone();
    assert_eq!(shape("weight_packed"), [192, 512 / 8]);
    assert_eq!(shape("weight_scale"), [192, 8]);
    assert!(!found.contains_key(&format!("{name}.weight_zero_point")));

    let out = folder.path().join("none");
    for (more, named) in [
        (&["--pattern", "2:4", "--format", "gptq"][..], "--bits"),
        (&["--bits", "5", "--format", "gptq"], "2, 3, 4, 8"),
        (
            &["--bits", "4", "--group-size", "128", "--format", "gptq"],
            "64",
        ),
        (
            &[
                "--bits",
                "4",
                "--group-size",
                "64",
                "--act-order",
                "--format",
                "compressed-tensors",
            ],
            "--static-groups",
        ),
        (
            &[
                "--pattern",
                "2:4",
                "--pattern",
                "50%",
                "--bits",
                "4",
                "--format",
                "gptq",
            ],
            "one --pattern",
        ),
    ] {
        refused(&out, more, named);
    }
}

#[test]
fn masks_go_out_and_come_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (first, second, masks) = (path("first"), path("second"), path("masks.safetensors"));
    run(
        &first,
        &[
            "--pattern",
            "2:4",
            "--only",
            "block:3",
            "--save-masks",
            text(&masks),
        ],
    );
    let kept = load(&masks);
    assert_eq!(kept.len(), 7);
    let name = "model.layers.3.mlp.up_proj";
    let mask = &kept[name];
    assert_eq!(mask.shape, [512, 192]);
    assert!(
        mask.bytes
            .chunks(4)
            .all(|group| group.iter().sum::<u8>() == 2)
    );

    let report = run(&second, &["--masks", text(&masks), "--json"]).json();
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 7);
    assert!(layers.iter().all(|layer| layer["pattern"] == "given mask"));
    let weights = load(&second.join("model.safetensors"));
    let weight = weights[&format!("{name}.weight")].bytes.chunks(2);
    let zeros = weight.zip(&mask.bytes).filter(|(_, kept)| **kept == 0);
    assert!(
        zeros
            .into_iter()
            .all(|(value, _)| value[0] == 0 && value[1] & 0x7f == 0)
    );
    // Extended: half of the weights stay pruned, and others are.
    let extended = path("extended");
    let more = ["--masks", text(&masks), "--pattern", "70%", "--json"];
    let report = run(&extended, &more).json();
    let pruned = &report["layers"][0]["pruned"];
    assert_eq!(pruned.as_u64().unwrap(), 192 * 192 * 7 / 10);
    // Nothing to extend: half is more than a tenth.
    let more = ["--masks", text(&masks), "--pattern", "10%", "--json"];
    let fewer = run(&path("fewer"), &more);
    assert!(
        fewer.stderr.contains("7 of 7 masks have more zeros"),
        "{}",
        fewer.stderr
    );
    let pruned = &fewer.json()["layers"][0]["pruned"];
    assert_eq!(pruned.as_u64().unwrap(), 192 * 192 / 2);

    // A run that was killed behind its masks goes on over them, and over no others.
    let left = path("again");
    let again = path("again.safetensors");
    let more = [
        "--pattern",
        "2:4",
        "--only",
        "block:3",
        "--save-masks",
        text(&again),
    ];
    fs::copy(&masks, &again).unwrap();
    refused(&left, &more, "--force");
    fs::create_dir(path(".again.unfinished")).unwrap();
    run(&left, &more);
    assert_eq!(fs::read(&masks).unwrap(), fs::read(&again).unwrap());
    fs::remove_dir_all(&left).unwrap();
    fs::create_dir(path(".again.unfinished")).unwrap();
    let mut other = fs::read(&again).unwrap();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&again, &other).unwrap();
    refused(&left, &more, "other masks");
    assert_eq!(fs::read(&again).unwrap(), other);

    let out = path("none");
    refused(
        &out,
        &["--masks", text(&masks), "--pattern", "2:4"],
        "--pattern",
    );
    refused(
        &out,
        &["--masks", text(&masks), "--rule", "mlp=2:4"],
        "--rule",
    );
    save(&masks, &[("no.such.layer", Tensor::u8(&[1, 1], &[1]))]);
    let (model, calibration) = (model(), calibration());
    let args = arguments(
        text(&model),
        text(&calibration),
        text(&out),
        &["--masks", text(&masks)],
    );
    fail(&args, 3, "no.such.layer");
    save(&masks, &[(name, Tensor::u8(&[1, 1], &[1]))]);
    fail(&args, 3, "mask");
}

#[test]
fn an_exported_model_says_what_it_said() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(), folder.path().join("jargon.gguf"));
    let export = ["export", text(&model), text(&out), "--type", "q8_0"];
    succeed(&export);
    fail(&export, 2, "--force");
    let (before, after) = (perplexity(&model), perplexity(&out));
    assert!((after / before - 1.0).abs() < 0.01, "{before} {after}");
}

#[test]
fn quantized_folders_are_models_and_are_packed_by_their_codes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let joint = ["--pattern", "50%", "--bits", "4", "--group-size", "64"];
    let floats = path("floats");
    run(&floats, &joint);
    for (format, more) in [("gptq", &[][..]), ("compressed-tensors", &["--symmetric"])] {
        let (out, packed, back) = (path(format), path("packed"), path("back"));
        run(&out, &[&joint[..], &["--format", format], more].concat());
        let of_codes = perplexity(&out);
        if format == "gptq" {
            // Where the scales are f16 and grids keep off the zero point 0.
            let ratio = of_codes / perplexity(&floats);
            assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
        }
        let report = succeed(&["pack", text(&out), "--out", text(&packed), "--json"]).json();
        let layers = report["layers"].as_array().unwrap();
        let inner = layers
            .iter()
            .filter(|layer| layer["name"].as_str().unwrap().contains("layers"));
        for layer in inner {
            assert_eq!(layer["dtype"], "int4", "{layer}");
            assert_eq!(layer["sparse"], true, "{layer}");
            // A bit for each weight, half of 4 bits, and grids, of 32.
            let bytes = layer["bytes"].as_f64().unwrap() / layer["dense_bytes"].as_f64().unwrap();
            assert!(bytes < 0.13, "{layer}");
        }
        assert_eq!(perplexity(&packed), of_codes);
        succeed(&["unpack", text(&packed), "--out", text(&back)]);
        assert!(config(&back).get("quantization_config").is_none());
        let ratio = perplexity(&back) / of_codes;
        assert!((ratio - 1.0).abs() < 1e-4, "{ratio}");
        for folder in [&packed, &back] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}
