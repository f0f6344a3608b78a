//! What the commands share around models.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparsegpt::backend::Cpu;
use sparsegpt_models::TensorSource;
use sparsegpt_models::calibration::DEFAULT_SEQUENCE_LENGTH;
use sparsegpt_models::checkpoint::{Checkpoint, Overlay, WeightSink};
use sparsegpt_models::decoder::{ModelKind, Transformer, TransformerAdapter, TransformerConfig};
use sparsegpt_models::tokenizer::Tokenizer;

use crate::console::Console;
use crate::failure::{Exit, Failure};

/// Longest sequence of an encoder with a decoder where the user names none; that of T5's pre-training, whose tokenizer has names for so many spans.
const DEFAULT_ENCODER_LENGTH: usize = 512;

/// Sets up the threads of the forward passes; called once, before any work. 0 means one a core.
pub(crate) fn use_threads(threads: usize) -> Result<(), Failure> {
    if threads > Cpu::MOST_THREADS {
        return Err(Failure::usage(format!(
            "--threads: expected at most {}, found {threads}",
            Cpu::MOST_THREADS
        )));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|error| Failure::new(Exit::Work, format!("cannot start threads: {error}")))
}

pub(crate) fn open(
    path: &Path,
    console: &Console,
) -> Result<(Checkpoint, TransformerConfig), Failure> {
    with_config(path, Checkpoint::open(path), console)
}

/// The same for a plan, which needs no weights: a config.json alone will do, itself or in a folder.
pub(crate) fn open_for_plan(
    path: &Path,
    console: &Console,
) -> Result<(Checkpoint, TransformerConfig), Failure> {
    with_config(path, Checkpoint::open_or_outline(path), console)
}

/// The same for a command that has the model predict the next token.
pub(crate) fn open_decoder(
    path: &Path,
    command: &str,
    console: &Console,
) -> Result<(Checkpoint, TransformerConfig), Failure> {
    let (checkpoint, config) = open(path, console)?;
    config
        .require_decoder(command)
        .map_err(|error| Failure::reading_model(path, error))?;
    Ok((checkpoint, config))
}

fn with_config(
    path: &Path,
    opened: sparsegpt_models::Result<Checkpoint>,
    console: &Console,
) -> Result<(Checkpoint, TransformerConfig), Failure> {
    let of_model = |error| Failure::reading_model(path, error);
    let checkpoint = opened.map_err(of_model)?;
    let config = TransformerConfig::of(&checkpoint).map_err(of_model)?;
    if let Some([head, table]) = &config.untied {
        console.note(&format!(
            "{}: config.json says that head and embeddings are one (tie_word_embeddings), but {head} differs from {table}: the head is used as it is stored, as in transformers 5; set tie_word_embeddings to false to say so",
            path.display()
        ));
    }
    Ok((checkpoint, config))
}

/// Why the commands that run a model do not take this one; `None` if they do. Reads no weights.
pub(crate) fn refusal(checkpoint: &Checkpoint) -> Option<String> {
    let mut sink = Overlay::new(checkpoint.tensors());
    let adapter = TransformerConfig::of(checkpoint).and_then(|_| {
        TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut sink).map(drop)
    });
    adapter.err().map(|error| error.to_string())
}

/// An adapter whose finished weights go to `sink`. Reads no weights.
pub(crate) fn adapter<'s>(
    checkpoint: &Checkpoint,
    sink: &'s mut dyn WeightSink,
) -> Result<TransformerAdapter<'s>, Failure> {
    TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), sink)
        .map_err(|error| Failure::reading_model(checkpoint.path(), error))
}

pub(crate) fn load(
    checkpoint: &Checkpoint,
    source: &Arc<dyn TensorSource>,
) -> Result<Transformer, Failure> {
    Transformer::load(checkpoint.config(), source)
        .map_err(|error| Failure::reading_model(checkpoint.path(), error))
}

pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Failure> {
    checkpoint
        .tokenizer()
        .map_err(|error| Failure::reading_model(checkpoint.path(), error))
}

/// The last parts of the models' paths, or the whole paths where two are the same.
pub(crate) fn names(models: &[PathBuf]) -> Vec<String> {
    let last = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_else(|| path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let names: Vec<String> = models.iter().map(last).collect();
    let unique = |name: &String| names.iter().filter(|other| *other == name).count() == 1;
    match names.iter().all(unique) {
        true => names,
        false => models
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
    }
}

/// The sequence length asked for, or the lesser of the default and the model's longest, and a remark on which.
pub(crate) fn sequence_length(
    (flag, asked): (&str, Option<usize>),
    config: &TransformerConfig,
    console: &Console,
) -> usize {
    asked.unwrap_or_else(|| {
        let default = match config.kind() {
            ModelKind::EncoderDecoder => DEFAULT_ENCODER_LENGTH,
            _ => DEFAULT_SEQUENCE_LENGTH,
        };
        let length = default.min(config.max_positions);
        console.note(&format!(
            "{flag} {length}: none was given, so the lesser of {default} and the model's {}",
            config.max_positions
        ));
        length
    })
}

/// Bytes of a checkpoint's tensors in the types it tells (for .gguf: dequantized).
pub(crate) fn stored_bytes(checkpoint: &Checkpoint) -> u64 {
    let tensors = checkpoint.tensors();
    let infos = tensors
        .names()
        .into_iter()
        .filter_map(|name| tensors.info(&name));
    infos
        .map(|info| {
            let elements: u64 = info.shape.iter().map(|&size| size as u64).product();
            elements * info.dtype.bitsize() as u64 / 8
        })
        .sum()
}
