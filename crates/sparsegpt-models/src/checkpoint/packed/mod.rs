//! Quantized layers as other engines load them: GPTQ's layout (version 1) and compressed-tensors' `pack-quantized`.
//!
//! Of a layer X of rows x cols (output x input features), with codes c, scales s and zeros z, w = (c - z) s:
//!
//! | format | tensor | type and shape | holds |
//! |---|---|---|---|
//! | gptq | `X.qweight` | i32, cols·bits/32 x rows | each row's codes, a stream of words down a column |
//! | | `X.qzeros` | i32, groups x rows·bits/32 | z - 1 of all rows |
//! | | `X.scales` | f16, groups x rows | s |
//! | | `X.g_idx` | i32, cols | the group of each column |
//! | compressed-tensors | `X.weight_packed` | i32, rows x ⌈cols·bits/32⌉ | each row's codes |
//! | | `X.weight_scale` | f16, bf16 or f32, rows x groups | s |
//! | | `X.weight_zero_point` | i32, ⌈rows·bits/32⌉ x groups | z of all rows; only where the grid is not symmetric |
//! | | `X.weight_shape` | i64, 2 | rows, cols |
//!
//! Readers of GPTQ's version 1 disagree about a zero point of 0, whose stored -1 some of them add up to 16 and others carry
//! into the next zero point. So such a grid is refused here, and [`LeastZero`] keeps the solver from making one.

mod bits;
mod config;
mod grid;
mod proof;
pub(super) mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use ndarray::Array2;
use safetensors::Dtype;
use sparsegpt::PrunedLayer;
use sparsegpt::quant::{GridLevels, QuantizedLayer};

use super::ShardLayout;
use super::dtype::{encode, round_through};
use crate::{Error, Result, TensorInfo};
use bits::{pack, words};

pub use grid::LeastZero;

/// Sizes below this are no use to any kernel that reads groups.
const SMALLEST_GROUP: usize = 8;

/// A layout of quantized layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PackedFormat {
    /// qweight, qzeros, scales, g_idx; version 1.
    Gptq,
    /// compressed-tensors, `pack-quantized`.
    CompressedTensors,
}

impl PackedFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Gptq, Self::CompressedTensors];

    /// The name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gptq => "gptq",
            Self::CompressedTensors => "compressed-tensors",
        }
    }

    /// Bits a weight that readers of the format take.
    #[must_use]
    pub fn bits(self) -> &'static [u32] {
        match self {
            Self::Gptq => &[2, 3, 4, 8],
            Self::CompressedTensors => &[2, 3, 4, 5, 6, 7, 8],
        }
    }

    /// What comes behind a layer's name in that of its scales.
    pub(super) fn scales(self) -> &'static str {
        match self {
            Self::Gptq => "scales",
            Self::CompressedTensors => "weight_scale",
        }
    }

    /// The type of the scales in a checkpoint whose other weights have the type `dtype`.
    #[must_use]
    pub fn scale_type(self, dtype: Dtype) -> Dtype {
        match (self, dtype) {
            (Self::Gptq, _) => Dtype::F16,
            (Self::CompressedTensors, Dtype::F16 | Dtype::BF16) => dtype,
            (Self::CompressedTensors, _) => Dtype::F32,
        }
    }
}

impl fmt::Display for PackedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PackedFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|format| format.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(" or ");
            Error::setting("format", names, format!("{name:?}"))
        })
    }
}

/// One grid for all layers, as these formats have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedScheme {
    /// The layout.
    pub format: PackedFormat,
    /// Bits a weight.
    pub bits: u32,
    /// Columns of a group; `None` for one scale a row.
    pub group_size: Option<usize>,
    /// Whether zero is the middle of every grid.
    pub symmetric: bool,
    /// Whether groups are not runs of columns (act-order with grids found on the way).
    pub permuted: bool,
}

/// A layer to be packed: its name without `.weight`, output and input features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedShape {
    /// As in `model.layers.0.mlp.up_proj`.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}

/// The layers of a checkpoint that are packed, by name.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub(super) scheme: PackedScheme,
    pub(super) layers: BTreeMap<String, PackedShape>,
}

