//! Large products in parallel: packed ones of our own where those are faster, else faer's. On faer the result is halved
//! until there are some parts for each thread, and each part is one sequential product. That runs ahead of faer's own
//! division of the work, and threads that are held up leave parts to the others.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::prelude::ReborrowMut;
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{ArrayView2, ShapeBuilder};

use super::packed::{Kernel, Packed, Right, Triangle};

/// Sides from which packing the operands pays.
const PACKED: usize = 16;
/// Parts a thread at least, so that none waits long for the last.
const PARTS: usize = 2;
/// Sides of a part below which it is not halved: packing the operands again would cost too much.
const SMALLEST: usize = 128;
/// What the sides of parts are multiples of: some tiles of the innermost loops.
const ALIGNMENT: usize = 48;

/// What multiplies large matrices, and on how many threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engine {
    pub(super) par: Par,
    /// For f32; faer where there is none.
    pub(super) packed: Option<Kernel>,
}

impl Engine {
    /// C += alpha·A·B.
    pub(super) fn add_product<T: Real>(
        self,
        c: MatMut<'_, T>,
        alpha: f32,
        a: MatRef<'_, T>,
        b: MatRef<'_, T>,
    ) {
        self.add(c, Extent::Whole, alpha, (a, b));
    }

    /// C += alpha·A·B on the lower triangle of a square C, diagonal included; the rest is left alone.
    pub(super) fn add_to_lower<T: Real>(
        self,
        c: MatMut<'_, T>,
        alpha: f32,
        a: MatRef<'_, T>,
        b: MatRef<'_, T>,
    ) {
        self.add(c, Extent::Lower, alpha, (a, b));
    }

    fn add<T: Real>(
        self,
        mut c: MatMut<'_, T>,
        extent: Extent,
        alpha: f32,
        (a, b): (MatRef<'_, T>, MatRef<'_, T>),
    ) {
        let least = c.nrows().min(c.ncols()).min(a.ncols());
        if let Some((c, product)) = self.packed(c.rb_mut(), alpha, a, b)
            && least >= PACKED
        {
            match extent {
                Extent::Whole => product.add_to(c),
                Extent::Lower => product.add_to_lower(c),
            }
            return;
        }
        let (values, product) = (c.nrows() * c.ncols(), Faer::new(alpha, a, b));
        match extent {
            Extent::Whole => product.add_rectangle(c, (0, 0), part(values, self.par)),
            Extent::Lower => product.add_lower(c, 0, part(values / 2, self.par)),
        }
    }

    /// C, and the product for a kernel, where there is one for these numbers.
    fn packed<'c, 'a, T: Real>(
        self,
        c: MatMut<'c, T>,
        alpha: f32,
        a: MatRef<'a, T>,
        b: MatRef<'a, T>,
    ) -> Option<(MatMut<'c, f32>, Packed<'a, f32>)> {
        let product = Packed {
            kernel: self.packed?,
            alpha,
            beta: 1.0,
            a: view(T::as_f32(a)?.transpose()),
            b: view(T::as_f32(b)?),
        };
        Some((T::as_f32_mut(c)?, product))
    }

    /// A triangle of a square matrix, ready to multiply rows by; what is outside it does not count.
    pub(super) fn triangle<T: Real>(
        self,
        matrix: MatRef<'_, T>,
        triangle: Triangle,
    ) -> ByTriangle<'_, T> {
        let f32 = T::as_f32(matrix).filter(|_| matrix.nrows() >= PACKED);
        match self.packed.zip(f32) {
            Some((kernel, matrix)) => {
                ByTriangle::Packed(Right::new(kernel, view(matrix), triangle))
            }
            None => ByTriangle::Faer(matrix, triangle),
        }
    }
}

/// What of a result is wanted.
enum Extent {
    Whole,
    Lower,
}

/// A triangle of a square matrix.
pub(super) enum ByTriangle<'a, T> {
    Packed(Right),
    Faer(MatRef<'a, T>, Triangle),
}

impl<T: Real> ByTriangle<'_, T> {
    /// X ← S + X·R with one thread, for row-major X and S; without S, zero.
    pub(super) fn multiply(&self, mut x: MatMut<'_, T>, start: Option<MatRef<'_, T>>) {
        match self {
            Self::Packed(right) => {
                if let Some(x) = T::as_f32_mut(x) {
                    right.multiply(x, start.and_then(T::as_f32));
                }
            }
            Self::Faer(matrix, triangle) => {
                // A row-major copy, as X is.
                let copy = x.as_ref().transpose().to_owned();
                match start {
                    Some(start) => x.copy_from(start),
                    None => x.fill(T::zero_impl()),
                }
                triangular_matmul(
                    x,
                    BlockStructure::Rectangular,
                    Accum::Add,
                    copy.as_ref().transpose(),
                    BlockStructure::Rectangular,
                    matrix,
                    match triangle {
                        Triangle::Lower => BlockStructure::TriangularLower,
                        Triangle::Upper => BlockStructure::TriangularUpper,
                    },
                    T::one_impl(),
                    Par::Seq,
                );
            }
        }
    }
}

