//! The fit of uniform grids.

use sparsegpt::backend::FitGrid;

use super::{size, size_u32};
use crate::backend::CudaBackend;
use crate::device::{Argument, Device};
use crate::error::CudaError;
use crate::kernels::grid::{FIT_CHOICE, FIT_ERRORS, FIT_RANGE};

const WHAT: &str = "fit_grid";

/// Candidates of the range search, as the host's fit has them.
const CANDIDATES: u32 = 80;
/// Slices of the rows where they share one grid: enough threads for any device.
const LARGEST_SLICES: usize = 1024;
/// Warps in a block of the range and the choice.
const WARPS: u32 = 8;
/// Bytes of a range.
const RANGE: usize = 2 * size_of::<f32>();

/// See [`FitGrid`].
pub(crate) fn fit_grid<D: Device>(
    device: &D,
    fit: FitGrid<'_, CudaBackend<D>>,
) -> Result<(), CudaError> {
    let (rows, width) = (fit.weights.rows, fit.columns.len());
    if rows == 0 || width == 0 {
        return Ok(());
    }
    // Rows of a unit, the rows that are summed over by one thread.
    let unit_rows = if fit.per_tensor {
        rows.div_ceil(LARGEST_SLICES)
    } else {
        1
    };
    let units = rows.div_ceil(unit_rows);
    let candidates = if fit.grid.is_mse() { CANDIDATES } else { 1 };
    let ranges = device.allocate((units + 1) * RANGE)?;
    let results = device.allocate(3 * units * candidates as usize * size_of::<f32>())?;

    let range = |values: u64, leading, rows, width, unit_rows, units, to: u64| {
        device.launch(
            &FIT_RANGE,
            [size_u32(WHAT, units)?.div_ceil(WARPS), 1, 1],
            &[
                Argument::Address(values),
                size(WHAT, leading)?,
                size(WHAT, rows)?,
                size(WHAT, width)?,
                size(WHAT, unit_rows)?,
                size(WHAT, units)?,
                Argument::Address(to),
            ],
        )
    };
    let weights = fit.weights.columns(device, &fit.columns);
    let leading = fit.weights.leading();
    let of_units = device.address(&ranges);
    range(weights, leading, rows, width, unit_rows, units, of_units)?;
    let (of_fit, range_step) = if fit.per_tensor {
        // The range of all is the range of the units' ranges, taken as one row.
        let of_all = of_units + (units * RANGE) as u64;
        range(of_units, 2 * units, 1, 2 * units, 1, 1, of_all)?;
        (of_all, 0)
    } else {
        (of_units, 1)
    };

    let max_code = fit.grid.max_code();
    let threads = size_u32(WHAT, units)?.saturating_mul(candidates);
    device.launch(
        &FIT_ERRORS,
        [threads.div_ceil(FIT_ERRORS.threads), 1, 1],
        &[
            Argument::Address(weights),
            size(WHAT, leading)?,
            size(WHAT, rows)?,
            size(WHAT, width)?,
            size(WHAT, unit_rows)?,
            size(WHAT, units)?,
            Argument::Address(of_fit),
            Argument::U32(range_step),
            Argument::U32(candidates),
            Argument::U32(u32::from(fit.grid.is_symmetric())),
            Argument::F32(max_code.div_ceil(2) as f32),
            Argument::F32(max_code as f32),
            Argument::Address(device.address(&results)),
        ],
    )?;

    // A warp chooses for one row, or one for all.
    let (warp_units, warp_rows) = if fit.per_tensor {
        (units, rows)
    } else {
        (1, 1)
    };
    let warps = size_u32(WHAT, rows.div_ceil(warp_rows))?;
    device.launch(
        &FIT_CHOICE,
        [warps.div_ceil(WARPS), 1, 1],
        &[
            Argument::Address(device.address(&results)),
            size(WHAT, units)?,
            Argument::U32(candidates),
            size(WHAT, warp_units)?,
            size(WHAT, warp_rows)?,
            size(WHAT, rows)?,
            Argument::Address(fit.scale.at(device, 0, fit.group)),
            size(WHAT, fit.scale.leading())?,
            Argument::Address(fit.zero.at(device, 0, fit.group)),
            size(WHAT, fit.zero.leading())?,
        ],
    )
}
