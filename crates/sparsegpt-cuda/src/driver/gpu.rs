//! What all queues on one GPU share: its context, the loaded kernels, memory.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::failure::{failed, words};
use super::probe;
use crate::device::Limits;
use crate::error::CudaError;
use crate::kernels::{self, Kernel, Module};

/// Compute capability that the kernels are written for.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// Bytes of the assembler's log that are kept.
const LOG_BYTES: usize = 16 << 10;

/// A GPU.
pub(super) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    pub(super) limits: Limits,
    pub(super) description: String,
    /// Where stream-ordered allocations come from; none on devices without them.
    pool: Option<Pool>,
    modules: Vec<Loaded>,
    /// By module and name.
    functions: HashMap<(&'static str, &'static str), Function>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu")
            .field("ordinal", &self.context.ordinal())
            .finish_non_exhaustive()
    }
}

/// A handle of the driver's memory pool.
struct Pool(sys::CUmemoryPool);

/// A module's handle.
struct Loaded(sys::CUmodule);

/// A kernel's handle.
#[derive(Clone, Copy)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: the driver's handles belong to a context and no thread; its documentation allows their use from every thread that
// has the context current.
unsafe impl Send for Pool {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Pool {}
// SAFETY: as for `Pool`.
unsafe impl Send for Loaded {}
// SAFETY: as for `Pool`.
unsafe impl Sync for Loaded {}
// SAFETY: as for `Pool`.
unsafe impl Send for Function {}
// SAFETY: as for `Pool`.
unsafe impl Sync for Function {}

/// Devices that the driver shows.
pub(super) fn count() -> Result<usize, CudaError> {
    probe::driver()?;
    result::init().map_err(|error| CudaError::Unavailable {
        reason: format!("the driver does not start: {}", words(error)),
    })?;
    let count = result::device::get_count().map_err(|error| failed("counting devices", error))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

impl Gpu {
    /// Opens a device and loads every kernel.
    pub(super) fn open(ordinal: usize) -> Result<Self, CudaError> {
        let version = probe::driver()?;
        let count = count()?;
        if ordinal >= count {
            return Err(CudaError::Unavailable {
                reason: format!(
                    "the driver shows {count} devices, asked for was number {ordinal}, counted from 0"
                ),
            });
        }
        let opening = |error| failed(format!("opening device {ordinal}"), error);
        let context = CudaContext::new(ordinal).map_err(opening)?;
        let attribute = |attribute| -> Result<u32, CudaError> {
            let value = context.attribute(attribute).map_err(opening)?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        let compute_capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let name = context.name().map_err(opening)?;
        let (major, minor) = compute_capability;
        if compute_capability < OLDEST_CAPABILITY {
            let (least, least_minor) = OLDEST_CAPABILITY;
            return Err(CudaError::Unavailable {
                reason: format!(
                    "{name} is of compute capability {major}.{minor}, the kernels need {least}.{least_minor} (Ampere) or newer"
                ),
            });
        }
        let limits = Limits {
            compute_capability,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        };
        let total = context.total_mem().map_err(opening)?;
        let description = format!(
            "{name} (compute capability {major}.{minor}, {} multiprocessors, {:.1} GiB), driver of CUDA {}",
            limits.multiprocessors,
            total as f64 / f64::from(1 << 30),
            probe::dotted(version)
        );
        let pool = context
            .has_async_alloc()
            .then(|| Pool::of(&context))
            .transpose()
            .map_err(opening)?;
        let mut gpu = Self {
            context,
            limits,
            description,
            pool,
            modules: Vec::new(),
            functions: HashMap::new(),
        };
        gpu.bind()?;
        let mut loaded: HashMap<&'static str, sys::CUmodule> = HashMap::new();
        for kernel in kernels::all() {
            let module = match loaded.get(kernel.module.name) {
                Some(&module) => module,
                None => {
                    let module = load(kernel.module)?;
                    gpu.modules.push(Loaded(module));
                    loaded.insert(kernel.module.name, module);
                    module
                }
            };
            let function = Self::function_of(module, kernel)?;
            gpu.functions
                .insert((kernel.module.name, kernel.name), function);
        }
        Ok(gpu)
    }

    /// Makes the context the thread's own, and tells what a destructor could not.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context
            .bind_to_thread()
            .map_err(|error| failed("an earlier step", error))
    }

    /// The same in a destructor: an error waits for the next call.
    pub(super) fn bind_to_drop(&self) {
        if let Err(earlier) = self.context.bind_to_thread() {
            // It has now been taken out, and the context may still have to be bound.
            let again = self.context.bind_to_thread();
            self.context.record_err(again);
            self.context.record_err::<()>(Err(earlier));
        }
    }

    /// A loaded kernel.
    pub(super) fn function(&self, kernel: &Kernel) -> Result<Function, CudaError> {
        let found = self.functions.get(&(kernel.module.name, kernel.name));
        found.copied().ok_or_else(|| CudaError::Failed {
            what: kernel.name.to_owned(),
            reason: "it is not among the kernels that were loaded".to_owned(),
        })
    }

    /// A kernel of a module.
    fn function_of(module: sys::CUmodule, kernel: &Kernel) -> Result<Function, CudaError> {
        let refused = |error| CudaError::Module {
            module: kernel.module.name,
            reason: format!("{}: {}", kernel.name, words(error)),
            log: String::new(),
        };
        let name = CString::new(kernel.name)
            .map_err(|_| refused(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)))?;
        // SAFETY: the module is loaded, in the context that is bound.
        let function = unsafe { result::module::get_function(module, name) }.map_err(refused)?;
        Ok(Function(function))
    }

    /// Bytes free on the device, those included that the pool keeps for allocations to come.
    pub(super) fn free_bytes(&self) -> Result<usize, CudaError> {
        let asking = |error| failed("asking for free memory", error);
        let (free, _) = self.context.mem_get_info().map_err(asking)?;
        let kept = match &self.pool {
            Some(pool) => pool.unused().map_err(asking)?,
            None => 0,
        };
        Ok(free + kept)
    }

    /// Memory for whatever is enqueued on a stream from now on.
    pub(super) fn allocate(&self, stream: &CudaStream, bytes: usize) -> Result<u64, CudaError> {
        self.bind()?;
        let attempt = || {
            if self.pool.is_some() {
                // SAFETY: the stream is one of this context's; the memory is given back by `free`.
                unsafe { result::malloc_async(stream.cu_stream(), bytes) }
            } else {
                // SAFETY: the context is bound; the memory is given back by `free`.
                unsafe { result::malloc_sync(bytes) }
            }
        };
        let error = match attempt() {
            Ok(address) => return Ok(address),
            Err(error) => error,
        };
        if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(failed(format!("allocating {bytes} bytes"), error));
        }
        // What was freed in pieces may do in one.
        let waited = self.context.synchronize();
        waited.map_err(|error| failed("waiting for memory", error))?;
        if let Some(pool) = &self.pool {
            pool.trim()
                .map_err(|error| failed("giving memory back", error))?;
        }
        match attempt() {
            Ok(address) => Ok(address),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(CudaError::OutOfMemory {
                    bytes,
                    free: self.free_bytes()?,
                })
            }
            Err(error) => Err(failed(format!("allocating {bytes} bytes"), error)),
        }
    }

    /// Gives memory back once everything enqueued on the stream is done.
    ///
    /// # Safety
    /// The address is one of [`allocate`](Self::allocate), not given back before, and only what is enqueued on `stream`
    /// by now uses it.
    pub(super) unsafe fn free(&self, stream: &CudaStream, address: u64) {
        self.bind_to_drop();
        let freed = if self.pool.is_some() {
            // SAFETY: the caller's word.
            unsafe { result::free_async(address, stream.cu_stream()) }
        } else {
            self.context.record_err(stream.synchronize());
            // SAFETY: the caller's word; nothing that uses it runs any more.
            unsafe { result::free_sync(address) }
        };
        self.context.record_err(freed);
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.bind_to_drop();
        for module in self.modules.drain(..) {
            // SAFETY: every queue is gone, as each holds this value, and waited for its kernels.
            self.context
                .record_err(unsafe { result::module::unload(module.0) });
        }
    }
}

