//! A model as the pruning driver sees it.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use ndarray::Array2;
use serde_json::Value;
use sparsegpt::{BlockLayer, ModelAdapter, Tap};

use super::TransformerConfig;
use super::block::Block;
use super::ends::Embedding;
use super::hidden::Hidden;
use super::rope::AllTables;
use super::scratch::Scratch;
use super::weights::{
    CROSS_INPUT, CROSS_MEMORY, CROSS_OUTPUT, LinearSpec, MLP_INPUT, MLP_OUTPUT, Weights,
    expert_part, is_of_expert, linear_specs,
};
use crate::checkpoint::WeightSink;
use crate::{Error, Result, Sequence, TensorSource};

/// Tokens that run through a model's blocks together, where sequences are shorter: enough for products to run at full speed.
pub const BATCH_TOKENS: usize = 2048;

/// Streams a checkpoint of any of the families through the pruning driver: one block's weights in memory at a time.
///
/// Replaced weights go to the sink when their block ends, under their checkpoint names.
#[derive(Debug)]
pub struct TransformerAdapter<'a> {
    weights: Weights,
    /// The linear layers of each block.
    specs: Vec<Vec<LinearSpec>>,
    sink: &'a mut dyn WeightSink,
    /// Read at the first sequence, dropped when the first block begins.
    embedding: Option<Embedding>,
    current: Option<Current>,
    /// The last sequence length, and its rotary tables.
    rotary: Option<(usize, Option<AllTables>)>,
    /// Memory for the passes.
    scratch: Scratch,
}

#[derive(Debug)]
struct Current {
    index: usize,
    block: Block,
    replaced: Vec<bool>,
}

impl<'a> TransformerAdapter<'a> {
    /// An adapter for a checkpoint; finished weights go to `sink`.
    ///
    /// # Errors
    /// As [`Transformer::load`](super::Transformer::load); no weight is read yet.
    pub fn new(
        config: &Value,
        source: Arc<dyn TensorSource>,
        sink: &'a mut dyn WeightSink,
    ) -> Result<Self> {
        let config = TransformerConfig::from_json(config)?;
        Ok(Self {
            specs: (0..config.blocks)
                .map(|block| linear_specs(&config, block))
                .collect(),
            weights: Weights::open(config, source)?,
            sink,
            embedding: None,
            current: None,
            rotary: None,
            scratch: Scratch::default(),
        })
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.weights.config
    }

    fn specs(&self, block: usize) -> Result<&[LinearSpec]> {
        let blocks = self.specs.len();
        let specs = self.specs.get(block).map(Vec::as_slice);
        specs.ok_or_else(|| Error::setting("block", format!("below {blocks}"), block))
    }

    fn spec(&self, block: usize, layer: usize) -> Result<&LinearSpec> {
        let specs = self.specs(block)?;
        specs.get(layer).ok_or_else(|| {
            let last = specs.len() - 1;
            Error::setting(
                "layer",
                format!("0 to {last}, as ModelAdapter::layers lists them"),
                layer,
            )
        })
    }

    /// Makes the rotary tables those of some sequences' length.
    fn turn_to(&mut self, hidden: &Hidden) -> Result<()> {
        let time = hidden.time()?;
        if self.rotary.as_ref().is_none_or(|(of, _)| *of != time) {
            self.rotary = Some((time, self.weights.config.rotary_tables(0, time)));
        }
        Ok(())
    }

    /// The block at hand, and the angles of whole sequences.
    fn ready(&self, block: usize) -> Result<(&Block, Option<&AllTables>)> {
        let (_, rotary) = self.rotary.as_ref().ok_or_else(|| not_begun(block))?;
        Ok((&self.current(block)?.block, rotary.as_ref()))
    }

    fn current(&self, block: usize) -> Result<&Current> {
        self.current
            .as_ref()
            .filter(|current| current.index == block)
            .ok_or_else(|| not_begun(block))
    }
}

fn not_begun(block: usize) -> Error {
    Error::setting("block", "one between begin_block and end_block", block)
}

