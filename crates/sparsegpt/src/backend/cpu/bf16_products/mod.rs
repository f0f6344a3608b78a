//! Products of bf16 values, accumulated in f32: bf16 activations as they are, f32 operands rounded to the nearest
//! (ties to even).
//!
//! A product of two bf16 values is exact in f32, so what is given in bf16 loses nothing here. Operands are packed as
//! the processors' dot products want them: two consecutive values along the inner dimension in one 32-bit lane.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod kernel;
mod pack;

use std::cell::RefCell;

use faer::{MatMut, Par};
use ndarray::{ArrayView2, s};

use super::products::{Product, add_in_parts, add_to_lower_in_parts};
use kernel::Block;
pub(super) use kernel::Kernel;
use pack::{Element, Panels};

/// Values along the inner dimension that are packed at a time, so that a panel of the right operand stays in the L1
/// cache. Even, so that only the last pair may lack its second value.
const INNER: usize = 384;
/// Rows of the result at a time, so that the left operand's panels stay in the L2 cache. A multiple of the kernels'.
const ROWS: usize = 120;
/// Columns of the result at a time, whose panels of the right operand stay in the L3 cache.
const COLUMNS: usize = 2048;

/// alpha·AᵀB; A and B have the inner dimension as rows.
struct Bf16Product<'a, T> {
    kernel: Kernel,
    alpha: f32,
    a: ArrayView2<'a, T>,
    b: ArrayView2<'a, T>,
}

/// C += alpha·AᵀB for row-major C.
pub(super) fn add_product<T: Element>(
    kernel: Kernel,
    c: MatMut<'_, f32>,
    alpha: f32,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    par: Par,
) {
    let product = Bf16Product {
        kernel,
        alpha,
        a,
        b,
    };
    add_in_parts(c, &product, par);
}

/// C += alpha·XᵀX on the lower triangle of row-major C, diagonal included; the rest is left alone.
pub(super) fn add_gram<T: Element>(
    kernel: Kernel,
    c: MatMut<'_, f32>,
    alpha: f32,
    x: ArrayView2<'_, T>,
    par: Par,
) {
    let product = Bf16Product {
        kernel,
        alpha,
        a: x,
        b: x,
    };
    add_to_lower_in_parts(c, &product, par);
}

impl<T: Element> Product<f32> for Bf16Product<'_, T> {
    fn add(&self, c: MatMut<'_, f32>, row: usize, col: usize) {
        self.add_part(c, (row, col), false);
    }

    fn add_to_lower(&self, c: MatMut<'_, f32>, start: usize) {
        self.add_part(c, (start, start), true);
    }
}

impl<T: Element> Bf16Product<'_, T> {
    /// Adds to a part of the result, or to its lower triangle.
    fn add_part(&self, mut c: MatMut<'_, f32>, (row, col): (usize, usize), lower: bool) {
        thread_local! {
            static PANELS: RefCell<(Panels, Panels)> = const { RefCell::new((Panels::new(), Panels::new())) };
        }
        let (rows, columns) = (c.nrows(), c.ncols());
        let (tile_rows, tile_columns) = self.kernel.tile();
        PANELS.with_borrow_mut(|(left, right)| {
            for first_column in (0..columns).step_by(COLUMNS) {
                let block_columns = COLUMNS.min(columns - first_column);
                for inner in (0..self.a.nrows()).step_by(INNER) {
                    let inner = inner..self.a.nrows().min(inner + INNER);
                    let start = col + first_column;
                    let b = self
                        .b
                        .slice(s![inner.clone(), start..start + block_columns]);
                    right.pack(b, tile_columns);
                    for first_row in (0..rows).step_by(ROWS) {
                        let block_rows = ROWS.min(rows - first_row);
                        if lower && first_row + block_rows <= first_column {
                            continue;
                        }
                        let start = row + first_row;
                        let a = self.a.slice(s![inner.clone(), start..start + block_rows]);
                        left.pack(a, tile_rows);
                        self.kernel.add(Block {
                            c: c.as_mut().submatrix_mut(
                                first_row,
                                first_column,
                                block_rows,
                                block_columns,
                            ),
                            alpha: self.alpha,
                            left: left.panels(),
                            right: right.panels(),
                            pairs: inner.len().div_ceil(2),
                            // The diagonal passes this many columns to the right of the block's first row and column.
                            diagonal: lower.then(|| first_row as isize - first_column as isize),
                        });
                    }
                }
            }
        });
    }
}
