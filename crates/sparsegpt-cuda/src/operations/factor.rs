//! The factor of the inverse Hessian, without the inverse: H = UUᵀ from the last column to the first, blocked.
//!
//! The last group of leaves is factored, the panel above it is solved for, its product with itself is subtracted from all
//! that is left of the matrix, and so on. One subtraction of [`GROUP`] columns at a time reads and writes what is left
//! seldom enough; inside the groups the same goes by halves. A leaf is inverted where it is factored, so that
//! panels are solved by products; [`kernels::factor`](crate::kernels::factor) says how.
//!
//! Nothing here waits for the device. A failing leaf leaves its column in a word that stops the later leaves, products go on
//! with what there is, and only then the word is read.

use std::ops::Range;

use sparsegpt::backend::Precision;

use super::elementwise::{MIRROR_TILE, grid, mirror, set_diagonal};
use super::product::{Counts, Multiplication, Operand, Part, TILE, Units};
use super::{library_factor, size, size_u32};
use crate::device::{Argument, Device};
use crate::error::CudaError;
use crate::kernels::Kernel;
use crate::kernels::elementwise::{MIRROR_DOUBLE, NARROW_UPPER};
use crate::kernels::factor::FACTOR_LEAF;
use crate::kernels::factor_double::FACTOR_LEAF_DOUBLE;
use crate::matrix::{DeviceMatrix, upload_values};

const WHAT: &str = "inverse_factor";

/// Columns of a leaf at most: what one block of threads holds in registers, and what a product may overwrite in place.
const LEAF: usize = TILE;
/// Columns subtracted at a time.
const GROUP: usize = 512;
/// Columns of a part of the inverse that are multiplied at a time.
const STRIP: usize = 256;

/// See [`Backend::inverse_factor`](sparsegpt::backend::Backend::inverse_factor).
pub(crate) fn inverse_factor<D: Device>(
    device: &D,
    h: &DeviceMatrix<D>,
    diagonal: &[f32],
    blocks: &[usize],
    precision: Precision,
) -> Result<(), CudaError> {
    let cols = diagonal.len();
    if cols == 0 {
        return Ok(());
    }
    let leaves = leaves(blocks);
    let wide = match precision {
        Precision::F64 => Some(Wide::new(device, cols)?),
        _ => None,
    };
    let work = Work::new(device, h, wide.as_ref(), blocks, &leaves)?;
    let invert = || block_leaves(blocks, &leaves).try_for_each(|block| work.invert(block));
    let by_library = wide.is_none() && device.has_library_factor(cols);
    if by_library && library_factor::factor(device, h, diagonal, &pieces(blocks))? {
        return invert();
    }
    // Libraries do not agree on where a matrix fails that has no factor: the kernels decide.
    match &wide {
        Some(wide) => wide.fill(device, h, diagonal)?,
        None => {
            mirror(device, h)?;
            set_diagonal(device, h, diagonal)?;
        }
    }
    work.factor(&leaves)?;
    invert()?;
    if let Some(wide) = &wide {
        wide.narrow(device, h)?;
    }
    work.status()
}

/// The blocks, wide ones in pieces.
fn pieces(blocks: &[usize]) -> Vec<Range<usize>> {
    let starts = std::iter::once(0).chain(blocks.iter().copied());
    starts
        .zip(blocks)
        .flat_map(|(start, &end)| cut(start, end))
        .collect()
}

/// A block in pieces of a leaf's size.
fn cut(start: usize, end: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = (start..end).step_by(LEAF);
    pieces.map(move |first| first..end.min(first + LEAF))
}

/// The leaves: narrow blocks together, wide blocks in pieces.
fn leaves(blocks: &[usize]) -> Vec<Range<usize>> {
    let mut leaves: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    let mut whole_blocks = false;
    for &end in blocks {
        match leaves.last_mut() {
            Some(leaf) if whole_blocks && end - leaf.start <= LEAF => leaf.end = end,
            _ => {
                leaves.extend(cut(start, end));
                whole_blocks = end - start <= LEAF;
            }
        }
        start = end;
    }
    leaves
}

