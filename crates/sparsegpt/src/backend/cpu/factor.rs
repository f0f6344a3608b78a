//! The factor of the Hessian, on faer.
//!
//! H = UUᵀ by halves, from the last column: factor the second half, solve for the columns above it, subtract
//! their products from the first half, factor that. All large work is matrix products. Only the diagonal
//! blocks are inverted, and each panel above one is solved with a product by that inverse. 1/3 cols³ flops
//! for narrow blocks, where the published chain (factor, inverse, factor) takes 4/3.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltError, LltParams, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::prelude::{IntoConst, ReborrowMut};
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, Par, Spec};
use rayon::prelude::*;

use super::packed::{Triangle, rows_a_task};
use super::products::{Engine, Real};
use crate::backend::Precision;
use crate::error::HostError;

/// Columns from which a diagonal block is worth several threads.
const PARALLEL_BLOCK: usize = 512;
/// Side of the squares that are moved from the lower to the upper triangle at a time.
const TILE: usize = 32;

/// U above the diagonal blocks and their inverses in them, into the upper triangle of `h`; see
/// [`Backend::inverse_factor`](crate::backend::Backend::inverse_factor).
pub(super) fn inverse_factor(
    mut h: MatMut<'_, f32>,
    diagonal: &[f32],
    blocks: &[usize],
    precision: Precision,
    engine: Engine,
) -> Result<(), HostError> {
    match precision {
        Precision::F32 => {
            mirror(h.rb_mut());
            set_diagonal(h.rb_mut(), diagonal, |value| value);
            factor(h, 0, blocks, engine)
        }
        Precision::F64 => {
            let n = diagonal.len();
            let mut wide =
                Mat::from_fn(n, n, |i, j| if i < j { f64::from(h[(j, i)]) } else { 0.0 });
            set_diagonal(wide.as_mut(), diagonal, f64::from);
            factor(wide.as_mut(), 0, blocks, engine)?;
            for j in 0..n {
                for i in 0..=j {
                    h[(i, j)] = wide[(i, j)] as f32;
                }
            }
            Ok(())
        }
    }
}

/// H⁻¹ = RᵀR, both triangles, from R in the upper triangle of `factor`; `inverse` comes in as zeros.
pub(super) fn inverse_from_factor(
    mut inverse: MatMut<'_, f32>,
    factor: faer::MatRef<'_, f32>,
    par: Par,
) {
    triangular_matmul(
        inverse.rb_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        factor.transpose(),
        BlockStructure::TriangularLower,
        factor,
        BlockStructure::TriangularUpper,
        1.0,
        par,
    );
    mirror(inverse);
}

/// Both triangles of the symmetric matrix with the strict lower triangle of `h` and `diagonal`, in place.
pub(super) fn symmetric(mut h: MatMut<'_, f32>, diagonal: &[f32]) {
    mirror(h.rb_mut());
    set_diagonal(h, diagonal, |value| value);
}

/// Copies the strict lower triangle to the strict upper one.
fn mirror(h: MatMut<'_, f32>) {
    let n = h.nrows();
    if n <= TILE {
        let mut h = h;
        for i in 0..n {
            for j in i + 1..n {
                h[(i, j)] = h[(j, i)];
            }
        }
        return;
    }
    let half = n / 2;
    let (first, above, below, second) = h.split_at_mut(half, half);
    transpose(below.into_const(), above);
    rayon::join(|| mirror(first), || mirror(second));
}

fn transpose(from: faer::MatRef<'_, f32>, mut to: MatMut<'_, f32>) {
    let (rows, cols) = (to.nrows(), to.ncols());
    if rows <= TILE && cols <= TILE {
        for i in 0..rows {
            for j in 0..cols {
                to[(i, j)] = from[(j, i)];
            }
        }
    } else if rows >= cols {
        let (top, bottom) = to.split_at_row_mut(rows / 2);
        let (left, right) = from.split_at_col(rows / 2);
        rayon::join(|| transpose(left, top), || transpose(right, bottom));
    } else {
        let (left, right) = to.split_at_col_mut(cols / 2);
        let (top, bottom) = from.split_at_row(cols / 2);
        rayon::join(|| transpose(top, left), || transpose(bottom, right));
    }
}

