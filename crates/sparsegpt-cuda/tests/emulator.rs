//! The conformance suite on the kernels' text, through the emulator: as on a device whose products
//! go to tensor cores, and as on one where ordinary units are faster.

mod emulated;

use std::process::ExitCode;

use emulated::Emulated;
use emulated::seen::{ORDINARY, TENSOR, seen_as};
use sparsegpt_conformance::Suite;

fn main() -> ExitCode {
    Suite::new()
        .with("emulated, tensor cores", || {
            Ok(seen_as(TENSOR, Emulated::new()))
        })
        .with("emulated, ordinary units", || {
            Ok(seen_as(ORDINARY, Emulated::new()))
        })
        .run()
}
