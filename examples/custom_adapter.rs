//! A model of your own: a [`ModelAdapter`] in about a hundred lines, without any tensor library.
//! `docs/writing-a-model-adapter.md` goes through this file part by part.
//!
//! The model is a stack of residual blocks, h + down(relu(up(h))), on ndarray matrices.
//!
//! `cargo run --release -p sparsegpt --example custom_adapter`

use std::convert::Infallible;
use std::ops::ControlFlow;

use sparsegpt::backend::Cpu;
use sparsegpt::ndarray::Array2;
use sparsegpt::{
    Batch, BlockLayer, LayerSettings, Method, ModelAdapter, ModelPlan, NoTap, Pattern, Solver, Tap,
    prune_model,
};

const WIDTH: usize = 64;
const INNER: usize = 256;

/// The weights of one block.
#[derive(Clone)]
struct Block {
    up: Array2<f32>,
    down: Array2<f32>,
}

/// The whole model. An adapter for a large checkpoint would load a block in `begin_block` and write it out
/// in `end_block` instead.
#[derive(Clone)]
struct Stack {
    blocks: Vec<Block>,
}

/// One sequence: tokens x WIDTH, and which of the tokens are no padding. A language model would take token ids.
#[derive(Clone)]
struct Sequence {
    tokens: Array2<f32>,
    counts: Vec<bool>,
}

impl ModelAdapter for Stack {
    type Sequence = Sequence;
    type Hidden = Sequence;
    type Error = Infallible;

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn layers(&self, block: usize) -> Result<Vec<BlockLayer>, Infallible> {
        let layer = |part: &str, rows, cols, input| BlockLayer {
            name: format!("blocks.{block}.{part}"),
            rows,
            cols,
            input,
        };
        Ok(vec![
            layer("up", INNER, WIDTH, 0),
            layer("down", WIDTH, INNER, 1),
        ])
    }

    fn embed(&mut self, sequence: &Sequence) -> Result<Sequence, Infallible> {
        Ok(sequence.clone())
    }

    fn run_block(
        &mut self,
        block: usize,
        hidden: &Sequence,
        tap: &mut dyn Tap,
    ) -> Result<Sequence, Infallible> {
        let Block { up, down } = &self.blocks[block];
        let Sequence { tokens, counts } = hidden;
        tap.observe(0, Batch::new(tokens.view()).token_mask(counts));
        let inner = tokens.dot(&up.t()).mapv(|x| x.max(0.0));
        tap.observe(1, Batch::new(inner.view()).token_mask(counts));
        Ok(Sequence {
            tokens: tokens + &inner.dot(&down.t()),
            counts: counts.clone(),
        })
    }

    fn weight(&self, block: usize, layer: usize) -> Result<Array2<f32>, Infallible> {
        let Block { up, down } = &self.blocks[block];
        Ok(if layer == 0 { up.clone() } else { down.clone() })
    }

    fn replace_weight(
        &mut self,
        block: usize,
        layer: usize,
        weight: Array2<f32>,
    ) -> Result<(), Infallible> {
        let Block { up, down } = &mut self.blocks[block];
        *(if layer == 0 { up } else { down }) = weight;
        Ok(())
    }
}

/// What the model makes of a sequence.
fn output(model: &mut Stack, sequence: &Sequence) -> Result<Array2<f32>, Infallible> {
    let mut hidden = model.embed(sequence)?;
    for block in 0..model.blocks() {
        hidden = model.run_block(block, &hidden, &mut NoTap)?;
    }
    Ok(hidden.tokens)
}

/// Prunes a copy of the model to 2:4; its error on a sequence that it was not calibrated on.
fn pruned_error(
    model: &Stack,
    sequences: &[Sequence],
    method: Method,
) -> Result<f32, Box<dyn std::error::Error>> {
    let mut pruned = model.clone();
    let settings = LayerSettings::new(Pattern::n_of_m(2, 4)?).with_method(method);
    let (unseen, calibration) = sequences.split_last().ok_or("no sequence")?;
    let report = prune_model(
        &mut pruned,
        &Solver::new(Cpu::new(0)?),
        calibration,
        &ModelPlan::new(settings),
        &mut |_| ControlFlow::Continue(()),
    )?;
    for layer in &report.layers {
        println!("{layer}");
    }
    let dense = output(&mut model.clone(), unseen)?;
    let difference = output(&mut pruned, unseen)? - &dense;
    let norm = |x: &Array2<f32>| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    Ok(norm(&difference) / norm(&dense))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut state = 1_u64;
    let mut random = |rows: usize, cols: usize| {
        Array2::from_shape_fn((rows, cols), |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        })
    };
    let blocks = (0..4)
        .map(|_| Block {
            up: random(INNER, WIDTH) * 0.1,
            down: random(WIDTH, INNER) * 0.1,
        })
        .collect();
    let model = Stack { blocks };
    // Tokens that have something in common: without that, magnitude is as good as any method.
    let common = random(WIDTH / 8, WIDTH);
    let sequences: Vec<_> = (0..9)
        .map(|_| Sequence {
            tokens: random(128, WIDTH / 8).dot(&common) + random(128, WIDTH) * 0.1,
            counts: (0..128).map(|token| token < 120).collect(),
        })
        .collect();

    let magnitude = pruned_error(&model, &sequences, Method::Magnitude)?;
    let sparsegpt = pruned_error(&model, &sequences, Method::SparseGpt)?;
    println!("error of the output: magnitude {magnitude:.3}, SparseGPT {sparsegpt:.3}");
    // What an adapter with its inputs mixed up does not reach.
    if sparsegpt < magnitude {
        Ok(())
    } else {
        Err("calibration has not helped: are the inputs those that the layers read?".into())
    }
}
