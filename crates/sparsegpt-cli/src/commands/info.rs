//! `sparsegpt info`: what this machine can solve layers on.

use clap::Args;
use serde::Serialize;
use sparsegpt::backend::{Backend, BackendInfo, Cpu};
use sparsegpt_cuda::{Cuda, CudaError, Driver};

use crate::console::Console;
use crate::failure::{Exit, Failure};

/// Flags of `info`.
#[derive(Args, Debug)]
pub(crate) struct InfoArgs {}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    cpu: BackendInfo,
    cuda: CudaReport,
}

#[derive(Debug, Serialize)]
struct CudaReport {
    /// GPUs that serve; the first one is what `--backend cuda` takes.
    devices: Vec<BackendInfo>,
    /// Why others, or all, do not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unavailable: Vec<String>,
}

pub(crate) fn run(_: &InfoArgs, threads: usize, console: &Console) -> Result<(), Failure> {
    let cpu = Cpu::new(threads).map_err(|error| Failure::new(Exit::Work, error))?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cpu: cpu.info(),
        cuda: gpus(),
    };
    let mut text = format!("cpu   {}\n", report.cpu.device);
    for (ordinal, device) in report.cuda.devices.iter().enumerate() {
        text.push_str(&format!("cuda  {ordinal}: {}\n", device.device));
    }
    for reason in &report.cuda.unavailable {
        text.push_str(&format!("cuda  {reason}\n"));
    }
    console.print(&text)?;
    console.print_json(&report)
}

fn gpus() -> CudaReport {
    let mut report = CudaReport {
        devices: Vec::new(),
        unavailable: Vec::new(),
    };
    let mut refuse = |error: CudaError| report.unavailable.push(error.to_string());
    match Driver::count() {
        Err(error) => refuse(error),
        Ok(0) => refuse(CudaError::Unavailable {
            reason: "the driver shows none".to_owned(),
        }),
        Ok(count) => {
            for ordinal in 0..count {
                match Cuda::open_with_libraries(ordinal) {
                    Ok(cuda) => report.devices.push(cuda.info()),
                    Err(error) => refuse(error),
                }
            }
        }
    }
    report
}
