#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

pub mod allocate;
pub mod backend;
pub mod driver;
pub mod error;
mod finite;
pub mod hessian;
pub mod mask;
pub mod quant;
#[cfg(feature = "cpu")]
pub mod repair;
pub mod report;
pub mod rowwise;
pub mod solver;
mod threads;

pub use half;
pub use ndarray;

pub use allocate::{Allocator, Budget};
pub use driver::{
    BlockKeeper, BlockLayer, FinishedLayer, LeastTokens, ModelAdapter, ModelPlan, NoTap,
    ObservedLayer, ProgressEvent, Rule, Selector, Starved, Tap, observe_model, prune_model,
    prune_model_resumable, prune_model_variants, prune_model_variants_resumable,
};
pub use error::{Error, Result};
pub use hessian::{Activations, Batch, Hessian, Statistics};
pub use mask::{MaskPolicy, Pattern, Sparsity};
pub use quant::{Quantizer, UniformGrid};
pub use report::{
    AllocationReport, FactorReport, LayerReport, LayerShare, ModelReport, Propagation, StarvedLayer,
};
pub use solver::{LayerPruner, LayerSettings, LayerTask, Method, PrunedLayer, Solver};
