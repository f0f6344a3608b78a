//! The fused sweep with rows as SIMD lanes.
//!
//! A tile of [`LANES`] rows is held transposed (one vector a column), so that every step of the sweep is
//! the same instruction for all rows. The loops are plain Rust that the compiler turns into vector code
//! for the instruction set that [`pulp::Arch`] finds at run time. Products and differences are rounded
//! one by one (no fused multiply-add), so all instruction sets give the same bits.

use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::{Cpu, CpuMask};
use crate::backend::{GridKind, GridRef, PruneRef, UpdateRows, host};

/// Rows in a tile: two AVX registers or one AVX-512 register a column.
const LANES: usize = 16;

type Lanes = [f32; LANES];

/// As [`host::update_rows`]; see there for the meaning.
pub(super) fn update_rows(arch: pulp::Arch, args: UpdateRows<'_, Cpu>) -> Option<CpuMask> {
    let UpdateRows {
        weights,
        factor,
        errors,
        error_offset,
        losses,
        columns,
        prune,
        grid,
    } = args;
    let (rows, width) = (weights.0.nrows(), columns.len());
    let block = factor
        .0
        .slice(s![columns.clone(), columns.clone()])
        .as_standard_layout()
        .into_owned();
    let factor = block.as_slice().unwrap_or_default();
    let in_flight = matches!(prune, PruneRef::NofM { .. });
    let mut chosen = Array2::from_elem(if in_flight { (rows, width) } else { (0, width) }, false);
    let mut weights = weights.0.slice_mut(s![.., columns]);
    let mut errors = errors
        .0
        .slice_mut(s![.., error_offset..error_offset + width]);
    let mut losses = losses.0.column_mut(0);

    let mut chosen_tiles: Vec<_> = chosen
        .axis_chunks_iter_mut(Axis(0), LANES)
        .map(Some)
        .collect();
    chosen_tiles.resize_with(rows.div_ceil(LANES), || None);
    let tiles: Vec<Tile<'_>> = weights
        .axis_chunks_iter_mut(Axis(0), LANES)
        .zip(errors.axis_chunks_iter_mut(Axis(0), LANES))
        .zip(losses.axis_chunks_iter_mut(Axis(0), LANES))
        .zip(chosen_tiles)
        .enumerate()
        .map(|(tile, (((weights, errors), losses), chosen))| Tile {
            first_row: tile * LANES,
            weights,
            errors,
            losses,
            chosen,
        })
        .collect();
    tiles.into_par_iter().for_each_init(
        || Buffers::new(width),
        |buffers, tile| {
            arch.dispatch(SweepTile {
                tile,
                buffers,
                factor,
                prune: &prune,
                grid: grid.as_ref(),
            });
        },
    );
    in_flight.then_some(CpuMask(chosen))
}

/// The rows of one tile.
struct Tile<'a> {
    first_row: usize,
    weights: ArrayViewMut2<'a, f32>,
    errors: ArrayViewMut2<'a, f32>,
    losses: ArrayViewMut1<'a, f32>,
    chosen: Option<ArrayViewMut2<'a, bool>>,
}

/// One vector a column.
struct Buffers {
    weights: Vec<Lanes>,
    errors: Vec<Lanes>,
    /// 1 where a weight is pruned, else 0.
    pruned: Vec<[bool; LANES]>,
}

impl Buffers {
    fn new(width: usize) -> Self {
        Self {
            weights: vec![[0.0; LANES]; width],
            errors: vec![[0.0; LANES]; width],
            pruned: vec![[false; LANES]; width],
        }
    }
}

struct SweepTile<'a, 'b> {
    tile: Tile<'a>,
    buffers: &'b mut Buffers,
    factor: &'b [f32],
    prune: &'b PruneRef<'b, Cpu>,
    grid: Option<&'b GridRef<'b, Cpu>>,
}

