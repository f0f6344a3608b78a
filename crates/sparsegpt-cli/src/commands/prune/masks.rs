//! Masks from a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparsegpt::mask::{GivenMask, MaskPolicy};
use sparsegpt::{ModelAdapter, ModelPlan, Pattern};
use sparsegpt_models::checkpoint::{Checkpoint, Overlay};
use sparsegpt_models::masks::MaskFile;

use super::PruneFlags;
use crate::console::Console;
use crate::failure::Failure;
use crate::model;

/// The file that `--masks` names.
#[derive(Debug)]
pub(super) struct Masks {
    path: PathBuf,
    file: Arc<MaskFile>,
}

impl Masks {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        Ok(Self {
            path: path.to_path_buf(),
            file: Arc::new(MaskFile::open(path).map_err(Failure::reading)?),
        })
    }

    /// A plan that prunes by these masks.
    ///
    /// # Errors
    /// If the file names a layer that the model does not have, a mask is not of its layer's shape, or other flags do not go
    /// with it.
    pub(super) fn plan(
        &self,
        checkpoint: &Checkpoint,
        flags: &PruneFlags,
        patterns: &[Option<Pattern>],
        console: &Console,
    ) -> Result<ModelPlan, Failure> {
        let extended_to = match patterns {
            [None] => None,
            [Some(Pattern::Unstructured(sparsity))] => Some(*sparsity),
            _ => {
                return Err(Failure::usage(
                    "--pattern: given masks can be extended to one unstructured pattern only, as in 50%; leave the pattern out to keep them as they are",
                ));
            }
        };
        let mut sink = Overlay::new(checkpoint.tensors());
        let adapter = model::adapter(checkpoint, &mut sink)?;
        let mut left: Vec<String> = self.file.names();
        let mut settings = Vec::new();
        let mut index = 0;
        let mut beyond = 0;
        for block in 0..adapter.blocks() {
            for layer in adapter.layers(block)? {
                if let Some(at) = left.iter().position(|name| *name == layer.name) {
                    left.swap_remove(at);
                    let policy: Arc<dyn MaskPolicy> = match extended_to {
                        None => Arc::new(self.file.policy(&layer.name).map_err(Failure::reading)?),
                        Some(sparsity) => {
                            let kept = self.file.read(&layer.name).map_err(Failure::reading)?;
                            let mask = GivenMask::keeping(kept.view());
                            beyond += usize::from(
                                mask.pruned() as u64 > sparsity.count(kept.len() as u64),
                            );
                            Arc::new(mask.extended_to(sparsity))
                        }
                    };
                    policy.validate(&layer.name, layer.rows, layer.cols)?;
                    settings.push((index, flags.layer.settings(policy)?));
                }
                index += 1;
            }
        }
        left.sort();
        if let Some(name) = left.first() {
            return Err(Failure::file(
                &self.path,
                format!("names {name:?}, and the model has no layer of that name"),
            ));
        }
        if beyond > 0 {
            console.note(&format!(
                "{beyond} of {} masks have more zeros than --pattern asks for and stay as they are",
                settings.len()
            ));
        }
        let plan = flags.plan.plan_of(&flags.layer, settings)?;
        Ok(plan.with_held_out(flags.held_out.unwrap_or(0)))
    }
}
