//! Checkpoints, tokenizers, model families, calibration text, perplexity, zero-shot tasks and generation for
//! [`sparsegpt`].

pub mod agreement;
pub mod calibration;
pub mod chat;
pub mod checkpoint;
pub mod decoder;
mod error;
pub mod evaluate;
pub mod generate;
mod gguf;
pub mod inspect;
pub mod masks;
pub mod resume;
mod sequence;
mod source;
pub mod staging;
pub mod text;
pub mod tokenizer;
pub mod zero_shot;

pub use error::{Error, Result};
pub use sequence::Sequence;
pub use source::{TensorInfo, TensorSource};
