//! A tokenizer in GGUF metadata.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::Fields;
use crate::checkpoint::Checkpoint;
use crate::decoder::TransformerConfig;
use crate::gguf::tokenizer::{pre_tokenizer_name, token_type};
use crate::tokenizer::{SPACE, Tokenizer};
use crate::{Error, Result};

/// Tokens without a meaning, which fill the vocabulary up to the embedding's rows.
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// Adds everything under `tokenizer.`.
pub(super) fn add(
    checkpoint: &Checkpoint,
    config: &TransformerConfig,
    fields: &mut Fields,
) -> Result<()> {
    let tokenizer = checkpoint.tokenizer()?;
    let refuse = |reason: String| Error::tokenizer(tokenizer.path(), reason);
    let json = tokenizer.json()?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(refuse(format!(
            "GGUF is written with BPE tokenizers, found {}",
            model["type"]
        )));
    }
    let byte_level = model["byte_fallback"] != true;
    let merges =
        merges(model).ok_or_else(|| refuse("merges: expected pairs of pieces".to_owned()))?;

    let mut pieces: BTreeMap<usize, (String, i64)> = BTreeMap::new();
    let vocabulary = model["vocab"].as_object().into_iter().flatten();
    for (piece, id) in vocabulary {
        let Some(id) = id.as_u64() else {
            return Err(refuse(format!("vocab: {piece:?} has no number")));
        };
        let kind = match piece.strip_prefix("<0x") {
            Some(_) if !byte_level && piece.len() == 6 => BYTE,
            _ => token_type::NORMAL,
        };
        pieces.insert(id as usize, (piece.clone(), kind));
    }
    let unknown = model["unk_token"].as_str();
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(id), Some(content)) = (token["id"].as_u64(), token["content"].as_str()) else {
            return Err(refuse("added_tokens: expected id and content".to_owned()));
        };
        let kind = match token["special"] == true {
            _ if unknown == Some(content) => token_type::UNKNOWN,
            true => token_type::CONTROL,
            false => token_type::USER_DEFINED,
        };
        pieces.insert(id as usize, (content.to_owned(), kind));
    }
    if let Some((id, (piece, _))) = pieces.range(config.vocab_size..).next() {
        return Err(refuse(format!(
            "token {piece:?} has the number {id}, and the model {} tokens",
            config.vocab_size
        )));
    }
    let of = |id| {
        let filler = || (format!("[PAD{id}]"), UNUSED);
        pieces.get(&id).cloned().unwrap_or_else(filler)
    };
    let (tokens, kinds): (Vec<String>, Vec<i64>) = (0..config.vocab_size).map(of).unzip();

    if byte_level {
        let name = pre_tokenizer_name(&json).ok_or_else(|| {
            refuse("GGUF has no name for its pre-tokenizer and normalizer".to_owned())
        })?;
        fields.text("tokenizer.ggml.model", "gpt2");
        fields.text("tokenizer.ggml.pre", name);
        let lines: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        fields.texts("tokenizer.ggml.merges", &lines);
    } else {
        fields.text("tokenizer.ggml.model", "llama");
        fields.text("tokenizer.ggml.pre", "default");
        // The piece that is merged first has the highest score.
        let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
        for (rank, (left, right)) in merges.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let score = |token: &String| ranks.get(token).map_or(0.0, |&rank| -(rank as f32) - 1.0);
        let scores: Vec<f32> = tokens.iter().map(score).collect();
        fields.floats("tokenizer.ggml.scores", &scores);
        let prepends = json["normalizer"].to_string().contains("\"Prepend\"")
            || (json["pre_tokenizer"]["type"] == "Metaspace"
                && json["pre_tokenizer"]["prepend_scheme"] != "never");
        fields.flag("tokenizer.ggml.add_space_prefix", prepends);
        if !json.to_string().contains(SPACE) {
            return Err(refuse(format!("expected {SPACE:?} for a space")));
        }
        if let Some(id) = tokens
            .iter()
            .position(|token| Some(token.as_str()) == unknown)
        {
            fields.integer("tokenizer.ggml.unknown_token_id", id)?;
        }
    }
    fields.texts("tokenizer.ggml.tokens", &tokens);
    let kinds: Vec<i32> = kinds.into_iter().map(|kind| kind as i32).collect();
    fields.integers("tokenizer.ggml.token_type", &kinds);
    special(&tokenizer, fields)
}

fn special(tokenizer: &Tokenizer, fields: &mut Fields) -> Result<()> {
    let starts_with_bos = match tokenizer.bos() {
        Some(bos) => {
            fields.integer("tokenizer.ggml.bos_token_id", bos as usize)?;
            tokenizer.encode("a")?.first() == Some(&bos)
        }
        None => false,
    };
    fields.flag("tokenizer.ggml.add_bos_token", starts_with_bos);
    let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    for (key, &id) in keys.into_iter().zip(tokenizer.eos()) {
        fields.integer(key, id as usize)?;
    }
    if let Some((_, template)) = tokenizer.chat_template()? {
        fields.text("tokenizer.chat_template", &template);
    }
    Ok(())
}

/// Pairs, written as such or as two pieces with a space between.
fn merges(model: &Value) -> Option<Vec<(String, String)>> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => {
            let (left, right) = text.split_once(' ')?;
            Some((left.to_owned(), right.to_owned()))
        }
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    model["merges"].as_array()?.iter().map(pair).collect()
}
