//! The emulator, instruction by instruction.

mod control;
mod copies;
mod exchange;
mod faults;
mod floats;
mod integers;
mod mma;
mod refusals;
mod support;
