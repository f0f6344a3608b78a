//! A device and the emulator at once: everything is done on both, and after each launch the memory that it was given must hold the
//! same bits on the two.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use sparsegpt_cuda::{Argument, CudaError, Device, Factorization, Kernel, Limits};

use super::{Emulated, EmulatedBuffer};

/// Kernels whose last bits are the tensor cores' own affair.
const TENSOR_CORES: [&str; 2] = ["gemm_tensor", "gram_16"];

/// Whether two words are the same, but for the sign of a NaN, which IEEE 754 (section 6.3) leaves open. The upper half of a double that
/// is NaN reads as a float that is; so does that of an infinite one, whose sign counts.
pub(crate) fn agree(device: &[u8], emulator: &[u8]) -> bool {
    const SIGN: u32 = 1 << 31;
    const INFINITE_DOUBLE: u32 = 0x7ff0_0000;
    let is_nan = |word: u32| f32::from_bits(word).is_nan() && word & !SIGN != INFINITE_DOUBLE;
    let word = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
    device == emulator
        || matches!(
            (word(device), word(emulator)),
            (Some(a), Some(b)) if is_nan(a) && a ^ b == SIGN
        )
}

/// Where the device has what the emulator has from an address on, by thread as the emulator's memories.
type Places = Arc<Mutex<HashMap<ThreadId, BTreeMap<u64, Place>>>>;

#[derive(Clone, Copy, Debug)]
struct Place {
    on_device: u64,
    bytes: usize,
}

/// A device beside the emulator. Addresses are the emulator's.
#[derive(Debug)]
pub(crate) struct Twin<D> {
    device: D,
    emulated: Emulated,
    places: Places,
    /// Bytes that were the same.
    compared: Arc<AtomicUsize>,
}

/// Memory on both.
#[derive(Debug)]
pub(crate) struct TwinBuffer<D: Device> {
    device: D::Buffer,
    emulated: EmulatedBuffer,
    address: u64,
    bytes: usize,
    thread: ThreadId,
    places: Places,
}

impl<D: Device> Drop for TwinBuffer<D> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places
            .get_mut(&self.thread)
            .and_then(|places| places.remove(&self.address));
    }
}

impl<D: Device> Twin<D> {
    pub(crate) fn new(device: D) -> Self {
        Self::beside(device, Emulated::new())
    }

    /// With a library that factors, the emulator's own for both.
    pub(crate) fn with_library(device: D) -> Self {
        Self::beside(device, Emulated::with_library())
    }

    fn beside(device: D, emulated: Emulated) -> Self {
        Self {
            device,
            emulated,
            places: Places::default(),
            compared: Arc::default(),
        }
    }

    /// How many bytes have been compared on this one and its forks so far.
    pub(crate) fn compared(&self) -> Arc<AtomicUsize> {
        self.compared.clone()
    }

    fn places(&self) -> MutexGuard<'_, HashMap<ThreadId, BTreeMap<u64, Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The beginning of the memory that an address lies in, and where that is on the device; nothing for 0, or for memory of no
    /// bytes.
    fn find(&self, address: u64) -> Option<(u64, Place)> {
        let places = self.places();
        let mine = places.get(&thread::current().id())?;
        let (&start, &place) = mine.range(..=address).next_back()?;
        (address - start < place.bytes as u64).then_some((start, place))
    }

    fn on_device(&self, address: u64) -> u64 {
        self.find(address)
            .map_or(0, |(start, place)| place.on_device + (address - start))
    }

