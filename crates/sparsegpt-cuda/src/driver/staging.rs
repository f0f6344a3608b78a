//! Pinned memory of the host, in slots that are used in turn.

use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, result};

use super::gpu::Gpu;

/// Pinned memory.
#[derive(Debug)]
struct Pinned {
    at: NonNull<u8>,
    gpu: Arc<Gpu>,
}

// SAFETY: the memory belongs to this value and to no thread.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self, DriverError> {
        gpu.context.bind_to_thread()?;
        // SAFETY: the context is bound; the memory is given back in `drop`.
        let at = unsafe { result::malloc_host(bytes, 0) }?;
        let at = NonNull::new(at.cast::<u8>()).ok_or(DriverError(
            cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        ))?;
        // SAFETY: `bytes` bytes were allocated there; zero is a byte like any other, and makes them initialized.
        unsafe { at.as_ptr().write_bytes(0, bytes) };
        Ok(Self {
            at,
            gpu: gpu.clone(),
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.gpu.bind_to_drop();
        // SAFETY: allocated in `new`; the queue has waited for the copies that use it before it drops its rings.
        let freed = unsafe { result::free_host(self.at.as_ptr().cast()) };
        self.gpu.context.record_err(freed);
    }
}

/// Slots of pinned memory, each with an event that says when the copy which uses it is done.
#[derive(Debug)]
pub(super) struct Ring {
    memory: Pinned,
    slot_bytes: usize,
    done: Vec<CudaEvent>,
    next: usize,
}

impl Ring {
    pub(super) fn new(
        gpu: &Arc<Gpu>,
        slots: usize,
        slot_bytes: usize,
    ) -> Result<Self, DriverError> {
        let events = (0..slots).map(|_| gpu.context.new_event(None));
        Ok(Self {
            memory: Pinned::new(gpu, slots * slot_bytes)?,
            slot_bytes,
            done: events.collect::<Result<_, _>>()?,
            next: 0,
        })
    }

    pub(super) fn slots(&self) -> usize {
        self.done.len()
    }

    /// The slot whose turn it is, once the copy that used it last is done.
    pub(super) fn take_turn(&mut self) -> Result<usize, DriverError> {
        let slot = self.next;
        self.next = (slot + 1) % self.slots();
        // An event that was never recorded is done.
        self.wait(slot)?;
        Ok(slot)
    }

    /// Waits for the copy that uses a slot.
    pub(super) fn wait(&self, slot: usize) -> Result<(), DriverError> {
        self.done[slot].synchronize()
    }

    /// Says that the copy which uses a slot was enqueued on a stream just now.
    pub(super) fn used(&self, slot: usize, stream: &CudaStream) -> Result<(), DriverError> {
        self.done[slot].record(stream)
    }

    /// Where a slot begins.
    pub(super) fn at(&self, slot: usize) -> *mut u8 {
        self.memory.at.as_ptr().wrapping_add(slot * self.slot_bytes)
    }

    /// Writes a slot, which no copy uses.
    pub(super) fn fill(&mut self, slot: usize, bytes: &[u8]) {
        assert!(slot < self.slots() && bytes.len() <= self.slot_bytes);
        // SAFETY: within the slot by the assertion; the memory is not the caller's slice.
        unsafe {
            self.at(slot)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    /// Reads a slot, whose copy is done.
    pub(super) fn read(&self, slot: usize, bytes: &mut [u8]) {
        assert!(slot < self.slots() && bytes.len() <= self.slot_bytes);
        // SAFETY: within the slot by the assertion, initialized in `new`; the memory is not the caller's slice.
        unsafe {
            bytes
                .as_mut_ptr()
                .copy_from_nonoverlapping(self.at(slot), bytes.len())
        };
    }
}
