//! A queue on a GPU: a stream for kernels, and one beside it on which the next upload comes in meanwhile.
//!
//! An upload goes from the caller's memory to a pinned slot, over the bus to a slot on the device, both on the stream for
//! copies, and from there to its place on the stream for kernels, which is a matter of microseconds. The bus is so busy
//! while kernels run that were enqueued before, whatever the place held until then.

use std::collections::VecDeque;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUmemorytype as Memory};
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::failure::failed;
use super::gpu::Gpu;
use super::pieces::{Piece, Rows};
use super::staging::Ring;
use crate::error::CudaError;

/// Copies up to this size (bytes) go straight to their place: settings, lists of indices.
const SMALL: usize = 64 << 10;
const SMALL_SLOTS: usize = 32;
/// Size of a piece (bytes) of larger ones: at 50 GB/s it takes as long as 20 launches.
const LARGE: usize = 8 << 20;
const LARGE_SLOTS: usize = 4;

/// A queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) gpu: Arc<Gpu>,
    pub(super) stream: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    staging: Mutex<Staging>,
}

/// Made when first needed.
#[derive(Debug, Default)]
struct Staging {
    small: Option<Ring>,
    large: Option<Ring>,
    bounce: Option<Bounce>,
}

/// Slots on the device that uploads pass through, one for each large slot.
#[derive(Debug)]
struct Bounce {
    address: u64,
    /// When what came in has been copied on.
    emptied: Vec<CudaEvent>,
}

impl Queue {
    pub(super) fn new(gpu: Arc<Gpu>) -> Result<Self, CudaError> {
        let stream = || {
            let stream = gpu.context.new_stream();
            stream.map_err(|error| failed("making a queue", error))
        };
        Ok(Self {
            stream: stream()?,
            copies: stream()?,
            staging: Mutex::default(),
            gpu,
        })
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets what is enqueued here from now on wait for what is enqueued there by now.
    pub(super) fn wait_for(&self, other: &Self) -> Result<(), DriverError> {
        let event = other.stream.record_event(None)?;
        self.stream.wait(&event)
    }

    /// Copies rows from the host; returns when they have been read.
    pub(super) fn upload(&self, to: u64, rows: Rows, from: &[u8]) -> Result<(), CudaError> {
        self.gpu.bind()?;
        let mut staging = self.staging();
        let staging = &mut *staging;
        let uploading = |error| failed(format!("an upload of {} bytes", rows.total), error);
        if rows.total <= SMALL {
            let ring =
                ring(&mut staging.small, &self.gpu, SMALL_SLOTS, SMALL).map_err(uploading)?;
            for piece in rows.pieces(SMALL) {
                self.send_small(ring, to, rows.pitch, &piece, from)
                    .map_err(uploading)?;
            }
            return Ok(());
        }
        let ring = ring(&mut staging.large, &self.gpu, LARGE_SLOTS, LARGE).map_err(uploading)?;
        let bounce = match &mut staging.bounce {
            Some(bounce) => bounce,
            none => none.insert(self.bounce()?),
        };
        for piece in rows.pieces(LARGE) {
            self.send_large(ring, bounce, to, rows.pitch, &piece, from)
                .map_err(uploading)?;
        }
        Ok(())
    }

    fn bounce(&self) -> Result<Bounce, CudaError> {
        let events = (0..LARGE_SLOTS).map(|_| self.gpu.context.new_event(None));
        let emptied = events
            .collect::<Result<_, _>>()
            .map_err(|error| failed("making a queue", error))?;
        Ok(Bounce {
            address: self.gpu.allocate(&self.copies, LARGE_SLOTS * LARGE)?,
            emptied,
        })
    }

    fn send_small(
        &self,
        ring: &mut Ring,
        to: u64,
        pitch: usize,
        piece: &Piece,
        from: &[u8],
    ) -> Result<(), DriverError> {
        let slot = ring.take_turn()?;
        ring.fill(slot, &from[piece.host.clone()]);
        let there = Place::Device(to + piece.device as u64, pitch);
        // SAFETY: the slot holds the piece and stays as it is until its event is done; the place is the caller's to name.
        unsafe { copy(&self.stream, there, Place::Host(ring.at(slot)), piece) }?;
        ring.used(slot, &self.stream)
    }

    fn send_large(
        &self,
        ring: &mut Ring,
        bounce: &Bounce,
        to: u64,
        pitch: usize,
        piece: &Piece,
        from: &[u8],
    ) -> Result<(), DriverError> {
        let slot = ring.take_turn()?;
        ring.fill(slot, &from[piece.host.clone()]);
        self.copies.wait(&bounce.emptied[slot])?;
        let passing = Place::Device(bounce.address + (slot * LARGE) as u64, piece.width);
        // SAFETY: both slots have room for a piece; the pinned one stays as it is until its event is done, the other one
        // until it was emptied, which the stream has just been told to wait for.
        unsafe { copy(&self.copies, passing, Place::Host(ring.at(slot)), piece) }?;
        ring.used(slot, &self.copies)?;
        self.stream.wait(ring.done(slot))?;
        let there = Place::Device(to + piece.device as u64, pitch);
        // SAFETY: what the slot holds has come in, as the stream waits for it; the place is the caller's to name.
        unsafe { copy(&self.stream, there, passing, piece) }?;
        bounce.emptied[slot].record(&self.stream)
    }

    /// Copies rows to the host and waits for them.
    pub(super) fn download(&self, to: &mut [u8], from: u64, rows: Rows) -> Result<(), CudaError> {
        self.gpu.bind()?;
        let mut staging = self.staging();
        let staging = &mut *staging;
        let downloading = |error| failed(format!("a download of {} bytes", rows.total), error);
        let ring = if rows.total <= SMALL {
            ring(&mut staging.small, &self.gpu, SMALL_SLOTS, SMALL)
        } else {
            ring(&mut staging.large, &self.gpu, LARGE_SLOTS, LARGE)
        }
        .map_err(downloading)?;
        self.receive(ring, to, from, rows).map_err(downloading)
    }

    fn receive(
        &self,
        ring: &mut Ring,
        to: &mut [u8],
        from: u64,
        rows: Rows,
    ) -> Result<(), DriverError> {
        let mut coming = VecDeque::new();
        for piece in rows.pieces(ring.slot_bytes()) {
            if coming.len() == ring.slots() {
                take_in(ring, &mut coming, to)?;
            }
            let slot = ring.take_turn()?;
            let there = Place::Device(from + piece.device as u64, rows.pitch);
            // SAFETY: the slot has room for the piece, and is read when its event is done; the place is the caller's to
            // name.
            unsafe { copy(&self.stream, Place::Host(ring.at(slot)), there, &piece) }?;
            ring.used(slot, &self.stream)?;
            coming.push_back((slot, piece));
        }
        while !coming.is_empty() {
            take_in(ring, &mut coming, to)?;
        }
        Ok(())
    }
}

/// Waits for the oldest piece and copies it to its place.
fn take_in(
    ring: &Ring,
    coming: &mut VecDeque<(usize, Piece)>,
    to: &mut [u8],
) -> Result<(), DriverError> {
    if let Some((slot, piece)) = coming.pop_front() {
        ring.wait(slot)?;
        ring.read(slot, &mut to[piece.host]);
    }
    Ok(())
}

fn ring<'a>(
    ring: &'a mut Option<Ring>,
    gpu: &Arc<Gpu>,
    slots: usize,
    slot_bytes: usize,
) -> Result<&'a mut Ring, DriverError> {
    match ring {
        Some(ring) => Ok(ring),
        none => Ok(none.insert(Ring::new(gpu, slots, slot_bytes)?)),
    }
}

