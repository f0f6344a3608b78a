//! The operations of the trait as launches. One file an operation, or a family of them.
