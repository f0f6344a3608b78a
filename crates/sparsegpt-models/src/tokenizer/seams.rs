//! Where a text may be cut without a token more or less, so that a long one need not be encoded at once.

use std::ops::Range;

use serde_json::{Value, json};
use tokenizers::pattern::Pattern;
use tokenizers::{
    Model, ModelWrapper, Offsets, PreTokenizedString, SplitDelimiterBehavior, Tokenizer,
};

/// Sentencepiece's space.
pub(crate) const SPACE: &str = "\u{2581}";
/// How LLaMA 3 splits a text: up to three digits together.
pub(crate) const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 does: as LLaMA 3, and every digit alone.
pub(crate) const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Bytes of a part, at least.
const PART: usize = 1 << 16;

/// What a tokenizer treats apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seams {
    /// Nothing that is known.
    Unknown,
    /// The text behind a [`seam`].
    Lines,
    /// [`Words`].
    Words,
}

impl Seams {
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        if lines_are_apart(tokenizer) {
            Self::Lines
        } else if words_are_apart(tokenizer) {
            Self::Words
        } else {
            Self::Unknown
        }
    }

    /// The text in parts that can be encoded one after the other, normalization included.
    pub(super) fn parts<'t>(self, text: &'t str) -> impl Iterator<Item = &'t str> + use<'t> {
        let least = match self {
            Self::Lines => PART,
            Self::Unknown | Self::Words => usize::MAX,
        };
        parts(text, least).map(|part| &text[part])
    }

    /// Splits normalized text into words, where no pre-tokenizer did.
    pub(super) fn split_words(self, pieces: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Unknown | Self::Lines => Ok(()),
            Self::Words => {
                pieces.split(|_, piece| piece.split(Words, SplitDelimiterBehavior::Isolated))
            }
        }
    }
}

/// Ranges of at least `least` bytes, the last one excepted, that end at seams.
fn parts(text: &str, least: usize) -> impl Iterator<Item = Range<usize>> + use<'_> {
    let mut start = 0;
    std::iter::from_fn(move || {
        (start < text.len()).then(|| {
            let end = (start.saturating_add(least)..text.len())
                .find(|&at| seam(text, at))
                .unwrap_or(text.len());
            std::mem::replace(&mut start, end)..end
        })
    })
}

/// Whether a letter begins a line here, and the line before ends in something to be seen. ASCII all three, so that the
/// place is one between characters.
fn seam(text: &str, at: usize) -> bool {
    match text.as_bytes().get(at.saturating_sub(2)..=at) {
        Some([before, b'\n', letter]) => before.is_ascii_graphic() && letter.is_ascii_alphabetic(),
        _ => false,
    }
}

/// Whether a text gives the same tokens in parts that end at seams. None of the known ways of splitting has a piece that
/// goes on behind a seam, and each begins anew there, without a look back; what stands before a seam ends with a single
/// line end, which is a piece, or the end of one, whatever follows.
fn lines_are_apart(tokenizer: &Tokenizer) -> bool {
    let known =
        |part: Option<Value>, is_known: fn(&Value) -> bool| part.as_ref().is_some_and(is_known);
    let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok();
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok();
    known(normalizer, |it| it.is_null() || it["type"] == "NFC")
        && known(pre_tokenizer, |it| splits(it) && ends_lines(it))
        && tokenizer
            .get_added_tokens_decoder()
            .values()
            .all(|token| !token.content.contains('\n') && !token.lstrip && !token.rstrip)
}

/// Whether all of a pre-tokenizer is known.
fn splits(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"]
            .as_array()
            .is_some_and(|steps| steps.iter().all(splits)),
        Some("Digits") => true,
        Some("ByteLevel") => pre_tokenizer["add_prefix_space"] == false,
        Some("Split") => is_known_pattern(pre_tokenizer),
        _ => false,
    }
}

/// Whether one of its steps ends a piece at the end of a line.
fn ends_lines(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("Sequence") => pre_tokenizer["pretokenizers"]
            .as_array()
            .is_some_and(|steps| steps.iter().any(ends_lines)),
        // The expression of GPT-2.
        Some("ByteLevel") => pre_tokenizer["use_regex"] == true,
        Some("Split") => is_known_pattern(pre_tokenizer),
        _ => false,
    }
}

