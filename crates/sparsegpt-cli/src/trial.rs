//! Trying things on a model in memory: prune it, measure it, and leave no file.

use std::sync::Arc;

use indicatif::ProgressBar;
use sparsegpt::{LayerPruner, ModelPlan, ModelReport, ProgressEvent, prune_model};
use sparsegpt_models::checkpoint::{Checkpoint, Overlay};
use sparsegpt_models::decoder::Transformer;
use sparsegpt_models::evaluate::{Perplexity, PerplexityOptions, perplexity};
use sparsegpt_models::{Sequence, TensorSource};

use crate::failure::Failure;
use crate::{interrupt, model};

/// A model and what it is tried with.
pub(crate) struct Trial<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) pruner: &'a dyn LayerPruner,
    pub(crate) calibration: &'a [Sequence],
    /// The tokens that perplexity is measured on.
    pub(crate) text: &'a [u32],
    pub(crate) options: PerplexityOptions,
    pub(crate) bar: &'a ProgressBar,
}

impl Trial<'_> {
    /// The model after treatment. `what` is told while it goes on.
    pub(crate) fn prune(
        &self,
        plan: &ModelPlan,
        what: &str,
    ) -> Result<(ModelReport, Arc<dyn TensorSource>), Failure> {
        let pruned = Overlay::new(self.checkpoint.tensors());
        let mut sink = pruned.clone();
        let mut adapter = model::adapter(self.checkpoint, &mut sink)?;
        let report = prune_model(
            &mut adapter,
            self.pruner,
            self.calibration,
            plan,
            &mut |event| {
                if let ProgressEvent::BlockStarted { block, blocks, .. } = event {
                    self.bar
                        .set_message(format!("{what}, block {} of {blocks}", block + 1));
                }
                interrupt::flow()
            },
        )
        .map_err(|interrupted| Failure::from(interrupted.error))?;
        drop(adapter);
        self.bar.inc(1);
        Ok((report, Arc::new(pruned)))
    }

    /// The model, loaded, and its perplexity.
    pub(crate) fn measure(
        &self,
        source: &Arc<dyn TensorSource>,
        what: &str,
    ) -> Result<(Transformer, Perplexity), Failure> {
        interrupt::check()?;
        let llama = model::load(self.checkpoint, source)?;
        let result = perplexity(&llama, self.text, &self.options, &mut |done, of, _| {
            self.bar
                .set_message(format!("{what}, perplexity, chunk {done} of {of}"));
            !interrupt::requested()
        });
        interrupt::check()?;
        self.bar.inc(1);
        Ok((llama, result?))
    }
}
