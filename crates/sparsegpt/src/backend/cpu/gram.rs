//! βH + αXᵀX on the lower triangle.
//!
//! Some tokens at a time are packed into panels of a few columns, and every pair of panels is multiplied by the same
//! packed values: XᵀX has one operand, so it is packed once, without a transposition, and half precision is widened on
//! the way. A tile of the result, some columns of one panel times some of another, stays in registers for
//! [`DEPTH`] tokens. The code is generic over [`pulp::Simd`].

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::memory::{Buffers, CpuMatrix};
use crate::error::HostError;
use crate::hessian::Activations;

/// Columns in a panel: a multiple of all vectors' lengths and of [`ROWS`].
const WIDTH: usize = 48;
/// Rows of a tile of the result.
const ROWS: usize = 6;
/// Tokens whose products are summed in registers: what a tile reads of two panels fits into an L1 cache.
const DEPTH: usize = 128;
/// Values packed at a time, about (4 MiB): they stay in the caches next to the result, which is read and written once for them.
const PACKED: usize = 1 << 20;
/// Bytes of a cache line.
const LINE: usize = 64;

/// H ← βH.
pub(super) fn scale_lower(h: &mut CpuMatrix, beta: f32) {
    if beta != 1.0 {
        let stride = h.stride();
        let rows = h.padded_mut().par_chunks_mut(stride).enumerate();
        rows.for_each(|(row, values)| {
            for value in &mut values[..=row] {
                *value *= beta;
            }
        });
    }
}

/// H ← βH + αXᵀX.
pub(super) fn add_gram(
    arch: pulp::Arch,
    buffers: &Buffers,
    h: &mut CpuMatrix,
    x: Activations<'_>,
    (alpha, beta): (f32, f32),
) -> Result<(), HostError> {
    let (cols, stride) = (x.cols(), h.stride());
    let padded = cols.div_ceil(WIDTH) * WIDTH;
    let at_a_time = (PACKED / padded.max(1))
        .max(1)
        .next_multiple_of(DEPTH)
        .min(x.tokens());
    // Kept from update to update: the first touch of fresh memory takes as long as the products of a few hundred columns.
    let mut buffer = buffers.any(1, at_a_time * padded + LINE / size_of::<f32>())?;
    for start in (0..x.tokens()).step_by(at_a_time.max(1)) {
        let tokens = x.slice_tokens(start, x.tokens().min(start + at_a_time));
        let packed = pack(tokens, buffer.padded_mut());
        let beta = if start == 0 { beta } else { 1.0 };
        h.padded_mut()
            .par_chunks_mut(WIDTH * stride)
            .take(cols.div_ceil(WIDTH))
            .enumerate()
            // Later panels are longer: they go one by one to whoever is free.
            .with_max_len(1)
            .for_each(|(panel, rows)| {
                arch.dispatch(PanelRows {
                    rows,
                    stride,
                    cols,
                    panel,
                    packed,
                    scales: (alpha, beta),
                });
            });
    }
    if x.tokens() == 0 {
        scale_lower(h, beta);
    }
    Ok(())
}

/// Tokens in slabs of [`DEPTH`], a slab in panels of [`WIDTH`] columns, a panel token by token; columns that a panel
/// has too many are zero.
#[derive(Clone, Copy)]
struct Packed<'a> {
    values: &'a [f32],
    tokens: usize,
    panels: usize,
}

impl<'a> Packed<'a> {
    /// One panel of each slab.
    fn panel(self, panel: usize) -> impl Iterator<Item = &'a [f32]> {
        let slab = DEPTH * self.panels * WIDTH;
        self.values
            .chunks(slab)
            .zip((0..self.tokens).step_by(DEPTH))
            .map(move |(values, start)| {
                let len = DEPTH.min(self.tokens - start) * WIDTH;
                &values[panel * len..(panel + 1) * len]
            })
    }
}

