//! Calibration sequences: token windows drawn with a seed from text, or ready token ids.
//!
//! The paper (section 4) calibrates on 128 windows of 2048 tokens out of C4; both numbers are the
//! defaults here and neither is ever taken from the model.

mod masked;
mod ready;
mod spans;

pub use masked::{Masking, PRETRAINING_MASK_RATE};
pub use spans::Spans;

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::text::{self, DEFAULT_TEXT_KEY, TextFormat};
use crate::{Error, Result, Sequence};

/// Sequences drawn where the caller names no number.
pub const DEFAULT_SAMPLES: usize = 128;
/// Tokens in a sequence where the caller names no length.
pub const DEFAULT_SEQUENCE_LENGTH: usize = 2048;
/// Tokens of all sequences together, 8 GiB of ids: more is a slip of the keyboard.
const MOST_TOKENS: usize = 1 << 31;
/// A sequence has to have a token to predict another from.
const SHORTEST_SEQUENCE: usize = 2;

/// Where in a text file the windows lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CalibrationMode {
    /// The whole file is tokenized as one text (see [`text::read_text`]); a window may lie
    /// anywhere in it, windows may overlap.
    #[default]
    Text,
    /// A window lies within one document (a line, record or row) that is at least as long as the
    /// window. No document gives two windows.
    Lines,
}

impl CalibrationMode {
    /// Every mode.
    pub const ALL: [Self; 2] = [Self::Text, Self::Lines];

    /// The mode's name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Lines => "lines",
        }
    }
}

impl Display for CalibrationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CalibrationMode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                Error::setting(
                    "calibration mode",
                    format!("one of {names}"),
                    format!("{name:?}"),
                )
            })
    }
}

/// How to draw calibration sequences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CalibrationOptions {
    /// Number of sequences; `None` is [`DEFAULT_SAMPLES`], or all of a file of ready token ids.
    pub samples: Option<usize>,
    /// Tokens in a sequence, at least 2; `None` is [`DEFAULT_SEQUENCE_LENGTH`], or the whole
    /// length of ready token ids.
    pub sequence_length: Option<usize>,
    /// Seed of the draw. The same file, tokenizer and options give the same windows on every
    /// machine.
    pub seed: u64,
    /// Where the windows lie. Ready token ids have no use for it.
    pub mode: CalibrationMode,
    /// Key (JSON lines) or column (parquet) that holds the text.
    pub text_key: String,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self {
            samples: None,
            sequence_length: None,
            seed: 0,
            mode: CalibrationMode::default(),
            text_key: DEFAULT_TEXT_KEY.to_owned(),
        }
    }
}

impl CalibrationOptions {
    fn validate(&self) -> Result<()> {
        if self.samples == Some(0) {
            return Err(Error::setting("samples", "at least 1 sequence", 0));
        }
        let length = self.sequence_length.unwrap_or(DEFAULT_SEQUENCE_LENGTH);
        if length < SHORTEST_SEQUENCE {
            return Err(Error::setting(
                "sequence length",
                format!("at least {SHORTEST_SEQUENCE} tokens"),
                length,
            ));
        }
        let most = MOST_TOKENS / length;
        match self.samples {
            Some(samples) if samples > most => Err(Error::setting(
                "samples",
                format!("at most {most} sequences of {length} tokens"),
                samples,
            )),
            _ => Ok(()),
        }
    }
}

/// Calibration sequences and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calibration {
    /// The sequences, all of one length.
    pub sequences: Vec<Sequence>,
    /// The file and how the sequences were taken from it, in words.
    pub source: String,
    /// Tokens there were to draw from: of the whole text; of all documents that were tokenized,
    /// the too short ones included; or of the tensor of ready token ids.
    pub tokens_available: usize,
}

impl Calibration {
    /// Tokens in each sequence.
    pub fn sequence_length(&self) -> usize {
        self.tokens().next().map_or(0, <[u32]>::len)
    }

