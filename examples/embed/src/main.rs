//! Runs the model that `build.rs` has pruned, out of the executable: no file is read.
//!
//! `cargo run -p sparsegpt-example-embed`

use sparsegpt_runtime::ndarray::{Array2, Axis};
use sparsegpt_runtime::{Container, Result, SparseLinear};

static MODEL: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/model.packed"));

/// y = x + down(relu(up(x))).
struct Model {
    up: SparseLinear<f32>,
    down: SparseLinear<f32>,
}

impl Model {
    fn embedded() -> Result<Self> {
        let container = Container::from_bytes("the embedded model", MODEL)?;
        Ok(Self {
            up: container.layer("up")?,
            down: container.layer("down")?,
        })
    }

    /// Tokens x features, in and out.
    fn run(&self, x: &Array2<f32>) -> Result<Array2<f32>> {
        let inner = self.up.forward(x.view())?.mapv(|x| x.max(0.0));
        Ok(x + &self.down.forward(inner.view())?)
    }
}

fn main() -> Result<()> {
    let model = Model::embedded()?;
    let (rows, cols) = (model.up.rows(), model.up.cols());
    let dense = 2 * rows * cols * size_of::<f32>();
    println!(
        "two layers of {rows} x {cols} and {cols} x {rows}, 2:4: {} bytes in the executable, {dense} dense",
        MODEL.len()
    );
    let x = Array2::from_shape_fn((4, cols), |(token, at)| ((token * 7 + at) % 5) as f32 - 2.0);
    let y = model.run(&x)?;
    println!(
        "norms of four outputs: {:.3}",
        y.map_axis(Axis(1), |y| y.dot(&y).sqrt())
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_layers_have_the_pattern_and_run() -> Result<()> {
        let model = Model::embedded()?;
        for layer in [&model.up, &model.down] {
            let weights = layer.unpack();
            let groups = weights.exact_chunks((1, 4));
            assert!(
                groups
                    .into_iter()
                    .all(|group| { group.iter().filter(|&&weight| weight == 0.0).count() == 2 })
            );
        }
        let x = Array2::ones((3, model.up.cols()));
        let y = model.run(&x)?;
        assert!(y.iter().all(|y| y.is_finite()) && y != x);
        Ok(())
    }
}
