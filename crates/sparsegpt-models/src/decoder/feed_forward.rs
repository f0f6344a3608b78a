//! The feed-forward part of a block, up to its last layer.

use ndarray::{Array2, s};

use super::config::Activation;
use super::elementwise::{activate, gate};
use super::linear::{Linear, outputs};
use super::scratch::{Scrap, Scratch};
use crate::{Error, Result};

/// What the last of some feed-forward layers reads. They are gate, up and down, or gate
/// and up in one and down, or up and down.
pub(super) fn inner<'s>(
    linears: &[Linear],
    activation: Activation,
    scratch: &'s Scratch,
    x: &Array2<f32>,
) -> Result<Scrap<'s>> {
    match linears {
        [gate_layer, up, _] => {
            let [mut inner, up] = outputs(scratch, x, [gate_layer, up])?;
            gate(activation, &mut inner, &up);
            Ok(inner)
        }
        [first, down] => {
            let [mut inner] = outputs(scratch, x, [first])?;
            let width = down.weight.shape()?.1;
            if inner.ncols() == 2 * width {
                let [mut gated, up] = std::array::from_fn(|part| {
                    let mut half = scratch.matrix(inner.nrows(), width);
                    half.assign(&inner.slice(s![.., part * width..(part + 1) * width]));
                    half
                });
                gate(activation, &mut gated, &up);
                return Ok(gated);
            }
            activate(activation, &mut inner);
            Ok(inner)
        }
        _ => Err(Error::tensor(
            "(feed-forward)",
            format!("has {} layers, expected 2 or 3", linears.len()),
        )),
    }
}
