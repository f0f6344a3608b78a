//! Operands as the kernels read them.

use half::bf16;
use ndarray::{ArrayView2, Axis};

/// Values in a cache line.
const LINE: usize = 64 / size_of::<u32>();

/// What a bf16 value can be made of.
pub(crate) trait Element: Copy + Send + Sync {
    /// The nearest bf16 value's bits.
    fn bits(self) -> u32;
}

impl Element for bf16 {
    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Element for f32 {
    #[inline(always)]
    fn bits(self) -> u32 {
        bf16::from_f32(self).to_bits().into()
    }
}

/// The earlier value in the lower half.
#[inline(always)]
fn pair<T: Element>(first: T, second: Option<T>) -> u32 {
    first.bits() | second.map_or(0, Element::bits) << 16
}

/// A packed operand: panels of so many columns side by side, in each one row after the other, and in place of each two
/// rows one of pairs. The last panel is filled up with zeros.
#[derive(Debug)]
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

    /// Packs the columns of a matrix into panels `width` columns wide.
    pub(super) fn pack<T: Element>(&mut self, from: ArrayView2<'_, T>, width: usize) {
        let pairs = from.nrows().div_ceil(2);
        self.len = from.ncols().div_ceil(width) * width * pairs;
        if self.memory.len() < self.len + LINE {
            self.memory.resize(self.len + LINE, 0);
        }
        let start = self.start();
        let panels = self.memory[start..start + self.len].chunks_exact_mut(width * pairs);
        for (panel, from) in panels.zip(from.axis_chunks_iter(Axis(1), width)) {
            if from.ncols() < width {
                panel.fill(0);
            }
            if from.strides()[0] == 1 {
                pack_columns(panel, from, width);
            } else {
                pack_rows(panel, from, width);
            }
        }
    }
}

fn pack_rows<T: Element>(panel: &mut [u32], from: ArrayView2<'_, T>, width: usize) {
    let rows = from.axis_chunks_iter(Axis(0), 2);
    for (to, rows) in panel.chunks_exact_mut(width).zip(rows) {
        let first = rows.row(0);
        if rows.nrows() == 1 {
            to.iter_mut()
                .zip(first)
                .for_each(|(to, &first)| *to = pair(first, None));
            continue;
        }
        let second = rows.row(1);
        match (first.to_slice(), second.to_slice()) {
            (Some(first), Some(second)) => pack_row(to, first, second),
            _ => pack_row(to, first, second),
        }
    }
}

#[inline(always)]
fn pack_row<'a, T: Element + 'a>(
    to: &mut [u32],
    first: impl IntoIterator<Item = &'a T>,
    second: impl IntoIterator<Item = &'a T>,
) {
    for ((to, &first), &second) in to.iter_mut().zip(first).zip(second) {
        *to = pair(first, Some(second));
    }
}

/// For columns whose values lie side by side.
fn pack_columns<T: Element>(panel: &mut [u32], from: ArrayView2<'_, T>, width: usize) {
    for (index, column) in from.axis_iter(Axis(1)).enumerate() {
        let to = panel[index..].iter_mut().step_by(width);
        match column.to_slice() {
            Some(column) => pack_column(to, column),
            None => pack_column(to, column),
        }
    }
}

#[inline(always)]
fn pack_column<'a, T: Element + 'a>(
    to: impl Iterator<Item = &'a mut u32>,
    column: impl IntoIterator<Item = &'a T>,
) {
    let mut values = column.into_iter().copied();
    for to in to {
        let Some(first) = values.next() else { break };
        *to = pair(first, values.next());
    }
}
