//! Launches of kernels.

use crate::execute::{Barriers, Machine, Warp, run};
use crate::fault::{Cause, Fault};
use crate::memory::{DevicePointer, Memory, Store};
use crate::module::{Kernel, Module, Parameter};
use crate::random::Shuffle;
use crate::syntax::ScalarType;

/// Threads of a block at most.
const MAX_THREADS: u32 = 1024;
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// Blocks of a launch along x, y, z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid(pub [u32; 3]);

impl Grid {
    /// So many blocks along x.
    pub fn x(blocks: u32) -> Self {
        Self([blocks, 1, 1])
    }
}

/// Threads of a block along x, y, z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block(pub [u32; 3]);

impl Block {
    /// So many threads along x.
    pub fn x(threads: u32) -> Self {
        Self([threads, 1, 1])
    }
}

/// An argument for a parameter of a kernel.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Argument {
    Pointer(DevicePointer),
    U32(u32),
    S32(i32),
    U64(u64),
    F32(f32),
    F64(f64),
    /// The bytes of any parameter, an array's for instance.
    Bytes(Vec<u8>),
}

impl From<DevicePointer> for Argument {
    fn from(pointer: DevicePointer) -> Self {
        Self::Pointer(pointer)
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl Argument {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Pointer(pointer) => pointer.address().to_le_bytes().to_vec(),
            Self::U32(value) => value.to_le_bytes().to_vec(),
            Self::S32(value) => value.to_le_bytes().to_vec(),
            Self::U64(value) => value.to_le_bytes().to_vec(),
            Self::F32(value) => value.to_le_bytes().to_vec(),
            Self::F64(value) => value.to_le_bytes().to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    /// The bytes, if the parameter takes them.
    fn fit(&self, parameter: &Parameter) -> Option<Vec<u8>> {
        let bytes = self.bytes();
        let float = matches!(parameter.ty, ScalarType::F32 | ScalarType::F64);
        let kind = match self {
            Self::F32(_) | Self::F64(_) => float || parameter.ty.is_untyped(),
            Self::Bytes(_) => true,
            _ => !float,
        };
        (kind && bytes.len() == parameter.bytes).then_some(bytes)
    }
}

/// What a launch watches, and in which order it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Stop at two accesses that nothing orders. On; costs about half of the speed.
    pub detect_races: bool,
    /// Stop at a NaN that arithmetic makes from numbers, and at a NaN that is loaded as a float. On.
    pub trap_nan: bool,
    /// Threads that have exited count as arrived at barriers, as on devices since Volta. Off: a barrier
    /// waits for all threads of the block, and a block some threads of which have left stops there.
    pub allow_exited_at_barriers: bool,
    /// Run blocks, and the warps of a block between barriers, in an order drawn from this seed.
    pub order_seed: Option<u64>,
    /// Bytes of shared memory a block may have, static and dynamic: 99 KiB, which devices of compute
    /// capability 8.6 to 12.0 all grant.
    pub shared_capacity: usize,
    /// Warp instructions after which a launch counts as endless.
    pub instruction_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            detect_races: true,
            trap_nan: true,
            allow_exited_at_barriers: false,
            order_seed: None,
            shared_capacity: 99 * 1024,
            instruction_limit: 10_000_000_000,
        }
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Blocks run.
    pub blocks: u64,
    /// Instructions of warps, those whose predicate is false in all lanes included.
    pub instructions: u64,
    /// Instructions of threads.
    pub thread_instructions: u64,
    /// Barriers of blocks that were completed.
    pub barriers: u64,
    /// Branches at which a warp went both ways.
    pub divergent_branches: u64,
}

/// A launch to be: a kernel, its grid, its arguments.
///
/// ```
/// use ptx_emulator::{Argument, Block, Grid, Launch, Memory, Module};
/// let module = Module::parse(
///     ".version 7.0
///      .target sm_80
///      .address_size 64
///      .visible .entry twice(.param .u64 values) {
///          .reg .b64 %rd<4>;
///          .reg .b32 %r<2>;
///          .reg .f32 %f<3>;
///          ld.param.u64 %rd1, [values];
///          mov.u32 %r1, %tid.x;
///          mul.wide.u32 %rd2, %r1, 4;
///          add.u64 %rd3, %rd1, %rd2;
///          ld.global.f32 %f1, [%rd3];
///          add.rn.f32 %f2, %f1, %f1;
///          st.global.f32 [%rd3], %f2;
///          ret;
///      }",
/// )?;
/// let mut memory = Memory::new();
/// let values = memory.allocate(12)?;
/// memory.write(values, &[1.0_f32, 2.0, 3.0])?;
/// Launch::new(&module, "twice", Grid::x(1), Block::x(3), &[values.into()]).run(&mut memory)?;
/// assert_eq!(memory.read::<f32>(values, 3)?, [2.0, 4.0, 6.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Launch<'a> {
    module: &'a Module,
    kernel: &'a str,
    grid: Grid,
    block: Block,
    arguments: &'a [Argument],
    dynamic_shared: usize,
    options: Options,
}

impl<'a> Launch<'a> {
    /// A launch with the options as they are by default, and no dynamic shared memory.
    pub fn new(
        module: &'a Module,
        kernel: &'a str,
        grid: Grid,
        block: Block,
        arguments: &'a [Argument],
    ) -> Self {
        Self {
            module,
            kernel,
            grid,
            block,
            arguments,
            dynamic_shared: 0,
            options: Options::default(),
        }
    }