/// The leaves of each block that has several.
fn block_leaves<'a>(
    blocks: &'a [usize],
    leaves: &'a [Range<usize>],
) -> impl Iterator<Item = &'a [Range<usize>]> {
    let starts = std::iter::once(0).chain(blocks.iter().copied());
    starts.zip(blocks).filter_map(|(start, &end)| {
        let first = leaves.partition_point(|leaf| leaf.start < start);
        let last = leaves.partition_point(|leaf| leaf.end <= end);
        leaves.get(first..last).filter(|leaves| leaves.len() > 1)
    })
}

/// All columns of some leaves.
fn columns(leaves: &[Range<usize>]) -> Range<usize> {
    match leaves {
        [first, .., last] => first.start..last.end,
        [leaf] => leaf.clone(),
        [] => 0..0,
    }
}

/// Where to halve several leaves: the first leaf of the second half.
fn half(leaves: &[Range<usize>]) -> usize {
    let all = columns(leaves);
    let middle = (all.start + all.end) / 2;
    leaves
        .partition_point(|leaf| leaf.end <= middle)
        .clamp(1, leaves.len() - 1)
}

/// The upper triangle in f64.
struct Wide<D: Device> {
    buffer: D::Buffer,
    cols: usize,
}

impl<D: Device> Wide<D> {
    fn new(device: &D, cols: usize) -> Result<Self, CudaError> {
        let bytes = cols
            .checked_mul(cols)
            .and_then(|it| it.checked_mul(size_of::<f64>()));
        match bytes {
            Some(bytes) => Ok(Self {
                buffer: device.allocate(bytes)?,
                cols,
            }),
            None => Err(CudaError::OutOfMemory {
                bytes: usize::MAX,
                free: device.free_bytes()?,
            }),
        }
    }

    fn fill(&self, device: &D, h: &DeviceMatrix<D>, diagonal: &[f32]) -> Result<(), CudaError> {
        let diagonal = upload_values(device, diagonal)?;
        let tiles = size_u32(WHAT, self.cols)?.div_ceil(MIRROR_TILE);
        device.launch(
            &MIRROR_DOUBLE,
            [tiles, tiles, 1],
            &[
                Argument::Address(h.at(device, 0, 0)),
                size(WHAT, h.leading())?,
                Argument::Address(device.address(&diagonal)),
                Argument::Address(device.address(&self.buffer)),
                size(WHAT, self.cols)?,
                size(WHAT, self.cols)?,
            ],
        )
    }

    fn narrow(&self, device: &D, h: &DeviceMatrix<D>) -> Result<(), CudaError> {
        device.launch(
            &NARROW_UPPER,
            grid(WHAT, self.cols, self.cols)?,
            &[
                Argument::Address(device.address(&self.buffer)),
                size(WHAT, self.cols)?,
                Argument::Address(h.at(device, 0, 0)),
                size(WHAT, h.leading())?,
                size(WHAT, self.cols)?,
            ],
        )
    }
}

/// A factorization under way.
struct Work<'a, D: Device> {
    device: &'a D,
    units: Units,
    leaf: &'static Kernel,
    /// Bytes of a value.
    bytes: usize,
    /// The matrix whose upper triangle is factored, and the values from one row to the next.
    matrix: (u64, usize),
    /// The inverse of each leaf, in the rows of its columns, [`LEAF`] values each.
    inverses: D::Buffer,
    /// For each column the first one of its block.
    starts: D::Buffer,
    /// 0, or the failing column and 1.
    status: D::Buffer,
    /// Room for [`STRIP`] columns of a product, if any block has several leaves.
    strip: D::Buffer,
}

impl<'a, D: Device> Work<'a, D> {
    fn new(
        device: &'a D,
        h: &DeviceMatrix<D>,
        wide: Option<&Wide<D>>,
        blocks: &[usize],
        leaves: &[Range<usize>],
    ) -> Result<Self, CudaError> {
        let (units, leaf, bytes, matrix) = match wide {
            Some(wide) => {
                let matrix = (device.address(&wide.buffer), wide.cols);
                (Units::Double, &FACTOR_LEAF_DOUBLE, size_of::<f64>(), matrix)
            }
            None => {
                let units = Units::of(device.limits());
                let matrix = (h.at(device, 0, 0), h.leading());
                (units, &FACTOR_LEAF, size_of::<f32>(), matrix)
            }
        };
        let mut starts = Vec::with_capacity(h.cols);
        let mut start = 0;
        for &end in blocks {
            starts.resize(end, size_u32(WHAT, start)?);
            start = end;
        }
        // What a leaf behind a failing one does not write is then at least a number.
        let inverse_bytes = h.cols * LEAF * bytes;
        let inverses = device.allocate(inverse_bytes)?;
        device.clear(device.address(&inverses), inverse_bytes)?;
        let status = device.allocate(size_of::<u32>())?;
        device.clear(device.address(&status), size_of::<u32>())?;
        let tallest = block_leaves(blocks, leaves)
            .map(|leaves| leaves[half(leaves)].start - leaves[0].start)
            .max();
        Ok(Self {
            device,
            units,
            leaf,
            bytes,
            matrix,
            inverses,
            starts: upload_values(device, &starts)?,
            status,
            strip: device.allocate(tallest.unwrap_or(0) * STRIP * bytes)?,
        })
    }

