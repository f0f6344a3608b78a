//! The inner loops, once for every instruction set, over the ways to multiply lanes.

use std::ops::Range;

use faer::{MatMut, MatRef};
use ndarray::{ArrayView2, Axis};
use pulp::{Simd, WithSimd};

#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512Bf16;
use super::pack::Lanes;

/// Vectors in a row of a tile.
const VECTORS: usize = 2;
/// Most lanes of a vector of any instruction set.
const LANES: usize = 16;

/// What multiplies.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Kernel {
    /// f32 arithmetic on f32 values.
    F32(pulp::Arch),
    /// The processor's dot products of bf16 values.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Bf16),
    /// f32 arithmetic that gives the same values as those: for tests, and to measure what rounding to bf16 does.
    EmulatedBf16(pulp::Arch),
}

impl Kernel {
    /// For products of f32 values, where it is faster than faer: with AVX2 alone, where faer's tile of 24 x 4 leaves a part of
    /// the time to loads and stores of the result. With AVX-512 (Sapphire Rapids) it is faster on two threads from 2048 on a side,
    /// and slower by a tenth below; a layer takes as long with either.
    pub(in super::super) fn for_f32(arch: pulp::Arch) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let pulp::Arch::V3(_) = arch {
            return Some(Self::F32(arch));
        }
        let _ = arch;
        None
    }

    /// The processor's dot products of bf16 values, where it has them and `arch` is not a level below them.
    pub(in super::super) fn for_bf16(arch: pulp::Arch) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let pulp::Arch::V4(level) = arch {
            return Avx512Bf16::detect(level).map(Self::Avx512);
        }
        let _ = arch;
        None
    }

    /// What the processor would need for them and lacks.
    pub(in super::super) fn missing() -> String {
        #[cfg(target_arch = "x86_64")]
        return super::avx512::missing();
        #[cfg(not(target_arch = "x86_64"))]
        return "avx512bf16 (x86-64 only)".to_owned();
    }

    /// Whether Hessians of bf16 values are formed by it without being asked for, rather than by f32 arithmetic.
    pub(in super::super) fn serves_hessians(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(processor) => processor.is_faster_than_f32(),
            // So that tests see Hessians formed so.
            Self::EmulatedBf16(_) => true,
            Self::F32(_) => false,
        }
    }

    pub(in super::super) fn is_emulated(self) -> bool {
        matches!(self, Self::EmulatedBf16(_))
    }

    /// How its operands are packed.
    pub(super) fn lanes(self) -> Lanes {
        match self {
            Self::F32(_) => Lanes::Single,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => Lanes::Bf16Pairs,
            Self::EmulatedBf16(_) => Lanes::Bf16Pairs,
        }
    }

    /// Rows and columns of a tile.
    pub(super) fn tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => tile::<pulp::x86::V4>(),
            Self::F32(arch) | Self::EmulatedBf16(arch) => arch.dispatch(Tile),
        }
    }

    /// C += alpha·AᵀB.
    pub(super) fn add(self, block: Block<'_>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(processor) => processor.add(block),
            Self::F32(arch) => arch.dispatch(With(block, Single)),
            Self::EmulatedBf16(arch) => arch.dispatch(With(block, EmulatedPairs)),
        }
    }
}

/// Rows of a tile, so that its sums stay in registers beside what they are made of: with 32 of them.
const MANY_ROWS: usize = 12;
/// With 16 registers.
const FEW_ROWS: usize = 6;

const fn tile<S: Simd>() -> (usize, usize) {
    let rows = if S::REGISTER_COUNT >= 32 {
        MANY_ROWS
    } else {
        FEW_ROWS
    };
    (rows, VECTORS * S::F32_LANES)
}

struct Tile;

impl WithSimd for Tile {
    type Output = (usize, usize);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
        tile::<S>()
    }
}

/// The sums and the products of the values in each lane, as `pack` makes them.
pub(super) trait LaneProduct<S: Simd>: Copy {
    fn add(self, simd: S, sums: S::f32s, a: S::u32s, b: S::u32s) -> S::f32s;
}

#[derive(Clone, Copy)]
struct Single;

impl<S: Simd> LaneProduct<S> for Single {
    #[inline(always)]
    fn add(self, simd: S, sums: S::f32s, a: S::u32s, b: S::u32s) -> S::f32s {
        let (a, b) = (simd.transmute_f32s_u32s(a), simd.transmute_f32s_u32s(b));
        simd.mul_add_e_f32s(a, b, sums)
    }
}

