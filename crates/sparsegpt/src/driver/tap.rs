//! From a running block into its Hessians.

use std::time::Instant;

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
            let result = match self.holds_out {
                false => statistics.update(batch),
                true => statistics.hold_out(batch),
            };
            self.error = result.err();
        }
        self.seconds += start.elapsed().as_secs_f64();
    }
}
