//! The choice of the weights to prune.

use sparsegpt::backend::{Select, SelectRule};

use super::{size, size_u32};
use crate::backend::CudaBackend;
use crate::device::{Argument, Device};
use crate::error::CudaError;
use crate::kernels::select::{SELECT_GROUPS, SELECT_LOWEST};
use crate::matrix::{DeviceMask, upload_values};

const WHAT: &str = "select";

/// Columns and rows that a block of `select_lowest` looks at together.
const TILE: (usize, usize) = (128, 16);
/// Blocks of 512 threads on a multiprocessor.
const RESIDENT: usize = 4;
/// Digits of a key: three of the saliency, three of the position.
const SALIENCY_DIGITS: usize = 3;
const DIGITS: usize = 6;
/// The kernel's state: two words and a half for each digit, then 2048 counts for each.
const STATE_BYTES: usize = 128 + DIGITS * 2048 * size_of::<u32>();
/// Largest group that a block of `select_groups` has threads for.
const LARGEST_GROUP: usize = 256;

/// See [`Select`].
pub(crate) fn select<D: Device>(
    device: &D,
    select: &Select<'_, CudaBackend<D>>,
) -> Result<DeviceMask<D>, CudaError> {
    let (rows, width) = (select.weights.rows, select.columns.len());
    if let SelectRule::Lowest { count: 0 } = select.rule {
        return DeviceMask::zeros(device, rows, width);
    }
    let mask = DeviceMask::new(device, rows, width)?;
    if rows == 0 || width == 0 {
        return Ok(mask);
    }
    // Positions are 32 bits of a key.
    size_u32(WHAT, rows.saturating_mul(width))?;
    match select.rule {
        SelectRule::Lowest { count } => lowest(device, select, &mask, count)?,
        SelectRule::LowestPerRow { counts } => {
            let counts = counts
                .iter()
                .map(|&count| size_u32(WHAT, count))
                .collect::<Result<Vec<_>, _>>()?;
            let counts = upload_values(device, &counts)?;
            segments(device, select, &mask, width, device.address(&counts), 0)?;
        }
        SelectRule::NofM { zeros, group } if group <= LARGEST_GROUP => {
            groups(device, select, &mask, zeros, group)?;
        }
        SelectRule::NofM { zeros, group } => segments(device, select, &mask, group, 0, zeros)?,
        rule => {
            return Err(CudaError::Failed {
                what: WHAT.to_owned(),
                reason: format!("{rule:?} is not known to this version of the backend"),
            });
        }
    }
    Ok(mask)
}

/// Weights, scales, forced and protected weights: what all kernels begin with.
fn candidates<D: Device>(
    device: &D,
    select: &Select<'_, CudaBackend<D>>,
) -> Result<[Argument; 5], CudaError> {
    let marks = |mask: Option<&DeviceMask<D>>| {
        Argument::Address(mask.map_or(0, |mask| mask.at(device, 0, 0)))
    };
    Ok([
        Argument::Address(select.weights.columns(device, &select.columns)),
        size(WHAT, select.weights.leading())?,
        Argument::Address(select.scales.columns(device, &select.columns)),
        marks(select.forced),
        marks(select.protected),
    ])
}

/// The first digit of a position that is not zero for all of them.
fn position_digit(positions: usize) -> usize {
    match positions {
        0..=0x400 => 5,
        0x401..=0x20_0000 => 4,
        _ => SALIENCY_DIGITS,
    }
}

/// The `count` least salient of all: a launch a digit, one behind the other.
fn lowest<D: Device>(
    device: &D,
    select: &Select<'_, CudaBackend<D>>,
    mask: &DeviceMask<D>,
    count: usize,
) -> Result<(), CudaError> {
    let (rows, width) = (mask.rows, mask.cols);
    let (tile_width, tile_rows) = TILE;
    let tiles = width.div_ceil(tile_width);
    let resident = RESIDENT * device.limits().multiprocessors as usize;
    let blocks = (resident / tiles).clamp(1, rows.div_ceil(tile_rows));
    let grid = [size_u32(WHAT, blocks)?, size_u32(WHAT, tiles)?, 1];
    let state = device.allocate(STATE_BYTES)?;
    device.clear(device.address(&state), STATE_BYTES)?;
    let mut previous = 0;
    for digit in (0..SALIENCY_DIGITS).chain(position_digit(rows * width)..=DIGITS) {
        let mut arguments = candidates(device, select)?.to_vec();
        arguments.extend([
            size(WHAT, rows)?,
            size(WHAT, width)?,
            Argument::Address(mask.at(device, 0, 0)),
            Argument::U32(0),
            Argument::Address(0),
            size(WHAT, count.min(rows * width))?,
            Argument::Address(device.address(&state)),
            size(WHAT, digit)?,
            size(WHAT, previous)?,
            Argument::U32(0),
        ]);
        device.launch(&SELECT_LOWEST, grid, &arguments)?;
        previous = digit;
    }
    Ok(())
}

/// In each `segment` columns of each row, the row's entry of `counts` (an address) or `count` where that is 0.
fn segments<D: Device>(
    device: &D,
    select: &Select<'_, CudaBackend<D>>,
    mask: &DeviceMask<D>,
    segment: usize,
    counts: u64,
    count: usize,
) -> Result<(), CudaError> {
    let (rows, width) = (mask.rows, mask.cols);
    let resident = RESIDENT * device.limits().multiprocessors as usize;
    let blocks = (rows * (width / segment)).min(2 * resident);
    let mut arguments = candidates(device, select)?.to_vec();
    arguments.extend([
        size(WHAT, rows)?,
        size(WHAT, width)?,
        Argument::Address(mask.at(device, 0, 0)),
        size(WHAT, segment)?,
        Argument::Address(counts),
        size(WHAT, count)?,
        Argument::Address(0),
        Argument::U32(0),
        Argument::U32(0),
        size(WHAT, position_digit(width))?,
    ]);
    device.launch(&SELECT_LOWEST, [size_u32(WHAT, blocks)?, 1, 1], &arguments)
}

/// The `zeros` least salient in each group of at most [`LARGEST_GROUP`] columns.
fn groups<D: Device>(
    device: &D,
    select: &Select<'_, CudaBackend<D>>,
    mask: &DeviceMask<D>,
    zeros: usize,
    group: usize,
) -> Result<(), CudaError> {
    let in_row = mask.cols / group;
    let groups = mask.rows * in_row;
    let resident = 2 * RESIDENT * device.limits().multiprocessors as usize;
    let blocks = groups.div_ceil(LARGEST_GROUP / group).min(4 * resident);
    let mut arguments = candidates(device, select)?.to_vec();
    arguments.extend([
        size(WHAT, groups)?,
        size(WHAT, in_row)?,
        Argument::Address(mask.at(device, 0, 0)),
        size(WHAT, zeros)?,
        size(WHAT, group)?,
    ]);
    device.launch(&SELECT_GROUPS, [size_u32(WHAT, blocks)?, 1, 1], &arguments)
}