    /// Bytes of dynamic shared memory.
    pub fn dynamic_shared(mut self, bytes: usize) -> Self {
        self.dynamic_shared = bytes;
        self
    }

    /// Other options.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Runs all blocks, one after the other.
    ///
    /// # Errors
    ///
    /// What was wrong with the launch, or the first thing that went wrong in it. What the blocks had
    /// written by then stays written.
    pub fn run(&self, memory: &mut Memory) -> Result<Report, Box<Fault>> {
        let refuse = |cause| {
            Box::new(Fault {
                kernel: self.kernel.to_owned(),
                place: None,
                cause,
            })
        };
        let Some(kernel) = self.module.kernel(self.kernel) else {
            let names = self
                .module
                .kernels()
                .iter()
                .map(|k| k.name().to_owned())
                .collect();
            return Err(refuse(Cause::UnknownKernel { names }));
        };
        let parameters = self.parameters(kernel).map_err(refuse)?;
        self.check_shapes(kernel).map_err(refuse)?;
        let shared_bytes = self.shared_bytes(kernel).map_err(refuse)?;
        let mut constants = Store::new(self.module.constants.len());
        constants.put(0, &self.module.constants);
        let launch_start = memory.begin_launch();
        let mut machine = Machine {
            module: self.module,
            kernel,
            memory,
            shared: Store::default(),
            constants,
            parameters,
            options: &self.options,
            arch: pulp::Arch::new(),
            report: Report::default(),
            barriers: Barriers::default(),
            grid: self.grid.0,
            block: self.block.0,
            dynamic_shared: self.dynamic_shared,
            current: [0; 3],
            begun: Vec::new(),
            launch_start,
            block_start: launch_start,
        };
        let mut shuffle = Shuffle::new(self.options.order_seed);
        let [x, y, z] = self.grid.0.map(u64::from);
        let mut order: Vec<u64> = (0..x * y * z).collect();
        shuffle.permute(&mut order);
        let mut warps: Vec<Warp> = Vec::new();
        for block in order {
            machine.current = [
                (block % x) as u32,
                (block / x % y) as u32,
                (block / x / y) as u32,
            ];
            machine.shared.reset(shared_bytes);
            machine.barriers = Barriers::default();
            machine.block_start = machine.tick();
            machine.begun.push((machine.block_start, machine.current));
            machine.report.blocks += 1;
            run(&mut machine, &mut warps, &mut shuffle)?;
        }
        // What comes after the launch is later than all of it.
        machine.tick();
        Ok(machine.report)
    }

    fn parameters(&self, kernel: &Kernel) -> Result<Vec<u8>, Cause> {
        let (expected, found) = (kernel.parameters().len(), self.arguments.len());
        if expected != found {
            return Err(Cause::ArgumentCount { expected, found });
        }
        let mut buffer = vec![0; kernel.parameter_bytes];
        for (index, (parameter, argument)) in
            kernel.parameters().iter().zip(self.arguments).enumerate()
        {
            let Some(bytes) = argument.fit(parameter) else {
                return Err(Cause::Argument {
                    index,
                    name: parameter.name.clone(),
                    expected: format!("{} of {} bytes", parameter.ty, parameter.bytes),
                    found: format!("{argument:?}"),
                });
            };
            buffer[parameter.offset..parameter.offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(buffer)
    }

    fn check_shapes(&self, kernel: &Kernel) -> Result<(), Cause> {
        let within = |found: [u32; 3], most: [u32; 3]| {
            found
                .iter()
                .zip(most)
                .all(|(found, most)| (1..=most).contains(found))
        };
        let (grid, block) = (self.grid.0, self.block.0);
        if !within(grid, MAX_GRID) {
            let allowed = format!("1 to {MAX_GRID:?}");
            return Err(Cause::Shape {
                what: "grid",
                found: grid,
                allowed,
            });
        }
        let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
        if !within(block, MAX_BLOCK) || threads > u64::from(MAX_THREADS) {
            let allowed = format!("1 to {MAX_BLOCK:?}, {MAX_THREADS} threads together");
            return Err(Cause::Shape {
                what: "block",
                found: block,
                allowed,
            });
        }
        if let Some(required) = kernel.required_threads()
            && required != block
        {
            let allowed = format!("{required:?} (.reqntid)");
            return Err(Cause::Shape {
                what: "block",
                found: block,
                allowed,
            });
        }
        if let Some(most) = kernel.max_threads()
            && threads > most.iter().map(|n| u64::from(*n)).product()
        {
            let allowed = format!("as many threads as {most:?} (.maxntid)");
            return Err(Cause::Shape {
                what: "block",
                found: block,
                allowed,
            });
        }
        Ok(())
    }

    /// Bytes of shared memory of a block.
    fn shared_bytes(&self, kernel: &Kernel) -> Result<usize, Cause> {
        let found = match (kernel.dynamic_shared, self.dynamic_shared) {
            (Some(start), dynamic) => start.saturating_add(dynamic),
            (None, 0) => kernel.shared_bytes(),
            (None, found) => {
                let allowed = "but the kernel declares no dynamic shared memory".into();
                return Err(Cause::SharedMemory { found, allowed });
            }
        };
        if found > self.options.shared_capacity {
            let allowed = format!("at most {} for a block", self.options.shared_capacity);
            return Err(Cause::SharedMemory { found, allowed });
        }
        Ok(found)
    }
}