impl PackedScheme {
    /// Whether the format can hold these layers.
    ///
    /// # Errors
    /// For bits that its readers do not take, permuted groups where it has none, a group size that does not divide a
    /// layer's columns (the error names those that divide all), and layers whose sizes fill no whole words.
    pub fn check(&self, layers: &[PackedShape]) -> Result<()> {
        let format = self.format;
        if !format.bits().contains(&self.bits) {
            return Err(Error::setting(
                "bits",
                format!("one of {:?} for the format {format}", format.bits()),
                self.bits,
            ));
        }
        if self.permuted && format == PackedFormat::CompressedTensors {
            return Err(Error::setting(
                "order",
                "groups that are runs of columns: the format compressed-tensors has no others any more; give --static-groups, or no --act-order",
                "groups in the order of processing",
            ));
        }
        if let Some(size) = self.group_size
            && let Some(layer) = layers.iter().find(|l| size == 0 || l.cols % size != 0)
        {
            let common = layers.iter().fold(0, |gcd, layer| gcd_of(gcd, layer.cols));
            let sizes: Vec<String> = (SMALLEST_GROUP..=common)
                .step_by(SMALLEST_GROUP)
                .filter(|size| common % size == 0)
                .map(|size| size.to_string())
                .collect();
            return Err(Error::setting(
                "group size",
                format!(
                    "one that divides the {} columns of {}: {} divide those of all layers",
                    layer.cols,
                    layer.name,
                    match sizes.is_empty() {
                        true => "no multiples of 8".to_owned(),
                        false => sizes.join(", "),
                    }
                ),
                size,
            ));
        }
        if format == PackedFormat::Gptq {
            let fills = |count: usize| (count * self.bits as usize).is_multiple_of(32);
            let odd = layers.iter().find(|l| !fills(l.rows) || !fills(l.cols));
            if let Some(layer) = odd {
                return Err(Error::tensor(
                    &layer.name,
                    format!(
                        "is {} x {}, and {} bits of its rows or columns fill no whole 32-bit words, as the format gptq has to; skip the layer",
                        layer.rows, layer.cols, self.bits
                    ),
                ));
            }
        }
        Ok(())
    }

    fn groups(&self, cols: usize) -> usize {
        self.group_size.map_or(1, |size| cols.div_ceil(size))
    }

    /// The tensors of a layer, in a checkpoint whose weight had the type `dtype`.
    fn parts(&self, layer: &PackedShape, dtype: Dtype) -> Vec<(String, TensorInfo)> {
        let (rows, cols) = (layer.rows, layer.cols);
        let groups = self.groups(cols);
        let scales = self.format.scale_type(dtype);
        let part = |name: &str, dtype, shape: &[usize]| {
            let info = TensorInfo {
                dtype,
                shape: shape.to_vec(),
            };
            (format!("{}.{name}", layer.name), info)
        };
        let words = |codes| words(codes, self.bits);
        match self.format {
            PackedFormat::Gptq => vec![
                part("qweight", Dtype::I32, &[words(cols), rows]),
                part("qzeros", Dtype::I32, &[groups, words(rows)]),
                part(self.format.scales(), scales, &[groups, rows]),
                part("g_idx", Dtype::I32, &[cols]),
            ],
            PackedFormat::CompressedTensors => {
                let mut parts = vec![
                    part("weight_packed", Dtype::I32, &[rows, words(cols)]),
                    part(self.format.scales(), scales, &[rows, groups]),
                    part("weight_shape", Dtype::I64, &[2]),
                ];
                if !self.symmetric {
                    let shape = [words(rows), groups];
                    parts.push(part("weight_zero_point", Dtype::I32, &shape));
                }
                parts
            }
        }
    }
}

fn gcd_of(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        b => gcd_of(b, a % b),
    }
}

impl Packed {
    /// The layout of a file in which the packed layers' weights are replaced by their parts.
    pub(super) fn layout(&self, layout: ShardLayout) -> ShardLayout {
        let tensors = layout.tensors.into_iter().flat_map(|(name, info)| {
            let layer = name
                .strip_suffix(".weight")
                .and_then(|n| self.layers.get(n));
            match layer {
                Some(layer) => self.scheme.parts(layer, info.dtype),
                None => vec![(name, info)],
            }
        });
        ShardLayout {
            tensors: tensors.collect(),
            ..layout
        }
    }

