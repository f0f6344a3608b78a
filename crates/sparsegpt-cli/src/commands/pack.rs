//! `sparsegpt pack` and `sparsegpt unpack`: between a checkpoint and its form for the sparse runtime.

use std::path::PathBuf;

use clap::Args;
use sparsegpt_models::checkpoint::{Checkpoint, OutputOptions, PackedCheckpoint};

use crate::console::Console;
use crate::failure::Failure;
use crate::table::{self, Table, left, right};
use crate::{interrupt, model};

const AFTER_HELP: &str = "\
The folder that pack writes can be given wherever a MODEL is asked for. generate, eval and logits then run on the sparse \
kernels, with the weights mapped from the file as they are. Layers of which more than 55 % would be stored, and the head, \
are stored dense, as that is faster; the table says so. Layers of codes are always stored sparse. unpack gives back the \
checkpoint bit for bit; in place of codes, the weights that they stand for.";

/// Flags of `pack`.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct PackArgs {
    /// A HuggingFace folder or a .gguf file, pruned; of one written with --format gptq or compressed-tensors the codes are packed
    model: PathBuf,

    /// The folder to write; it must not exist or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Replace an output folder that is not empty, once the new one is complete and checked
    #[arg(long)]
    force: bool,
}

/// Flags of `unpack`.
#[derive(Args, Debug)]
pub(crate) struct UnpackArgs {
    /// A folder written by `pack`
    model: PathBuf,

    /// The folder to write; it must not exist or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Replace an output folder that is not empty, once the new one is complete and checked
    #[arg(long)]
    force: bool,
}

pub(crate) fn pack(args: &PackArgs, console: &Console) -> Result<(), Failure> {
    let (checkpoint, _) = model::open(&args.model, console)?;
    let packing = checkpoint
        .pack(&args.out, args.force)
        .map_err(|error| Failure::reading_model(&args.model, error))?;
    interrupt::left_over(Some(packing.staging().to_path_buf()));
    console.tell_leftovers(packing.leftovers());
    let bar = console.progress(0);
    let packed = packing.finish(&mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        !interrupt::requested()
    });
    bar.finish_and_clear();
    interrupt::left_over(None);
    interrupt::check()?;
    let packed = packed.map_err(|error| Failure::reading_model(&args.model, error))?;
    console.print(&describe(&packed))?;
    console.print_json(&packed)
}

fn describe(packed: &PackedCheckpoint) -> String {
    let mut layers = Table::new([
        left("weight"),
        right("rows x cols"),
        left("type"),
        right("dense"),
        right("packed"),
        left("stored"),
    ]);
    for layer in &packed.layers {
        layers.row([
            layer.name.clone(),
            format!("{} x {}", layer.rows, layer.cols),
            layer.dtype.to_owned(),
            table::bytes(layer.dense_bytes as f64),
            table::bytes(layer.bytes as f64),
            layer.storage.clone(),
        ]);
    }
    let codes = packed
        .layers
        .iter()
        .any(|layer| layer.dtype.starts_with("int"));
    let of = |bytes: u64, dense: u64| bytes as f64 / dense.max(1) as f64;
    let sum = |bytes: &dyn Fn(&sparsegpt_models::checkpoint::PackedLayer) -> u64| {
        let sparse = packed.layers.iter().filter(|layer| layer.sparse);
        sparse.map(bytes).sum::<u64>()
    };
    let (dense, sparse) = (sum(&|layer| layer.dense_bytes), sum(&|layer| layer.bytes));
    format!(
        "{layers}\n{}: {} of {}{} ({:.3}); the layers stored sparse {} of {} ({:.3})\n{}",
        packed.path.display(),
        table::bytes(packed.bytes as f64),
        table::bytes(packed.dense_bytes as f64),
        if codes { " without codes" } else { "" },
        of(packed.bytes, packed.dense_bytes),
        table::bytes(sparse as f64),
        table::bytes(dense as f64),
        of(sparse, dense),
        negative_zeros(packed),
    )
}

/// A remark where packing for the sake of a sign does not pay: at a hundredth of a layer's weights.
fn negative_zeros(packed: &PackedCheckpoint) -> String {
    let layers = packed.layers.iter();
    let layers = layers.filter(|layer| layer.negative_zeros > layer.rows * layer.cols / 100);
    let (count, zeros) = layers.fold((0, 0), |(count, zeros), layer| {
        (count + 1, zeros + layer.negative_zeros)
    });
    match count {
        0 => String::new(),
        _ => format!(
            "{zeros} weights of {count} layers are -0 and are stored, so that unpack gives them back; adding 0 to the weights before \
             makes them +0, which takes no place\n"
        ),
    }
}

pub(crate) fn unpack(args: &UnpackArgs, console: &Console) -> Result<(), Failure> {
    let of_model = |error| Failure::reading_model(&args.model, error);
    let checkpoint = Checkpoint::open(&args.model).map_err(of_model)?;
    if !checkpoint.is_packed() {
        return Err(Failure::file(
            &args.model,
            "is not packed: expected a folder written by `sparsegpt pack`",
        ));
    }
    let options = OutputOptions {
        dtype: None,
        force: args.force,
    };
    let writer = checkpoint
        .create_output(&args.out, &options)
        .map_err(Failure::writing)?;
    interrupt::left_over(Some(writer.staging().to_path_buf()));
    console.tell_leftovers(writer.leftovers());
    let written = writer.finish(&[]);
    interrupt::left_over(None);
    interrupt::check()?;
    let written = written.map_err(of_model)?;
    console.print(&format!(
        "{}: {} tensors, {}\n",
        written.path.display(),
        written.tensors,
        table::bytes(written.bytes as f64)
    ))?;
    console.print_json(&written)
}