/// The numbers that factors are made of; kernels know those of f32.
pub(super) trait Real: RealField {
    fn as_f32(matrix: MatRef<'_, Self>) -> Option<MatRef<'_, f32>>;

    fn as_f32_mut(matrix: MatMut<'_, Self>) -> Option<MatMut<'_, f32>>;
}

impl Real for f64 {
    fn as_f32(_: MatRef<'_, Self>) -> Option<MatRef<'_, f32>> {
        None
    }

    fn as_f32_mut(_: MatMut<'_, Self>) -> Option<MatMut<'_, f32>> {
        None
    }
}

impl Real for f32 {
    fn as_f32(matrix: MatRef<'_, Self>) -> Option<MatRef<'_, f32>> {
        Some(matrix)
    }

    fn as_f32_mut(matrix: MatMut<'_, Self>) -> Option<MatMut<'_, f32>> {
        Some(matrix)
    }
}

/// The same matrix for ndarray.
#[allow(unsafe_code, reason = "neither library knows the other's views")]
fn view(matrix: MatRef<'_, f32>) -> ArrayView2<'_, f32> {
    let strides = [matrix.row_stride(), matrix.col_stride()].map(|stride| {
        debug_assert!(stride >= 0, "no matrix of this backend runs backwards");
        stride.unsigned_abs()
    });
    let shape = matrix.shape().strides(strides.into());
    // SAFETY: a view of as many values in the same places, borrowed for as long; strides are not negative, as matrices are
    // made of slices, which are split and transposed alone.
    unsafe { ArrayView2::from_shape_ptr(shape, matrix.as_ptr()) }
}

/// Values of the result that are computed in one piece.
fn part(values: usize, par: Par) -> usize {
    match par {
        Par::Seq => usize::MAX,
        Par::Rayon(threads) => (values / (PARTS * threads.get())).max(SMALLEST * SMALLEST),
    }
}

/// alpha·A·B on faer.
struct Faer<'a, T> {
    alpha: T,
    a: MatRef<'a, T>,
    b: MatRef<'a, T>,
}

impl<'a, T: RealField> Faer<'a, T> {
    fn new(alpha: f32, a: MatRef<'a, T>, b: MatRef<'a, T>) -> Self {
        Self {
            alpha: T::from_f64_impl(alpha.into()),
            a,
            b,
        }
    }

    /// Adds its part of the product to the part of the result that starts at this row and column.
    fn add_rectangle(&self, c: MatMut<'_, T>, (row, col): (usize, usize), part: usize) {
        let (rows, cols) = (c.nrows(), c.ncols());
        if rows * cols <= part || rows.max(cols) < 2 * SMALLEST {
            let a = self.a.subrows(row, rows);
            let b = self.b.subcols(col, cols);
            matmul(c, Accum::Add, a, b, self.alpha.clone(), Par::Seq);
        } else if rows >= cols {
            let half = (rows / 2).next_multiple_of(ALIGNMENT);
            let (top, bottom) = c.split_at_row_mut(half);
            rayon::join(
                || self.add_rectangle(top, (row, col), part),
                || self.add_rectangle(bottom, (row + half, col), part),
            );
        } else {
            let half = (cols / 2).next_multiple_of(ALIGNMENT);
            let (left, right) = c.split_at_col_mut(half);
            rayon::join(
                || self.add_rectangle(left, (row, col), part),
                || self.add_rectangle(right, (row, col + half), part),
            );
        }
    }

    /// The same for a square on the diagonal, diagonal included; what is above it is left alone.
    fn add_lower(&self, c: MatMut<'_, T>, start: usize, part: usize) {
        let n = c.nrows();
        if n * n / 2 <= part || n < 2 * SMALLEST {
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
            return;
        }
        let half = (n / 2).next_multiple_of(ALIGNMENT);
        let (first, _, below, second) = c.split_at_mut(half, half);
        rayon::join(
            || self.add_rectangle(below, (start + half, start), part),
            || {
                rayon::join(
                    || self.add_lower(first, start, part),
                    || self.add_lower(second, start + half, part),
                )
            },
        );
    }
}
