//! Between stored bytes and f32 values.

use half::{bf16, f16};
use safetensors::Dtype;

use crate::{Error, Result};

/// Reads the name of a float type a checkpoint can be written in: `f32`, `float32`, `f16`,
/// `float16`, `half`, `bf16`, `bfloat16`, in any case.
///
/// # Errors
/// On every other name.
///
/// ```
/// use sparsegpt_models::checkpoint::{Dtype, parse_dtype};
///
/// assert_eq!(parse_dtype("bfloat16")?, Dtype::BF16);
/// assert!(parse_dtype("int8").is_err());
/// # Ok::<(), sparsegpt_models::Error>(())
/// ```
pub fn parse_dtype(name: &str) -> Result<Dtype> {
    match name.to_ascii_lowercase().as_str() {
        "f32" | "float32" => Ok(Dtype::F32),
        "f16" | "float16" | "half" => Ok(Dtype::F16),
        "bf16" | "bfloat16" => Ok(Dtype::BF16),
        _ => Err(Error::setting("dtype", "f32, f16 or bf16", name)),
    }
}

/// The name config.json uses, for the types a checkpoint can be written in.
pub(super) fn config_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        _ => None,
    }
}

/// Whether [`decode`] can widen the type to f32.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Bytes of `elements` values, `None` if that overflows or is no whole number of bytes.
pub(super) fn byte_len(dtype: Dtype, elements: usize) -> Option<usize> {
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Number of elements, `None` if it overflows.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(size))
}

/// The values after a round trip through `dtype`.
pub(super) fn round_through(name: &str, dtype: Dtype, values: Vec<f32>) -> Result<Vec<f32>> {
    if dtype == Dtype::F32 {
        return Ok(values);
    }
    decode(name, dtype, &encode(name, dtype, &values)?.bytes)
}

fn widen<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|&chunk| value(chunk))
        .collect()
}

/// Little-endian float bytes, widened to f32 (F64 is narrowed).
pub(crate) fn decode(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    match dtype {
        Dtype::F32 => Ok(widen(bytes, f32::from_le_bytes)),
        Dtype::F16 => Ok(widen(bytes, |chunk| f16::from_le_bytes(chunk).to_f32())),
        Dtype::BF16 => Ok(widen(bytes, |chunk| bf16::from_le_bytes(chunk).to_f32())),
        // A checkpoint in f64 holds f32 precision by convention; the working precision is f32.
        Dtype::F64 => Ok(widen(bytes, |chunk| f64::from_le_bytes(chunk) as f32)),
        other => Err(Error::tensor(
            name,
            format!("expected f32, f16, bf16 or f64, found {other}"),
        )),
    }
}

/// Values as they stand in a file.
pub(crate) struct Encoded {
    pub(crate) bytes: Vec<u8>,
    /// Zeros after the cast, negative zero included.
    pub(super) zeros: u64,
    /// Of those, values that were none before.
    pub(super) cast_zeros: u64,
}

fn narrow<T, const N: usize>(
    name: &str,
    dtype: Dtype,
    values: &[f32],
    cast: impl Fn(f32) -> T,
    widen: impl Fn(&T) -> f32,
    to_bytes: impl Fn(T) -> [u8; N],
) -> Result<Encoded> {
    let mut bytes = Vec::with_capacity(values.len() * N);
    let (mut zeros, mut cast_zeros) = (0, 0);
    for (index, &value) in values.iter().enumerate() {
        let stored = cast(value);
        let read_back = widen(&stored);
        if !read_back.is_finite() {
            let reason = if value.is_finite() {
                format!("value {value} at index {index} overflows {dtype}; choose another dtype")
            } else {
                format!("expected finite values, found {value} at index {index}")
            };
            return Err(Error::tensor(name, reason));
        }
        zeros += u64::from(read_back == 0.0);
        cast_zeros += u64::from(read_back == 0.0 && value != 0.0);
        bytes.extend_from_slice(&to_bytes(stored));
    }
    Ok(Encoded {
        bytes,
        zeros,
        cast_zeros,
    })
}

/// The values in `dtype`, little-endian.
///
/// # Errors
/// Where a value is not finite, or no longer finite after the cast.
pub(crate) fn encode(name: &str, dtype: Dtype, values: &[f32]) -> Result<Encoded> {
    match dtype {
        Dtype::F32 => narrow(name, dtype, values, |v| v, |v| *v, f32::to_le_bytes),
        Dtype::F16 => narrow(
            name,
            dtype,
            values,
            f16::from_f32,
            |v| v.to_f32(),
            f16::to_le_bytes,
        ),
        Dtype::BF16 => narrow(
            name,
            dtype,
            values,
            bf16::from_f32,
            |v| v.to_f32(),
            bf16::to_le_bytes,
        ),
        Dtype::F64 => narrow(
            name,
            dtype,
            values,
            f64::from,
            |v| *v as f32,
            f64::to_le_bytes,
        ),
        other => Err(Error::tensor(
            name,
            format!("cannot store float values as {other}"),
        )),
    }
}
