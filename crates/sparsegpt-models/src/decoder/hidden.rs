//! What goes from block to block: hidden states, and which tokens count.

use candle_core::Tensor;

use super::TransformerConfig;
use super::block::Position;
use super::rope::AllTables;
use super::scratch::Scratch;
use crate::{Error, Result};

/// The hidden states of one or more sequences of equal length, between two blocks of one stack.
#[derive(Clone, Debug)]
pub(super) struct Side {
    /// Sequences x time x width.
    pub(super) states: Tensor,
    /// `true` for every token that counts, sequence by sequence; `None`: all count.
    pub(super) counts: Option<Vec<bool>>,
}

impl Side {
    /// Several of the same shape after each other.
    fn together(sides: &[&Self]) -> Result<Self> {
        let states: Vec<&Tensor> = sides.iter().map(|side| &side.states).collect();
        let padded = sides.iter().any(|side| side.counts.is_some());
        let counts = padded.then(|| {
            let counts = sides.iter().map(|side| match &side.counts {
                Some(counts) => counts.clone(),
                None => vec![true; side.states.dims()[..2].iter().product()],
            });
            counts.flatten().collect()
        });
        Ok(Self {
            states: Tensor::cat(&states, 0)?,
            counts,
        })
    }

    /// As many as went [`together`](Self::together).
    fn apart(self, into: usize) -> Result<Vec<Self>> {
        let states = self.states.chunk(into, 0)?;
        if states.len() != into {
            return Err(Error::setting(
                "hidden states",
                format!("{into} of equal shape"),
                states.len(),
            ));
        }
        let tokens = self.states.dims()[..2].iter().product::<usize>() / into;
        let counts = |index: usize| {
            let counts = self.counts.as_ref()?;
            Some(counts[index * tokens..(index + 1) * tokens].to_vec())
        };
        let parts = states.into_iter().enumerate();
        Ok(parts
            .map(|(index, states)| Self {
                states,
                counts: counts(index),
            })
            .collect())
    }
}

/// The hidden states of one or more sequences of equal length between two blocks.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// What the next block changes.
    pub(super) now: Side,
    /// Of an encoder with a decoder: as long as the encoder runs, the decoder's first input; then the encoder's output.
    pub(super) other: Option<Side>,
}

impl Hidden {
    /// What the next block changes, sequences x tokens x width.
    #[must_use]
    pub fn states(&self) -> &Tensor {
        &self.now.states
    }

    /// Several of the same shape after each other.
    pub(super) fn together(hidden: &[Self]) -> Result<Self> {
        let now: Vec<&Side> = hidden.iter().map(|hidden| &hidden.now).collect();
        let other: Vec<&Side> = hidden.iter().filter_map(|h| h.other.as_ref()).collect();
        Ok(Self {
            now: Side::together(&now)?,
            other: match other.is_empty() {
                true => None,
                false => Some(Side::together(&other)?),
            },
        })
    }

    /// As many as went [`together`](Self::together).
    pub(super) fn apart(self, into: usize) -> Result<Vec<Self>> {
        let other = match self.other {
            Some(other) => other.apart(into)?.into_iter().map(Some).collect(),
            None => vec![None; into],
        };
        let now = self.now.apart(into)?.into_iter();
        Ok(now
            .zip(other)
            .map(|(now, other)| Self { now, other })
            .collect())
    }

    /// Whether others can go together with it.
    pub(super) fn like(&self, other: &Self) -> bool {
        let dims = |hidden: &Self| {
            let other = hidden.other.as_ref();
            (
                hidden.now.states.dims().to_vec(),
                other.map(|side| side.states.dims().to_vec()),
            )
        };
        dims(self) == dims(other)
    }

    /// Tokens of a sequence.
    pub(super) fn time(&self) -> Result<usize> {
        Ok(self.now.states.dims3()?.1)
    }

    /// The position of whole sequences.
    pub(super) fn position<'a>(
        &'a self,
        rotary: Option<&'a AllTables>,
        scratch: &'a Scratch,
    ) -> Position<'a> {
        Position {
            past: 0,
            rotary,
            counts: self.now.counts.as_deref(),
            memory: self.other.as_ref(),
            scratch,
        }
    }

    /// The same with what a block has made of the states. Behind an encoder's last block it is the decoder's turn.
    pub(super) fn after(self, config: &TransformerConfig, block: usize, states: Tensor) -> Self {
        let now = Side { states, ..self.now };
        match (self.other, config.last_encoder_block() == Some(block)) {
            (Some(other), true) => Self {
                now: other,
                other: Some(now),
            },
            (other, _) => Self { now, other },
        }
    }
}

/// Which tokens of some sequences count, from what is known of each; `None` where all do.
pub(super) fn counted(masks: &[(Option<&[bool]>, usize)]) -> Option<Vec<bool>> {
    let padded = masks.iter().any(|(mask, _)| mask.is_some());
    padded.then(|| {
        let counts = masks.iter().map(|(mask, tokens)| match mask {
            Some(mask) => mask.to_vec(),
            None => vec![true; *tokens],
        });
        counts.flatten().collect()
    })
}
