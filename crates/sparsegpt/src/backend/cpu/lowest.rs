//! The lowest saliencies of a block, in one pass over its weights.
//!
//! A sample brackets the threshold. Then each weight is below the bracket (pruned), above it (kept), or one of
//! the few inside, among which the exact cutoff is found by quickselect.

use ndarray::{Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

/// Weights in the sample.
const SAMPLE: usize = 1 << 13;
/// Of it, what one thread collects at a time.
const SAMPLE_TASK: usize = 1 << 10;
/// Half of the bracket, in standard deviations of a sampled rank. The narrow one fails once in eighty times, and leaves two thirds
/// as many weights inside as one that hardly fails.
const DEVIATIONS: [f64; 2] = [2.5, 6.0];
/// Columns whose places inside the bracket are looked for together: the bits of a word.
const WORD: usize = 64;
/// Rows handled by one thread at a time.
const TASK_ROWS: usize = 64;

/// What is chosen from, each rows x width.
#[derive(Clone, Copy)]
pub(super) struct Candidates<'a> {
    pub(super) weights: ArrayView2<'a, f32>,
    pub(super) scales: ArrayView1<'a, f32>,
    pub(super) forced: Option<ArrayView2<'a, bool>>,
    pub(super) protected: Option<ArrayView2<'a, bool>>,
}

impl Candidates<'_> {
    /// Forced weights come before all, protected ones after all.
    #[inline(always)]
    fn rank(&self, row: usize, col: usize) -> f32 {
        let marked =
            |mask: &Option<ArrayView2<'_, bool>>| mask.is_some_and(|mask| mask[[row, col]]);
        if marked(&self.protected) {
            f32::INFINITY
        } else if marked(&self.forced) {
            -1.0
        } else {
            (self.weights[[row, col]] / self.scales[col]).abs()
        }
    }

    /// The ranks of one row.
    #[inline(always)]
    fn ranks(&self, row: usize, ranks: &mut [f32]) {
        match (self.weights.row(row).to_slice(), self.scales.to_slice()) {
            (Some(weights), Some(scales)) if self.forced.is_none() && self.protected.is_none() => {
                for ((rank, &weight), &scale) in ranks.iter_mut().zip(weights).zip(scales) {
                    *rank = (weight / scale).abs();
                }
            }
            _ => {
                for (col, rank) in ranks.iter_mut().enumerate() {
                    *rank = self.rank(row, col);
                }
            }
        }
    }
}

/// The mask of the `count` lowest, ties by column, then by row. `None` where no bracket holds the cutoff: in
/// small blocks, in those with more forced weights than the count, and where luck decides so.
pub(super) fn lowest(
    arch: pulp::Arch,
    candidates: Candidates<'_>,
    count: usize,
) -> Option<Array2<bool>> {
    let mut sample = sample(&candidates)?;
    let share = count as f64 / candidates.weights.len() as f64;
    DEVIATIONS.into_iter().find_map(|deviations| {
        let bracket = bracket(&mut sample, share, deviations)?;
        lowest_by_bracket(arch, candidates, count, bracket)
    })
}

fn lowest_by_bracket(
    arch: pulp::Arch,
    candidates: Candidates<'_>,
    count: usize,
    bracket: (f32, f32),
) -> Option<Array2<bool>> {
    let (rows, width) = candidates.weights.dim();
    let mut mask = Array2::from_elem((rows, width), false);
    let parts: Vec<Part> = mask
        .as_slice_mut()?
        .par_chunks_mut(TASK_ROWS * width)
        .enumerate()
        .map(|(task, mask)| {
            arch.dispatch(Split {
                candidates,
                first_row: task * TASK_ROWS,
                bracket,
                mask,
            })
        })
        .collect();
    let below: usize = parts.iter().map(|part| part.below).sum();
    let wanted = count.checked_sub(below)?;
    let inside: Vec<&[u64]> = parts.iter().map(|part| &part.inside[..]).collect();
    let mut inside = inside.concat();
    if wanted > inside.len() {
        return None;
    }
    if wanted > 0 && wanted < inside.len() {
        inside.select_nth_unstable(wanted - 1);
    }
    for &key in &inside[..wanted] {
        let position = (key & u64::from(u32::MAX)) as usize;
        mask[[position % rows, position / rows]] = true;
    }
    Some(mask)
}

