//! The suite on the CPU backend with one, two and three threads.

use std::process::ExitCode;

use sparsegpt::backend::Cpu;
use sparsegpt_conformance::Suite;

fn main() -> ExitCode {
    Suite::new()
        .with("cpu, 1 thread", || Cpu::new(1))
        .with("cpu, 2 threads", || Cpu::new(2))
        .with("cpu, 3 threads", || Cpu::new(3))
        .run()
}
