//! Zeros, N:M and V:N:M patterns in the weights of a checkpoint.

use serde::Serialize;

use crate::Result;
use crate::checkpoint::{Checkpoint, is_float};
use crate::decoder::{TransformerConfig, transpose};

/// Lengths of the groups of columns that [`inspect`] looks at. Longer ones would hold by chance in
/// weights without structure.
pub const GROUP_LENGTHS: [usize; 3] = [2, 4, 8];

/// Parts of the names of two-dimensional weights that are looked up, not multiplied.
const LOOKUP_TABLES: [&str; 9] = [
    "embed",
    "wte",
    "wpe",
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "shared",
    "relative_attention_bias",
    "rotary_emb",
];

/// At least `zeros` zeros in each `group` consecutive columns; written `2:4`, or with `rows`, `64:6:8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnPattern {
    /// N: zeros in a group.
    pub zeros: usize,
    /// M: columns in a group.
    pub group: usize,
    /// V, where the pattern is V:N:M: so many consecutive rows use no more than the same 2·(M − N) columns of each group.
    /// The largest power of two that holds, from 4 on (two rows do it by themselves).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
}

impl std::fmt::Display for ColumnPattern {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(rows) = self.rows {
            write!(formatter, "{rows}:")?;
        }
        write!(formatter, "{}:{}", self.zeros, self.group)
    }
}

/// What was found in the weight of one linear layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorSparsity {
    /// The weight's name in the checkpoint.
    pub name: String,
    /// Rows: first size of the stored matrix.
    pub rows: usize,
    /// Columns: second size of the stored matrix.
    pub columns: usize,
    /// Entries that are zero.
    pub zeros: u64,
    /// `zeros` over rows x columns.
    pub fraction: f64,
    /// N:M patterns that hold along every output's inputs (every row, but where weights are stored the other way
    /// round, as GPT-2's), N zeros in M columns, with the largest N for each M of
    /// [`GROUP_LENGTHS`], without those that follow from a shorter group. Empty for a weight that
    /// is all zero.
    pub patterns: Vec<ColumnPattern>,
}

