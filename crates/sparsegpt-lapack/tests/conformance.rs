//! The whole conformance suite.

use std::process::ExitCode;

use sparsegpt_lapack::Lapack;

fn main() -> ExitCode {
    sparsegpt_conformance::run("lapack", || Ok(Lapack))
}