    /// The address of a value of the matrix.
    fn at(&self, row: usize, col: usize) -> u64 {
        self.matrix.0 + ((row * self.matrix.1 + col) * self.bytes) as u64
    }

    /// The matrix from a value on, as the result of a product.
    fn from(&self, row: usize, col: usize) -> (u64, usize) {
        (self.at(row, col), self.matrix.1)
    }

    /// The same as an operand whose depth is along its rows, or along its columns.
    fn along_rows(&self, row: usize, col: usize) -> Operand {
        Operand::along_rows(self.at(row, col), self.matrix.1)
    }

    fn along_columns(&self, row: usize, col: usize) -> Operand {
        Operand::along_columns(self.at(row, col), self.matrix.1)
    }

    fn multiply(&self, product: &Multiplication) -> Result<(), CudaError> {
        product.launch(self.device, self.units)
    }

    /// Factors some leaves, of whose columns and rows everything behind has been subtracted.
    fn factor(&self, mut leaves: &[Range<usize>]) -> Result<(), CudaError> {
        while leaves.len() > 1 {
            let all = columns(leaves);
            let split = if all.len() > GROUP {
                let group = leaves.partition_point(|leaf| leaf.start + GROUP < all.end);
                group.clamp(1, leaves.len() - 1)
            } else {
                half(leaves)
            };
            let (before, last) = leaves.split_at(split);
            self.factor(last)?;
            let rows = columns(before);
            self.solve(&rows, last)?;
            self.subtract(&rows, &columns(last))?;
            leaves = before;
        }
        leaves.iter().try_for_each(|leaf| self.factor_leaf(leaf))
    }

    /// C ← C − P·Pᵀ on the upper triangle of the square at `rows`, P above the factored columns.
    fn subtract(&self, rows: &Range<usize>, factored: &Range<usize>) -> Result<(), CudaError> {
        let panel = self.along_rows(rows.start, factored.start);
        let shape = (rows.len(), rows.len(), factored.len());
        let product = Multiplication::new(shape, panel, panel, self.from(rows.start, rows.start));
        self.multiply(&Multiplication {
            part: Part::Upper,
            ..product.adding(-1.0)
        })
    }

    /// X ← X·U⁻ᵀ for X at `rows` above the factored leaves, from the last leaf to the first.
    fn solve(&self, rows: &Range<usize>, leaves: &[Range<usize>]) -> Result<(), CudaError> {
        if let [leaf] = leaves {
            // U⁻ᵀ = Rᵀ: the value at depth k and column j is R(j, k), in place.
            let inverse = Operand::along_rows(self.inverse(leaf), LEAF);
            let x = self.along_rows(rows.start, leaf.start);
            let shape = (rows.len(), leaf.len(), leaf.len());
            return self.multiply(&Multiplication {
                b_counts: Counts::From,
                ..Multiplication::new(shape, x, inverse, self.from(rows.start, leaf.start))
            });
        }
        let (left, right) = leaves.split_at(half(leaves));
        self.solve(rows, right)?;
        let (to, by) = (columns(left), columns(right));
        let product = Multiplication::new(
            (rows.len(), to.len(), by.len()),
            self.along_rows(rows.start, by.start),
            self.along_rows(to.start, by.start),
            self.from(rows.start, to.start),
        );
        self.multiply(&product.adding(-1.0))?;
        self.solve(rows, left)
    }

    /// The address of a leaf's inverse.
    fn inverse(&self, leaf: &Range<usize>) -> u64 {
        self.device.address(&self.inverses) + (leaf.start * LEAF * self.bytes) as u64
    }

