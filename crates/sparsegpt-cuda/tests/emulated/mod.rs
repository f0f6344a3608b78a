//! A device without a GPU: the kernels' text, run by the emulator.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

mod library;
pub(crate) mod seen;
pub(crate) mod twin;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use ptx_emulator::{Block, DevicePointer, Grid, Launch, Memory, MemoryError, Module, Options};
use sparsegpt_cuda::{Argument, CudaError, Device, Factorization, Kernel, Limits, check_arguments};

/// An emulated device. Each thread has memory of its own on it, so that tests which run side by side do not wait for each
/// other; what one thread has made is of no use to another.
#[derive(Clone, Debug)]
pub(crate) struct Emulated {
    modules: Arc<HashMap<&'static str, Module>>,
    memories: Arc<Mutex<HashMap<ThreadId, SharedMemory>>>,
    /// Whether there is a library that factors.
    library: bool,
    /// Bytes that it says are free.
    free: usize,
    launches: Arc<AtomicUsize>,
}

type SharedMemory = Arc<Mutex<Memory>>;

/// Memory on the emulated device.
#[derive(Debug)]
pub(crate) struct EmulatedBuffer {
    memory: SharedMemory,
    pointer: DevicePointer,
}

impl Drop for EmulatedBuffer {
    fn drop(&mut self) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.free(self.pointer).unwrap();
    }
}

/// The text of every module.
fn texts() -> HashMap<&'static str, &'static str> {
    sparsegpt_cuda::kernels()
        .map(|kernel| (kernel.module.name, kernel.module.text))
        .collect()
}

fn parse(name: &str, text: &str) -> Module {
    Module::parse(text).unwrap_or_else(|error| panic!("{name}.ptx: {error}"))
}

impl Emulated {
    /// A device with the kernels as they are.
    pub(crate) fn new() -> Self {
        static MODULES: OnceLock<Arc<HashMap<&'static str, Module>>> = OnceLock::new();
        let modules = MODULES.get_or_init(|| {
            let parsed = texts()
                .into_iter()
                .map(|(name, text)| (name, parse(name, text)));
            Arc::new(parsed.collect())
        });
        Self {
            modules: modules.clone(),
            memories: Arc::default(),
            library: false,
            free: usize::MAX,
            launches: Arc::default(),
        }
    }

    /// A device on which one module's text was changed: `from`, which is in it, is replaced by `to`, once.
    pub(crate) fn with_change(module: &'static str, from: &str, to: &str) -> Self {
        let text = texts()[module];
        assert!(text.contains(from), "{module}.ptx has no {from:?}");
        let mut modules = (*Self::new().modules).clone();
        modules.insert(module, parse(module, &text.replacen(from, to, 1)));
        Self {
            modules: Arc::new(modules),
            memories: Arc::default(),
            library: false,
            free: usize::MAX,
            launches: Arc::default(),
        }
    }

    /// A device with the kernels as they are and a library that factors, in place of cuSOLVER.
    pub(crate) fn with_library() -> Self {
        Self {
            library: true,
            ..Self::new()
        }
    }

    /// The same with a change as in [`with_change`](Self::with_change).
    pub(crate) fn with_library_and_change(module: &'static str, from: &str, to: &str) -> Self {
        Self {
            library: true,
            ..Self::with_change(module, from, to)
        }
    }

    /// A device that says so many bytes are free.
    pub(crate) fn with_free(bytes: usize) -> Self {
        Self {
            free: bytes,
            ..Self::new()
        }
    }

    /// How many kernels it has run so far.
    pub(crate) fn launches(&self) -> usize {
        self.launches.load(Ordering::Relaxed)
    }

    fn memory(&self) -> SharedMemory {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.entry(thread::current().id()).or_default().clone()
    }

    /// Bytes at an address, if all of them were ever written.
    fn peek(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let memory = self.memory();
        let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        let from = DevicePointer::from_address(address);
        memory
            .is_defined(from, bytes)
            .then(|| memory.read(from, bytes).unwrap())
    }

    /// Other bytes for an address.
    fn poke(&self, address: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let to = DevicePointer::from_address(address);
        self.with("a correction", |memory| memory.write(to, bytes))
    }