#[derive(Clone, Copy)]
struct EmulatedPairs;

impl<S: Simd> LaneProduct<S> for EmulatedPairs {
    /// The second product first, as the instruction is described. It differs in taking tiny (subnormal) numbers for
    /// what they are and not for zeros.
    #[inline(always)]
    fn add(self, simd: S, sums: S::f32s, a: S::u32s, b: S::u32s) -> S::f32s {
        let half = simd.splat_u32s(16);
        let second = simd.splat_u32s(0xffff_0000);
        let first_of = |pair| simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(pair, half));
        let second_of = |pair| simd.transmute_f32s_u32s(simd.and_u32s(pair, second));
        let sums = simd.mul_add_e_f32s(second_of(a), second_of(b), sums);
        simd.mul_add_e_f32s(first_of(a), first_of(b), sums)
    }
}

/// The left operand of a block.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// Panels as wide as a tile has rows.
    Panels(&'a [u32]),
    /// f32 values as they are: rows of the product with the inner dimension side by side.
    Rows(ArrayView2<'a, f32>),
    /// What the result holds before, as such rows; for a triangle at the right, by which it can be multiplied in place.
    Result,
}

/// What the products are added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// What the result holds, times this.
    Scaled(f32),
    /// As large as the result.
    Other(MatRef<'a, f32>),
}

/// A block of the result and the operands for it.
pub(super) struct Block<'a> {
    pub(super) c: MatMut<'a, f32>,
    pub(super) alpha: f32,
    pub(super) start: Start<'a>,
    pub(super) left: Left<'a>,
    pub(super) right: &'a [u32],
    /// Lanes along the inner dimension.
    pub(super) depth: usize,
    /// Where the right operand is other than zero in a triangle alone: which.
    pub(super) right_triangle: Option<Triangle>,
    /// Where only a triangle counts: which, and the column of this block that holds the diagonal's value in its first row.
    pub(super) triangle: Option<(Triangle, isize)>,
}

/// A triangle with its diagonal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Triangle {
    Lower,
    Upper,
}

impl Triangle {
    pub(super) fn transposed(self) -> Self {
        match self {
            Self::Lower => Self::Upper,
            Self::Upper => Self::Lower,
        }
    }
}

/// A block on code that pulp compiles for each instruction set.
struct With<'a, P>(Block<'a>, P);

macro_rules! on_every_instruction_set {
    ($($product:ty),*) => {
        $(impl WithSimd for With<'_, $product> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.add(simd, self.1);
            }
        })*
    };
}

on_every_instruction_set!(Single, EmulatedPairs);