    /// The bytes of a layer's parts, in the order of [`PackedScheme::parts`].
    pub(super) fn encode(
        &self,
        name: &str,
        layer: &QuantizedLayer,
        scale_type: Dtype,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let scheme = &self.scheme;
        let refuse = |reason: String| Error::tensor(name, reason);
        let Some(shape) = self.layers.get(name) else {
            return Err(refuse("is none of the layers to be packed".to_owned()));
        };
        let groups = scheme.groups(shape.cols);
        let fits = layer.codes.dim() == (shape.rows, shape.cols)
            && layer.scale.dim() == (shape.rows, groups)
            && layer.levels
                == GridLevels::Affine {
                    max_code: (1 << scheme.bits) - 1,
                };
        if !fits {
            return Err(refuse(format!(
                "its grid ({:?} codes, {:?} scales) is not the one of {} bits that the checkpoint is written with",
                layer.codes.dim(),
                layer.scale.dim(),
                scheme.bits
            )));
        }
        let bits = scheme.bits;
        let middle = (1 << (bits - 1)) as f32;
        if scheme.symmetric && layer.zero.iter().any(|&zero| zero != middle) {
            return Err(refuse("its grid is not symmetric".to_owned()));
        }
        let codes = |row: usize| {
            layer
                .codes
                .row(row)
                .into_iter()
                .map(|&code| u32::from(code))
        };
        let zeros = |group: usize, less: u32| {
            let of_rows: Vec<u32> = layer.zero.column(group).iter().map(|&z| z as u32).collect();
            pack(of_rows.into_iter().map(move |zero| zero - less), bits)
        };
        let scales = |matrix: &Array2<f32>| -> Result<Vec<u8>> {
            let values: Vec<f32> = matrix.iter().copied().collect();
            Ok(encode(name, scale_type, &values)?.bytes)
        };
        let part = |part: &str, bytes| (format!("{name}.{part}"), bytes);
        let parts = match scheme.format {
            PackedFormat::Gptq => {
                if let Some(((row, group), _)) = layer.zero.indexed_iter().find(|(_, z)| **z < 1.0)
                {
                    return Err(refuse(format!(
                        "row {row}, group {group}: zero point 0, which the format gptq stores as -1 and its readers take differently; use a symmetric grid"
                    )));
                }
                let rows: Vec<Vec<u32>> =
                    (0..shape.rows).map(|row| pack(codes(row), bits)).collect();
                let down =
                    (0..words(shape.cols, bits)).flat_map(|at| rows.iter().map(move |r| r[at]));
                let all_zeros = (0..groups).flat_map(|group| zeros(group, 1));
                let index = layer.group_of_column.iter().map(|&group| group as u32);
                vec![
                    part("qweight", little_endian(down)),
                    part("qzeros", little_endian(all_zeros)),
                    part(scheme.format.scales(), scales(&layer.scale.t().to_owned())?),
                    part("g_idx", little_endian(index)),
                ]
            }
            PackedFormat::CompressedTensors => {
                let rows = (0..shape.rows).flat_map(|row| pack(codes(row), bits));
                let sizes = [shape.rows as i64, shape.cols as i64];
                let mut parts = vec![
                    part("weight_packed", little_endian(rows)),
                    part(scheme.format.scales(), scales(&layer.scale)?),
                    part(
                        "weight_shape",
                        sizes.into_iter().flat_map(i64::to_le_bytes).collect(),
                    ),
                ];
                if !scheme.symmetric {
                    let columns: Vec<Vec<u32>> = (0..groups).map(|group| zeros(group, 0)).collect();
                    let down = (0..words(shape.rows, bits))
                        .flat_map(|at| columns.iter().map(move |column| column[at]));
                    parts.push(part("weight_zero_point", little_endian(down)));
                }
                parts
            }
        };
        Ok(parts)
    }
}

fn little_endian(words: impl Iterator<Item = u32>) -> Vec<u8> {
    words.flat_map(u32::to_le_bytes).collect()
}

/// Rounds a layer's scales to the type that they are stored in, and its weights to what a reader makes of that: (c - z) s,
/// in the scales' type. So what is calibrated behind this layer is calibrated on the checkpoint that is written.
///
/// # Errors
/// If a scale becomes 0 or infinite.
pub fn round_to_scales(name: &str, layer: &mut PrunedLayer, scale_type: Dtype) -> Result<()> {
    let Some(quantized) = &mut layer.quantized else {
        return Ok(());
    };
    quantized.scale.mapv_inplace(|scale| match scale_type {
        Dtype::F16 => f16::from_f32(scale).to_f32(),
        Dtype::BF16 => bf16::from_f32(scale).to_f32(),
        _ => scale,
    });
    let broken = quantized.scale.iter().find(|s| !s.is_normal());
    if let Some(scale) = broken {
        let reason = format!("a scale becomes {scale} in {scale_type}; choose another dtype");
        return Err(Error::tensor(name, reason));
    }
    let weights = quantized.dequantize();
    let dim = weights.dim();
    let (values, _) = weights.into_raw_vec_and_offset();
    let values = round_through(name, scale_type, values)?;
    layer.weights = Array2::from_shape_vec(dim, values)
        .map_err(|error| Error::tensor(name, error.to_string()))?;
    Ok(())
}
