//! tokenizer.json and tokenizer_config.json from GGUF metadata.
//!
//! Two kinds are read: byte-level BPE (`gpt2`), which GGUF stores with its merges, and the BPE of
//! sentencepiece (`llama`), whose merges follow from the scores of its pieces.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::config::TokenNumbers;
use super::metadata::Metadata;
use crate::Result;
use crate::tokenizer::{
    LLAMA3_PATTERN, QWEN2_PATTERN, SPACE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MODEL: &str = "tokenizer.ggml.model";
const PRE_TOKENIZER: &str = "tokenizer.ggml.pre";

/// How a text is split before merging.
#[derive(Clone, Copy, Debug)]
enum Split {
    /// The expression of GPT-2, which the byte-level step brings along.
    Gpt2,
    /// As GPT-2, and every digit alone.
    SingleDigits,
    /// An expression of its own.
    Pattern(&'static str),
}

#[derive(Debug)]
struct PreTokenizer {
    /// Names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    split: Split,
    /// Composes accents with their letters first (Unicode NFC).
    compose: bool,
    /// A word that is a token as a whole is taken without merging.
    whole_words: bool,
    /// Whether BOS is added where the file does not say.
    adds_bos: bool,
}

const PRE_TOKENIZERS: [PreTokenizer; 4] = [
    PreTokenizer {
        // A file without the key says `default`.
        names: &["gpt-2", "default", "phi-2", "olmo"],
        split: Split::Gpt2,
        compose: false,
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        split: Split::SingleDigits,
        compose: false,
        whole_words: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        split: Split::Pattern(LLAMA3_PATTERN),
        compose: false,
        whole_words: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: Split::Pattern(QWEN2_PATTERN),
        compose: true,
        whole_words: false,
        adds_bos: false,
    },
];

/// Values of `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub(in crate::gguf) const NORMAL: i64 = 1;
    pub(in crate::gguf) const UNKNOWN: i64 = 2;
    pub(in crate::gguf) const CONTROL: i64 = 3;
    pub(in crate::gguf) const USER_DEFINED: i64 = 4;
}

/// The name in `tokenizer.ggml.pre` of a tokenizer.json of byte-level BPE; `None` where there is none that splits and
/// normalizes as it does.
pub(super) fn pre_tokenizer_name(tokenizer: &Value) -> Option<&'static str> {
    let steps = steps(&tokenizer["pre_tokenizer"])?;
    let composes = match &tokenizer["normalizer"] {
        Value::Null => false,
        normalizer if normalizer["type"] == "NFC" => true,
        _ => return None,
    };
    let known = PRE_TOKENIZERS.iter().find(|known| {
        let expected = match known.split {
            Split::Gpt2 => vec!["bytes true".to_owned()],
            Split::SingleDigits => vec!["digits".to_owned(), "bytes true".to_owned()],
            Split::Pattern(pattern) => vec![format!("split {pattern}"), "bytes false".to_owned()],
        };
        known.compose == composes && expected == steps
    });
    known?.names.first().copied()
}

/// The steps of a pre-tokenizer in words; `None` for one of another kind.
fn steps(pre_tokenizer: &Value) -> Option<Vec<String>> {
    if let Some(steps_of) = pre_tokenizer["pretokenizers"].as_array() {
        let parts: Option<Vec<Vec<String>>> = steps_of.iter().map(steps).collect();
        return Some(parts?.concat());
    }
    let step = match pre_tokenizer["type"].as_str()? {
        "ByteLevel" if pre_tokenizer["add_prefix_space"] != true => {
            format!("bytes {}", pre_tokenizer["use_regex"] != false)
        }
        "Digits" if pre_tokenizer["individual_digits"] == true => "digits".to_owned(),
        "Split" if pre_tokenizer["behavior"] == "Isolated" && pre_tokenizer["invert"] != true => {
            format!("split {}", pre_tokenizer["pattern"]["Regex"].as_str()?)
        }
        _ => return None,
    };
    Some(vec![step])
}

struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        let tokens = metadata
            .texts(TOKENS)?
            .filter(|tokens| !tokens.is_empty())
            .ok_or_else(|| metadata.refuse(TOKENS, "is missing or empty"))?;
        if u32::try_from(tokens.len()).is_err() {
            return Err(metadata.refuse(TOKENS, "has too many tokens"));
        }
        let key = "tokenizer.ggml.token_type";
        let types = metadata
            .integers(key)?
            .unwrap_or_else(|| vec![token_type::NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            let reason = format!("expected {} entries, found {}", tokens.len(), types.len());
            return Err(metadata.refuse(key, &reason));
        }
        Ok(Self { tokens, types })
    }

    fn token(&self, metadata: &Metadata, id: usize) -> Result<&'a str> {
        self.tokens.get(id).copied().ok_or_else(|| {
            let reason = format!("token {id} is named, but there are {}", self.tokens.len());
            metadata.refuse(TOKENS, &reason)
        })
    }

    /// Token to id; where a token stands twice, the first one.
    fn ids(&self) -> HashMap<&'a str, u32> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (&token, id) in self.tokens.iter().zip(0_u32..) {
            ids.entry(token).or_insert(id);
        }
        ids
    }

    /// Tokens that stand for themselves in a text, before any splitting.
    fn added(&self) -> Vec<Value> {
        (self.tokens.iter().zip(&self.types))
            .enumerate()
            .filter(|(_, (_, kind))| {
                matches!(
                    **kind,
                    token_type::UNKNOWN | token_type::CONTROL | token_type::USER_DEFINED
                )
            })
            .map(|(id, (token, kind))| {
                json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": *kind != token_type::USER_DEFINED,
                })
            })
            .collect()
    }
}

/// What differs between the kinds of tokenizer.
struct Pipeline {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    adds_bos: bool,
}

/// The tokenizer's files by name.
pub(super) fn files(metadata: &Metadata) -> Result<BTreeMap<String, Vec<u8>>> {
    let vocabulary = Vocabulary::read(metadata)?;
    let pipeline = match metadata.required_text(MODEL)?.as_str() {
        "gpt2" => byte_level(metadata, &vocabulary)?,
        "llama" => sentencepiece(metadata, &vocabulary)?,
        other => {
            let reason = format!("expected gpt2 or llama, found {other:?}");
            return Err(metadata.refuse(MODEL, &reason));
        }
    };
    let adds_bos = metadata
        .flag("tokenizer.ggml.add_bos_token")?
        .unwrap_or(pipeline.adds_bos);
    let numbers = TokenNumbers::read(metadata)?;
    let named = |id: Option<usize>| id.map(|id| vocabulary.token(metadata, id)).transpose();
    let bos = named(numbers.bos)?;

    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": bos.zip(numbers.bos).filter(|_| adds_bos).map(|(token, id)| {
            bos_template(token, id)
        }),
        "decoder": pipeline.decoder,
        "model": pipeline.model,
    });
    let mut config = Map::new();
    config.insert(
        "tokenizer_class".to_owned(),
        "PreTrainedTokenizerFast".into(),
    );
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    config.insert(
        "add_bos_token".to_owned(),
        (adds_bos && bos.is_some()).into(),
    );
    config.insert("bos_token".to_owned(), bos.into());
    config.insert("eos_token".to_owned(), named(numbers.eos)?.into());
    config.insert("pad_token".to_owned(), named(numbers.padding)?.into());
    config.insert("unk_token".to_owned(), named(unknown(metadata)?)?.into());
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        config.insert("chat_template".to_owned(), template.into());
    }
    let bytes = |value: &Value| {
        serde_json::to_vec_pretty(value).map_err(|e| metadata.refuse(TOKENS, &e.to_string()))
    };
    Ok(BTreeMap::from([
        (TOKENIZER_FILE.to_owned(), bytes(&tokenizer)?),
        (TOKENIZER_CONFIG_FILE.to_owned(), bytes(&config.into())?),
    ]))
}

fn unknown(metadata: &Metadata) -> Result<Option<usize>> {
    metadata.integer("tokenizer.ggml.unknown_token_id")
}

/// A post-processor that puts BOS first.
fn bos_template(token: &str, id: usize) -> Value {
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let first = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let second = json!({ "Sequence": { "id": "B", "type_id": 1 } });
    json!({
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}

fn bpe_model(vocabulary: &Vocabulary<'_>, merges: &[(&str, &str)], settings: Value) -> Value {
    let mut model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": false,
        "vocab": vocabulary.ids(),
        "merges": merges,
    });
    if let (Value::Object(model), Value::Object(settings)) = (&mut model, settings) {
        model.extend(settings);
    }
    model
}

fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Pipeline> {
    let key = "tokenizer.ggml.merges";
    let lines = metadata
        .texts(key)?
        .ok_or_else(|| metadata.refuse(key, "is missing"))?;
    let merges: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| line.split_once(' '))
        .collect::<Option<_>>()
        .ok_or_else(|| metadata.refuse(key, "expected two pieces with a space between"))?;

    let name = metadata.text(PRE_TOKENIZER)?.unwrap_or("default");
    let known = PRE_TOKENIZERS
        .iter()
        .find(|known| known.names.contains(&name))
        .ok_or_else(|| {
            let all: Vec<_> = PRE_TOKENIZERS
                .iter()
                .flat_map(|known| known.names)
                .collect();
            metadata.refuse(
                PRE_TOKENIZER,
                &format!("expected one of {all:?}, found {name:?}"),
            )
        })?;
    let bytes = |use_regex: bool| {
        json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": true,
            "use_regex": use_regex,
        })
    };
    let sequence = |steps: Vec<Value>| json!({ "type": "Sequence", "pretokenizers": steps });
    let pre_tokenizer = match known.split {
        Split::Gpt2 => bytes(true),
        Split::SingleDigits => sequence(vec![
            json!({ "type": "Digits", "individual_digits": true }),
            bytes(true),
        ]),
        Split::Pattern(pattern) => {
            let split = json!({
                "type": "Split",
                "pattern": { "Regex": pattern },
                "behavior": "Isolated",
                "invert": false,
            });
            sequence(vec![split, bytes(false)])
        }
    };
    Ok(Pipeline {
        normalizer: if known.compose {
            json!({ "type": "NFC" })
        } else {
            Value::Null
        },
        pre_tokenizer,
        decoder: bytes(true),
        model: bpe_model(
            vocabulary,
            &merges,
            json!({ "ignore_merges": known.whole_words }),
        ),
        adds_bos: known.adds_bos,
    })
}

fn sentencepiece(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Pipeline> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata
        .floats(key)?
        .ok_or_else(|| metadata.refuse(key, "is missing"))?;
    if scores.len() != vocabulary.tokens.len() || scores.iter().any(|score| score.is_nan()) {
        let reason = format!(
            "expected {} numbers, found {} or one that is none",
            vocabulary.tokens.len(),
            scores.len()
        );
        return Err(metadata.refuse(key, &reason));
    }
    let merges = merges_by_score(vocabulary, &scores);
    let space_first = metadata
        .flag("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let mut normalizers = Vec::new();
    if space_first {
        normalizers.push(json!({ "type": "Prepend", "prepend": SPACE }));
    }
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    normalizers.push(replace(" ", SPACE));
    let mut decoders = vec![
        replace(SPACE, " "),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if space_first {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = unknown(metadata)?.or_else(|| {
        vocabulary
            .types
            .iter()
            .position(|&kind| kind == token_type::UNKNOWN)
    });
    let unknown = unknown
        .map(|id| vocabulary.token(metadata, id))
        .transpose()?;
    Ok(Pipeline {
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: bpe_model(
            vocabulary,
            &merges,
            json!({ "byte_fallback": true, "fuse_unk": true, "unk_token": unknown }),
        ),
        adds_bos: true,
    })
}

/// Sentencepiece merges the neighbours that make the piece of the highest score. As an ordered
/// list: every split of a piece into two pieces, by falling score of the piece.
fn merges_by_score<'a>(vocabulary: &Vocabulary<'a>, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let pieces: HashMap<&str, u32> = vocabulary
        .tokens
        .iter()
        .zip(&vocabulary.types)
        .zip(0_u32..)
        .filter(|((_, kind), _)| **kind == token_type::NORMAL)
        .map(|((&token, _), id)| (token, id))
        .collect();
    let mut merges = Vec::new();
    for (piece, &id) in &pieces {
        for (middle, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(middle);
            if let (Some(&left_id), Some(&right_id)) = (pieces.get(left), pieces.get(right)) {
                merges.push((scores[id as usize], (id, left_id, right_id), (left, right)));
            }
        }
    }
    merges.sort_unstable_by(|(score, order, _), (other_score, other_order, _)| {
        other_score.total_cmp(score).then(order.cmp(other_order))
    });
    merges.into_iter().map(|(.., pair)| pair).collect()
}