/// Counts zeros and finds patterns in the weights of all linear layers (two-dimensional float
/// tensors that are no embeddings) of any model family, sorted by name. One tensor is in memory at a time.
/// `progress` is called for each tensor of the checkpoint with the tensors done and those in all; it returns
/// `false` to stop early, with what is done.
///
/// # Errors
/// If a tensor cannot be read.
pub fn inspect(
    checkpoint: &Checkpoint,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<TensorSparsity>> {
    let tensors = checkpoint.tensors();
    let mut found = Vec::new();
    let config = TransformerConfig::of(checkpoint).ok();
    let names = tensors.names();
    let of = names.len();
    for (done, name) in names.into_iter().enumerate() {
        if !progress(done, of) {
            break;
        }
        let Some(info) = tensors.info(&name) else {
            continue;
        };
        let &[rows, columns] = info.shape.as_slice() else {
            continue;
        };
        let is_table = LOOKUP_TABLES.iter().any(|part| name.contains(part));
        if !name.ends_with(".weight") || is_table || !is_float(info.dtype) {
            continue;
        }
        let values = tensors.read_f32(&name)?;
        let zeros = count_zeros(&values);
        let fraction = if values.is_empty() {
            0.0
        } else {
            zeros as f64 / values.len() as f64
        };
        let patterns = match config.as_ref().is_some_and(|c| c.stores_transposed(&name)) {
            true => column_patterns(&transpose(&values, columns), rows),
            false => column_patterns(&values, columns),
        };
        found.push(TensorSparsity {
            name,
            rows,
            columns,
            zeros: zeros as u64,
            fraction,
            patterns,
        });
    }
    Ok(found)
}

fn count_zeros(values: &[f32]) -> usize {
    values.iter().filter(|&&value| value == 0.0).count()
}

fn column_patterns(values: &[f32], columns: usize) -> Vec<ColumnPattern> {
    let mut patterns: Vec<ColumnPattern> = Vec::new();
    for group in GROUP_LENGTHS {
        if columns == 0 || !columns.is_multiple_of(group) {
            continue;
        }
        let zeros = values
            .chunks_exact(group)
            .map(count_zeros)
            .min()
            .unwrap_or(0);
        // A shorter group's pattern, repeated, already gives so many.
        let implied = patterns
            .iter()
            .map(|shorter| shorter.zeros * (group / shorter.group))
            .max()
            .unwrap_or(0);
        if zeros > implied && zeros < group {
            patterns.push(ColumnPattern {
                zeros,
                group,
                rows: sharing_rows(values, columns, zeros, group),
            });
        }
    }
    patterns
}

/// V of a V:N:M pattern, for N:M that holds.
fn sharing_rows(values: &[f32], columns: usize, zeros: usize, group: usize) -> Option<usize> {
    let surviving = 2 * (group - zeros);
    let rows = values.len() / columns;
    if surviving >= group {
        return None;
    }
    std::iter::successors(Some(4), |v| Some(2 * v))
        .take_while(|&v| rows.is_multiple_of(v) && v <= rows)
        .take_while(|&v| {
            values.chunks_exact(v * columns).all(|block| {
                (0..columns).step_by(group).all(|first| {
                    let used = (first..first + group).filter(|&column| {
                        block
                            .iter()
                            .skip(column)
                            .step_by(columns)
                            .any(|&value| value != 0.0)
                    });
                    used.count() <= surviving
                })
            })
        })
        .last()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::checkpoint::fixtures::{Model, tensor};

    fn patterns(values: &[f32], columns: usize) -> Vec<String> {
        column_patterns(values, columns)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn patterns_are_the_tightest_and_not_repeated() {
        // 2:4, hence 4:8, but not 1:2.
        assert_eq!(patterns(&[0., 0., 1., 2., 0., 3., 4., 0.], 8), ["2:4"]);
        assert_eq!(patterns(&[0., 1., 2., 0., 0., 1., 5., 0.], 4), ["1:2"]);
        // 1:4, and with the whole row 3:8, which does not follow from it.
        assert_eq!(
            patterns(&[0., 1., 2., 3., 0., 0., 4., 5.], 8),
            ["1:4", "3:8"]
        );
        assert!(patterns(&[1.; 8], 8).is_empty());
        assert!(patterns(&[0.; 8], 8).is_empty());
        assert!(patterns(&[0., 1., 0., 1., 0., 1.], 3).is_empty());
    }

    #[test]
    fn rows_that_share_their_columns_are_told() {
        // 6:8, and with it 2:4, in the first four columns for four rows, and in the others for the next four.
        let mut values = vec![0.0; 8 * 16];
        for row in 0..8 {
            let surviving = if row < 4 { [0, 1, 2, 3] } else { [4, 5, 6, 7] };
            for first in [0, 8] {
                values[row * 16 + first + surviving[row % 4]] = 1.0;
                values[row * 16 + first + surviving[(row + 1) % 4]] = 2.0;
            }
        }
        assert_eq!(patterns(&values, 16), ["2:4", "4:6:8"]);
        // A fifth column in the first four rows.
        values[1] = 0.0;
        values[4] = 1.0;
        assert_eq!(patterns(&values, 16), ["2:4", "6:8"]);
    }

    #[test]
    fn only_linear_layers_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::new(vec![
            tensor("model.embed_tokens.weight", &[2, 4], &[0.0; 8]),
            tensor("model.norm.weight", &[4], &[1.0; 4]),
            tensor(
                "model.layers.0.mlp.up_proj.weight",
                &[2, 4],
                &[0., 0., 1., 2., 0., 3., 4., 0.],
            ),
        ]);
        model.write(folder.path());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let mut calls = Vec::new();
        let found = inspect(&checkpoint, &mut |done, of| {
            calls.push((done, of));
            true
        })
        .unwrap();
        assert_eq!(calls, [(0, 3), (1, 3), (2, 3)]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "model.layers.0.mlp.up_proj.weight");
        assert_eq!((found[0].rows, found[0].columns, found[0].zeros), (2, 4, 4));
        assert!((found[0].fraction - 0.5).abs() < 1e-12);
        assert_eq!(
            found[0].patterns,
            [ColumnPattern {
                zeros: 2,
                group: 4,
                rows: None
            }]
        );
        let stopped = inspect(&checkpoint, &mut |done, _| done < 1).unwrap();
        assert!(stopped.is_empty());
    }
}
