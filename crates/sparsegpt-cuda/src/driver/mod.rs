//! NVIDIA GPUs through the driver.

mod blas;
mod buffer;
mod dense;
mod failure;
mod gpu;
mod lanes;
mod pieces;
mod probe;
mod queue;
mod staging;

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::result;

pub use buffer::Buffer;

use crate::backend::CudaBackend;
use crate::device::{Argument, Device, Factorization, Limits, Product, check_arguments};
use crate::error::CudaError;
use crate::kernels::Kernel;
use blas::Blas;
use dense::Dense;
use failure::failed;
use gpu::Gpu;
use pieces::Rows;
use probe::Libraries;
use queue::Queue;

/// The kernels declare all the shared memory they use.
const NO_DYNAMIC_SHARED_MEMORY: u32 = 0;

/// The backend on a GPU.
///
/// ```no_run
/// use sparsegpt::Solver;
/// let solver = Solver::new(sparsegpt_cuda::Cuda::open(0)?);
/// # let _ = solver;
/// # Ok::<(), sparsegpt_cuda::CudaError>(())
/// ```
pub type Cuda = CudaBackend<Driver>;

impl Cuda {
    /// The GPU of a number, counted from 0 in the driver's order (`CUDA_VISIBLE_DEVICES` chooses and reorders). Its products
    /// are those of this crate's kernels; see [`Driver::with_libraries`].
    ///
    /// # Errors
    /// [`CudaError::Unavailable`] without a driver, with one older than CUDA 11.4, without such a GPU, or with one older
    /// than Ampere; [`CudaError::Module`] if the driver refuses a kernel.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        Ok(Self::new(Driver::open(ordinal)?))
    }

    /// The same with products by cuBLAS and factorizations by cuSOLVER, each where it is on this machine and starts: a layer
    /// takes a twentieth to a third less with them on an H100, their start takes 0.1 s, and the last bits of results are those of
    /// their versions. The device's description says what serves.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_libraries(ordinal: usize) -> Result<Self, CudaError> {
        let mut driver = Driver::open(ordinal)?;
        // What does not start is as if it was not there.
        driver.start_libraries().clear();
        Ok(Self::new(driver))
    }
}

/// A GPU and a queue on it.
#[derive(Debug)]
pub struct Driver {
    // Before the queue, on whose stream it enqueues.
    blas: Option<Blas>,
    dense: Option<Dense>,
    queue: Arc<Queue>,
}

impl Driver {
    /// GPUs that the driver shows.
    ///
    /// # Errors
    /// [`CudaError::Unavailable`] without a driver.
    pub fn count() -> Result<usize, CudaError> {
        gpu::count()
    }

    /// The GPU of a number, counted from 0.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let gpu = Arc::new(Gpu::open(ordinal)?);
        Ok(Self {
            blas: None,
            dense: None,
            queue: Arc::new(Queue::new(gpu)?),
        })
    }

    /// With products by cuBLAS and factorizations by cuSOLVER, each where it is on this machine; where neither is, nothing
    /// changes.
    ///
    /// # Errors
    /// If one of them does not start.
    pub fn with_libraries(mut self) -> Result<Self, CudaError> {
        match self.start_libraries().pop() {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }

    /// Starts those that are there, and gives the errors of those that do not start.
    fn start_libraries(&mut self) -> Vec<CudaError> {
        let found = Libraries::find();
        let mut errors = Vec::new();
        if found.cublas.is_some() {
            self.blas = Blas::new(&self.queue).map_err(|e| errors.push(e)).ok();
        }
        if found.cusolver.is_some() {
            self.dense = Dense::new(&self.queue).map_err(|e| errors.push(e)).ok();
        }
        errors
    }

    /// Which libraries beside the driver were found and what serves.
    fn libraries(&self) -> String {
        let found = Libraries::find();
        let by = |what: &str, library: &str, used: bool, found: Option<&str>| match found {
            Some(name) if used => format!("{what} by {name}"),
            Some(name) => format!("{what} by own kernels ({name} present, not used)"),
            None => format!("{what} by own kernels (no {library})"),
        };
        format!(
            "{}, {}",
            by("products", "cuBLAS", self.blas.is_some(), found.cublas),
            by("factors", "cuSOLVER", self.dense.is_some(), found.cusolver)
        )
    }
}

