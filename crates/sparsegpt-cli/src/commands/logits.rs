//! `sparsegpt logits`: a model's logits, for parity checks.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use sparsegpt_models::Sequence;
use sparsegpt_models::decoder::{ModelKind, TransformerConfig};

use crate::console::Console;
use crate::failure::Failure;
use crate::tensor_file::{StreamedTensor, TensorFile, check_output};
use crate::{interrupt, model};

const TOKENS: &str = "tokens";
const MASK: &str = "attention_mask";
const DECODER_TOKENS: &str = "decoder_tokens";

/// Flags of `logits`.
#[derive(Args, Debug)]
pub(crate) struct LogitsArgs {
    /// A HuggingFace folder or a .gguf file
    model: PathBuf,

    /// A safetensors file with `tokens` (int32 or int64, batch x time), where there is padding `attention_mask` (0 for
    /// padding), and for an encoder with a decoder `decoder_tokens`
    #[arg(long, value_name = "FILE")]
    tokens: PathBuf,

    /// The safetensors file to write, with `logits` (f32, batch x time x vocabulary; time is that of the decoder's tokens
    /// where there is a decoder behind an encoder)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    out: &'a PathBuf,
    shape: [usize; 3],
}

pub(crate) fn run(args: &LogitsArgs, console: &Console) -> Result<(), Failure> {
    check_output(&args.out, args.force)?;
    let file = TensorFile::read(&args.tokens)?;
    let (checkpoint, config) = model::open(&args.model, console)?;
    let tokens = read_sequences(&file, &config)?;
    let llama = model::load(&checkpoint, &checkpoint.tensors())?;
    let time = match config.kind() {
        ModelKind::EncoderDecoder => tokens[0].decoder_tokens.len(),
        _ => tokens[0].tokens.len(),
    };
    let shape = [tokens.len(), time, config.vocab_size];
    let mut out = StreamedTensor::create(&args.out, "logits", &shape, console)?;
    let mut wrong = 0;
    let bar = console.progress(tokens.len() as u64);
    for sequence in &tokens {
        interrupt::check()?;
        let logits = llama.forward_sequences(std::slice::from_ref(sequence))?;
        let values = logits
            .flatten_all()
            .and_then(|logits| logits.to_vec1::<f32>());
        let values = values.map_err(sparsegpt_models::Error::from)?;
        wrong += values.iter().filter(|value| !value.is_finite()).count();
        out.append(&values)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    out.finish()?;
    if wrong > 0 {
        console.note(&format!("{wrong} logits are not finite numbers"));
    }
    let [batch, time, vocabulary] = shape;
    console.print(&format!(
        "{}: logits {batch} x {time} x {vocabulary}\n",
        args.out.display()
    ))?;
    console.print_json(&Report {
        out: &args.out,
        shape,
    })
}

/// The sequences, as far as they can be checked without the model's weights.
fn read_sequences(file: &TensorFile, config: &TransformerConfig) -> Result<Vec<Sequence>, Failure> {
    let tokens = read_tokens(file, TOKENS)?;
    check_tokens(file, TOKENS, &tokens, config)?;
    let shape = (tokens.len(), tokens[0].len());
    let mut sequences: Vec<Sequence> = tokens.into_iter().map(Sequence::from).collect();
    if file.tensor(MASK)?.is_some() {
        let masks = read_tokens(file, MASK)?;
        if (masks.len(), masks[0].len()) != shape {
            return Err(file.wrong(
                MASK,
                format!("expected the shape of {TOKENS}, {} x {}", shape.0, shape.1),
            ));
        }
        for (sequence, mask) in sequences.iter_mut().zip(masks) {
            let counts = mask.into_iter().map(|entry| entry != 0).collect();
            *sequence = std::mem::take(sequence)
                .with_attention_mask(counts)
                .map_err(|error| file.wrong(MASK, error))?;
        }
    }
    if config.kind() == ModelKind::EncoderDecoder {
        let decoder = read_tokens(file, DECODER_TOKENS)?;
        check_tokens(file, DECODER_TOKENS, &decoder, config)?;
        if decoder.len() != shape.0 {
            return Err(file.wrong(
                DECODER_TOKENS,
                format!(
                    "expected {} rows, as {TOKENS} has, found {}",
                    shape.0,
                    decoder.len()
                ),
            ));
        }
        for (sequence, tokens) in sequences.iter_mut().zip(decoder) {
            sequence.decoder_tokens = tokens;
        }
    }
    Ok(sequences)
}

/// Whether the model takes these tokens.
fn check_tokens(
    file: &TensorFile,
    name: &str,
    tokens: &[Vec<u32>],
    config: &TransformerConfig,
) -> Result<(), Failure> {
    let known = |id: u32| usize::try_from(id).is_ok_and(|id| id < config.vocab_size);
    if let Some(id) = tokens.iter().flatten().find(|&&id| !known(id)) {
        return Err(file.wrong(
            name,
            format!(
                "expected token ids below {}, the model's vocabulary, found {id}",
                config.vocab_size
            ),
        ));
    }
    let time = tokens.first().map_or(0, Vec::len);
    if time > config.max_positions {
        return Err(file.wrong(
            name,
            format!(
                "expected sequences of at most {} tokens, the model's longest, found {time}",
                config.max_positions
            ),
        ));
    }
    Ok(())
}

/// At least one sequence of at least one token.
fn read_tokens(file: &TensorFile, name: &str) -> Result<Vec<Vec<u32>>, Failure> {
    let Some(tensor) = file.tensor(name)? else {
        return Err(file.wrong(name, format!("missing; the file has: {}", file.names()?)));
    };
    let (batch, time) = match *tensor.shape() {
        [batch, time] if batch > 0 && time > 0 => (batch, time),
        ref other => {
            return Err(file.wrong(
                name,
                format!("expected batch x time, found shape {other:?}"),
            ));
        }
    };
    let ids = file
        .integers(name, &tensor)?
        .into_iter()
        .map(|id| u32::try_from(id).map_err(|_| file.wrong(name, format!("{id} is no token id"))))
        .collect::<Result<Vec<u32>, _>>()?;
    debug_assert_eq!(ids.len(), batch * time);
    Ok(ids.chunks_exact(time).map(<[u32]>::to_vec).collect())
}
