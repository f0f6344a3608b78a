//! Runs of `prune` that are killed, stopped or run out of disk, and gone on with.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::{
    Run, Tensor, calibration, command, entries, fail, families, load, model, save, succeed, text,
};
use serde_json::Value;

/// Kept blocks of a run to `out`.
fn state(out: &Path) -> PathBuf {
    out.with_file_name(".out.unfinished")
}

fn block(out: &Path, block: usize) -> PathBuf {
    state(out).join(format!("{block:05}.block"))
}

/// A short run, as joint as it gets.
fn arguments(model: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let calibration = calibration();
    let fixed = ["prune", text(model), "--calibration", text(&calibration)];
    let size = ["--samples", "4", "--sequence-length", "48"];
    let grid = ["--bits", "4", "--group-size", "64", "--out", text(out)];
    let all = fixed.iter().chain(&size).chain(&grid).chain(more);
    all.map(|&argument| argument.to_owned()).collect()
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn started(arguments: &[String]) -> Child {
    command(&borrowed(arguments))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills a run when a file has appeared, or it has ended by itself. Says whether it was killed in time.
fn killed_at(arguments: &[String], file: &Path) -> bool {
    let mut child = started(arguments);
    while !file.exists() && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

fn drop_seconds(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("seconds");
            map.values_mut().for_each(drop_seconds);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_seconds),
        _ => {}
    }
}

/// All files of an output by name: their bytes, of the report all but the seconds.
fn contents(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in entries(out) {
        let path = out.join(&name);
        if path.is_dir() {
            let inner = contents(&path).into_iter();
            files.extend(inner.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        if name == "sparsegpt_report.json" {
            let mut report: Value = serde_json::from_slice(&bytes).unwrap();
            drop_seconds(&mut report);
            bytes = report.to_string().into_bytes();
        }
        files.insert(name, bytes);
    }
    files
}

/// Runs to the end what may have been begun, and compares.
fn finishes_as(arguments: &[String], out: &Path, expected: &BTreeMap<String, Vec<u8>>) -> Run {
    let mut arguments = borrowed(arguments);
    // A run that was killed late may have been complete.
    arguments.push("--force");
    let run = succeed(&arguments);
    let found = contents(out);
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected));
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
    let left = entries(out.parent().unwrap());
    assert!(!left.contains(&".out.unfinished".to_owned()), "{left:?}");
    run
}

/// What a run gives that nobody disturbs, and how long it takes.
fn undisturbed(model: &Path, more: &[&str]) -> (BTreeMap<String, Vec<u8>>, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let start = Instant::now();
    succeed(&borrowed(&arguments(model, &out, more)));
    let took = start.elapsed();
    assert_eq!(entries(folder.path()), ["out"]);
    (contents(&out), took)
}

#[test]
fn a_run_killed_at_any_moment_goes_on_to_the_same_bytes() {
    const RUNS: u32 = 6;
    const KILLS: u32 = 3;
    let more = ["--pattern", "50%"];
    let (expected, took) = undisturbed(&model(), &more);
    let mut kills = 0;
    for run in 0..RUNS {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let arguments = arguments(&model(), &out, &more);
        // The moments of all runs together are spread evenly over the time that one takes.
        for kill in 0..KILLS {
            let moment = took * (RUNS * kill + run) / (RUNS * KILLS);
            let mut child = started(&arguments);
            sleep(moment);
            child.kill().unwrap();
            kills += u32::from(child.wait().unwrap().code().is_none());
            assert!(
                !out.exists() || contents(&out) == expected,
                "an output that is not whole"
            );
        }
        finishes_as(&arguments, &out, &expected);
    }
    assert!(kills >= RUNS * KILLS / 2, "only {kills} runs were killed");
}

#[test]
fn each_finished_block_is_taken_over() {
    let more = ["--pattern", "2:4"];
    let (expected, _) = undisturbed(&model(), &more);
    for finished in 1..=4 {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let arguments = arguments(&model(), &out, &more);
        assert!(killed_at(&arguments, &block(&out, finished - 1)));
        let kept = (0..5).take_while(|&at| block(&out, at).exists()).count();
        assert!(kept >= finished);
        let run = finishes_as(&arguments, &out, &expected);
        let told = format!("{kept} of 5 blocks were finished by an earlier run");
        assert!(run.stderr.contains(&told), "{run:?}");
    }
}

#[test]
fn several_patterns_of_one_pass_go_on_too() {
    let more = ["--pattern", "50%", "--pattern", "2:4", "--held-out", "1"];
    let (expected, _) = undisturbed(&model(), &more);
    assert!(expected.contains_key("2-4/model.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let arguments = arguments(&model(), &out, &more);
    assert!(killed_at(&arguments, &block(&out, 1)));
    let run = finishes_as(&arguments, &out, &expected);
    assert!(run.stderr.contains("going on from there"), "{run:?}");
}

#[test]
fn an_interrupted_run_tells_what_it_keeps() {
    let more = ["--pattern", "50%", "--samples", "600"];
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut arguments = arguments(&model(), &out, &[]);
    // Given once.
    arguments.drain(4..6);
    arguments.extend(more.map(str::to_owned));
    let child = command(&borrowed(&arguments))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !block(&out, 0).exists() {
        sleep(Duration::from_millis(1));
    }
    let status = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: interrupted; "), "{stderr}");
    for part in [
        " of 5 blocks are kept in ",
        text(&state(&out)),
        "the same command goes on",
        "--fresh",
    ] {
        assert!(last.contains(part), "{part}: {stderr}");
    }
    assert_eq!(entries(folder.path()), [".out.unfinished"]);
    arguments.push("--fresh".to_owned());
    arguments.extend(["--method".to_owned(), "magnitude".to_owned()]);
    let run = succeed(&borrowed(&arguments));
    assert!(!run.stderr.contains("going on"), "{run:?}");
    assert_eq!(entries(folder.path()), ["out"]);
}

#[test]
fn a_damaged_or_foreign_state_is_an_error_that_says_what_to_do() {
    let more = ["--pattern", "50%"];
    let (expected, _) = undisturbed(&model(), &more);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let all = arguments(&model(), &out, &more);
    assert!(killed_at(&all, &block(&out, 1)));
    let second = block(&out, 1);
    let whole = fs::read(&second).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 4;
    for broken in [&changed[..], &whole[..whole.len() - 100], &[]] {
        fs::write(&second, broken).unwrap();
        let run = fail(&borrowed(&all), 3, "00001.block: damaged");
        assert!(run.stderr.contains("--fresh"), "{run:?}");
        assert!(!out.exists() && block(&out, 0).exists());
    }
    fs::write(&second, &whole).unwrap();

    let recipe = arguments(&model(), &out, &["--pattern", "40%"]);
    let run = fail(
        &borrowed(&recipe),
        2,
        "--pattern: \"50%\" then, \"40%\" now",
    );
    let kept = format!("are kept in {}", text(&state(&out)));
    assert!(run.stderr.contains(&kept), "{run:?}");
    let tokens = arguments(&model(), &out, &["--pattern", "50%", "--seed", "3"]);
    let run = fail(&borrowed(&tokens), 2, "calibration tokens");
    assert!(run.stderr.contains("--seed: none then, 3 now"), "{run:?}");
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    for name in entries(&model()) {
        fs::copy(model().join(&name), other.join(&name)).unwrap();
    }
    let weights = other.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // The lowest bit of a weight.
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let model_changed = arguments(&other, &out, &more);
    fail(&borrowed(&model_changed), 2, "model files");

    // All of it is still there.
    fs::remove_file(&second).unwrap();
    let run = finishes_as(&all, &out, &expected);
    assert!(run.stderr.contains("1 of 5 blocks"), "{run:?}");
}

/// A model with a file for each block, so that no file of the output is as large as a kept block.
fn in_shards(model: &Path, folder: &Path) {
    fs::create_dir(folder).unwrap();
    for name in entries(model) {
        if !name.ends_with(".safetensors") {
            fs::copy(model.join(&name), folder.join(&name)).unwrap();
        }
    }
    let mut shards: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
    for (name, tensor) in load(&model.join("model.safetensors")) {
        let of = match name.strip_prefix("model.layers.") {
            Some(rest) => rest.split_once('.').unwrap().0.to_owned(),
            None => "rest".to_owned(),
        };
        let shard = format!("model-{of}.safetensors");
        shards.entry(shard).or_default().push((name, tensor));
    }
    let mut weight_map = serde_json::Map::new();
    for (file, tensors) in &shards {
        let named: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.clone()))
            .collect();
        save(&folder.join(file), &named);
        weight_map.extend(
            named
                .iter()
                .map(|(name, _)| ((*name).to_owned(), file.as_str().into())),
        );
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

/// A run that fails as no file may be larger than this. The signal that comes with it would end the process.
fn on_a_full_disk(arguments: &[String], largest: usize) -> String {
    let script = format!(r#"trap "" XFSZ; exec prlimit --fsize={largest} "$@""#);
    let output = Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_sparsegpt")])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    stderr
}

#[test]
fn a_full_disk_is_an_error_and_costs_no_finished_block() {
    let folder = tempfile::tempdir().unwrap();
    let sharded = folder.path().join("model");
    in_shards(&model(), &sharded);
    // What is kept of block 0 is small, as nothing is done in it.
    let more = ["--pattern", "50%", "--first", "1"];
    let (expected, _) = undisturbed(&sharded, &more);
    let out = folder.path().join("out");
    let all = arguments(&sharded, &out, &more);
    // More than a block in f16, and less than a block and its mask.
    let stderr = on_a_full_disk(&all, 840_000);
    for named in [
        "block 1",
        "cannot write",
        ".out.unfinished/00001.",
        "1 of 5 blocks are kept",
    ] {
        assert!(stderr.contains(named), "{named}: {stderr}");
    }
    assert!(!out.exists());
    assert_eq!(entries(&state(&out)), ["00000.block"]);
    let run = finishes_as(&all, &out, &expected);
    assert!(
        run.stderr.contains("1 of 5 blocks were finished"),
        "{run:?}"
    );
}

#[test]
fn starved_experts_are_reported_as_if_the_run_had_not_ended_and_their_policy_is_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, sharded) = (folder.path().join("whole"), folder.path().join("model"));
    families::mixtral(&whole, 1);
    in_shards(&whole, &sharded);
    let ids = folder.path().join("ids.safetensors");
    save(&ids, &[("tokens", families::ids(4))]);
    // 48 tokens in all. What is kept of block 0 is small: one expert.
    let arguments = |out: &Path, policy: &str, least: &str| -> Vec<String> {
        let model = ["prune", text(&sharded), "--calibration", text(&ids)];
        let flags = ["--pattern", "50%", "--out", text(out)];
        let skipped = [
            "--skip",
            "model.layers.0.self_attn.*",
            "--skip",
            "model.layers.0.block_sparse_moe.experts.0.*",
            "--skip",
            "model.layers.0.block_sparse_moe.experts.1.*",
            "--skip",
            "model.layers.0.block_sparse_moe.experts.2.*",
        ];
        let starved = ["--starved-experts", policy, "--min-expert-tokens", least];
        let all = model.iter().chain(&flags).chain(&skipped).chain(&starved);
        all.map(|&argument| argument.to_owned()).collect()
    };
    let undisturbed = folder.path().join("undisturbed");
    succeed(&borrowed(&arguments(&undisturbed, "share", "49")));
    let expected = contents(&undisturbed);
    let report: Value = serde_json::from_slice(&expected["sparsegpt_report.json"]).unwrap();
    let starved = report["starved"].as_array().unwrap();
    assert_eq!(starved.len(), 3 + 4 * 3);
    assert!(starved[0]["layer"].as_str().unwrap().contains("layers.0."));

    let out = folder.path().join("run").join("out");
    let all = arguments(&out, "share", "49");
    // More than the file of a block's weights, and less than a block that is kept.
    let stderr = on_a_full_disk(&all, 28_000);
    assert!(stderr.contains("1 of 2 blocks are kept"), "{stderr}");
    for (policy, least, named) in [
        (
            "magnitude",
            "49",
            r#"--starved-experts: "share" then, "magnitude" now"#,
        ),
        ("share", "50", r#"--min-expert-tokens: "49" then, "50" now"#),
    ] {
        fail(&borrowed(&arguments(&out, policy, least)), 2, named);
    }
    let run = finishes_as(&all, &out, &expected);
    assert!(
        run.stderr.contains("1 of 2 blocks were finished"),
        "{run:?}"
    );
}