impl Device for Driver {
    type Buffer = Buffer;

    fn describe(&self) -> String {
        format!("{}; {}", self.queue.gpu.description, self.libraries())
    }

    fn limits(&self) -> Limits {
        self.queue.gpu.limits
    }

    fn free_bytes(&self) -> Result<usize, CudaError> {
        self.queue.gpu.free_bytes()
    }

    fn fork(&self) -> Result<Self, CudaError> {
        let queue = Arc::new(Queue::new(self.queue.gpu.clone())?);
        let blas = self.blas.as_ref().map(|_| Blas::new(&queue));
        let dense = self.dense.as_ref().map(|_| Dense::new(&queue));
        Ok(Self {
            blas: blas.transpose()?,
            dense: dense.transpose()?,
            queue,
        })
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.queue.gpu.bind()?;
        let waited = self.queue.stream.synchronize();
        waited.map_err(|error| failed("what was enqueued before", error))
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer, CudaError> {
        Buffer::new(&self.queue, bytes)
    }

    fn allocate_for_upload(&self, bytes: usize) -> Result<Buffer, CudaError> {
        if bytes <= queue::SMALL {
            return self.allocate(bytes);
        }
        Buffer::for_upload(&self.queue, bytes)
    }

    fn address(&self, buffer: &Buffer) -> u64 {
        buffer.address_for(&self.queue)
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        self.queue.gpu.bind()?;
        let stream = self.queue.stream.cu_stream();
        // SAFETY: the stream is one of the bound context's; the range is the caller's to name.
        unsafe { result::memset_d8_async(address, 0, bytes, stream) }
            .map_err(|error| failed(format!("clearing {bytes} bytes"), error))
    }

    fn upload_rows(
        &self,
        to: &Buffer,
        offset: usize,
        pitch: usize,
        from: &[u8],
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        let rows = Rows {
            total: from.len(),
            row_bytes,
            pitch,
        };
        let (address, fresh) = to.address_for_upload(&self.queue);
        self.queue
            .upload(address + offset as u64, rows, from, fresh)
    }

    fn download_rows(
        &self,
        to: &mut [u8],
        from: u64,
        pitch: usize,
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        let rows = Rows {
            total: to.len(),
            row_bytes,
            pitch,
        };
        self.queue.download(to, from, rows)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        self.queue.gpu.bind()?;
        let stream = self.queue.stream.cu_stream();
        // SAFETY: the stream is one of the bound context's; the ranges are the caller's to name.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }
            .map_err(|error| failed(format!("copying {bytes} bytes"), error))
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
        let gpu = &self.queue.gpu;
        gpu.bind()?;
        let function = gpu.function(kernel)?;
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Address(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::U32(value) => ptr::from_ref(value).cast_mut().cast(),
                Argument::F32(value) => ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let [x, y, z] = grid;
        // SAFETY: there is a pointer to a value of the right type for each of the kernel's parameters, as checked above (that
        // the list of parameters is that of the text, a test checks); the values are read, and not written, before the call
        // returns. The function is one of the bound context's, as is the stream.
        unsafe {
            result::launch_kernel(
                function.0,
                (x, y, z),
                (kernel.threads, 1, 1),
                NO_DYNAMIC_SHARED_MEMORY,
                self.queue.stream.cu_stream(),
                &mut pointers,
            )
        }
        .map_err(|error| {
            failed(
                format!("the launch of {} on {grid:?} blocks", kernel.name),
                error,
            )
        })
    }

    fn library_gemm(&self, product: &Product) -> Option<Result<(), CudaError>> {
        self.blas.as_ref()?.gemm(product)
    }

    fn has_library_factor(&self, cols: usize) -> bool {
        self.dense.is_some() && cols >= dense::LEAST_COLUMNS
    }

    fn library_factor(&self, factorization: &Factorization) -> Result<(), CudaError> {
        match &self.dense {
            Some(dense) => dense.factor(factorization),
            None => Err(CudaError::Failed {
                what: "cuSOLVER".to_owned(),
                reason: "it was not started".to_owned(),
            }),
        }
    }
}
