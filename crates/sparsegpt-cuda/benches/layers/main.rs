//! Layers on a GPU: seconds per stage, and the rates that bound them. One JSON object a line; `benches/gpu/report.py` makes
//! tables of them.
//!
//! `layers --rates` measures products and copies. `layers --shapes 4096x4096,4096x11008 --patterns 50%,2:4,50%+4bit` solves
//! layers. `layers --device` says which GPU there is. Further flags:
//!
//! * `--products device` (default), `ordinary`, `tensor`: this crate's kernels as chosen for the device, on its ordinary units
//!   or on its tensor cores; `libraries`: cuBLAS and cuSOLVER where they are;
//! * `--runs 3`, `--seconds 20`: runs of a pattern after the first, and after how many seconds no further one begins;
//! * `--tokens 8192`: tokens of the Hessian; `--sizes 4096,8192`: products whose rate is measured;
//! * `--emulator`: without a GPU, to try the command at tiny sizes. Its seconds are those of no GPU.
//!
//! A run is from weights on the host to results on the host; `seconds` and `on_device` are medians, the latter of the time
//! from a first launch until all were waited for, without copies from and to the host. The stages come from a run of their
//! own that waits for the device after each launch, so that their sum is more. Measuring the reconstruction error is left out.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../tests/emulated/mod.rs"]
mod emulated;
mod flags;

use std::process::ExitCode;
use std::time::Instant;

use emulated::Emulated;
use emulated::seen::{ORDINARY, SeenAs, TENSOR, seen_as};
use flags::{Flags, Products};
use half::bf16;
use serde_json::json;
use sparsegpt::backend::{Backend, Gemm, Precision};
use sparsegpt::ndarray::Array2;
use sparsegpt::quant::UniformGrid;
use sparsegpt::{LayerSettings, Pattern, Solver};
use sparsegpt_cuda::{CudaBackend, Device, Driver};

fn main() -> ExitCode {
    let flags = Flags::parse();
    if flags.emulator {
        run(Emulated::new(), &flags);
        return ExitCode::SUCCESS;
    }
    let opened = Driver::open(0).and_then(|driver| match flags.products {
        Products::Libraries => driver.with_libraries(),
        _ => Ok(driver),
    });
    match opened {
        Ok(driver) => {
            run(driver, &flags);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("no GPU to measure: {error}");
            ExitCode::FAILURE
        }
    }
}

type Seen<D> = CudaBackend<SeenAs<D>>;

fn run<D: Device>(device: D, flags: &Flags) {
    let capability = match flags.products {
        Products::Device | Products::Libraries => device.limits().compute_capability,
        Products::Ordinary => ORDINARY,
        Products::Tensor => TENSOR,
    };
    println!("{}", json!({"kind": "device", "device": device.describe()}));
    let solver = Solver::new(seen_as(capability, device));
    if flags.rates {
        rates(solver.backend(), flags);
    }
    for &shape in &flags.shapes {
        layer(&solver, shape, flags);
    }
}

