//! Bytes on disk, dense and in each layout that a pruned model can have.

use serde::Serialize;
use sparsegpt::Pattern;
use sparsegpt::driver::PlannedLayer;
use sparsegpt_models::checkpoint::Dtype;
use sparsegpt_runtime::{BLOCK_COLS, TILE_ROWS};

/// Columns of a group where the plan quantizes without naming any.
const GROUP: usize = 128;

/// The model's weights in each layout, in bytes. Tensors that are not pruned are the same in all.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sizes {
    /// As it is; with zeros in place it is no smaller.
    pub(crate) dense: f64,
    /// The container: a bit for each weight, and the values that are not zero.
    pub(crate) bitmask: f64,
    /// The same where every layer is 2:4.
    pub(crate) two_of_four: f64,
    /// The same with 4 bit codes in place of the values.
    pub(crate) bitmask_4bit: f64,
    /// `--format gptq` with 4 bits, which has no use for zeros.
    pub(crate) gptq_4bit: f64,
}

/// The sizes of a model whose tensors take `all` bytes in the type `dtype`; `layers` are all its linear layers.
pub(crate) fn sizes(
    layers: &[Vec<PlannedLayer>],
    all: f64,
    dtype: Dtype,
    group_size: Option<usize>,
) -> Sizes {
    let value = dtype.bitsize() as f64 / 8.0;
    let treated = layers.iter().flatten().filter(|l| l.settings.is_some());
    let treated: Vec<Shape> = treated.map(|layer| Shape::of(layer, group_size)).collect();
    let weights: f64 = treated.iter().map(|layer| layer.weights()).sum();
    let others = all - value * weights;
    let with = |bytes: &dyn Fn(&Shape) -> f64| others + treated.iter().map(bytes).sum::<f64>();
    Sizes {
        dense: all,
        bitmask: with(&|layer| layer.bitmask(value)),
        two_of_four: with(&|layer| layer.two_of_four(value)),
        bitmask_4bit: with(&Shape::bitmask_4bit),
        gptq_4bit: with(&Shape::gptq_4bit),
    }
}

/// The share of zeros that a pattern asks for.
fn share(pattern: Pattern) -> f64 {
    match pattern {
        Pattern::Unstructured(sparsity) | Pattern::PerRow(sparsity) => sparsity.fraction(),
        Pattern::Blocks { sparsity, .. } => sparsity.fraction(),
        Pattern::NofM { zeros, group } | Pattern::VNofM { zeros, group, .. } => {
            zeros as f64 / group as f64
        }
        _ => 0.0,
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    cols: usize,
    zeros: f64,
    group: usize,
}

impl Shape {
    fn of(planned: &PlannedLayer, group: Option<usize>) -> Self {
        let mask = planned.settings.as_ref().map(|s| s.mask.describe());
        // Masks of a file do not tell.
        let pattern = mask.and_then(|text| text.parse().ok());
        Self {
            rows: planned.layer.rows,
            cols: planned.layer.cols,
            zeros: pattern.map_or(0.0, share),
            group: group.unwrap_or(GROUP),
        }
    }

    fn weights(&self) -> f64 {
        self.rows as f64 * self.cols as f64
    }

    fn units(&self) -> f64 {
        (self.rows * self.cols.div_ceil(BLOCK_COLS)) as f64
    }

    /// Shape, masks and offsets.
    fn masks(&self) -> f64 {
        16.0 + 8.0 * self.units() + 8.0 * (self.rows.div_ceil(TILE_ROWS) + 1) as f64
    }

    fn kept(&self) -> f64 {
        (1.0 - self.zeros) * self.weights()
    }

    fn bitmask(&self, value: f64) -> f64 {
        self.masks() + value * (self.kept() + 16.0)
    }

    fn two_of_four(&self, value: f64) -> f64 {
        // Every eight columns of a unit have a code of 6 bits and 4 values.
        26.0 + 6.0 * self.units() + value * (32.0 * self.units() + 16.0)
    }

    fn bitmask_4bit(&self) -> f64 {
        let groups = self.rows * self.cols.div_ceil(self.group);
        // A scale in f32 and a zero of a byte.
        self.masks() + 32.0 + self.kept() / 2.0 + 5.0 * groups as f64
    }

    fn gptq_4bit(&self) -> f64 {
        let groups = self.cols.div_ceil(self.group) as f64;
        // Scales in f16, zeros in 4 bits, and the group of each column.
        self.weights() / 2.0 + 2.5 * groups * self.rows as f64 + 4.0 * self.cols as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ndarray::Array2;
    use sparsegpt_runtime::{ContainerWriter, SparseLinear};

    use super::*;

    #[test]
    fn the_container_takes_what_is_foretold() {
        let (rows, cols) = (96, 200);
        // 2 zeros in each 4 columns, not the same everywhere.
        let weights = Array2::from_shape_fn((rows, cols), |(row, col)| {
            let zero = (col + row) % 4 < 2;
            if zero { 0.0 } else { 1.0 + col as f32 }
        });
        let shape = Shape {
            rows,
            cols,
            zeros: 0.5,
            group: GROUP,
        };
        let folder = tempfile::tempdir().unwrap();
        let mut sizes = Vec::new();
        let some_rows = Array2::from_shape_fn(
            (rows, cols),
            |(row, _)| if row % 2 == 0 { 0.0 } else { 1.0 },
        );
        for weights in [&weights, &some_rows] {
            let layer = SparseLinear::new(weights.view(), None).unwrap();
            let path = folder.path().join("layer.safetensors");
            let mut writer = ContainerWriter::new();
            writer.add("x", &layer).unwrap();
            writer.write(&path).unwrap();
            let bytes = std::fs::read(path).unwrap();
            let header = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            sizes.push((bytes.len() as u64 - 8 - header) as f64);
        }
        // By a pattern in codes where there is one, and by masks.
        assert_eq!(sizes[1], shape.bitmask(4.0));
        assert!(
            sizes[0] == shape.two_of_four(4.0) || sizes[0] == shape.bitmask(4.0),
            "{sizes:?}"
        );
    }

    #[test]
    fn four_bits_take_half_a_byte_and_their_grids() {
        let shape = Shape {
            rows: 256,
            cols: 512,
            zeros: 0.5,
            group: 128,
        };
        let weights = 256.0 * 512.0;
        assert_eq!(
            shape.gptq_4bit(),
            weights / 2.0 + 256.0 * 4.0 * 2.5 + 2048.0
        );
        // A mask is a bit a weight, the codes are those of half of them.
        let grids = 5.0 * 4.0 * 256.0;
        let offsets = 8.0 * 17.0;
        assert_eq!(
            shape.bitmask_4bit(),
            weights / 8.0 + weights / 4.0 + grids + offsets + 48.0
        );
    }
}
