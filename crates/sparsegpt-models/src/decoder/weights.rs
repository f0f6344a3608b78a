//! The tensors of a model: which there are, in which shapes, and reading them.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use ndarray::Array2;

use super::TransformerConfig;
use super::config::{Experts, Positions, Residual};
use super::family::{FamilySpec, FeedForward, ModelKind, Names, NormKind, QkNorms, Qkv};
use super::norm::Norm;
use super::outline::no_tensors;
use super::weight::Weight;
use crate::checkpoint::is_float;
use crate::{Error, Result, TensorSource};

/// One linear layer of a block: its name within the block, shape, input and bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinearSpec {
    pub(super) part: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Layers with the same number read the same activations.
    pub(super) input: usize,
    pub(super) bias: bool,
    /// Whether the checkpoint holds cols x rows.
    pub(super) transposed: bool,
}

/// A matrix that activations are multiplied by, and which way round the checkpoint holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Multiplied {
    /// Output features.
    pub(crate) rows: usize,
    /// Input features.
    pub(crate) cols: usize,
    /// Whether the checkpoint holds cols x rows.
    pub(crate) transposed: bool,
}

impl Multiplied {
    pub(super) fn rows_first(rows: usize, cols: usize) -> Self {
        Self {
            rows,
            cols,
            transposed: false,
        }
    }

    fn stored_shape(self) -> [usize; 2] {
        match self.transposed {
            true => [self.cols, self.rows],
            false => [self.rows, self.cols],
        }
    }
}

/// By their names in the checkpoint, the matrices that a model multiplies by: the linear layers of its blocks and its
/// head, which may be the table of embeddings.
pub(crate) fn multiplied(
    config: TransformerConfig,
    source: Arc<dyn TensorSource>,
) -> Result<Vec<(String, Multiplied)>> {
    let weights = Weights::open(config, source)?;
    let config = &weights.config;
    let names = weights.names();
    let mut all = Vec::new();
    for block in 0..config.blocks {
        for spec in linear_specs(config, block) {
            let name = weights.block_name(block, &spec.part);
            all.push((format!("{name}.weight"), spec.multiplied()));
        }
    }
    let head = match config.tied {
        true => weights.name(names.embedding),
        false => names.head.to_owned(),
    };
    let shape = Multiplied::rows_first(config.vocab_size, config.embedding_size);
    all.push((format!("{head}.weight"), shape));
    Ok(all)
}

impl LinearSpec {
    pub(super) fn multiplied(&self) -> Multiplied {
        Multiplied {
            rows: self.rows,
            cols: self.cols,
            transposed: self.transposed,
        }
    }

    pub(super) fn stored_shape(&self) -> [usize; 2] {
        self.multiplied().stored_shape()
    }
}

/// Inputs of a block's layers.
pub(super) const ATTENTION_INPUT: usize = 0;
pub(super) const ATTENTION_OUTPUT: usize = 1;
pub(super) const MLP_INPUT: usize = 2;
pub(super) const MLP_OUTPUT: usize = 3;
/// What the queries of cross-attention read.
pub(super) const CROSS_INPUT: usize = 4;
/// The encoder's output, which its keys and values read.
pub(super) const CROSS_MEMORY: usize = 5;
pub(super) const CROSS_OUTPUT: usize = 6;
const FIRST_EXPERT_INPUT: usize = 7;

/// Inputs of an expert's gate and up, and of its down.
pub(super) fn expert_inputs(expert: usize) -> [usize; 2] {
    let first = FIRST_EXPERT_INPUT + 2 * expert;
    [first, first + 1]
}

/// 0 for what an expert's gate and up read, 1 for what its down reads.
pub(super) fn expert_part(input: usize) -> usize {
    input.saturating_sub(FIRST_EXPERT_INPUT) % 2
}

/// The expert whose input this is.
pub(super) fn expert_of(input: usize) -> Option<usize> {
    Some(input.checked_sub(FIRST_EXPERT_INPUT)? / 2)
}

/// Whether an input is an expert's, which sees the tokens routed to it alone.
pub(super) fn is_of_expert(input: usize) -> bool {
    input >= FIRST_EXPERT_INPUT
}

