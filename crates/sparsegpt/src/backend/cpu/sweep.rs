//! The fused sweep with rows as SIMD lanes.
//!
//! A tile of rows, two vectors high, is held transposed (one pair of vectors a column), so that every step of
//! the sweep is the same instruction for all its rows. Columns go [`STEP`] at a time: their errors stay in
//! registers while all later columns of the block are brought up to date, so each of those is loaded and
//! stored once for [`STEP`] multiply-adds a row. The code is generic over [`pulp::Simd`] and compiled for
//! every instruction set that pulp knows on the target.

use ndarray::{Array2, ArrayView2, s};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{Cpu, CpuMask};
use crate::backend::{GridKind, GridRef, PruneRef, UpdateRows, host};
use crate::quant::ROUNDER;

/// Vectors of rows in a tile.
const VECTORS: usize = 2;
/// Rows of the highest tile: two AVX-512 vectors. One bit each in a column's mask.
const MOST_ROWS: usize = 32;
/// Columns between two updates of the columns behind.
const STEP: usize = 8;
/// Columns behind that are brought up to date together.
const BEHIND: usize = 4;
/// Rows swept by one thread at least.
const ROWS_A_TASK: usize = 64;

/// Bit of each row of a tile.
static ROW_BITS: [u32; MOST_ROWS] = {
    let mut bits = [0; MOST_ROWS];
    let mut row = 0;
    while row < MOST_ROWS {
        bits[row] = 1 << row;
        row += 1;
    }
    bits
};

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
    let rows = weights.dim().0;
    let (width, stride, error_stride) = (columns.len(), weights.stride(), errors.stride());
    let block = Block::new(factor.view().slice(s![columns.clone(), columns.clone()]));
    let in_flight = matches!(prune, PruneRef::NofM { .. });
    let mut chosen = Array2::from_elem(if in_flight { (rows, width) } else { (0, width) }, false);
    let chosen_values = chosen.as_slice_mut()?;
    let task = ROWS_A_TASK;
    let mut chosen_rows: Vec<_> = chosen_values.chunks_mut(task * width).map(Some).collect();
    chosen_rows.resize_with(rows.div_ceil(task), || None);
    weights
        .padded_mut()
        .par_chunks_mut(task * stride)
        .zip(errors.padded_mut().par_chunks_mut(task * error_stride))
        .zip(losses.padded_mut().par_chunks_mut(task))
        .zip(chosen_rows)
        .enumerate()
        .for_each_init(
            || Buffers::new(width),
            |buffers, (index, (((weights, errors), losses), chosen))| {
                arch.dispatch(Sweep {
                    first_row: index * task,
                    weights: Strided {
                        values: weights,
                        stride,
                        first: columns.start,
                    },
                    errors: Strided {
                        values: errors,
                        stride: error_stride,
                        first: error_offset,
                    },
                    losses,
                    chosen,
                    buffers,
                    block: &block,
                    prune: &prune,
                    grid: grid.as_ref(),
                });
            },
        );
    in_flight.then_some(CpuMask(chosen))
}

/// The diagonal block of the factor.
struct Block {
    width: usize,
    /// Row-major, width x width.
    values: Vec<f32>,
    /// 1/R_jj.
    reciprocals: Vec<f32>,
}

impl Block {
    fn new(factor: ArrayView2<'_, f32>) -> Self {
        let mut values = Vec::with_capacity(factor.len());
        for row in factor.rows() {
            values.extend_from_slice(row.to_slice().unwrap_or_default());
        }
        Self {
            width: factor.nrows(),
            reciprocals: factor.diag().iter().map(|entry| entry.recip()).collect(),
            values,
        }
    }

    fn row(&self, column: usize) -> &[f32] {
        &self.values[column * self.width..(column + 1) * self.width]
    }
}

/// Some columns of some rows of a row-major matrix.
struct Strided<'a> {
    values: &'a mut [f32],
    stride: usize,
    first: usize,
}

impl Strided<'_> {
    fn row(&mut self, row: usize, width: usize) -> &mut [f32] {
        let start = row * self.stride + self.first;
        &mut self.values[start..start + width]
    }
}

/// A pair of the widest vectors, so that no load crosses a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Column([f32; MOST_ROWS]);

/// A thread's working memory, one entry a column. A tile of fewer than [`MOST_ROWS`] rows uses the front of
/// each column.
struct Buffers {
    weights: Vec<Column>,
    errors: Vec<Column>,
    /// A bit for each row whose weight is pruned.
    pruned: Vec<u32>,
    /// For the choice within a group.
    saliencies: Vec<Column>,
    before: Vec<[u32; MOST_ROWS]>,
}

