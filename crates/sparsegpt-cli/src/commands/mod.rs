//! One file for each command.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod layer;
pub(crate) mod logits;
pub(crate) mod methods;
pub(crate) mod pack;
pub(crate) mod prune;
pub(crate) mod repair;
pub(crate) mod report;
