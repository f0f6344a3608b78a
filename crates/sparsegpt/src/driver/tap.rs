//! From a running block into its Hessians.

use std::time::Instant;

use ndarray::Array2;

use super::Tap;
use crate::error::Error;
use crate::hessian::{Batch, Statistics};

/// Feeds observed inputs to their Hessians.
#[derive(Debug, Default)]
pub(super) struct HessianTap {
    /// Each with the input it belongs to.
    pub(super) statistics: Vec<(usize, Box<dyn Statistics>)>,
    /// Whether what is observed is held out: it judges the layers and does not calibrate them.
    pub(super) holds_out: bool,
    /// What the dense model has in place of the observations to come, each with the input it belongs to.
    pub(super) dense: Vec<(usize, Array2<f32>)>,
    /// Whether the inputs are wanted with all tokens of the block, not with those alone that are routed to them.
    pub(super) all: bool,
    pub(super) error: Option<Error>,
    pub(super) seconds: f64,
}

impl Tap for HessianTap {
    fn wants(&self, input: usize) -> bool {
        self.statistics.iter().any(|(of, _)| *of == input)
    }

    fn wants_all(&self, input: usize) -> bool {
        self.all && self.wants(input)
    }

    fn observe(&mut self, input: usize, batch: Batch<'_>) {
        let start = Instant::now();
        if self.error.is_none()
            && let Some((_, statistics)) = self.statistics.iter_mut().find(|(of, _)| *of == input)
        {
            // Both models come to an input in the same order.
            let next = self.dense.iter().position(|(of, _)| *of == input);
            let dense = next.map(|at| self.dense.remove(at));
            let result = match (self.holds_out, dense) {
                (true, _) => statistics.hold_out(batch),
                (false, None) => statistics.update(batch),
                (false, Some((_, dense))) => statistics.update_from_dense(batch, dense.view()),
            };
            self.error = result.err();
        }
        self.seconds += start.elapsed().as_secs_f64();
    }
}

/// Keeps some of the inputs of a running block.
#[derive(Debug)]
pub(super) struct KeepingTap {
    wanted: Vec<usize>,
    pub(super) kept: Vec<(usize, Array2<f32>)>,
}

impl KeepingTap {
    pub(super) fn new(wanted: Vec<usize>) -> Self {
        Self {
            wanted,
            kept: Vec::new(),
        }
    }
}

impl Tap for KeepingTap {
    fn wants(&self, input: usize) -> bool {
        self.wanted.contains(&input)
    }

    fn observe(&mut self, input: usize, batch: Batch<'_>) {
        if self.wants(input) {
            let activations = batch.activations();
            let mut kept = Array2::zeros((activations.tokens(), activations.cols()));
            for (token, mut row) in kept.rows_mut().into_iter().enumerate() {
                if let Some(row) = row.as_slice_mut() {
                    activations.widen_token(token, row);
                }
            }
            self.kept.push((input, kept));
        }
    }
}
