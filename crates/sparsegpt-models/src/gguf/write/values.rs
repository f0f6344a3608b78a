//! Values as GGUF stores them.

use std::fmt;
use std::str::FromStr;

use half::f16;

use crate::checkpoint::{Dtype, encode};
use crate::{Error, Result};

/// Weights that share a scale in q8_0.
const BLOCK: usize = 32;

/// A type of the matrices in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GgufType {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32: a scale in f16 and 32 whole numbers of 8 bits.
    Q8_0,
}

impl GgufType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];

    /// The name on a command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// `enum ggml_type`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// `enum llama_ftype`.
    pub(super) fn file_type(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    /// The type of a matrix of so many columns.
    pub(super) fn for_columns(self, columns: usize) -> Self {
        match self {
            Self::Q8_0 if !columns.is_multiple_of(BLOCK) => Self::F16,
            other => other,
        }
    }

    /// Bytes of so many values; `None` if that overflows.
    pub(super) fn bytes(self, count: usize) -> Option<u64> {
        let count = count as u64;
        match self {
            Self::F32 => count.checked_mul(4),
            Self::F16 | Self::Bf16 => count.checked_mul(2),
            Self::Q8_0 => (count / BLOCK as u64).checked_mul(2 + BLOCK as u64),
        }
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GgufType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let lower = name.to_ascii_lowercase();
        let known = Self::ALL.into_iter().find(|known| known.name() == lower);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::setting("type", format!("one of {names}"), format!("{name:?}"))
        })
    }
}

pub(super) fn convert(name: &str, stored: GgufType, values: &[f32]) -> Result<Vec<u8>> {
    let plain = |dtype| Ok(encode(name, dtype, values)?.bytes);
    match stored {
        GgufType::F32 => plain(Dtype::F32),
        GgufType::F16 => plain(Dtype::F16),
        GgufType::Bf16 => plain(Dtype::BF16),
        GgufType::Q8_0 => {
            let mut bytes = Vec::with_capacity(values.len() / BLOCK * (BLOCK + 2));
            for block in values.chunks(BLOCK) {
                q8_0(name, block, &mut bytes)?;
            }
            Ok(bytes)
        }
    }
}

/// `quantize_row_q8_0_ref` of ggml: the scale is rounded only where it is stored, halves are rounded away from zero.
fn q8_0(name: &str, block: &[f32], bytes: &mut Vec<u8>) -> Result<()> {
    let largest = block
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = largest / 127.0;
    let stored = f16::from_f32(scale);
    if !stored.is_finite() || block.iter().any(|value| !value.is_finite()) {
        let reason = format!("values up to {largest} do not fit q8_0; choose another type");
        return Err(Error::tensor(name, reason));
    }
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    bytes.extend(stored.to_le_bytes());
    bytes.extend(
        block
            .iter()
            .map(|value| (value * inverse).round() as i8 as u8),
    );
    Ok(())
}

/// Rows i and i + half of each head, which HuggingFace turns together, become rows 2i and 2i + 1.
pub(super) fn rows_as_pairs(values: &[f32], heads: usize, shape: &[usize]) -> Vec<f32> {
    let rows = shape.first().copied().unwrap_or(0);
    let columns: usize = shape.iter().skip(1).product();
    let half = rows / heads.max(1) / 2;
    let mut paired = Vec::with_capacity(values.len());
    for head in 0..heads {
        for pair in 0..half {
            for side in 0..2 {
                let row = head * 2 * half + side * half + pair;
                paired.extend_from_slice(&values[row * columns..(row + 1) * columns]);
            }
        }
    }
    paired
}
