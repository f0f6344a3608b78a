//! What the tests share: modules of one kernel, and launches of it.
// A helper of tests may panic, which the lints know of test functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ptx_emulator::{
    Argument, Block, Cause, DevicePointer, Fault, Grid, Launch, Memory, Module, Options, Report,
    Value,
};

/// A module whose kernel `k` has a u64 parameter `out` and these, and the body with registers of all types.
pub(crate) fn module(parameters: &str, body: &str) -> Module {
    Module::parse(&text(parameters, body)).unwrap_or_else(|error| panic!("{error}\n{body}"))
}

pub(crate) fn text(parameters: &str, body: &str) -> String {
    let comma = if parameters.is_empty() { "" } else { "," };
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64\n\
         .visible .entry k(.param .u64 out{comma}{parameters}) {{\n\
         .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %rd<32>; \
         .reg .f32 %f<32>; .reg .f64 %d<16>;\n\
         ld.param.u64 %rd0, [out]; mov.u32 %r0, %tid.x;\n\
         {body}\n}}\n"
    )
}

/// A device with a result buffer of `bytes`, and what else is put there.
pub(crate) struct Bench {
    pub(crate) memory: Memory,
    pub(crate) out: DevicePointer,
}

impl Bench {
    pub(crate) fn new(bytes: usize) -> Self {
        let mut memory = Memory::new();
        let out = memory.allocate(bytes).unwrap();
        memory.label(out, "out").unwrap();
        Self { memory, out }
    }

    /// Writes the result buffer.
    pub(crate) fn set<T: Value>(&mut self, values: &[T]) {
        self.memory.write(self.out, values).unwrap();
    }

    /// Writes values to memory of their own.
    pub(crate) fn put<T: Value>(&mut self, values: &[T]) -> DevicePointer {
        let pointer = self.memory.allocate(size_of_val(values)).unwrap();
        self.memory.write(pointer, values).unwrap();
        pointer
    }

    pub(crate) fn launch(
        &mut self,
        module: &Module,
        (grid, block): (u32, u32),
        more: &[Argument],
    ) -> Result<Report, Box<Fault>> {
        self.launch_with(module, (grid, block), more, Options::default())
    }

    pub(crate) fn launch_with(
        &mut self,
        module: &Module,
        (grid, block): (u32, u32),
        more: &[Argument],
        options: Options,
    ) -> Result<Report, Box<Fault>> {
        let mut arguments = vec![Argument::Pointer(self.out)];
        arguments.extend_from_slice(more);
        Launch::new(module, "k", Grid::x(grid), Block::x(block), &arguments)
            .options(options)
            .run(&mut self.memory)
    }

    pub(crate) fn results<T: Value>(&self, count: usize) -> Vec<T> {
        self.memory.read(self.out, count).unwrap()
    }
}

/// Runs a body with one result of type T for each of 32 threads.
pub(crate) fn run_warp<T: Value>(body: &str) -> Result<Vec<T>, Box<Fault>> {
    let mut bench = Bench::new(32 * size_of::<T>());
    bench.launch(&module("", body), (1, 32), &[])?;
    Ok(bench.results(32))
}

/// The cause that stops a body on one block.
pub(crate) fn cause(threads: u32, body: &str) -> Cause {
    fault(threads, body).cause
}

pub(crate) fn fault(threads: u32, body: &str) -> Fault {
    let mut bench = Bench::new(4096);
    *bench
        .launch(&module("", body), (1, threads), &[])
        .expect_err("a fault")
}

/// Code that stores a register to element `tid` of `out`.
pub(crate) fn store(ty: &str, bytes: usize, register: &str) -> String {
    format!(
        "mul.wide.u32 %rd30, %r0, {bytes}; add.u64 %rd31, %rd0, %rd30; st.global.{ty} [%rd31], {register};"
    )
}

/// Runs many instructions on the same operands: `a`, `b`, `c` of each of 32 threads, in registers
/// `%{register}1` to `%{register}3` of type `ty`. An instruction leaves its result in the register named with it,
/// whose type is named too.
pub(crate) fn run_table<T: Value, R: Value>(
    (ty, register): (&str, &str),
    (result_ty, result): (&str, &str),
    instructions: &[&str],
    operands: [&[T]; 3],
) -> Vec<Vec<R>> {
    let (bytes, out_bytes) = (size_of::<T>(), size_of::<R>());
    // Addresses live in high registers, which the instructions leave alone.
    let mut body = format!(
        "mul.wide.u32 %rd24, %r0, {bytes}; mul.wide.u32 %rd25, %r0, {out_bytes}; add.u64 %rd29, %rd0, %rd25;\n"
    );
    for (i, name) in ["a", "b", "c"].iter().enumerate() {
        body += &format!(
            "ld.param.u64 %rd26, [{name}]; add.u64 %rd26, %rd26, %rd24; ld.global.{ty} %{register}{}, [%rd26];\n",
            i + 1
        );
    }
    for (i, instruction) in instructions.iter().enumerate() {
        body += &format!(
            "{instruction} st.global.{result_ty} [%rd29+{}], {result};\n",
            i * 32 * out_bytes
        );
    }
    let module = module(".param .u64 a, .param .u64 b, .param .u64 c", &body);
    let mut bench = Bench::new(instructions.len() * 32 * out_bytes);
    let arguments: Vec<Argument> = operands
        .iter()
        .map(|values| Argument::Pointer(bench.put(values)))
        .collect();
    let mut options = Options::default();
    options.trap_nan = false;
    bench
        .launch_with(&module, (1, 32), &arguments, options)
        .unwrap();
    let all = bench.results::<R>(instructions.len() * 32);
    all.chunks(32).map(<[R]>::to_vec).collect()
}

/// The first element whose bits are not as expected.
pub(crate) fn first_difference(expected: &[f32], found: &[f32]) -> Option<(usize, f32, f32)> {
    assert_eq!(expected.len(), found.len());
    let differs = |i: &usize| expected[*i].to_bits() != found[*i].to_bits();
    (0..expected.len())
        .find(differs)
        .map(|i| (i, expected[i], found[i]))
}
