//! Zeros divided among the layers of the bundled model.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::common::{Run, calibration, fail, model, run, succeed, text};
use serde_json::Value;

/// `prune` of the bundled model, quickly, with more flags.
fn prune(out: &Path, more: &[&str]) -> Run {
    let (model, calibration) = (model(), calibration());
    let mut args = vec!["prune", text(&model), "--out", text(out), "--calibration"];
    args.extend([
        text(&calibration),
        "--samples",
        "4",
        "--sequence-length",
        "32",
        "--threads",
        "2",
    ]);
    args.extend(more);
    run(&args)
}

fn sum(layers: &Value, key: &str) -> u64 {
    let layers = layers.as_array().unwrap().iter();
    layers.map(|layer| layer[key].as_u64().unwrap()).sum()
}

#[test]
fn every_allocator_gives_the_model_exactly_its_zeros() {
    let folder = tempfile::tempdir().unwrap();
    for (allocator, method, named) in [
        ("uniform", "sparsegpt", "uniform"),
        ("owl", "sparsegpt", "owl"),
        ("owl", "magnitude", "owl"),
        ("exact", "sparsegpt", "exact"),
        ("global", "magnitude", "global magnitude"),
    ] {
        let out = folder.path().join(format!("{allocator}-{method}"));
        let outcome = prune(
            &out,
            &[
                "--pattern",
                "53.7%",
                "--allocate",
                allocator,
                "--method",
                method,
                "--skip",
                "block:4",
                "--min-sparsity",
                "20%",
                "--max-sparsity",
                "80%",
                "--json",
            ],
        );
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let report = outcome.json();
        let allocation = &report["allocation"];
        assert!(allocation["allocator"].as_str().unwrap().starts_with(named));
        let weights = sum(&allocation["layers"], "weights");
        let wanted = weights * 537 / 1000;
        assert_eq!(allocation["zeros"], wanted);
        assert_eq!(sum(&report["layers"], "pruned"), wanted, "{allocator}");
        // What is in the file, roundings to zero aside.
        let found = succeed(&["inspect", text(&out), "--json"]).json();
        assert!(found["zeros"].as_u64().unwrap() >= wanted);
        for share in allocation["layers"].as_array().unwrap() {
            let (zeros, weights) = (
                share["zeros"].as_u64().unwrap(),
                share["weights"].as_u64().unwrap(),
            );
            assert!(
                zeros >= weights / 5 && zeros <= weights.div_ceil(5) * 4,
                "{share}"
            );
            let layers = report["layers"].as_array().unwrap();
            let layer = layers.iter().find(|layer| layer["layer"] == share["layer"]);
            assert_eq!(layer.unwrap()["pruned"], zeros);
        }
        if allocator == "exact" {
            let (exact, uniform) = (&allocation["predicted_loss"], &allocation["uniform_loss"]);
            assert!(
                exact.as_f64().unwrap() <= uniform.as_f64().unwrap(),
                "{allocation}"
            );
        }
        assert_eq!(report["settings"]["allocate"], allocator);
        assert_eq!(report["settings"]["min-sparsity"], "20%");
    }
}

#[test]
fn several_patterns_are_divided_each() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let report = prune(
        &out,
        &[
            "--pattern",
            "40%",
            "--pattern",
            "block:8:60%",
            "--allocate",
            "owl",
            "--json",
        ],
    )
    .json();
    for (variant, tenths) in report["variants"].as_array().unwrap().iter().zip([4, 6]) {
        let allocation = &variant["allocation"];
        let weights = sum(&allocation["layers"], "weights");
        // Blocks of 8 leave a part of one over.
        let wanted = weights * tenths / 10 / 8 * 8;
        assert_eq!(allocation["zeros"].as_u64().unwrap() / 8 * 8, wanted);
        assert_eq!(
            sum(&variant["layers"], "pruned"),
            allocation["zeros"].as_u64().unwrap()
        );
    }
}

#[test]
fn a_dry_run_says_what_will_be_divided() {
    let (model, calibration) = (model(), calibration());
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(
        &recipe,
        "pattern = '50%'\nallocate = 'exact'\nmax-sparsity = '70%'\n",
    )
    .unwrap();
    let dry = |more: &[&str]| {
        let mut args = vec![
            "prune",
            text(&model),
            "--calibration",
            text(&calibration),
            "--dry-run",
        ];
        args.extend(["--samples", "4", "--sequence-length", "32"]);
        args.extend(more);
        succeed(&args)
    };
    let text_of = dry(&["--recipe-file", text(&recipe)]).stdout;
    assert!(
        text_of.contains("exact (weighted losses at 9 sparsities)"),
        "{text_of}"
    );
    assert!(text_of.contains("0% to 70% of each layer"), "{text_of}");
    assert!(text_of.contains("9 times on the dense model"), "{text_of}");
    let with = dry(&["--recipe-file", text(&recipe), "--json"]).json();
    let without = dry(&["--pattern", "50%", "--json"]).json();
    let zeros = with["allocation"][0]["zeros"].as_u64().unwrap();
    assert_eq!(
        zeros,
        with["allocation"][0]["weights"].as_u64().unwrap() / 2
    );
    assert!(with["flops"].as_f64().unwrap() > 2.0 * without["flops"].as_f64().unwrap());
    assert!(without.get("allocation").is_none());
}

#[test]
fn what_cannot_be_divided_is_told_before_any_work() {
    let model = model();
    for (flags, named) in [
        (
            &["--pattern", "2:4", "--allocate", "owl"][..],
            "pattern 2:4 has no sparsity to divide",
        ),
        (
            &["--bits", "4", "--allocate", "owl"],
            "give --pattern with a percentage",
        ),
        (
            &["--pattern", "50%", "--max-sparsity", "60%"],
            "give --allocate too",
        ),
        (
            &[
                "--pattern",
                "50%",
                "--allocate",
                "owl",
                "--method",
                "magnitude",
            ],
            "--allocate owl needs calibration",
        ),
        (&["--pattern", "50%", "--allocate", "best"], "--allocate"),
    ] {
        let mut args = vec!["prune", text(&model), "--dry-run"];
        args.extend(flags);
        fail(&args, 2, named);
    }
}
