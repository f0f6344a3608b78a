//! The suite on the CPU backend: with one, two and three threads, and with every instruction set there is.

use std::process::ExitCode;

use sparsegpt::backend::{Backend, Cpu};
use sparsegpt_conformance::Suite;

fn main() -> ExitCode {
    let mut suite = Suite::new()
        .with("cpu, 1 thread", || Cpu::new(1))
        .with("cpu, 2 threads", || Cpu::new(2))
        .with("cpu, 3 threads", || Cpu::new(3));
    // The highest level is what `new` takes.
    for level in 0.. {
        let (Ok(Some(cpu)), Ok(Some(_))) = (
            Cpu::at_simd_level(2, level),
            Cpu::at_simd_level(2, level + 1),
        ) else {
            break;
        };
        suite = suite.with(&cpu.info().device, move || Ok(cpu.clone()));
    }
    suite.run()
}
