//! A whole model in memory.

use std::sync::Arc;

use candle_core::{IndexOp, Tensor};
use ndarray::{Array3, Axis};
use serde_json::Value;
use sparsegpt::NoTap;

use super::LlamaConfig;
use super::block::{Block, Position};
use super::ends::{Embedding, Head};
use super::scratch::Scratch;
use super::self_attention::BlockCache;
use super::weights::Weights;
use crate::{Error, Result, TensorSource};

/// A decoder of any of the families, with all its weights in memory: in f32, or those layers that the source has
/// [ready](TensorSource::layer) as they are.
#[derive(Clone, Debug)]
pub struct Llama {
    config: LlamaConfig,
    embedding: Embedding,
    blocks: Vec<Block>,
    head: Head,
}

/// Keys and values of the tokens a model has seen, for generating token by token.
#[derive(Clone, Debug)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    tokens: usize,
}

/// Bytes of a model's matrices in memory or in its mapped file; norms and biases are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MatrixBytes {
    /// Of the linear layers of all blocks.
    pub linear: usize,
    /// With the table of embeddings and the head.
    pub all: usize,
}

impl KvCache {
    /// Tokens seen.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// A cache of some of the sequences that ran together, by number, in any order and any number of times.
    pub(crate) fn of(&self, sequences: &[usize]) -> Self {
        let select = |pair: &[Array3<f32>; 2]| {
            [0, 1].map(|part: usize| pair[part].select(Axis(0), sequences))
        };
        Self {
            blocks: self
                .blocks
                .iter()
                .map(|block| block.as_ref().map(select))
                .collect(),
            tokens: self.tokens,
        }
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
        let weights = Weights::open(config, source.clone())?;
        let embedding = Embedding::load(&weights)?;
        Ok(Self {
            blocks: (0..weights.config.blocks)
                .map(|block| Block::load(&weights, block))
                .collect::<Result<_>>()?,
            head: Head::load(&weights, &embedding)?,
            embedding,
            config: weights.config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Bytes of what the model multiplies by.
    #[must_use]
    pub fn matrix_bytes(&self) -> MatrixBytes {
        let linears = self.blocks.iter().flat_map(|block| &block.linears);
        let linear = linears.map(|linear| linear.weight.bytes()).sum();
        let head = match self.config.tied {
            true => 0,
            false => self.head.weight_bytes(),
        };
        MatrixBytes {
            linear,
            all: linear + self.embedding.table_bytes() + head,
        }
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

    /// What the head reads: the normalized output of the last block, batch x time x width.
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
        let mut hidden = self.embedding.embed(&self.config, sequences, past)?;
        let (_, time, _) = hidden.dims3()?;
        let rotary = self.config.rotary_tables(past, time);
        let scratch = Scratch::default();
        let position = Position {
            past,
            rotary: rotary.as_ref(),
            scratch: &scratch,
        };
        for (index, block) in self.blocks.iter().enumerate() {
            let cache = cache.as_mut().map(|cache| &mut cache.blocks[index]);
            hidden = block.forward(&hidden, &position, cache, &mut NoTap)?;
        }
        if let Some(cache) = cache {
            cache.tokens += time;
        }
        self.head.prepare(&scratch, &hidden)
    }

    /// Logits (tokens x vocabulary) from what [`hidden`](Self::hidden) gives (tokens x width).
    pub(crate) fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.logits(hidden)
    }
}