fn set_diagonal<T>(mut h: MatMut<'_, T>, diagonal: &[f32], widen: impl Fn(f32) -> T) {
    for (column, &value) in diagonal.iter().enumerate() {
        h[(column, column)] = widen(value);
    }
}

/// Where to halve blocks that end at `ends` and begin at `first`: the index of the first block of the second
/// half, and the column where it begins.
fn halve(first: usize, ends: &[usize]) -> (usize, usize) {
    let middle = (first + ends[ends.len() - 1]) / 2;
    let blocks = ends[..ends.len() - 1].partition_point(|&end| end <= middle);
    let blocks = blocks.max(1);
    (blocks, ends[blocks - 1])
}

/// Factors `h` (upper triangle, in place), whose first column is column `first` of the layer.
fn factor<T: Real>(
    h: MatMut<'_, T>,
    first: usize,
    ends: &[usize],
    engine: Engine,
) -> Result<(), HostError> {
    if ends.len() == 1 {
        return invert_block(h, first, engine.par);
    }
    let (blocks, column) = halve(first, ends);
    let (mut upper, mut panel, _, mut lower) = h.split_at_mut(column - first, column - first);
    factor(lower.rb_mut(), column, &ends[blocks..], engine)?;
    solve(
        panel.rb_mut(),
        lower.into_const(),
        column,
        &ends[blocks..],
        engine,
    )?;
    // Its upper triangle, as the lower one of its transpose.
    engine.add_to_lower(
        upper.rb_mut().transpose_mut(),
        -1.0,
        panel.as_ref(),
        panel.as_ref().transpose(),
    );
    factor(upper, first, &ends[..blocks], engine)
}

/// X ← X·U⁻ᵀ for the factored `u`, whose first column is column `first` of the layer.
fn solve<T: Real>(
    x: MatMut<'_, T>,
    u: faer::MatRef<'_, T>,
    first: usize,
    ends: &[usize],
    engine: Engine,
) -> Result<(), HostError> {
    if ends.len() == 1 {
        let inverse = engine.triangle(u.transpose(), Triangle::Lower);
        let at_a_time = rows_a_task(x.nrows());
        x.par_row_chunks_mut(at_a_time)
            .for_each(|rows| inverse.multiply(rows, None));
        return Ok(());
    }
    let (blocks, column) = halve(first, ends);
    let (mut left, mut right) = x.split_at_col_mut(column - first);
    let (upper, panel, _, lower) = u.split_at(column - first, column - first);
    solve(right.rb_mut(), lower, column, &ends[blocks..], engine)?;
    engine.add_product(left.rb_mut(), -1.0, right.as_ref(), panel.transpose());
    solve(left, upper, first, &ends[..blocks], engine)
}

/// U⁻¹ of one diagonal block. With J the matrix that reverses the order of the columns, JHJ = LLᵀ gives
/// H = UUᵀ for U = JLJ, and U⁻¹ = JL⁻¹J.
fn invert_block<T: RealField>(
    mut block: MatMut<'_, T>,
    first: usize,
    par: Par,
) -> Result<(), HostError> {
    let n = block.nrows();
    let par = if n < PARALLEL_BLOCK { Par::Seq } else { par };
    let mut reversed = Mat::from_fn(n, n, |i, j| {
        // The lower triangle of JHJ is the upper one of H, transposed.
        if i >= j {
            block[(n - 1 - i, n - 1 - j)].clone()
        } else {
            T::zero_impl()
        }
    });
    let params = Spec::<LltParams, T>::default();
    let scratch = cholesky_in_place_scratch::<T>(n, par, params);
    let bytes = scratch.unaligned_bytes_required();
    let mut memory = MemBuffer::try_new(scratch).map_err(|_| HostError::OutOfMemory { bytes })?;
    cholesky_in_place(
        reversed.as_mut(),
        Default::default(),
        par,
        MemStack::new(&mut memory),
        params,
    )
    .map_err(
        |LltError::NonPositivePivot { index }| HostError::NotPositiveDefinite {
            column: first + n - 1 - index.min(n - 1),
        },
    )?;
    let mut inverse = Mat::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), reversed.as_ref(), par);
    for i in 0..n {
        for j in i..n {
            block[(i, j)] = inverse[(n - 1 - i, n - 1 - j)].clone();
        }
    }
    Ok(())
}
