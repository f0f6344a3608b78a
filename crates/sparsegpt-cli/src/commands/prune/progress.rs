//! The progress bar of a run, in units of work.

use std::ops::ControlFlow;

use indicatif::ProgressBar;
use sparsegpt::ProgressEvent;
use sparsegpt_models::decoder::TransformerConfig;

use crate::console::Console;
use crate::cost::{self, BlockCost, CalibrationSize, Variants};
use crate::interrupt;

/// Operations in one unit of the bar.
const UNIT: f64 = 1e6;

#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    costs: Vec<BlockCost>,
    sequences: usize,
    block: usize,
    done: f64,
}

impl Progress {
    pub(super) fn new(
        variants: &Variants,
        config: &TransformerConfig,
        size: CalibrationSize,
        console: &Console,
    ) -> Self {
        let mut costs = cost::blocks(variants, config, size);
        for cost in &mut costs {
            // Layers treated without a Hessian cost next to nothing, but not nothing.
            cost.solve = cost.solve.max(UNIT);
        }
        let total: f64 = costs.iter().map(|cost| cost.total(size.sequences)).sum();
        Self {
            bar: console.progress((total / UNIT) as u64),
            costs,
            sequences: size.sequences,
            block: 0,
            done: 0.0,
        }
    }

    /// Moves the bar; stops the run after Ctrl-C.
    pub(super) fn show(&mut self, event: &ProgressEvent<'_>) -> ControlFlow<()> {
        if let ProgressEvent::BlockStarted { block, .. } = event {
            self.block = *block;
        }
        let cost = self.costs.get(self.block).copied().unwrap_or_default();
        let (work, step) = match event {
            ProgressEvent::BlockRestored { .. } => {
                let rest = cost.propagate * self.sequences as f64;
                (cost.total(self.sequences) - rest, "taking over")
            }
            ProgressEvent::Calibrated { .. } => (cost.calibrate, "calibrating"),
            ProgressEvent::LayerDone { .. } => (cost.solve, "solving"),
            ProgressEvent::Propagated { .. } => (cost.propagate, "propagating"),
            _ => (0.0, ""),
        };
        self.done += work;
        self.bar.set_position((self.done / UNIT) as u64);
        if !step.is_empty() {
            self.bar.set_message(format!(
                "block {} of {}, {step}",
                self.block + 1,
                self.costs.len()
            ));
        }
        interrupt::flow()
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
