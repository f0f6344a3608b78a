#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

pub mod backend;
pub mod driver;
pub mod error;
mod finite;
pub mod hessian;
pub mod mask;
pub mod quant;
pub mod report;
pub mod solver;

pub use half;
pub use ndarray;

pub use driver::{
    BlockLayer, FinishedLayer, ModelAdapter, ModelPlan, NoTap, ProgressEvent, Rule, Selector,
    Starved, Tap, prune_model, prune_model_variants,
};
pub use error::{Error, Result};
pub use hessian::{Activations, Batch, Hessian, Statistics};
pub use mask::{MaskPolicy, Pattern, Sparsity};
pub use quant::{Quantizer, UniformGrid};
pub use report::{LayerReport, ModelReport, Propagation};
pub use solver::{LayerPruner, LayerSettings, LayerTask, Method, PrunedLayer, Solver};
