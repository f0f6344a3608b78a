//! Finished blocks, kept so that the same command can go on from them.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::path::Path;

use sparsegpt::driver::PlannedLayer;
use sparsegpt::{BlockKeeper, FinishedLayer, PrunedLayer};
use sparsegpt_models::calibration::Calibration;
use sparsegpt_models::checkpoint::{CheckpointWriter, Dtype, round_to_scales};
use sparsegpt_models::masks::MaskWriter;
use sparsegpt_models::resume::{BlockWriter, Fingerprint, KeptLayer, StateFolder, digest_of_files};

use super::{Job, used};
use crate::failure::Failure;
use crate::interrupt;

/// The blocks of one run.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Gone before its folder is.
    begun: Option<BlockWriter>,
    state: StateFolder,
    blocks: usize,
    /// What each layer's weight, or where layers are packed its scales, is stored in, by the layer's name.
    types: HashMap<String, Dtype>,
    packs: bool,
}

impl Job<'_> {
    /// The calibration set, and what keeps the blocks. A run that ends before it has both leaves what an earlier one has kept.
    pub(super) fn begun(
        &self,
        state: StateFolder,
        writer: &CheckpointWriter,
    ) -> Result<(Option<Calibration>, Keeper), Failure> {
        let path = state.path().to_path_buf();
        let begun = self.calibration().and_then(|calibration| {
            let keeper = self.keeper(state, writer, calibration.as_ref())?;
            Ok((calibration, keeper))
        });
        begun.map_err(|failure| match path.exists() {
            true => failure.leaving(format!(
                "blocks that an earlier run has finished are kept in {}",
                path.display()
            )),
            false => failure,
        })
    }

    /// Goes on from what an earlier run has left in `state`, and says so. `writer` tells the types.
    fn keeper(
        &self,
        mut state: StateFolder,
        writer: &CheckpointWriter,
        calibration: Option<&Calibration>,
    ) -> Result<Keeper, Failure> {
        let blocks = self.config.blocks;
        let finished = state
            .go_on(self.fingerprint(calibration)?, blocks)
            .map_err(Failure::reading)?;
        if finished > 0 {
            self.console.note(&format!(
                "{}: {finished} of {blocks} blocks were finished by an earlier run; going on from there (--fresh starts over)",
                state.path().display()
            ));
        }
        let layers = self.planned.iter().flatten().flatten();
        let types = layers
            .filter_map(|planned| {
                let name = &planned.layer.name;
                let weight = writer.stored_type(&format!("{name}.weight"));
                Some((name.clone(), weight.or_else(|| writer.scale_type(name))?))
            })
            .collect();
        Ok(Keeper {
            begun: None,
            state,
            blocks,
            types,
            packs: self.packing.is_some(),
        })
    }

    /// All that the bits of the result depend on.
    fn fingerprint(&self, calibration: Option<&Calibration>) -> Result<Fingerprint, Failure> {
        let model = self.checkpoint.fingerprint(&interrupt::not_requested)?;
        let info = self.pruner.info();
        let mut fingerprint = Fingerprint::default()
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("model files", model)
            .with("threads", rayon::current_num_threads())
            .with("backend", info.name)
            .with("device", info.device)
            .with("products", info.products)
            .with(
                "calibration tokens",
                calibration.map_or_else(|| "none".to_owned(), Calibration::fingerprint),
            );
        for (flag, value) in used(self.flags)?.as_object().into_iter().flatten() {
            if flag != "threads" {
                fingerprint = fingerprint.with(format!("--{flag}"), value);
            }
        }
        if let Some(masks) = &self.flags.masks {
            let digest = digest_of_files([masks.as_path()], &interrupt::not_requested)?;
            fingerprint = fingerprint.with("contents of --masks", digest);
        }
        if self.flags.plan.pattern_list.is_some() {
            // The list may be a file, which may change.
            let layers = self.planned.iter().flatten().flatten();
            let patterns: Vec<String> = layers
                .map(|planned| match &planned.settings {
                    Some(settings) => settings.mask.describe(),
                    None => "skip".to_owned(),
                })
                .collect();
            fingerprint = fingerprint.with("--pattern-list", patterns.join(","));
        }
        Ok(fingerprint)
    }
}

