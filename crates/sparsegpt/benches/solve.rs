//! One layer at a time: seconds per stage, and how far that is from what the machine's matrix products allow.
//!
//! `cargo bench -p sparsegpt --bench solve -- --shapes 768x768,4096x11008 --patterns 50%,2:4 --threads 1,2 --runs 7`
//!
//! Where there are three sizes or more, the growth of each stage follows: the exponent e of time ~ cols^e, by least
//! squares on the logarithms.
//!
//! Every flag is optional. The floor is that of the look-back form, (rows·cols² + cols³/3) flops counted as
//! multiplications and additions, over the rate of the backend's own matrix product in the same run.
//! Measuring the reconstruction error is left out: it is an option and no part of the solve.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::{Backend, Cpu, Gemm};
use sparsegpt::ndarray::{Array1, Array2};
use sparsegpt::quant::UniformGrid;
use sparsegpt::report::StageSeconds;
use sparsegpt::{LayerSettings, Pattern, Solver};

fn main() {
    let flags = Flags::parse();
    let device = Cpu::new(0).unwrap().info().device;
    println!("{device}; medians of {} runs; seconds\n", flags.runs);
    for &threads in &flags.threads {
        println!(
            "| {threads} threads | pattern | total | first | factor | select | grid | sweep | trailing | \
             transfer | GEMM Gflop/s | over the floor |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
        );
        let mut medians = Vec::new();
        for &(rows, cols) in &flags.shapes {
            medians.extend(layer(rows, cols, threads, &flags));
        }
        println!();
        if flags.shapes.len() > 2 {
            growth(&medians, &flags.patterns);
        }
    }
}