/// Seconds of what is enqueued and waited for: the least of three, after one that warms up.
fn least<D: Device>(backend: &Seen<D>, mut work: impl FnMut()) -> f64 {
    let mut once = || {
        backend.synchronize().unwrap();
        let start = Instant::now();
        work();
        backend.synchronize().unwrap();
        start.elapsed().as_secs_f64()
    };
    once();
    (0..3).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// Flops a second of square products, bytes a second of copies.
fn rates<D: Device>(backend: &Seen<D>, flags: &Flags) {
    let who = format!("ours, {}", flags.products.name());
    for &size in &flags.sizes {
        let host = Array2::from_shape_simple_fn((size, size), numbers(size as u64));
        let a = backend.upload(host.view()).unwrap();
        let mut c = backend.zeros(size, size).unwrap();
        let seconds = least(backend, || {
            let all = 0..size;
            let b = (&a, all.clone(), all.clone());
            backend
                .gemm(Gemm::new((&mut c, all.clone()), 1e-9, (&a, all), b))
                .unwrap();
        });
        let rate = 2.0 * (size as f64).powi(3) / seconds;
        println!(
            "{}",
            json!({"kind": "rate", "who": who, "what": "product", "size": size, "per_second": rate})
        );
        drop((a, c));
        factor(backend, &who, host);
    }
    let size = flags.sizes.iter().copied().max().unwrap_or(0);
    let host = Array2::from_shape_simple_fn((size, size), numbers(1));
    let matrix = backend.upload(host.view()).unwrap();
    let bytes = (size * size * size_of::<f32>()) as f64;
    let to = least(backend, || drop(backend.upload(host.view()).unwrap()));
    let from = least(backend, || drop(backend.download(&matrix).unwrap()));
    // Read and written.
    let inside = least(backend, || drop(backend.copy(&matrix).unwrap())) / 2.0;
    for (what, seconds) in [("upload", to), ("download", from), ("copy", inside)] {
        println!(
            "{}",
            json!({"kind": "rate", "who": who, "what": what, "size": size, "per_second": bytes / seconds})
        );
    }
}

/// Columns of a block, the default of a layer's settings.
const BLOCK: usize = 128;

/// Flops a second of a factorization, the third of a cube. It happens in place, so that a copy of the matrix, on the device,
/// is timed with it.
fn factor<D: Device>(backend: &Seen<D>, who: &str, mut host: Array2<f32>) {
    let size = host.nrows();
    // The numbers are from -1 to 1, so that this is far from singular.
    let diagonal = vec![size as f32; size];
    host.diag_mut().fill(size as f32);
    let matrix = backend.upload(host.view()).unwrap();
    let blocks: Vec<usize> = (0..size)
        .step_by(BLOCK)
        .map(|start| size.min(start + BLOCK))
        .collect();
    let seconds = least(backend, || {
        let mut h = backend.copy(&matrix).unwrap();
        backend
            .inverse_factor(&mut h, &diagonal, &blocks, Precision::F32)
            .unwrap();
    });
    let rate = (size as f64).powi(3) / 3.0 / seconds;
    println!(
        "{}",
        json!({"kind": "rate", "who": who, "what": "factor", "size": size, "per_second": rate})
    );
}

/// A layer with each pattern.
fn layer<D: Device>(solver: &Solver<Seen<D>>, (rows, cols): (usize, usize), flags: &Flags) {
    let mut number = numbers(0);
    let weights = Array2::from_shape_simple_fn((rows, cols), &mut number);
    // Columns of unequal size that share a direction, a weak one: with damping the Hessian is far from singular, however
    // few tokens there are.
    let sizes: Vec<f32> = (0..cols).map(|_| 1.1 + 0.9 * number()).collect();
    let mut inputs = Array2::from_shape_simple_fn((flags.tokens, cols), &mut number);
    for mut token in inputs.rows_mut() {
        let common = 0.1 * number();
        for (value, size) in token.iter_mut().zip(&sizes) {
            *value = (*value + common) * size;
        }
    }
    let inputs = inputs.mapv(bf16::from_f32);
    let mut hessian = solver.hessian(cols).unwrap();
    let start = Instant::now();
    hessian.update(inputs.view()).unwrap();
    solver.backend().synchronize().unwrap();
    let hessian_seconds = start.elapsed().as_secs_f64();
    drop(inputs);
    for pattern in &flags.patterns {
        let (mask, quantize) = match pattern.strip_suffix("+4bit") {
            Some(pattern) => (pattern, true),
            None => (&**pattern, false),
        };
        let mut settings = LayerSettings::new(mask.parse::<Pattern>().unwrap()).with_measure(false);
        if quantize {
            settings = settings.with_quantizer(UniformGrid::new(4).unwrap());
        }
        let begun = Instant::now();
        let mut solve = || {
            let layer = solver.prune(weights.view(), &mut hessian, &settings);
            layer.unwrap().report.seconds
        };
        let device = solver.backend().device();
        let first = solve();
        device.take_busy_seconds();
        let (mut totals, mut on_device) = (Vec::new(), Vec::new());
        while totals.is_empty()
            || totals.len() < flags.runs && begun.elapsed().as_secs_f64() < flags.seconds
        {
            totals.push(solve().total);
            on_device.push(device.take_busy_seconds());
        }
        device.wait(true);
        let stages = solve();
        device.wait(false);
        println!(
            "{}",
            json!({
                "kind": "layer",
                "who": format!("ours, {}", flags.products.name()),
                "rows": rows,
                "cols": cols,
                "pattern": pattern,
                "seconds": median(&mut totals),
                "runs": totals.len(),
                "first": first.total,
                "on_device": median(&mut on_device),
                "stages": {
                    "factor": stages.factor,
                    "select": stages.select,
                    "grid": stages.grid,
                    "sweep": stages.update_rows,
                    "trailing": stages.trailing,
                    "transfer": stages.transfer,
                },
                "hessian": {"tokens": flags.tokens, "seconds": hessian_seconds},
            })
        );
    }
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Numbers from -1 to 1 (splitmix64): what they are does not matter, but that none are special and all are at hand.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // 24 bits: each is a number of f32.
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