impl Keeper {
    /// What stays of a run that ended early.
    pub(super) fn left(&self) -> String {
        match self.state.finished() {
            0 => "nothing was written".to_owned(),
            finished => format!(
                "{finished} of {} blocks are kept in {}: the same command goes on from there (--fresh starts over)",
                self.blocks,
                self.state.path().display()
            ),
        }
    }

    /// Packs all layers that were kept.
    pub(super) fn pack_into(&self, writer: &mut CheckpointWriter) -> Result<(), Failure> {
        self.each_kept(&mut |kept| {
            let Some(quantized) = &kept.quantized else {
                return Err(Failure::usage(format!(
                    "{}: is not quantized; give --bits, or --format huggingface",
                    kept.name
                )));
            };
            writer
                .store_packed(&kept.name, quantized)
                .map_err(Failure::writing)
        })
    }

    /// Writes the masks of all layers that were kept, and of no others.
    pub(super) fn save_masks(
        &self,
        path: &Path,
        force: bool,
        planned: &[Vec<PlannedLayer>],
    ) -> Result<(), Failure> {
        let treated = planned.iter().flatten().filter(|l| l.settings.is_some());
        let shapes = treated.map(|planned| {
            let layer = &planned.layer;
            (layer.name.clone(), [layer.rows, layer.cols])
        });
        let mut file = MaskWriter::create(path, shapes).map_err(Failure::writing)?;
        self.each_kept(&mut |kept| {
            file.add(&kept.name, kept.mask.view())
                .map_err(Failure::writing)
        })?;
        // Only masks that this run has written itself, before it was killed.
        if path.exists() && !force && !file.equals_existing().map_err(Failure::writing)? {
            return Err(Failure::usage(format!(
                "--save-masks {}: exists and holds other masks; choose another name, or allow replacing it (--force)",
                path.display()
            )));
        }
        file.finish().map_err(Failure::writing)
    }

    /// Reads all layers that were kept, one at a time.
    fn each_kept(
        &self,
        see: &mut dyn FnMut(KeptLayer) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for block in 0..self.state.finished() {
            let Some(mut file) = self.state.block(block).map_err(Failure::reading)? else {
                continue;
            };
            while let Some(kept) = file.next_layer().map_err(Failure::reading)? {
                interrupt::check()?;
                see(kept)?;
            }
        }
        Ok(())
    }

    /// The run is complete, and its result in place.
    pub(super) fn done(self) -> Result<(), Failure> {
        self.state.remove().map_err(Failure::writing)
    }
}

impl BlockKeeper for Keeper {
    fn has(&self, block: usize) -> bool {
        block < self.state.finished()
    }

    fn restore(
        &mut self,
        block: usize,
        take: &mut dyn FnMut(FinishedLayer) -> sparsegpt::Result<()>,
    ) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let Some(mut file) = self.state.block(block)? else {
            return Ok(());
        };
        while let Some(kept) = file.next_layer()? {
            // TOML has numbers that are read as they were written, to the last bit.
            let report = toml::from_str(&kept.report)?;
            let pruned = PrunedLayer::new(kept.weights, kept.mask, kept.quantized, report);
            take(FinishedLayer::new(
                kept.variant,
                block,
                kept.layer,
                kept.starved,
                pruned,
            ))?;
        }
        Ok(())
    }

    fn keep(&mut self, layer: &mut FinishedLayer) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let name = layer.pruned.report.layer.clone();
        // Every planned layer stands in the checkpoint; without a type, nothing is lost in f32.
        let dtype = self.types.get(&name).copied().unwrap_or(Dtype::F32);
        if self.packs {
            round_to_scales(&name, &mut layer.pruned, dtype)?;
        }
        let text = toml::to_string(&layer.pruned.report)?;
        let writer = match &mut self.begun {
            Some(writer) => writer,
            None => self.begun.insert(self.state.begin(layer.block)?),
        };
        writer.add(layer, text, dtype)?;
        Ok(())
    }

    fn commit(&mut self, block: usize) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let writer = match self.begun.take() {
            Some(writer) => writer,
            // Nothing is treated in this block.
            None => self.state.begin(block)?,
        };
        writer.commit()?;
        self.state.committed();
        Ok(())
    }
}
