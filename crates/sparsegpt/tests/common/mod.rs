//! What several tests need.

#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod counting;
pub(crate) mod model;