/// The linear layers of a block: query, key and value, the attention's output, in a decoder behind an encoder the same of
/// cross-attention, feed-forward. With experts, that is the
/// shared one's layers, where there is one, and then each expert's. The router, which is as small as a norm beside them,
/// stays as it is.
pub(super) fn linear_specs(config: &TransformerConfig, block: usize) -> Vec<LinearSpec> {
    let family = config.family.spec();
    let names = config.names_of(block);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let linear = |part: &str, (rows, cols), input, bias| LinearSpec {
        part: part.to_owned(),
        rows,
        cols,
        input,
        bias,
        transposed: family.transposed,
    };
    let mut specs = Vec::new();
    let mut qkv = |part, rows| {
        specs.push(linear(
            part,
            (rows, hidden),
            ATTENTION_INPUT,
            config.qkv_bias,
        ));
    };
    match names.qkv {
        Qkv::Split(parts) => {
            for (part, rows) in parts.into_iter().zip([q, kv, kv]) {
                qkv(part, rows);
            }
        }
        Qkv::Fused { name, .. } => qkv(name, q + 2 * kv),
    }
    specs.push(linear(
        names.output,
        (hidden, q),
        ATTENTION_OUTPUT,
        config.output_bias,
    ));
    if let Some(cross) = names.cross {
        let [query, key, value] = cross.qkv;
        specs.extend([
            linear(query, (q, hidden), CROSS_INPUT, config.qkv_bias),
            linear(key, (kv, hidden), CROSS_MEMORY, config.qkv_bias),
            linear(value, (kv, hidden), CROSS_MEMORY, config.qkv_bias),
            linear(cross.output, (hidden, q), CROSS_OUTPUT, config.output_bias),
        ]);
    }
    if let (Some(experts), Some(spec)) = (config.experts_of(block), &family.experts) {
        let mut gated = |prefix: String, parts: [&str; 3], inner, [input, output]: [usize; 2]| {
            let shapes = [(inner, hidden), (inner, hidden), (hidden, inner)];
            for ((part, shape), input) in parts.into_iter().zip(shapes).zip([input, input, output])
            {
                specs.push(linear(&format!("{prefix}.{part}"), shape, input, false));
            }
        };
        if let (Some(inner), Some([shared, _])) = (experts.shared_intermediate_size, spec.shared) {
            gated(
                shared.to_owned(),
                spec.parts,
                inner,
                [MLP_INPUT, MLP_OUTPUT],
            );
        }
        for expert in 0..experts.count {
            let prefix = format!("{}.{expert}", spec.experts);
            let inner = experts.intermediate_size;
            gated(prefix, spec.parts, inner, expert_inputs(expert));
        }
        return specs;
    }
    let (first, down) = match names.feed_forward {
        FeedForward::Gated { gate, up, down } => (vec![(gate, inner), (up, inner)], down),
        FeedForward::FusedGated { gate_up, down } => (vec![(gate_up, 2 * inner)], down),
        FeedForward::Plain { up, down } => (vec![(up, inner)], down),
        FeedForward::GatedOrPlain { gated, plain, down } => match config.gated {
            true => (gated.map(|part| (part, inner)).to_vec(), down),
            false => (vec![(plain, inner)], down),
        },
    };
    let input = config.mlp_input();
    for (part, rows) in first {
        specs.push(linear(part, (rows, hidden), input, config.mlp_bias));
    }
    specs.push(linear(down, (hidden, inner), MLP_OUTPUT, config.mlp_bias));
    specs
}

/// What a checkpoint puts in front of all names but the head's.
fn prefix(spec: &FamilySpec, source: &dyn TensorSource) -> &'static str {
    match source.info(&format!("{}.weight", spec.names.embedding)) {
        Some(_) => "",
        None => spec.names.prefix,
    }
}

