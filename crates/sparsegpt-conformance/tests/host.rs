//! The suite on the plain host implementation.

use std::process::ExitCode;

use sparsegpt::backend::Host;

fn main() -> ExitCode {
    sparsegpt_conformance::run("host", || Ok(Host))
}
