//! Quantized layers read back: codes and grids of GPTQ's layout (versions 1 and 2) and of compressed-tensors' `pack-quantized`,
//! as the table in [`super`] has them. Sizes are taken from the tensors themselves, and must agree with each other.

use ndarray::Array2;
use safetensors::Dtype;
use serde_json::Value;
use sparsegpt_runtime::{BLOCK_COLS, Codes, QuantizedLinear, QuantizedMatrix, Width};

use super::bits::{unpack, words};
use super::{PackedFormat, PackedScheme, PackedShape};
use crate::checkpoint::CheckpointSource;
use crate::checkpoint::dtype::decode;
use crate::checkpoint::shard::StoredBytes;
use crate::{Error, Result, TensorInfo};

/// What `quantization_config` says of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct ReadScheme {
    format: PackedFormat,
    bits: u32,
    /// Columns of a group; `None`: all.
    group_size: Option<usize>,
    /// Added to what is stored of a zero point.
    zero_offset: u16,
}

/// Codes and grids of one layer.
#[derive(Clone, Debug)]
pub(in super::super) struct ReadLayer {
    bits: u32,
    /// Columns of a group, where groups are runs.
    group: usize,
    /// rows x cols.
    codes: Array2<u8>,
    /// rows x groups.
    scales: Array2<f32>,
    /// rows x groups; version 1 of GPTQ's goes one beyond the codes.
    zeros: Array2<u16>,
    group_of_column: Vec<usize>,
}

impl From<PackedScheme> for ReadScheme {
    /// Of what this project writes.
    fn from(scheme: PackedScheme) -> Self {
        Self {
            format: scheme.format,
            bits: scheme.bits,
            group_size: scheme.group_size,
            zero_offset: match scheme.format {
                PackedFormat::Gptq => 1,
                PackedFormat::CompressedTensors => 0,
            },
        }
    }
}

impl ReadScheme {
    /// Of a `quantization_config`.
    pub(in super::super) fn of(config: &Value) -> Result<Self> {
        match text(config, "quant_method") {
            Some("gptq") => Ok(Self {
                format: PackedFormat::Gptq,
                bits: bits(config, "bits", PackedFormat::Gptq)?,
                group_size: group_size(config)?,
                zero_offset: match text(config, "checkpoint_format") {
                    None | Some("gptq") => 1,
                    Some("gptq_v2") => 0,
                    Some(other) => {
                        let reason = format!("{other:?} is not supported; gptq and gptq_v2 are");
                        return Err(wrong("checkpoint_format", reason));
                    }
                },
            }),
            Some("compressed-tensors") => {
                if text(config, "format") != Some("pack-quantized") {
                    let found = text(config, "format");
                    let reason = format!("{found:?} is not supported; pack-quantized is");
                    return Err(wrong("format", reason));
                }
                let groups = config.get("config_groups").and_then(Value::as_object);
                let mut groups = groups.into_iter().flatten();
                let (Some((_, group)), None) = (groups.next(), groups.next()) else {
                    return Err(wrong("config_groups", "expected one group"));
                };
                let weights = group.get("weights").unwrap_or(&Value::Null);
                if text(weights, "type") != Some("int") {
                    return Err(wrong("config_groups", "expected weights of the type int"));
                }
                if group
                    .get("input_activations")
                    .is_some_and(|of| !of.is_null())
                {
                    let reason = "quantized activations are not supported";
                    return Err(wrong("config_groups", reason));
                }
                Ok(Self {
                    format: PackedFormat::CompressedTensors,
                    bits: bits(weights, "num_bits", PackedFormat::CompressedTensors)?,
                    group_size: group_size(weights)?,
                    zero_offset: 0,
                })
            }
            other => Err(wrong(
                "quant_method",
                format!(
                    "{other:?} is not supported; gptq and compressed-tensors are; or start from the float checkpoint"
                ),
            )),
        }
    }

