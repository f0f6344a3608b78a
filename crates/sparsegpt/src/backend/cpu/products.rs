//! Products in parallel: the result is halved until there are some parts for each thread, and each part is one
//! sequential product on faer. That runs ahead of faer's own division of the work, and threads that are held up
//! leave parts to the others.

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

/// C += alpha·A·B.
pub(super) fn add_product<T: RealField>(
    c: MatMut<'_, T>,
    alpha: T,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    par: Par,
) {
    let part = part(c.nrows() * c.ncols(), par);
    rectangle(c, &alpha, a, b, part);
}

/// C += alpha·A·B on the lower triangle of a square C, diagonal included; the rest is left alone.
pub(super) fn add_to_lower<T: RealField>(
    c: MatMut<'_, T>,
    alpha: T,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    par: Par,
) {
    let part = part(c.nrows() * c.ncols() / 2, par);
    lower(c, &alpha, a, b, part);
}

/// Values of the result that are computed in one piece.
fn part(values: usize, par: Par) -> usize {
    match par {
        Par::Seq => usize::MAX,
        Par::Rayon(threads) => (values / (PARTS * threads.get())).max(SMALLEST * SMALLEST),
    }
}

fn rectangle<T: RealField>(
    c: MatMut<'_, T>,
    alpha: &T,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    part: usize,
) {
    let (rows, cols) = (c.nrows(), c.ncols());
    if rows * cols <= part || rows.max(cols) < 2 * SMALLEST {
        matmul(c, Accum::Add, a, b, alpha.clone(), Par::Seq);
    } else if rows >= cols {
        let half = (rows / 2).next_multiple_of(ALIGNMENT);
        let (top, bottom) = c.split_at_row_mut(half);
        let (a_top, a_bottom) = a.split_at_row(half);
        rayon::join(
            || rectangle(top, alpha, a_top, b, part),
            || rectangle(bottom, alpha, a_bottom, b, part),
        );
    } else {
        let half = (cols / 2).next_multiple_of(ALIGNMENT);
        let (left, right) = c.split_at_col_mut(half);
        let (b_left, b_right) = b.split_at_col(half);
        rayon::join(
            || rectangle(left, alpha, a, b_left, part),
            || rectangle(right, alpha, a, b_right, part),
        );
    }
}

fn lower<T: RealField>(
    c: MatMut<'_, T>,
    alpha: &T,
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    part: usize,
) {
    let n = c.nrows();
    if n * n / 2 <= part || n < 2 * SMALLEST {
        triangular_matmul(
            c,
            BlockStructure::TriangularLower,
            Accum::Add,
            a,
            BlockStructure::Rectangular,
            b,
            BlockStructure::Rectangular,
            alpha.clone(),
            Par::Seq,
        );
        return;
    }
    let half = (n / 2).next_multiple_of(ALIGNMENT);
    let (first, _, below, second) = c.split_at_mut(half, half);
    let (a_first, a_second) = a.split_at_row(half);
    let (b_first, b_second) = b.split_at_col(half);
    rayon::join(
        || rectangle(below, alpha, a_second, b_first, part),
        || {
            rayon::join(
                || lower(first, alpha, a_first, b_first, part),
                || lower(second, alpha, a_second, b_second, part),
            )
        },
    );
}
