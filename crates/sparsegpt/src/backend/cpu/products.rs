//! Products in parallel: the result is halved until there are some parts for each thread, and each part is one
//! sequential product. On faer that runs ahead of its own division of the work, and threads that are held up leave
//! parts to the others.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};

/// Parts a thread at least, so that none waits long for the last.
const PARTS: usize = 2;
/// Sides of a part below which it is not halved: packing the operands again would cost too much.
const SMALLEST: usize = 128;
/// What the sides of parts are multiples of: some tiles of the innermost loops.
const ALIGNMENT: usize = 48;

/// A product of which any part can be computed, by one thread.
pub(super) trait Product<T>: Sync {
    /// Adds its part of the product to the part of the result that starts at this row and column.
    fn add(&self, c: MatMut<'_, T>, row: usize, col: usize);

    /// The same for a square on the diagonal, diagonal included; what is above it is left alone.
    fn add_to_lower(&self, c: MatMut<'_, T>, start: usize);
}

/// alpha·A·B on faer.
struct Faer<'a, T> {
    alpha: T,
    a: MatRef<'a, T>,
    b: MatRef<'a, T>,
}

impl<T: RealField> Product<T> for Faer<'_, T> {
    fn add(&self, c: MatMut<'_, T>, row: usize, col: usize) {
        let a = self.a.subrows(row, c.nrows());
        let b = self.b.subcols(col, c.ncols());
        matmul(c, Accum::Add, a, b, self.alpha.clone(), Par::Seq);
    }

    fn add_to_lower(&self, c: MatMut<'_, T>, start: usize) {
        let n = c.nrows();
        triangular_matmul(
            c,
            BlockStructure::TriangularLower,
            Accum::Add,
            self.a.subrows(start, n),
            BlockStructure::Rectangular,
            self.b.subcols(start, n),
            BlockStructure::Rectangular,
            self.alpha.clone(),
            Par::Seq,
        );
    }
}

/// C += alpha·A·B.
pub(super) fn add_product<T: RealField>(
    c: MatMut<'_, T>,
    alpha: T,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    par: Par,
) {
    add_in_parts(c, &Faer { alpha, a, b }, par);
}

/// C += alpha·A·B on the lower triangle of a square C, diagonal included; the rest is left alone.
pub(super) fn add_to_lower<T: RealField>(
    c: MatMut<'_, T>,
    alpha: T,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    par: Par,
) {
    add_to_lower_in_parts(c, &Faer { alpha, a, b }, par);
}

/// Adds a product to C.
pub(super) fn add_in_parts<T: Send>(c: MatMut<'_, T>, product: &impl Product<T>, par: Par) {
    let part = part(c.nrows() * c.ncols(), par);
    rectangle(c, (0, 0), product, part);
}

/// Adds a product to the lower triangle of a square C.
pub(super) fn add_to_lower_in_parts<T: Send>(
    c: MatMut<'_, T>,
    product: &impl Product<T>,
    par: Par,
) {
    let part = part(c.nrows() * c.ncols() / 2, par);
    lower(c, 0, product, part);
}

/// Values of the result that are computed in one piece.
fn part(values: usize, par: Par) -> usize {
    match par {
        Par::Seq => usize::MAX,
        Par::Rayon(threads) => (values / (PARTS * threads.get())).max(SMALLEST * SMALLEST),
    }
}

fn rectangle<T: Send>(
    c: MatMut<'_, T>,
    (row, col): (usize, usize),
    product: &impl Product<T>,
    part: usize,
) {
    let (rows, cols) = (c.nrows(), c.ncols());
    if rows * cols <= part || rows.max(cols) < 2 * SMALLEST {
        product.add(c, row, col);
    } else if rows >= cols {
        let half = (rows / 2).next_multiple_of(ALIGNMENT);
        let (top, bottom) = c.split_at_row_mut(half);
        rayon::join(
            || rectangle(top, (row, col), product, part),
            || rectangle(bottom, (row + half, col), product, part),
        );
    } else {
        let half = (cols / 2).next_multiple_of(ALIGNMENT);
        let (left, right) = c.split_at_col_mut(half);
        rayon::join(
            || rectangle(left, (row, col), product, part),
            || rectangle(right, (row, col + half), product, part),
        );
    }
}

fn lower<T: Send>(c: MatMut<'_, T>, start: usize, product: &impl Product<T>, part: usize) {
    let n = c.nrows();
    if n * n / 2 <= part || n < 2 * SMALLEST {
        product.add_to_lower(c, start);
        return;
    }
    let half = (n / 2).next_multiple_of(ALIGNMENT);
    let (first, _, below, second) = c.split_at_mut(half, half);
    rayon::join(
        || rectangle(below, (start + half, start), product, part),
        || {
            rayon::join(
                || lower(first, start, product, part),
                || lower(second, start + half, product, part),
            )
        },
    );
}
