//! Operands as the kernels read them.

use half::{bf16, f16};
use ndarray::{ArrayView2, Axis, s};
use rayon::prelude::*;

use super::kernel::Triangle;

/// Lanes that one thread packs faster than it wakes another.
const AT_A_TIME: usize = 1 << 15;
/// Lanes in a cache line.
const LINE: usize = 64 / size_of::<u32>();

/// How values along the inner dimension share lanes of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lanes {
    /// An f32 value each.
    Single,
    /// Two bf16 values each.
    Bf16Pairs,
}

impl Lanes {
    /// Values in a lane.
    pub(super) fn values(self) -> usize {
        match self {
            Self::Single => Single::VALUES,
            Self::Bf16Pairs => Bf16Pair::VALUES,
        }
    }
}

/// One of [`Lanes`].
trait Lane {
    const VALUES: usize;

    fn of<T: Element>(first: T, second: Option<T>) -> u32;
}

struct Single;

impl Lane for Single {
    const VALUES: usize = 1;

    #[inline(always)]
    fn of<T: Element>(value: T, _: Option<T>) -> u32 {
        value.f32_bits()
    }
}

struct Bf16Pair;

impl Lane for Bf16Pair {
    const VALUES: usize = 2;

    /// The earlier value in the lower half.
    #[inline(always)]
    fn of<T: Element>(first: T, second: Option<T>) -> u32 {
        first.bf16_bits() | second.map_or(0, Element::bf16_bits) << 16
    }
}

/// What is packed.
pub(crate) trait Element: Copy + Send + Sync {
    /// The bits of the same value in f32.
    fn f32_bits(self) -> u32;

    /// The bits of the nearest bf16 value.
    fn bf16_bits(self) -> u32;

    /// A matrix of f32 values itself.
    fn as_f32(matrix: ArrayView2<'_, Self>) -> Option<ArrayView2<'_, f32>>;
}

impl Element for bf16 {
    #[inline(always)]
    fn f32_bits(self) -> u32 {
        u32::from(self.to_bits()) << 16
    }

    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        self.to_bits().into()
    }

    fn as_f32(_: ArrayView2<'_, Self>) -> Option<ArrayView2<'_, f32>> {
        None
    }
}

impl Element for f16 {
    /// The exponent counts from another number, and fewer digits follow. Free of branches, so that many are widened at once.
    #[inline(always)]
    fn f32_bits(self) -> u32 {
        let bits = u32::from(self.to_bits());
        let digits = (bits & 0x7fff) << 13;
        // 2¹¹² between the two exponents' zeros; exact, for subnormal numbers, too.
        let size = f32::from_bits(digits) * f32::from_bits((127 + 112) << 23);
        let not_finite = if bits & 0x7c00 == 0x7c00 {
            0x7f80_0000
        } else {
            0
        };
        size.to_bits() | not_finite | (bits & 0x8000) << 16
    }

    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        f32::from_bits(self.f32_bits()).bf16_bits()
    }

