//! The fused sweep.

use sparsegpt::backend::{GridKind, PruneRef, UpdateRows};

use super::{size, size_u32};
use crate::backend::CudaBackend;
use crate::device::{Argument, Device};
use crate::error::CudaError;
use crate::kernels::sweep::UPDATE_ROWS;
use crate::matrix::{DeviceMask, upload_values};

const WHAT: &str = "update_rows";

/// Rows of a block of threads.
const BLOCK_ROWS: u32 = 32;

/// See [`UpdateRows`].
pub(crate) fn update_rows<D: Device>(
    device: &D,
    sweep: UpdateRows<'_, CudaBackend<D>>,
) -> Result<Option<DeviceMask<D>>, CudaError> {
    let (rows, width) = (sweep.weights.rows, sweep.columns.len());
    let first = sweep.columns.start;
    let mut chosen = None;
    // The kernel's rule, the mask's address and distance of rows, and N:M.
    let (rule, mask, mask_ld, zeros, group) = match sweep.prune {
        PruneRef::Keep => (0, 0, 0, 0, 1),
        PruneRef::Fixed { mask, offset } => (1, mask.at(device, 0, offset), mask.cols, 0, 1),
        PruneRef::NofM { zeros, group } => {
            let mask = chosen.insert(DeviceMask::new(device, rows, width)?);
            (2, mask.at(device, 0, 0), width, zeros, group)
        }
        rule => return Err(unknown(&rule)),
    };
    if rows == 0 || width == 0 {
        return Ok(chosen);
    }
    let grid = sweep
        .grid
        .map(|grid| Levels::new(device, &grid))
        .transpose()?
        .unwrap_or_default();
    device.launch(
        &UPDATE_ROWS,
        [size_u32(WHAT, rows)?.div_ceil(BLOCK_ROWS), 1, 1],
        &[
            Argument::Address(sweep.weights.columns(device, &sweep.columns)),
            size(WHAT, sweep.weights.leading())?,
            Argument::Address(sweep.factor.at(device, first, first)),
            size(WHAT, sweep.factor.leading())?,
            Argument::Address(sweep.errors.at(device, 0, sweep.error_offset)),
            size(WHAT, sweep.errors.leading())?,
            Argument::Address(sweep.losses.at(device, 0, 0)),
            size(WHAT, rows)?,
            size(WHAT, width)?,
            Argument::U32(rule),
            Argument::Address(mask),
            size(WHAT, mask_ld)?,
            size(WHAT, zeros)?,
            size(WHAT, group)?,
            Argument::U32(grid.kind),
            Argument::Address(grid.scale),
            Argument::Address(grid.zero),
            Argument::U32(grid.leading),
            Argument::Address(grid.groups.as_ref().map_or(0, |it| device.address(it))),
            Argument::U32(grid.first_group),
            Argument::F32(grid.max_code),
            Argument::Address(grid.levels.as_ref().map_or(0, |it| device.address(it))),
            Argument::U32(grid.level_count),
        ],
    )?;
    Ok(chosen)
}

/// What a sweep rounds to, as the kernel takes it.
struct Levels<D: Device> {
    kind: u32,
    scale: u64,
    zero: u64,
    leading: u32,
    groups: Option<D::Buffer>,
    first_group: u32,
    max_code: f32,
    levels: Option<D::Buffer>,
    level_count: u32,
}

impl<D: Device> Default for Levels<D> {
    /// No rounding.
    fn default() -> Self {
        Self {
            kind: 0,
            scale: 0,
            zero: 0,
            leading: 0,
            groups: None,
            first_group: 0,
            max_code: 0.0,
            levels: None,
            level_count: 0,
        }
    }
}

impl<D: Device> Levels<D> {
    fn new(
        device: &D,
        grid: &sparsegpt::backend::GridRef<'_, CudaBackend<D>>,
    ) -> Result<Self, CudaError> {
        let groups = grid
            .groups
            .iter()
            .map(|&group| size_u32(WHAT, group))
            .collect::<Result<Vec<_>, _>>()?;
        let first_group = groups.first().copied().unwrap_or(0);
        let mut levels = Self {
            scale: grid.scale.at(device, 0, 0),
            zero: grid.zero.at(device, 0, 0),
            leading: size_u32(WHAT, grid.scale.leading())?,
            first_group,
            ..Self::default()
        };
        // Most sweeps have one group, and need no list.
        if groups.iter().any(|&group| group != first_group) {
            levels.groups = Some(upload_values(device, &groups)?);
        }
        match grid.kind {
            GridKind::Affine { max_code } => {
                levels.kind = 1;
                levels.max_code = max_code as f32;
            }
            GridKind::Codebook { levels: values } => {
                levels.kind = 2;
                levels.level_count = size_u32(WHAT, values.len())?;
                levels.levels = Some(upload_values(device, values)?);
            }
            kind => return Err(unknown(&kind)),
        }
        Ok(levels)
    }
}

/// A rule of a later version of the trait.
pub(super) fn unknown(rule: &dyn std::fmt::Debug) -> CudaError {
    CudaError::Failed {
        what: WHAT.to_owned(),
        reason: format!("{rule:?} is not known to this version of the backend"),
    }
}
