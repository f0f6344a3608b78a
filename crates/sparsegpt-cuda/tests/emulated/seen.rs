//! A device that says it is another one, so that both the kernels for tensor cores and those for ordinary units are run; that
//! waits after each launch while it is told to, so that the seconds of a step are its own; and that tells how long it was
//! busy.

#![allow(dead_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sparsegpt_cuda::{
    Argument, CudaBackend, CudaError, Device, Factorization, Kernel, Limits, Product,
};

/// A device that is seen as one of another compute capability.
#[derive(Debug)]
pub(crate) struct SeenAs<D> {
    device: D,
    compute_capability: (u32, u32),
    /// Whether its library factors however small matrices, not only where it is faster.
    factors_all: bool,
    waits: Arc<AtomicBool>,
    busy: Mutex<Busy>,
}

/// When a device had something to do.
#[derive(Debug, Default)]
struct Busy {
    /// The first launch since it was last waited for.
    since: Option<Instant>,
    before: Duration,
}

/// A compute capability whose products go to tensor cores.
pub(crate) const TENSOR: (u32, u32) = (8, 0);
/// A compute capability whose products go to ordinary units.
pub(crate) const ORDINARY: (u32, u32) = (8, 6);

/// The backend on such a device.
pub(crate) fn seen_as<D: Device>(
    compute_capability: (u32, u32),
    device: D,
) -> CudaBackend<SeenAs<D>> {
    CudaBackend::new(SeenAs::new(compute_capability, device, false))
}

/// The backend on a device whose library factors matrices of all sizes.
pub(crate) fn factoring_all<D: Device>(device: D) -> CudaBackend<SeenAs<D>> {
    let compute_capability = device.limits().compute_capability;
    CudaBackend::new(SeenAs::new(compute_capability, device, true))
}

impl<D> SeenAs<D> {
    fn new(compute_capability: (u32, u32), device: D, factors_all: bool) -> Self {
        Self {
            device,
            compute_capability,
            factors_all,
            waits: Arc::default(),
            busy: Mutex::default(),
        }
    }

    /// Whether to wait after each launch, on this queue and its forks.
    pub(crate) fn wait(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// Seconds since the last call from a first launch until all were waited for: what is done there, and what launching
    /// takes where that is more. Copies from and to the host are left out.
    pub(crate) fn take_busy_seconds(&self) -> f64 {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut busy.before).as_secs_f64()
    }

    fn launching(&self) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.since.get_or_insert_with(Instant::now);
    }
}

impl<D: Device> SeenAs<D> {
    fn finish(&self) -> Result<(), CudaError> {
        self.device.synchronize()?;
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = busy.since.take() {
            busy.before += since.elapsed();
        }
        Ok(())
    }

    fn launched(&self) -> Result<(), CudaError> {
        if self.waits.load(Ordering::Relaxed) {
            self.device.synchronize()?;
        }
        Ok(())
    }
}

impl<D: Device> Device for SeenAs<D> {
    type Buffer = D::Buffer;

    fn describe(&self) -> String {
        let (major, minor) = self.compute_capability;
        format!("{}, as {major}.{minor}", self.device.describe())
    }

    fn limits(&self) -> Limits {
        Limits::new(
            self.compute_capability,
            self.device.limits().multiprocessors,
        )
    }

    fn free_bytes(&self) -> Result<usize, CudaError> {
        self.device.free_bytes()
    }

    fn fork(&self) -> Result<Self, CudaError> {
        Ok(Self {
            waits: self.waits.clone(),
            ..Self::new(
                self.compute_capability,
                self.device.fork()?,
                self.factors_all,
            )
        })
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.finish()
    }

    fn allocate(&self, bytes: usize) -> Result<D::Buffer, CudaError> {
        self.device.allocate(bytes)
    }

    fn address(&self, buffer: &D::Buffer) -> u64 {
        self.device.address(buffer)
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        self.device.clear(address, bytes)
    }

    fn allocate_for_upload(&self, bytes: usize) -> Result<D::Buffer, CudaError> {
        self.device.allocate_for_upload(bytes)
    }

    fn upload_rows(
        &self,
        to: &D::Buffer,
        offset: usize,
        pitch: usize,
        from: &[u8],
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        self.device.upload_rows(to, offset, pitch, from, row_bytes)
    }

    fn download_rows(
        &self,
        to: &mut [u8],
        from: u64,
        pitch: usize,
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        // A download waits for what was enqueued before it anyway.
        self.finish()?;
        self.device.download_rows(to, from, pitch, row_bytes)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        self.device.copy(to, from, bytes)
    }

    fn launch(
        &self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        self.launching();
        self.device.launch(kernel, grid, arguments)?;
        self.launched()
    }

    fn library_gemm(&self, product: &Product) -> Option<Result<(), CudaError>> {
        self.launching();
        let done = self.device.library_gemm(product)?;
        Some(done.and_then(|()| self.launched()))
    }

    fn has_library_factor(&self, cols: usize) -> bool {
        let cols = if self.factors_all { usize::MAX } else { cols };
        self.device.has_library_factor(cols)
    }

    fn library_factor(&self, factorization: &Factorization) -> Result<(), CudaError> {
        self.launching();
        self.device.library_factor(factorization)?;
        self.launched()
    }
}
