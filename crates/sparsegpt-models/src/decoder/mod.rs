//! Models of the GPT, LLaMA, BERT and T5 kind on candle tensors: one stack of blocks in parts (norms, positions, attention,
//! feed-forward, residual order, weight layout), families as tables of names and choices, and the adapter that prunes.
//!
//! A model is a [`TransformerConfig`] and a [`TensorSource`](crate::TensorSource). [`Transformer`] loads all of it, for
//! evaluation and generation; [`TransformerAdapter`] streams it a block at a time, for pruning.

mod adapter;
mod attention;
mod block;
mod config;
mod cross_attention;
mod elementwise;
mod ends;
mod experts;
mod family;
mod feed_forward;
mod finite;
mod hidden;
mod kept;
mod linear;
mod model;
mod norm;
mod on_runtime;
mod outline;
mod product;
mod rope;
mod scratch;
mod self_attention;
mod tensors;
mod weight;
mod weights;

pub use adapter::{BATCH_TOKENS, TransformerAdapter};
pub use config::{Activation, Experts, Positions, Residual, TransformerConfig};
pub use family::{Family, ModelKind};
pub use finite::check_forward;
pub use hidden::Hidden;
pub use model::{KvCache, MatrixBytes, Transformer};
pub(crate) use on_runtime::linear;
pub use on_runtime::{OnRuntime, Stored};
pub(crate) use outline::unread;
pub use outline::{Outline, OutlinedLayer};
pub(crate) use product::TOGETHER;
pub use product::product_speed;
pub use rope::{RopeScaling, RotaryConfig};
pub(crate) use tensors::values;
pub(crate) use weights::{Multiplied, multiplied, transpose};
