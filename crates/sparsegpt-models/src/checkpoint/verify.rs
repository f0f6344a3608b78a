//! The proof of a written checkpoint: opened again and compared with what should be there.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::packed::Packed;
use super::writer::{Slot, Written};
use super::{Checkpoint, CheckpointSource, Dtype};
use crate::decoder::{TransformerConfig, transpose};
use crate::{Error, Result, TensorInfo};

/// What a pruned layer must look like in the written checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedLayer {
    /// The weight's name in the checkpoint.
    pub tensor: String,
    /// Zeros that were reported. The file has as many, and more only where its type is too narrow for small values.
    pub zeros: u64,
    /// `(zeros, group)`: at least that many zeros in each `group` consecutive columns of a row (of the layer, whichever
    /// way round its weight is stored).
    pub pattern: Option<(usize, usize)>,
}

/// Zeros that the cast to the stored type made of values too small for it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct CastZeros {
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// How many: of a pruned layer, the zeros in the file beyond those that were reported.
    pub zeros: u64,
}

/// Opens `folder` and compares every tensor of `slots` with its description, with the zeros
/// counted when it was written, and with the layers that were reported. Returns, by name, where the cast to the stored
/// type made zeros.
pub(super) fn verify(
    folder: &Path,
    source: &dyn CheckpointSource,
    slots: &HashMap<String, Slot>,
    packed: Option<&Packed>,
    expected: &[ExpectedLayer],
) -> Result<Vec<CastZeros>> {
    let written = match packed {
        Some(_) => Checkpoint::as_stored(folder)?,
        None => Checkpoint::open(folder)?,
    };
    let tensors = written.tensors();
    let surplus = tensors
        .names()
        .into_iter()
        .find(|name| !slots.contains_key(name));
    if let Some(name) = surplus {
        return Err(Error::tensor(name, "written, but not in the source"));
    }
    let mut expected: HashMap<&str, &ExpectedLayer> = expected
        .iter()
        .map(|layer| (layer.tensor.as_str(), layer))
        .collect();
    for (name, shape) in packed.iter().flat_map(|packed| &packed.layers) {
        let layer = expected.remove(format!("{name}.weight").as_str());
        if let Some(packed) = packed {
            packed.prove(written.source.as_ref(), shape, layer)?;
        }
    }
    if let Some(name) = expected.keys().find(|&&name| !slots.contains_key(name)) {
        return Err(Error::tensor(
            *name,
            "reported as pruned, but not in the checkpoint",
        ));
    }
    // Patterns hold along a layer's inputs, which some families store as rows.
    let config = TransformerConfig::from_json(written.config()).ok();
    let transposed = |name: &str| config.as_ref().is_some_and(|c| c.stores_transposed(name));
    let mut of_cast = Vec::new();
    for (name, slot) in slots {
        let info = tensors.info(name);
        if info.as_ref() != Some(&slot.info) {
            let reason = format!(
                "expected {:?} in the written file, found {info:?}",
                slot.info
            );
            return Err(Error::tensor(name, reason));
        }
        let layer = expected.get(name.as_str()).copied();
        match slot.written {
            Written::Missing => return Err(Error::tensor(name, "was never written")),
            Written::Packed => {}
            Written::Copied => {
                if written.source.stored_bytes(name)? != source.stored_bytes(name)? {
                    return Err(Error::tensor(name, "the copy differs from the source"));
                }
                if layer.is_some() {
                    let reason = "reported as pruned, but no new weight was stored";
                    return Err(Error::tensor(name, reason));
                }
            }
            Written::Values { zeros, cast_zeros } => {
                let mut values = tensors.read_f32(name)?;
                let mut info = slot.info.clone();
                if transposed(name)
                    && let &[rows, columns] = info.shape.as_slice()
                {
                    values = transpose(&values, columns);
                    info.shape = vec![columns, rows];
                }
                check_values(name, &info, &values, zeros, layer)?;
                // What was stored of a layer may have gone through the type before.
                let made = layer.map_or(cast_zeros, |layer| zeros - layer.zeros);
                if made > 0 {
                    of_cast.push(CastZeros {
                        tensor: name.clone(),
                        zeros: made,
                    });
                }
            }
        }
    }
    of_cast.sort_by(|a, b| a.tensor.cmp(&b.tensor));
    Ok(of_cast)
}

fn check_values(
    name: &str,
    info: &TensorInfo,
    values: &[f32],
    zeros: u64,
    layer: Option<&ExpectedLayer>,
) -> Result<()> {
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(Error::tensor(
            name,
            format!("the written value {index} is not finite"),
        ));
    }
    let found = values.iter().filter(|&&value| value == 0.0).count() as u64;
    if found != zeros {
        let reason = format!("expected the {zeros} zeros that were stored, found {found}");
        return Err(Error::tensor(name, reason));
    }
    let Some(layer) = layer else { return Ok(()) };
    // The wide types hold whatever the solver computes.
    let exact = matches!(info.dtype, Dtype::F32 | Dtype::F64);
    if found < layer.zeros || (exact && found != layer.zeros) {
        let reason = format!("expected the {} zeros reported, found {found}", layer.zeros);
        return Err(Error::tensor(name, reason));
    }
    let Some((zeros, group)) = layer.pattern else {
        return Ok(());
    };
    let &[_, columns] = info.shape.as_slice() else {
        let reason = format!(
            "pattern {zeros}:{group} needs a matrix, found {:?}",
            info.shape
        );
        return Err(Error::tensor(name, reason));
    };
    if group == 0 || zeros > group || !columns.is_multiple_of(group) {
        let reason = format!("pattern {zeros}:{group} does not fit {columns} columns");
        return Err(Error::tensor(name, reason));
    }
    // Groups never straddle rows, as the group divides the columns.
    let broken = values
        .chunks_exact(group)
        .position(|chunk| chunk.iter().filter(|&&value| value == 0.0).count() < zeros);
    if let Some(position) = broken {
        let (row, column) = (position * group / columns, position * group % columns);
        let reason = format!(
            "pattern {zeros}:{group} does not hold in row {row}, columns {column} to {}",
            column + group - 1
        );
        return Err(Error::tensor(name, reason));
    }
    Ok(())
}
