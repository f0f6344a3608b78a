//! What the tests share: modules of one kernel, and launches of it.
#![allow(dead_code)]

use ptx_emulator::{
    Argument, Block, Cause, DevicePointer, Fault, Grid, Launch, Memory, Module, Options, Report,
    Value,
};

/// A module whose kernel `k` has a u64 parameter `out` and these, and the body with registers of all types.
pub fn module(parameters: &str, body: &str) -> Module {
    Module::parse(&text(parameters, body)).unwrap_or_else(|error| panic!("{error}\n{body}"))
}

pub fn text(parameters: &str, body: &str) -> String {
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
pub struct Bench {
    pub memory: Memory,
    pub out: DevicePointer,
}

impl Bench {
    pub fn new(bytes: usize) -> Self {
        let mut memory = Memory::new();
        let out = memory.allocate(bytes).unwrap();
        memory.label(out, "out").unwrap();
        Self { memory, out }
    }

    pub fn put<T: Value>(&mut self, values: &[T]) -> DevicePointer {
        let pointer = self.memory.allocate(size_of_val(values)).unwrap();
        self.memory.write(pointer, values).unwrap();
        pointer
    }

    pub fn launch(
        &mut self,
        module: &Module,
        (grid, block): (u32, u32),
        more: &[Argument],
    ) -> Result<Report, Box<Fault>> {
        self.launch_with(module, (grid, block), more, Options::default())
    }

    pub fn launch_with(
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

    pub fn results<T: Value>(&self, count: usize) -> Vec<T> {
        self.memory.read(self.out, count).unwrap()
    }
}

/// Runs a body with one result of type T for each of 32 threads.
pub fn run_warp<T: Value>(body: &str) -> Result<Vec<T>, Box<Fault>> {
    let mut bench = Bench::new(32 * size_of::<T>());
    bench.launch(&module("", body), (1, 32), &[])?;
    Ok(bench.results(32))
}

/// The cause that stops a body on one block.
pub fn cause(threads: u32, body: &str) -> Cause {
    fault(threads, body).cause
}

pub fn fault(threads: u32, body: &str) -> Fault {
    let mut bench = Bench::new(4096);
    *bench
        .launch(&module("", body), (1, threads), &[])
        .expect_err("a fault")
}

/// Code that stores a register to element `tid` of `out`.
pub fn store(ty: &str, bytes: usize, register: &str) -> String {
    format!(
        "mul.wide.u32 %rd30, %r0, {bytes}; add.u64 %rd31, %rd0, %rd30; st.global.{ty} [%rd31], {register};"
    )
}
