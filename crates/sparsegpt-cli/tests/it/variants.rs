//! Several patterns in one pass over the bundled model.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::common::{calibration, entries, fail, load, model, succeed, text};
use serde_json::{Value, json};

/// `prune` of the bundled model, quickly, with more flags.
fn prune(out: &Path, more: &[&str]) -> Vec<String> {
    let (model, calibration) = (model(), calibration());
    let mut args = vec!["prune", text(&model), "--out", text(out), "--calibration"];
    args.extend([
        text(&calibration),
        "--samples",
        "4",
        "--sequence-length",
        "32",
    ]);
    args.extend(["--threads", "2"]);
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}

fn as_args(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn stored_report(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("sparsegpt_report.json")).unwrap()).unwrap()
}

#[test]
fn several_patterns_give_a_checkpoint_each() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let flags = [
        "--pattern",
        "40%",
        "--pattern",
        "row:50%",
        "--pattern",
        "2:4",
        "--rule",
        "*down_proj=1:4",
        "--skip",
        "block:4",
        "--json",
    ];
    let outcome = succeed(&as_args(&prune(&out, &flags))).json();
    assert_eq!(entries(folder.path()), ["out"]);
    assert_eq!(entries(&out), ["2-4", "40pct", "row-50pct"]);
    let variants = outcome["variants"].as_array().unwrap();
    assert_eq!(variants.len(), 3);
    for (variant, (pattern, name, percent)) in variants.iter().zip([
        ("40%", "40pct", 40),
        ("row:50%", "row-50pct", 50),
        ("2:4", "2-4", 50),
    ]) {
        let place = out.join(name);
        let stored = stored_report(&place);
        for key in [
            "settings",
            "pattern",
            "layers",
            "propagation",
            "calibration",
        ] {
            assert_eq!(stored[key], variant[key], "{key}");
        }
        assert_eq!(variant["pattern"], pattern);
        assert_eq!(variant["propagation"], "dense");
        assert_eq!(
            variant["settings"]["pattern"],
            json!(["40%", "row:50%", "2:4"])
        );
        let path = Path::new(variant["output"]["path"].as_str().unwrap());
        assert_eq!(path, fs::canonicalize(&place).unwrap());
        let layers = variant["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 28);
        let found = succeed(&["inspect", text(&place), "--json"]).json();
        for layer in layers {
            let layer_name = layer["layer"].as_str().unwrap();
            let expected = if layer_name.ends_with("down_proj") {
                25
            } else {
                percent
            };
            let weights = layer["rows"].as_u64().unwrap() * layer["cols"].as_u64().unwrap();
            let pruned = layer["pruned"].as_u64().unwrap();
            assert_eq!(pruned, weights * expected / 100, "{pattern} {layer_name}");
            let written = found["layers"]
                .as_array()
                .unwrap()
                .iter()
                .find(|written| written["name"] == format!("{layer_name}.weight"))
                .unwrap();
            assert!(written["zeros"].as_u64().unwrap() >= pruned);
        }
        succeed(&[
            "generate",
            text(&place),
            "--prompt",
            "A",
            "--max-new-tokens",
            "2",
        ]);
    }
}

#[test]
fn the_first_block_is_that_of_a_single_run() {
    let folder = tempfile::tempdir().unwrap();
    let (both, alone) = (folder.path().join("both"), folder.path().join("alone"));
    let flags = ["--pattern", "50%", "--pattern", "2:4", "--bits", "4"];
    let summary = succeed(&as_args(&prune(&both, &flags))).stdout;
    for part in [
        "pattern 50%",
        "pattern 2:4",
        "calibrated on the dense model's activations",
        "differ from those of single runs",
    ] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    let flags = ["--pattern", "2:4", "--bits", "4"];
    let summary = succeed(&as_args(&prune(&alone, &flags))).stdout;
    assert!(!summary.contains("single runs"), "{summary}");
    let report = stored_report(&alone);
    assert_eq!(report["propagation"], "pruned");
    assert_eq!(report["pattern"], Value::Null);
    assert_eq!(report["settings"]["pattern"], "2:4");

    let shared = load(&both.join("2-4/model.safetensors"));
    let alone = load(&alone.join("model.safetensors"));
    assert_eq!(shared.len(), alone.len());
    let (mut same, mut other) = (0, 0);
    for (name, tensor) in &shared {
        assert_eq!(tensor.dtype, alone[name].dtype);
        if name.ends_with("_proj.weight") {
            let first = name.starts_with("model.layers.0.");
            assert_eq!(*tensor == alone[name], first, "{name}");
            same += usize::from(first);
            other += usize::from(!first);
        } else {
            assert!(*tensor == alone[name], "{name}");
        }
    }
    assert_eq!((same, other), (7, 28));
}

#[test]
fn magnitude_gives_the_checkpoints_of_single_runs() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    let run = |out: &Path, flags: &[&str]| {
        let mut args = vec!["prune", text(&model), "--method", "magnitude"];
        args.extend(["--dtype", "bf16", "--out", text(out)]);
        args.extend(flags);
        succeed(&args).stdout
    };
    let (both, alone) = (folder.path().join("both"), folder.path().join("alone"));
    let summary = run(&both, &["--pattern", "30%", "--pattern", "2:4"]);
    assert!(!summary.contains("calibrated"), "{summary}");
    run(&alone, &["--pattern", "30%"]);
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert!(weights(&both.join("30pct")) == weights(&alone));
    assert!(weights(&both.join("2-4")) != weights(&alone));
}

