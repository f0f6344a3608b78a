//! A whole model in memory.

use std::sync::Arc;

use candle_core::{IndexOp, Tensor};
use ndarray::{Axis, concatenate};
use serde_json::Value;
use sparsegpt::NoTap;
use sparsegpt_threads::awake;

use super::TransformerConfig;
use super::block::{Block, Position};
use super::ends::{Embedding, Head};
use super::hidden::{Hidden, Side};
use super::kept::Kept;
use super::scratch::Scratch;
use super::self_attention::BlockCache;
use super::weights::Weights;
use crate::{Error, Result, Sequence, TensorSource};

/// A model of any of the families, with all its weights in memory: in f32, or those layers that the source has
/// [ready](TensorSource::layer) as they are.
#[derive(Clone, Debug)]
pub struct Transformer {
    config: TransformerConfig,
    embedding: Embedding,
    blocks: Vec<Block>,
    head: Head,
}

/// Keys and values of the tokens a model has seen, for generating token by token.
#[derive(Clone, Debug)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    /// Tokens of each sequence; none before the first.
    sequences: Vec<Vec<u32>>,
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
    /// Tokens seen, of each sequence.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.sequences.first().map_or(0, Vec::len)
    }

    fn take_in(&mut self, sequences: &[&[u32]]) {
        self.sequences.resize(sequences.len(), Vec::new());
        for (seen, tokens) in self.sequences.iter_mut().zip(sequences) {
            seen.extend(*tokens);
        }
    }

    /// One cache of several that have seen equally many tokens, of one model.
    fn together(caches: &[Self]) -> Result<Self> {
        let joined = |block: usize, part: usize| {
            let pairs = caches
                .iter()
                .filter_map(|cache| cache.blocks[block].as_ref());
            let views: Vec<_> = pairs.map(|pair| pair[part].view()).collect();
            concatenate(Axis(0), &views)
                .map(Kept::from)
                .map_err(|error| Error::tensor("(keys and values)", error.to_string()))
        };
        let blocks = caches.first().map_or(0, |cache| cache.blocks.len());
        Ok(Self {
            blocks: (0..blocks)
                .map(|block| Ok(Some([joined(block, 0)?, joined(block, 1)?])))
                .collect::<Result<_>>()?,
            sequences: caches.iter().flat_map(|c| c.sequences.clone()).collect(),
        })
    }

    /// A cache of some of the sequences that ran together, by number, in any order and any number of times.
    pub(crate) fn of(&self, sequences: &[usize]) -> Self {
        let select = |pair: &[Kept; 2]| {
            [0, 1].map(|part: usize| pair[part].view().select(Axis(0), sequences).into())
        };
        Self {
            blocks: self
                .blocks
                .iter()
                .map(|block| block.as_ref().map(select))
                .collect(),
            sequences: match self.sequences.as_slice() {
                [] => Vec::new(),
                seen => sequences.iter().map(|&at| seen[at].clone()).collect(),
            },
        }
    }
}

impl Transformer {
    /// Loads a model from its `config.json` and its tensors.
    ///
    /// # Errors
    /// [`Error::Config`] for a configuration that is not supported, [`Error::Tensor`] for a missing or surplus
    /// tensor or one of a wrong shape.
    pub fn load(config: &Value, source: &Arc<dyn TensorSource>) -> Result<Self> {
        let config = TransformerConfig::from_json(config)?;
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
    pub fn config(&self) -> &TransformerConfig {
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
            sequences: Vec::new(),
        }
    }

    /// Logits, batch x time x vocabulary, for sequences of equal length without padding: an encoder's tokens see all
    /// others, those that it was trained to take for padding too (as in transformers without an attention mask).
    ///
    /// # Errors
    /// For an encoder with a decoder, which needs tokens for both ([`forward_sequences`](Self::forward_sequences)); if the sequences are empty, of different lengths or longer than the model allows, or a token is
    /// outside the vocabulary.
    pub fn forward(&self, sequences: &[&[u32]]) -> Result<Tensor> {
        let sequences: Vec<Sequence> = sequences.iter().map(|&tokens| tokens.into()).collect();
        self.forward_sequences(&sequences)
    }