    fn factor_leaf(&self, leaf: &Range<usize>) -> Result<(), CudaError> {
        self.device.launch(
            self.leaf,
            [1, 1, 1],
            &[
                Argument::Address(self.at(leaf.start, leaf.start)),
                size(WHAT, self.matrix.1)?,
                Argument::Address(self.device.address(&self.starts)),
                Argument::Address(self.inverse(leaf)),
                size(WHAT, leaf.start)?,
                size(WHAT, leaf.len())?,
                Argument::Address(self.device.address(&self.status)),
            ],
        )
    }

    /// The inverse of one block in place of its U, given the inverses of its leaves.
    fn invert(&self, leaves: &[Range<usize>]) -> Result<(), CudaError> {
        if leaves.len() < 2 {
            return Ok(());
        }
        let (left, right) = leaves.split_at(half(leaves));
        self.invert(left)?;
        self.invert(right)?;
        // With U = [A B; 0 C] and the inverses of A and C in their places: B ← −A⁻¹·(B·C⁻¹), from the last columns to the
        // first, since C⁻¹ is upper triangular and its columns need none of B's behind them.
        let (rows, by) = (columns(left), columns(right));
        let strip = self.device.address(&self.strip);
        let mut end = by.end;
        while end > by.start {
            let start = by.start + (end - by.start - 1) / STRIP * STRIP;
            let width = end - start;
            let product = Multiplication::new(
                (rows.len(), width, end - by.start),
                self.along_rows(rows.start, by.start),
                self.along_columns(by.start, start),
                (strip, STRIP),
            );
            self.multiply(&Multiplication {
                // Smaller than the columns of a matrix, which are u32.
                b_counts: Counts::UpTo((start - by.start) as i32),
                ..product
            })?;
            let product = Multiplication::new(
                (rows.len(), width, rows.len()),
                self.along_rows(rows.start, rows.start),
                Operand::along_columns(strip, STRIP),
                self.from(rows.start, start),
            );
            self.multiply(&Multiplication {
                alpha: -1.0,
                a_upper: true,
                ..product
            })?;
            end = start;
        }
        Ok(())
    }

    /// Waits for the factorization and says how it ended.
    fn status(&self) -> Result<(), CudaError> {
        let mut column = [0_u32];
        let bytes = size_of_val(&column);
        self.device.download_rows(
            bytemuck::cast_slice_mut(&mut column),
            self.device.address(&self.status),
            bytes,
            bytes,
        )?;
        match column[0].checked_sub(1) {
            Some(column) => Err(CudaError::NotPositiveDefinite {
                column: column as usize,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_blocks_share_a_leaf_and_wide_ones_are_cut() {
        assert_eq!(leaves(&[1, 2, 200]), [0..2, 2..130, 130..200]);
        assert_eq!(leaves(&[64, 128, 192]), [0..128, 128..192]);
        assert_eq!(leaves(&[100, 200]), [0..100, 100..200]);
        assert_eq!(leaves(&[300]), [0..128, 128..256, 256..300]);
        // A block behind a wide one is no part of its last piece.
        assert_eq!(leaves(&[200, 210, 220]), [0..128, 128..200, 200..220]);
        assert_eq!(
            leaves(&[10, 400, 401]),
            [0..10, 10..138, 138..266, 266..394, 394..400, 400..401]
        );
    }

    #[test]
    fn pieces_keep_narrow_blocks_apart() {
        assert_eq!(
            pieces(&[1, 2, 200, 328]),
            [0..1, 1..2, 2..130, 130..200, 200..328]
        );
    }

    #[test]
    fn blocks_of_several_leaves_are_found() {
        let blocks = [10, 400, 401, 700];
        let leaves = leaves(&blocks);
        let found: Vec<_> = block_leaves(&blocks, &leaves).map(columns).collect();
        assert_eq!(found, [10..400, 401..700]);
    }

    #[test]
    fn halves_are_never_empty() {
        for end in 2..6 {
            let leaves: Vec<_> = (0..end).map(|leaf| leaf * 128..(leaf + 1) * 128).collect();
            assert!((1..end).contains(&half(&leaves)), "{leaves:?}");
        }
        // A long leaf in front, a long one behind.
        assert_eq!(half(&[0..100, 100..101]), 1);
        assert_eq!(half(&[0..1, 1..100]), 1);
    }
}
