//! What is there for decoders is there for the other families: packing, layouts of other engines, several patterns, runs that
//! are gone on with, comparison, repair. Where it cannot be, an error says so.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::families::{VOCABULARY, bert, ids, mixtral, t5};
use crate::common::{entries, fail, load, model, save, succeed, text};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model and token ids for it.
struct Given {
    name: &'static str,
    folder: TempDir,
    model: PathBuf,
    ids: PathBuf,
}

impl Given {
    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn prune(&self, out: &Path, flags: &[&str]) -> Value {
        let args = [
            "prune",
            text(&self.model),
            "--calibration",
            text(&self.ids),
            "--out",
            text(out),
            "--json",
        ];
        succeed(&[&args[..], flags].concat()).json()
    }

    fn logits(&self, model: &Path) -> Vec<f32> {
        let out = self.out("logits.safetensors");
        let args = ["logits", text(model), "--tokens", text(&self.ids), "--out"];
        succeed(&[&args[..], &[text(&out), "--force"]].concat());
        let logits = &load(&out)["logits"];
        assert_eq!(logits.shape, [4, 12, VOCABULARY]);
        logits.to_f32()
    }
}

/// An encoder, an encoder with a decoder, experts.
fn all() -> [Given; 3] {
    [
        ("bert", &bert as &dyn Fn(&Path)),
        ("t5", &t5),
        ("mixtral", &|folder| mixtral(folder, 2)),
    ]
    .map(|(name, write)| {
        let folder = TempDir::new().unwrap();
        let (model, file) = (
            folder.path().join(name),
            folder.path().join("ids.safetensors"),
        );
        write(&model);
        let mut tensors = vec![("tokens", ids(4))];
        if name == "t5" {
            tensors.push(("decoder_tokens", ids(4)));
        }
        save(&file, &tensors);
        Given {
            name,
            folder,
            model,
            ids: file,
        }
    })
}

fn weights(model: &Path) -> Vec<u8> {
    fs::read(model.join("model.safetensors")).unwrap()
}

#[test]
fn packed_they_are_what_they_were() {
    for given in all() {
        let (pruned, packed, back) = (given.out("pruned"), given.out("packed"), given.out("back"));
        given.prune(&pruned, &["--pattern", "60%"]);
        let report = succeed(&["pack", text(&pruned), "--out", text(&packed), "--json"]).json();
        let layers = report["layers"].as_array().unwrap();
        assert!(
            layers.iter().any(|layer| layer["sparse"] == true),
            "{report}"
        );
        let (before, after) = (given.logits(&pruned), given.logits(&packed));
        let most = before
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        for (before, after) in before.iter().zip(&after) {
            assert!(
                (before - after).abs() < 1e-4 * most,
                "{}: {before} {after}",
                given.name
            );
        }
        succeed(&["unpack", text(&packed), "--out", text(&back)]);
        assert!(weights(&pruned) == weights(&back), "{}", given.name);
    }
}

#[test]
fn several_patterns_come_from_one_pass_and_a_plan_tells_them() {
    for given in all() {
        let several = ["--pattern", "50%", "--pattern", "2:4"];
        let out = given.out("several");
        let plan = given.prune(&out, &[&several[..], &["--dry-run"]].concat());
        assert!(!out.exists());
        let planned = plan["variants"].as_array().unwrap();
        let report = given.prune(&out, &several);
        let variants = report["variants"].as_array().unwrap();
        assert_eq!((planned.len(), variants.len()), (2, 2));
        for (planned, variant) in planned.iter().zip(variants) {
            let layers = variant["layers"].as_array().unwrap();
            assert_eq!(planned["layers"].as_array().unwrap().len(), layers.len());
            for layer in layers {
                let size = layer["rows"].as_u64().unwrap() * layer["cols"].as_u64().unwrap();
                assert_eq!(layer["zeros"].as_u64().unwrap(), size / 2, "{layer}");
            }
        }
        assert_eq!(entries(&out).len(), 2, "{:?}", entries(&out));
    }
}

