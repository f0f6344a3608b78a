//! Device memory: allocations far apart, every byte known as written or not.

mod race;
mod store;

pub(crate) use race::{Moment, Other, Touch};
pub(crate) use store::{Store, Trouble};

/// Where shared memory stands among generic addresses.
pub(crate) const SHARED_WINDOW: u64 = 0x0100_0000;
/// Where module-scope tables stand among generic addresses.
pub(crate) const CONSTANT_WINDOW: u64 = 0x8000_0000;

/// Each allocation has 4 GiB of addresses to itself and begins here in them, so that no overrun of less
/// than a quarter GiB, to either side, meets another allocation.
const REGION_START: u64 = 0x1000_0000;
const REGION_BITS: u32 = 32;
const LARGEST: u64 = (1 << REGION_BITS) - 2 * REGION_START;

/// An address in device memory, as kernels get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePointer(u64);

impl DevicePointer {
    /// A pointer from its address.
    pub fn from_address(address: u64) -> Self {
        Self(address)
    }

    /// The address, as a `.u64` parameter holds it.
    pub fn address(self) -> u64 {
        self.0
    }

    /// The place so many bytes on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes as u64))
    }
}

/// What the host did wrong with device memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The device has not so much memory left.
    #[error("device memory: {bytes} bytes asked for, {left} of {capacity} left")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes left.
        left: usize,
        /// Bytes of the whole device.
        capacity: usize,
    },
    /// No such bytes are allocated.
    #[error("device memory: {bytes} bytes at {address:#x} are not allocated: {what}")]
    NotAllocated {
        /// The address.
        address: u64,
        /// Bytes of the access.
        bytes: usize,
        /// What is near.
        what: String,
    },
    /// The bytes were never written.
    #[error("device memory: byte {byte} of {what} is read, but was never written")]
    Undefined {
        /// The allocation.
        what: String,
        /// The first such byte, counted from the allocation's start.
        byte: usize,
    },
}

/// Values that can be copied to and from device memory.
pub trait Value: Copy + private::Sealed {
    #[doc(hidden)]
    fn to_bytes(values: &[Self]) -> Vec<u8>;
    #[doc(hidden)]
    fn from_bytes(bytes: &[u8]) -> Vec<Self>;
}

mod private {
    pub trait Sealed {}
}

impl private::Sealed for u8 {}

impl Value for u8 {
    fn to_bytes(values: &[Self]) -> Vec<u8> {
        values.to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Vec<Self> {
        bytes.to_vec()
    }
}

macro_rules! values {
    ($($ty:ty)*) => {$(
        impl private::Sealed for $ty {}

        impl Value for $ty {
            fn to_bytes(values: &[Self]) -> Vec<u8> {
                values.iter().flat_map(|value| value.to_le_bytes()).collect()
            }

            fn from_bytes(bytes: &[u8]) -> Vec<Self> {
                let (values, _) = bytes.as_chunks();
                values.iter().map(|value| Self::from_le_bytes(*value)).collect()
            }
        }
    )*};
}

values!(i8 u16 i16 u32 i32 u64 i64 f32 f64);

#[derive(Clone, Debug)]
struct Allocation {
    store: Option<Store>,
    /// Size, also after it was freed.
    bytes: usize,
    label: Option<String>,
}

/// The memory of one device.
///
/// ```
/// use ptx_emulator::Memory;
/// let mut memory = Memory::new();
/// let pointer = memory.allocate(8)?;
/// memory.write(pointer, &[1.5_f32])?;
/// assert_eq!(memory.read::<f32>(pointer, 1)?, [1.5]);
/// // The second half was never written.
/// assert!(memory.read::<f32>(pointer, 2).is_err());
/// # Ok::<(), ptx_emulator::MemoryError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Memory {
    allocations: Vec<Allocation>,
    capacity: usize,
    used: usize,
    /// Time of the race rule.
    pub(crate) clock: u32,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// A device with as much memory as the host can give.
    pub fn new() -> Self {
        Self::with_capacity(usize::MAX)
    }