/// Some of the ranks, the same on every call; `None` in small blocks.
fn sample(candidates: &Candidates<'_>) -> Option<Vec<f32>> {
    let (rows, width) = candidates.weights.dim();
    let sampled = SAMPLE.min(rows * width / 32);
    // From row to row, as the memory lies, in steps of about width/φ along them: even in rows and in columns, without a
    // rhythm that the weights could share.
    let step = (width as f64 * 0.618_033_988_749_895) as usize;
    let rank = |at: usize| candidates.rank(at * rows / sampled, (at + 1) * step % width);
    (sampled >= 256).then(|| {
        let sample = (0..sampled).into_par_iter().with_min_len(SAMPLE_TASK);
        sample.map(rank).collect()
    })
}

/// Two ranks between which those of a share of the weights end, most likely. The sample is reordered.
fn bracket(sample: &mut [f32], share: f64, deviations: f64) -> Option<(f32, f32)> {
    let sampled = sample.len();
    let middle = share * sampled as f64;
    let spread = deviations * (share * (1.0 - share) * sampled as f64).sqrt() + 2.0;
    // The lower end is looked for among what the search for the upper one has left below it.
    let (high, below) = match (middle + spread) as usize {
        rank if rank < sampled => {
            let (below, &mut high, _) = sample.select_nth_unstable_by(rank, f32::total_cmp);
            (high, below)
        }
        _ => (f32::MAX, sample),
    };
    let low = match (middle - spread) as usize {
        rank if rank > 0 => *below.select_nth_unstable_by(rank, f32::total_cmp).1,
        _ => 0.0,
    };
    (low >= 0.0 && high < f32::INFINITY).then_some((low, high))
}

/// What a part of the rows has below the bracket, and inside as keys of (rank, column, row).
struct Part {
    below: usize,
    inside: Vec<u64>,
}

struct Split<'a, 'b> {
    candidates: Candidates<'a>,
    first_row: usize,
    bracket: (f32, f32),
    mask: &'b mut [bool],
}

impl pulp::NullaryFnOnce for Split<'_, '_> {
    type Output = Part;

    #[inline(always)]
    fn call(self) -> Part {
        let (rows, width) = self.candidates.weights.dim();
        let (low, high) = self.bracket;
        let mut ranks = vec![0.0; width];
        let mut below = 0;
        let mut inside = Vec::with_capacity(self.mask.len() / 16);
        let mut inside_row = vec![0_u8; width.next_multiple_of(WORD)];
        for (row, mask) in self.mask.chunks_exact_mut(width).enumerate() {
            let row = self.first_row + row;
            self.candidates.ranks(row, &mut ranks);
            let mut below_row = 0_u32;
            for ((mask, inside), &rank) in mask.iter_mut().zip(&mut inside_row).zip(&ranks) {
                *mask = rank < low;
                below_row += u32::from(rank < low);
                *inside = u8::from(rank >= low) & u8::from(rank <= high);
            }
            below += below_row as usize;
            let (words, _) = inside_row.as_chunks::<WORD>();
            for (word, bytes) in words.iter().enumerate() {
                let mut bits = bits_of(bytes);
                while bits != 0 {
                    let col = word * WORD + bits.trailing_zeros() as usize;
                    let position = (col * rows + row) as u64;
                    inside.push(u64::from(ranks[col].to_bits()) << 32 | position);
                    bits &= bits - 1;
                }
            }
        }
        Part { below, inside }
    }
}

/// A bit for each byte, which is 0 or 1.
#[inline(always)]
fn bits_of(bytes: &[u8; WORD]) -> u64 {
    let (eights, _) = bytes.as_chunks::<8>();
    let mut bits = 0;
    for (at, eight) in eights.iter().enumerate() {
        // Each byte's bit is multiplied to a place of its own in the highest byte.
        let byte = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits |= byte << (8 * at);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_in_the_order_of_the_bytes() {
        for at in 0..WORD {
            let mut bytes = [0; WORD];
            (bytes[at], bytes[(at * at + 7) % WORD]) = (1, 1);
            let set = (0..WORD).filter(|&at| bytes[at] == 1);
            let expected: u64 = set.map(|at| 1 << at).sum();
            assert_eq!(bits_of(&bytes), expected);
        }
    }
}