impl TransformerConfig {
    /// Holds [`tied`](Self::tied) against a checkpoint: as in transformers 5, a head that stands in it and differs from the table
    /// of embeddings is a head of its own, whatever `tie_word_embeddings` says.
    pub(super) fn settle_head(&mut self, source: &dyn TensorSource) -> Result<()> {
        let spec = self.family.spec();
        let head = format!("{}.weight", spec.names.head);
        if source.info(&head).is_none() {
            self.tied |= spec.tied_unless_stored;
            return Ok(());
        }
        if spec.tied_unless_stored {
            self.tied = false;
            return Ok(());
        }
        let table = format!("{}{}.weight", prefix(spec, source), spec.names.embedding);
        if self.tied && source.info(&table).is_some() && !source.equal(&head, &table)? {
            self.tied = false;
            self.untied = Some([head, table]);
        }
        Ok(())
    }

    /// The head's name in checkpoints that have one of its own.
    #[must_use]
    pub fn head(&self) -> &'static str {
        self.family.spec().names.head
    }

    /// The first block of the stack that a block belongs to.
    pub(super) fn first_of_stack(&self, block: usize) -> usize {
        match block < self.encoder_blocks {
            true => 0,
            false => self.encoder_blocks,
        }
    }

    /// The last block's number of the encoder in front of a decoder.
    pub(super) fn last_encoder_block(&self) -> Option<usize> {
        self.encoder_blocks.checked_sub(1)
    }

    /// The names of a block's stack.
    pub(super) fn names_of(&self, block: usize) -> &'static Names {
        let spec = self.family.spec();
        match &spec.encoder_names {
            Some(names) if block < self.encoder_blocks => names,
            _ => &spec.names,
        }
    }

    /// Whether a token of a block sees those before it alone.
    pub(super) fn causal(&self, block: usize) -> bool {
        self.kind() != ModelKind::Encoder && block >= self.encoder_blocks
    }

    /// The input of the first feed-forward layers.
    pub(super) fn mlp_input(&self) -> usize {
        match self.residual {
            Residual::ParallelShared => ATTENTION_INPUT,
            _ => MLP_INPUT,
        }
    }

    /// The share of a block's tokens that a layer's input sees on average: less than 1 for an expert's.
    #[must_use]
    pub fn token_share(&self, input: usize) -> f64 {
        match &self.experts {
            Some(experts) if is_of_expert(input) => experts.active as f64 / experts.count as f64,
            _ => 1.0,
        }
    }

    /// Whether layers with this input are the last ones of their block, or of an expert: those that a pass which only shows
    /// inputs to Hessians leaves out.
    #[must_use]
    pub fn is_last_input(&self, input: usize) -> bool {
        input == MLP_OUTPUT || (is_of_expert(input) && expert_part(input) == 1)
    }

    /// Pairs of a query and a key whose scores a block computes for a sequence of so many tokens: what causality and its
    /// window drop is left out.
    #[must_use]
    pub fn score_pairs(&self, block: usize, tokens: usize) -> f64 {
        let all = tokens as f64;
        let window = self.sliding_windows.get(block).copied().flatten();
        let seen = window.map_or(all, |window| (window as f64).min(all));
        match self.causal(block) {
            true => seen * (all - seen) + 0.5 * seen * (seen + 1.0),
            false => all * all,
        }
    }

    /// The experts of a block, where it has some.
    pub(super) fn experts_of(&self, block: usize) -> Option<&Experts> {
        let experts = self.experts.as_ref()?;
        experts.blocks[block].then_some(experts)
    }

    /// The table of learned positions and its rows.
    pub(super) fn position_table(&self) -> Option<(&'static str, usize)> {
        match self.positions {
            Positions::Learned { offset, .. } => {
                let name = self.family.spec().names.positions?;
                Some((name, self.max_positions + offset))
            }
            _ => None,
        }
    }

    /// The projections between the embedding's width and the blocks', where the two differ.
    pub(super) fn projections(&self) -> Option<[&'static str; 2]> {
        let names = self.family.spec().names.projections;
        names.filter(|_| self.embedding_size != self.hidden_size)
    }

    /// Whether this is the weight of a linear layer that is stored as input x output features (GPT-2's Conv1D).
    #[must_use]
    pub fn stores_transposed(&self, tensor: &str) -> bool {
        let spec = self.family.spec();
        let names = &spec.names;
        let part = tensor.strip_prefix(names.prefix).unwrap_or(tensor);
        let in_block = part
            .strip_prefix(names.blocks)
            .is_some_and(|rest| rest.starts_with('.'));
        spec.transposed && in_block && tensor.ends_with(".weight")
    }

    /// A layer's weight (output x input features) in the order in which the checkpoint holds it.
    #[must_use]
    pub fn stored_values(&self, tensor: &str, weight: &Array2<f32>) -> Vec<f32> {
        match self.stores_transposed(tensor) {
            true => weight.t().iter().copied().collect(),
            false => weight.iter().copied().collect(),
        }
    }

    /// The norms of a block.
    pub(super) fn block_norms(&self, block: usize) -> &'static [&'static str] {
        let norms = &self.names_of(block).norms;
        match self.residual {
            Residual::ParallelShared => &norms[..1],
            _ => norms,
        }
    }
}