impl Block<'_> {
    #[inline(always)]
    pub(super) fn add<S: Simd>(self, simd: S, product: impl LaneProduct<S>) {
        if tile::<S>().0 == MANY_ROWS {
            self.add_tiles::<S, MANY_ROWS>(simd, product);
        } else {
            self.add_tiles::<S, FEW_ROWS>(simd, product);
        }
    }

    #[inline(always)]
    fn add_tiles<S: Simd, const TILE: usize>(mut self, simd: S, product: impl LaneProduct<S>) {
        let (depth, width) = (self.depth, VECTORS * S::F32_LANES);
        let panels = self.right.chunks_exact(depth * width);
        let last_panel = panels.len().saturating_sub(1);
        for at in 0..panels.len() {
            // So that a triangle needs no columns of the result that have been written already.
            let panel = match self.right_triangle {
                Some(Triangle::Upper) => last_panel - at,
                _ => at,
            };
            let col = panel * width;
            let right = &self.right[panel * depth * width..][..depth * width];
            let (right, _) = S::as_simd_u32s(right);
            let (right, _) = right.as_chunks();
            // The rows that these columns of the right operand need.
            let inner = match self.right_triangle {
                None => 0..depth,
                Some(Triangle::Upper) => 0..depth.min(col + width),
                Some(Triangle::Lower) => depth.min(col)..depth,
            };
            let right = &right[inner.clone()];
            for row in (0..self.c.nrows()).step_by(TILE) {
                let counting = self.counting::<TILE>((row, col), width);
                if counting == Counting::Nothing {
                    continue;
                }
                self.ask_for_tile::<TILE>((row, col), width);
                let sums: [_; TILE] = match self.left {
                    Left::Panels(panels) => {
                        let (panel, _) = panels[row * depth..(row + TILE) * depth].as_chunks();
                        panel_product(simd, product, &panel[inner.clone()], right)
                    }
                    Left::Rows(_) | Left::Result => {
                        // Sums of rows that are not there are not used.
                        let rows =
                            std::array::from_fn(|at| &self.left_row(row + at)[inner.clone()]);
                        row_product(simd, product, rows, right)
                    }
                };
                if counting == Counting::Everything {
                    let tile = self.c.as_mut().submatrix_mut(row, col, TILE, width);
                    let start = match self.start {
                        Start::Other(start) => Start::Other(start.submatrix(row, col, TILE, width)),
                        scaled => scaled,
                    };
                    add_whole(simd, tile, (self.alpha, start), sums);
                } else {
                    self.add_counting::<S, TILE>((row, col), &sums);
                }
            }
        }
    }

    /// A row of a left operand that is not packed, or its last one.
    #[inline(always)]
    fn left_row(&self, row: usize) -> &[f32] {
        let row = match self.left {
            Left::Rows(rows) => {
                let row = rows.index_axis_move(Axis(0), row.min(rows.nrows() - 1));
                row.to_slice()
            }
            Left::Result => {
                let row = self.c.as_ref().row(row.min(self.c.nrows() - 1));
                row.try_as_row_major().map(|row| row.as_slice())
            }
            Left::Panels(_) => None,
        };
        row.unwrap_or_default()
    }

    /// How much of a tile counts.
    #[inline(always)]
    fn counting<const TILE: usize>(&self, (row, col): (usize, usize), width: usize) -> Counting {
        let end = self.c.nrows().min(row + TILE);
        if self.triangle.is_none() && end == row + TILE && col + width <= self.c.ncols() {
            return Counting::Everything;
        }
        // The row with most columns is the first of an upper triangle, and the last of a lower one.
        let [first, last] = [row, end - 1].map(|row| self.columns_of(row, col, width).len());
        if first.max(last) == 0 {
            Counting::Nothing
        } else if first.min(last) == width && end == row + TILE {
            Counting::Everything
        } else {
            Counting::Something
        }
    }

    /// What the products are added to comes from memory while they are made.
    #[inline(always)]
    fn ask_for_tile<const TILE: usize>(&self, (row, col): (usize, usize), width: usize) {
        let last = (col + width).min(self.c.ncols()) - 1;
        let from = match self.start {
            Start::Scaled(_) => self.c.as_ref(),
            Start::Other(start) => start,
        };
        for row in row..(row + TILE).min(self.c.nrows()) {
            prefetch(&from[(row, col)]);
            prefetch(&from[(row, last)]);
        }
    }

    /// Adds those of a tile's sums that count.
    #[inline(never)]
    fn add_counting<S: Simd, const TILE: usize>(
        &mut self,
        (row, col): (usize, usize),
        sums: &[[S::f32s; VECTORS]; TILE],
    ) {
        let width = VECTORS * S::F32_LANES;
        let mut values = [0.0; VECTORS * LANES];
        let rows = row..self.c.nrows().min(row + TILE);
        for (row, sums) in rows.zip(sums) {
            let (vectors, _) = S::as_mut_simd_f32s(&mut values);
            vectors[..VECTORS].copy_from_slice(sums);
            let columns = self.columns_of(row, col, width);
            let values = values.iter().skip(columns.start.saturating_sub(col));
            for (column, value) in columns.zip(values) {
                let to = &mut self.c[(row, column)];
                let start = match self.start {
                    Start::Scaled(beta) => beta * *to,
                    Start::Other(start) => start[(row, column)],
                };
                *to = self.alpha.mul_add(*value, start);
            }
        }
    }

    /// Which of `width` columns from `col` on count in a row.
    #[inline(always)]
    fn columns_of(&self, row: usize, col: usize, width: usize) -> Range<usize> {
        let end = self.c.ncols().min(col + width);
        let Some((triangle, diagonal)) = self.triangle else {
            return col..end;
        };
        let diagonal = diagonal + row as isize;
        match triangle {
            Triangle::Lower => col..end.min((diagonal + 1).max(0) as usize),
            Triangle::Upper => col.max(diagonal.max(0) as usize)..end,
        }
    }
}

