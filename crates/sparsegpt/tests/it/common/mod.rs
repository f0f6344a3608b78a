//! What several tests need.

#![allow(clippy::unwrap_used)]

pub(crate) mod counting;
pub(crate) mod model;