    /// [`forward`](Self::forward) for sequences that may be padded. No token sees padding; what the logits of padding
    /// itself are is of no meaning.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); for a mask without a token that counts; for a decoder, with padding in front of a
    /// token; for an encoder with a decoder, without tokens for the latter.
    pub fn forward_sequences(&self, sequences: &[Sequence]) -> Result<Tensor> {
        let sequences: Vec<&Sequence> = sequences.iter().collect();
        let hidden = self.embedding.begin(&self.config, &sequences)?;
        let last = self.run(hidden, None)?;
        let (batch, time, width) = last.dims3()?;
        let logits = self.head(&last.reshape((batch * time, width))?)?;
        Ok(logits.reshape((batch, time, self.config.vocab_size))?)
    }

    /// Logits (vocabulary) of the token that follows `tokens`, which follow those in the cache.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and for models that are no decoders.
    pub fn next(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let mut fresh = tokens;
        let all;
        if self
            .config
            .turns_anew(cache.tokens(), cache.tokens() + tokens.len())
        {
            // The cached keys have turned by angles that no longer hold.
            all = [&cache.sequences.concat(), tokens].concat();
            (*cache, fresh) = (self.cache(), &all);
        }
        awake(|| {
            let hidden = self.hidden(&[fresh], Some(cache))?;
            let last = hidden.i((0, fresh.len() - 1..fresh.len()))?;
            Ok(self.head(&last)?.flatten_all()?.to_vec1()?)
        })
    }

    /// Logits (vocabulary) of the token that follows in each of the sequences in the cache, which one of `tokens` each goes
    /// on with. Up to four sequences get the same bits as each of them alone from [`next`](Self::next).
    ///
    /// # Errors
    /// As [`next`](Self::next), and if there is not one token for each sequence.
    pub fn next_of_each(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<Vec<f32>>> {
        if tokens.len() != cache.sequences.len() {
            return Err(Error::setting(
                "tokens",
                format!("one for each of {} sequences", cache.sequences.len()),
                tokens.len(),
            ));
        }
        if self.config.turns_anew(cache.tokens(), cache.tokens() + 1) {
            let (mut logits, mut caches) = (Vec::new(), Vec::new());
            for (seen, &token) in cache.sequences.iter().zip(tokens) {
                let mut own = self.cache();
                logits.push(self.next(&[seen, &[token][..]].concat(), &mut own)?);
                caches.push(own);
            }
            *cache = KvCache::together(&caches)?;
            return Ok(logits);
        }
        let fresh: Vec<&[u32]> = tokens.chunks(1).collect();
        awake(|| {
            let hidden = self.hidden(&fresh, Some(cache))?;
            Ok(self.head(&hidden.i((.., 0))?)?.to_vec2()?)
        })
    }

    /// What the head of a decoder reads: the normalized output of the last block, batch x time x width.
    pub(crate) fn hidden(
        &self,
        sequences: &[&[u32]],
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        self.config.require_decoder("predicting the next token")?;
        if let Some(cache) = &cache
            && cache.blocks.len() != self.blocks.len()
        {
            return Err(Error::setting(
                "cache",
                format!("one of this model's, with {} blocks", self.blocks.len()),
                cache.blocks.len(),
            ));
        }
        let past = cache.as_ref().map_or(0, |cache| cache.tokens());
        let hidden = Hidden {
            now: Side {
                states: self.embedding.embed(&self.config, sequences, past)?,
                counts: None,
            },
            other: None,
        };
        let output = self.run(hidden, cache.as_deref_mut())?;
        if let Some(cache) = cache {
            cache.take_in(sequences);
        }
        Ok(output)
    }

    /// What the head reads, from the first block's input. A block is a dozen operations, which for a token are short.
    fn run(&self, hidden: Hidden, cache: Option<&mut KvCache>) -> Result<Tensor> {
        awake(|| self.run_awake(hidden, cache))
    }

    fn run_awake(&self, mut hidden: Hidden, mut cache: Option<&mut KvCache>) -> Result<Tensor> {
        let past = cache.as_ref().map_or(0, |cache| cache.tokens());
        let time = hidden.time()?;
        let rotary = self.config.rotary_tables(past, time);
        let scratch = Scratch::default();
        for (index, block) in self.blocks.iter().enumerate() {
            let position = Position {
                past,
                ..hidden.position(rotary.as_ref(), &scratch)
            };
            let cache = cache.as_mut().map(|cache| &mut cache.blocks[index]);
            let states = block.forward(hidden.states(), &position, cache, &mut NoTap)?;
            hidden = hidden.after(&self.config, index, states);
        }
        self.head.prepare(&scratch, hidden.states())
    }

    /// Logits (tokens x vocabulary) from what [`hidden`](Self::hidden) gives (tokens x width).
    pub(crate) fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.logits(hidden)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::TensorInfo;

    use crate::decoder::TOGETHER;

    const HIDDEN: usize = 16;

    /// Weights that look random, by their place.
    #[derive(Debug)]
    struct Made(BTreeMap<String, Vec<usize>>);

    impl TensorSource for Made {
        fn names(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }

        fn info(&self, name: &str) -> Option<TensorInfo> {
            let shape = self.0.get(name)?.clone();
            let dtype = safetensors::Dtype::F32;
            Some(TensorInfo { dtype, shape })
        }

        fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
            let count: usize = self.0[name].iter().product();
            let value = |place: usize| ((place * 7 + name.len()) as f32).sin();
            Ok((0..count).map(value).collect())
        }
    }