/// How much of a tile of sums counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    Nothing,
    Something,
    Everything,
}

/// Adds all of a tile's sums.
#[inline(always)]
fn add_whole<S: Simd, const TILE: usize>(
    simd: S,
    mut tile: MatMut<'_, f32>,
    (alpha, start): (f32, Start<'_>),
    sums: [[S::f32s; VECTORS]; TILE],
) {
    let alpha = simd.splat_f32s(alpha);
    // Sums that are reached by a running index would not stay in registers.
    for (row, sums) in sums.into_iter().enumerate() {
        let Some(values) = tile.as_mut().row_mut(row).try_as_row_major_mut() else {
            return;
        };
        let (values, _) = S::as_mut_simd_f32s(values.as_slice_mut());
        let Some(values) = values.first_chunk_mut::<VECTORS>() else {
            return;
        };
        let mut before = *values;
        match start {
            Start::Scaled(beta) => {
                let beta = simd.splat_f32s(beta);
                for vector in &mut before {
                    *vector = simd.mul_f32s(beta, *vector);
                }
            }
            Start::Other(start) => {
                let start = start.row(row).try_as_row_major();
                let start = start.map_or(&[][..], |row| row.as_slice());
                if let Some(start) = S::as_simd_f32s(start).0.first_chunk() {
                    before = *start;
                }
            }
        }
        for vector in 0..VECTORS {
            values[vector] = simd.mul_add_e_f32s(alpha, sums[vector], before[vector]);
        }
    }
}

/// Asks for the memory of a value that will be wanted soon.
#[inline(always)]
#[allow(unsafe_code, reason = "an instruction that only asks")]
fn prefetch(value: &f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, which reads nothing that the program could see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Lanes along the inner dimension for which a loop goes round once.
const UNROLLED: usize = 4;

/// The sums of a tile's products, for a panel of the left operand.
#[inline(always)]
fn panel_product<S: Simd, const TILE: usize>(
    simd: S,
    product: impl LaneProduct<S>,
    left: &[[u32; TILE]],
    right: &[[S::u32s; VECTORS]],
) -> [[S::f32s; VECTORS]; TILE] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TILE];
    let (left, left_rest) = left.as_chunks::<UNROLLED>();
    let (right, right_rest) = right.as_chunks::<UNROLLED>();
    for (left, right) in left.iter().zip(right) {
        for at in 0..UNROLLED {
            add_products(simd, product, &mut sums, |row| left[at][row], right[at]);
        }
    }
    for (left, &right) in left_rest.iter().zip(right_rest) {
        add_products(simd, product, &mut sums, |row| left[row], right);
    }
    sums
}

/// The same for rows of the left operand that are not packed.
#[inline(always)]
fn row_product<S: Simd, const TILE: usize>(
    simd: S,
    product: impl LaneProduct<S>,
    left: [&[f32]; TILE],
    right: &[[S::u32s; VECTORS]],
) -> [[S::f32s; VECTORS]; TILE] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TILE];
    let (left, left_rest): ([_; TILE], [_; TILE]) = (
        left.map(|row| row.as_chunks::<UNROLLED>().0),
        left.map(|row| row.as_chunks::<UNROLLED>().1),
    );
    let (right, right_rest) = right.as_chunks::<UNROLLED>();
    for (index, right) in right.iter().enumerate() {
        let left = left.map(|row| &row[index]);
        for at in 0..UNROLLED {
            add_products(
                simd,
                product,
                &mut sums,
                |row| left[row][at].to_bits(),
                right[at],
            );
        }
    }
    for (index, &right) in right_rest.iter().enumerate() {
        add_products(
            simd,
            product,
            &mut sums,
            |row| left_rest[row][index].to_bits(),
            right,
        );
    }
    sums
}

/// Adds the products of one lane of each row with vectors of the right operand.
#[inline(always)]
fn add_products<S: Simd, const TILE: usize>(
    simd: S,
    product: impl LaneProduct<S>,
    sums: &mut [[S::f32s; VECTORS]; TILE],
    left: impl Fn(usize) -> u32,
    right: [S::u32s; VECTORS],
) {
    for row in 0..TILE {
        let left = simd.splat_u32s(left(row));
        for vector in 0..VECTORS {
            sums[row][vector] = product.add(simd, sums[row][vector], left, right[vector]);
        }
    }
}