fn is_known_pattern(split: &Value) -> bool {
    [LLAMA3_PATTERN, QWEN2_PATTERN]
        .iter()
        .any(|pattern| split["pattern"] == json!({ "Regex": pattern }))
        && split["behavior"] == "Isolated"
        && split["invert"] == false
}

/// The words of a text in sentencepiece's writing, each with the spaces before it.
struct Words;

impl Pattern for Words {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let begins = |at: usize| at > 0 && !inside[..at].ends_with(SPACE);
        let mut words = Vec::new();
        let mut start = 0;
        for (at, _) in inside.match_indices(SPACE).filter(|&(at, _)| begins(at)) {
            words.push(((start, at), false));
            start = at;
        }
        words.push(((start, inside.len()), false));
        Ok(words)
    }
}

/// Whether each word gives the same tokens whatever stands around it. So it is where there is no pre-tokenizer, and a
/// whole text is one word to BPE, if no token goes on behind the end of a word.
fn words_are_apart(tokenizer: &Tokenizer) -> bool {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else {
        return false;
    };
    tokenizer.get_pre_tokenizer().is_none()
        && bpe.dropout.is_none()
        && bpe.continuing_subword_prefix.is_none()
        && bpe.end_of_word_suffix.is_none()
        && !bpe.ignore_merges
        // Otherwise a run of unknown characters, which may be one token, could go on across a space.
        && bpe.token_to_id(SPACE).is_some()
        && bpe
            .get_vocab()
            .keys()
            .all(|token| !token.trim_start_matches(SPACE).contains(SPACE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    /// A BPE tokenizer of these pieces.
    fn bpe(
        normalizer: Value,
        pre_tokenizer: Value,
        pieces: &[&str],
        merges: &[(&str, &str)],
    ) -> Tokenizer {
        let ids: BTreeMap<&str, usize> = pieces.iter().copied().zip(0..).collect();
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": null,
            "decoder": null,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": "?", "fuse_unk": true,
                "byte_fallback": true, "ignore_merges": false, "vocab": ids, "merges": merges,
            },
        });
        Tokenizer::from_bytes(tokenizer.to_string()).unwrap()
    }

    fn sentencepiece(pieces: &[&str], merges: &[(&str, &str)]) -> Tokenizer {
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
        let prepend = json!({ "type": "Prepend", "prepend": SPACE });
        let normalizer = json!({ "type": "Sequence", "normalizers": [prepend, replace] });
        bpe(normalizer, Value::Null, pieces, merges)
    }

    /// Merges on both sides of whatever a byte-level step may split.
    fn byte_level(pre_tokenizer: Value) -> Tokenizer {
        const PIECES: [&str; 17] = [
            "?", "a", "b", "1", "!", "'", "s", "Ġ", "Ċ", "č", "ĉ", "ab", "ĊĊ", "!Ċ", "Ċa", "Ġa",
            "11",
        ];
        const MERGES: [(&str, &str); 6] = [
            ("a", "b"),
            ("Ċ", "Ċ"),
            ("!", "Ċ"),
            ("Ċ", "a"),
            ("Ġ", "a"),
            ("1", "1"),
        ];
        bpe(Value::Null, pre_tokenizer, &PIECES, &MERGES)
    }

    fn bytes(use_regex: bool, add_prefix_space: bool) -> Value {
        json!({
            "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
            "use_regex": use_regex,
        })
    }

    fn split(pattern: &str) -> Value {
        json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
            "invert": false,
        })
    }

    fn sequence(steps: &[Value]) -> Value {
        json!({ "type": "Sequence", "pretokenizers": steps })
    }

    fn digits() -> Value {
        json!({ "type": "Digits", "individual_digits": true })
    }

    const PIECES: [&str; 9] = ["?", "▁", "a", "b", "▁a", "ab", "▁ab", "▁▁", "<0xC3>"];
    const MERGES: [(&str, &str); 4] = [("a", "b"), ("▁", "ab"), ("▁", "a"), ("▁", "▁")];

    fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer
            .encode_fast(text, true)
            .unwrap()
            .get_ids()
            .to_vec()
    }

    #[test]
    fn known_ways_of_splitting_are_told_from_others() {
        for pre_tokenizer in [
            bytes(true, false),
            sequence(&[digits(), bytes(true, false)]),
            sequence(&[split(LLAMA3_PATTERN), bytes(false, false)]),
            sequence(&[split(QWEN2_PATTERN), bytes(false, false)]),
        ] {
            let tokenizer = byte_level(pre_tokenizer);
            assert_eq!(Seams::of(&tokenizer), Seams::Lines);
        }
        for pre_tokenizer in [
            Value::Null,
            digits(),
            bytes(false, false),
            bytes(true, true),
            split("a+"),
            json!({ "type": "Whitespace" }),
            sequence(&[json!({ "type": "Whitespace" }), bytes(true, false)]),
        ] {
            let tokenizer = byte_level(pre_tokenizer);
            assert_eq!(Seams::of(&tokenizer), Seams::Unknown);
        }
        let mut tokenizer = byte_level(bytes(true, false));
        let across = tokenizers::AddedToken::from("a\nb", false);
        tokenizer.add_tokens([across]).unwrap();
        assert_eq!(Seams::of(&tokenizer), Seams::Unknown);

        assert_eq!(Seams::of(&sentencepiece(&PIECES, &MERGES)), Seams::Words);
        // A piece that goes on behind a word's end, and a space that is unknown.
        let crossing = sentencepiece(
            &[&PIECES[..], &["b▁"]].concat(),
            &[&MERGES[..], &[("b", "▁")]].concat(),
        );
        assert_eq!(Seams::of(&crossing), Seams::Unknown);
        let without_space = sentencepiece(&["?", "a", "b", "ab"], &MERGES[..1]);
        assert_eq!(Seams::of(&without_space), Seams::Unknown);
    }

    #[test]
    fn parts_end_at_seams_and_cover_the_text() {
        let text = "one\ntwo \nthree!\nfour\n5\n\nsix\nende\n";
        let of = |least| {
            let parts = parts(text, least).map(|part| &text[part]);
            parts.collect::<Vec<_>>()
        };
        assert_eq!(
            of(1),
            ["one\n", "two \nthree!\n", "four\n5\n\nsix\n", "ende\n"]
        );
        assert_eq!(of(5), ["one\ntwo \nthree!\n", "four\n5\n\nsix\n", "ende\n"]);
        assert_eq!(of(usize::MAX), [text]);
        assert!(parts("", 1).next().is_none());
        assert_eq!(parts("é\nx", 1).count(), 1);
    }

    proptest! {
        #[test]
        fn parts_give_the_tokens_of_the_whole(text in "[ab1!' s\n\r\té]{0,60}") {
            for pre_tokenizer in [
                bytes(true, false),
                sequence(&[digits(), bytes(true, false)]),
                sequence(&[split(LLAMA3_PATTERN), bytes(false, false)]),
                sequence(&[split(QWEN2_PATTERN), bytes(false, false)]),
            ] {
                let tokenizer = byte_level(pre_tokenizer);
                let in_parts: Vec<u32> = parts(&text, 1)
                    .flat_map(|part| ids(&tokenizer, &text[part]))
                    .collect();
                prop_assert_eq!(in_parts, ids(&tokenizer, &text));
            }
        }

        #[test]
        fn words_give_the_tokens_of_the_whole(text in "[ab éx]{0,40}") {
            let tokenizer = sentencepiece(&PIECES, &MERGES);
            let vocabulary = tokenizer.get_added_vocabulary();
            let mut pieces = vocabulary.extract_and_normalize(tokenizer.get_normalizer(), &text);
            Seams::Words.split_words(&mut pieces).unwrap();
            pieces.tokenize(|piece| tokenizer.get_model().tokenize(piece.get())).unwrap();
            let encoding = pieces.into_encoding(None, 0, tokenizers::OffsetType::None).unwrap();
            prop_assert_eq!(encoding.get_ids(), ids(&tokenizer, &text));
        }
    }
}
