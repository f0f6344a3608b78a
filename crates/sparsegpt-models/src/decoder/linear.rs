//! Linear layers.

use candle_core::Tensor;
use faer::Accum;
use ndarray::Array2;

use super::scratch::{Scrap, Scratch};
use super::tensors::with_rows;
use super::weight::{Weight, weigh};
use super::weights::{LinearSpec, Weights};
use crate::Result;

/// A linear layer: weight rows x cols, and a bias where the model has one.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub(super) weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// `name` is the whole name in the checkpoint, without `.weight`.
    pub(super) fn load(weights: &Weights, name: &str, spec: &LinearSpec) -> Result<Self> {
        let weight = weights.weight(&format!("{name}.weight"), spec.multiplied())?;
        let bias = spec
            .bias
            .then(|| weights.read(&format!("{name}.bias"), &[spec.rows]))
            .transpose()?;
        Ok(Self { weight, bias })
    }

    /// The weight as the checkpoint holds it.
    pub(super) fn stored(&self, spec: &LinearSpec) -> Result<Vec<f32>> {
        let weight = self.weight.values()?;
        Ok(match spec.transposed {
            true => weight.t().iter().copied().collect(),
            false => weight.iter().copied().collect(),
        })
    }

    /// Adds the bias to each row.
    fn add_bias(&self, sum: &mut Array2<f32>) -> Result<()> {
        if let Some(bias) = &self.bias {
            with_rows(bias, |bias| {
                *sum += &bias;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Adds what the layer makes of `x` (tokens x cols) to `sum` (tokens x rows).
    pub(super) fn add_output(&self, sum: &mut Array2<f32>, x: &Array2<f32>) -> Result<()> {
        self.add_bias(sum)?;
        weigh(x.view(), vec![(sum, Accum::Add, &self.weight)])
    }
}

/// What some layers make of the same input (tokens x cols): tokens x rows each.
pub(super) fn outputs<'s, const N: usize>(
    scratch: &'s Scratch,
    x: &Array2<f32>,
    linears: [&Linear; N],
) -> Result<[Scrap<'s>; N]> {
    let mut outputs = std::array::from_fn(|_| scratch.matrix(0, 0));
    let mut pairs = Vec::with_capacity(N);
    for (output, linear) in outputs.iter_mut().zip(linears) {
        *output = scratch.matrix(x.nrows(), linear.weight.shape()?.0);
        let mut accum = Accum::Replace;
        if linear.bias.is_some() {
            output.fill(0.0);
            linear.add_bias(output)?;
            accum = Accum::Add;
        }
        pairs.push((&mut **output, accum, &linear.weight));
    }
    weigh(x.view(), pairs)?;
    Ok(outputs)
}
