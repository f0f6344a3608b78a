//! Runs the PTX text of CUDA kernels on the CPU, and stops where a GPU would go on.
//!
//! The kernels of this workspace are hand-written PTX that must be proven on machines without a GPU.
//! [`Module::parse`] reads their text, [`Memory`] is a device's memory, and [`Launch`] runs a grid, whose
//! outcome is a [`Report`] or a [`Fault`] that names line, block, thread, address and allocation.
//!
//! # What is modelled
//!
//! * **Threads**: blocks run one after the other, the warps of a block in turn from barrier to barrier, the
//!   lanes of a warp in lock step. Lanes that part at a branch run one way after the other and go on
//!   together at the branch's immediate post-dominator. Every way from the branch to the end passes
//!   there, so no lane is left behind, and it is the first such place, so none waits longer than it must.
//!   That is right for any program whose lanes do not wait for each other in loops (a spin lock among the
//!   lanes of a warp ends at [`Options::instruction_limit`]). [`Options::order_seed`] permutes blocks and
//!   warps: results must not change.
//! * **Barriers** wait for all threads of the block, or for as many as they name. Instructions that are
//!   `.aligned` must be executed by the whole warp together; member masks must name lanes that are there.
//! * **Memory**: global, shared (static and dynamic), parameters, and module-scope tables, which are
//!   read-only. Every access is checked for bounds and alignment, every load for bytes that nobody has
//!   written; registers too. Shared memory is undefined when a block begins.
//! * **Races**: accesses of two threads to one place, one of them a plain write, stop the launch unless a
//!   barrier orders them. The rule, with what counts as ordering, is this:
//!     * in a warp, `bar.warp.sync` of all its live lanes, or a barrier of the block. Lock step excuses
//!       nothing. Shuffles and votes order nothing either: they exchange registers, and CUDA promises no
//!       order of memory accesses around them;
//!     * in a block, `bar.sync` of all its threads;
//!     * between blocks of a launch, nothing; between launches, everything.
//!
//!   A place is a word, or a half or byte where the memory is used in halves or bytes. Barriers of some
//!   warps and warp barriers of some lanes are executed, but order nothing for this rule, and atomics and
//!   `.volatile`, `.relaxed`, `.acquire` and `.release` accesses race with plain ones only. So a race may be
//!   reported where a subtler argument shows none, never the reverse: only orders that happen in
//!   *every* schedule count.
//! * **Asynchronous copies** change their target when the issuing thread waits for them; until then every
//!   access to the target stops, and so does a source that has changed meanwhile.
//! * **Arithmetic**: integers as PTX says; `add`, `sub`, `mul`, `fma.rn`, `div.rn`, `sqrt.rn`, `rcp.rn` and
//!   conversions of f32 and f64 are exact in every bit, subnormals included, a NaN is the one the hardware
//!   gives, but for its sign in f64. A NaN made from numbers, or loaded as a float, stops the launch unless [`Options::trap_nan`] is
//!   off.
//! * **`mma`**: products are exact, tf32 operands are read without their low 13 bits, and products are added
//!   to the accumulator one after the other, k ascending, each sum rounded to the nearest f32. Devices
//!   add several products at once and truncate, so their bits differ.
//!
//! # What is not
//!
//! Time, caches, bank conflicts, clocks; weak memory beyond the race rule (what a fence orders is not used to
//! excuse anything); local memory, calls, textures, clusters, `wgmma`, `mbarrier`; and whatever gives other
//! bits on other devices or in other runs: `.approx`, `.ftz`, float atomics. All of it is refused by
//! [`Module::parse`], with the line and the opcode.
//!
//! # What it executes
//!
//! | | |
//! |---|---|
//! | moves | `mov` (also packing and unpacking), `cvta`, `cvt` among integers, f32, f64; f32 with f16, bf16, tf32 |
//! | memory | `ld`, `st` with `.v2`, `.v4`, cache hints, `.nc` and memory orders; `atom`, `red` on integers; `cp.async` |
//! | integers | `add sub mul mad div rem min max abs neg and or xor not shl shr shf popc clz brev bfind bfe bfi lop3 prmt` |
//! | floats | `add sub mul fma div sqrt rcp min max abs neg copysign testp` on f32, f64 |
//! | predicates | `setp` (all comparisons, combined), `selp`, `and or xor not mov` on predicates |
//! | control | `bra`, `ret`, `exit`, `trap`, guards |
//! | warps | `shfl.sync`, `vote.sync`, `redux.sync`, `activemask`, `bar.warp.sync`, `ldmatrix`, `mma.sync` m16n8k4/8/16 |
//! | blocks | `bar.sync`, `barrier.sync`, `bar.arrive`, `bar.red`, `fence`, `membar` |
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
