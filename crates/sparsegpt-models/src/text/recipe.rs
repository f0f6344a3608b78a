//! How the published perplexity figures prepare their texts.

use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{DEFAULT_TEXT_KEY, TextFormat, documents, join};
use crate::{Error, Result};

/// C4 perplexity takes this many documents from the start of the validation shard.
const C4_DOCUMENTS: usize = 1100;
/// C4 perplexity is taken over this many sequences at most.
const C4_SEQUENCES: usize = 256;

/// How an evaluation text is made of a file: the preparations of the SparseGPT paper (appendix B)
/// and its reference code, whose figures are comparable only on texts joined in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// The file as one text: plain text byte for byte (but for a byte order mark at its beginning), other documents joined by a newline.
    #[default]
    Raw,
    /// The rows of WikiText-2 (raw) joined by two newlines. A row is a line with its line end; a
    /// row of blanks counts as the empty string.
    WikiText2,
    /// The sentences of the Penn Treebank, stripped of blanks at both ends, joined by a space.
    Ptb,
    /// The first 1100 documents of C4 joined by a space (in a plain text file a document is a line
    /// that is not blank, without its line end), and the first 256 sequences of that text.
    C4,
}

impl Recipe {
    /// Every recipe.
    pub const ALL: [Self; 4] = [Self::Raw, Self::WikiText2, Self::Ptb, Self::C4];

    /// The recipe's name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::WikiText2 => "wikitext2",
            Self::Ptb => "ptb",
            Self::C4 => "c4",
        }
    }

    /// The column that holds the text where the data set is published as parquet.
    pub fn text_key(self) -> &'static str {
        match self {
            Self::Raw | Self::WikiText2 | Self::C4 => DEFAULT_TEXT_KEY,
            Self::Ptb => "sentence",
        }
    }

    /// How many tokens of the prepared text count, where the recipe does not take all.
    pub fn token_limit(self, sequence_length: usize) -> Option<usize> {
        match self {
            Self::Raw | Self::WikiText2 | Self::Ptb => None,
            Self::C4 => Some(C4_SEQUENCES.saturating_mul(sequence_length)),
        }
    }
}

impl Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Recipe {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|recipe| recipe.name() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                Error::setting("recipe", format!("one of {names}"), format!("{name:?}"))
            })
    }
}

/// The evaluation text that a recipe makes of a file, from the key or column that the data set is
/// published with ([`Recipe::text_key`]). [`Recipe::token_limit`] applies after tokenization.
///
/// # Errors
/// Those of [`documents`], and if the file holds no document.
pub fn prepare(recipe: Recipe, path: &Path) -> Result<String> {
    prepare_with_key(recipe, path, recipe.text_key())
}

/// As [`prepare`], with the text under a key or column of the caller's choice.
///
/// # Errors
/// Those of [`prepare`].
pub fn prepare_with_key(recipe: Recipe, path: &Path, text_key: &str) -> Result<String> {
    let documents = documents(path, text_key)?;
    let format = documents.format();
    match recipe {
        Recipe::Raw => join(path, documents, format.separator()),
        Recipe::WikiText2 => join(path, documents.map(|row| row.map(blank_to_empty)), "\n\n"),
        Recipe::Ptb => join(
            path,
            documents.map(|row| row.map(|row| row.trim().to_owned())),
            " ",
        ),
        Recipe::C4 => {
            let documents = documents
                .filter_map(|document| document.map(|d| c4_document(format, d)).transpose());
            join(path, documents.take(C4_DOCUMENTS), " ")
        }
    }
}

fn blank_to_empty(row: String) -> String {
    if row.trim().is_empty() {
        String::new()
    } else {
        row
    }
}

/// A line of plain text stands for a document only if it holds something, and without its end.
fn c4_document(format: TextFormat, document: String) -> Option<String> {
    if format != TextFormat::Plain {
        return Some(document);
    }
    let line = document.trim_end_matches(['\r', '\n']);
    (!line.trim().is_empty()).then(|| line.to_owned())
}
