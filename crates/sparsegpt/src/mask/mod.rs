//! Mask policies: which weights become zero.
//!
//! A [`MaskPolicy`] is asked once for each mask block and answers with plain data ([`BlockMask`]) that any
//! backend can run: a count, an N:M rule, a ready mask. [`Pattern`] holds the usual policies,
//! [`GivenMask`] takes a mask of the caller's; a policy of your own implements the trait.

mod given;
mod pattern;

use std::fmt::Debug;
use std::ops::Range;

use ndarray::{Array2, ArrayView1, ArrayView2};

pub use given::GivenMask;
pub use pattern::{Pattern, Sparsity};

use crate::error::{Error, Result};

/// The columns a policy is asked about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MaskBlock<'a> {
    /// The layer's name, for errors.
    pub layer: &'a str,
    /// Rows of the layer.
    pub rows: usize,
    /// Columns of the layer.
    pub cols: usize,
    /// The columns of this block, in the order of processing (act-order permutes them).
    pub columns: Range<usize>,
    /// The original column of each column of the block.
    pub original_columns: &'a [usize],
    /// Weights pruned in the columns before this block.
    pub pruned_before: u64,
}

/// A policy's answer for one block.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum BlockMask {
    /// Prune nothing.
    Keep,
    /// Prune the least salient weights of all rows together, until `target` weights are pruned in all
    /// columns up to the end of this block.
    Lowest {
        /// Weights pruned up to the end of this block.
        target: u64,
        /// Weights pruned in the whole layer in the end. Where protected weights make a later block
        /// unable to take its share, earlier ones take more.
        total: u64,
    },
    /// The same in each row.
    LowestPerRow {
        /// Weights pruned in each row up to the end of this block.
        target: usize,
        /// Weights pruned in each row in the end.
        total: usize,
    },
    /// Prune the `zeros` least salient of each `group` consecutive columns in each row.
    NofM {
        /// Weights to prune in each group.
        zeros: usize,
        /// Columns in a group.
        group: usize,
    },
    /// Prune the weights marked `true` (rows x width).
    Fixed(Array2<bool>),
    /// Ask [`MaskPolicy::choose_by_scores`]: the solver fetches the current weights to the host for it,
    /// and the report says so.
    ByScores,
}

/// Current weights and saliencies of one block, on the host.
#[derive(Debug)]
#[non_exhaustive]
pub struct BlockScores<'a> {
    /// Current (compensated) weights, rows x width.
    pub weights: ArrayView2<'a, f32>,
    /// Scale of each column: the saliency of a weight is (w / scale)²; for SparseGPT the diagonal of R.
    pub scales: ArrayView1<'a, f32>,
}

/// A rule for choosing the weights to prune.
///
/// ```
/// use sparsegpt::mask::{BlockMask, BlockScores, MaskBlock, MaskPolicy};
/// use sparsegpt::ndarray::Array2;
///
/// /// Prunes every weight whose saliency is below a fixed bound.
/// #[derive(Debug)]
/// struct Below(f32);
///
/// impl MaskPolicy for Below {
///     fn describe(&self) -> String {
///         format!("saliency below {}", self.0)
///     }
///     fn choose(&self, _block: &MaskBlock<'_>) -> sparsegpt::Result<BlockMask> {
///         Ok(BlockMask::ByScores)
///     }
///     fn choose_by_scores(
///         &self,
///         _block: &MaskBlock<'_>,
///         scores: &BlockScores<'_>,
///     ) -> sparsegpt::Result<Array2<bool>> {
///         Ok(Array2::from_shape_fn(scores.weights.dim(), |(row, col)| {
///             (scores.weights[[row, col]] / scores.scales[col]).powi(2) < self.0
///         }))
///     }
/// }
/// ```
pub trait MaskPolicy: Debug + Send + Sync {
    /// One line for reports, as in `2:4`.
    fn describe(&self) -> String;

    /// Checks the policy's settings against a layer (rows x cols).
    ///
    /// # Errors
    /// If they are out of range or do not fit.
    fn validate(&self, layer: &str, rows: usize, cols: usize) -> Result<()> {
        let _ = (layer, rows, cols);
        Ok(())
    }

    /// What to prune in a block.
    ///
    /// # Errors
    /// Whatever keeps the policy from deciding.
    fn choose(&self, block: &MaskBlock<'_>) -> Result<BlockMask>;

    /// The mask of a block (rows x width, `true` = prune) for [`BlockMask::ByScores`].
    ///
    /// # Errors
    /// Whatever keeps the policy from deciding; by default, that it never asked for scores.
    fn choose_by_scores(
        &self,
        block: &MaskBlock<'_>,
        scores: &BlockScores<'_>,
    ) -> Result<Array2<bool>> {
        let _ = scores;
        Err(Error::incompatible(
            block.layer,
            format!(
                "policy {:?} asked for scores but does not use them",
                self.describe()
            ),
            "implement MaskPolicy::choose_by_scores",
        ))
    }

    /// Weights (rows x cols, `true` = prune) that are pruned whatever their saliency, and count.
    fn forced(&self) -> Option<ArrayView2<'_, bool>> {
        None
    }

    /// Whether this policy prunes anything at all.
    fn prunes(&self) -> bool {
        true
    }

    /// Whether a row's zeros depend on that row's weights alone, and no answer on the number of rows. A layer larger than
    /// a device's memory is then treated some rows at a time.
    fn rows_are_independent(&self) -> bool {
        false
    }

    /// Columns in a group that a block must not cut; 1 for policies without groups.
    fn group(&self) -> usize {
        1
    }
}
