#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod agreement;
mod check;
mod golden;
mod operations;
mod random;
mod runner;
mod solving;
mod tolerance;
mod truth;

pub use runner::{Suite, Summary, check, check_matching, check_where, run};