#[test]
fn a_recipe_takes_a_list_of_patterns() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(
        &recipe,
        "pattern = ['dense', '50%']\nbits = 4\nonly = ['block:1']\n",
    )
    .unwrap();
    let out = folder.path().join("out");
    let flags = ["--recipe-file", text(&recipe), "--json"];
    let outcome = succeed(&as_args(&prune(&out, &flags))).json();
    assert_eq!(entries(&out), ["50pct", "dense"]);
    let pruned = |variant: usize| outcome["variants"][variant]["layers"][0]["pruned"].as_u64();
    assert_eq!((pruned(0), pruned(1)), (Some(0), Some(192 * 192 / 2)));
    // Flags win as a whole: one pattern again.
    let out = folder.path().join("one");
    let flags = ["--recipe-file", text(&recipe), "--pattern", "2:4", "--json"];
    let outcome = succeed(&as_args(&prune(&out, &flags))).json();
    assert_eq!(outcome["layers"][0]["pattern"], "2:4");
    assert!(out.join("model.safetensors").is_file());
}

#[test]
fn wrong_use_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let fails = |flags: &[&str], named: &str| fail(&as_args(&prune(&out, flags)), 2, named);
    let and = |other| ["--pattern", "50%", "--pattern", other];
    fails(&and("50.0%"), "given twice");
    fails(&and("5:4"), "5:4");
    fails(&and("2:7"), "groups of 7 columns");
    fails(&and("dense"), "nothing to do with --pattern dense");
    let mut with_list = and("2:4").to_vec();
    with_list.extend(["--pattern-list", "50%"]);
    fails(&with_list, "--pattern-list");
    let mut without_layers = and("2:4").to_vec();
    without_layers.extend(["--first", "9"]);
    fails(&without_layers, "dense");
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn a_folder_that_is_not_empty_needs_force() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("precious.txt"), "keep me").unwrap();
    let flags = ["--pattern", "50%", "--pattern", "2:4", "--only", "block:0"];
    let mut args = prune(&out, &flags);
    fail(&as_args(&args), 2, "--force");
    assert_eq!(entries(&out), ["precious.txt"]);
    args.push("--force".to_owned());
    succeed(&as_args(&args));
    assert_eq!(entries(&out), ["2-4", "50pct"]);
    assert_eq!(entries(folder.path()), ["out"]);
}

#[test]
fn a_dry_run_shows_all_variants() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let flags = |more: &[&'static str]| {
        let mut flags = vec!["--dry-run", "--pattern", "50%"];
        flags.extend(more);
        as_args(&prune(&out, &flags))
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let several = ["--pattern", "2:4", "--rule", "*down_proj=row:25%"];
    let plan = succeed(&as_args(&flags(&several))).stdout;
    for part in [
        "pattern 50%, to the folder 50pct",
        "pattern 2:4, to the folder 2-4",
        "row:25%",
        "peak memory",
        "dense model's activations",
    ] {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    let json = |more: &[&'static str]| {
        let mut args = flags(more);
        args.push("--json".to_owned());
        succeed(&as_args(&args)).json()
    };
    let (plan, alone) = (json(&several), json(&[]));
    let variants = plan["variants"].as_array().unwrap();
    assert_eq!(variants.len(), 2);
    assert_eq!(variants[1]["folder"], "2-4");
    assert_eq!(variants[1]["layers"][0]["pattern"], "2:4");
    assert_eq!(variants[1]["layers"][6]["pattern"], "row:25%");
    assert_eq!(alone["layers"].as_array().unwrap().len(), 35);
    assert_eq!(plan["peak_memory_bytes"], alone["peak_memory_bytes"]);
    // The second pattern costs its sweeps, less the second pass that a single run makes.
    assert_ne!(plan["flops"], alone["flops"]);
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn the_help_says_on_what_several_patterns_are_calibrated() {
    let help = succeed(&["prune", "--help"]).stdout;
    let words: Vec<&str> = help.split_whitespace().collect();
    let help = words.join(" ");
    for part in [
        "calibrated on the dense model's activations",
        "results differ from those of single runs",
        "repeatable: one result for each pattern",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn what_needs_a_run_of_its_own_changes_what_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let weights = |name: &str, flags: &[&str]| {
        let out = folder.path().join(name);
        let mut all = vec!["--pattern", "2:4", "--dtype", "f32"];
        all.extend(flags);
        succeed(&as_args(&prune(&out, &all)));
        load(&out.join("model.safetensors"))
    };
    let plain = weights("plain", &[]);
    let in_turn = weights("in_turn", &["--true-sequential"]);
    let aimed = weights("aimed", &["--dense-targets", "0.25"]);
    let layer = |block: usize, part: &str| format!("model.layers.{block}.{part}.weight");
    let query = layer(0, "self_attn.q_proj");
    let output = layer(0, "self_attn.o_proj");
    // The first layers of the first block have nothing treated before them, and nothing has drifted in that block.
    assert_eq!(in_turn[&query], plain[&query]);
    assert_ne!(in_turn[&output], plain[&output]);
    assert_eq!(aimed[&output], plain[&output]);
    assert_ne!(
        aimed[&layer(1, "self_attn.q_proj")],
        plain[&layer(1, "self_attn.q_proj")]
    );
    for (flags, named) in [
        (
            &["--pattern", "50%", "--true-sequential"][..],
            "--true-sequential",
        ),
        (
            &["--pattern", "50%", "--dense-targets", "0.5"],
            "--dense-targets",
        ),
        (
            &["--true-sequential", "--dense-targets", "0.5"],
            "true-sequential",
        ),
        (&["--dense-targets", "2"], "--dense-targets"),
    ] {
        let mut all = vec!["--pattern", "2:4"];
        all.extend(flags);
        fail(
            &as_args(&prune(&folder.path().join("none"), &all)),
            2,
            named,
        );
    }
}