fn pack<'b>(x: Activations<'_>, buffer: &'b mut [f32]) -> Packed<'b> {
    let (tokens, cols) = (x.tokens(), x.cols());
    let panels = cols.div_ceil(WIDTH);
    let len = tokens * panels * WIDTH;
    // No load of a whole vector crosses a line.
    let start = buffer.as_ptr().align_offset(LINE).min(buffer.len() - len);
    let values = &mut buffer[start..start + len];
    values
        .par_chunks_mut(DEPTH * panels * WIDTH)
        .enumerate()
        .for_each_init(
            || vec![0.0; panels * WIDTH],
            |row, (slab, values)| {
                let depth = values.len() / (panels * WIDTH);
                for token in 0..depth {
                    x.widen_token(slab * DEPTH + token, &mut row[..cols]);
                    let panels = values.chunks_exact_mut(depth * WIDTH);
                    for (panel, row) in panels.zip(row.chunks_exact(WIDTH)) {
                        panel[token * WIDTH..(token + 1) * WIDTH].copy_from_slice(row);
                    }
                }
            },
        );
    Packed {
        values,
        tokens,
        panels,
    }
}

/// The rows of H for the columns of one panel.
struct PanelRows<'a> {
    rows: &'a mut [f32],
    stride: usize,
    cols: usize,
    panel: usize,
    packed: Packed<'a>,
    /// α, and β where these are the first tokens.
    scales: (f32, f32),
}

impl WithSimd for PanelRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Sums, vectors of the other panel, and a value for all lanes fit into the registers.
        if S::REGISTER_COUNT >= 32 {
            self.add::<S, 3>(simd);
        } else {
            self.add::<S, 2>(simd);
        }
    }
}

impl PanelRows<'_> {
    #[inline(always)]
    fn add<S: Simd, const VECTORS: usize>(self, simd: S) {
        let Self {
            rows,
            stride,
            cols,
            panel,
            packed,
            scales: (alpha, beta),
        } = self;
        let tile_width = VECTORS * S::F32_LANES;
        for other in 0..=panel {
            let slabs = packed.panel(panel).zip(packed.panel(other));
            for (slab, (own, others)) in slabs.enumerate() {
                let scales = (alpha, if slab == 0 { beta } else { 1.0 });
                for at in (0..WIDTH).step_by(tile_width) {
                    let first = other * WIDTH + at;
                    for row in (0..WIDTH).step_by(ROWS) {
                        if panel * WIDTH + row + ROWS <= first {
                            continue;
                        }
                        let sums = tile::<S, VECTORS>(simd, (own, row), (others, at));
                        for (row, sum) in (row..).zip(&sums) {
                            let column = panel * WIDTH + row;
                            // Only what is left of the diagonal.
                            let end = (first + tile_width).min(column + 1);
                            if column < cols && first < end {
                                let values = &mut rows[row * stride + first..row * stride + end];
                                scale_and_add::<S, VECTORS>(simd, values, scales, sum);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Σ over tokens of some columns of one panel times some of another, each given with the first of them.
#[inline(always)]
fn tile<S: Simd, const VECTORS: usize>(
    simd: S,
    (own, row): (&[f32], usize),
    (others, at): (&[f32], usize),
) -> [[S::f32s; VECTORS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let (own, _) = own.as_chunks::<WIDTH>();
    let (others, _) = S::as_simd_f32s(others);
    let others = others.chunks_exact(WIDTH / S::F32_LANES);
    for (own, others) in own.iter().zip(others) {
        let others = others[at / S::F32_LANES..].first_chunk::<VECTORS>();
        let (Some(own), Some(others)) = (own[row..].first_chunk::<ROWS>(), others) else {
            break;
        };
        for r in 0..ROWS {
            let value = simd.splat_f32s(own[r]);
            for v in 0..VECTORS {
                sums[r][v] = simd.mul_add_e_f32s(value, others[v], sums[r][v]);
            }
        }
    }
    sums
}

/// values ← β·values + α·sum, for the first values of a tile's row.
#[inline(always)]
fn scale_and_add<S: Simd, const VECTORS: usize>(
    simd: S,
    values: &mut [f32],
    (alpha, beta): (f32, f32),
    sum: &[S::f32s; VECTORS],
) {
    let (alphas, betas) = (simd.splat_f32s(alpha), simd.splat_f32s(beta));
    let added = |old, sum| simd.mul_add_e_f32s(alphas, sum, simd.mul_f32s(betas, old));
    let (vectors, rest) = S::as_mut_simd_f32s(values);
    let whole = vectors.len();
    for (value, &sum) in vectors.iter_mut().zip(sum) {
        *value = added(*value, sum);
    }
    if let Some(&sum) = sum.get(whole)
        && !rest.is_empty()
    {
        let old = simd.partial_load_f32s(rest);
        simd.partial_store_f32s(rest, added(old, sum));
    }
}
