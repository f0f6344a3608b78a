//! `sparsegpt export`: a model as one file for other engines.

use std::path::PathBuf;

use clap::Args;
use sparsegpt_models::checkpoint::GgufType;

use crate::console::Console;
use crate::failure::Failure;
use crate::tensor_file::check_output;
use crate::{interrupt, model, table};

/// Flags of `export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// A HuggingFace folder of the LLaMA, Mistral or Qwen2 family, or a .gguf file of one
    model: PathBuf,

    /// The .gguf file to write
    #[arg(value_name = "OUT.gguf")]
    out: PathBuf,

    /// Type of the matrices: f32, f16, bf16 or q8_0 (blocks of 32 with a scale); norms and biases stay f32
    #[arg(long = "type", value_name = "TYPE", default_value = "f16")]
    stored: GgufType,

    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &ExportArgs, console: &Console) -> Result<(), Failure> {
    check_output(&args.out, args.force)?;
    let (checkpoint, _) = model::open(&args.model, console)?;
    let written = checkpoint
        .export_gguf(&args.out, args.stored, &interrupt::not_requested)
        .map_err(|error| Failure::reading_model(checkpoint.path(), error))?;
    console.print(&format!(
        "written: {} ({} tensors, {})\n",
        written.path.display(),
        written.tensors,
        table::bytes(written.bytes as f64)
    ))?;
    console.print_json(&written)
}
