//! What a command says and where: results on stdout, notes and progress on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use sparsegpt_models::staging::Leftovers;

use crate::failure::{Exit, Failure};

/// The two streams as the flags `--json` and `--quiet` set them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    json: bool,
    quiet: bool,
}

impl Console {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// A result for people; with `--json` nothing.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        if self.json {
            Ok(())
        } else {
            write_stdout(text)
        }
    }

    /// The result for machines; without `--json` nothing.
    pub(crate) fn print_json(&self, document: &impl Serialize) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(document)
            .map_err(|error| Failure::new(Exit::Work, error))?;
        write_stdout(&(text + "\n"))
    }

    /// Places in a line of the terminal that results are printed on; `None` where they go elsewhere.
    pub(crate) fn columns(&self) -> Option<usize> {
        let size = terminal_size::terminal_size_of(io::stdout()).filter(|_| !self.json);
        size.map(|(terminal_size::Width(width), _)| usize::from(width))
    }

    /// A remark on stderr.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// What is being done, for somebody who looks on.
    pub(crate) fn step(&self, text: &str) {
        if io::stderr().is_terminal() {
            self.note(text);
        }
    }

    /// Says that a flag that was given changes nothing, and why.
    pub(crate) fn not_read(&self, flag: &str, reason: &str) {
        self.note(&format!("{flag} is not read: {reason}"));
    }

    /// The same for those of some flags that were given.
    pub(crate) fn none_read(&self, flags: &[(&str, bool)], reason: &str) {
        for (flag, _) in flags.iter().filter(|(_, given)| *given) {
            self.not_read(flag, reason);
        }
    }

    /// Says what runs to the same place had left when they were killed.
    pub(crate) fn tell_leftovers(&self, leftovers: &Leftovers) {
        for path in &leftovers.removed {
            self.note(&format!(
                "{}: left by a run that was killed; removed",
                path.display()
            ));
        }
        for path in &leftovers.set_aside {
            self.note(&format!(
                "{}: the output of an earlier run, set aside by one that was killed; move it or remove it",
                path.display()
            ));
        }
    }

    /// A bar with an estimate of the time left, `length` units long. Nothing is drawn where stderr is no
    /// terminal.
    pub(crate) fn progress(&self, length: u64) -> ProgressBar {
        let target = if self.json || self.quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30} {percent:>3} %, {elapsed} gone, {eta} left  {msg}",
        ) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        bar
    }
}

/// A reader that closes the pipe early (`| head`) has seen what it wanted.
fn write_stdout(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Work,
            format!("cannot write to stdout: {error}"),
        )),
        _ => Ok(()),
    }
}
