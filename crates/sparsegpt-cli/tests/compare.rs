//! Several methods on the bundled model.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{calibration, entries, fail, model, succeed, text};

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
    assert_eq!(entries(folder.path()), ["chart.svg"]);
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

#[test]
fn the_methods_are_listed_with_their_papers() {
    let listed = succeed(&["methods", "--json"]).json();
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["method"].as_str().unwrap())
        .collect();
    for name in ["magnitude", "wanda", "sparsegpt", "admm", "quality", "alps"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    let table = succeed(&["methods"]).stdout;
    assert!(table.contains("arXiv 2301.00774"), "{table}");
}
