//! The conformance suite on the kernels' text, through the emulator.

mod emulated;

use std::process::ExitCode;

use sparsegpt_cuda::CudaError;

fn main() -> ExitCode {
    sparsegpt_conformance::run(
        "cuda, emulated",
        || Ok::<_, CudaError>(emulated::emulator()),
    )
}