    /// Holds the memory that a kernel was given against the emulator's, where that knows what is there.
    fn compare(&self, kernel: &Kernel, arguments: &[Argument]) -> Result<(), CudaError> {
        let tensor_cores = TENSOR_CORES.contains(&kernel.name);
        for (argument, (name, _)) in arguments.iter().zip(kernel.parameters) {
            let &Argument::Address(address) = argument else {
                continue;
            };
            let Some((start, place)) = self.find(address) else {
                continue;
            };
            let mut found = vec![0_u8; place.bytes];
            self.device
                .download_rows(&mut found, place.on_device, place.bytes, place.bytes)?;
            // Most memory is the same as a whole.
            if self.emulated.peek(start, place.bytes).as_ref() == Some(&found) {
                self.compared.fetch_add(found.len(), Ordering::Relaxed);
                continue;
            }
            for (word, found) in found.chunks(size_of::<u32>()).enumerate() {
                let offset = word * size_of::<u32>();
                let at = start + offset as u64;
                let Some(expected) = self.emulated.peek(at, found.len()) else {
                    continue;
                };
                if !tensor_cores && !agree(found, &expected) {
                    return Err(CudaError::Failed {
                        what: kernel.name.to_owned(),
                        reason: format!(
                            "byte {offset} of the memory of {name} begins {found:02x?} on the device and {expected:02x?} in the emulator"
                        ),
                    });
                }
                // Both go on from the same.
                if found != expected {
                    self.emulated.poke(at, found)?;
                }
                self.compared.fetch_add(found.len(), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl<D: Device> Twin<D> {
    /// Gives the device what the emulator has in the memory of an address, where it has something.
    fn to_device(&self, address: u64) -> Result<(), CudaError> {
        let Some((start, place)) = self.find(address) else {
            return Ok(());
        };
        let mut bytes = vec![0_u8; place.bytes];
        self.device
            .download_rows(&mut bytes, place.on_device, place.bytes, place.bytes)?;
        for (word, bytes) in bytes.chunks_mut(size_of::<u32>()).enumerate() {
            let at = start + (word * size_of::<u32>()) as u64;
            if let Some(emulated) = self.emulated.peek(at, bytes.len()) {
                bytes.copy_from_slice(&emulated);
            }
        }
        let staged = self.device.allocate(place.bytes)?;
        self.device
            .upload_rows(&staged, 0, place.bytes, &bytes, place.bytes)?;
        let from = self.device.address(&staged);
        self.device.copy(place.on_device, from, place.bytes)
    }
}

impl<D: Device> Device for Twin<D> {
    type Buffer = TwinBuffer<D>;

    fn describe(&self) -> String {
        format!("{} and the emulator", self.device.describe())
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn free_bytes(&self) -> Result<usize, CudaError> {
        self.device.free_bytes()
    }

    fn fork(&self) -> Result<Self, CudaError> {
        Ok(Self {
            device: self.device.fork()?,
            emulated: self.emulated.fork()?,
            places: self.places.clone(),
            compared: self.compared.clone(),
        })
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.device.synchronize()
    }

    fn allocate(&self, bytes: usize) -> Result<TwinBuffer<D>, CudaError> {
        let device = self.device.allocate(bytes)?;
        let emulated = self.emulated.allocate(bytes)?;
        let address = self.emulated.address(&emulated);
        let on_device = self.device.address(&device);
        // So that all of it can be read; the emulator still knows what nobody has written.
        self.device.clear(on_device, bytes)?;
        let thread = thread::current().id();
        let mut places = self.places();
        if bytes > 0 {
            let mine = places.entry(thread).or_default();
            mine.insert(address, Place { on_device, bytes });
        }
        Ok(TwinBuffer {
            device,
            emulated,
            address,
            bytes,
            thread,
            places: self.places.clone(),
        })
    }

    fn address(&self, buffer: &TwinBuffer<D>) -> u64 {
        // Tells the device's queue that it is about to use this memory.
        self.device.address(&buffer.device);
        buffer.address
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<(), CudaError> {
        self.device.clear(self.on_device(address), bytes)?;
        self.emulated.clear(address, bytes)
    }

    fn upload_rows(
        &self,
        to: &TwinBuffer<D>,
        offset: usize,
        pitch: usize,
        from: &[u8],
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        self.device
            .upload_rows(&to.device, offset, pitch, from, row_bytes)?;
        self.emulated
            .upload_rows(&to.emulated, offset, pitch, from, row_bytes)
    }

    fn download_rows(
        &self,
        to: &mut [u8],
        from: u64,
        pitch: usize,
        row_bytes: usize,
    ) -> Result<(), CudaError> {
        self.device
            .download_rows(to, self.on_device(from), pitch, row_bytes)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        self.device
            .copy(self.on_device(to), self.on_device(from), bytes)?;
        self.emulated.copy(to, from, bytes)
    }

    fn launch(
        &self,
        kernel: &'static Kernel,
        grid: [u32; 3],
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        let on_device: Vec<Argument> = arguments
            .iter()
            .map(|argument| match *argument {
                Argument::Address(address) => Argument::Address(self.on_device(address)),
                other => other,
            })
            .collect();
        self.device.launch(kernel, grid, &on_device)?;
        self.emulated.launch(kernel, grid, arguments)?;
        self.compare(kernel, arguments)
    }

    fn has_library_factor(&self, cols: usize) -> bool {
        self.emulated.has_library_factor(cols)
    }

    fn library_factor(&self, factorization: &Factorization) -> Result<(), CudaError> {
        self.emulated.library_factor(factorization)?;
        for address in [factorization.h.0, factorization.outcome] {
            self.to_device(address)?;
        }
        Ok(())
    }
}
