//! The order in which the columns of a layer are swept.

use std::fmt;
use std::str::FromStr;

use ndarray::{Array1, Array2, ArrayView2, s};

use super::own;
use super::prepare::Diagonal;
use super::settings::LayerSettings;
use crate::error::{Error, Result};
use crate::mask::{BlockMask, BlockScores, MaskBlock};

/// Columns in a block of [`ColumnOrder::Rose`], as published.
const ROSE_BLOCK: usize = 128;
/// Least spread of the blocks' losses, of the largest, for which [`ColumnOrder::Rose`] moves anything.
const ROSE_SPREAD: f64 = 0.5;

/// The order in which the sweep goes through the columns of a layer. Columns that come early are made good for by more
/// others. Written and read as `natural`, `descending`, `rose`, `best`.
///
/// Which order is better depends on the layer, in either direction; groups of an N:M pattern stay together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum ColumnOrder {
    /// As the columns are.
    #[default]
    Natural,
    /// By descending diagonal of H: GPTQ's act-order. A sort of the columns, and memory for H once more, permuted.
    Descending,
    /// ROSE (Su et al. 2026, arXiv 2603.05878): by descending loss of what Wanda would prune (or a mask that is given does), blocks of
    /// 128 columns and columns within them, and only in layers where the blocks' losses differ by more than half of the largest.
    /// Where nothing is moved, as where nothing is pruned, the report tells the natural order. Some 5·rows·cols flops, and memory for H once more.
    Rose,
    /// Each of these, and the result that leaves the least error: three solutions' time.
    Best,
    /// Of one's own: [`OwnParts::order`](super::own::OwnParts::order). Has no name to be read by.
    Own,
}

impl ColumnOrder {
    const ALL: [Self; 4] = [Self::Natural, Self::Descending, Self::Rose, Self::Best];
    /// What [`Best`](Self::Best) tries beside the natural one.
    pub(super) const OTHERS: [Self; 2] = [Self::Descending, Self::Rose];

    const fn name(self) -> &'static str {
        match self {
            Self::Natural => "natural",
            Self::Descending => "descending",
            Self::Rose => "rose",
            Self::Best => "best",
            Self::Own => "own",
        }
    }

    /// The column of each place; `None` for the natural order. Only an order of one's own can fail.
    pub(super) fn columns(
        self,
        settings: &LayerSettings,
        layer: &str,
        weights: ArrayView2<'_, f32>,
        diagonal: &Diagonal,
    ) -> Result<Option<Vec<usize>>> {
        let group = settings.mask.group().max(1);
        Ok(match self {
            Self::Natural | Self::Best => None,
            Self::Descending => Some(diagonal.descending(group)),
            Self::Rose => rose(settings, weights, diagonal, group),
            Self::Own => {
                let order = own::given(settings.own.order.as_ref(), layer, "a column order")?;
                let columns = order
                    .order(weights, &diagonal.values, group)
                    .map_err(|error| error.for_layer(layer))?;
                if let Some(wrong) = not_an_order(&columns, weights.ncols(), group) {
                    return Err(Error::incompatible(
                        layer,
                        format!("{}: {wrong}", order.describe()),
                        "return each column once, and groups whole",
                    ));
                }
                Some(columns)
            }
        })
    }
}

/// What is wrong with `columns` as an order of `cols` columns whose groups stay together.
fn not_an_order(columns: &[usize], cols: usize, group: usize) -> Option<String> {
    let mut seen = vec![false; cols];
    for &column in columns {
        match seen.get_mut(column) {
            None => return Some(format!("column {column} of {cols}")),
            Some(true) => return Some(format!("column {column} comes twice")),
            Some(seen) => *seen = true,
        }
    }
    if let Some(missing) = seen.iter().position(|seen| !seen) {
        return Some(format!("column {missing} is missing"));
    }
    let torn = |columns: &&[usize]| columns.iter().any(|at| at / group != columns[0] / group);
    let torn = columns.chunks(group).find(torn)?;
    Some(format!(
        "columns {torn:?} stand where one group of {group} should"
    ))
}

impl fmt::Display for ColumnOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ColumnOrder {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|order| order.name() == text)
            .ok_or_else(|| Error::setting("order", "natural, descending, rose or best", text))
    }
}

fn rose(
    settings: &LayerSettings,
    weights: ArrayView2<'_, f32>,
    diagonal: &Diagonal,
    group: usize,
) -> Option<Vec<usize>> {
    let zeros = Zeros::asked(settings, weights, diagonal)?;
    let block = (ROSE_BLOCK / group).max(1) * group;
    let mut blocks = Vec::new();
    let mut first = 0;
    while first < weights.ncols() {
        let columns = first..(first + block).min(weights.ncols());
        let norms: Vec<f32> = diagonal.values[columns.clone()]
            .iter()
            .map(|entry| entry.sqrt())
            .collect();
        let losses = zeros.column_losses(weights.slice(s![.., columns.clone()]), &norms, first);
        let mut groups: Vec<(f64, Vec<usize>)> = losses
            .chunks(group)
            .enumerate()
            .map(|(at, losses)| {
                let start = first + at * group;
                (losses.iter().sum(), (start..start + losses.len()).collect())
            })
            .collect();
        groups.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let loss: f64 = groups.iter().map(|(loss, _)| loss).sum();
        // A column's share, so that a narrow last block is no cheap one.
        blocks.push((loss / columns.len() as f64, groups));
        first = columns.end;
    }
    let largest = blocks.iter().map(|(loss, _)| *loss).fold(0.0, f64::max);
    let least = blocks.iter().map(|(loss, _)| *loss).fold(largest, f64::min);
    if largest - least <= ROSE_SPREAD * largest {
        return None;
    }
    // A last block that is narrower keeps its place: those before it begin at the same columns as ever.
    let whole = weights.ncols() / block;
    blocks[..whole].sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let columns = blocks.into_iter().flat_map(|(_, groups)| groups);
    Some(columns.flat_map(|(_, columns)| columns).collect())
}