impl pulp::NullaryFnOnce for SweepTile<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            mut tile,
            buffers,
            factor,
            prune,
            grid,
        } = self;
        let (rows, width) = tile.weights.dim();
        let Buffers {
            weights,
            errors,
            pruned,
        } = buffers;
        load(tile.weights.view(), weights);
        if let PruneRef::Fixed { mask, offset } = prune {
            let first = tile.first_row;
            let mask = mask
                .0
                .slice(s![first..first + rows, *offset..*offset + width]);
            for (row, mask) in mask.rows().into_iter().enumerate() {
                for (lanes, &prune) in pruned.iter_mut().zip(mask) {
                    lanes[row] = prune;
                }
            }
        } else {
            pruned.fill([false; LANES]);
        }
        let mut losses = [0.0; LANES];
        let mut levels = grid.map(|grid| LaneGrid::new(grid, tile.first_row, rows));
        for j in 0..width {
            if let PruneRef::NofM { zeros, group } = *prune
                && j % group == 0
            {
                choose(
                    &weights[j..j + group],
                    &mut pruned[j..j + group],
                    factor,
                    (j, width),
                    zeros,
                );
            }
            let r = &factor[j * width..(j + 1) * width];
            let Some((current, later)) = weights[j..].split_first_mut() else {
                break;
            };
            let mut quantized = *current;
            if let Some(levels) = &mut levels {
                levels.round(j, &mut quantized);
            }
            for lane in 0..LANES {
                quantized[lane] = if pruned[j][lane] {
                    0.0
                } else {
                    quantized[lane]
                };
            }
            let error = &mut errors[j];
            for lane in 0..LANES {
                error[lane] = (current[lane] - quantized[lane]) / r[j];
                losses[lane] += error[lane] * error[lane];
            }
            *current = quantized;
            for (w, &r) in later.iter_mut().zip(&r[j + 1..]) {
                for lane in 0..LANES {
                    w[lane] -= error[lane] * r;
                }
            }
        }
        store(weights, tile.weights);
        store(errors, tile.errors);
        for (sum, loss) in tile.losses.iter_mut().zip(losses) {
            *sum += loss;
        }
        if let Some(chosen) = &mut tile.chosen {
            for (row, mut chosen) in chosen.rows_mut().into_iter().enumerate() {
                for (to, lanes) in chosen.iter_mut().zip(pruned.iter()) {
                    *to = lanes[row];
                }
            }
        }
    }
}

/// Rows to lanes; lanes without a row are zero.
#[inline(always)]
fn load(from: ArrayView2<'_, f32>, to: &mut [Lanes]) {
    if from.nrows() < LANES {
        to.fill([0.0; LANES]);
    }
    for (row, values) in from.rows().into_iter().enumerate() {
        for (lanes, &value) in to.iter_mut().zip(values) {
            lanes[row] = value;
        }
    }
}

/// Lanes to rows.
#[inline(always)]
fn store(from: &[Lanes], mut to: ArrayViewMut2<'_, f32>) {
    for (row, mut values) in to.rows_mut().into_iter().enumerate() {
        for (value, lanes) in values.iter_mut().zip(from) {
            *value = lanes[row];
        }
    }
}

/// Marks the `zeros` least salient columns of a group in each lane: those with fewer than `zeros` columns
/// before them in the order of (saliency, column).
#[inline(always)]
fn choose(
    weights: &[Lanes],
    pruned: &mut [[bool; LANES]],
    factor: &[f32],
    (first, width): (usize, usize),
    zeros: usize,
) {
    let saliency = |column: usize| -> Lanes {
        let at = first + column;
        let scale = factor[at * width + at];
        let mut lanes = weights[column];
        for lane in &mut lanes {
            *lane = (*lane / scale).abs();
        }
        lanes
    };
    for (column, pruned) in pruned.iter_mut().enumerate() {
        let own = saliency(column);
        let mut before = [0_u32; LANES];
        for other in 0..weights.len() {
            let theirs = saliency(other);
            for lane in 0..LANES {
                let first =
                    theirs[lane] < own[lane] || (theirs[lane] == own[lane] && other < column);
                before[lane] += u32::from(first);
            }
        }
        for lane in 0..LANES {
            pruned[lane] = (before[lane] as usize) < zeros;
        }
    }
}

/// Scales and zero points of a tile's rows for the group at hand.
struct LaneGrid<'a> {
    grid: &'a GridRef<'a, Cpu>,
    first_row: usize,
    rows: usize,
    group: Option<usize>,
    scale: Lanes,
    zero: Lanes,
}

impl<'a> LaneGrid<'a> {
    fn new(grid: &'a GridRef<'a, Cpu>, first_row: usize, rows: usize) -> Self {
        Self {
            grid,
            first_row,
            rows,
            group: None,
            scale: [1.0; LANES],
            zero: [0.0; LANES],
        }
    }

    #[inline(always)]
    fn round(&mut self, column: usize, values: &mut Lanes) {
        let group = self.grid.groups[column];
        if self.group != Some(group) {
            self.group = Some(group);
            for row in 0..self.rows {
                self.scale[row] = self.grid.scale.0[[self.first_row + row, group]];
                self.zero[row] = self.grid.zero.0[[self.first_row + row, group]];
            }
        }
        match self.grid.kind {
            GridKind::Affine { max_code } => {
                let max_code = max_code as f32;
                for lane in 0..LANES {
                    let (scale, zero) = (self.scale[lane], self.zero[lane]);
                    let code = (values[lane] / scale).round_ties_even() + zero;
                    values[lane] = (code.clamp(0.0, max_code) - zero) * scale;
                }
            }
            kind @ GridKind::Codebook { .. } => {
                for lane in 0..LANES {
                    values[lane] = host::round_to_grid(kind, values[lane], self.scale[lane], 0.0);
                }
            }
        }
    }
}
