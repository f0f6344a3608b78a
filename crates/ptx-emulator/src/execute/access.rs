//! Loads, stores and atomics.

use super::arithmetic::with_int;
use super::convert::extend_element;
use super::machine::Access;
use super::warp::{LANES, Lanes, lanes};
use super::word::Word;
use super::{Machine, Warp};
use crate::fault::{Cause, Trap, Trapped};
use crate::instruction::{Address, AtomicOp, Element, Float, Int, Order, Slot, Space};
use crate::memory::{Moment, Touch};

fn is_nan(bits: u64, float: Option<Float>) -> bool {
    match float {
        Some(Float::F32) => f32::of(bits).is_nan(),
        Some(Float::F64) => f64::of(bits).is_nan(),
        None => false,
    }
}

/// The new value of a place.
fn atomic_result(op: AtomicOp, int: Int, old: u64, b: u64, c: u64) -> u64 {
    with_int!(int, T => {
        let (x, y) = (T::of(old), T::of(b));
        match op {
            AtomicOp::Add => x.wrapping_add(y).bits(),
            AtomicOp::Min => x.min(y).bits(),
            AtomicOp::Max => x.max(y).bits(),
            AtomicOp::And => (x & y).bits(),
            AtomicOp::Or => (x | y).bits(),
            AtomicOp::Xor => (x ^ y).bits(),
            AtomicOp::Increment => if x >= y { 0 } else { x.wrapping_add(1).bits() },
            AtomicOp::Decrement => {
                if x == 0 || x > y { y.bits() } else { x.wrapping_sub(1).bits() }
            }
            AtomicOp::Exchange => b,
            AtomicOp::CompareAndSwap => if old == b { c } else { old },
        }
    })
}

/// Puts a new value in place of the old one, and gives the old one.
fn exchange_value<const N: usize>(
    m: &mut Machine<'_>,
    access: &Access,
    moment: &Moment,
    new: impl Fn(u64) -> u64,
) -> Trapped<u64> {
    let [old, ..] = m.load::<N>(access, &[true], Touch::Strong, moment)?;
    m.store::<N>(access, std::iter::once(new(old)), Touch::Strong, moment)?;
    Ok(old)
}

#[cold]
fn nan_loaded(m: &Machine<'_>, space: Space, address: u64, bytes: usize, lane: u32) -> Box<Trap> {
    let nearest = m.describe(&Access {
        name: "load",
        space,
        address,
        bytes,
        lane,
    });
    Trap::new(lane, Cause::NotANumberLoaded { address, nearest })
}

impl Warp {
    /// Addresses of an operand in active lanes.
    pub(super) fn addresses(
        &self,
        address: Address,
        active: u32,
        m: &Machine<'_>,
    ) -> Trapped<Lanes> {
        let mut out = *self.read(address.base, active, m)?;
        for value in &mut out {
            *value = value.wrapping_add(address.offset as u64);
            // Shared addresses are 32 bits wide, in whatever register they stand.
            if address.space == Space::Shared {
                *value &= u64::from(u32::MAX);
            }
        }
        Ok(out)
    }

    pub(super) fn load_parameter(
        &mut self,
        values: &[Slot],
        offset: u32,
        element: Element,
        active: u32,
        m: &Machine<'_>,
    ) {
        let width = usize::from(element.bytes);
        for (i, slot) in values.iter().enumerate() {
            let at = offset as usize + i * width;
            let mut bytes = [0; 8];
            bytes[..width].copy_from_slice(&m.parameters[at..at + width]);
            let value = extend_element(u64::from_le_bytes(bytes), element);
            self.write(*slot, active, &[value; LANES]);
        }
    }

    pub(super) fn load(
        &mut self,
        values: &[Option<Slot>],
        address: Address,
        element: Element,
        order: Order,
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        match element.bytes {
            1 => self.load_elements::<1>(values, address, element, order, active, m),
            2 => self.load_elements::<2>(values, address, element, order, active, m),
            4 => self.load_elements::<4>(values, address, element, order, active, m),
            _ => self.load_elements::<8>(values, address, element, order, active, m),
        }
    }