impl Buffers {
    fn new(width: usize) -> Self {
        let columns = || vec![Column([0.0; MOST_ROWS]); width];
        Self {
            weights: columns(),
            errors: columns(),
            pruned: vec![0; width],
            saliencies: columns(),
            before: vec![[0; MOST_ROWS]; width],
        }
    }
}

/// The sweep over some rows.
struct Sweep<'a> {
    first_row: usize,
    weights: Strided<'a>,
    errors: Strided<'a>,
    losses: &'a mut [f32],
    /// Rows x width, where the sweep chooses.
    chosen: Option<&'a mut [bool]>,
    buffers: &'a mut Buffers,
    block: &'a Block,
    prune: &'a PruneRef<'a, Cpu>,
    grid: Option<&'a GridRef<'a, Cpu>>,
}

impl WithSimd for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let height = VECTORS * S::F32_LANES;
        for first in (0..self.losses.len()).step_by(height) {
            let rows = height.min(self.losses.len() - first);
            self.load(first, rows, height);
            sweep_tile(
                simd,
                &mut self.losses[first..first + rows],
                self.buffers,
                self.block,
                self.prune,
                self.grid
                    .map(|grid| Levels::new(grid, self.first_row + first, rows)),
            );
            self.store(first, rows);
        }
    }
}

impl Sweep<'_> {
    /// Rows to lanes; lanes without a row are zero.
    #[inline(always)]
    fn load(&mut self, first: usize, rows: usize, height: usize) {
        let width = self.block.width;
        let Buffers {
            weights, pruned, ..
        } = &mut *self.buffers;
        for row in 0..rows {
            for (column, &value) in weights
                .iter_mut()
                .zip(&*self.weights.row(first + row, width))
            {
                column.0[row] = value;
            }
        }
        for column in weights.iter_mut() {
            column.0[rows..height].fill(0.0);
        }
        pruned.fill(0);
        if let PruneRef::Fixed { mask, offset } = self.prune {
            let mask = mask.0.slice(s![.., *offset..*offset + width]);
            for row in 0..rows {
                let mask = mask.row(self.first_row + first + row);
                if let Some(mask) = mask.to_slice() {
                    for (pruned, &prune) in pruned.iter_mut().zip(mask) {
                        *pruned |= u32::from(prune) << row;
                    }
                }
            }
        }
    }

    /// Lanes to rows.
    #[inline(always)]
    fn store(&mut self, first: usize, rows: usize) {
        let width = self.block.width;
        let Buffers {
            weights,
            errors,
            pruned,
            ..
        } = &*self.buffers;
        for row in 0..rows {
            for (value, column) in self.weights.row(first + row, width).iter_mut().zip(weights) {
                *value = column.0[row];
            }
            for (value, column) in self.errors.row(first + row, width).iter_mut().zip(errors) {
                *value = column.0[row];
            }
        }
        if let Some(chosen) = &mut self.chosen {
            let chosen = &mut chosen[first * width..(first + rows) * width];
            for (row, chosen) in chosen.chunks_exact_mut(width).enumerate() {
                for (chosen, &pruned) in chosen.iter_mut().zip(pruned) {
                    *chosen = pruned >> row & 1 != 0;
                }
            }
        }
    }
}

/// The vectors of a column.
#[inline(always)]
fn vectors<S: Simd>(column: &Column) -> [S::f32s; VECTORS] {
    let (vectors, _) = S::as_simd_f32s(&column.0);
    [vectors[0], vectors[1]]
}

#[inline(always)]
fn set<S: Simd>(column: &mut Column, values: [S::f32s; VECTORS]) {
    let (vectors, _) = S::as_mut_simd_f32s(&mut column.0);
    vectors[..VECTORS].copy_from_slice(&values);
}

