//! What stands before the blocks and behind them: from tokens to hidden states, and from those to logits.

use candle_core::Tensor;
use faer::Accum;
use ndarray::{Array2, s};

use super::LlamaConfig;
use super::norm::Norm;
use super::product::products;
use super::scratch::Scratch;
use super::tensors::{tensor, with_rows};
use super::weight::{Weight, weigh};
use super::weights::{Multiplied, Weights};
use crate::{Error, Result};

/// From tokens to the first block's input.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    table: Weight,
    /// Learned positions, and the row of position 0.
    positions: Option<(Tensor, usize)>,
    norm: Option<Norm>,
    /// From the table's width to the blocks'.
    projection: Option<Tensor>,
    scale: f32,
}

impl Embedding {
    pub(super) fn load(weights: &Weights) -> Result<Self> {
        let config = &weights.config;
        let spec = config.family.spec();
        let (hidden, width) = (config.hidden_size, config.embedding_size);
        let read = |part: &str, shape: &[usize]| {
            weights.read(&weights.name(&format!("{part}.weight")), shape)
        };
        let offset = match config.positions {
            super::Positions::Learned { offset } => offset,
            _ => 0,
        };
        Ok(Self {
            table: {
                let name = weights.name(&format!("{}.weight", spec.names.embedding));
                weights.weight(&name, Multiplied::rows_first(config.vocab_size, width))?
            },
            positions: match config.position_table() {
                Some((part, rows)) => Some((read(part, &[rows, hidden])?, offset)),
                None => None,
            },
            norm: match spec.names.embedding_norm {
                Some(part) => Some(weights.norm(&weights.name(part), hidden)?),
                None => None,
            },
            projection: match config.projections() {
                Some([into, _]) => Some(read(into, &[hidden, width])?),
                None => None,
            },
            scale: match spec.scaled_embedding {
                true => (hidden as f64).sqrt() as f32,
                false => 1.0,
            },
        })
    }

    pub(super) fn table_bytes(&self) -> usize {
        self.table.bytes()
    }

    /// The first block's input, batch x time x width, after checking the tokens.
    pub(super) fn embed(
        &self,
        config: &LlamaConfig,
        sequences: &[&[u32]],
        past: usize,
    ) -> Result<Tensor> {
        let time = checked_length(config, sequences, past)?;
        let tokens = sequences.concat();
        let count = tokens.len();
        let mut hidden = self.table.rows(&tokens)?;
        if let Some(projection) = &self.projection {
            let mut projected = Array2::zeros((count, config.hidden_size));
            let product = (&mut projected, Accum::Replace, projection);
            products(hidden.view(), vec![product])?;
            hidden = projected;
        }
        if self.scale != 1.0 {
            hidden *= self.scale;
        }
        if let Some((table, offset)) = &self.positions {
            let first = offset + past;
            with_rows(table, |table| {
                let table = table.slice(s![first..first + time, ..]);
                for start in (0..count).step_by(time) {
                    let mut sequence = hidden.slice_mut(s![start..start + time, ..]);
                    sequence += &table;
                }
                Ok(())
            })?;
        }
        if let Some(norm) = &self.norm {
            hidden = norm.apply(&Scratch::default(), &hidden).clone();
        }
        tensor(hidden, (sequences.len(), time, config.hidden_size))
    }
}

/// The length of all sequences.
fn checked_length(config: &LlamaConfig, sequences: &[&[u32]], past: usize) -> Result<usize> {
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
    let mut tokens = sequences.iter().copied().flatten();
    match tokens.find(|&&token| token as usize >= config.vocab_size) {
        Some(token) => Err(Error::data(
            "token ids",
            format!("ids below vocab_size = {}", config.vocab_size),
            token,
        )),
        None => Ok(time),
    }
}

/// From the last block's output to logits.
#[derive(Clone, Debug)]
pub(super) struct Head {
    norm: Option<Norm>,
    /// From the blocks' width to the head's.
    projection: Option<Tensor>,
    weight: Weight,
    bias: Option<Tensor>,
    softcap: Option<f32>,
}

impl Head {
    pub(super) fn load(weights: &Weights, embedding: &Embedding) -> Result<Self> {
        let config = &weights.config;
        let spec = config.family.spec();
        let (hidden, width) = (config.hidden_size, config.embedding_size);
        let head = spec.names.head;
        Ok(Self {
            norm: match config.final_norm {
                true => Some(weights.norm(&weights.name(spec.names.final_norm), hidden)?),
                false => None,
            },
            projection: match config.projections() {
                Some([_, out]) => {
                    let name = weights.name(&format!("{out}.weight"));
                    Some(weights.read(&name, &[width, hidden])?)
                }
                None => None,
            },
            weight: match config.tied {
                true => embedding.table.clone(),
                false => {
                    let name = format!("{head}.weight");
                    weights.weight(&name, Multiplied::rows_first(config.vocab_size, width))?
                }
            },
            bias: match spec.head_bias {
                true => Some(weights.read(&format!("{head}.bias"), &[config.vocab_size])?),
                false => None,
            },
            softcap: config.logit_softcap.map(|cap| cap as f32),
        })
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// What the head reads, batch x time x embedding width, from the last block's output.
    pub(super) fn prepare(&self, scratch: &Scratch, hidden: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = hidden.dims3()?;
        let mut last = with_rows(hidden, |hidden| Ok(hidden.to_owned()))?;
        if let Some(norm) = &self.norm {
            last = norm.apply(scratch, &last).clone();
        }
        if let Some(projection) = &self.projection {
            let mut projected = Array2::zeros((last.nrows(), projection.dims2()?.0));
            let product = (&mut projected, Accum::Replace, projection);
            products(last.view(), vec![product])?;
            last = projected;
        }
        let width = last.ncols();
        tensor(last, (batch, time, width))
    }

    /// Logits (tokens x vocabulary) from what [`prepare`](Self::prepare) makes, flattened.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut logits = Array2::zeros((hidden.dims2()?.0, self.weight.shape()?.0));
        let mut accum = Accum::Replace;
        if let Some(bias) = &self.bias {
            with_rows(bias, |bias| {
                logits += &bias;
                Ok(())
            })?;
            accum = Accum::Add;
        }
        with_rows(hidden, |x| {
            weigh(x, vec![(&mut logits, accum, &self.weight)])
        })?;
        if let Some(cap) = self.softcap {
            logits.mapv_inplace(|logit| cap * (logit / cap).tanh());
        }
        let shape = logits.dim();
        tensor(logits, shape)
    }
}
