//! Normalization of each token, or of each head of a token.

use ndarray::Array2;

use super::elementwise::{layer_norm, rms_norm};
use super::family::NormKind;
use super::scratch::{Scrap, Scratch};

/// One normalization, with its weights.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    pub(super) kind: NormKind,
    /// What the root mean square is multiplied by, offset included.
    pub(super) weight: Vec<f32>,
    /// Zeros where there is none.
    pub(super) bias: Vec<f32>,
    /// Values that are normalized together: as many as there are weights, or fewer, where each of some heads has weights of its own.
    pub(super) width: usize,
    pub(super) eps: f32,
}

impl Norm {
    /// Each run of [`width`](Self::width) values, normalized.
    pub(super) fn apply<'s>(&self, scratch: &'s Scratch, x: &Array2<f32>) -> Scrap<'s> {
        let mut normalized = scratch.matrix(x.nrows(), x.ncols());
        match self.kind {
            NormKind::Rms | NormKind::RmsOffset => {
                rms_norm(x, &self.weight, self.eps, &mut normalized)
            }
            NormKind::Layer => {
                let run = (self.width, self.eps);
                layer_norm(x, &self.weight, &self.bias, run, &mut normalized);
            }
        }
        normalized
    }
}
