//! Calibration sequences in the form that a model was trained on: for a decoder text as it is, for an encoder with tokens
//! hidden, for an encoder with a decoder with spans taken out.

use std::path::Path;

use sparsegpt_models::calibration::{
    Calibration, CalibrationOptions, Masking, PRETRAINING_MASK_RATE, Spans, draw, holds_token_ids,
};
use sparsegpt_models::checkpoint::Checkpoint;
use sparsegpt_models::decoder::{ModelKind, TransformerConfig};
use sparsegpt_models::tokenizer::Tokenizer;

use super::{PruneFlags, no_text};
use crate::failure::Failure;
use crate::{interrupt, model};

pub(super) fn calibrate(
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
    flags: &PruneFlags,
    file: &Path,
    options: &CalibrationOptions,
) -> Result<Calibration, Failure> {
    if config.kind() != ModelKind::Encoder
        && (flags.mask_rate.is_some() || flags.mask_token.is_some())
    {
        return Err(Failure::usage(format!(
            "--mask-rate and --mask-token are for encoders (BERT, RoBERTa); this model is a {}",
            config.family.model_type()
        )));
    }
    if holds_token_ids(file) {
        let ids = draw(file, &no_text, options).map_err(Failure::reading)?;
        // Ready ids are taken for what the model is to read, unless the user says that tokens are still to be hidden.
        return match flags.mask_rate {
            Some(_) => hidden(ids, checkpoint, config, flags, options.seed),
            None => Ok(ids),
        };
    }
    let tokenizer = model::tokenizer(checkpoint)?;
    match config.kind() {
        ModelKind::Decoder => {
            let encode = |text: &str| tokenizer.encode_while(text, &interrupt::not_requested);
            draw(file, &encode, options).map_err(Failure::reading)
        }
        ModelKind::Encoder => {
            let [before, behind] = tokenizer.frame()?;
            let windows = windows(&tokenizer, file, options, before.len() + behind.len())?;
            hidden(
                windows.framed(&before, &behind),
                checkpoint,
                config,
                flags,
                options.seed,
            )
        }
        _ => {
            let sentinels = tokenizer.sentinels();
            if sentinels.is_empty() {
                return Err(Failure::file(
                    checkpoint.path(),
                    "the tokenizer has no <extra_id_0>, by which this model was trained to name what is missing from a text; give --calibration ready token ids (tokens and decoder_tokens)",
                ));
            }
            let [_, behind] = tokenizer.frame()?;
            let start = config.decoder_start.unwrap_or_default();
            let spans = Spans::of_pretraining(sentinels, behind, start, options.seed);
            let windows = windows(&tokenizer, file, options, 0)?;
            windows.in_spans(&spans).map_err(Failure::from)
        }
    }
}

/// Windows of text without special tokens, shorter by what is to be put around them.
fn windows(
    tokenizer: &Tokenizer,
    file: &Path,
    options: &CalibrationOptions,
    frame: usize,
) -> Result<Calibration, Failure> {
    let options = CalibrationOptions {
        sequence_length: options
            .sequence_length
            .map(|length| length.saturating_sub(frame)),
        ..options.clone()
    };
    let encode = |text: &str| tokenizer.encode_plain_while(text, &interrupt::not_requested);
    draw(file, &encode, &options).map_err(Failure::reading)
}

/// The sequences with tokens hidden.
fn hidden(
    calibration: Calibration,
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
    flags: &PruneFlags,
    seed: u64,
) -> Result<Calibration, Failure> {
    let rate = flags
        .mask_rate
        .map_or(PRETRAINING_MASK_RATE, |rate| rate.fraction());
    if rate == 0.0 {
        return Ok(calibration);
    }
    // Ready ids need no tokenizer, as long as the mask token is told.
    let tokenizer = match flags.mask_token {
        Some(_) => model::tokenizer(checkpoint).ok(),
        None => Some(model::tokenizer(checkpoint)?),
    };
    let of_tokenizer = tokenizer.as_ref().and_then(Tokenizer::mask);
    let Some(mask_token) = flags.mask_token.or(of_tokenizer) else {
        return Err(Failure::usage(
            "the tokenizer names no token that hides others: give --mask-token ID",
        ));
    };
    let frame = tokenizer.map(|tokenizer| tokenizer.frame()).transpose()?;
    let mut special: Vec<u32> = frame.into_iter().flatten().flatten().collect();
    special.extend(config.padding);
    special.push(mask_token);
    let masking = Masking {
        rate,
        mask_token,
        special,
        vocab_size: config.vocab_size,
        seed,
    };
    calibration.masked(&masking).map_err(Failure::from)
}