    /// The endings, with the dot, of the tensors that a packed layer is made of; the first is that of its codes.
    pub(in super::super) fn endings(self) -> &'static [&'static str] {
        match self.format {
            PackedFormat::Gptq => &[".qweight", ".qzeros", ".scales", ".g_idx"],
            PackedFormat::CompressedTensors => &[
                ".weight_packed",
                ".weight_scale",
                ".weight_zero_point",
                ".weight_shape",
                ".weight_g_idx",
            ],
        }
    }

    /// Name, rows and columns of a layer, by the shapes of its tensors alone.
    pub(in super::super) fn shape(
        self,
        tensors: &dyn CheckpointSource,
        name: &str,
    ) -> Result<PackedShape> {
        let bits = self.bits as usize;
        let (rows, cols) = match self.format {
            PackedFormat::Gptq => {
                let [stream, rows] = sides(tensors, &format!("{name}.qweight"), Dtype::I32)?;
                if stream.checked_mul(32).is_none_or(|all| all % bits != 0) {
                    return Err(Error::tensor(
                        format!("{name}.qweight"),
                        format!("{stream} words hold no whole number of codes of {bits} bits"),
                    ));
                }
                (rows, stream * 32 / bits)
            }
            PackedFormat::CompressedTensors => {
                let of = format!("{name}.weight_shape");
                let (info, bytes) = required(tensors, &of)?;
                let sides: Vec<usize> = bytes
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .filter_map(|&side| usize::try_from(i64::from_le_bytes(side)).ok())
                    .collect();
                let (Dtype::I64, [rows, cols]) = (info.dtype, sides.as_slice()) else {
                    return Err(Error::tensor(of, "expected rows and columns in i64"));
                };
                let [found, stream] =
                    self::sides(tensors, &format!("{name}.weight_packed"), Dtype::I32)?;
                let fits = cols
                    .checked_mul(bits)
                    .is_some_and(|all| all.div_ceil(32) == stream);
                if found != *rows || !fits {
                    return Err(Error::tensor(
                        format!("{name}.weight_packed"),
                        format!(
                            "{found} x {stream} words do not hold {rows} x {cols} codes of {bits} bits"
                        ),
                    ));
                }
                (*rows, *cols)
            }
        };
        let name = name.to_owned();
        Ok(PackedShape { name, rows, cols })
    }

    /// Reads a layer.
    pub(in super::super) fn read(
        self,
        tensors: &dyn CheckpointSource,
        shape: &PackedShape,
    ) -> Result<ReadLayer> {
        let PackedShape { name, rows, cols } = shape;
        let (rows, cols, bits) = (*rows, *cols, self.bits);
        let at = |part: &str| format!("{name}.{part}");
        let (row_words, zero_words) = (words(cols, bits), words(rows, bits));
        let group = self.group_size.unwrap_or(cols).min(cols);
        let listed = |part: &str| match tensors.info(&at(part)) {
            Some(_) => read_words(tensors, &at(part), [cols]).map(Some),
            None => Ok(None),
        };
        let mut codes = Array2::zeros((rows, cols));
        let mut put = |row: usize, stream: &mut dyn Iterator<Item = u32>| {
            let unpacked = unpack(stream, bits, cols);
            for (code, found) in codes.row_mut(row).iter_mut().zip(unpacked) {
                *code = found as u8;
            }
        };
        let (scales, zeros, group_of_column) = match self.format {
            PackedFormat::Gptq => {
                let weight = read_words(tensors, &at("qweight"), [row_words, rows])?;
                for row in 0..rows {
                    put(
                        row,
                        &mut (0..row_words).map(|word| weight[word * rows + row]),
                    );
                }
                let (scales, groups) = read_scales(tensors, &at("scales"), rows, true)?;
                let packed = read_words(tensors, &at("qzeros"), [groups, zero_words])?;
                let mut zeros = Array2::<u16>::zeros((rows, groups));
                for (group, stream) in packed.chunks(zero_words.max(1)).enumerate() {
                    let unpacked = unpack(stream.iter().copied(), bits, rows);
                    for (row, zero) in unpacked.into_iter().enumerate() {
                        zeros[[row, group]] = zero as u16 + self.zero_offset;
                    }
                }
                let listed = listed("g_idx")?;
                (
                    scales,
                    zeros,
                    groups_of(&at("g_idx"), listed, groups, (group, cols))?,
                )
            }
            PackedFormat::CompressedTensors => {
                let weight = read_words(tensors, &at("weight_packed"), [rows, row_words])?;
                for (row, stream) in weight.chunks(row_words.max(1)).enumerate() {
                    put(row, &mut stream.iter().copied());
                }
                let (scales, groups) = read_scales(tensors, &at("weight_scale"), rows, false)?;
                let mut zeros = Array2::from_elem((rows, groups), 1_u16 << (bits - 1));
                if tensors.info(&at("weight_zero_point")).is_some() {
                    let packed =
                        read_words(tensors, &at("weight_zero_point"), [zero_words, groups])?;
                    for group in 0..groups {
                        let stream = (0..zero_words).map(|word| packed[word * groups + group]);
                        for (row, zero) in unpack(stream, bits, rows).into_iter().enumerate() {
                            zeros[[row, group]] = zero as u16;
                        }
                    }
                }
                let listed = listed("weight_g_idx")?;
                (
                    scales,
                    zeros,
                    groups_of(&at("weight_g_idx"), listed, groups, (group, cols))?,
                )
            }
        };
        if let Some(scale) = scales.iter().find(|scale| !scale.is_finite()) {
            return Err(Error::tensor(
                name,
                format!("a scale is {scale}, expected finite numbers"),
            ));
        }
        Ok(ReadLayer {
            bits,
            group,
            codes,
            scales,
            zeros,
            group_of_column,
        })
    }
}

