//! Ctrl-C, SIGTERM and SIGHUP: the first asks the work to stop, the second ends the process.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::failure::{Exit, Failure};

static REQUESTED: AtomicBool = AtomicBool::new(false);
static LEFT_OVER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Sets up the handler; called once.
pub(crate) fn install() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            let left_over = LEFT_OVER
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(folder) = left_over {
                // The process ends here; a folder that stays is hidden and named as temporary.
                let _ = std::fs::remove_dir_all(folder);
            }
            std::process::exit(Exit::Interrupted as i32);
        }
    })
    .map_err(|error| Failure::new(Exit::Work, error))
}

/// Whether the process was asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The same for callbacks that say whether to go on.
pub(crate) fn not_requested() -> bool {
    !requested()
}

/// The same for callbacks of a driver.
pub(crate) fn flow() -> ControlFlow<()> {
    match requested() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Ends the work if the process was asked to stop.
pub(crate) fn check() -> Result<(), Failure> {
    if requested() {
        Err(Failure::interrupted())
    } else {
        Ok(())
    }
}

/// Names the temporary folder that a second request, which runs no destructor, has to remove.
pub(crate) fn left_over(folder: Option<PathBuf>) {
    *LEFT_OVER.lock().unwrap_or_else(PoisonError::into_inner) = folder;
}