#[inline(always)]
fn sweep_tile<S: Simd>(
    simd: S,
    losses: &mut [f32],
    buffers: &mut Buffers,
    block: &Block,
    prune: &PruneRef<'_, Cpu>,
    mut levels: Option<Levels<'_>>,
) {
    let (row_bits, _) = S::as_simd_u32s(&ROW_BITS);
    let zero = simd.splat_f32s(0.0);
    let mut loss = [zero; VECTORS];
    let rule = match *prune {
        PruneRef::NofM { zeros, group } => Some((zeros, group)),
        _ => None,
    };
    let mut start = 0;
    while start < block.width {
        let mut end = (start + STEP).min(block.width);
        if let Some((zeros, group)) = rule {
            if STEP.is_multiple_of(group) {
                // Whole groups lie within the step: each is chosen when it is reached.
            } else {
                end = end.min(start - start % group + group);
            }
            if start.is_multiple_of(group) && !STEP.is_multiple_of(group) {
                choose(simd, buffers, block, start..start + group, zeros);
            }
        }
        for column in start..end {
            if let Some((zeros, group)) = rule
                && STEP.is_multiple_of(group)
                && column.is_multiple_of(group)
            {
                choose(simd, buffers, block, column..column + group, zeros);
            }
            let current = vectors::<S>(&buffers.weights[column]);
            let mut result = current;
            if let Some(levels) = &mut levels {
                levels.round(simd, column, &mut result);
            }
            let pruned = simd.splat_u32s(buffers.pruned[column]);
            let reciprocal = simd.splat_f32s(block.reciprocals[column]);
            let mut error = [zero; VECTORS];
            for v in 0..VECTORS {
                let own = simd.and_u32s(pruned, row_bits[v]);
                let prune = simd.equal_u32s(own, row_bits[v]);
                result[v] = simd.select_f32s(prune, zero, result[v]);
                error[v] = simd.mul_f32s(simd.sub_f32s(current[v], result[v]), reciprocal);
                loss[v] = simd.mul_add_e_f32s(error[v], error[v], loss[v]);
            }
            set::<S>(&mut buffers.weights[column], result);
            set::<S>(&mut buffers.errors[column], error);
            let factor = &block.row(column)[column + 1..end];
            for (weights, &r) in buffers.weights[column + 1..end].iter_mut().zip(factor) {
                let r = simd.splat_f32s(r);
                let mut updated = vectors::<S>(weights);
                for v in 0..VECTORS {
                    updated[v] = simd.negate_mul_add_e_f32s(error[v], r, updated[v]);
                }
                set::<S>(weights, updated);
            }
        }
        let (done, behind) = buffers.weights.split_at_mut(end);
        let errors = &buffers.errors[start..done.len()];
        match <&[Column; STEP]>::try_from(errors) {
            Ok(errors) => update_behind::<S, STEP>(simd, behind, errors, block, start),
            Err(_) => {
                for (index, error) in errors.iter().enumerate() {
                    update_behind::<S, 1>(simd, behind, &[*error], block, start + index);
                }
            }
        }
        start = end;
    }
    let mut sums = Column([0.0; MOST_ROWS]);
    set::<S>(&mut sums, loss);
    for (sum, loss) in losses.iter_mut().zip(sums.0) {
        *sum += loss;
    }
}

/// Brings the last columns of the block up to date with the errors of `N` columns from `first` on.
#[inline(always)]
fn update_behind<S: Simd, const N: usize>(
    simd: S,
    behind: &mut [Column],
    errors: &[Column; N],
    block: &Block,
    first: usize,
) {
    let end = block.width - behind.len();
    let errors: [[S::f32s; VECTORS]; N] = std::array::from_fn(|index| vectors::<S>(&errors[index]));
    let rows: [&[f32]; N] = std::array::from_fn(|index| &block.row(first + index)[end..]);
    let (groups, rest) = pulp::as_arrays_mut::<BEHIND, _>(behind);
    let mut at = 0;
    for group in groups {
        let mut updated: [[S::f32s; VECTORS]; BEHIND] =
            std::array::from_fn(|column| vectors::<S>(&group[column]));
        for index in 0..N {
            let row: [f32; BEHIND] = std::array::from_fn(|column| rows[index][at + column]);
            for column in 0..BEHIND {
                let r = simd.splat_f32s(row[column]);
                for v in 0..VECTORS {
                    updated[column][v] =
                        simd.negate_mul_add_e_f32s(errors[index][v], r, updated[column][v]);
                }
            }
        }
        for (column, updated) in group.iter_mut().zip(updated) {
            set::<S>(column, updated);
        }
        at += BEHIND;
    }
    for column in rest {
        let mut updated = vectors::<S>(column);
        for index in 0..N {
            let r = simd.splat_f32s(rows[index][at]);
            for v in 0..VECTORS {
                updated[v] = simd.negate_mul_add_e_f32s(errors[index][v], r, updated[v]);
            }
        }
        set::<S>(column, updated);
        at += 1;
    }
}

