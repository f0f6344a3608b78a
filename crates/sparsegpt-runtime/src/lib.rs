//! Sparse linear layers for CPUs.
//!
//! Weights W are rows x cols = output x input features. [`PackedMatrix`] stores a bit for every weight and the values
//! of those that are not zero; [`DenseMatrix`] stores all, for comparison and as the fallback. [`SparseLinear`] picks
//! one of them by the density it finds and multiplies: y = Wx + b for one token, Y = XWᵀ + b for many.
//!
//! Products run in the rayon pool of the caller, rows in parallel, on the widest instruction set that the processor
//! and this crate have in common ([`Level`]). They add up in f32, whatever the type of the weights, and give the same
//! bits for any number of threads. Those of one token take microseconds: a model runs them inside [`awake`].
#![doc = include_str!("../README.md")]

mod buffer;
#[cfg(feature = "candle")]
pub mod candle;
mod container;
mod dense;
mod error;
pub mod host;
mod kernel;
mod layer;
mod level;
mod linear;
pub mod measure;
mod packed;
mod pattern;
mod quantized;
mod value;

pub use container::{Container, ContainerWriter};
pub use dense::DenseMatrix;
pub use error::{Error, Result};
pub use layer::LinearLayer;
pub use level::Level;
pub use linear::{MOST_SPARSE_DENSITY, QuantizedLinear, SparseLinear, Storage};
pub use packed::{BLOCK_COLS, PADDING, PackedMatrix, PackedParts, TILE_ROWS};
pub use pattern::{PatternMatrix, PatternParts};
pub use quantized::{Codes, QuantizedDense, QuantizedMatrix, QuantizedParts, Width};
pub use value::Value;

pub use sparsegpt_threads::awake;
pub use {half, ndarray};
