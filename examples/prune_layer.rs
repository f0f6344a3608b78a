//! One layer, from activations to a pruned and quantized matrix: what an engine's build step would do.
//!
//! `cargo run --release -p sparsegpt --example prune_layer`

use sparsegpt::backend::Cpu;
use sparsegpt::ndarray::{Array2, Axis};
use sparsegpt::{LayerSettings, Method, Pattern, Solver, UniformGrid};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (rows, cols, tokens) = (256, 512, 2048);
    let mut noise = Noise(1);
    let weights = Array2::from_shape_fn((rows, cols), |_| noise.next());
    // Inputs that depend on each other, as those of a language model do.
    let sources = Array2::from_shape_fn((tokens, 64), |_| noise.next());
    let mixing = Array2::from_shape_fn((64, cols), |_| noise.next());
    let activations =
        sources.dot(&mixing) + Array2::from_shape_fn((tokens, cols), |_| noise.next());

    let solver = Solver::new(Cpu::new(0)?);
    let mut hessian = solver.hessian(cols)?;
    for sequence in activations.axis_chunks_iter(Axis(0), 512) {
        hessian.update(sequence)?;
    }
    let half = LayerSettings::new(Pattern::unstructured(0.5)?);
    for settings in [
        half.clone().with_method(Method::Magnitude),
        half.clone().with_method(Method::Wanda),
        half.clone(),
        LayerSettings::new(Pattern::n_of_m(2, 4)?),
        half.with_quantizer(UniformGrid::new(4)?.with_groups(128)),
    ] {
        let layer = solver.prune(weights.view(), &mut hessian, &settings)?;
        println!("{}", layer.report);
    }
    Ok(())
}

/// Uniform numbers in -1..1 (xorshift), so that the example needs nothing else.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}