    fn load_elements<const N: usize>(
        &mut self,
        values: &[Option<Slot>],
        address: Address,
        element: Element,
        order: Order,
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        let touch = match order {
            Order::Plain => Touch::Read,
            Order::ReadOnly => Touch::ReadOnly,
            Order::Strong => Touch::Strong,
        };
        let mut wanted = [false; 4];
        for (wanted, slot) in wanted.iter_mut().zip(values) {
            *wanted = slot.is_some();
        }
        let addresses = self.addresses(address, active, m)?;
        let mut moment = self.moment(m);
        let mut out = [[0; LANES]; 4];
        for lane in lanes(active) {
            moment.thread = self.thread(lane);
            let access = Access {
                name: "load",
                space: address.space,
                address: addresses[lane],
                bytes: N * values.len(),
                lane: lane as u32,
            };
            let loaded = m.load::<N>(&access, &wanted[..values.len()], touch, &moment)?;
            for i in 0..values.len() {
                out[i][lane] = loaded[i];
            }
        }
        for (i, slot) in values.iter().enumerate() {
            let Some(slot) = slot else { continue };
            if element.float.is_some() && m.options.trap_nan {
                let nan = lanes(active).find(|lane| is_nan(out[i][*lane], element.float));
                if let Some(lane) = nan {
                    let at = addresses[lane] + (i * N) as u64;
                    return Err(nan_loaded(m, address.space, at, N, lane as u32));
                }
            }
            if element.register > element.bytes {
                for value in &mut out[i] {
                    *value = extend_element(*value, element);
                }
            }
            self.write(*slot, active, &out[i]);
        }
        Ok(())
    }

    pub(super) fn store(
        &self,
        values: &[Slot],
        address: Address,
        element: Element,
        order: Order,
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        match element.bytes {
            1 => self.store_elements::<1>(values, address, order, active, m),
            2 => self.store_elements::<2>(values, address, order, active, m),
            4 => self.store_elements::<4>(values, address, order, active, m),
            _ => self.store_elements::<8>(values, address, order, active, m),
        }
    }

    fn store_elements<const N: usize>(
        &self,
        values: &[Slot],
        address: Address,
        order: Order,
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        let touch = if order == Order::Strong {
            Touch::Strong
        } else {
            Touch::Write
        };
        let addresses = self.addresses(address, active, m)?;
        let mut moment = self.moment(m);
        for slot in values {
            self.read(*slot, active, m)?;
        }
        for lane in lanes(active) {
            moment.thread = self.thread(lane);
            let access = Access {
                name: "store",
                space: address.space,
                address: addresses[lane],
                bytes: N * values.len(),
                lane: lane as u32,
            };
            let stored = values
                .iter()
                .map(|slot| self.registers[*slot as usize][lane]);
            m.store::<N>(&access, stored, touch, &moment)?;
        }
        Ok(())
    }

    /// Lanes take their turns in order.
    pub(super) fn atomic(
        &mut self,
        op: AtomicOp,
        element: Element,
        d: Option<Slot>,
        (address, b, c): (Address, Slot, Slot),
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        let width = usize::from(element.bytes);
        let int = match (element.bytes, element.signed) {
            (4, false) => Int::U32,
            (4, true) => Int::S32,
            (_, false) => Int::U64,
            (_, true) => Int::S64,
        };
        let addresses = self.addresses(address, active, m)?;
        let (b, c) = (*self.read(b, active, m)?, *self.read(c, active, m)?);
        let mut moment: Moment = self.moment(m);
        let mut out = [0; LANES];
        for lane in lanes(active) {
            moment.thread = self.thread(lane);
            let access = Access {
                name: "atomic",
                space: address.space,
                address: addresses[lane],
                bytes: width,
                lane: lane as u32,
            };
            let exchange = |old| atomic_result(op, int, old, b[lane], c[lane]);
            out[lane] = match element.bytes {
                4 => exchange_value::<4>(m, &access, &moment, exchange)?,
                _ => exchange_value::<8>(m, &access, &moment, exchange)?,
            };
        }
        if let Some(d) = d {
            self.write(d, active, &out);
        }
        Ok(())
    }
}
