//! The inner loops, once for every instruction set, over two ways to multiply pairs.

use faer::MatMut;
use pulp::{Simd, WithSimd};

#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512Bf16;

/// Vectors in a row of a tile.
const VECTORS: usize = 2;
/// Most lanes of a vector of any instruction set.
const LANES: usize = 16;

/// What multiplies.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Kernel {
    /// The processor's dot products.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Bf16),
    /// f32 arithmetic that gives the same values: for tests, and to measure what rounding to bf16 does.
    Emulated(pulp::Arch),
}

impl Kernel {
    /// The processor's dot products, where it has them and `arch` is not a level below them.
    pub(in super::super) fn detect(arch: pulp::Arch) -> Option<Self> {
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

    pub(in super::super) fn is_emulated(self) -> bool {
        matches!(self, Self::Emulated(_))
    }

    /// Rows and columns of a tile.
    pub(super) fn tile(self) -> (usize, usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => tile::<pulp::x86::V4>(),
            Self::Emulated(arch) => arch.dispatch(Tile),
        }
    }

    /// C += alpha·AᵀB.
    pub(super) fn add(self, block: Block<'_>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(processor) => processor.add(block),
            Self::Emulated(arch) => arch.dispatch(block),
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

/// sums + first·first + second·second in each lane, of pairs as `pack` makes them.
pub(super) trait PairProduct<S: Simd>: Copy {
    fn add(self, simd: S, sums: S::f32s, a: S::u32s, b: S::u32s) -> S::f32s;
}

#[derive(Clone, Copy)]
struct Emulated;

impl<S: Simd> PairProduct<S> for Emulated {
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

/// A block of the result and the packed operands for it.
pub(super) struct Block<'a> {
    pub(super) c: MatMut<'a, f32>,
    pub(super) alpha: f32,
    pub(super) left: &'a [u32],
    pub(super) right: &'a [u32],
    /// Pairs along the inner dimension.
    pub(super) pairs: usize,
    /// Where only the lower triangle counts: the column of this block that holds the diagonal's value in its first row.
    pub(super) diagonal: Option<isize>,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.add(simd, Emulated);
    }
}

impl Block<'_> {
    #[inline(always)]
    pub(super) fn add<S: Simd>(self, simd: S, product: impl PairProduct<S>) {
        if tile::<S>().0 == MANY_ROWS {
            self.add_tiles::<S, MANY_ROWS>(simd, product);
        } else {
            self.add_tiles::<S, FEW_ROWS>(simd, product);
        }
    }

    #[inline(always)]
    fn add_tiles<S: Simd, const TILE: usize>(mut self, simd: S, product: impl PairProduct<S>) {
        let width = VECTORS * S::F32_LANES;
        for (panel, right) in self.right.chunks_exact(self.pairs * width).enumerate() {
            let (right, _) = S::as_simd_u32s(right);
            let (right, _) = right.as_chunks();
            for (tile, left) in self.left.chunks_exact(self.pairs * TILE).enumerate() {
                let (row, col) = (tile * TILE, panel * width);
                let end = self.c.nrows().min(row + TILE);
                if self.columns_of(end - 1) <= col {
                    continue;
                }
                let (left, _) = left.as_chunks();
                let sums: [_; TILE] = tile_product(simd, product, left, right);
                // Sums that are reached by a running index would not stay in registers.
                let mut values = [[0.0; VECTORS * LANES]; TILE];
                for row in 0..TILE {
                    let (vectors, _) = S::as_mut_simd_f32s(&mut values[row]);
                    vectors[..VECTORS].copy_from_slice(&sums[row]);
                }
                for (row, values) in (row..end).zip(&values) {
                    self.add_row(simd, row, col, values);
                }
            }
        }
    }

    /// How many columns of a row count.
    #[inline(always)]
    fn columns_of(&self, row: usize) -> usize {
        let columns = self.c.ncols();
        match self.diagonal {
            Some(diagonal) => columns.min(0.max(diagonal + row as isize + 1) as usize),
            None => columns,
        }
    }

    #[inline(always)]
    fn add_row<S: Simd>(&mut self, simd: S, row: usize, col: usize, sums: &[f32]) {
        let width = VECTORS * S::F32_LANES;
        let end = self.columns_of(row).min(col + width);
        if end <= col {
            return;
        }
        let mut values = self.c.as_mut().row_mut(row).subcols_mut(col, end - col);
        if let Some(values) = values.as_mut().try_as_row_major_mut()
            && values.ncols() == width
        {
            let (values, _) = S::as_mut_simd_f32s(values.as_slice_mut());
            let (sums, _) = S::as_simd_f32s(sums);
            let alpha = simd.splat_f32s(self.alpha);
            for (to, &sum) in values.iter_mut().zip(sums) {
                *to = simd.mul_add_e_f32s(alpha, sum, *to);
            }
        } else {
            for (to, sum) in values.iter_mut().zip(sums) {
                *to += self.alpha * sum;
            }
        }
    }
}

/// The sums of a tile's products.
#[inline(always)]
fn tile_product<S: Simd, const TILE: usize>(
    simd: S,
    product: impl PairProduct<S>,
    left: &[[u32; TILE]],
    right: &[[S::u32s; VECTORS]],
) -> [[S::f32s; VECTORS]; TILE] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; TILE];
    for (left, right) in left.iter().zip(right) {
        for row in 0..TILE {
            let left = simd.splat_u32s(left[row]);
            for vector in 0..VECTORS {
                sums[row][vector] = product.add(simd, sums[row][vector], left, right[vector]);
            }
        }
    }
    sums
}