    fn as_f32(_: ArrayView2<'_, Self>) -> Option<ArrayView2<'_, f32>> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn f32_bits(self) -> u32 {
        self.to_bits()
    }

    #[inline(always)]
    fn bf16_bits(self) -> u32 {
        bf16::from_f32(self).to_bits().into()
    }

    fn as_f32(matrix: ArrayView2<'_, Self>) -> Option<ArrayView2<'_, f32>> {
        Some(matrix)
    }
}

/// A packed operand: panels of so many columns side by side, in each one row after the other, or one of pairs in place of
/// each two rows. The last panel is filled up with zeros.
#[derive(Debug, Default)]
pub(super) struct Panels {
    /// The panels start at the first cache line.
    memory: Vec<u32>,
    len: usize,
}

impl Panels {
    pub(super) const fn new() -> Self {
        Self {
            memory: Vec::new(),
            len: 0,
        }
    }

    pub(super) fn panels(&self) -> &[u32] {
        let start = self.start();
        &self.memory[start..start + self.len]
    }

    fn start(&self) -> usize {
        // No offset where none can be found: it is a matter of speed alone.
        match self.memory.as_ptr().align_offset(64) {
            offset if offset < LINE => offset,
            _ => 0,
        }
    }

    /// Zeros outside a triangle of a matrix of single values that was packed with these numbers.
    pub(super) fn clear_outside(&mut self, width: usize, depth: usize, triangle: Triangle) {
        let start = self.start();
        let panels = self.memory[start..start + self.len].chunks_exact_mut(width * depth);
        for (panel, values) in panels.enumerate() {
            for (row, values) in values.chunks_exact_mut(width).enumerate() {
                // The diagonal's place in this panel.
                let diagonal = row.saturating_sub(panel * width);
                let outside = match triangle {
                    Triangle::Upper => 0..diagonal.min(width),
                    Triangle::Lower if row < panel * width => 0..width,
                    Triangle::Lower => (diagonal + 1).min(width)..width,
                };
                values[outside].fill(0);
            }
        }
    }

    /// Packs the columns of a matrix into panels `width` columns wide, with all threads where it is a large one.
    pub(super) fn pack<T: Element>(&mut self, from: ArrayView2<'_, T>, width: usize, lanes: Lanes) {
        match lanes {
            Lanes::Single => self.pack_as::<Single, T>(from, width),
            Lanes::Bf16Pairs => self.pack_as::<Bf16Pair, T>(from, width),
        }
    }

    fn pack_as<L: Lane, T: Element>(&mut self, from: ArrayView2<'_, T>, width: usize) {
        let depth = from.nrows().div_ceil(L::VALUES);
        self.len = from.ncols().div_ceil(width) * width * depth;
        if self.memory.len() < self.len + LINE {
            self.memory.resize(self.len + LINE, 0);
        }
        let start = self.start();
        let pack = |(index, panel): (usize, &mut [u32])| {
            let first = index * width;
            let from = from.slice(s![.., first..from.ncols().min(first + width)]);
            if from.ncols() < width {
                panel.fill(0);
            }
            if from.strides()[0] == 1 {
                pack_columns::<L, T>(panel, from, width);
            } else {
                pack_rows::<L, T>(panel, from, width);
            }
        };
        self.memory[start..start + self.len]
            .par_chunks_exact_mut(width * depth)
            .enumerate()
            .with_min_len(AT_A_TIME.div_ceil(width * depth))
            .for_each(pack);
    }
}

fn pack_rows<L: Lane, T: Element>(panel: &mut [u32], from: ArrayView2<'_, T>, width: usize) {
    let rows = from.axis_chunks_iter(Axis(0), L::VALUES);
    for (to, rows) in panel.chunks_exact_mut(width).zip(rows) {
        let first = rows.row(0);
        let second = (rows.nrows() > 1).then(|| rows.row(1));
        match (first.to_slice(), second.map(|row| row.to_slice())) {
            (Some(first), None) => to
                .iter_mut()
                .zip(first)
                .for_each(|(to, &first)| *to = L::of(first, None)),
            (Some(first), Some(Some(second))) => to
                .iter_mut()
                .zip(first.iter().zip(second))
                .for_each(|(to, (&first, &second))| *to = L::of(first, Some(second))),
            _ => to
                .iter_mut()
                .enumerate()
                .take(first.len())
                .for_each(|(at, to)| {
                    *to = L::of(first[at], second.map(|second| second[at]));
                }),
        }
    }
}

/// For columns whose values lie side by side. Some of all columns at a time: memory delivers several streams faster than one
/// after the other.
fn pack_columns<L: Lane, T: Element>(panel: &mut [u32], from: ArrayView2<'_, T>, width: usize) {
    match width {
        6 => pack_columns_of::<L, T, 6>(panel, from),
        12 => pack_columns_of::<L, T, 12>(panel, from),
        16 => pack_columns_of::<L, T, 16>(panel, from),
        _ => {
            for (index, column) in from.axis_iter(Axis(1)).enumerate() {
                let values = column.to_slice().unwrap_or_default().chunks(L::VALUES);
                for (to, values) in panel[index..].iter_mut().step_by(width).zip(values) {
                    *to = L::of(values[0], values.get(1).copied());
                }
            }
        }
    }
}

fn pack_columns_of<L: Lane, T: Element, const WIDTH: usize>(
    panel: &mut [u32],
    from: ArrayView2<'_, T>,
) {
    /// Lanes of each column at a time.
    const LANES: usize = 8;
    let mut columns = [&[][..]; WIDTH];
    for (to, column) in columns.iter_mut().zip(from.axis_iter(Axis(1))) {
        *to = column.to_slice().unwrap_or_default();
    }
    let (rows, _) = panel.as_chunks_mut::<WIDTH>();
    for (index, rows) in rows.chunks_mut(LANES).enumerate() {
        let mut lanes = [[0; LANES]; WIDTH];
        for (lanes, column) in lanes.iter_mut().zip(&columns) {
            let first = (index * LANES * L::VALUES).min(column.len());
            let values = column[first..].chunks(L::VALUES);
            for (lane, values) in lanes.iter_mut().zip(values) {
                *lane = L::of(values[0], values.get(1).copied());
            }
        }
        for (at, row) in rows.iter_mut().enumerate() {
            for column in 0..WIDTH {
                row[column] = lanes[column][at];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_precision_value_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let (found, expected) = (f32::from_bits(value.f32_bits()), value.to_f32());
            if value.is_nan() {
                assert!(found.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(found.to_bits(), expected.to_bits(), "{bits:#x}");
            }
        }
    }
}
