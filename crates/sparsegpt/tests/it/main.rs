//! The library from the outside.

mod admm;
mod allocate;
mod common;
mod contract;
mod driver;
mod hessian;
mod kernels;
mod own_parts;
mod patterns;
mod products;
mod resume;
mod rowwise;
mod shared_factor;
mod slices;
mod variants;
