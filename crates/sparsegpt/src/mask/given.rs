//! A mask of the caller's.

use ndarray::{Array2, ArrayView2, s};

use super::{BlockMask, MaskBlock, MaskPolicy, Sparsity};
use crate::error::{Error, Result};

/// A mask given by the caller: kept as it is, or extended to a target sparsity.
///
/// ```
/// use sparsegpt::mask::{GivenMask, Sparsity};
/// use sparsegpt::ndarray::arr2;
/// let keep = arr2(&[[true, false, true, true]]);
/// let as_it_is = GivenMask::keeping(keep.view());
/// let extended = as_it_is.clone().extended_to(Sparsity::new(0.5)?);
/// # let _ = extended;
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GivenMask {
    pruned: Array2<bool>,
    extended_to: Option<Sparsity>,
}

impl GivenMask {
    /// A mask (rows x cols) in which `true` means "keep".
    #[must_use]
    pub fn keeping(keep: ArrayView2<'_, bool>) -> Self {
        Self {
            pruned: keep.mapv(|keep| !keep),
            extended_to: None,
        }
    }

    /// Prunes further weights, the least salient ones a mask block at a time, until the layer has this
    /// sparsity. Where the mask already has more zeros, they stay.
    #[must_use]
    pub fn extended_to(mut self, sparsity: Sparsity) -> Self {
        self.extended_to = Some(sparsity);
        self
    }

    /// Weights the mask prunes.
    #[must_use]
    pub fn pruned(&self) -> usize {
        self.pruned.iter().filter(|&&pruned| pruned).count()
    }
}

impl MaskPolicy for GivenMask {
    fn describe(&self) -> String {
        match self.extended_to {
            None => "given mask".to_owned(),
            Some(sparsity) => format!("given mask extended to {sparsity}"),
        }
    }

    fn validate(&self, layer: &str, rows: usize, cols: usize) -> Result<()> {
        let (found_rows, found_cols) = self.pruned.dim();
        if (found_rows, found_cols) != (rows, cols) {
            return Err(Error::Shape {
                layer: layer.to_owned(),
                what: "mask",
                expected: format!("{rows} x {cols}, as the weights"),
                found_rows,
                found_cols,
            });
        }
        Ok(())
    }

    fn choose(&self, block: &MaskBlock<'_>) -> Result<BlockMask> {
        Ok(match self.extended_to {
            Some(sparsity) => {
                let (rows, cols) = (block.rows as u64, block.cols as u64);
                BlockMask::Lowest {
                    target: sparsity.count(rows * block.columns.end as u64),
                    total: sparsity.count(rows * cols),
                }
            }
            None => {
                let mut mask = Array2::from_elem((block.rows, block.columns.len()), false);
                for (to, &from) in block.original_columns.iter().enumerate() {
                    mask.slice_mut(s![.., to]).assign(&self.pruned.column(from));
                }
                BlockMask::Fixed(mask)
            }
        })
    }

    fn forced(&self) -> Option<ArrayView2<'_, bool>> {
        self.extended_to.map(|_| self.pruned.view())
    }
}
