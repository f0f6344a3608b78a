//! Prunes `model.safetensors` to 2:4 and packs it, so that `main.rs` can embed it. The file holds the weights of the layers `up`
//! and `down` of y = x + down(relu(up(x))), and `inputs` from a calibration set.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use sparsegpt::backend::Host;
use sparsegpt::ndarray::Array2;
use sparsegpt::{LayerSettings, Pattern, Solver};
use sparsegpt_runtime::{ContainerWriter, SparseLinear};

const MODEL: &str = "model.safetensors";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={MODEL}");
    let bytes = fs::read(MODEL)?;
    let model = SafeTensors::deserialize(&bytes)?;
    let up = matrix(&model, "up")?;
    let down = matrix(&model, "down")?;
    let inputs = matrix(&model, "inputs")?;

    let up = prune(&up, &inputs)?;
    // The second layer is calibrated on what the pruned first one gives.
    let inner = inputs.dot(&up.t()).mapv(|x| x.max(0.0));
    let down = prune(&down, &inner)?;

    let (up, down) = (
        SparseLinear::smallest(up.view(), None)?,
        SparseLinear::smallest(down.view(), None)?,
    );
    let mut writer = ContainerWriter::new();
    writer.add("up", &up)?;
    writer.add("down", &down)?;
    let out = env::var_os("OUT_DIR").ok_or("build scripts are run by cargo")?;
    writer.write(&Path::new(&out).join("model.packed"))?;
    Ok(())
}

fn prune(weights: &Array2<f32>, inputs: &Array2<f32>) -> Result<Array2<f32>, Box<dyn Error>> {
    let solver = Solver::new(Host);
    let mut hessian = solver.hessian(weights.ncols())?;
    hessian.update(inputs.view())?;
    let settings = LayerSettings::new(Pattern::n_of_m(2, 4)?);
    Ok(solver
        .prune(weights.view(), &mut hessian, &settings)?
        .weights)
}

/// A tensor of f32 in two dimensions.
fn matrix(model: &SafeTensors<'_>, name: &str) -> Result<Array2<f32>, Box<dyn Error>> {
    let tensor = model.tensor(name)?;
    let &[rows, cols] = tensor.shape() else {
        return Err(format!("{MODEL}: expected {name} in two dimensions").into());
    };
    let (values, rest) = tensor.data().as_chunks();
    if tensor.dtype() != safetensors::Dtype::F32 || !rest.is_empty() {
        return Err(format!("{MODEL}: expected {name} of f32").into());
    }
    let values = values.iter().map(|&value| f32::from_le_bytes(value));
    Ok(Array2::from_shape_vec((rows, cols), values.collect())?)
}