    /// A device with so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            allocations: Vec::new(),
            capacity: bytes,
            used: 0,
            clock: 1,
        }
    }

    /// Bytes that are allocated.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Allocates bytes, all undefined, at an address that is a multiple of 256. Addresses of freed
    /// memory do not come back.
    ///
    /// # Errors
    ///
    /// [`MemoryError::OutOfMemory`].
    pub fn allocate(&mut self, bytes: usize) -> Result<DevicePointer, MemoryError> {
        let left = self.capacity - self.used;
        if bytes > left || bytes as u64 > LARGEST {
            return Err(MemoryError::OutOfMemory {
                bytes,
                left,
                capacity: self.capacity,
            });
        }
        self.used += bytes;
        self.allocations.push(Allocation {
            store: Some(Store::new(bytes)),
            bytes,
            label: None,
        });
        Ok(DevicePointer(start(self.allocations.len() - 1)))
    }

    /// Frees an allocation by its first address.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`] unless the pointer is the start of a living allocation.
    pub fn free(&mut self, pointer: DevicePointer) -> Result<(), MemoryError> {
        let (index, at) = self.locate(pointer.0, 0)?;
        if at != 0 {
            return Err(self.not_allocated(pointer.0, 0));
        }
        self.used -= self.allocations[index].bytes;
        self.allocations[index].store = None;
        Ok(())
    }

    /// Gives an allocation a name for faults.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`].
    pub fn label(&mut self, pointer: DevicePointer, name: &str) -> Result<(), MemoryError> {
        let (index, _) = self.locate(pointer.0, 0)?;
        self.allocations[index].label = Some(name.to_owned());
        Ok(())
    }

    /// Copies values to the device.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`].
    pub fn write<T: Value>(&mut self, to: DevicePointer, values: &[T]) -> Result<(), MemoryError> {
        let bytes = T::to_bytes(values);
        let (index, at) = self.locate(to.0, bytes.len())?;
        self.store_mut(index).put(at, &bytes);
        Ok(())
    }

    /// Copies values from the device.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`], and [`MemoryError::Undefined`] where a byte was never written.
    pub fn read<T: Value>(&self, from: DevicePointer, count: usize) -> Result<Vec<T>, MemoryError> {
        let bytes = count.saturating_mul(size_of::<T>());
        let (index, at) = self.locate(from.0, bytes)?;
        let Some(store) = &self.allocations[index].store else {
            return Err(self.not_allocated(from.0, bytes));
        };
        if let Some(byte) = store.first_undefined(at, bytes) {
            return Err(MemoryError::Undefined {
                what: self.name(index),
                byte,
            });
        }
        Ok(T::from_bytes(&store.bytes[at..at + bytes]))
    }

    /// Sets bytes, as `cudaMemset` does.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`].
    pub fn fill(&mut self, to: DevicePointer, byte: u8, count: usize) -> Result<(), MemoryError> {
        let (index, at) = self.locate(to.0, count)?;
        self.store_mut(index).fill(at, byte, count);
        Ok(())
    }

    /// Copies inside the device; undefined bytes stay undefined.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotAllocated`].
    pub fn copy(
        &mut self,
        to: DevicePointer,
        from: DevicePointer,
        bytes: usize,
    ) -> Result<(), MemoryError> {
        let (source, source_at) = self.locate(from.0, bytes)?;
        let (target, target_at) = self.locate(to.0, bytes)?;
        let part = self.store_mut(source).part(source_at, bytes);
        self.store_mut(target).put_part(target_at, &part);
        Ok(())
    }

    /// Whether all these bytes are allocated and were written.
    pub fn is_defined(&self, pointer: DevicePointer, bytes: usize) -> bool {
        self.locate(pointer.0, bytes).is_ok_and(|(index, at)| {
            self.allocations[index]
                .store
                .as_ref()
                .is_some_and(|s| s.is_defined(at, bytes))
        })
    }

    /// The living allocation and the offset in it of a range of bytes.
    fn locate(&self, address: u64, bytes: usize) -> Result<(usize, usize), MemoryError> {
        self.find(address, bytes)
            .ok_or_else(|| self.not_allocated(address, bytes))
    }

    /// The living allocation that holds all these bytes, and their offset in it.
    #[inline]
    pub(crate) fn find(&self, address: u64, bytes: usize) -> Option<(usize, usize)> {
        let index = ((address >> REGION_BITS) as usize).wrapping_sub(1);
        let allocation = self.allocations.get(index)?;
        let at = address.wrapping_sub(start(index));
        let inside = at as usize <= allocation.bytes
            && bytes <= allocation.bytes - at as usize
            && allocation.store.is_some();
        inside.then_some((index, at as usize))
    }

    pub(crate) fn store_mut(&mut self, index: usize) -> &mut Store {
        self.allocations[index].store.get_or_insert_default()
    }

    /// Whether these bytes stand at an address.
    pub(crate) fn holds(&self, address: u64, bytes: &[u8]) -> bool {
        self.find(address, bytes.len()).is_some_and(|(index, at)| {
            let store = self.allocations[index].store.as_ref();
            store.is_some_and(|store| store.bytes[at..at + bytes.len()] == *bytes)
        })
    }

    fn name(&self, index: usize) -> String {
        let allocation = &self.allocations[index];
        let bytes = allocation.bytes;
        match &allocation.label {
            Some(label) => format!("`{label}` ({bytes} bytes)"),
            None => format!("allocation {index} ({bytes} bytes)"),
        }
    }

    /// What stands at or near an address.
    pub(crate) fn describe(&self, address: u64, bytes: usize) -> String {
        let index = ((address >> REGION_BITS) as usize).wrapping_sub(1);
        let Some(allocation) = self.allocations.get(index) else {
            return "no allocation is near".into();
        };
        let name = self.name(index);
        let at = address.wrapping_sub(start(index)) as i64;
        let end = at.saturating_add(bytes as i64);
        if allocation.store.is_none() {
            format!("{name} was freed")
        } else if at < 0 {
            format!("{} bytes before {name}", -at)
        } else if end > allocation.bytes as i64 {
            format!(
                "ends {} bytes past {name}, whose offset is {at}",
                end - allocation.bytes as i64
            )
        } else {
            format!("byte {at} of {name}")
        }
    }

    fn not_allocated(&self, address: u64, bytes: usize) -> MemoryError {
        MemoryError::NotAllocated {
            address,
            bytes,
            what: self.describe(address, bytes),
        }
    }

    /// Time goes on; before it runs out, all that is known of accesses is forgotten.
    pub(crate) fn begin_launch(&mut self) -> u32 {
        if self.clock > u32::MAX / 2 {
            self.clock = 1;
            for store in self.allocations.iter_mut().filter_map(|a| a.store.as_mut()) {
                store.shadow.forget();
            }
        }
        self.clock += 1;
        self.clock
    }
}

fn start(index: usize) -> u64 {
    ((index as u64 + 1) << REGION_BITS) + REGION_START
}
