//! What went wrong in a launch, where, and by whom.

use std::fmt;

/// A launch that was stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// The kernel.
    pub kernel: String,
    /// Where it happened; none if the launch was refused before the first instruction.
    pub place: Option<Place>,
    /// What happened.
    #[source]
    pub cause: Cause,
}

/// An instruction of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line of the module's text, counted from 1.
    pub line: u32,
    /// The text of that line.
    pub text: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread in its block; for what concerns several threads, the first.
    pub thread: [u32; 3],
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}`", self.kernel)?;
        if let Some(place) = &self.place {
            write!(f, ", {place}")?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {} (`{}`), block {:?}, thread {:?}",
            self.line, self.text, self.block, self.thread
        )
    }
}

/// A state space, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StateSpace {
    Global,
    Shared,
    Constant,
}

impl fmt::Display for StateSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Constant => "constant",
        })
    }
}

/// What stopped a launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The module has no such kernel.
    #[error("no such kernel; the module has {}", names.join(", "))]
    UnknownKernel {
        /// The kernels it has.
        names: Vec<String>,
    },
    /// Too few or too many arguments.
    #[error("{found} arguments for {expected} parameters")]
    ArgumentCount {
        /// Parameters of the kernel.
        expected: usize,
        /// Arguments of the launch.
        found: usize,
    },
    /// An argument that does not fit its parameter.
    #[error("parameter `{name}` (number {index}) is {expected}, the argument is {found}")]
    Argument {
        /// Counted from 0.
        index: usize,
        /// Name of the parameter.
        name: String,
        /// Its type.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A grid or block that no device or this kernel does not allow.
    #[error("{what} {found:?}, allowed is {allowed}")]
    Shape {
        /// Grid or block.
        what: &'static str,
        /// What was given.
        found: [u32; 3],
        /// What would do.
        allowed: String,
    },
    /// More shared memory than a block can have, or dynamic memory that the kernel does not use.
    #[error("{found} bytes of shared memory, {allowed}")]
    SharedMemory {
        /// Static and dynamic bytes.
        found: usize,
        /// What would do.
        allowed: String,
    },
    /// An access that is not wholly inside an allocation.
    #[error("{access} of {bytes} bytes out of bounds of {space} memory at {address:#x}: {nearest}")]
    OutOfBounds {
        /// Load, store, …
        access: &'static str,
        /// The state space.
        space: StateSpace,
        /// The address.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
        /// What stands there or near.
        nearest: String,
    },
    /// An address that is not a multiple of the access's size.
    #[error("{access} of {bytes} bytes at {address:#x}, which is no multiple of {bytes}")]
    Misaligned {
        /// Load, store, …
        access: &'static str,
        /// The address.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
    },
    /// A load of bytes that nobody has written.
    #[error("{access} of {space} memory at {address:#x} that was never written: {nearest}")]
    UndefinedMemory {
        /// Load, atomic, …
        access: &'static str,
        /// The state space.
        space: StateSpace,
        /// The address.
        address: u64,
        /// What stands there.
        nearest: String,
    },
    /// An access to the target of an asynchronous copy that was not waited for.
    #[error("{access} of shared memory at {address:#x} while a cp.async to it is in flight")]
    CopyInFlight {
        /// Load, store, …
        access: &'static str,
        /// The address.
        address: u64,
    },
    /// The source of an asynchronous copy changed while it was in flight.
    #[error("the source of a cp.async changed between the copy and its wait, at {address:#x}")]
    CopySourceChanged {
        /// The source address.
        address: u64,
    },
    /// A read of a register or predicate that this thread has not written.
    #[error("`{name}` is read before it is written")]
    UndefinedRegister {
        /// Its name.
        name: String,
    },
    /// Two accesses that nothing orders.
    #[error(
        "race: {access} of {space} memory at {address:#x} ({nearest}), and {other} by {other_place}; nothing orders the two"
    )]
    Race {
        /// What this thread does.
        access: &'static str,
        /// The state space.
        space: StateSpace,
        /// The address.
        address: u64,
        /// What stands there.
        nearest: String,
        /// What the other thread did.
        other: &'static str,
        /// Where.
        other_place: Box<Place>,
    },
    /// A NaN out of numbers.
    #[error("the result in `{register}` is NaN, and no operand is: {operands}")]
    NotANumber {
        /// The register written.
        register: String,
        /// Values of the operands.
        operands: String,
    },
    /// A NaN in memory.
    #[error("a NaN is loaded from {address:#x} ({nearest})")]
    NotANumberLoaded {
        /// The address.
        address: u64,
        /// What stands there.
        nearest: String,
    },
    /// A store to module-scope or parameter memory.
    #[error("store to constant memory at {address:#x}")]
    ConstantStore {
        /// The address.
        address: u64,
    },
    /// An integer division by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// A barrier or another instruction of the whole warp, reached by some of its lanes only.
    #[error(
        "all threads of the warp must execute this together; lanes {active:#010x} do, of {expected:#010x}"
    )]
    Divergent {
        /// Lanes that are here.
        active: u32,
        /// Lanes that must be.
        expected: u32,
    },
    /// A member mask that names lanes which do not take part, or not all that do.
    #[error(
        "member mask {members:#010x} does not fit: lanes {active:#010x} execute this, {live:#010x} have not exited"
    )]
    Members {
        /// The mask.
        members: u32,
        /// Lanes that execute the instruction.
        active: u32,
        /// Lanes that have not exited.
        live: u32,
    },
    /// A shuffle from a lane that does not take part.
    #[error("shuffle from lane {source_lane}, which does not take part")]
    ShuffleSource {
        /// The lane.
        source_lane: u32,
    },
    /// A barrier that some threads never reach.
    #[error(
        "barrier {id} waits for {expected} threads, {arrived} have arrived, and the rest of the block has exited or waits elsewhere"
    )]
    BarrierNotReached {
        /// Its number.
        id: u32,
        /// Threads it waits for.
        expected: u32,
        /// Threads that came.
        arrived: u32,
    },
    /// A barrier with a number or thread count that cannot be.
    #[error("barrier {id} for {threads} threads: {problem}")]
    BarrierOperands {
        /// Its number.
        id: u32,
        /// Its number of threads.
        threads: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// The `trap` instruction.
    #[error("trap")]
    Trap,
    /// The launch executed more instructions than it may.
    #[error("more than {limit} warp instructions: an endless loop, or a limit too low")]
    Limit {
        /// The limit.
        limit: u64,
    },
}

/// A fault on its way to where the thread and the line are known.
#[derive(Debug)]
pub(crate) struct Trap {
    pub(crate) lane: u32,
    pub(crate) cause: Cause,
}

impl Trap {
    pub(crate) fn new(lane: u32, cause: Cause) -> Box<Self> {
        Box::new(Self { lane, cause })
    }
}

pub(crate) type Trapped<T> = Result<T, Box<Trap>>;
