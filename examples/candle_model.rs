//! A model of your own in candle: an adapter for it, pruning, and its linear layers replaced by sparse ones.
//!
//! The model is a stack of residual blocks, h + down(relu(up(h))), on candle's tensors.
//!
//! `cargo run --release -p sparsegpt-models --example candle_model`

use std::error::Error;
use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{Device, Module, Result, Tensor};
use sparsegpt::backend::Cpu;
use sparsegpt::ndarray::Array2;
use sparsegpt::{
    Batch, BlockLayer, LayerSettings, ModelAdapter, ModelPlan, NoTap, Pattern, Solver, Tap,
    prune_model,
};
use sparsegpt_runtime::candle::Linear;
use sparsegpt_runtime::{LinearLayer, SparseLinear};

const WIDTH: usize = 128;
const INNER: usize = 512;

/// A linear layer before and after it was replaced.
#[derive(Clone)]
enum Layer {
    /// rows x cols.
    Dense(Tensor),
    Sparse(Linear),
}

impl Module for Layer {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => x.matmul(&weight.t()?),
            Self::Sparse(layer) => layer.forward(x),
        }
    }
}

/// `up` and `down` of each block.
#[derive(Clone)]
struct Stack {
    blocks: Vec<[Layer; 2]>,
}

fn matrix(tensor: &Tensor) -> Result<Array2<f32>> {
    let values = tensor.flatten_all()?.to_vec1()?;
    Array2::from_shape_vec(tensor.dims2()?, values).map_err(candle_core::Error::wrap)
}

fn tensor(matrix: &Array2<f32>) -> Result<Tensor> {
    Tensor::from_iter(matrix.iter().copied(), &Device::Cpu)?.reshape(matrix.dim())
}

impl ModelAdapter for Stack {
    type Sequence = Tensor;
    type Hidden = Tensor;
    type Error = candle_core::Error;

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn layers(&self, block: usize) -> Result<Vec<BlockLayer>> {
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

    fn embed(&mut self, sequence: &Tensor) -> Result<Tensor> {
        Ok(sequence.clone())
    }

    fn run_block(&mut self, block: usize, hidden: &Tensor, tap: &mut dyn Tap) -> Result<Tensor> {
        let [up, down] = &self.blocks[block];
        tap.observe(0, Batch::new(matrix(hidden)?.view()));
        let inner = up.forward(hidden)?.relu()?;
        tap.observe(1, Batch::new(matrix(&inner)?.view()));
        hidden + down.forward(&inner)?
    }

    fn weight(&self, block: usize, layer: usize) -> Result<Array2<f32>> {
        match &self.blocks[block][layer] {
            Layer::Dense(weight) => matrix(weight),
            Layer::Sparse(_) => candle_core::bail!("block {block} has been packed already"),
        }
    }

    fn replace_weight(&mut self, block: usize, layer: usize, weight: Array2<f32>) -> Result<()> {
        self.blocks[block][layer] = Layer::Dense(tensor(&weight)?);
        Ok(())
    }
}

impl Stack {
    fn run(&mut self, sequence: &Tensor) -> Result<Tensor> {
        let mut hidden = self.embed(sequence)?;
        for block in 0..self.blocks() {
            hidden = self.run_block(block, &hidden, &mut NoTap)?;
        }
        Ok(hidden)
    }

    /// Replaces the linear layers by sparse ones; their bytes, dense and packed.
    fn pack(&mut self) -> std::result::Result<(usize, usize), Box<dyn Error>> {
        let (mut dense, mut packed) = (0, 0);
        for layer in self.blocks.iter_mut().flatten() {
            if let Layer::Dense(weight) = layer {
                let sparse = SparseLinear::smallest(matrix(weight)?.view(), None)?;
                dense += weight.elem_count() * size_of::<f32>();
                packed += sparse.bytes();
                let sparse: Arc<dyn LinearLayer> = Arc::new(sparse);
                *layer = Layer::Sparse(Linear::new(sparse));
            }
        }
        Ok((dense, packed))
    }
}

fn difference(found: &Tensor, expected: &Tensor) -> Result<f32> {
    let norm = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
    Ok((norm(&(found - expected)?)? / norm(expected)?).sqrt())
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let random = |rows, cols, size: f32| Tensor::randn(0.0, size, (rows, cols), &Device::Cpu);
    let blocks = (0..3)
        .map(|_| {
            Ok([
                Layer::Dense(random(INNER, WIDTH, 0.1)?),
                Layer::Dense(random(WIDTH, INNER, 0.05)?),
            ])
        })
        .collect::<Result<_>>()?;
    let mut dense = Stack { blocks };
    // Features that depend on each other, as those of a real model do.
    let common = random(WIDTH / 8, WIDTH, 1.0)?;
    let sequences = (0..9)
        .map(|_| random(128, WIDTH / 8, 1.0)?.matmul(&common)? + random(128, WIDTH, 0.1)?)
        .collect::<Result<Vec<_>>>()?;
    let (unseen, calibration) = sequences.split_last().ok_or("no sequence")?;

    let mut model = dense.clone();
    let plan = ModelPlan::new(LayerSettings::new(Pattern::n_of_m(2, 4)?));
    let solver = Solver::new(Cpu::new(0)?);
    let report = prune_model(&mut model, &solver, calibration, &plan, &mut |_| {
        ControlFlow::Continue(())
    })?;
    for layer in &report.layers {
        println!("{layer}");
    }
    let pruned = model.run(unseen)?;
    let (bytes, packed_bytes) = model.pack()?;
    let packed = model.run(unseen)?;
    let from_dense = difference(&pruned, &dense.run(unseen)?)?;
    println!(
        "2:4 changes the output by {from_dense:.3}; {bytes} bytes of weights, {packed_bytes} packed"
    );
    let from_pruned = difference(&packed, &pruned)?;
    if from_pruned > 1e-5 || packed_bytes >= bytes {
        return Err(format!("packing changed the output by {from_pruned}").into());
    }
    Ok(())
}
