//! One sequence as a model takes it: tokens, which of them count, and what a decoder behind an encoder reads.

use crate::{Error, Result};

/// One sequence of token ids, and which of them are padding.
///
/// ```
/// use sparsegpt_models::Sequence;
///
/// // 0 fills the sequence up.
/// let sequence = Sequence::from(vec![5, 7, 9, 0, 0]).with_attention_mask(vec![true, true, true, false, false])?;
/// assert_eq!(sequence.counted(), 3);
/// # Ok::<(), sparsegpt_models::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// `true` for every token that counts, `false` for padding, one entry a token; `None`: all count.
    pub attention_mask: Option<Vec<bool>>,
    /// Token ids that the decoder of an encoder-decoder model reads; `tokens` are the encoder's. Padding behind them needs
    /// no mask. Empty for all other models.
    pub decoder_tokens: Vec<u32>,
}

impl Sequence {
    /// The same with what a decoder behind an encoder reads.
    #[must_use]
    pub fn with_decoder_tokens(mut self, tokens: Vec<u32>) -> Self {
        self.decoder_tokens = tokens;
        self
    }

    /// The same with its padding told.
    ///
    /// # Errors
    /// If there is not one entry for each token, or no token counts.
    pub fn with_attention_mask(mut self, mask: Vec<bool>) -> Result<Self> {
        if mask.len() != self.tokens.len() {
            return Err(Error::setting(
                "attention mask",
                format!("{} entries, one for each token", self.tokens.len()),
                mask.len(),
            ));
        }
        if !mask.contains(&true) {
            return Err(Error::setting(
                "attention mask",
                "at least one token that counts",
                "padding alone",
            ));
        }
        self.attention_mask = Some(mask);
        Ok(self)
    }

    /// The same with every token of this id as padding, unless its padding is told already.
    ///
    /// # Errors
    /// If there is no other token.
    pub fn with_padding(self, id: u32) -> Result<Self> {
        if self.attention_mask.is_some() || !self.tokens.contains(&id) {
            return Ok(self);
        }
        let mask = self.tokens.iter().map(|&token| token != id).collect();
        self.with_attention_mask(mask)
    }

    /// Tokens that are no padding.
    #[must_use]
    pub fn counted(&self) -> usize {
        match &self.attention_mask {
            Some(mask) => mask.iter().filter(|&&counts| counts).count(),
            None => self.tokens.len(),
        }
    }
}

impl From<Vec<u32>> for Sequence {
    /// A sequence without padding.
    fn from(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            ..Self::default()
        }
    }
}

impl From<&[u32]> for Sequence {
    /// A sequence without padding.
    fn from(tokens: &[u32]) -> Self {
        tokens.to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn masks_have_an_entry_a_token_and_one_that_counts() {
        let sequence = Sequence::from(vec![3, 0, 4]);
        assert_eq!(sequence.counted(), 3);
        assert!(sequence.clone().with_attention_mask(vec![true]).is_err());
        assert!(
            sequence
                .clone()
                .with_attention_mask(vec![false; 3])
                .is_err()
        );
        let padded = sequence.with_padding(0).unwrap();
        assert_eq!(padded.attention_mask, Some(vec![true, false, true]));
        assert_eq!(padded.clone().with_padding(4).unwrap(), padded);
        assert_eq!(
            Sequence::from(vec![1])
                .with_padding(0)
                .unwrap()
                .attention_mask,
            None
        );
        assert!(Sequence::from(vec![0, 0]).with_padding(0).is_err());
    }
}
