//! From tokens to text while they come.

use crate::Result;
use crate::tokenizer::Tokenizer;

/// The text behind a prompt, given out as its characters become complete.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// With the prompt's, since some tokenizers drop the blank before the first word.
    tokens: Vec<u32>,
    /// Bytes of the text of all tokens that are the prompt's, and that are given out.
    prompt: usize,
    given: usize,
}

impl<'t> TextStream<'t> {
    /// Nothing yet behind a prompt.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn new(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Result<Self> {
        let length = tokenizer.decode(prompt)?.len();
        Ok(Self {
            tokenizer,
            tokens: prompt.to_vec(),
            prompt: length,
            given: length,
        })
    }

    /// Takes a token in and gives the text that is complete with it; a character may be spread over several tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens)?;
        match text.ends_with(char::REPLACEMENT_CHARACTER) {
            true => Ok(String::new()),
            false => Ok(self.give(&text)),
        }
    }

    /// The text that is left, with the sign for broken characters where the last one is not complete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.tokens)?;
        Ok(self.give(&text))
    }

    /// All of the text behind the prompt so far.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn text(&self) -> Result<String> {
        let text = self.tokenizer.decode(&self.tokens)?;
        Ok(text.get(self.prompt..).unwrap_or_default().to_owned())
    }

    fn give(&mut self, text: &str) -> String {
        let new = text.get(self.given..).unwrap_or_default().to_owned();
        self.given = text.len();
        new
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::tokenizer::TOKENIZER_FILE;

    /// A byte-level tokenizer without merges: every byte is a token, in GPT-2's writing.
    fn bytes() -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let mut others = 256..;
        for byte in 0..256 {
            let letter = match printable(byte) {
                true => byte,
                false => others.next().unwrap(),
            };
            let letter = char::from_u32(letter).unwrap().to_string();
            vocabulary.insert(letter, Value::from(byte));
        }
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": false, "vocab": vocabulary, "merges": [],
            },
        });
        let files = BTreeMap::from([(
            TOKENIZER_FILE.to_owned(),
            tokenizer.to_string().into_bytes(),
        )]);
        Tokenizer::from_files(Path::new(TOKENIZER_FILE), files, &[]).unwrap()
    }

    #[test]
    fn text_comes_in_whole_characters() {
        let tokenizer = bytes();
        let prompt = tokenizer.encode("é ").unwrap();
        let mut stream = TextStream::new(&tokenizer, &prompt).unwrap();
        let text = "a€ñ😀.";
        let mut pieces = Vec::new();
        for byte in text.bytes() {
            pieces.push(stream.push(u32::from(byte)).unwrap());
        }
        let whole: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(whole, ["a", "", "", "€", "", "ñ", "", "", "", "😀", "."]);
        assert_eq!(stream.text().unwrap(), text);
        // A character that never becomes whole, and what follows one.
        assert_eq!(stream.push(0xe2).unwrap(), "");
        assert_eq!(stream.push(u32::from(b'b')).unwrap(), "\u{fffd}b");
        assert_eq!(stream.push(0xe2).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
        assert_eq!(stream.finish().unwrap(), "");
        assert!(stream.push(256).is_err());
    }
}
