//! Our side of `benches/peers/layer.py`: solves one layer whenever it is told to.
//!
//! `peer FILE THREADS` reads the tensors `weight` and `hessian` (f32) of a safetensors file. Each line of its
//! input is a pattern (`50%`, `2:4`, `50%+4bit`), answered with the seconds of the solve; after a pattern and a
//! file name, the result is written there as the tensor `pruned`. Ends with its input.

#![allow(clippy::unwrap_used)]

use std::io::BufRead;
use std::time::Instant;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sparsegpt::backend::Cpu;
use sparsegpt::ndarray::Array2;
use sparsegpt::quant::UniformGrid;
use sparsegpt::{LayerSettings, Pattern, Solver};

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(file) = args.next() else {
        println!("run by benches/peers/layer.py");
        return;
    };
    let threads = args.next().unwrap().parse().unwrap();
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let weights = matrix(&tensors, "weight");
    let solver = Solver::new(Cpu::new(threads).unwrap());
    // Once a model, as its first layer would do.
    solver
        .backend()
        .reserve(weights.nrows(), weights.ncols())
        .unwrap();
    let mut hessian = solver
        .hessian_from(matrix(&tensors, "hessian").view())
        .unwrap();
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let (pattern, out) = match line.split_once(' ') {
            Some((pattern, out)) => (pattern, Some(out)),
            None => (&*line, None),
        };
        let (mask, quantize) = match pattern.strip_suffix("+4bit") {
            Some(mask) => (mask, true),
            None => (pattern, false),
        };
        let mut settings = LayerSettings::new(mask.parse::<Pattern>().unwrap()).with_measure(false);
        if quantize {
            settings = settings.with_quantizer(UniformGrid::new(4).unwrap());
        }
        let start = Instant::now();
        let layer = solver
            .prune(weights.view(), &mut hessian, &settings)
            .unwrap();
        println!("{}", start.elapsed().as_secs_f64());
        if let Some(out) = out {
            let values = layer.weights.iter().flat_map(|value| value.to_le_bytes());
            let values: Vec<u8> = values.collect();
            let (rows, cols) = layer.weights.dim();
            let view = TensorView::new(Dtype::F32, vec![rows, cols], &values).unwrap();
            safetensors::serialize_to_file([("pruned", view)], None, out.as_ref()).unwrap();
            println!("written");
        }
    }
}

fn matrix(tensors: &SafeTensors<'_>, name: &str) -> Array2<f32> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    let (values, _) = tensor.data().as_chunks::<4>();
    let values = values.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let shape = (tensor.shape()[0], tensor.shape()[1]);
    Array2::from_shape_vec(shape, values.collect()).unwrap()
}