    fn with<T>(
        &self,
        what: &str,
        work: impl FnOnce(&mut Memory) -> Result<T, MemoryError>,
    ) -> Result<T, CudaError> {
        let memory = self.memory();
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut memory).map_err(|error| match error {
            MemoryError::OutOfMemory { bytes, left, .. } => {
                CudaError::OutOfMemory { bytes, free: left }
            }
            error => CudaError::Failed {
                what: what.to_owned(),
                reason: error.to_string(),
            },
        })
    }
}

impl Device for Emulated {
    type Buffer = EmulatedBuffer;

    fn describe(&self) -> String {
        "PTX emulator".to_owned()
    }

    fn limits(&self) -> Limits {
        Limits::new(seen::TENSOR, 4)
    }

    fn free_bytes(&self) -> Result<usize, CudaError> {
        Ok(self.free)
    }

    fn fork(&self) -> Result<Self, CudaError> {
        Ok(self.clone())
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<EmulatedBuffer, CudaError> {
        let pointer = self.with("an allocation", |memory| memory.allocate(bytes))?;
        Ok(EmulatedBuffer {
            memory: self.memory(),
            pointer,
        })
    }

    fn address(&self, buffer: &EmulatedBuffer) -> u64 {
        buffer.pointer.address()
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        let to = DevicePointer::from_address(address);
        self.with("clearing", |memory| memory.fill(to, 0, bytes))
    }

    fn upload_rows(
        &self,
        to: &EmulatedBuffer,
        offset: usize,
        pitch: usize,
        from: &[u8],
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        let to = to.pointer.offset(offset);
        self.with("an upload", |memory| {
            from.chunks(row_bytes.max(1))
                .enumerate()
                .try_for_each(|(row, bytes)| memory.write(to.offset(row * pitch), bytes))
        })
    }

    fn download_rows(
        &self,
        to: &mut [u8],
        from: u64,
        pitch: usize,
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        let from = DevicePointer::from_address(from);
        self.with("a download", |memory| {
            for (row, bytes) in to.chunks_mut(row_bytes.max(1)).enumerate() {
                bytes.copy_from_slice(&memory.read::<u8>(from.offset(row * pitch), bytes.len())?);
            }
            Ok(())
        })
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        let (to, from) = (
            DevicePointer::from_address(to),
            DevicePointer::from_address(from),
        );
        self.with("a copy", |memory| memory.copy(to, from, bytes))
    }

    fn launch(
        &self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        check_arguments(kernel, arguments)?;
        if grid.contains(&0) {
            return Ok(());
        }
        let arguments: Vec<ptx_emulator::Argument> = arguments
            .iter()
            .map(|argument| match *argument {
                Argument::Address(address) => DevicePointer::from_address(address).into(),
                Argument::U32(value) => value.into(),
                Argument::F32(value) => value.into(),
                ref other => panic!("an argument of a kind unknown here: {other:?}"),
            })
            .collect();
        self.launches.fetch_add(1, Ordering::Relaxed);
        let module = &self.modules[kernel.module.name];
        let launch = Launch::new(
            module,
            kernel.name,
            Grid(grid),
            Block::x(kernel.threads),
            &arguments,
        )
        .options(options(kernel.name));
        let memory = self.memory();
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        launch.run(&mut memory).map_err(|fault| CudaError::Failed {
            what: format!("{}.ptx", kernel.module.name),
            reason: fault.to_string(),
        })?;
        Ok(())
    }

    fn has_library_factor(&self, _cols: usize) -> bool {
        self.library
    }

    fn library_factor(&self, factorization: &Factorization) -> Result<(), CudaError> {
        self.with("a library", |memory| library::factor(memory, factorization))
    }
}

/// Kernels that a factorization is made of meet what is not finite, and must come to refuse it. All others stop at a NaN.
fn options(kernel: &str) -> Options {
    let mut options = Options::default();
    let factors = [
        "gemm",
        "factor_leaf",
        "narrow_upper",
        "turn",
        "reflect",
        "invert",
    ];
    options.trap_nan = !factors.iter().any(|name| kernel.starts_with(name));
    options
}