/// One end of a copy.
#[derive(Clone, Copy)]
enum Place {
    /// Pinned memory, rows one behind the other.
    Host(*mut u8),
    /// An address on the device, and the bytes between two rows' beginnings.
    Device(u64, usize),
}

impl Place {
    fn memory(self) -> Memory {
        match self {
            Self::Host(_) => Memory::CU_MEMORYTYPE_HOST,
            Self::Device(..) => Memory::CU_MEMORYTYPE_DEVICE,
        }
    }

    fn host(self) -> *mut u8 {
        match self {
            Self::Host(at) => at,
            Self::Device(..) => ptr::null_mut(),
        }
    }

    fn device(self) -> u64 {
        match self {
            Self::Host(_) => 0,
            Self::Device(address, _) => address,
        }
    }

    /// A single row's pitch may be larger than the driver allows, and does not matter.
    fn pitch(self, piece: &Piece) -> usize {
        match self {
            Self::Device(_, pitch) if piece.height > 1 => pitch,
            _ => piece.width,
        }
    }
}

/// Enqueues the copy of a piece.
///
/// # Safety
/// Both places have the piece's bytes, pinned ones until the stream has done the copy.
unsafe fn copy(
    stream: &CudaStream,
    to: Place,
    from: Place,
    piece: &Piece,
) -> Result<(), DriverError> {
    let copy = sys::CUDA_MEMCPY2D_st {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: from.memory(),
        srcHost: from.host().cast_const().cast(),
        srcDevice: from.device(),
        srcArray: ptr::null_mut(),
        srcPitch: from.pitch(piece),
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: to.memory(),
        dstHost: to.host().cast(),
        dstDevice: to.device(),
        dstArray: ptr::null_mut(),
        dstPitch: to.pitch(piece),
        WidthInBytes: piece.width,
        Height: piece.height,
    };
    // SAFETY: the caller's word; the description is read before the call returns.
    unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.cu_stream()) }.result()
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.gpu.bind_to_drop();
        let context = &self.gpu.context;
        context.record_err(self.copies.synchronize());
        context.record_err(self.stream.synchronize());
        let bounce = self.staging().bounce.take();
        if let Some(bounce) = bounce {
            // SAFETY: allocated on this stream by `bounce`, and nothing uses it any more.
            unsafe { self.gpu.free(&self.copies, bounce.address) };
        }
    }
}
