//! Where layers are solved.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparsegpt::backend::Cpu;
use sparsegpt::{LayerPruner, Solver};
use sparsegpt_cuda::Cuda;

use crate::console::Console;
use crate::failure::{Exit, Failure};

/// Lets f32 arithmetic serve `--bf16-products` on a processor without bf16 dot products: the same results without their
/// speed, to measure what the option does to quality.
const EMULATE_BF16: &str = "SPARSEGPT_EMULATE_BF16";

/// The device that layers are solved on.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackendChoice {
    /// The processor.
    #[default]
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
    /// The first NVIDIA GPU where there is one that serves, else the processor.
    Auto,
}

impl BackendChoice {
    /// The solver on it. `auto` tells what it has chosen, and why.
    ///
    /// # Errors
    /// If the device is not there, or lacks what the flags ask for.
    pub(crate) fn solver(
        self,
        threads: usize,
        bf16_products: bool,
        console: &Console,
    ) -> Result<Box<dyn LayerPruner>, Failure> {
        match self {
            Self::Cpu => cpu(threads, bf16_products),
            Self::Cuda if bf16_products => Err(Failure::usage(
                "--bf16-products is about the processor's products: leave it out, or --backend cuda",
            )),
            Self::Cuda => {
                cuda().map_err(|error| Failure::new(Exit::Work, format!("--backend cuda: {error}")))
            }
            Self::Auto if bf16_products => {
                console.note("backend cpu: --bf16-products is about the processor's products");
                cpu(threads, bf16_products)
            }
            Self::Auto => match cuda() {
                Ok(solver) => {
                    console.note(&format!("backend cuda: {}", solver.info().device));
                    Ok(solver)
                }
                Err(error) => {
                    console.note(&format!("backend cpu: {error}"));
                    cpu(threads, bf16_products)
                }
            },
        }
    }
}

fn cuda() -> Result<Box<dyn LayerPruner>, sparsegpt_cuda::CudaError> {
    Ok(Box::new(Solver::new(Cuda::open_with_libraries(0)?)))
}

/// The processor's backend.
pub(crate) fn cpu(threads: usize, bf16_products: bool) -> Result<Box<dyn LayerPruner>, Failure> {
    let mut backend = Cpu::new(threads).map_err(|error| Failure::new(Exit::Work, error))?;
    if bf16_products {
        if std::env::var_os(EMULATE_BF16).is_some_and(|value| value == "1") {
            backend = backend.emulating_bf16();
        }
        backend = backend
            .with_bf16_products()
            .map_err(|error| Failure::new(Exit::Work, format!("--bf16-products: {error}")))?;
    }
    Ok(Box::new(Solver::new(backend)))
}
