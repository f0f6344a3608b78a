//! The text that perplexity is measured on.

use std::path::{Path, PathBuf};

use sparsegpt_models::text::{Recipe, prepare_with_key};
use sparsegpt_models::tokenizer::Tokenizer;

use crate::commands::prune::tell_of_text;
use crate::console::Console;
use crate::failure::Failure;
use crate::interrupt;

/// A text as a recipe makes it of a file, not yet in tokens: each model has a tokenizer of its own.
pub(crate) struct EvaluationText {
    pub(crate) file: PathBuf,
    text: String,
    token_limit: Option<usize>,
}

impl EvaluationText {
    /// Reads the file. `text_key` is the flag's value; `sequence_length` the tokens of a chunk.
    pub(crate) fn read(
        file: &Path,
        recipe: Recipe,
        text_key: Option<&str>,
        sequence_length: usize,
        console: &Console,
    ) -> Result<Self, Failure> {
        tell_of_text(file, text_key, console);
        let key = text_key.unwrap_or_else(|| recipe.text_key());
        Ok(Self {
            file: file.to_owned(),
            text: prepare_with_key(recipe, file, key).map_err(Failure::reading)?,
            token_limit: recipe.token_limit(sequence_length),
        })
    }

    /// The tokens that the recipe measures.
    pub(crate) fn tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, Failure> {
        let mut tokens = tokenizer
            .encode_while(&self.text, &interrupt::not_requested)
            .map_err(Failure::reading)?;
        interrupt::check()?;
        tokens.truncate(self.token_limit.unwrap_or(usize::MAX));
        Ok(tokens)
    }
}
