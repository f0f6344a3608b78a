//! Products of packed operands, accumulated in f32: f32 values as they are, bf16 activations as they are, and f32 operands
//! rounded to bf16 (to the nearest, ties to even). A product of two bf16 values is exact in f32, so what is given in bf16
//! loses nothing here.
//!
//! Both operands are packed into panels of as many columns or rows as a tile of the result has, in the order in which
//! they are read; panels of the right operand stay in the L1 cache, those of the left one in the L2 cache, and the tile
//! in registers (Goto and van de Geijn 2008, "Anatomy of high-performance matrix multiplication"). bf16 values are packed
//! as the processors' dot products want them: two consecutive ones along the inner dimension in one 32-bit lane.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod pack;

use std::cell::Cell;

use faer::{MatMut, MatRef};
use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use kernel::{Block, Left, Start};
pub(super) use kernel::{Kernel, Triangle};
pub(super) use pack::Element;
use pack::{Lanes, Panels};

/// Lanes along the inner dimension that are packed at a time, so that a panel of the right operand stays in the L1
/// cache.
const INNER: usize = 256;
/// Rows of the result at a time, so that the left operand's stay in the L2 cache; each time is a task for a thread. A
/// multiple of the kernels' tiles, as the next number is.
const ROWS: usize = 96;
/// Fewer where there would be few tasks a thread, but no less than this.
const LEAST_ROWS: usize = 24;
/// Tasks a thread, so that none waits long for the last.
const TASKS: usize = 4;
/// Columns of the result at a time, whose panels of the right operand stay in the L3 cache.
const COLUMNS: usize = 2048;

thread_local! {
    // Taken out while they are in use, as a thread that waits may be given another task.
    static LEFT: Cell<Panels> = const { Cell::new(Panels::new()) };
    static RIGHT: Cell<Panels> = const { Cell::new(Panels::new()) };
}

/// Rows of the result that a thread takes at a time, of so many.
pub(super) fn rows_a_task(rows: usize) -> usize {
    let share = rows.div_ceil(TASKS * rayon::current_num_threads());
    share.next_multiple_of(LEAST_ROWS).min(ROWS)
}

/// beta·C + alpha·AᵀB; A and B have the inner dimension as rows.
pub(super) struct Packed<'a, T> {
    pub(super) kernel: Kernel,
    pub(super) alpha: f32,
    pub(super) beta: f32,
    pub(super) a: ArrayView2<'a, T>,
    pub(super) b: ArrayView2<'a, T>,
}

impl<T: Element> Packed<'_, T> {
    /// Brings C up to date, in the rayon pool of the caller. Each value's terms are added in an order that does not depend on
    /// the number of threads. Without an inner dimension nothing is done.
    pub(super) fn add_to(self, c: MatMut<'_, f32>) {
        self.add(c, None);
    }

    /// The same for the lower triangle of C, diagonal included; the rest is left alone.
    pub(super) fn add_to_lower(self, c: MatMut<'_, f32>) {
        self.add(c, Some(Triangle::Lower));
    }

    fn add(self, mut c: MatMut<'_, f32>, mut triangle: Option<Triangle>) {
        let (mut a, mut b) = (self.a, self.b);
        // The kernels have a row's values side by side: (AᵀB)ᵀ = BᵀA.
        if c.row_stride() == 1 && c.col_stride() != 1 {
            c = c.transpose_mut();
            (a, b) = (b, a);
            triangle = triangle.map(Triangle::transposed);
        }
        let (_, tile_columns) = self.kernel.tile();
        let lanes = self.kernel.lanes();
        let (rows, columns) = (c.nrows(), c.ncols());
        let at_once = rows_a_task(rows);
        let at_a_time = INNER * lanes.values();
        let mut right = RIGHT.take();
        for first_column in (0..columns).step_by(COLUMNS) {
            let columns = first_column..columns.min(first_column + COLUMNS);
            for inner in (0..a.nrows()).step_by(at_a_time) {
                let inner = inner..a.nrows().min(inner + at_a_time);
                let b = b.slice(s![inner.clone(), columns.clone()]);
                right.pack(b, tile_columns, lanes);
                let beta = if inner.start == 0 { self.beta } else { 1.0 };
                let a = a.slice(s![inner, ..]);
                let c = c.as_mut().subcols_mut(first_column, columns.len());
                c.par_row_chunks_mut(at_once)
                    .enumerate()
                    .for_each(|(chunk, c)| {
                        let first_row = chunk * at_once;
                        let rows = first_row..first_row + c.nrows();
                        let nothing = match triangle {
                            None => false,
                            Some(Triangle::Lower) => rows.end <= columns.start,
                            Some(Triangle::Upper) => columns.end <= rows.start,
                        };
                        if nothing {
                            return;
                        }
                        // The diagonal passes this many columns to the right of the block's first row and column.
                        let diagonal = first_row as isize - first_column as isize;
                        let triangle = triangle.map(|triangle| (triangle, diagonal));
                        self.add_block((beta, c), a.slice(s![.., rows]), right.panels(), triangle);
                    });
            }
        }
        RIGHT.set(right);
    }

    fn add_block(
        &self,
        (beta, c): (f32, MatMut<'_, f32>),
        a: ArrayView2<'_, T>,
        right: &[u32],
        triangle: Option<(Triangle, isize)>,
    ) {
        let lanes = self.kernel.lanes();
        let unpacked = T::as_f32(a).filter(|a| lanes == Lanes::Single && a.strides()[0] == 1);
        let mut panels = LEFT.take();
        let left = match unpacked {
            Some(a) => Left::Rows(a.reversed_axes()),
            None => {
                panels.pack(a, self.kernel.tile().0, lanes);
                Left::Panels(panels.panels())
            }
        };
        self.kernel.add(Block {
            c,
            alpha: self.alpha,
            start: Start::Scaled(beta),
            left,
            right,
            depth: a.nrows().div_ceil(lanes.values()),
            right_triangle: None,
            triangle,
        });
        LEFT.set(panels);
    }
}

/// A triangle as the right operand, packed once for many left ones.
#[derive(Debug)]
pub(super) struct Right {
    kernel: Kernel,
    panels: Panels,
    depth: usize,
    triangle: Triangle,
}

impl Right {
    /// Packs for a kernel of f32 values; what is outside the triangle counts as zero, whatever is there.
    pub(super) fn new(kernel: Kernel, b: ArrayView2<'_, f32>, triangle: Triangle) -> Self {
        let width = kernel.tile().1;
        let mut panels = Panels::new();
        panels.pack(b, width, Lanes::Single);
        panels.clear_outside(width, b.nrows(), triangle);
        Self {
            kernel,
            panels,
            depth: b.nrows(),
            triangle,
        }
    }

    /// C ← S + CB in place with one thread, for row-major C and S; without S, zero.
    pub(super) fn multiply(&self, c: MatMut<'_, f32>, start: Option<MatRef<'_, f32>>) {
        self.kernel.add(Block {
            c,
            alpha: 1.0,
            start: start.map_or(Start::Scaled(0.0), Start::Other),
            left: Left::Result,
            right: self.panels.panels(),
            depth: self.depth,
            right_triangle: Some(self.triangle),
            triangle: None,
        });
    }
}