impl Pool {
    /// The device's own, told to keep what is freed: an allocation then takes no time.
    fn of(context: &CudaContext) -> Result<Self, DriverError> {
        // SAFETY: the context's device is a device.
        let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) }?;
        let mut keep = u64::MAX;
        // SAFETY: this attribute is a u64, read before the call returns.
        unsafe {
            result::mem_pool::set_attribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut keep).cast(),
            )
        }?;
        Ok(Self(pool))
    }

    /// Bytes it keeps and nobody uses.
    fn unused(&self) -> Result<usize, DriverError> {
        use sys::CUmemPool_attribute as Of;
        let bytes = |attribute| -> Result<u64, DriverError> {
            let mut value = 0_u64;
            // SAFETY: the pool lives as long as the device; these attributes are u64.
            unsafe { result::mem_pool::get_attribute(self.0, attribute, (&raw mut value).cast()) }?;
            Ok(value)
        };
        let reserved = bytes(Of::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = bytes(Of::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        Ok(usize::try_from(reserved.saturating_sub(used)).unwrap_or(usize::MAX))
    }

    fn trim(&self) -> Result<(), DriverError> {
        // SAFETY: the pool lives as long as the device.
        unsafe { result::mem_pool::trim_to(self.0, 0) }
    }
}

/// Loads a module's text; the context is bound.
fn load(module: &'static Module) -> Result<sys::CUmodule, CudaError> {
    let refused = |reason: String, log: String| CudaError::Module {
        module: module.name,
        reason,
        log,
    };
    let text = CString::new(module.text)
        .map_err(|_| refused("there is a zero byte in the text".to_owned(), String::new()))?;
    let mut log = vec![0_u8; LOG_BYTES];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values: [*mut c_void; 2] = [
        log.as_mut_ptr().cast(),
        // A size, in the place of a pointer.
        ptr::without_provenance_mut(log.len()),
    ];
    let mut handle = MaybeUninit::uninit();
    // SAFETY: the text ends with a zero; there are two options and two values, of the types that the options have; the log
    // outlives the call.
    let outcome = unsafe {
        sys::cuModuleLoadDataEx(
            handle.as_mut_ptr(),
            text.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    match outcome.result() {
        // SAFETY: the call succeeded and has written the handle.
        Ok(()) => Ok(unsafe { handle.assume_init() }),
        Err(error) => {
            let log = CStr::from_bytes_until_nul(&log)
                .map(|log| log.to_string_lossy().trim().to_owned())
                .unwrap_or_default();
            Err(refused(words(error), log))
        }
    }
}