/// Marks the `zeros` least salient columns of a group in each lane: those with fewer than `zeros` columns
/// before them in the order of (saliency, column).
#[inline(always)]
fn choose<S: Simd>(
    simd: S,
    buffers: &mut Buffers,
    block: &Block,
    group: std::ops::Range<usize>,
    zeros: usize,
) {
    let (row_bits, _) = S::as_simd_u32s(&ROW_BITS);
    let width = group.len();
    let saliencies = &mut buffers.saliencies[..width];
    let before = &mut buffers.before[..width];
    for (saliency, column) in saliencies.iter_mut().zip(group.clone()) {
        let scale = simd.splat_f32s(block.reciprocals[column]);
        let weights = vectors::<S>(&buffers.weights[column]);
        set::<S>(
            saliency,
            weights.map(|weights| simd.abs_f32s(simd.mul_f32s(weights, scale))),
        );
    }
    before.fill([0; MOST_ROWS]);
    let one = simd.splat_u32s(1);
    let none = simd.splat_u32s(0);
    for first in 0..width {
        let (earlier, later) = before.split_at_mut(first + 1);
        let own = vectors::<S>(&saliencies[first]);
        let (own_before, _) = S::as_mut_simd_u32s(&mut earlier[first]);
        let mut count = [own_before[0], own_before[1]];
        for (second, later) in (first + 1..width).zip(later) {
            let theirs = vectors::<S>(&saliencies[second]);
            let (their_before, _) = S::as_mut_simd_u32s(later);
            for v in 0..VECTORS {
                let in_order = simd.less_than_or_equal_f32s(own[v], theirs[v]);
                let after = simd.select_u32s(in_order, one, none);
                their_before[v] = simd.add_u32s(their_before[v], after);
                count[v] = simd.add_u32s(count[v], simd.sub_u32s(one, after));
            }
        }
        own_before[..VECTORS].copy_from_slice(&count);
    }
    let zeros = simd.splat_u32s(zeros as u32);
    for (pruned, before) in buffers.pruned[group].iter_mut().zip(before) {
        let (before, _) = S::as_simd_u32s(before);
        let mut bits = [0; MOST_ROWS];
        let (lanes, _) = S::as_mut_simd_u32s(&mut bits);
        for v in 0..VECTORS {
            let prune = simd.less_than_u32s(before[v], zeros);
            lanes[v] = simd.select_u32s(prune, row_bits[v], none);
        }
        *pruned = bits.iter().fold(0, |all, bit| all | bit);
    }
}

/// Scales and zero points of a tile's rows for the group at hand.
struct Levels<'a> {
    grid: &'a GridRef<'a, Cpu>,
    first_row: usize,
    rows: usize,
    group: Option<usize>,
    scale: Column,
    /// Lowest and highest level over the scale.
    low: Column,
    high: Column,
}

impl<'a> Levels<'a> {
    fn new(grid: &'a GridRef<'a, Cpu>, first_row: usize, rows: usize) -> Self {
        Self {
            grid,
            first_row,
            rows,
            group: None,
            scale: Column([1.0; MOST_ROWS]),
            low: Column([0.0; MOST_ROWS]),
            high: Column([0.0; MOST_ROWS]),
        }
    }

    #[inline(always)]
    fn round<S: Simd>(&mut self, simd: S, column: usize, values: &mut [S::f32s; VECTORS]) {
        let group = self.grid.groups[column];
        if self.group != Some(group) {
            self.enter(group);
        }
        match self.grid.kind {
            GridKind::Affine { .. } => {
                let scale = vectors::<S>(&self.scale);
                let (low, high) = (vectors::<S>(&self.low), vectors::<S>(&self.high));
                let rounder = simd.splat_f32s(ROUNDER);
                for v in 0..VECTORS {
                    // The bounds are whole numbers, so clamping first changes nothing.
                    let steps = simd.div_f32s(values[v], scale[v]);
                    let steps = simd.min_f32s(simd.max_f32s(steps, low[v]), high[v]);
                    let steps = simd.sub_f32s(simd.add_f32s(steps, rounder), rounder);
                    values[v] = simd.mul_f32s(steps, scale[v]);
                }
            }
            kind @ GridKind::Codebook { .. } => {
                let mut lanes = Column([0.0; MOST_ROWS]);
                set::<S>(&mut lanes, *values);
                for (value, &scale) in lanes.0.iter_mut().zip(&self.scale.0) {
                    *value = host::round_to_grid(kind, *value, scale, 0.0);
                }
                *values = vectors::<S>(&lanes);
            }
        }
    }

    fn enter(&mut self, group: usize) {
        self.group = Some(group);
        for row in 0..self.rows {
            let zero = self.grid.zero.view()[[self.first_row + row, group]];
            self.scale.0[row] = self.grid.scale.view()[[self.first_row + row, group]];
            if let GridKind::Affine { max_code } = self.grid.kind {
                self.low.0[row] = -zero;
                self.high.0[row] = max_code as f32 - zero;
            }
        }
    }
}
