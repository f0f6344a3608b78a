//! The backend on a GPU, where there is one: the conformance suite, and the same bits as the emulator's.
//!
//! Without a GPU every test is skipped, and counted; with `SPARSEGPT_REQUIRE_DEVICE=1` that is a failure.

mod emulated;

use std::process::ExitCode;

use emulated::Emulated;
use emulated::seen::{ORDINARY, TENSOR, factoring_all, seen_as};
use emulated::twin::Twin;
use libtest_mimic::{Arguments, Failed, Trial};
use sparsegpt::backend::{Backend, BackendInfo, Precision};
use sparsegpt::error::{BackendError, BackendErrorKind};
use sparsegpt::ndarray::Array2;
use sparsegpt::quant::UniformGrid;
use sparsegpt::{LayerSettings, Pattern, PrunedLayer, Solver};
use sparsegpt_cuda::{Cuda, CudaError, Driver};

/// Set to `1`, a device that is not there is a failure and no reason to skip.
const REQUIRE_DEVICE: &str = "SPARSEGPT_REQUIRE_DEVICE";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var(REQUIRE_DEVICE).is_ok_and(|value| value == "1");
    let tests = tests();
    let count = tests.len();
    if !arguments.list {
        match Cuda::open(0) {
            Ok(cuda) => println!("CUDA device: {}", cuda.info().device),
            Err(error) if error.kind() == BackendErrorKind::DeviceUnavailable && !required => {
                println!("CUDA device: none, {count} device tests skipped");
                println!("  {error}");
                let skipped = tests
                    .into_iter()
                    .map(|test| test.with_ignored_flag(true))
                    .collect();
                return libtest_mimic::run(&arguments, skipped).exit_code();
            }
            Err(error) => {
                println!("CUDA device: none, {count} device tests FAILED: {error}");
                return ExitCode::from(101);
            }
        }
    }
    libtest_mimic::run(&arguments, tests).exit_code()
}

fn tests() -> Vec<Trial> {
    let mut tests = vec![
        Trial::test("conformance", conformance),
        Trial::test("queues/a_matrix_made_on_one_is_good_on_the_other", queues),
        Trial::test(
            "memory/more_than_there_is_is_an_error_that_says_so",
            too_much,
        ),
        Trial::test("memory/large_copies_go_in_pieces", large_copies),
        Trial::test(
            "libraries/a_large_factor_is_that_of_the_kernels",
            large_factor,
        ),
    ];
    tests.push(Trial::test("corpus_beside_the_emulator", corpus));
    for case in CASES {
        let name = format!("same_bits_as_the_emulator/{}", case.name);
        tests.push(Trial::test(name, move || same_bits(case)));
    }
    tests
}

/// The conformance suite: as the device is, with its products on ordinary units, and with libraries.
fn conformance() -> Result<(), Failed> {
    let summary = sparsegpt_conformance::check(|| Cuda::open(0))?;
    let ordinary = sparsegpt_conformance::check(|| Ok(seen_as(ORDINARY, Driver::open(0)?)))?;
    let with_libraries = sparsegpt_conformance::check(|| {
        Ok::<_, CudaError>(factoring_all(Driver::open(0)?.with_libraries()?))
    })?;
    let mut failed = 0;
    for (which, summary) in [
        ("own kernels", summary),
        ("ordinary units", ordinary),
        ("libraries", with_libraries),
    ] {
        println!(
            "conformance with {which}: {} passed, {} failed, {} skipped",
            summary.passed.len(),
            summary.failed.len(),
            summary.skipped.len()
        );
        for (name, reason) in &summary.failed {
            println!("  failed with {which}: {name}: {reason}");
        }
        failed += summary.failed.len();
        if summary.passed.is_empty() {
            return Err(format!("no case ran with {which}").into());
        }
    }
    if failed > 0 {
        return Err(format!("{failed} cases fail, all of them named above").into());
    }
    Ok(())
}

fn queues() -> Result<(), Failed> {
    let first = Cuda::open(0)?;
    let second = first.fork()?;
    let host = Array2::from_shape_fn((700, 1023), |(row, col)| (row * 31 + col * 17) as f32);
    for _ in 0..20 {
        let mut sum = first.zeros(700, 1023)?;
        let matrix = second.upload(host.view())?;
        for queue in [&first, &second, &first, &second] {
            queue.combine(&mut sum, 1.0, &matrix, 1.0)?;
        }
        // Freed on its own queue while the other one may still read it.
        drop(matrix);
        let found = first.download(&sum)?;
        if found != &host * 4.0 {
            return Err("a sum over two queues is wrong".into());
        }
    }
    Ok(())
}