#[test]
fn their_blocks_can_be_calibrated_stage_by_stage_or_on_the_dense_model() {
    for given in all() {
        let plain = given.out("plain");
        given.prune(&plain, &["--pattern", "50%"]);
        for (name, flags) in [
            ("stages", &["--true-sequential"][..]),
            ("dense", &["--dense-targets", "0.5"]),
        ] {
            let out = given.out(name);
            let report = given.prune(&out, &[&["--pattern", "50%"], flags].concat());
            for layer in report["layers"].as_array().unwrap() {
                let size = layer["rows"].as_u64().unwrap() * layer["cols"].as_u64().unwrap();
                assert_eq!(layer["zeros"].as_u64().unwrap(), size / 2, "{layer}");
            }
            assert!(weights(&out) != weights(&plain), "{} {name}", given.name);
        }
    }
}

#[test]
fn other_engines_are_told_what_is_not_quantized() {
    for given in all() {
        let head = match given.name {
            "bert" => "cls.predictions.decoder",
            _ => "lm_head",
        };
        for format in ["gptq", "compressed-tensors"] {
            let out = given.out(format);
            let report = given.prune(
                &out,
                &["--pattern", "50%", "--bits", "4", "--format", format],
            );
            let tensors = load(&out.join("model.safetensors"));
            let parts = match format {
                "gptq" => "qweight",
                _ => "weight_packed",
            };
            for layer in report["layers"].as_array().unwrap() {
                let name = layer["layer"].as_str().unwrap();
                assert!(tensors.contains_key(&format!("{name}.{parts}")), "{name}");
            }
            let config = fs::read_to_string(out.join("config.json")).unwrap();
            let config: Value = serde_json::from_str(&config).unwrap();
            let quantization = &config["quantization_config"];
            if format == "compressed-tensors" {
                let ignored = quantization["ignore"].as_array().unwrap();
                assert!(ignored.contains(&head.into()), "{quantization}");
            }
        }
        let gguf = given.out("model.gguf");
        let named = format!("{:?} cannot be written as GGUF", given.name);
        fail(&["export", text(&given.model), text(&gguf)], 3, &named);
        assert!(!gguf.exists());
    }
}

#[test]
fn a_scaling_that_gguf_is_not_given_is_refused() {
    let folder = TempDir::new().unwrap();
    let scaled = folder.path().join("scaled");
    fs::create_dir(&scaled).unwrap();
    for name in entries(&model()) {
        fs::copy(model().join(&name), scaled.join(&name)).unwrap();
    }
    let path = scaled.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("rope_parameters");
    config["rope_scaling"] = json!({
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128,
    });
    fs::write(&path, config.to_string()).unwrap();
    let out = folder.path().join("scaled.gguf");
    let run = fail(&["export", text(&scaled), text(&out)], 3, "yarn");
    assert!(run.stderr.contains("linear and llama3"), "{run:?}");
}

#[test]
fn they_are_compared_by_their_layers_and_repaired() {
    for given in all() {
        let compare = [
            "compare",
            text(&given.model),
            "--calibration",
            text(&given.ids),
            "--pattern",
            "50%",
            "--methods",
            "magnitude,sparsegpt",
            "--json",
        ];
        let report = succeed(&compare).json();
        let error = |row: usize| report["rows"][row]["relative_error"].as_f64().unwrap();
        assert!(error(1) < error(0), "{report}");

        let (pruned, adapter) = (given.out("pruned"), given.out("adapter"));
        given.prune(&pruned, &["--pattern", "50%", "--method", "magnitude"]);
        let repair = [
            "repair",
            text(&given.model),
            text(&pruned),
            "--calibration",
            text(&given.ids),
            "--rank",
            "4",
            "--out",
            text(&adapter),
            "--json",
        ];
        let report = succeed(&repair).json();
        for layer in report["layers"].as_array().unwrap() {
            let part = |key: &str| layer[key].as_f64().unwrap();
            assert!(part("after") < part("before"), "{layer}");
        }
        let config = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        let task = match given.name {
            "bert" => Value::Null,
            "t5" => "SEQ_2_SEQ_LM".into(),
            _ => "CAUSAL_LM".into(),
        };
        assert_eq!(config["task_type"], task);
    }
}

#[test]
fn what_takes_a_decoder_says_so() {
    for given in all() {
        if given.name == "mixtral" {
            continue;
        }
        fail(&["bench", text(&given.model)], 3, "bench needs a decoder");
        let compare = [
            "compare",
            text(&given.model),
            "--calibration",
            text(&given.ids),
            "--pattern",
            "50%",
            "--text",
            text(&given.ids),
        ];
        fail(&compare, 3, "--text, which perplexity is measured on");
    }
}
