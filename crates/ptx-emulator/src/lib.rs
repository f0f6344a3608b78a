//! Runs the PTX text of CUDA kernels on the CPU, and stops where a GPU would go on.
//!
//! The kernels of this workspace are hand-written PTX that must be proven on machines without a GPU.
//! [`Module::parse`] reads their text, [`Memory`] is a device's memory, [`Launch`] runs a grid and gives
//! a [`Report`] or a [`Fault`], which names line, block, thread, address and allocation.
#![deny(unsafe_code)]

mod decode;
mod execute;
mod fault;
mod instruction;
mod launch;
mod memory;
mod module;
mod random;
mod syntax;

pub use fault::{Cause, Fault, Place, StateSpace};
pub use launch::{Argument, Block, Grid, Launch, Options, Report};
pub use memory::{DevicePointer, Memory, MemoryError, Value};
pub use module::{Kernel, Module, Parameter};
pub use syntax::{ParseError, ScalarType};
