//! What ended a command, and the exit code that says so.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use sparsegpt_models::Error as ModelsError;

/// Exit codes, as listed in the command's help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The work itself failed: a write, a device, a forward pass.
    Work = 1,
    /// A flag or setting is wrong, or two of them do not go together.
    Usage = 2,
    /// A model or file that was read is not what it should be, or does not suit what it was given for.
    Input = 3,
    /// A layer could not be solved.
    Unsolved = 4,
    /// Ctrl-C or a request to terminate.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: Box<dyn Error + Send + Sync>,
    /// What an early end has left, for a line of its own.
    left: Option<String>,
}

/// Settings of the libraries that flags set under another name than that of the setting.
const FLAGS_OF_SETTINGS: [(&str, &str); 4] = [
    ("rank of a repair", "rank"),
    ("quantizer bits", "bits"),
    ("held-out sequences", "held-out"),
    ("settings per layer", "pattern-list"),
];
/// Settings whose flag is named after them.
const FLAGS: [&str; 20] = [
    "bits",
    "block size",
    "damping",
    "dense targets",
    "dtype",
    "group size",
    "limit",
    "mask block size",
    "mask rate",
    "mask token",
    "min_p",
    "order",
    "prompt",
    "repetition_penalty",
    "rounds",
    "samples",
    "sequence length",
    "temperature",
    "top_k",
    "top_p",
];

/// The flag that sets this setting.
fn flag_of(setting: &str) -> Option<String> {
    let renamed = FLAGS_OF_SETTINGS.iter().find(|(name, _)| *name == setting);
    let name = renamed.map(|(_, flag)| *flag);
    let name = name.or_else(|| FLAGS.contains(&setting).then_some(setting))?;
    Some(format!("--{}", name.replace([' ', '_'], "-")))
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let error = error.into();
        Self {
            // No input is to blame for a disk that is full.
            exit: match exit {
                Exit::Input if is_of_the_disk(&*error) => Exit::Work,
                exit => exit,
            },
            error,
            left: None,
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message.into())
    }

    /// A file that was read is not what it should be.
    pub(crate) fn file(path: &Path, reason: impl fmt::Display) -> Self {
        Self::new(Exit::Input, format!("{}: {reason}", path.display()))
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted").leaving("nothing was written".to_owned())
    }

    /// The same, with what the early end has left.
    pub(crate) fn leaving(self, left: String) -> Self {
        Self {
            left: Some(left),
            ..self
        }
    }

    /// The same, with where what it is about comes from.
    pub(crate) fn placed(self, place: &str) -> Self {
        Self {
            error: format!("{} ({place})", self.error).into(),
            ..self
        }
    }

    /// What is wrong, without what it comes from.
    pub(crate) fn message(&self) -> String {
        self.error.to_string()
    }

    /// An error of reading a model or text: a failing read is then the input's fault.
    pub(crate) fn reading(error: ModelsError) -> Self {
        match &error {
            ModelsError::Io { .. } => Self::new(Exit::Input, error),
            _ => error.into(),
        }
    }

    /// The same, for errors that name a part of the model and not its folder.
    pub(crate) fn reading_model(model: &Path, error: ModelsError) -> Self {
        match &error {
            ModelsError::Tensor { .. } => Self::file(model, error),
            _ => Self::reading(error),
        }
    }

    /// The same for a text, which not every error about it names.
    pub(crate) fn reading_text(text: &Path, error: ModelsError) -> Self {
        match &error {
            ModelsError::Data { .. } => Self::file(text, error),
            _ => Self::reading(error),
        }
    }

    /// An error of writing a model: whatever it is about, the input was read before.
    pub(crate) fn writing(error: ModelsError) -> Self {
        match &error {
            ModelsError::OutputRefused { .. } | ModelsError::Setting { .. } => error.into(),
            _ => Self::new(Exit::Work, error),
        }
    }

    /// A setting that is out of range: by the flag that sets it, where there is one.
    fn setting(
        error: impl Error + Send + Sync + 'static,
        (name, expected, found): (&str, String, String),
    ) -> Self {
        match flag_of(name) {
            Some(flag) => Self::usage(format!("{flag}: expected {expected}, found {found}")),
            None => Self::new(Exit::Usage, error),
        }
    }

    /// An error of a library, in which an interruption is one among others.
    fn of(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        match exit {
            Exit::Interrupted => Self::interrupted(),
            exit => Self::new(exit, error),
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the error and what it comes from, a line each, on stderr.
    pub(crate) fn tell(&self) {
        match (&self.left, self.exit) {
            (Some(left), Exit::Interrupted) => eprintln!("error: {}; {left}", self.error),
            _ => eprintln!("error: {}", self.error),
        }
        let mut told = self.error.to_string();
        let mut source = self.error.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Wrappers that pass a message on, alone or at the end of their own, would repeat it.
            if !told.ends_with(&text) {
                eprintln!("  caused by: {text}");
            }
            told = text;
            source = error.source();
        }
        if let (Some(left), false) = (&self.left, self.exit == Exit::Interrupted) {
            eprintln!("{left}");
        }
    }
}

