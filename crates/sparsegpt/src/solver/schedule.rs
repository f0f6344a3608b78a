//! Where the sweeps begin and end.
//!
//! Columns are processed in blocks; a block is brought up to date when it is reached (the paper's lazy
//! batch updates, looking back). It is cut into sweeps at every column where something is decided on
//! current weights: the mask of a mask block, the grid of a group. What is decided there must lie inside
//! the block, since the columns behind it are not current: a region that begins later in a block than its
//! first column and would end behind it begins the next block, and one that begins with the block makes it
//! as long as itself.

use std::ops::Range;

/// Widest sweep a backend must run (the trait's contract).
pub(super) const WIDEST_SWEEP: usize = 128;

/// One block: sweeps in order, covering its columns.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) columns: Range<usize>,
    pub(super) sweeps: Vec<Range<usize>>,
}

/// What decides about the cuts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cuts {
    /// Columns of the layer.
    pub(super) cols: usize,
    /// Columns in a block.
    pub(super) block: usize,
    /// Columns whose mask is chosen at their first column, on current weights.
    pub(super) mask_region: Option<usize>,
    /// Columns whose grid is fitted at their first column, on current weights.
    pub(super) grid_region: Option<usize>,
    /// Columns that no sweep may divide (N:M chosen in flight).
    pub(super) unit: usize,
}

impl Cuts {
    pub(super) fn blocks(self) -> Vec<Block> {
        let Self {
            cols,
            block,
            mask_region,
            grid_region,
            unit,
        } = self;
        let whole_units = |width: usize| (width / unit).max(1) * unit;
        let (block, widest) = (whole_units(block), whole_units(WIDEST_SWEEP));
        let regions = || [mask_region, grid_region].into_iter().flatten();
        let mut blocks = Vec::new();
        let mut start = 0;
        while start < cols {
            let begins_here = regions().filter(|region| start % region == 0).max();
            let mut shortest = start.saturating_add(begins_here.unwrap_or(1)).min(cols);
            let mut end = start.saturating_add(block).min(cols).max(shortest);
            // Shortening or lengthening for one region may cut another.
            let crossing = |end: usize| {
                regions()
                    .map(|region| {
                        let first = (end - 1) / region * region;
                        (first, (first + region).min(cols))
                    })
                    .find(|&(first, behind)| first > start && behind > end)
            };
            while let Some((first, behind)) = crossing(end) {
                if first >= shortest {
                    end = first;
                } else {
                    shortest = behind;
                    end = behind;
                }
            }
            let mut sweeps = Vec::new();
            let mut at = start;
            while at < end {
                let next = regions()
                    .map(|region| (at / region + 1) * region)
                    .chain([at + widest, end])
                    .min()
                    .unwrap_or(end);
                sweeps.push(at..next);
                at = next;
            }
            blocks.push(Block {
                columns: start..end,
                sweeps,
            });
            start = end;
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_blocks_are_single_sweeps() {
        let cuts = Cuts {
            cols: 300,
            block: 128,
            mask_region: Some(128),
            grid_region: None,
            unit: 1,
        };
        let sweeps = cuts.blocks().into_iter().flat_map(|block| block.sweeps);
        assert!(sweeps.eq([0..128, 128..256, 256..300]));
    }

    proptest! {
        #[test]
        fn blocks_cover_the_layer_and_decisions_see_current_weights(
            cols in 1_usize..700,
            block in 1_usize..300,
            mask_region in proptest::option::of(1_usize..300),
            grid_region in proptest::option::of(1_usize..300),
        ) {
            let cuts = Cuts { cols, block, mask_region, grid_region, unit: 1 };
            let blocks = cuts.blocks();
            let mut at = 0;
            for block in &blocks {
                prop_assert_eq!(block.columns.start, at);
                for sweep in &block.sweeps {
                    prop_assert_eq!(sweep.start, at);
                    prop_assert!(sweep.len() <= WIDEST_SWEEP && !sweep.is_empty());
                    at = sweep.end;
                    for region in [mask_region, grid_region].into_iter().flatten() {
                        // No sweep runs across the start of a region ...
                        prop_assert!((sweep.end - 1) / region == sweep.start / region);
                        // ... and a region that starts inside a block ends inside it.
                        if sweep.start % region == 0 {
                            prop_assert!((sweep.start + region).min(cols) <= block.columns.end);
                        }
                    }
                }
                prop_assert_eq!(block.columns.end, at);
                let even = |region: Option<usize>| region.is_none_or(|region| cuts.block.is_multiple_of(region));
                if even(mask_region) && even(grid_region) {
                    prop_assert!(block.columns.len() <= cuts.block);
                }
            }
            prop_assert_eq!(at, cols);
        }

        #[test]
        fn units_stay_whole(units in 1_usize..60, unit in 1_usize..128, block in 1_usize..300) {
            let cuts = Cuts { cols: units * unit, block, mask_region: None, grid_region: None, unit };
            for block in cuts.blocks() {
                for sweep in block.sweeps {
                    prop_assert!(sweep.start % unit == 0 && sweep.end % unit == 0);
                }
            }
        }
    }
}