    /// A model of one block whose angles change once a sequence has more than eight tokens.
    fn model() -> Transformer {
        let factors = |first: f64| [first, first + 1.0, first + 2.0, first + 3.0];
        let config = json!({
            "model_type": "llama", "vocab_size": 20, "hidden_size": HIDDEN, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 32, "rope_theta": 1e4,
            "tie_word_embeddings": true, "original_max_position_embeddings": 8,
            "rope_scaling": {
                "type": "longrope", "short_factor": factors(1.0), "long_factor": factors(3.0),
                "original_max_position_embeddings": 8,
            },
        });
        let parts = [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![16, HIDDEN]),
            ("self_attn.k_proj", vec![8, HIDDEN]),
            ("self_attn.v_proj", vec![8, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 16]),
            ("mlp.gate_proj", vec![24, HIDDEN]),
            ("mlp.up_proj", vec![24, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, 24]),
        ];
        let of_block = |(part, shape)| (format!("model.layers.0.{part}.weight"), shape);
        let mut tensors: BTreeMap<_, _> = parts.into_iter().map(of_block).collect();
        tensors.insert("model.embed_tokens.weight".to_owned(), vec![20, HIDDEN]);
        tensors.insert("model.norm.weight".to_owned(), vec![HIDDEN]);
        let source: Arc<dyn TensorSource> = Arc::new(Made(tensors));
        Transformer::load(&config, &source).unwrap()
    }

    #[test]
    fn sequences_that_go_on_together_get_the_bits_of_each_alone() {
        let model = model();
        let mut prompt = model.cache();
        model.next(&[3, 1, 4, 1, 5], &mut prompt).unwrap();
        for sequences in 1..=TOGETHER {
            let mut alone = vec![prompt.clone(); sequences];
            let mut together = prompt.of(&vec![0; sequences]);
            for step in 0..8 {
                let tokens: Vec<u32> = (0..sequences)
                    .map(|s| ((5 * s + 3 * step) % 20) as u32)
                    .collect();
                let logits = model.next_of_each(&tokens, &mut together).unwrap();
                let each = tokens.iter().zip(&mut alone);
                let each: Vec<_> = each
                    .map(|(&token, cache)| model.next(&[token], cache).unwrap())
                    .collect();
                assert_eq!(logits, each, "{sequences} sequences, step {step}");
                assert_eq!(together.tokens(), 6 + step);
            }
            let wrong = vec![1; sequences + 1];
            assert!(model.next_of_each(&wrong, &mut together).is_err());
        }
    }
}
