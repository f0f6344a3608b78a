//! What ended a command, and the exit code that says so.

use std::error::Error;
use std::fmt;
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
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit,
            error: error.into(),
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
        Self::new(Exit::Interrupted, "interrupted; nothing was written")
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
        let exit = match &error {
            ModelsError::OutputRefused { .. } | ModelsError::Setting { .. } => Exit::Usage,
            _ => Exit::Work,
        };
        Self::new(exit, error)
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
        eprintln!("error: {}", self.error);
        let mut told = self.error.to_string();
        let mut source = self.error.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Wrappers that only pass a message on would repeat it.
            if text != told {
                eprintln!("  caused by: {text}");
            }
            told = text;
            source = error.source();
        }
    }
}

fn exit_of_models_error(error: &ModelsError) -> Exit {
    match error {
        ModelsError::Format { .. }
        | ModelsError::Tensor { .. }
        | ModelsError::Config { .. }
        | ModelsError::Data { .. }
        | ModelsError::Tokenizer { .. }
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
        Self::of(exit_of_models_error(&error), error)
    }
}

impl From<sparsegpt::Error> for Failure {
    fn from(error: sparsegpt::Error) -> Self {
        Self::of(exit_of_solver_error(&error), error)
    }
}
