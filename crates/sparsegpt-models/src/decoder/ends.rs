//! What stands before the blocks and behind them: from tokens to hidden states, and from those to logits.

use candle_core::Tensor;
use faer::Accum;
use ndarray::{Array2, ArrayView1, s};

use super::TransformerConfig;
use super::config::{Activation, Positions};
use super::elementwise::activate;
use super::family::ModelKind;
use super::hidden::{Hidden, Side, counted};
use super::norm::Norm;
use super::product::products;
use super::scratch::Scratch;
use super::tensors::{tensor, with_rows};
use super::weight::{Weight, weigh};
use super::weights::{Multiplied, Weights};
use crate::{Error, Result, Sequence};

/// From tokens to the first block's input.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    table: Weight,
    /// Learned positions, the row of position 0, and the token that is not counted.
    positions: Option<(Tensor, usize, Option<u32>)>,
    /// Those of the first token type.
    token_type: Option<Vec<f32>>,
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
        let (offset, uncounted) = match config.positions {
            Positions::Learned { offset, uncounted } => (offset, uncounted),
            _ => (0, None),
        };
        Ok(Self {
            table: {
                let name = weights.name(&format!("{}.weight", spec.names.embedding));
                weights.weight(&name, Multiplied::rows_first(config.vocab_size, width))?
            },
            positions: match config.position_table() {
                Some((part, rows)) => Some((read(part, &[rows, hidden])?, offset, uncounted)),
                None => None,
            },
            token_type: match (spec.names.token_types, config.token_types) {
                (Some(part), Some(types)) => {
                    let table: Vec<f32> = read(part, &[types, hidden])?.flatten_all()?.to_vec1()?;
                    Some(table[..hidden].to_vec())
                }
                _ => None,
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

    /// The first block's input for whole sequences, after checking them.
    pub(super) fn begin(
        &self,
        config: &TransformerConfig,
        sequences: &[&Sequence],
    ) -> Result<Hidden> {
        for sequence in sequences {
            check_padding(config, sequence)?;
        }
        let two_stacks = config.kind() == ModelKind::EncoderDecoder;
        if sequences
            .iter()
            .any(|s| s.decoder_tokens.is_empty() == two_stacks)
        {
            return Err(Error::data(
                "decoder tokens",
                match two_stacks {
                    true => "at least one, as the model has a decoder behind an encoder",
                    false => "none, as the model has no decoder behind an encoder",
                },
                match two_stacks {
                    true => "none",
                    false => "some",
                },
            ));
        }
        let side = |tokens: &[&[u32]], masks: &[(Option<&[bool]>, usize)]| {
            Ok::<Side, Error>(Side {
                states: self.embed(config, tokens, 0)?,
                counts: counted(masks),
            })
        };
        let tokens: Vec<&[u32]> = sequences.iter().map(|s| &*s.tokens).collect();
        let masks: Vec<_> = sequences
            .iter()
            .map(|s| (s.attention_mask.as_deref(), s.tokens.len()))
            .collect();
        let now = side(&tokens, &masks)?;
        if !two_stacks {
            return Ok(Hidden { now, other: None });
        }
        // Padding at a decoder's end: none sees it, and it must not count.
        let decoded: Vec<&[u32]> = sequences.iter().map(|s| &*s.decoder_tokens).collect();
        let masks: Vec<Option<Vec<bool>>> = decoded
            .iter()
            .map(|tokens| ending_in(tokens, config.padding))
            .collect();
        let masks: Vec<_> = masks
            .iter()
            .zip(&decoded)
            .map(|(mask, tokens)| (mask.as_deref(), tokens.len()))
            .collect();
        Ok(Hidden {
            now,
            other: Some(side(&decoded, &masks)?),
        })
    }

    /// The first block's input, batch x time x width, after checking the tokens, which follow `past` others.
    pub(super) fn embed(
        &self,
        config: &TransformerConfig,
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
        if let Some((table, offset, uncounted)) = &self.positions {
            let first = offset + past;
            with_rows(table, |table| {
                for (sequence, start) in sequences.iter().zip((0..count).step_by(time)) {
                    let mut hidden = hidden.slice_mut(s![start..start + time, ..]);
                    let Some(uncounted) = uncounted else {
                        hidden += &table.slice(s![first..first + time, ..]);
                        continue;
                    };
                    let mut next = first;
                    for (token, mut row) in sequence.iter().zip(hidden.rows_mut()) {
                        let counts = token != uncounted;
                        row += &table.row(if counts { next } else { first - 1 });
                        next += usize::from(counts);
                    }
                }
                Ok(())
            })?;
        }
        if let Some(of_type) = &self.token_type {
            hidden += &ArrayView1::from(of_type);
        }
        if let Some(norm) = &self.norm {
            hidden = norm.apply(&Scratch::default(), &hidden).clone();
        }
        tensor(hidden, (sequences.len(), time, config.hidden_size))
    }
}

/// Which tokens count where padding stands at the end; the first token counts in any case. `None`: all do.
fn ending_in(tokens: &[u32], padding: Option<u32>) -> Option<Vec<bool>> {
    let padded = tokens
        .iter()
        .rev()
        .take_while(|&&token| Some(token) == padding);
    let counted = tokens.len() - padded.count().min(tokens.len() - 1);
    (counted < tokens.len()).then(|| (0..tokens.len()).map(|at| at < counted).collect())
}

/// Whether padding stands where the model can do without it.
fn check_padding(config: &TransformerConfig, sequence: &Sequence) -> Result<()> {
    let Some(mask) = &sequence.attention_mask else {
        return Ok(());
    };
    if mask.len() != sequence.tokens.len() || !mask.contains(&true) {
        return Err(Error::setting(
            "attention mask",
            format!(
                "{} entries, at least one of them of a token that counts",
                sequence.tokens.len()
            ),
            format!("{} of {}", sequence.counted(), mask.len()),
        ));
    }
    match config.kind() {
        // No token sees what stands behind it, so that padding there needs no mask.
        ModelKind::Decoder if !mask.is_sorted_by(|before, after| before >= after) => {
            Err(Error::setting(
                "attention mask",
                "padding behind all tokens, as this is a decoder",
                "padding in front of a token",
            ))
        }
        _ => Ok(()),
    }
}

/// The length of all sequences.
fn checked_length(config: &TransformerConfig, sequences: &[&[u32]], past: usize) -> Result<usize> {
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

/// What a head makes of the last block's output before it compares with the vocabulary.
#[derive(Clone, Debug)]
struct Transform {
    dense: Tensor,
    bias: Tensor,
    activation: Activation,
    norm: Norm,
}

impl Transform {
    fn load(weights: &Weights) -> Result<Option<Self>> {
        let config = &weights.config;
        let Some(names) = config.family.spec().names.head_transform else {
            return Ok(None);
        };
        let width = config.hidden_size;
        Ok(Some(Self {
            dense: weights.read(&format!("{}.weight", names.dense), &[width, width])?,
            bias: weights.read(&format!("{}.bias", names.dense), &[width])?,
            activation: names.activation.unwrap_or(config.activation),
            norm: weights.norm(names.norm, width)?,
        }))
    }

    fn apply(&self, scratch: &Scratch, x: &Array2<f32>) -> Result<Array2<f32>> {
        let mut made = Array2::zeros(x.raw_dim());
        products(x.view(), vec![(&mut made, Accum::Replace, &self.dense)])?;
        with_rows(&self.bias, |bias| {
            made += &bias;
            Ok(())
        })?;
        activate(self.activation, &mut made);
        Ok(self.norm.apply(scratch, &made).clone())
    }
}

/// From the last block's output to logits.
#[derive(Clone, Debug)]
pub(super) struct Head {
    norm: Option<Norm>,
    /// From the blocks' width to the head's.
    projection: Option<Tensor>,
    transform: Option<Transform>,
    weight: Weight,
    bias: Option<Tensor>,
    scale: f32,
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
            transform: Transform::load(weights)?,
            weight: match config.tied {
                true => embedding.table.clone(),
                false => {
                    let name = format!("{head}.weight");
                    weights.weight(&name, Multiplied::rows_first(config.vocab_size, width))?
                }
            },
            bias: match weights.head_bias() {
                Some(name) => Some(weights.read(name, &[config.vocab_size])?),
                None => None,
            },
            scale: config.head_scale as f32,
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
        if let Some(transform) = &self.transform {
            last = transform.apply(scratch, &last)?;
        }
        if self.scale != 1.0 {
            last *= self.scale;
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
