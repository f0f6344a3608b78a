//! A whole model in memory.

use std::sync::Arc;

use candle_core::{Device, IndexOp, Tensor};
use faer::Accum;
use ndarray::Array2;
use serde_json::Value;
use sparsegpt::NoTap;

use super::LlamaConfig;
use super::block::{Block, BlockCache, Position, normalized};
use super::product::products;
use super::scratch::Scratch;
use super::tensors::{tensor, with_rows};
use super::weights::{EMBEDDING, FINAL_NORM, HEAD, check_all, read};
use crate::{Error, Result, TensorSource};

/// A LLaMA-family model with all its weights in memory, in f32.
#[derive(Clone, Debug)]
pub struct Llama {
    config: LlamaConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Tensor,
}

/// Keys and values of the tokens a model has seen, for generating token by token.
#[derive(Clone, Debug)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    tokens: usize,
}

impl KvCache {
    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl Llama {
    /// Loads a model from its `config.json` and its tensors.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that is not supported, [`Error::Tensor`] for a missing or surplus
    /// tensor or one of a wrong shape.
    pub fn load(config: &Value, source: &Arc<dyn TensorSource>) -> Result<Self> {
        let config = LlamaConfig::from_json(config)?;
        let source = &**source;
        check_all(&config, source)?;
        let embedding = read(source, EMBEDDING, &[config.vocab_size, config.hidden_size])?;
        let head = if config.tied {
            embedding.clone()
        } else {
            read(source, HEAD, &[config.vocab_size, config.hidden_size])?
        };
        Ok(Self {
            blocks: (0..config.blocks)
                .map(|block| Block::load(&config, source, block))
                .collect::<Result<_>>()?,
            norm: read(source, FINAL_NORM, &[config.hidden_size])?,
            embedding,
            head,
            config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// An empty cache.
    #[must_use]
    pub fn cache(&self) -> KvCache {
        KvCache {
            blocks: vec![None; self.blocks.len()],
            tokens: 0,
        }
    }

    /// Logits, batch x time x vocabulary, for sequences of equal length.
    ///
    /// # Errors
    /// If the sequences are empty, of different lengths or longer than the model allows, or a token is
    /// outside the vocabulary.
    pub fn forward(&self, sequences: &[&[u32]]) -> Result<Tensor> {
        let hidden = self.hidden(sequences, None)?;
        let (batch, time, width) = hidden.dims3()?;
        let logits = self.head(&hidden.reshape((batch * time, width))?)?;
        Ok(logits.reshape((batch, time, self.config.vocab_size))?)
    }

    /// Logits (vocabulary) of the token that follows `tokens`, which follow those in the cache.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn next(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let hidden = self.hidden(&[tokens], Some(cache))?;
        let last = hidden.i((0, tokens.len() - 1..tokens.len()))?;
        Ok(self.head(&last)?.flatten_all()?.to_vec1()?)
    }

    /// The normalized output of the last block, batch x time x width.
    pub(crate) fn hidden(
        &self,
        sequences: &[&[u32]],
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        if let Some(cache) = &cache
            && cache.blocks.len() != self.blocks.len()
        {
            return Err(Error::setting(
                "cache",
                format!("one of this model's, with {} blocks", self.blocks.len()),
                cache.blocks.len(),
            ));
        }
        let past = cache.as_ref().map_or(0, |cache| cache.tokens);
        let mut hidden = embed(&self.config, &self.embedding, sequences, past)?;
        let (_, time, _) = hidden.dims3()?;
        let rotary = self.config.rotary.tables(self.config.head_dim, past, time);
        let scratch = Scratch::default();
        let position = Position {
            past,
            rotary: &rotary,
            scratch: &scratch,
        };
        for (index, block) in self.blocks.iter().enumerate() {
            let cache = cache.as_mut().map(|cache| &mut cache.blocks[index]);
            hidden = block.forward(&hidden, &position, cache, &mut NoTap)?;
        }
        if let Some(cache) = cache {
            cache.tokens += time;
        }
        let eps = self.config.rms_norm_eps as f32;
        let last = with_rows(&hidden, |hidden| {
            let normalized = normalized(&scratch, &hidden.to_owned(), &self.norm, eps)?;
            Ok(normalized.clone())
        })?;
        tensor(last, hidden.dims3()?)
    }

    /// Logits (tokens x vocabulary) from normalized hidden states (tokens x width).
    pub(crate) fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut logits = Array2::zeros((hidden.dims2()?.0, self.config.vocab_size));
        with_rows(hidden, |x| {
            products(x, vec![(&mut logits, Accum::Replace, &self.head)])
        })?;
        let shape = logits.dim();
        tensor(logits, shape)
    }
}

/// Token embeddings, batch x time x width, after checking the tokens.
pub(super) fn embed(
    config: &LlamaConfig,
    embedding: &Tensor,
    sequences: &[&[u32]],
    past: usize,
) -> Result<Tensor> {
    let time = sequences.first().map_or(0, |sequence| sequence.len());
    if time == 0 || sequences.iter().any(|sequence| sequence.len() != time) {
        return Err(Error::setting(
            "sequences",
            "at least one, of equal length, none empty",
            format!(
                "lengths {:?}",
                sequences.iter().map(|s| s.len()).collect::<Vec<_>>()
            ),
        ));
    }
    if past + time > config.max_positions {
        return Err(Error::setting(
            "sequence length",
            format!("at most max_position_embeddings = {}", config.max_positions),
            past + time,
        ));
    }
    let tokens = sequences.concat();
    if let Some(token) = tokens
        .iter()
        .find(|&&token| token as usize >= config.vocab_size)
    {
        return Err(Error::data(
            "token ids",
            format!("ids below vocab_size = {}", config.vocab_size),
            token,
        ));
    }
    let tokens = Tensor::from_vec(tokens, (sequences.len() * time,), &Device::Cpu)?;
    let rows = embedding.index_select(&tokens, 0)?;
    Ok(rows.reshape((sequences.len(), time, config.hidden_size))?)
}
