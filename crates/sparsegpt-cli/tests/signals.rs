//! Ctrl-C and worse.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{calibration, command, entries, model, succeed, text};

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a long run and waits until it has begun to write.
fn started(out: &Path, patterns: &[&str]) -> Child {
    let (model, calibration) = (model(), calibration());
    let mut args = vec!["prune", text(&model), "--calibration", text(&calibration)];
    args.extend(["--samples", "4000", "--out", text(out)]);
    args.extend(patterns.iter().flat_map(|pattern| ["--pattern", pattern]));
    let mut child = command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while entries(out.parent().unwrap()).is_empty() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended before it was stopped"
        );
        assert!(start.elapsed() < PATIENCE, "did not begin");
        sleep(Duration::from_millis(10));
    }
    child
}

fn signal(child: &Child, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

fn wait(mut child: Child) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("did not stop");
        }
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_interrupt_or_a_termination_leaves_nothing() {
    let one: &[&str] = &["50%"];
    for (name, patterns) in [
        ("-INT", one),
        ("-TERM", one),
        ("-HUP", one),
        ("-INT", &["50%", "2:4"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let child = started(&folder.path().join("out"), patterns);
        sleep(Duration::from_millis(500));
        signal(&child, name);
        assert_eq!(wait(child).code(), Some(130), "{name}");
        let left = entries(folder.path());
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

#[test]
fn a_second_interrupt_ends_at_once_and_cleans_up() {
    let folder = tempfile::tempdir().unwrap();
    let child = started(&folder.path().join("out"), &["50%"]);
    signal(&child, "-INT");
    sleep(Duration::from_millis(50));
    // The first one may have been enough by now.
    let _ = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .stderr(Stdio::null())
        .status();
    assert_eq!(wait(child).code(), Some(130));
    assert!(
        entries(folder.path()).is_empty(),
        "{:?}",
        entries(folder.path())
    );
}

#[test]
fn a_killed_run_leaves_no_output_and_does_not_disturb_the_next() {
    for patterns in [&["50%"][..], &["50%", "2:4"]] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let child = started(&out, patterns);
        signal(&child, "-KILL");
        assert_eq!(wait(child).code(), None);
        assert!(!out.exists());
        let left = entries(folder.path());
        assert!(
            left.iter()
                .all(|name| name.starts_with('.') && name.ends_with(".tmp")),
            "{left:?}"
        );
        let model = model();
        succeed(&[
            "prune",
            text(&model),
            "--pattern",
            "50%",
            "--method",
            "magnitude",
            "--out",
            text(&out),
        ]);
        assert!(out.join("model.safetensors").is_file());
    }
}
