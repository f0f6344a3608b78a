//! Instructions as they are executed: operands resolved to slots of the register file.
//!
//! Immediates, addresses of variables and special registers are slots too, filled when a warp starts,
//! so that an operand is always a slot.

/// A row of a warp's register file: 32 lanes of 64 bits, narrower values zero-extended.
pub(crate) type Slot = u32;

/// A predicate register, or a constant predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) predicate: u32,
    pub(crate) negated: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) line: u32,
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
}

/// What a slot holds when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Initial {
    Constant(u64),
    /// The address of dynamic shared memory.
    DynamicShared,
    Special(Special),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    /// Axis 0, 1, 2 is x, y, z.
    Thread(u8),
    Threads(u8),
    Block(u8),
    Blocks(u8),
    Lane,
    Warp,
    Warps,
    LanesEqual,
    LanesLess,
    LanesLessEqual,
    LanesGreater,
    LanesGreaterEqual,
    DynamicSharedSize,
    TotalSharedSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    F64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    Int(Int),
    Float(Float),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntUnary {
    Neg,
    Abs,
    Not,
    /// Results of the counts are 32 bits wide whatever the operand is.
    CountOnes,
    LeadingZeros,
    HighestBit,
    ReverseBits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntBinary {
    Add,
    Sub,
    MulLow,
    MulHigh,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    /// Amounts of shifts are 32 bits wide, and clamp at the width of the operand.
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntTernary {
    MadLow,
    MadHigh,
    MadWide,
    /// b is the position, c the length.
    ExtractBits,
}

/// Operations on 32-bit words that have forms of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WordTernary {
    Lop3(u8),
    PermuteBytes,
    /// Funnel shifts; `clamp` or wrap of the amount.
    FunnelLeft {
        clamp: bool,
    },
    FunnelRight {
        clamp: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatUnary {
    Abs,
    Neg,
    Sqrt,
    Reciprocal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatBinary {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    /// A NaN operand makes the result NaN.
    MinNan,
    MaxNan,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// True with a NaN operand, as the `u` forms are.
    EqualOrNan,
    NotEqualOrNan,
    LessOrNan,
    LessEqualOrNan,
    GreaterOrNan,
    GreaterEqualOrNan,
    Numbers,
    AnyNan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bool {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatTest {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Rounding of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    Zero,
    Down,
    Up,
}

/// An integer of a conversion: width in bytes and sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Integer {
    pub(crate) bytes: u8,
    pub(crate) signed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conversion {
    IntToInt {
        from: Integer,
        to: Integer,
        saturate: bool,
        destination: u8,
    },
    IntToFloat {
        from: Integer,
        to: Float,
    },
    FloatToInt {
        from: Float,
        to: Integer,
        rounding: Rounding,
        destination: u8,
    },
    /// Rounding to an integral value, or none.
    F32ToF32(Option<Rounding>),
    F64ToF64(Option<Rounding>),
    F32ToF64,
    F64ToF32,
    F32ToF16,
    F16ToF32,
    F32ToBf16,
    Bf16ToF32,
    F32ToTf32,
}

/// Two f32 to a packed pair of halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Constant,
}

/// What an access promises about others to the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing: unordered accesses of two threads are a race.
    Plain,
    /// Plain, and nobody writes the place during the launch.
    ReadOnly,
    /// `.volatile`, `.relaxed`, `.acquire`, `.release` and atomics: no race among themselves.
    Strong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) space: Space,
    pub(crate) base: Slot,
    pub(crate) offset: i64,
}

/// One element of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) bytes: u8,
    /// Sign extension to `register` bytes on loads.
    pub(crate) signed: bool,
    pub(crate) float: Option<Float>,
    /// Width of the register in bytes.
    pub(crate) register: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Increment,
    Decrement,
    Exchange,
    CompareAndSwap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// A reduction over the threads at a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierReduce {
    Count { d: Slot, source: Guard },
    All { d: u32, source: Guard },
    Any { d: u32, source: Guard },
}

/// Elements of the operands of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaElement {
    Tf32,
    F16,
    Bf16,
}

/// `mma.sync.aligned.m16n8k*`: registers of the four fragments in PTX order.
#[derive(Clone, Debug)]
pub(crate) struct Mma {
    pub(crate) element: MmaElement,
    pub(crate) depth: u8,
    pub(crate) d: [Slot; 4],
    pub(crate) a: Vec<Slot>,
    pub(crate) b: Vec<Slot>,
    pub(crate) c: [Slot; 4],
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Move {
        d: Slot,
        a: Slot,
    },
    /// `d` = parts, the first lowest, each `bits` wide.
    Pack {
        d: Slot,
        parts: Vec<Slot>,
        bits: u8,
    },
    Unpack {
        parts: Vec<Option<Slot>>,
        a: Slot,
        bits: u8,
    },
    IntUnary {
        op: IntUnary,
        int: Int,
        d: Slot,
        a: Slot,
    },
    IntBinary {
        op: IntBinary,
        int: Int,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    IntTernary {
        op: IntTernary,
        int: Int,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `mad24` and friends are not among these: words only.
    WordTernary {
        op: WordTernary,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// Inserts the low `length` bits of `a` into `b` at `position`.
    InsertBits {
        int: Int,
        d: Slot,
        a: Slot,
        b: Slot,
        position: Slot,
        length: Slot,
    },
    FloatUnary {
        op: FloatUnary,
        float: Float,
        d: Slot,
        a: Slot,
    },
    FloatBinary {
        op: FloatBinary,
        float: Float,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Fma {
        float: Float,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    TestFloat {
        test: FloatTest,
        float: Float,
        p: u32,
        a: Slot,
    },
    SetPredicate {
        compare: Compare,
        number: Number,
        combine: Option<(Bool, Guard)>,
        p: Option<u32>,
        q: Option<u32>,
        a: Slot,
        b: Slot,
    },
    Select {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Guard,
    },
    PredicateMove {
        p: u32,
        a: Guard,
    },
    PredicateConstant {
        p: u32,
        value: bool,
    },
    PredicateLogic {
        op: Bool,
        p: u32,
        a: Guard,
        b: Guard,
    },
    Convert {
        conversion: Conversion,
        d: Slot,
        a: Slot,
    },
    /// `a` to the upper half.
    ConvertPair {
        to: Packed,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// Adds a constant to an address: between the generic and the shared window.
    MoveWindow {
        d: Slot,
        a: Slot,
        add: u64,
    },
    LoadParameter {
        values: Vec<Slot>,
        offset: u32,
        element: Element,
    },
    Load {
        values: Vec<Option<Slot>>,
        address: Address,
        element: Element,
        order: Order,
    },
    Store {
        values: Vec<Slot>,
        address: Address,
        element: Element,
        order: Order,
    },
    Atomic {
        op: AtomicOp,
        element: Element,
        d: Option<Slot>,
        address: Address,
        b: Slot,
        c: Slot,
    },
    CopyAsync {
        to: Address,
        from: Address,
        bytes: u8,
        source_bytes: Option<Slot>,
    },
    CopyCommit,
    /// Waits for all but the `pending` youngest groups.
    CopyWait {
        pending: u32,
    },
    CopyWaitAll,
    Shuffle {
        mode: ShuffleMode,
        d: Slot,
        p: Option<u32>,
        a: Slot,
        b: Slot,
        c: Slot,
        members: Slot,
    },
    Vote {
        vote: Vote,
        p: u32,
        a: Guard,
        members: Slot,
    },
    Ballot {
        d: Slot,
        a: Guard,
        members: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    ReduceLanes {
        op: Reduce,
        int: Int,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    Mma(Box<Mma>),
    LoadMatrix {
        values: Vec<Slot>,
        transposed: bool,
        address: Address,
    },
    WarpBarrier {
        members: Slot,
    },
    /// Waits until `threads` threads of the block, all by default, have arrived.
    Barrier {
        id: Slot,
        threads: Option<Slot>,
        reduce: Option<BarrierReduce>,
    },
    /// Counts for a barrier without waiting.
    Arrive {
        id: Slot,
        threads: Slot,
    },
    /// Fences, prefetches: nothing that this model has.
    Nothing,
    /// `join` is where the two ways meet again (the immediate post-dominator).
    Branch {
        target: u32,
        join: u32,
    },
    Exit,
    Trap,
}
