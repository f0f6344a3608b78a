//! A model of your own: a [`ModelAdapter`] in about a hundred lines, without any tensor library.
//!
//! The model is a stack of residual blocks, h + down(relu(up(h))), on ndarray matrices.
//!
//! `cargo run --release -p sparsegpt --example custom_adapter`

use std::convert::Infallible;
use std::ops::ControlFlow;

use sparsegpt::backend::Cpu;
use sparsegpt::ndarray::Array2;
use sparsegpt::{
    BlockLayer, LayerSettings, ModelAdapter, ModelPlan, Pattern, ProgressEvent, Solver, Tap,
    prune_model,
};

const WIDTH: usize = 64;
const INNER: usize = 256;

/// The weights of one block.
struct Block {
    up: Array2<f32>,
    down: Array2<f32>,
}

/// The whole model. An adapter for a large checkpoint would load a block in `begin_block` and write it out
/// in `end_block` instead.
struct Stack {
    blocks: Vec<Block>,
}

impl ModelAdapter for Stack {
    type Sequence = Array2<f32>; // tokens x WIDTH; a language model would take token ids
    type Hidden = Array2<f32>;
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

    fn embed(&mut self, sequence: &Array2<f32>) -> Result<Array2<f32>, Infallible> {
        Ok(sequence.clone())
    }

    fn run_block(
        &mut self,
        block: usize,
        hidden: &Array2<f32>,
        tap: &mut dyn Tap,
    ) -> Result<Array2<f32>, Infallible> {
        let Block { up, down } = &self.blocks[block];
        tap.observe(0, hidden.view().into());
        let inner = hidden.dot(&up.t()).mapv(|x| x.max(0.0));
        tap.observe(1, inner.view().into());
        Ok(hidden + &inner.dot(&down.t()))
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
    let mut model = Stack { blocks };
    let sequences: Vec<_> = (0..8).map(|_| random(128, WIDTH)).collect();

    let plan = ModelPlan::new(LayerSettings::new(Pattern::n_of_m(2, 4)?));
    let report = prune_model(
        &mut model,
        &Solver::new(Cpu::new(0)?),
        &sequences,
        &plan,
        &mut |event| {
            if let ProgressEvent::LayerDone { report } = event {
                println!("{report}");
            }
            ControlFlow::Continue(())
        },
    )?;
    println!(
        "{:.1} % zeros in {:.2} s",
        100.0 * report.zero_fraction(),
        report.seconds.total
    );
    Ok(())
}
