//! The layout of the result.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sparsegpt::driver::PlannedLayer;
use sparsegpt_models::checkpoint::{
    PackedFormat, PackedScheme, PackedShape, StoredTensor, WeightSink,
};
use sparsegpt_models::decoder::TransformerConfig;

use super::PruneFlags;
use crate::failure::Failure;

/// What `--format` takes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OutputFormat {
    Huggingface,
    Gptq,
    CompressedTensors,
}

impl PruneFlags {
    /// The packed format that was asked for.
    ///
    /// # Errors
    /// If other flags do not go with it.
    pub(super) fn packed(&self) -> Result<Option<PackedFormat>, Failure> {
        let format = match self.format {
            None | Some(OutputFormat::Huggingface) => return Ok(None),
            Some(OutputFormat::Gptq) => PackedFormat::Gptq,
            Some(OutputFormat::CompressedTensors) => PackedFormat::CompressedTensors,
        };
        if self.layer.bits.is_none() {
            return Err(Failure::usage(format!(
                "--format {format} holds quantized layers: give --bits too"
            )));
        }
        if self.layer.pattern.len() > 1 {
            return Err(Failure::usage(format!(
                "--format {format} takes one --pattern; run the command once for each"
            )));
        }
        Ok(Some(format))
    }

    /// The scheme of the packed layers, and which they are.
    ///
    /// # Errors
    /// If the format cannot hold them.
    pub(super) fn packing(
        &self,
        config: &TransformerConfig,
        planned: &[Vec<Vec<PlannedLayer>>],
    ) -> Result<Option<(PackedScheme, Vec<PackedShape>)>, Failure> {
        let (Some(format), Some(bits)) = (self.packed()?, self.layer.bits) else {
            return Ok(None);
        };
        let treated = planned.iter().flatten().flatten();
        let layers: Vec<PackedShape> = treated
            .filter(|planned| planned.settings.is_some())
            .map(|planned| PackedShape {
                name: planned.layer.name.clone(),
                rows: planned.layer.rows,
                cols: planned.layer.cols,
            })
            .collect();
        let transposed = layers
            .iter()
            .find(|layer| config.stores_transposed(&format!("{}.weight", layer.name)));
        if let (Some(layer), PackedFormat::CompressedTensors) = (transposed, format) {
            return Err(Failure::usage(format!(
                "--format {format}: {} is stored as input x output features, which the format has no layers for; use --format gptq",
                layer.name
            )));
        }
        let scheme = PackedScheme {
            format,
            bits,
            group_size: self.layer.group_size,
            symmetric: self.layer.symmetric.unwrap_or(false),
            permuted: self.layer.groups_are_permuted(),
        };
        scheme.check(&layers).map_err(Failure::writing)?;
        Ok(Some((scheme, layers)))
    }
}

/// For layers that are packed from what is kept of them: they come rounded, and are stored elsewhere.
#[derive(Debug)]
pub(super) struct NotStored;

impl WeightSink for NotStored {
    fn store(&mut self, _name: &str, values: &[f32]) -> sparsegpt_models::Result<StoredTensor> {
        let zeros = values.iter().filter(|&&value| value == 0.0).count();
        Ok(StoredTensor {
            zeros: zeros as u64,
        })
    }
}
