//! Mask policies: which weights become zero.
//!
//! A [`MaskPolicy`] is asked once for each mask block and answers with plain data ([`BlockMask`]) that any
//! backend can run: a count, an N:M rule, a ready mask. [`Pattern`] holds the usual policies,
//! [`GivenMask`] takes a mask of the caller's; a policy of your own implements the trait.

mod given;
mod pattern;
pub(crate) mod runs;
mod vnm;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

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

impl<'a> MaskBlock<'a> {
    /// All columns of a layer of so many rows, before anything is pruned.
    pub(crate) fn whole(layer: &'a str, rows: usize, columns: &'a [usize]) -> Self {
        Self {
            layer,
            rows,
            cols: columns.len(),
            columns: 0..columns.len(),
            original_columns: columns,
            pruned_before: 0,
        }
    }
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
    /// Prune whole runs of `run` consecutive columns of a row, those of the least sum of saliencies over all rows
    /// together, until `target` weights are pruned in all columns up to the end of this block. Runs begin at multiples
    /// of `run`, a multiple of which the block's width must be ([`MaskPolicy::group`]). Chosen on the host, and the report says so.
    LowestRuns {
        /// Weights in a run.
        run: usize,
        /// Weights pruned up to the end of this block.
        target: u64,
        /// Weights pruned in the whole layer in the end; see [`BlockMask::Lowest`].
        total: u64,
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
    /// Weights that must not be pruned (rows x width), where there are any; the solver keeps them whatever the answer.
    pub protected: Option<ArrayView2<'a, bool>>,
}

impl BlockScores<'_> {
    /// (w / scale)² of one weight of the block.
    pub(crate) fn saliency(&self, row: usize, col: usize) -> f64 {
        let score = f64::from(self.weights[[row, col]]) / f64::from(self.scales[col]);
        score * score
    }

    pub(crate) fn is_protected(&self, row: usize, col: usize) -> bool {
        self.protected
            .is_some_and(|protected| protected[[row, col]])
    }
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

    /// Whether the policy answers for one group as for many ([`BlockMask::NofM`]), so that each group is chosen by
    /// itself, on current weights. Others are asked for a mask block of whole groups at a time.
    fn chosen_by_group(&self) -> bool {
        self.group() > 1
    }

    /// Of a mask that this policy has chosen by scores (rows x cols, `true` = pruned), the zeros that stay where they are when zeros and
    /// kept weights of a row change places within a [`group`](Self::group); `None` where any such swap could break the pattern.
    fn fixed_zeros(&self, pruned: ArrayView2<'_, bool>) -> Option<Array2<bool>> {
        let _ = pruned;
        None
    }

    /// Where the number of zeros in a layer (rows x cols) is a free choice: the number of which it is a multiple.
    /// `None` where the pattern itself fixes it.
    fn zeros_step(&self, rows: usize, cols: usize) -> Option<u64> {
        let _ = (rows, cols);
        None
    }

    /// This policy with exactly `zeros` zeros in a layer (rows x cols), a multiple of
    /// [`zeros_step`](Self::zeros_step). `None` where it is no free choice.
    fn with_zeros(&self, zeros: u64, rows: usize, cols: usize) -> Option<Arc<dyn MaskPolicy>> {
        let _ = (zeros, rows, cols);
        None
    }
}