impl ModelAdapter for TransformerAdapter<'_> {
    type Sequence = Sequence;
    type Hidden = Hidden;
    type Error = Error;

    fn blocks(&self) -> usize {
        self.weights.config.blocks
    }

    fn layers(&self, block: usize) -> Result<Vec<BlockLayer>> {
        Ok(self
            .specs(block)?
            .iter()
            .map(|spec| BlockLayer {
                name: self.weights.block_name(block, &spec.part),
                rows: spec.rows,
                cols: spec.cols,
                input: spec.input,
            })
            .collect())
    }

    fn may_starve(&self, _block: usize, input: usize) -> bool {
        is_of_expert(input)
    }

    fn stage(&self, _block: usize, input: usize) -> usize {
        // In the order in which they are read; all experts at the same time, each two inputs in turn as the feed-forward part
        // without experts.
        match input {
            // Between the attention's output and the feed-forward part comes cross-attention.
            CROSS_INPUT | CROSS_MEMORY => 2,
            CROSS_OUTPUT => 3,
            MLP_INPUT => 4,
            MLP_OUTPUT => 5,
            _ if is_of_expert(input) => 4 + expert_part(input),
            _ => input,
        }
    }

    /// In an encoder's sequences the padding token is padding, where no mask says otherwise.
    fn embed(&mut self, sequence: &Sequence) -> Result<Hidden> {
        let embedding = match &self.embedding {
            Some(embedding) => embedding,
            None => self.embedding.insert(Embedding::load(&self.weights)?),
        };
        let config = &self.weights.config;
        match config.padding {
            Some(id) => embedding.begin(config, &[&sequence.clone().with_padding(id)?]),
            None => embedding.begin(config, &[sequence]),
        }
    }

    fn begin_block(&mut self, block: usize) -> Result<()> {
        self.embedding = None;
        let loaded = Block::load(&self.weights, block)?;
        let replaced = vec![false; loaded.linears.len()];
        self.current = Some(Current {
            index: block,
            block: loaded,
            replaced,
        });
        Ok(())
    }

    fn end_block(&mut self, block: usize) -> Result<()> {
        let Some(current) = self.current.take().filter(|current| current.index == block) else {
            return Err(not_begun(block));
        };
        let specs = self.specs.get(block).map_or(&[][..], Vec::as_slice);
        for ((spec, linear), replaced) in specs
            .iter()
            .zip(&current.block.linears)
            .zip(current.replaced)
        {
            if replaced {
                let name = format!("{}.weight", self.weights.block_name(block, &spec.part));
                self.sink.store(&name, &linear.stored(spec)?)?;
            }
        }
        Ok(())
    }

    fn run_block(&mut self, block: usize, hidden: &Hidden, tap: &mut dyn Tap) -> Result<Hidden> {
        self.turn_to(hidden)?;
        let (loaded, rotary) = self.ready(block)?;
        let position = hidden.position(rotary, &self.scratch);
        let states = loaded.forward(hidden.states(), &position, None, tap)?;
        Ok(hidden.clone().after(&self.weights.config, block, states))
    }

    fn batch(&self, hidden: &[Hidden]) -> usize {
        let Some(first) = hidden.first() else {
            return 1;
        };
        let alike = hidden.iter().take_while(|other| other.like(first));
        let tokens = first.time().unwrap_or(1).max(1);
        alike.take((BATCH_TOKENS / tokens).max(1)).count()
    }

    fn run_batch(
        &mut self,
        block: usize,
        hidden: &[Hidden],
        tap: &mut dyn Tap,
    ) -> Result<Vec<Hidden>> {
        let next = self.run_block(block, &Hidden::together(hidden)?, tap)?;
        next.apart(hidden.len())
    }

    fn observe_batch(&mut self, block: usize, hidden: &[Hidden], tap: &mut dyn Tap) -> Result<()> {
        let hidden = Hidden::together(hidden)?;
        self.turn_to(&hidden)?;
        let (block, rotary) = self.ready(block)?;
        let position = hidden.position(rotary, &self.scratch);
        block.observe(hidden.states(), &position, tap)
    }

    fn weight(&self, block: usize, layer: usize) -> Result<Array2<f32>> {
        self.spec(block, layer)?;
        self.current(block)?.block.linears[layer].weight.values()
    }

    fn replace_weight(&mut self, block: usize, layer: usize, weight: Array2<f32>) -> Result<()> {
        let spec = self.spec(block, layer)?;
        let name = format!("{}.weight", self.weights.block_name(block, &spec.part));
        let shape = weight.dim();
        if shape != (spec.rows, spec.cols) {
            return Err(Error::tensor(
                name,
                format!(
                    "is to be replaced by one of shape {shape:?}, expected {:?}",
                    (spec.rows, spec.cols)
                ),
            ));
        }
        let values: Vec<f32> = weight.as_standard_layout().iter().copied().collect();
        let values = self.sink.rounded(&name, values)?;
        let weight = Tensor::from_vec(values, shape, &Device::Cpu)?;
        let current = self
            .current
            .as_mut()
            .filter(|current| current.index == block)
            .ok_or_else(|| not_begun(block))?;
        current.block.replace(layer, weight);
        current.replaced[layer] = true;
        Ok(())
    }
}
