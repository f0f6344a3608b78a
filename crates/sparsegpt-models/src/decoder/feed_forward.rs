//! The feed-forward part of a block, up to its last layer.

use ndarray::Array2;

use super::config::Activation;
use super::elementwise::{activate, gate};
use super::linear::{Linear, outputs};
use super::scratch::{Scrap, Scratch};
use crate::{Error, Result};

/// What the last of some feed-forward layers reads. They are gate, up and down, or up and down.
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
        [up, _] => {
            let [mut inner] = outputs(scratch, x, [up])?;
            activate(activation, &mut inner);
            Ok(inner)
        }
        _ => Err(Error::tensor(
            "(feed-forward)",
            format!("has {} layers, expected 2 or 3", linears.len()),
        )),
    }
}