fn too_much() -> Result<(), Failed> {
    let cuda = Cuda::open(0)?;
    match cuda.zeros(1 << 24, 1 << 20) {
        Err(CudaError::OutOfMemory { bytes, free }) if bytes == 1 << 46 && free > 0 => {}
        other => return Err(format!("expected out of memory, found {other:?}").into()),
    }
    // And the device goes on.
    let host = Array2::from_elem((33, 65), 1.5);
    let matrix = cuda.upload(host.view())?;
    if cuda.download(&matrix)? != host {
        return Err("a matrix after an error is wrong".into());
    }
    Ok(())
}

fn large_copies() -> Result<(), Failed> {
    let cuda = Cuda::open(0)?;
    for (rows, cols) in [
        (3, 5_000_001),
        (5001, 4093),
        (1, 30_000_000),
        (20_000_001, 1),
    ] {
        let host = Array2::from_shape_fn((rows, cols), |(row, col)| (row * 7 + col * 13) as f32);
        let matrix = cuda.upload(host.view())?;
        if cuda.download(&matrix)? != host {
            return Err(format!("a matrix of {rows} x {cols} came back changed").into());
        }
    }
    Ok(())
}

/// A library may go another way with a large matrix than with those of the conformance suite.
fn large_factor() -> Result<(), Failed> {
    let with_libraries = Cuda::open_with_libraries(0)?;
    if !with_libraries.info().device.contains("factors by lib") {
        println!("no cuSOLVER: its factors are compared with nothing");
        return Ok(());
    }
    let kernels = Cuda::open(0)?;
    for cols in [768, 3001, 8192] {
        let host = Array2::from_shape_fn((cols, cols), |(row, col)| {
            let near = 1.0 / (1.0 + row.abs_diff(col) as f32);
            if row == col {
                3.0 + (row % 7) as f32
            } else {
                near
            }
        });
        let diagonal: Vec<f32> = host.diag().iter().map(|value| value * 1.01).collect();
        let mut spoilt = diagonal.clone();
        spoilt[cols / 2] = -1.0;
        let ends = (1..=cols.div_ceil(500)).map(|it| cols.min(it * 500));
        let blocks: Vec<usize> = ends.collect();
        // First with a bad pivot, as the solver comes back with more damping.
        let factor = |cuda: &Cuda| -> Result<(String, Array2<f32>), Failed> {
            let mut h = cuda.upload(host.view())?;
            let failed = cuda.inverse_factor(&mut h, &spoilt, &blocks, Precision::F32);
            cuda.inverse_factor(&mut h, &diagonal, &blocks, Precision::F32)?;
            Ok((format!("{failed:?}"), cuda.download(&h)?))
        };
        let (failed, expected) = factor(&kernels)?;
        let (found_failed, found) = factor(&with_libraries)?;
        if found_failed != failed {
            return Err(format!("{cols} columns: {found_failed}, by the kernels {failed}").into());
        }
        for ((place, found), expected) in found.indexed_iter().zip(&expected) {
            let (row, col) = place;
            let most = if row > col { 0.0 } else { 1e-4 };
            let difference = (found - expected).abs();
            if difference.is_nan() || difference > most {
                return Err(format!(
                    "({row}, {col}) of {cols} columns is {found:e}, by the kernels {expected:e}"
                )
                .into());
            }
        }
    }
    Ok(())
}

/// A small layer, and what to do with it.
#[derive(Clone, Copy)]
struct LayerCase {
    name: &'static str,
    shape: (usize, usize),
    settings: fn() -> sparsegpt::Result<LayerSettings>,
}

const CASES: [LayerCase; 5] = [
    LayerCase {
        name: "unstructured_50",
        shape: (40, 72),
        settings: || Ok(LayerSettings::new(Pattern::unstructured(0.5)?)),
    },
    LayerCase {
        name: "row_50",
        shape: (17, 33),
        settings: || Ok(LayerSettings::new(Pattern::per_row(0.5)?)),
    },
    LayerCase {
        name: "2_4",
        shape: (40, 160),
        settings: || Ok(LayerSettings::new(Pattern::n_of_m(2, 4)?)),
    },
    LayerCase {
        name: "unstructured_50_int4",
        shape: (33, 65),
        settings: || {
            let settings = LayerSettings::new(Pattern::unstructured(0.5)?);
            Ok(settings.with_quantizer(UniformGrid::new(4)?))
        },
    },
    LayerCase {
        name: "several_blocks_act_order",
        shape: (24, 64),
        settings: || {
            let settings = LayerSettings::new(Pattern::unstructured(0.6)?);
            Ok(settings
                .with_block_size(16)
                .with_mask_block_size(16)
                .with_act_order(true))
        },
    },
];