impl ReadLayer {
    /// Which weights are zero: those whose code is their zero point.
    pub(super) fn zeros(&self) -> Array2<bool> {
        Array2::from_shape_fn(self.codes.dim(), |(row, col)| {
            let group = self.group_of_column[col];
            u16::from(self.codes[[row, col]]) == self.zeros[[row, group]]
        })
    }

    /// w = (c - z) s, in f32.
    pub(in super::super) fn weights(&self) -> Array2<f32> {
        Array2::from_shape_fn(self.codes.dim(), |(row, col)| {
            let group = self.group_of_column[col];
            let steps = i32::from(self.codes[[row, col]]) - i32::from(self.zeros[[row, group]]);
            steps as f32 * self.scales[[row, group]]
        })
    }

    /// The layer for the sparse runtime, where that has its kind: groups that are runs of columns, of a width of blocks, and
    /// zero points that are codes. Stored sparse, whatever its density, if `sparse`.
    pub(in super::super) fn linear(&self, sparse: bool) -> Result<Option<QuantizedLinear>> {
        let (cols, group) = (self.codes.ncols(), self.group);
        let width = if self.bits <= 4 {
            Width::Four
        } else {
            Width::Eight
        };
        let most = u16::from(u8::MAX >> (8 - width.bits()));
        let is_run = |(col, &of): (usize, &usize)| of == col / group;
        let fits = (group.is_multiple_of(BLOCK_COLS) || group >= cols)
            && self.group_of_column.iter().enumerate().all(is_run)
            && self.scales.ncols() == cols.div_ceil(group)
            && self.zeros.iter().all(|&zero| zero <= most);
        if !fits {
            return Ok(None);
        }
        let zeros = self.zeros.mapv(|zero| zero as u8);
        let codes = Codes {
            width,
            codes: self.codes.view(),
            scales: self.scales.view(),
            zeros: zeros.view(),
            group,
        };
        Ok(Some(match sparse {
            true => QuantizedLinear::sparse(QuantizedMatrix::from_codes(&codes)?, None)?,
            false => QuantizedLinear::new(&codes, None)?,
        }))
    }
}

fn wrong(key: &str, reason: impl Into<String>) -> Error {
    Error::config(format!("quantization_config.{key}"), reason)
}

fn text<'v>(of: &'v Value, key: &str) -> Option<&'v str> {
    of.get(key).and_then(Value::as_str)
}