    /// The token ids of each sequence.
    pub fn tokens(&self) -> impl Iterator<Item = &[u32]> {
        self.sequences.iter().map(|sequence| &*sequence.tokens)
    }

    /// The sequences with tokens put before and behind each, as a tokenizer does with a text (`[CLS]` and `[SEP]`).
    #[must_use]
    pub fn framed(mut self, before: &[u32], behind: &[u32]) -> Self {
        for sequence in &mut self.sequences {
            sequence.tokens = [before, &sequence.tokens, behind].concat();
            if let Some(mask) = &mut sequence.attention_mask {
                *mask = [
                    &vec![true; before.len()],
                    &**mask,
                    &vec![true; behind.len()],
                ]
                .concat();
            }
        }
        self
    }

    /// Identifies the token ids, for reports: FNV-1a (64 bits, hexadecimal) over the number of
    /// sequences, then each sequence's length and ids, and where it has padding, 1 for each token that
    /// counts and 0 for each other, and the decoder's ids, as little-endian 64-bit words. Equal sequences have equal fingerprints;
    /// it is no protection against forgery.
    pub fn fingerprint(&self) -> String {
        let lengths_and_ids = self.sequences.iter().flat_map(|sequence| {
            let ids = sequence.tokens.iter().map(|&id| u64::from(id));
            let mask = sequence.attention_mask.iter().flatten();
            std::iter::once(ids.len() as u64)
                .chain(ids)
                .chain(mask.map(|&counts| u64::from(counts)))
                .chain(sequence.decoder_tokens.iter().map(|&id| u64::from(id)))
        });
        let words = std::iter::once(self.sequences.len() as u64).chain(lengths_and_ids);
        let hash = words
            .flat_map(u64::to_le_bytes)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        format!("{hash:016x}")
    }

    /// Checks that every token id lies within a model's vocabulary.
    ///
    /// # Errors
    /// If an id is not below `vocab_size`: the ids were made with another tokenizer.
    pub fn check_vocabulary(&self, vocab_size: usize) -> Result<()> {
        let outside = self
            .sequences
            .iter()
            .flat_map(|sequence| sequence.tokens.iter().chain(&sequence.decoder_tokens))
            .find(|&&id| usize::try_from(id).map_or(true, |id| id >= vocab_size));
        match outside {
            None => Ok(()),
            Some(id) => Err(Error::data(
                &self.source,
                format!(
                    "token ids below {vocab_size}, the model's vocabulary (tokenize with the \
                     model's own tokenizer)"
                ),
                id,
            )),
        }
    }
}

/// Whether a calibration file is taken as ready token ids: a `.safetensors` file.
pub fn holds_token_ids(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
}

/// Looks at what [`draw`] would draw from, as far as that goes without tokenizing: at the options, at a file of ready
/// token ids as a whole, of a text at its kind and its first document. Whether the text is long enough, and whole, is
/// not known from that.
///
/// # Errors
/// Those of [`draw`] that can be found so.
pub fn check(path: &Path, options: &CalibrationOptions) -> Result<()> {
    options.validate()?;
    if holds_token_ids(path) {
        return ready::read(path, options.samples, options.sequence_length).map(drop);
    }
    match text::documents(path, &options.text_key)?.next() {
        Some(document) => document.map(drop),
        None => Err(text::no_document(path)),
    }
}

