//! The command, as a shell runs it.

mod allocation;
mod backend;
mod common;
mod compare;
mod every_family;
mod families;
mod formats;
mod generate;
mod layer;
mod model;
mod packed;
mod plan;
mod remarks;
mod repair;
mod report;
mod resume;
mod signals;
mod tasks;
mod usage;
mod variants;
