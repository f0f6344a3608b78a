//! Memory on a GPU.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::queue::Queue;
use crate::error::CudaError;

/// Memory that is given back once everything that uses it is done.
pub struct Buffer {
    address: u64,
    bytes: usize,
    /// The queue in whose order it is allocated and freed.
    home: Arc<Queue>,
    /// Other queues that have used it.
    visitors: Mutex<Vec<Arc<Queue>>>,
    /// Allocated beside the kernels, and not yet known to any.
    fresh: AtomicBool,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:#x})", self.bytes, self.address)
    }
}

impl Buffer {
    pub(super) fn new(home: &Arc<Queue>, bytes: usize) -> Result<Self, CudaError> {
        let address = match bytes {
            0 => 0,
            _ => home.gpu.allocate(&home.stream, bytes)?,
        };
        Ok(Self {
            address,
            bytes,
            home: home.clone(),
            visitors: Mutex::default(),
            fresh: AtomicBool::new(false),
        })
    }

    /// Memory that uploads fill before anything else uses it.
    pub(super) fn for_upload(home: &Arc<Queue>, bytes: usize) -> Result<Self, CudaError> {
        Ok(Self {
            address: home.allocate_beside(bytes)?,
            bytes,
            home: home.clone(),
            visitors: Mutex::default(),
            fresh: AtomicBool::new(true),
        })
    }

    /// The address for an upload that is about to be enqueued on `queue`, and whether it need not wait for kernels.
    pub(super) fn address_for_upload(&self, queue: &Arc<Queue>) -> (u64, bool) {
        if self.fresh.load(Ordering::Relaxed) && Arc::ptr_eq(queue, &self.home) {
            return (self.address, true);
        }
        (self.address_for(queue), false)
    }

    /// The address, for something about to be enqueued on `queue`, which waits for all that other queues may have done
    /// with this memory. An error there is told by the next call.
    pub(super) fn address_for(&self, queue: &Arc<Queue>) -> u64 {
        self.fresh.store(false, Ordering::Relaxed);
        let mut visitors = self.visitors.lock().unwrap_or_else(PoisonError::into_inner);
        let at_home = Arc::ptr_eq(queue, &self.home);
        if self.address == 0 || (at_home && visitors.is_empty()) {
            return self.address;
        }
        if !at_home && !visitors.iter().any(|visitor| Arc::ptr_eq(visitor, queue)) {
            visitors.push(queue.clone());
        }
        let all = visitors.iter().chain([&self.home]);
        for other in all.filter(|other| !Arc::ptr_eq(other, queue)) {
            queue.gpu.context.record_err(queue.wait_for(other));
        }
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        let gpu = &self.home.gpu;
        let visitors = self
            .visitors
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for visitor in visitors.drain(..) {
            gpu.context.record_err(self.home.wait_for(&visitor));
        }
        // SAFETY: allocated in `new`, freed once; whoever used it borrowed this value while enqueuing, on this queue or on
        // one that this queue has just been told to wait for.
        unsafe { gpu.free(&self.home.stream, self.address) };
    }
}
