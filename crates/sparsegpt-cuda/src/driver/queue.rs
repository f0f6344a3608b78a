//! A queue on a GPU: a stream for kernels, and one beside it on which the next upload comes in meanwhile.
//!
//! An upload goes from the caller's memory to a pinned slot and from there over the bus. A large one takes the stream for
//! copies, to memory that was allocated in that stream's order: so the bus is busy while kernels run that were enqueued
//! before. Large copies go in lanes, each of them a thread's.

use std::collections::VecDeque;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUmemorytype as Memory};
use cudarc::driver::{CudaStream, DriverError};

use super::failure::failed;
use super::gpu::Gpu;
use super::lanes::{PIECE, in_lanes};
use super::pieces::{Piece, Rows};
use super::staging::Ring;
use crate::error::CudaError;

/// Copies up to this size (bytes) go straight to their place: settings, lists of indices.
pub(super) const SMALL: usize = 64 << 10;
const SMALL_SLOTS: usize = 32;

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
    /// One for each thread of a large copy.
    lanes: Vec<Ring>,
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

    /// Memory for an upload that is not to wait for what is enqueued for the kernels.
    pub(super) fn allocate_beside(&self, bytes: usize) -> Result<u64, CudaError> {
        let address = self.gpu.allocate(&self.copies, bytes)?;
        // What follows on the other stream, the end of this memory included, comes behind its beginning.
        if let Err(error) = self.kernels_wait_for_copies() {
            // SAFETY: allocated on this stream just now, and nothing uses it.
            unsafe { self.gpu.free(&self.copies, address) };
            return Err(failed("making room for an upload", error));
        }
        Ok(address)
    }

    fn kernels_wait_for_copies(&self) -> Result<(), DriverError> {
        let event = self.copies.record_event(None)?;
        self.stream.wait(&event)
    }

    fn copies_wait_for_kernels(&self) -> Result<(), DriverError> {
        let event = self.stream.record_event(None)?;
        self.copies.wait(&event)
    }

    /// Copies rows from the host; returns when they have been read. Kernels enqueued from now on find them there. `fresh`
    /// memory is that of [`allocate_beside`](Self::allocate_beside) which no kernel has been told of.
    pub(super) fn upload(
        &self,
        to: u64,
        rows: Rows,
        from: &[u8],
        fresh: bool,
    ) -> Result<(), CudaError> {
        self.gpu.bind()?;
        let mut staging = self.staging();
        let uploading = |error| failed(format!("an upload of {} bytes", rows.total), error);
        if rows.total <= SMALL && !fresh {
            let ring = small(&mut staging.small, &self.gpu).map_err(uploading)?;
            for piece in rows.pieces(SMALL) {
                let bytes = &from[piece.host.clone()];
                send(&self.stream, ring, to, rows.pitch, &piece, bytes).map_err(uploading)?;
            }
            return Ok(());
        }
        if !fresh {
            self.copies_wait_for_kernels().map_err(uploading)?;
        }
        let pieces = rows.pieces(PIECE).into_iter().map(|piece| {
            let bytes = &from[piece.host.clone()];
            (piece, bytes)
        });
        let sent = in_lanes(
            &self.gpu,
            &mut staging.lanes,
            pieces.collect(),
            |ring, pieces| {
                for (piece, bytes) in pieces {
                    send(&self.copies, ring, to, rows.pitch, &piece, bytes).map_err(uploading)?;
                }
                Ok(())
            },
        );
        // Also where a lane failed: the others' copies are under way, and the memory is freed in the kernels' order.
        let waits = self.kernels_wait_for_copies().map_err(uploading);
        sent.and(waits)
    }

    /// Copies rows to the host and waits for them.
    pub(super) fn download(&self, to: &mut [u8], from: u64, rows: Rows) -> Result<(), CudaError> {
        self.gpu.bind()?;
        let mut staging = self.staging();
        let downloading = |error| failed(format!("a download of {} bytes", rows.total), error);
        let receive = |ring: &mut Ring, pieces| {
            self.receive(ring, pieces, from, rows.pitch)
                .map_err(downloading)
        };
        if rows.total <= SMALL {
            let ring = small(&mut staging.small, &self.gpu).map_err(downloading)?;
            return receive(ring, with_places(rows.pieces(SMALL), to));
        }
        let pieces = with_places(rows.pieces(PIECE), to);
        in_lanes(&self.gpu, &mut staging.lanes, pieces, receive)
    }

    fn receive(
        &self,
        ring: &mut Ring,
        pieces: Vec<(Piece, &mut [u8])>,
        from: u64,
        pitch: usize,
    ) -> Result<(), DriverError> {
        let mut coming = VecDeque::new();
        for (piece, to) in pieces {
            if coming.len() == ring.slots() {
                take_in(ring, &mut coming)?;
            }
            let slot = ring.take_turn()?;
            let there = Place::Device(from + piece.device as u64, pitch);
            // SAFETY: the slot has room for the piece, and is read when its event is done; the place is the caller's to
            // name.
            unsafe { copy(&self.stream, Place::Host(ring.at(slot)), there, &piece) }?;
            ring.used(slot, &self.stream)?;
            coming.push_back((slot, to));
        }
        while !coming.is_empty() {
            take_in(ring, &mut coming)?;
        }
        Ok(())
    }
}

/// Copies a piece by way of a pinned slot.
fn send(
    stream: &CudaStream,
    ring: &mut Ring,
    to: u64,
    pitch: usize,
    piece: &Piece,
    bytes: &[u8],
) -> Result<(), DriverError> {
    let slot = ring.take_turn()?;
    ring.fill(slot, bytes);
    let there = Place::Device(to + piece.device as u64, pitch);
    // SAFETY: the slot holds the piece and stays as it is until its event is done; the place is the caller's to name.
    unsafe { copy(stream, there, Place::Host(ring.at(slot)), piece) }?;
    ring.used(slot, stream)
}

/// Each piece with its place on the host. Pieces lie there one behind the other.
fn with_places(pieces: Vec<Piece>, mut to: &mut [u8]) -> Vec<(Piece, &mut [u8])> {
    let with_place = |piece: Piece| {
        let (place, behind) = std::mem::take(&mut to).split_at_mut(piece.host.len());
        to = behind;
        (piece, place)
    };
    pieces.into_iter().map(with_place).collect()
}

/// Waits for the oldest piece and copies it to its place.
fn take_in(ring: &Ring, coming: &mut VecDeque<(usize, &mut [u8])>) -> Result<(), DriverError> {
    if let Some((slot, place)) = coming.pop_front() {
        ring.wait(slot)?;
        ring.read(slot, place);
    }
    Ok(())
}

fn small<'a>(ring: &'a mut Option<Ring>, gpu: &Arc<Gpu>) -> Result<&'a mut Ring, DriverError> {
    match ring {
        Some(ring) => Ok(ring),
        none => Ok(none.insert(Ring::new(gpu, SMALL_SLOTS, SMALL)?)),
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
    }
}