fn bits(of: &Value, key: &str, format: PackedFormat) -> Result<u32> {
    let found = of.get(key);
    let bits = found
        .and_then(Value::as_u64)
        .and_then(|bits| u32::try_from(bits).ok());
    bits.filter(|bits| format.bits().contains(bits))
        .ok_or_else(|| {
            wrong(
                key,
                format!("expected one of {:?} bits, found {found:?}", format.bits()),
            )
        })
}

/// Columns of a group; absent, null and -1 stand for all.
fn group_size(of: &Value) -> Result<Option<usize>> {
    let Some(size) = of.get("group_size").filter(|size| !size.is_null()) else {
        return Ok(None);
    };
    if size.as_i64() == Some(-1) {
        return Ok(None);
    }
    let columns = size.as_u64().and_then(|size| usize::try_from(size).ok());
    match columns {
        Some(columns) if columns > 0 => Ok(Some(columns)),
        _ => Err(wrong(
            "group_size",
            format!("expected columns of a group, or -1, found {size}"),
        )),
    }
}

fn missing(name: &str) -> Error {
    Error::tensor(name, "is missing; a quantized layer needs it")
}

fn required<'t>(
    tensors: &'t dyn CheckpointSource,
    name: &str,
) -> Result<(TensorInfo, StoredBytes<'t>)> {
    let bytes = tensors.stored_bytes(name)?;
    tensors.info(name).zip(bytes).ok_or_else(|| missing(name))
}

/// The two sides of a tensor of this type.
fn sides(tensors: &dyn CheckpointSource, name: &str, dtype: Dtype) -> Result<[usize; 2]> {
    let info = tensors.info(name).ok_or_else(|| missing(name))?;
    match info.shape.as_slice() {
        &[first, second] if info.dtype == dtype && first > 0 && second > 0 => Ok([first, second]),
        _ => Err(Error::tensor(
            name,
            format!(
                "expected two sides in {dtype}, found {:?} in {}",
                info.shape, info.dtype
            ),
        )),
    }
}

/// Integers of 32 bits in a given shape.
fn read_words<const N: usize>(
    tensors: &dyn CheckpointSource,
    name: &str,
    shape: [usize; N],
) -> Result<Vec<u32>> {
    let (info, bytes) = required(tensors, name)?;
    if info.dtype != Dtype::I32 || info.shape != shape {
        return Err(Error::tensor(
            name,
            format!(
                "expected {shape:?} in I32, found {:?} in {}",
                info.shape, info.dtype
            ),
        ));
    }
    let words = bytes.as_chunks::<4>().0.iter();
    Ok(words.map(|&word| u32::from_le_bytes(word)).collect())
}

/// Scales, rows x groups, and the number of groups. `turned`: stored groups x rows.
fn read_scales(
    tensors: &dyn CheckpointSource,
    name: &str,
    rows: usize,
    turned: bool,
) -> Result<(Array2<f32>, usize)> {
    let (info, bytes) = required(tensors, name)?;
    let groups = match (info.shape.as_slice(), turned) {
        (&[groups, found], true) | (&[found, groups], false) if found == rows && groups > 0 => {
            groups
        }
        _ => {
            return Err(Error::tensor(
                name,
                format!(
                    "expected scales of groups for {rows} rows, found {:?}",
                    info.shape
                ),
            ));
        }
    };
    let values = decode(name, info.dtype, &bytes)?;
    let scales = Array2::from_shape_fn((rows, groups), |(row, group)| match turned {
        true => values[group * rows + row],
        false => values[row * groups + group],
    });
    Ok((scales, groups))
}

/// The group of each column, as listed or in runs of so many.
fn groups_of(
    name: &str,
    listed: Option<Vec<u32>>,
    groups: usize,
    (group, cols): (usize, usize),
) -> Result<Vec<usize>> {
    let of_column: Vec<usize> = match listed {
        Some(listed) => listed.into_iter().map(|group| group as usize).collect(),
        None => (0..cols).map(|col| col / group).collect(),
    };
    match of_column.iter().find(|&&group| group >= groups) {
        None => Ok(of_column),
        Some(beyond) => Err(Error::tensor(
            name,
            format!("a column is of group {beyond}, and there are scales for {groups}"),
        )),
    }
}
