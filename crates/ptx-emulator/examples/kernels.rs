//! Reads PTX files and tells what kernels they hold, or which line is outside the subset.
//!
//! `cargo run -p ptx-emulator --example kernels -- file.ptx …`

use std::process::ExitCode;

use ptx_emulator::Module;

fn main() -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for path in std::env::args().skip(1) {
        let module = match std::fs::read_to_string(&path) {
            Ok(text) => Module::parse(&text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match module {
            Ok(module) => {
                for kernel in module.kernels() {
                    let parameters: Vec<_> = kernel
                        .parameters()
                        .iter()
                        .map(|p| format!("{} {}", p.ty, p.name))
                        .collect();
                    println!(
                        "{path}: {}({}), block {:?}, {} bytes of static shared memory, contractible lines {:?}",
                        kernel.name(),
                        parameters.join(", "),
                        kernel.required_threads(),
                        kernel.shared_bytes(),
                        kernel.contractible_lines(),
                    );
                }
            }
            Err(error) => {
                eprintln!("{path}: {error}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
