//! Hessians: flops a second of their accumulation against those of a matrix product in the same run.
//!
//! `cargo bench -p sparsegpt --bench hessian -- --cols 576,1536,4096 --tokens 512 --threads 2 --runs 9`
//!
//! Every flag is optional. XᵀX has a triangle of tokens·cols² flops, multiplications and additions; that is what an update is
//! charged with.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::Solver;
use sparsegpt::backend::{Backend, Cpu, Gemm};
use sparsegpt::ndarray::Array2;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str, default: &str| -> Vec<usize> {
        let given = args.iter().position(|arg| arg == name);
        let value = given.map_or(default, |at| &args[at + 1]);
        value
            .split(',')
            .map(|number| number.parse().unwrap())
            .collect()
    };
    let runs = flag("--runs", "9")[0];
    println!("the fastest of {runs} runs; Gflop/s\n");
    println!(
        "| tokens x cols | threads | product | f32 | of the product | bf16 | of the product |"
    );
    println!("|---|---|---|---|---|---|---|");
    for &threads in &flag("--threads", "1,2") {
        for &tokens in &flag("--tokens", "512") {
            for &cols in &flag("--cols", "576,1536,4096") {
                line(tokens, cols, threads, runs);
            }
        }
    }
}

fn line(tokens: usize, cols: usize, threads: usize, runs: usize) {
    let solver = Solver::new(Cpu::new(threads).unwrap());
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let wide = Array2::from_shape_simple_fn((tokens, cols), || random.random_range(-1.0..1.0_f32));
    let narrow = wide.mapv(bf16::from_f32);
    let flops = (tokens * cols * cols) as f64;
    let rate = product(solver.backend(), tokens, cols, runs);
    let mut hessian = solver.hessian(cols).unwrap();
    let f32 = flops / fastest(runs, || hessian.update(wide.view()).unwrap());
    let mut hessian = solver.hessian(cols).unwrap();
    let bf16 = flops / fastest(runs, || hessian.update(narrow.view()).unwrap());
    println!(
        "| {tokens} x {cols} | {threads} | {:.0} | {:.0} | {:.2} | {:.0} | {:.2} |",
        rate / 1e9,
        f32 / 1e9,
        f32 / rate,
        bf16 / 1e9,
        bf16 / rate
    );
}

/// Flops a second of the same operands' product without regard to its symmetry.
fn product(backend: &Cpu, tokens: usize, cols: usize, runs: usize) -> f64 {
    let upload = |rows, cols| {
        backend
            .upload(Array2::from_elem((rows, cols), 1.0).view())
            .unwrap()
    };
    let (mut c, a, b) = (
        upload(cols, cols),
        upload(cols, tokens),
        upload(tokens, cols),
    );
    let seconds = fastest(runs, || {
        let product = Gemm::new(
            (&mut c, 0..cols),
            1e-9,
            (&a, 0..tokens),
            (&b, 0..tokens, 0..cols),
        );
        backend.gemm(product).unwrap();
    });
    2.0 * (tokens * cols * cols) as f64 / seconds
}

/// Seconds of the fastest call.
fn fastest(runs: usize, mut work: impl FnMut()) -> f64 {
    work();
    let seconds = (0..runs).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}
