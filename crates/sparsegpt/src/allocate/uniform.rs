//! The same sparsity everywhere.

use super::{Allocator, Budget, Shares, Survey, apportion};
use crate::error::Result;

/// The same sparsity in all layers, as in the paper; the zeros that rounding down leaves over go one each to the layers
/// with the largest fractions, so that the model has floor(p · weights) exactly. Costs nothing. The yardstick of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uniform;

impl Allocator for Uniform {
    fn describe(&self) -> String {
        "uniform".to_owned()
    }

    fn allocate(&self, model: &mut dyn Survey, budget: &Budget) -> Result<Shares> {
        let layers = model.layers();
        let ideal = vec![budget.sparsity.fraction(); layers.len()];
        Ok(Shares::new(apportion(
            layers,
            &ideal,
            budget.zeros(layers),
        )?))
    }
}
