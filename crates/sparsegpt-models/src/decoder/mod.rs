//! The LLaMA family on candle tensors: configuration, forward pass, and the adapter that prunes it.
//!
//! A model is a [`LlamaConfig`] and a [`TensorSource`](crate::TensorSource). [`Llama`] loads all of it, for
//! evaluation and generation; [`LlamaAdapter`] streams it a block at a time, for pruning.

mod adapter;
mod attention;
mod block;
mod config;
mod elementwise;
mod model;
mod product;
mod rope;
mod scratch;
mod tensors;
mod weights;

pub use adapter::LlamaAdapter;
pub use config::{Activation, Family, LlamaConfig};
pub use model::{KvCache, Llama};
pub use rope::{RopeScaling, RotaryConfig};
pub(crate) use tensors::values;
