//! How a layer's columns are cut and in which order its products run.

use std::ops::Range;

use super::levels::fitted_on_the_way;
use super::schedule::{Block, Cuts, WIDEST_SWEEP};
use super::settings::LayerSettings;

/// Which columns are decided and swept together.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) blocks: Vec<Block>,
    /// Whether the sweep chooses the N:M groups itself.
    pub(super) in_flight: bool,
    /// Columns whose mask is chosen together before they are swept.
    pub(super) mask_region: Option<usize>,
}

impl Plan {
    /// For a layer of `cols` columns.
    pub(super) fn new(settings: &LayerSettings, cols: usize) -> Self {
        let grid_region = settings
            .quantizer
            .as_ref()
            .and_then(|quantizer| fitted_on_the_way(&**quantizer, cols));
        let group = settings.mask.group().max(1);
        let by_group = group > 1 && settings.mask.chosen_by_group();
        let in_flight = by_group
            && group <= settings.block_size.min(WIDEST_SWEEP)
            && settings.protected_columns.is_empty()
            && settings.protected_rows.is_empty()
            && grid_region.is_none_or(|size| size % group == 0);
        let mask_region = match () {
            () if in_flight || !settings.mask.prunes() => None,
            () if by_group => Some(group),
            () => Some((settings.mask_block_size / group).max(1) * group),
        };
        let cuts = Cuts {
            cols,
            block: settings.block_size,
            mask_region,
            grid_region,
            unit: if in_flight { group } else { 1 },
        };
        Self {
            blocks: cuts.blocks(),
            in_flight,
            mask_region,
        }
    }

    pub(super) fn widest_block(&self) -> usize {
        let widths = self.blocks.iter().map(|block| block.columns.len());
        widths.max().unwrap_or(0)
    }

    /// The product that follows a block: from which columns to which. Halving the columns recursively and
    /// updating the second half when the first is final makes few, large products.
    pub(super) fn update_after(&self, index: usize) -> Option<(Range<usize>, Range<usize>)> {
        let done = index + 1;
        let span = 1 << done.trailing_zeros();
        let last = (done + span).min(self.blocks.len()) - 1;
        (done < self.blocks.len()).then(|| {
            let end = self.blocks[index].columns.end;
            (
                self.blocks[done - span].columns.start..end,
                end..self.blocks[last].columns.end,
            )
        })
    }
}
