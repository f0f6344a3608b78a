//! Model families, whole.

mod decoder;
mod families;
mod outline;