/// Solves a case from activations on.
fn solve<B: Backend>(backend: B, case: LayerCase) -> Result<(PrunedLayer, BackendInfo), Failed> {
    let (rows, cols) = case.shape;
    let value = |row: usize, col: usize| {
        // Fractions with a large denominator: no two are alike, none is special.
        let mixed = (row * 7919 + col * 104_729 + 12_345) % 65_521;
        mixed as f32 / 32_760.5 - 1.0
    };
    let activations = Array2::from_shape_fn((2 * cols + 3, cols), |(token, col)| {
        value(token + 1000, col) + 0.3 * value(token + 1000, 0)
    });
    let weights = Array2::from_shape_fn((rows, cols), |(row, col)| value(row, col));
    let info = backend.info();
    let solver = Solver::new(backend);
    let mut hessian = solver.hessian(cols)?;
    hessian.update(activations.view())?;
    let layer = solver.prune(weights.view(), &mut hessian, &(case.settings)()?)?;
    Ok((layer, info))
}

/// As which device, whether with a library, and which cases.
type Kind = ((u32, u32), bool, fn(&str) -> bool);

/// What a part of the suite came to.
type Outcome = Result<sparsegpt_conformance::Summary, CudaError>;

/// A part of the suite on the device and in the emulator: the cases that are `wanted`.
fn beside_the_emulator(
    capability: (u32, u32),
    library: bool,
    wanted: impl Fn(&str) -> bool,
) -> Outcome {
    let make = move || {
        let device = Driver::open(0)?;
        let twin = match library {
            true => Twin::with_library(device),
            false => Twin::new(device),
        };
        Ok(seen_as(capability, twin))
    };
    sparsegpt_conformance::check_where(wanted, make)
}

/// The suite on the device, with the emulator's bits after every launch: all of it as a device without fast tensor cores, whose products
/// are those of the ordinary units; the operations as one with them; and the factorizations by a library, the emulator's, so that
/// the kernels around it have the same to begin with.
fn corpus() -> Result<(), Failed> {
    let kinds: [Kind; 3] = [
        (ORDINARY, false, |_| true),
        (TENSOR, false, |name| name.starts_with("operations/")),
        (ORDINARY, true, |name| {
            name.contains("inverse_factor/f32") || name.contains("ladder")
        }),
    ];
    // An emulator takes its time.
    let parts = std::thread::available_parallelism().map_or(1, usize::from);
    // Cases of one kind stand together: a count that does not depend on their kind deals them out.
    let part_of = move |name: &str| name.bytes().map(usize::from).sum::<usize>() % parts;
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..parts)
            .flat_map(|part| {
                kinds.map(|(capability, library, wanted)| {
                    scope.spawn(move || {
                        beside_the_emulator(capability, library, |name| {
                            part_of(name) == part && wanted(name)
                        })
                    })
                })
            })
            .collect();
        running.into_iter().map(|it| it.join()).collect()
    });
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for joined in outcomes {
        let outcome: Outcome = joined.map_err(|_| Failed::from("a thread panicked"))?;
        let summary = outcome?;
        passed += summary.passed.len();
        skipped += summary.skipped.len();
        let wrong = summary.failed.iter();
        failed.extend(wrong.map(|(case, reason)| format!("{case}: {reason}")));
    }
    println!(
        "beside the emulator: {passed} passed, {} failed, {skipped} skipped",
        failed.len()
    );
    match failed.is_empty() {
        true if passed == 0 => Err("no case ran".into()),
        true => Ok(()),
        false => Err(failed.join("\n").into()),
    }
}

fn same_bits(case: LayerCase) -> Result<(), Failed> {
    // What a tensor core does with the last bits of a sum is its own affair.
    let (on_device, info) = solve(seen_as(ORDINARY, Driver::open(0)?), case)?;
    let (emulated, _) = solve(seen_as(ORDINARY, Emulated::new()), case)?;
    let different = on_device
        .weights
        .indexed_iter()
        .zip(&emulated.weights)
        .find(|((_, found), expected)| found.to_bits() != expected.to_bits());
    if let Some((((row, col), found), expected)) = different {
        return Err(format!(
            "weight ({row}, {col}) is {found:e} on {}, {expected:e} on the emulator",
            info.device
        )
        .into());
    }
    if on_device.mask != emulated.mask {
        return Err("the masks differ".into());
    }
    Ok(())
}
