//! Ctrl-C and worse.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use crate::common::{Tensor, calibration, command, entries, fail, model, save, succeed, text};

/// After which a test says what it waits for in vain.
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts a long run of `prune`.
fn started(out: &Path, patterns: &[&str]) -> Child {
    let (model, calibration) = (model(), calibration());
    let mut args = vec!["prune", text(&model), "--calibration", text(&calibration)];
    args.extend(["--samples", "4000", "--out", text(out)]);
    args.extend(patterns.iter().flat_map(|pattern| ["--pattern", pattern]));
    begun(&args, out.parent().unwrap())
}

/// Starts a long run and waits until it has begun to write.
fn begun(args: &[&str], folder: &Path) -> Child {
    let before = entries(folder).len();
    let mut child = command(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while entries(folder).len() == before {
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended before it was stopped"
        );
        assert!(start.elapsed() < PATIENCE, "did not begin");
        sleep(Duration::from_millis(10));
    }
    child
}

/// A run of `prune` that has a temporary folder and waits for its calibration text, and the end of the pipe that it waits at.
fn waiting(out: &Path, patterns: &[&str]) -> (Child, File) {
    let (model, place) = (model(), tempfile::tempdir().unwrap());
    let pipe = place.path().join("calibration.txt");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let mut args = vec!["prune", text(&model), "--calibration", text(&pipe)];
    args.extend(["--out", text(out)]);
    args.extend(patterns.iter().flat_map(|pattern| ["--pattern", pattern]));
    let mut child = begun(&args, out.parent().unwrap());
    let (send, receive) = mpsc::channel();
    // Opens when the run opens the other end.
    spawn(move || send.send(File::options().write(true).open(pipe)));
    let start = Instant::now();
    loop {
        if let Ok(opened) = receive.recv_timeout(Duration::from_millis(10)) {
            return (child, opened.unwrap());
        }
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended before it was stopped"
        );
        assert!(start.elapsed() < PATIENCE, "did not read");
    }
}

fn signal(child: &Child, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Waits for the end, and does this from time to time until then.
fn ended(mut child: Child, meanwhile: impl Fn(&Child)) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("did not stop");
        }
        meanwhile(&child);
        sleep(Duration::from_millis(10));
    }
}

fn wait(child: Child) -> ExitStatus {
    ended(child, |_| {})
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
fn a_killed_run_leaves_no_output_and_the_next_one_clears_up() {
    for patterns in [&["50%"][..], &["50%", "2:4"]] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        // Neither comes to blocks, which it would keep, or find kept by another, and refuse to go on.
        let (killed, _its_text) = waiting(&out, patterns);
        let of_killed = entries(folder.path());
        // Neither what is in use when this one begins nor what it uses itself is a left-over.
        let (beside, _text) = waiting(&out, patterns);
        signal(&killed, "-KILL");
        assert_eq!(wait(killed).code(), None);
        let left = entries(folder.path());
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(
            left.iter()
                .all(|name| name.starts_with('.') && name.ends_with(".tmp")),
            "{left:?}"
        );
        let model = model();
        let mut args = vec![
            "prune",
            text(&model),
            "--pattern",
            "50%",
            "--out",
            text(&out),
        ];
        args.extend(["--method", "magnitude"]);
        let run = succeed(&args);
        let named = format!("{}: left by a run that was killed", of_killed[0]);
        assert!(run.stderr.contains(&named), "{run:?}");
        assert!(out.join("model.safetensors").is_file());
        let now = entries(folder.path());
        assert!(now.len() == 2 && !now.contains(&of_killed[0]), "{now:?}");
        // The first interrupt asks, and what waits for input hears the second.
        let ended = ended(beside, |beside| signal(beside, "-INT"));
        assert_eq!(ended.code(), Some(130));
        assert_eq!(entries(folder.path()), ["out"]);
    }
}

#[test]
fn killed_logits_leave_no_output_and_the_next_ones_clear_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (many, few, out) = (path("many.st"), path("few.st"), path("out.st"));
    let ids = |sequences: usize| Tensor::i32(&[sequences, 64], &vec![7; sequences * 64]);
    save(&many, &[("tokens", ids(100_000))]);
    save(&few, &[("tokens", ids(1))]);
    let model = model();
    let args = |tokens| {
        let mut args = vec!["logits", text(&model), "--tokens", tokens];
        args.extend(["--out", text(&out)]);
        args
    };
    let killed = begun(&args(text(&many)), folder.path());
    let of_killed = entries(folder.path());
    assert!(of_killed[0].ends_with(".tmp"), "{of_killed:?}");
    let beside = begun(&args(text(&many)), folder.path());
    signal(&killed, "-KILL");
    assert_eq!(wait(killed).code(), None);
    let run = succeed(&args(text(&few)));
    let named = format!("{}: left by a run that was killed", of_killed[0]);
    assert!(run.stderr.contains(&named), "{run:?}");
    let now = entries(folder.path());
    assert!(now.len() == 4 && !now.contains(&of_killed[0]), "{now:?}");
    signal(&beside, "-INT");
    assert_eq!(wait(beside).code(), Some(130));
    assert_eq!(entries(folder.path()), ["few.st", "many.st", "out.st"]);
}

#[test]
fn a_failed_run_leaves_no_folders() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (model(), folder.path().join("new/deep/out"));
    let mut args = vec![
        "prune",
        text(&model),
        "--pattern",
        "50%",
        "--out",
        text(&out),
    ];
    args.extend(["--calibration", "no such file"]);
    fail(&args, 3, "no such file");
    assert!(entries(folder.path()).is_empty());
}
