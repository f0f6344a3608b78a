//! What goes from block to block: hidden states, and which tokens count.

use candle_core::Tensor;

use super::block::Position;
use super::rope::AllTables;
use super::scratch::Scratch;
use crate::{Error, Result, Sequence};

/// The hidden states of one or more sequences of equal length between two blocks.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Sequences x time x width.
    pub(super) states: Tensor,
    /// `true` for every token that counts, sequence by sequence; `None`: all count.
    pub(super) counts: Option<Vec<bool>>,
}

impl Hidden {
    /// Sequences x tokens x width.
    #[must_use]
    pub fn states(&self) -> &Tensor {
        &self.states
    }

    /// Several of the same shape after each other.
    pub(super) fn together(hidden: &[Self]) -> Result<Self> {
        let states: Vec<&Tensor> = hidden.iter().map(|hidden| &hidden.states).collect();
        let padded = hidden.iter().any(|hidden| hidden.counts.is_some());
        let counts = padded.then(|| {
            let counts = hidden.iter().map(|hidden| match &hidden.counts {
                Some(counts) => counts.clone(),
                None => vec![true; hidden.states.dims()[..2].iter().product()],
            });
            counts.flatten().collect()
        });
        Ok(Self {
            states: Tensor::cat(&states, 0)?,
            counts,
        })
    }

    /// As many as went [`together`](Self::together).
    pub(super) fn apart(self, into: usize) -> Result<Vec<Self>> {
        let states = self.states.chunk(into, 0)?;
        if states.len() != into {
            return Err(Error::setting(
                "hidden states",
                format!("{into} of equal shape"),
                states.len(),
            ));
        }
        let tokens = states
            .first()
            .map_or(1, |states| states.dims()[..2].iter().product());
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

    /// Whether others can go together with it.
    pub(super) fn like(&self, other: &Self) -> bool {
        self.states.dims() == other.states.dims()
    }

    /// Tokens of a sequence.
    pub(super) fn time(&self) -> Result<usize> {
        Ok(self.states.dims3()?.1)
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
            counts: self.counts.as_deref(),
            scratch,
        }
    }

    /// The same with what a block has made of the states.
    pub(super) fn after(self, states: Tensor) -> Self {
        Self { states, ..self }
    }
}

/// Which tokens of some sequences count; `None` where all do.
pub(super) fn counted(sequences: &[&Sequence]) -> Option<Vec<bool>> {
    let padded = sequences
        .iter()
        .any(|sequence| sequence.attention_mask.is_some());
    padded.then(|| {
        let counts = sequences
            .iter()
            .map(|sequence| match &sequence.attention_mask {
                Some(mask) => mask.clone(),
                None => vec![true; sequence.tokens.len()],
            });
        counts.flatten().collect()
    })
}
