//! Flags that several commands or the recipe file share, and what they mean.

mod allocation;
mod layer;
mod patterns;
mod plan;
mod recipe;

pub(crate) use allocation::{Allocating, percentage};
pub(crate) use layer::LayerFlags;
pub(crate) use patterns::folder_name;
pub(crate) use plan::{PlanFlags, selector};
pub(crate) use recipe::{Flags, with_recipe};

/// Whether a switch that may be absent is on.
fn on(switch: Option<bool>) -> bool {
    switch.unwrap_or(false)
}
