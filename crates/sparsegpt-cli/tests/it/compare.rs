//! Several methods on the bundled model.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::common::{Tensor, calibration, entries, fail, model, noise, save, succeed, text};

/// `compare` of the bundled model, quickly, with more flags.
fn compare(more: &[&str]) -> Vec<String> {
    let (model, calibration) = (model(), calibration());
    let mut args = vec!["compare", text(&model), "--calibration", text(&calibration)];
    args.extend(["--samples", "8", "--sequence-length", "64"]);
    args.extend(["--threads", "2"]);
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}

fn as_args(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn methods_are_compared_on_layers_and_on_text() {
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("chart.svg");
    let held_out_text = model().join("heldout.txt");
    let args = compare(&[
        "--pattern",
        "2:4",
        "--methods",
        "magnitude,sparsegpt,quality",
        "--held-out",
        "2",
        "--text",
        text(&held_out_text),
        "--chunk-length",
        "64",
        "--limit",
        "8",
        "--chart",
        text(&chart),
        "--json",
    ]);
    let report = succeed(&as_args(&args)).json();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows
        .iter()
        .map(|row| row["method"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["magnitude", "sparsegpt", "quality"]);
    let of = |row: usize, key: &str| rows[row][key].as_f64().unwrap();
    assert!(of(0, "relative_error") > of(1, "relative_error"));
    assert!(of(1, "relative_error") > of(2, "relative_error"));
    for (row, name) in names.iter().enumerate() {
        assert_eq!(of(row, "zeros"), 0.5, "{name}");
        // What was not seen is lost more of.
        assert!(of(row, "held_out_error") > 0.0, "{name}");
        assert!(
            rows[row]["perplexity"]["perplexity"].as_f64() > report["dense"]["perplexity"].as_f64()
        );
    }
    assert_eq!(report["held_out"], 2);
    let svg = fs::read_to_string(&chart).unwrap();
    assert!(svg.starts_with("<svg"), "{svg}");
    for name in names {
        assert!(svg.contains(name), "{name} is not in the chart");
    }
    for panel in ["relative error", "held out", "seconds", "perplexity"] {
        assert!(svg.contains(panel), "{panel} is not in the chart");
    }
    assert_eq!(entries(folder.path()), ["chart.svg"]);
}

/// The recipe for C4 takes the first 256 chunks of a text, whoever measures.
#[test]
fn a_recipe_measures_as_much_as_in_eval() {
    let held_out_text = model().join("heldout.txt");
    let of_text = ["--text", text(&held_out_text), "--recipe", "c4", "--json"];
    let mut args = compare(&["--pattern", "50%", "--methods", "magnitude"]);
    args.extend(["--chunk-length", "4"].map(str::to_owned));
    args.extend(of_text.map(str::to_owned));
    let compared = succeed(&as_args(&args)).json();
    let model = model();
    let mut args = vec!["eval", text(&model), "--sequence-length", "4"];
    args.extend(of_text);
    let evaluated = succeed(&args).json();
    assert_eq!(evaluated["chunks"], 256);
    assert_eq!(compared["dense"]["chunks"], evaluated["chunks"]);
    assert_eq!(compared["dense"]["perplexity"], evaluated["perplexity"]);
}

#[test]
fn without_a_text_only_layers_are_compared() {
    let args = compare(&["--pattern", "50%", "--methods", "wanda,sparsegpt"]);
    let run = succeed(&as_args(&args));
    for word in ["wanda", "sparsegpt", "50.00 %"] {
        assert!(run.stdout.contains(word), "{word}: {}", run.stdout);
    }
}

#[test]
fn mistakes_are_named() {
    for (more, code, named) in [
        (
            &["--pattern", "50%", "--method", "wanda"][..],
            2,
            "--methods",
        ),
        (&["--pattern", "50%", "--methods", "wandb"], 2, "wandb"),
        (&["--pattern", "3:5"], 2, "3:5"),
        (&["--pattern", "50%", "--held-out", "8"], 2, "held-out"),
    ] {
        fail(&as_args(&compare(more)), code, named);
    }
}

/// A layer of 12 x 40 weights and 6 sequences of 32 tokens, whose neighbouring inputs have something in common.
fn save_layer(path: &Path) {
    let (weights, tokens, cols) = (noise(12 * 40, 1), 6 * 32, 40);
    let own = noise(tokens * cols, 2);
    let inputs: Vec<f32> = (0..own.len())
        .map(|at| own[at] + 0.7 * own[at.saturating_sub(1)])
        .collect();
    save(
        path,
        &[
            ("weight", Tensor::f32(&[12, cols], &weights)),
            ("inputs", Tensor::f32(&[6, 32, cols], &inputs)),
        ],
    );
}

#[test]
fn one_layer_is_compared_with_the_best_weights_on_each_mask() {
    let folder = tempfile::tempdir().unwrap();
    let (layer, chart) = (
        folder.path().join("layer.safetensors"),
        folder.path().join("chart.svg"),
    );
    save_layer(&layer);
    let mut args = vec![
        "compare",
        text(&layer),
        "--threads",
        "2",
        "--pattern",
        "50%",
    ];
    args.extend(["--held-out", "2", "--chart", text(&chart), "--json"]);
    let report = succeed(&args).json();
    let rows = report["rows"].as_array().unwrap();
    let of = |method: &str, key: &str| {
        let row = rows.iter().find(|row| row["method"] == method);
        row.unwrap()[key].as_f64().unwrap()
    };
    let svg = fs::read_to_string(&chart).unwrap();
    for method in [
        "magnitude",
        "wanda",
        "ria",
        "sparsegpt",
        "admm",
        "quality",
        "adaprune",
        "adaprune-cg",
        "alps",
        "obc",
    ] {
        assert!(of(method, "over_exact") >= 1.0 - 1e-4, "{method}");
        assert!(of(method, "held_out_error") > 0.0, "{method}");
        assert_eq!(of(method, "zeros"), 0.5, "{method}");
        assert!(svg.contains(method), "{method} is not in the chart");
    }
    // Composed of others, and of no use without bits.
    assert_eq!(rows.len(), 10);
    assert!(of("magnitude", "relative_error") > of("adaprune", "relative_error"));
    assert!(of("sparsegpt", "relative_error") > of("obc", "relative_error"));
    assert!(of("adaprune-cg", "over_exact") < of("adaprune", "over_exact"));
    assert_eq!(
        (report["sequences"].as_u64(), report["tokens"].as_u64()),
        (Some(4), Some(128))
    );

    args.extend(["--row-by-row=false", "--bits", "4"]);
    let fast = succeed(&args).json();
    let fast = fast["rows"].as_array().unwrap();
    assert!(
        fast.iter()
            .all(|row| row["method"] != "obc" && row["method"] != "obq")
    );
    assert!(fast.iter().all(|row| row["over_exact"].is_null()));
    args.extend(["--methods", "obc,obq"]);
    let named = succeed(&args).json();
    assert_eq!(named["rows"].as_array().unwrap().len(), 2);
}

#[test]
fn flags_of_a_model_are_refused_for_a_layer() {
    let folder = tempfile::tempdir().unwrap();
    let layer = folder.path().join("layer.safetensors");
    save_layer(&layer);
    for (more, named) in [
        (&["--calibration", "text.txt"][..], "--calibration"),
        (&["--skip", "down"], "--skip"),
        (&["--text", "text.txt"], "--text"),
        (&["--held-out", "6"], "--held-out 6"),
    ] {
        let mut args = vec!["compare", text(&layer), "--pattern", "50%"];
        args.extend(more);
        fail(&args, 2, named);
    }
    fail(
        &as_args(&compare(&["--pattern", "50%", "--row-by-row"])),
        2,
        "--row-by-row",
    );
}

#[test]
fn the_methods_are_listed_with_their_papers() {
    let listed = succeed(&["methods", "--json"]).json();
    let names: Vec<_> = listed["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["method"].as_str().unwrap())
        .collect();
    for name in [
        "magnitude",
        "wanda",
        "sparsegpt",
        "admm",
        "quality",
        "alps",
        "adaprune",
        "adaprune-cg",
        "obc",
        "obq",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let table = succeed(&["methods"]).stdout;
    assert!(table.contains("arXiv 2301.00774"), "{table}");
    // What flags name is listed, and what is listed is taken.
    for part in listed["parts"].as_array().unwrap() {
        let flag = part["flag"].as_str().unwrap();
        assert!(table.contains(flag), "{flag}");
        let Some((flag, value)) = flag.split_once(' ') else {
            continue;
        };
        let value = value
            .replace("STEPS", "3")
            .replace("COUNT", "3")
            .replace("STRENGTH", "0.5");
        let (model, calibration) = (model(), calibration());
        let mut args = vec!["prune", text(&model), "--calibration", text(&calibration)];
        args.extend([
            "--pattern",
            "50%",
            "--dry-run",
            "--quiet",
            "--out",
            "none",
            flag,
            &value,
        ]);
        succeed(&args);
    }
}