/// A checkpoint's tensors, held against a configuration.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    pub(super) config: TransformerConfig,
    source: Arc<dyn TensorSource>,
    /// What this checkpoint puts in front of all names but the head's.
    prefix: &'static str,
}

impl Weights {
    /// Checks every tensor of the model against the configuration, without reading any but a head beside the table that it
    /// should be: each one there, in its shape, of a type that can be read, and none that the model would not use.
    pub(super) fn open(
        mut config: TransformerConfig,
        source: Arc<dyn TensorSource>,
    ) -> Result<Self> {
        config.settle_head(&*source)?;
        let prefix = prefix(config.family.spec(), &*source);
        let weights = Self {
            config,
            source,
            prefix,
        };
        weights.check_all()?;
        Ok(weights)
    }

    /// The model of a configuration whose checkpoint is not at hand, for its names and shapes.
    pub(super) fn without_tensors(config: TransformerConfig) -> Self {
        Self {
            prefix: config.family.spec().names.prefix,
            config,
            source: no_tensors(),
        }
    }

    fn names(&self) -> &'static Names {
        &self.config.family.spec().names
    }

    /// The whole name of a part outside the blocks.
    pub(super) fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// The whole name of a part of a block, as in `model.layers.3.mlp.down_proj`.
    pub(super) fn block_name(&self, block: usize, part: &str) -> String {
        let blocks = self.config.names_of(block).blocks;
        let index = block - self.config.first_of_stack(block);
        self.name(&format!("{blocks}.{index}.{part}"))
    }

    /// Reads a tensor after holding its shape against the expected one.
    pub(super) fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_vec(
            self.values(name, shape)?,
            shape,
            &Device::Cpu,
        )?)
    }

    /// A matrix to multiply by: as the source has it ready, or else read.
    pub(super) fn weight(&self, name: &str, shape: Multiplied) -> Result<Weight> {
        check(&*self.source, name, &shape.stored_shape())?;
        if let Some(layer) = self.source.layer(name)? {
            let found = (layer.rows(), layer.cols());
            return match found == (shape.rows, shape.cols) {
                true => Ok(Weight::Packed(layer)),
                false => Err(Error::tensor(
                    name,
                    format!(
                        "is packed as {found:?}, expected {:?}",
                        (shape.rows, shape.cols)
                    ),
                )),
            };
        }
        let stored = self.read(name, &shape.stored_shape())?;
        Ok(Weight::Tensor(match shape.transposed {
            true => stored.t()?.contiguous()?,
            false => stored,
        }))
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        check(&*self.source, name, shape)?;
        let values = self.source.read_f32(name)?;
        let broken = values
            .iter()
            .enumerate()
            .find(|(_, value)| !value.is_finite());
        match broken {
            Some((at, value)) => Err(Error::tensor(
                name,
                format!("holds {value} at position {at}; expected finite weights"),
            )),
            None => Ok(values),
        }
    }

    /// Reads a normalization.
    pub(super) fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let config = &self.config;
        let kind = config.family.spec().norm;
        let mut norm = Norm {
            kind,
            weight: vec![1.0; width],
            bias: vec![0.0; width],
            width,
            eps: config.norm_eps as f32,
        };
        if config.norm_weights {
            let [weight, bias] = self.norm_names(name);
            norm.weight = self.values(&weight, &[width])?;
            match kind {
                NormKind::Rms => {}
                NormKind::RmsOffset => norm.weight.iter_mut().for_each(|weight| *weight += 1.0),
                NormKind::Layer => norm.bias = self.values(&bias, &[width])?,
            }
        }
        Ok(norm)
    }

    /// Reads the norms of a block's heads, of queries and of keys, where it has some.
    pub(super) fn head_norms(&self, block: usize) -> Result<Option<[Norm; 2]>> {
        let config = &self.config;
        let width = config.head_dim;
        let Some(norms) = self.qk_norms(block) else {
            return Ok(None);
        };
        let [queries, keys] = match norms {
            QkNorms::One(parts) => {
                parts.map(|part| self.norm(&self.block_name(block, part), width))
            }
            QkNorms::ByHead(_) => self.head_norm_names(block).map(|names| {
                let weights = names.iter().map(|name| self.values(name, &[width]));
                let weight = weights.collect::<Result<Vec<_>>>()?.concat();
                Ok(Norm {
                    kind: config.family.spec().norm,
                    bias: vec![0.0; weight.len()],
                    weight,
                    width,
                    eps: config.norm_eps as f32,
                })
            }),
        };
        Ok(Some([queries?, keys?]))
    }

    fn qk_norms(&self, block: usize) -> Option<QkNorms> {
        let norms = self.config.names_of(block).qk_norms;
        norms.filter(|_| self.config.head_norms)
    }

    /// The whole names of the weights of heads that have norms of their own, those of queries and those of keys.
    fn head_norm_names(&self, block: usize) -> [Vec<String>; 2] {
        let Some(QkNorms::ByHead([queries, keys])) = self.qk_norms(block) else {
            return Default::default();
        };
        [(queries, self.config.heads), (keys, self.config.kv_heads)].map(|(part, heads)| {
            let name = |head| format!("{}.{head}.weight", self.block_name(block, part));
            (0..heads).map(name).collect()
        })
    }

    /// The whole names of a norm's weight and bias: those of today, or TensorFlow's in old BERT files.
    fn norm_names(&self, name: &str) -> [String; 2] {
        let old = [format!("{name}.gamma"), format!("{name}.beta")];
        match self.source.info(&old[0]) {
            Some(_) => old,
            None => [format!("{name}.weight"), format!("{name}.bias")],
        }
    }

    /// The whole name of the head's bias, where the family has one.
    pub(super) fn head_bias(&self) -> Option<&'static str> {
        let names = self.names().head_bias;
        let there = names.iter().find(|name| self.source.info(name).is_some());
        there.or_else(|| names.last()).copied()
    }

    /// The table of relative positions that a block's stack shares, and its shape, buckets x heads.
    pub(super) fn relative_bias(&self, block: usize) -> Option<(String, [usize; 2])> {
        let part = self.config.names_of(block).relative_bias?;
        let Positions::Relative { buckets, .. } = self.config.positions else {
            return None;
        };
        let first = self.config.first_of_stack(block);
        let name = format!("{}.weight", self.block_name(first, part));
        Some((name, [buckets, self.config.heads]))
    }

    /// Hands each tensor's name and shape to `expect`, until that fails.
    pub(super) fn each(
        &self,
        expect: &mut dyn FnMut(String, &[usize]) -> Result<()>,
    ) -> Result<()> {
        let (config, names) = (&self.config, self.names());
        let (hidden, width) = (config.hidden_size, config.embedding_size);
        let norm = |expect: &mut dyn FnMut(String, &[usize]) -> Result<()>, name: &str, width| {
            if config.norm_weights {
                let [weight, bias] = self.norm_names(name);
                expect(weight, &[width])?;
                if config.family.spec().norm == NormKind::Layer {
                    expect(bias, &[width])?;
                }
            }
            Ok::<(), Error>(())
        };
        let weight = |part: &str| self.name(&format!("{part}.weight"));
        expect(weight(names.embedding), &[config.vocab_size, width])?;
        if let Some((part, rows)) = config.position_table() {
            expect(weight(part), &[rows, hidden])?;
        }
        if let (Some(part), Some(types)) = (names.token_types, config.token_types) {
            expect(weight(part), &[types, hidden])?;
        }
        if let Some(part) = names.embedding_norm {
            norm(expect, &self.name(part), hidden)?;
        }
        if let Some([into, out]) = config.projections() {
            expect(weight(into), &[hidden, width])?;
            expect(weight(out), &[width, hidden])?;
        }
        if config.final_norm {
            norm(expect, &self.name(names.final_norm), hidden)?;
        }
        if !config.tied {
            expect(
                format!("{}.weight", names.head),
                &[config.vocab_size, width],
            )?;
        }
        if let Some(transform) = names.head_transform {
            expect(format!("{}.weight", transform.dense), &[hidden, hidden])?;
            expect(format!("{}.bias", transform.dense), &[hidden])?;
            norm(expect, transform.norm, hidden)?;
        }
        if let Some(name) = self.head_bias() {
            expect(name.to_owned(), &[config.vocab_size])?;
        }
        if let Some(encoder) = &config.family.spec().encoder_names {
            norm(expect, &self.name(encoder.final_norm), hidden)?;
        }
        for block in 0..config.blocks {
            let names = config.names_of(block);
            for part in config.block_norms(block) {
                norm(expect, &self.block_name(block, part), hidden)?;
            }
            if let Some(cross) = names.cross {
                norm(expect, &self.block_name(block, cross.norm), hidden)?;
            }
            if let (Some((name, shape)), true) = (
                self.relative_bias(block),
                block == config.first_of_stack(block),
            ) {
                expect(name, &shape)?;
            }
            for part in names.branch_norms.iter().flatten() {
                norm(expect, &self.block_name(block, part), hidden)?;
            }
            if let Some(QkNorms::One(parts)) = self.qk_norms(block) {
                for part in parts {
                    norm(expect, &self.block_name(block, part), config.head_dim)?;
                }
            }
            for name in self.head_norm_names(block).concat() {
                expect(name, &[config.head_dim])?;
            }
            if let (Some(experts), Some(spec)) =
                (config.experts_of(block), &config.family.spec().experts)
            {
                let weight = |part| format!("{}.weight", self.block_name(block, part));
                expect(weight(spec.router), &[experts.count, hidden])?;
                if let Some([_, gate]) = spec.shared {
                    expect(weight(gate), &[1, hidden])?;
                }
            }
            for linear in linear_specs(config, block) {
                let name = self.block_name(block, &linear.part);
                expect(format!("{name}.weight"), &linear.stored_shape())?;
                if linear.bias {
                    expect(format!("{name}.bias"), &[linear.rows])?;
                }
            }
        }
        Ok(())
    }

    fn check_all(&self) -> Result<()> {
        let source = &*self.source;
        let mut known = BTreeSet::new();
        self.each(&mut |name, shape| {
            check(source, &name, shape)?;
            known.insert(name);
            Ok(())
        })?;
        // A tied head may stand in the file a second time; old checkpoints carry buffers.
        let names = self.names();
        let head = format!("{}.weight", names.head);
        let tolerated = |name: &str| {
            let ignored = names.ignored.iter().any(|ending| name.ends_with(ending));
            ignored || (self.config.tied && name == head)
        };
        let surplus = source
            .names()
            .into_iter()
            .find(|name| !known.contains(name) && !tolerated(name));
        match surplus {
            Some(surplus) => Err(Error::tensor(
                surplus,
                format!(
                    "is in the checkpoint, but a {:?} model with this config.json has no such tensor",
                    self.config.family
                ),
            )),
            None => Ok(()),
        }
    }
}

fn check(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<()> {
    let Some(info) = source.info(name) else {
        return Err(Error::tensor(
            name,
            format!("missing from the checkpoint; config.json calls for one of shape {shape:?}"),
        ));
    };
    if info.shape != shape {
        return Err(Error::tensor(
            name,
            format!(
                "has shape {:?}, config.json calls for {shape:?}",
                info.shape
            ),
        ));
    }
    if !is_float(info.dtype) {
        return Err(Error::tensor(
            name,
            format!(
                "has type {}, expected f32, f16, bf16 or f64; convert the checkpoint to one of them first",
                info.dtype
            ),
        ));
    }
    Ok(())
}

/// A row-major matrix of so many columns, turned to have so many rows.
pub(crate) fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |column| values.iter().skip(column).step_by(columns.max(1));
    (0..columns).flat_map(column).copied().collect()
}