/// A stage's name, and its seconds.
type Stage = (&'static str, fn(&StageSeconds) -> f64);

/// The stages whose growth is told.
const STAGES: [Stage; 5] = [
    ("total", |s| s.total),
    ("factor", |s| s.factor),
    ("select", |s| s.select),
    ("sweep", |s| s.update_rows),
    ("trailing", |s| s.trailing),
];

/// Medians of a layer: pattern, columns, seconds of each of [`STAGES`].
type Medians = (String, usize, [f64; STAGES.len()]);

/// A table of exponents.
fn growth(medians: &[Medians], patterns: &[String]) {
    let names = STAGES.map(|(name, _)| name).join(" | ");
    println!(
        "| exponent | {names} |\n{}|",
        "|---".repeat(STAGES.len() + 1)
    );
    for pattern in patterns {
        let of_pattern = medians.iter().filter(|(of, ..)| of == pattern);
        let points: Vec<_> = of_pattern
            .map(|(_, cols, seconds)| (*cols, seconds))
            .collect();
        let exponent = |stage: usize| {
            let logs = points
                .iter()
                .map(|&(cols, seconds)| ((cols as f64).ln(), seconds[stage].ln()));
            let logs: Vec<_> = logs.filter(|(_, y)| y.is_finite()).collect();
            let n = logs.len() as f64;
            let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / n;
            let (x, y) = (mean(|p| p.0), mean(|p| p.1));
            let slope = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>();
            slope / logs.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
        };
        let exponents: Vec<_> = (0..STAGES.len())
            .map(|stage| format!("{:.2}", exponent(stage)))
            .collect();
        println!("| {pattern} | {} |", exponents.join(" | "));
    }
    println!();
}

/// One line for each pattern.
fn layer(rows: usize, cols: usize, threads: usize, flags: &Flags) -> Vec<Medians> {
    let solver = Solver::new(Cpu::new(threads).unwrap());
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let weights = Array2::from_shape_simple_fn((rows, cols), || random.random_range(-1.0..1.0_f32));
    // Columns of unequal size that share a direction: neither diagonal nor singular.
    let sizes = Array1::from_shape_simple_fn(cols, || random.random_range(0.2..2.0_f32));
    let mut inputs =
        Array2::from_shape_simple_fn((cols, cols), || random.random_range(-1.0..1.0_f32));
    for mut token in inputs.rows_mut() {
        let common = random.random_range(-0.5..0.5_f32);
        token.zip_mut_with(&sizes, |value, &size| *value = (*value + common) * size);
    }
    let mut hessian = solver.hessian(cols).unwrap();
    hessian.update(inputs.view()).unwrap();
    drop(inputs);
    let mut medians = Vec::new();
    for pattern in &flags.patterns {
        let (mask, quantize) = match pattern.strip_suffix("+4bit") {
            Some(pattern) => (pattern, true),
            None => (&**pattern, false),
        };
        let mut settings = LayerSettings::new(mask.parse::<Pattern>().unwrap()).with_measure(false);
        if quantize {
            settings = settings.with_quantizer(UniformGrid::new(4).unwrap());
        }
        let mut runs = Vec::new();
        let rate_before = gemm_rate(solver.backend(), cols.min(4096));
        for _ in 0..=flags.runs {
            let layer = solver.prune(weights.view(), &mut hessian, &settings);
            runs.push(layer.unwrap().report.seconds);
        }
        let first = runs.remove(0).total;
        let stage = |of: fn(&StageSeconds) -> f64| median(runs.iter().map(of).collect());
        let total = stage(|s| s.total);
        let (r, c) = (rows as f64, cols as f64);
        let rate = rate_before.max(gemm_rate(solver.backend(), cols.min(4096)));
        let floor = (r * c * c + c * c * c / 3.0) / rate;
        println!(
            "| {rows} x {cols} | {pattern} | {total:.4} | {first:.4} | {:.4} | {:.4} | {:.4} | {:.4} | {:.4} | \
             {:.4} | {:.0} | {:.2} |",
            stage(|s| s.factor),
            stage(|s| s.select),
            stage(|s| s.grid),
            stage(|s| s.update_rows),
            stage(|s| s.trailing),
            stage(|s| s.transfer),
            rate / 1e9,
            total / floor
        );
        medians.push((pattern.clone(), cols, STAGES.map(|(_, of)| stage(of))));
    }
    medians
}

/// Flops a second of one square product of the backend.
fn gemm_rate(backend: &Cpu, size: usize) -> f64 {
    let ones = Array2::from_elem((size, size), 1.0);
    let a = backend.upload(ones.view()).unwrap();
    let mut c = backend.upload(ones.view()).unwrap();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        let product = Gemm::new(
            (&mut c, 0..size),
            1e-9,
            (&a, 0..size),
            (&a, 0..size, 0..size),
        );
        backend.gemm(product).unwrap();
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (size as f64).powi(3) / best
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Flags {
    shapes: Vec<(usize, usize)>,
    patterns: Vec<String>,
    threads: Vec<usize>,
    runs: usize,
}

impl Flags {
    fn parse() -> Self {
        let mut given = HashMap::new();
        // `cargo bench` adds a flag of its own.
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(flag) = args.next() {
            let value = args.next();
            given.insert(
                flag.clone(),
                value.unwrap_or_else(|| panic!("{flag} needs a value")),
            );
        }
        let mut list = |flag: &str, default: &str| -> Vec<String> {
            let value = given.remove(flag).unwrap_or_else(|| default.to_owned());
            value.split(',').map(str::to_owned).collect()
        };
        let cores = std::thread::available_parallelism()
            .unwrap()
            .get()
            .to_string();
        let flags = Self {
            shapes: list("--shapes", "768x768,2048x2048,4096x4096")
                .iter()
                .map(|shape| {
                    let (rows, cols) = shape.split_once('x').unwrap();
                    (rows.parse().unwrap(), cols.parse().unwrap())
                })
                .collect(),
            patterns: list("--patterns", "50%,2:4,50%+4bit"),
            threads: list("--threads", &cores)
                .iter()
                .map(|n| n.parse().unwrap())
                .collect(),
            runs: list("--runs", "7")[0].parse().unwrap(),
        };
        assert!(given.is_empty(), "unknown flags: {:?}", given.keys());
        flags
    }
}
