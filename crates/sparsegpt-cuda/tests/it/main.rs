//! The kernels' text and what is launched of it, on the emulator.

// Beside this folder, as suites of their own and a benchmark share it.
#[path = "../emulated/mod.rs"]
mod emulated;
mod kernels;
mod layers;
mod library;
mod planted;
mod products;
mod shapes;
mod twin;
