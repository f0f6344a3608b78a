//! Ready token ids from a safetensors file.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{Calibration, SHORTEST_SEQUENCE};
use crate::error::listed;
use crate::{Error, Result, Sequence};

/// Tensors that hold token ids, the preferred one first.
const TENSOR_NAMES: [&str; 2] = ["calibration_tokens", "tokens"];
/// Beside them: 0 for padding, sequences x length.
const MASK_NAME: &str = "attention_mask";
/// Beside them: what a decoder behind an encoder reads, sequences x length.
const DECODER_NAME: &str = "decoder_tokens";

/// Reads the first `samples` sequences and the first `sequence_length` tokens of each.
pub(super) fn read(
    path: &Path,
    samples: Option<usize>,
    sequence_length: Option<usize>,
) -> Result<Calibration> {
    let bytes = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|invalid| {
        Error::format(path, format!("expected a safetensors file ({invalid})"))
    })?;
    let Some((name, view)) = TENSOR_NAMES
        .iter()
        .find_map(|&name| Some((name, tensors.tensor(name).ok()?)))
    else {
        let mut names = tensors.names();
        names.sort_unstable();
        return Err(Error::format(
            path,
            format!(
                "expected token ids in a tensor {:?} or {:?}, found the tensors {}",
                TENSOR_NAMES[0],
                TENSOR_NAMES[1],
                listed(&names)
            ),
        ));
    };
    let error = |reason: String| Error::format(path, format!("tensor {name:?}: {reason}"));

    let &[available, length] = view.shape() else {
        return Err(error(format!(
            "expected sequences x length, found shape {:?}",
            view.shape()
        )));
    };
    if available == 0 || length < SHORTEST_SEQUENCE {
        return Err(error(format!(
            "expected at least 1 sequence of at least {SHORTEST_SEQUENCE} tokens, found shape {:?}",
            view.shape()
        )));
    }
    let samples = samples.unwrap_or(available);
    let sequence_length = sequence_length.unwrap_or(length);
    if samples > available || sequence_length > length {
        return Err(error(format!(
            "expected {samples} sequences of {sequence_length} tokens, found {available} of \
             {length}; ask for no more than there is"
        )));
    }
    let wrong = |name: &str, expected: &str, found: &TensorView<'_>| {
        Error::format(
            path,
            format!(
                "tensor {name:?}: expected {expected}, found shape {:?} beside token ids of {:?}",
                found.shape(),
                view.shape()
            ),
        )
    };
    let part = Part {
        path,
        samples,
        sequence_length,
    };
    let rows = part.read(name, &view)?;
    let mask = tensors.tensor(MASK_NAME).ok();
    let mut sequences: Vec<Sequence> = match &mask {
        None => rows.into_iter().map(Sequence::from).collect(),
        Some(mask) if mask.shape() == view.shape() => {
            let masks = part.read(MASK_NAME, mask)?;
            let pairs = rows.into_iter().zip(masks);
            pairs
                .map(|(tokens, mask)| {
                    let counts = mask.into_iter().map(|entry| entry != 0).collect();
                    Sequence::from(tokens).with_attention_mask(counts)
                })
                .collect::<Result<_>>()?
        }
        Some(mask) => {
            return Err(wrong(MASK_NAME, "the shape of the token ids", mask));
        }
    };
    if let Ok(decoded) = tensors.tensor(DECODER_NAME) {
        let &[rows, length] = decoded.shape() else {
            return Err(wrong(DECODER_NAME, "sequences x length", &decoded));
        };
        if rows != available || length == 0 {
            return Err(wrong(
                DECODER_NAME,
                "one row of tokens a sequence",
                &decoded,
            ));
        }
        let all = Part {
            sequence_length: length,
            ..part
        };
        let rows = all.read(DECODER_NAME, &decoded)?;
        for (sequence, tokens) in sequences.iter_mut().zip(rows) {
            sequence.decoder_tokens = tokens;
        }
    }
    Ok(Calibration {
        sequences,
        source: format!("{}: tensor {name}", path.display()),
        tokens_available: available * length,
    })
}

/// How much of a file is read.
struct Part<'a> {
    path: &'a Path,
    samples: usize,
    sequence_length: usize,
}

impl Part<'_> {
    /// The first entries of the first rows of a matrix of integers.
    fn read(&self, name: &str, view: &TensorView<'_>) -> Result<Vec<Vec<u32>>> {
        let error = |reason: String| Error::format(self.path, format!("tensor {name:?}: {reason}"));
        let id_bytes = match view.dtype() {
            Dtype::BOOL | Dtype::U8 => 1,
            Dtype::I32 | Dtype::U32 => 4,
            Dtype::I64 => 8,
            other => {
                return Err(error(format!(
                    "expected i32, i64 or u32 token ids, found {other}"
                )));
            }
        };
        let token = |bytes: &[u8]| -> Result<u32> {
            let value = match (view.dtype(), bytes) {
                (_, &[byte]) => i64::from(byte),
                (Dtype::U32, &[a, b, c, d]) => i64::from(u32::from_le_bytes([a, b, c, d])),
                (_, &[a, b, c, d]) => i64::from(i32::from_le_bytes([a, b, c, d])),
                (_, &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => return Err(error("its data ends within a token id".to_owned())),
            };
            u32::try_from(value).map_err(|_| {
                error(format!(
                    "expected token ids from 0 to {}, found {value}",
                    u32::MAX
                ))
            })
        };
        let length = view.shape().get(1).copied().unwrap_or(1);
        // The safetensors crate has checked that the data is as long as the shape says.
        view.data()
            .chunks_exact(length * id_bytes)
            .take(self.samples)
            .map(|row| {
                row.chunks_exact(id_bytes)
                    .take(self.sequence_length)
                    .map(token)
                    .collect()
            })
            .collect()
    }
}