/// Draws calibration sequences from a file.
///
/// A text file (plain text, JSON lines or parquet, see [`text::documents`]) is tokenized by
/// `encode`, which adds the special tokens its tokenizer asks for once to each text it is given.
/// Windows are drawn by ChaCha8 from the seed. A `.safetensors` file is taken as ready token ids:
/// the tensor `calibration_tokens`, or else `tokens`, i32, i64 or u32, sequences x length, and where there is one,
/// `attention_mask` of the same shape (0 for padding), and `decoder_tokens` (sequences x any length);
/// `samples` and `sequence_length` then take the first sequences and the first tokens of each.
///
/// # Errors
/// If `samples` is zero or beyond any memory, or `sequence_length` below 2; if the file cannot be read (see
/// [`text::documents`]); if the text is shorter than one sequence, too few documents are long
/// enough, or the tensor holds less than asked for or ids that are no u32; or if `encode` fails.
pub fn draw(
    path: &Path,
    encode: &dyn Fn(&str) -> Result<Vec<u32>>,
    options: &CalibrationOptions,
) -> Result<Calibration> {
    options.validate()?;
    if holds_token_ids(path) {
        return ready::read(path, options.samples, options.sequence_length);
    }
    let windows = Windows {
        samples: options.samples.unwrap_or(DEFAULT_SAMPLES),
        length: options.sequence_length.unwrap_or(DEFAULT_SEQUENCE_LENGTH),
        rng: ChaCha8Rng::seed_from_u64(options.seed),
    };
    let calibration = match options.mode {
        CalibrationMode::Text => windows.of_text(path, encode, &options.text_key),
        CalibrationMode::Lines => windows.of_documents(path, encode, &options.text_key),
    }?;
    let source = format!("{}, seed {}", calibration.source, options.seed);
    Ok(Calibration {
        source,
        ..calibration
    })
}

/// A draw of windows in progress.
struct Windows {
    samples: usize,
    length: usize,
    rng: ChaCha8Rng,
}

impl Windows {
    fn of_text(
        mut self,
        path: &Path,
        encode: &dyn Fn(&str) -> Result<Vec<u32>>,
        text_key: &str,
    ) -> Result<Calibration> {
        let tokens = encode(&text::read_text(path, text_key)?)?;
        if tokens.len() < self.length {
            return Err(Error::format(
                path,
                format!(
                    "expected at least one sequence of {} tokens, found a text of {} tokens; give \
                     a longer text or a smaller sequence length",
                    self.length,
                    tokens.len()
                ),
            ));
        }
        Ok(Calibration {
            sequences: (0..self.samples).map(|_| self.window(&tokens)).collect(),
            source: format!("{}: random windows of the whole text", path.display()),
            tokens_available: tokens.len(),
        })
    }

    /// Tokenizes documents in a random order until enough of them are long enough.
    fn of_documents(
        mut self,
        path: &Path,
        encode: &dyn Fn(&str) -> Result<Vec<u32>>,
        text_key: &str,
    ) -> Result<Calibration> {
        let documents = text::documents(path, text_key)?;
        let format = documents.format();
        let mut documents = documents.collect::<Result<Vec<_>>>()?;
        documents.shuffle(&mut self.rng);
        let mut sequences = Vec::new();
        let mut tokens_available = 0;
        for document in &documents {
            if sequences.len() == self.samples {
                break;
            }
            let tokens = encode(match format {
                TextFormat::Plain => document.trim_end_matches(['\r', '\n']),
                TextFormat::JsonLines | TextFormat::Parquet => document,
            })?;
            tokens_available += tokens.len();
            if tokens.len() >= self.length {
                sequences.push(self.window(&tokens));
            }
        }
        if sequences.len() < self.samples {
            return Err(Error::format(
                path,
                format!(
                    "expected {} documents of at least {} tokens, found {} among {} documents; \
                     ask for fewer samples or a smaller sequence length, or draw from the whole \
                     text (mode `text`)",
                    self.samples,
                    self.length,
                    sequences.len(),
                    documents.len()
                ),
            ));
        }
        Ok(Calibration {
            sequences,
            source: format!("{}: a random window of random documents", path.display()),
            tokens_available,
        })
    }

    /// A random window of at least as many tokens.
    fn window(&mut self, tokens: &[u32]) -> Sequence {
        let start = self.rng.random_range(0..=tokens.len() - self.length);
        tokens[start..start + self.length].into()
    }
}

#[cfg(test)]
mod tests;