/// Whether an error comes from a place that takes nothing more.
fn is_of_the_disk(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
                    | io::ErrorKind::ReadOnlyFilesystem
            )
        })
}

fn exit_of_models_error(error: &ModelsError) -> Exit {
    match error {
        ModelsError::Format { .. }
        | ModelsError::Tensor { .. }
        | ModelsError::Config { .. }
        | ModelsError::Data { .. }
        | ModelsError::Tokenizer { .. }
        | ModelsError::ChatTemplate { .. }
        | ModelsError::Runtime(_) => Exit::Input,
        ModelsError::Setting { .. } | ModelsError::OutputRefused { .. } => Exit::Usage,
        ModelsError::Prune(error) => exit_of_solver_error(error),
        ModelsError::Stopped => Exit::Interrupted,
        _ => Exit::Work,
    }
}

fn exit_of_solver_error(error: &sparsegpt::Error) -> Exit {
    use sparsegpt::Error as E;
    match error {
        E::InvalidSetting { .. } | E::Incompatible { .. } | E::NothingToPrune { .. } => Exit::Usage,
        E::Shape { .. } | E::NonFinite { .. } | E::NegativeDiagonal { .. } => Exit::Input,
        E::ZeroHessian { .. } | E::NotPositiveDefinite { .. } | E::Overflow { .. } => {
            Exit::Unsolved
        }
        E::Adapter { source, .. } => source
            .downcast_ref::<ModelsError>()
            .map_or(Exit::Work, exit_of_models_error),
        E::Cancelled { .. } => Exit::Interrupted,
        _ => Exit::Work,
    }
}

impl From<ModelsError> for Failure {
    fn from(error: ModelsError) -> Self {
        match &error {
            ModelsError::Setting {
                name,
                expected,
                found,
            } => {
                let what = (*name, expected.clone(), found.clone());
                Self::setting(error, what)
            }
            _ => Self::of(exit_of_models_error(&error), error),
        }
    }
}

impl From<sparsegpt::Error> for Failure {
    fn from(error: sparsegpt::Error) -> Self {
        match &error {
            sparsegpt::Error::InvalidSetting {
                name,
                expected,
                found,
            } => {
                let what = (*name, expected.clone(), found.clone());
                Self::setting(error, what)
            }
            _ => Self::of(exit_of_solver_error(&error), error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_fault_of_the_input() {
        let failed = |kind| {
            let source = io::Error::from(kind);
            let (action, path) = ("write".to_owned(), "out".into());
            Failure::reading(ModelsError::Io {
                action,
                path,
                source,
            })
            .exit()
        };
        assert_eq!(failed(io::ErrorKind::StorageFull), Exit::Work);
        assert_eq!(failed(io::ErrorKind::NotFound), Exit::Input);
    }
}