/// What Wanda would prune.
enum Zeros {
    /// This part of each block, the least |w|·‖x_j‖ of it.
    Fraction(f64),
    /// rows x cols.
    Mask(Array2<bool>),
}

impl Zeros {
    /// `None` where the policy prunes nothing, or cannot tell beforehand.
    fn asked(
        settings: &LayerSettings,
        weights: ArrayView2<'_, f32>,
        diagonal: &Diagonal,
    ) -> Option<Self> {
        let (rows, cols) = weights.dim();
        let original: Vec<usize> = (0..cols).collect();
        let whole = MaskBlock::whole("", rows, &original);
        let of_layer = |total: u64| Some(Self::Fraction(total as f64 / (rows * cols) as f64));
        match settings.mask.choose(&whole).ok()? {
            BlockMask::Keep => None,
            BlockMask::Lowest { total, .. } | BlockMask::LowestRuns { total, .. } => {
                of_layer(total)
            }
            BlockMask::LowestPerRow { total, .. } => of_layer((total * rows) as u64),
            BlockMask::NofM { zeros, group } => Some(Self::Fraction(zeros as f64 / group as f64)),
            BlockMask::Fixed(mask) => Some(Self::Mask(mask)),
            BlockMask::ByScores => {
                let scale = |&entry: &f32| {
                    if entry > 0.0 {
                        entry.sqrt().recip()
                    } else {
                        1.0
                    }
                };
                let scales: Array1<f32> = diagonal.values.iter().map(scale).collect();
                let scores = BlockScores {
                    weights,
                    scales: scales.view(),
                    protected: None,
                };
                let mask = settings.mask.choose_by_scores(&whole, &scores).ok()?;
                (mask.dim() == weights.dim()).then_some(Self::Mask(mask))
            }
        }
    }

    /// What each column of a block loses: the sum of its |w|·‖x_j‖ that are pruned. The block begins at column `first`.
    fn column_losses(&self, weights: ArrayView2<'_, f32>, norms: &[f32], first: usize) -> Vec<f64> {
        let score = |(row, col)| weights[(row, col)].abs() * norms[col];
        let mut losses = vec![0.0; norms.len()];
        let fraction = match self {
            Self::Fraction(fraction) => fraction,
            Self::Mask(mask) => {
                let marked = mask.slice(s![.., first..first + norms.len()]);
                for (at, _) in marked.indexed_iter().filter(|(_, pruned)| **pruned) {
                    losses[at.1] += f64::from(score(at));
                }
                return losses;
            }
        };
        let mut scores: Vec<(f32, usize)> = weights
            .indexed_iter()
            .map(|(at, _)| (score(at), at.1))
            .collect();
        let count = ((fraction * scores.len() as f64) as usize).min(scores.len());
        if count > 0 && count < scores.len() {
            scores.select_nth_unstable_by(count, |(a, _), (b, _)| a.total_cmp(b));
        }
        for &(score, col) in &scores[..count] {
            losses[col] += f64::from(score);
        }
        losses
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::Array2;

    use super::*;
    use crate::mask::Pattern;

    fn order(pattern: Pattern, weights: &Array2<f32>) -> Option<Vec<usize>> {
        let diagonal = Diagonal {
            values: vec![1.0; weights.ncols()],
            dead: vec![false; weights.ncols()],
            mean: 1.0,
        };
        let settings = LayerSettings::new(pattern);
        ColumnOrder::Rose
            .columns(&settings, "", weights.view(), &diagonal)
            .unwrap()
    }

    #[test]
    fn rose_moves_costly_blocks_and_columns_to_the_front() {
        // Block 1 costs ten times what block 0 does; in both, odd columns cost more.
        let weights = Array2::from_shape_fn((4, 256), |(_, col)| {
            let block = if col < 128 { 1.0 } else { 10.0 };
            block * if col % 2 == 1 { 2.0 } else { 1.0 }
        });
        let columns = order(
            Pattern::PerRow(crate::Sparsity::new(1.0).unwrap()),
            &weights,
        )
        .unwrap();
        assert!(columns[..64].iter().all(|&c| c >= 128 && c % 2 == 1));
        assert!(columns[64..128].iter().all(|&c| c >= 128 && c % 2 == 0));
        assert!(columns[128..192].iter().all(|&c| c < 128 && c % 2 == 1));
    }

    #[test]
    fn rose_leaves_even_layers_alone_and_groups_together() {
        let even = Array2::from_elem((4, 300), 1.0);
        assert_eq!(order(Pattern::unstructured(0.5).unwrap(), &even), None);
        let uneven =
            Array2::from_shape_fn((4, 264), |(row, col)| (1 + col / 100 * 10 + row) as f32);
        let columns = order(Pattern::n_of_m(2, 4).unwrap(), &uneven).unwrap();
        for group in columns.chunks(4) {
            assert!(group[0] % 4 == 0);
            assert!(group.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
        let mut sorted = columns;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..264));
    }
}
