//! Layers and their containers.

mod container;
mod products;
