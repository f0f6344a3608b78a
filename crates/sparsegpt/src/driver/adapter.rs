//! What the driver needs to know of a model.

use std::error::Error as StdError;

use ndarray::Array2;

use crate::hessian::Batch;

/// One prunable linear layer of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLayer {
    /// The layer's name in the checkpoint, without `.weight`, as in `model.layers.3.mlp.down_proj`.
    pub name: String,
    /// Output features: rows of the weight matrix.
    pub rows: usize,
    /// Input features: columns of the weight matrix, rows and columns of the Hessian.
    pub cols: usize,
    /// Which of the block's inputs this layer reads. Layers with the same number (query, key and value;
    /// gate and up) share one Hessian and one factor.
    pub input: usize,
}

/// The inputs of a block's layers on their way into the Hessians.
///
/// An adapter calls [`observe`](Self::observe) once for each input of a block and each sequence, or batch of
/// sequences, that it runs. What an observation costs, and whether it is wanted at all, is the driver's business.
pub trait Tap {
    /// Whether anyone wants this input; an adapter may skip work that only serves an unwanted one.
    fn wants(&self, input: usize) -> bool;

    /// Whether an input that [may starve](ModelAdapter::may_starve) should be observed with every token of the block, as if
    /// the model routed them all to it, and not with its own alone: what [`Starved::Share`](super::Starved::Share) is
    /// calibrated on. An adapter of a model without experts need not ask.
    fn wants_all(&self, input: usize) -> bool {
        let _ = input;
        false
    }

    /// Hands over the activations (tokens x cols) that the layers reading `input` are about to see.
    ///
    /// An error inside (a NaN, say) is kept and reported by the driver as soon as the adapter's
    /// [`run_block`](ModelAdapter::run_block) returns.
    fn observe(&mut self, input: usize, batch: Batch<'_>);
}

/// A tap that wants nothing: for running a block only to get its output.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _input: usize) -> bool {
        false
    }
    fn observe(&mut self, _input: usize, _batch: Batch<'_>) {}
}

/// A model as the driver sees it: blocks in a row, each with linear layers that can be replaced.
///
/// The driver goes through the blocks in order. For each block it calls
/// [`begin_block`](Self::begin_block), runs the block on every sequence while the taps collect the
/// layers' inputs, reads and replaces weights, runs the block again with the new weights to get the next
/// block's inputs, and calls [`end_block`](Self::end_block). An adapter that streams a checkpoint holds
/// one block's weights between those two calls and nothing else of the model.
///
/// `docs/architecture.md` shows the order of calls; `examples/custom_adapter.rs` is a whole adapter.
pub trait ModelAdapter {
    /// One calibration sequence: token ids, with whatever padding or attention mask the model needs.
    type Sequence;
    /// The hidden state of one sequence between two blocks, in the adapter's own tensor type.
    type Hidden;
    /// The adapter's error type.
    type Error: StdError + Send + Sync + 'static;

    /// Number of blocks.
    fn blocks(&self) -> usize;

    /// The prunable layers of a block. Must not need the block's weights, so that a run can be planned
    /// without them.
    ///
    /// # Errors
    /// If the model's description does not yield them.
    fn layers(&self, block: usize) -> Result<Vec<BlockLayer>, Self::Error>;

    /// Whether an input may get few tokens of a calibration set or none, as an expert's does to which few are routed.
    /// Its layers are then treated as [`ModelPlan::with_starved`](super::ModelPlan::with_starved) says.
    fn may_starve(&self, block: usize, input: usize) -> bool {
        let _ = (block, input);
        false
    }

    /// The place of an input in the order in which a block comes to it, for runs that calibrate stage by stage
    /// ([`ModelPlan::with_true_sequential`](super::ModelPlan::with_true_sequential)). Inputs that do not depend on each other's
    /// layers, as those of several experts, may be at the same one. By default an input's number is its place.
    fn stage(&self, block: usize, input: usize) -> usize {
        let _ = block;
        input
    }

    /// The input of block 0 for one sequence: embeddings, positions, masks.
    ///
    /// # Errors
    /// If the sequence does not fit the model.
    fn embed(&mut self, sequence: &Self::Sequence) -> Result<Self::Hidden, Self::Error>;

    /// Called before a block is first used; a streaming adapter loads its weights here.
    ///
    /// # Errors
    /// If the weights cannot be read.
    fn begin_block(&mut self, block: usize) -> Result<(), Self::Error> {
        let _ = block;
        Ok(())
    }

    /// Called when the driver is done with a block; a streaming adapter writes its weights out here and
    /// drops them.
    ///
    /// # Errors
    /// If the weights cannot be written.
    fn end_block(&mut self, block: usize) -> Result<(), Self::Error> {
        let _ = block;
        Ok(())
    }

    /// Runs one block on one sequence's hidden state and returns the next hidden state. The inputs of the
    /// block's layers go to `tap`, each input once.
    ///
    /// # Errors
    /// If the forward pass fails.
    fn run_block(
        &mut self,
        block: usize,
        hidden: &Self::Hidden,
        tap: &mut dyn Tap,
    ) -> Result<Self::Hidden, Self::Error>;

    /// How many of the hidden states, from the first one on, [`run_batch`](Self::run_batch) should get at a time.
    fn batch(&self, hidden: &[Self::Hidden]) -> usize {
        let _ = hidden;
        1
    }

    /// Runs one block on several sequences' hidden states, as [`run_block`](Self::run_block) on each. An adapter
    /// that runs them together hands over the inputs of all of them at once, with
    /// [`Batch::sequences`](crate::Batch::sequences) telling how many they are.
    ///
    /// # Errors
    /// If the forward pass fails.
    fn run_batch(
        &mut self,
        block: usize,
        hidden: &[Self::Hidden],
        tap: &mut dyn Tap,
    ) -> Result<Vec<Self::Hidden>, Self::Error> {
        hidden
            .iter()
            .map(|hidden| self.run_block(block, hidden, tap))
            .collect()
    }

    /// [`run_batch`](Self::run_batch) where only what goes to `tap` is needed. An adapter may leave out what the
    /// last layer makes of its input.
    ///
    /// # Errors
    /// If the forward pass fails.
    fn observe_batch(
        &mut self,
        block: usize,
        hidden: &[Self::Hidden],
        tap: &mut dyn Tap,
    ) -> Result<(), Self::Error> {
        self.run_batch(block, hidden, tap).map(drop)
    }

    /// The dense weight of layer `layer` (index into [`layers`](Self::layers)), rows x cols, f32.
    ///
    /// # Errors
    /// If the weight cannot be read.
    fn weight(&self, block: usize, layer: usize) -> Result<Array2<f32>, Self::Error>;

    /// Replaces the weight of layer `layer` for this run and for whatever the adapter writes in the end.
    ///
    /// # Errors
    /// If the weight cannot be stored.
    fn replace_weight(
        &mut self,
        block: usize,
        layer: usize,
        weight: Array2<f32>,
    ) -> Result<(), Self::Error>;
}
