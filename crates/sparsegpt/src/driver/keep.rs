//! What a run leaves behind so that another can go on from it.

use std::error::Error as StdError;
use std::fmt::Debug;

use super::FinishedLayer;
use crate::error::Result;

/// Keeps finished blocks in a safe place, so that a run that ends early can be gone on with by the next.
///
/// For each block the driver first asks whether it is [there](Self::has). What [`restore`](Self::restore) hands back is taken as it is: the block is
/// neither calibrated nor solved, and only run on its weights to give the next block's inputs. The result has the bits of a
/// run that was never interrupted, if model, plan, calibration set, backend and threads are the same; that they are is
/// the keeper's business.
///
/// ```
/// use std::collections::BTreeMap;
/// use sparsegpt::FinishedLayer;
/// use sparsegpt::driver::BlockKeeper;
///
/// /// Blocks in memory, as long as the process lives.
/// #[derive(Debug, Default)]
/// struct InMemory {
///     begun: Vec<FinishedLayer>,
///     finished: BTreeMap<usize, Vec<FinishedLayer>>,
/// }
///
/// impl BlockKeeper for InMemory {
///     fn has(&self, block: usize) -> bool {
///         self.finished.contains_key(&block)
///     }
///     fn restore(
///         &mut self,
///         block: usize,
///         take: &mut dyn FnMut(FinishedLayer) -> sparsegpt::Result<()>,
///     ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///         for layer in &self.finished[&block] {
///             take(layer.clone())?;
///         }
///         Ok(())
///     }
///     fn keep(&mut self, layer: &mut FinishedLayer) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///         self.begun.push(layer.clone());
///         Ok(())
///     }
///     fn commit(&mut self, block: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///         self.finished.insert(block, std::mem::take(&mut self.begun));
///         Ok(())
///     }
/// }
/// ```
pub trait BlockKeeper: Debug {
    /// Whether an earlier run has finished and kept this block.
    fn has(&self, block: usize) -> bool;

    /// Hands the layers of a block that it [has](Self::has) to `take`, in the order in which they were kept.
    ///
    /// # Errors
    /// If what was kept cannot be read, and what `take` returns.
    fn restore(
        &mut self,
        block: usize,
        take: &mut dyn FnMut(FinishedLayer) -> Result<()>,
    ) -> Result<(), Box<dyn StdError + Send + Sync>>;

    /// A layer is finished. It may be changed here, by rounding to the type it will be stored in for one: the model goes
    /// on with what this leaves.
    ///
    /// # Errors
    /// If it cannot be kept.
    fn keep(&mut self, layer: &mut FinishedLayer) -> Result<(), Box<dyn StdError + Send + Sync>>;

    /// All layers of a block are finished and kept. Only now may the next run be given this block.
    ///
    /// # Errors
    /// If the block cannot be kept.
    fn commit(&mut self, block: usize) -> Result<(), Box<dyn StdError + Send + Sync>>;
}
