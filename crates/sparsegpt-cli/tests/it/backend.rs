//! Where layers are solved: what is chosen, what is said, and what happens without a GPU.

#![allow(clippy::unwrap_used)]

use std::process::Output;

use crate::common::{calibration, command, entries, model, text};
use serde_json::Value;

/// Runs the command as on a machine without a GPU, whatever this one has.
fn without_gpu(args: &[&str]) -> Output {
    command(args)
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .unwrap()
}

fn lines(stream: &[u8]) -> Vec<&str> {
    str::from_utf8(stream).unwrap().lines().collect()
}

/// Arguments of a small run; `--json` leaves stderr to remarks.
fn prune<'a>(model: &'a str, text_file: &'a str, out: &'a str, backend: &'a str) -> Vec<&'a str> {
    vec![
        "prune",
        model,
        "--calibration",
        text_file,
        "--samples=2",
        "--sequence-length=64",
        "--pattern=2:4",
        "--json",
        "--out",
        out,
        "--backend",
        backend,
    ]
}

#[test]
fn cuda_without_a_gpu_is_one_line_and_nothing_written() {
    let (model, text_file) = (model(), calibration());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = without_gpu(&prune(text(&model), text(&text_file), text(&out), "cuda"));
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    let said = lines(&run.stderr);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("error: --backend cuda: no CUDA device: "),
        "{said:?}"
    );
    assert!(run.stdout.is_empty(), "{run:?}");
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn auto_without_a_gpu_says_why_it_takes_the_processor() {
    let (model, text_file) = (model(), calibration());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let run = without_gpu(&prune(text(&model), text(&text_file), text(&out), "auto"));
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let said = lines(&run.stderr);
    assert!(
        said.iter()
            .any(|line| line.starts_with("backend cpu: no CUDA device: ")),
        "{said:?}"
    );
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["settings"]["backend"], "auto");
    assert_eq!(report["layers"][0]["backend"], "cpu");
}

#[test]
fn the_processor_s_products_are_not_for_a_gpu() {
    let (model, text_file) = (model(), calibration());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut args = prune(text(&model), text(&text_file), text(&out), "cuda");
    args.push("--bf16-products");
    let run = without_gpu(&args);
    assert_eq!(run.status.code(), Some(2), "{run:?}");
    assert!(lines(&run.stderr)[0].contains("--bf16-products"), "{run:?}");
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn info_lists_the_processor_and_says_why_there_is_no_gpu() {
    let run = without_gpu(&["info"]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    let said = lines(&run.stdout);
    assert!(said[0].starts_with("cpu   "), "{said:?}");
    assert!(said[1].starts_with("cuda  no CUDA device: "), "{said:?}");

    let run = without_gpu(&["info", "--json"]);
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["cpu"]["name"], "cpu");
    assert!(report["cuda"]["devices"].as_array().unwrap().is_empty());
    assert_eq!(report["cuda"]["unavailable"].as_array().unwrap().len(), 1);
}
