//! Matrix products of a warp, and the loads that feed them.
//!
//! Products of operands are exact. They are added to the accumulator one by one, k ascending, each sum
//! rounded to the nearest f32. The hardware adds several products at once, in a fixed-point sum that
//! truncates, and does not say how many: results agree to a few roundings of the largest term, not bit by
//! bit.

use half::{bf16, f16};

use super::convert::TF32_BITS;
use super::machine::Access;
use super::warp::LANES;
use super::{Machine, Warp};
use crate::fault::{Cause, Trap, Trapped};
use crate::instruction::{Address, Mma, MmaElement, Slot};
use crate::memory::Touch;

const ROWS: usize = 16;
const COLUMNS: usize = 8;
const DEEPEST: usize = 16;

impl MmaElement {
    /// Elements of a register.
    fn packed(self) -> usize {
        if self == Self::Tf32 { 1 } else { 2 }
    }

    /// The value of an element of a register.
    fn value(self, register: u32, part: usize) -> f32 {
        let half = (register >> (16 * part)) as u16;
        match self {
            // The hardware does not look at the low 13 bits.
            Self::Tf32 => f32::from_bits(register & TF32_BITS),
            Self::F16 => f16::from_bits(half).to_f32(),
            Self::Bf16 => bf16::from_bits(half).to_f32(),
        }
    }

    /// Index along k of an element of the `step`th register along k.
    fn depth(self, lane: usize, step: usize, part: usize) -> usize {
        let (in_group, packed) = (lane % 4, self.packed());
        packed * in_group + part + 4 * packed * step
    }
}

impl Warp {
    pub(super) fn mma(&mut self, mma: &Mma, active: u32, m: &Machine<'_>) -> Trapped<()> {
        self.full(active)?;
        let element = mma.element;
        let depth = usize::from(mma.depth);
        // Fragments as the PTX documentation lays them out over lanes and registers.
        let mut a = [[0.0_f32; DEEPEST]; ROWS];
        for (register, slot) in mma.a.iter().enumerate() {
            for (lane, bits) in self.fragment(*slot, m)?.into_iter().enumerate() {
                for part in 0..element.packed() {
                    let row = lane / 4 + 8 * (register % 2);
                    a[row][element.depth(lane, register / 2, part)] = element.value(bits, part);
                }
            }
        }
        let mut b = [[0.0_f32; DEEPEST]; COLUMNS];
        for (register, slot) in mma.b.iter().enumerate() {
            for (lane, bits) in self.fragment(*slot, m)?.into_iter().enumerate() {
                for part in 0..element.packed() {
                    b[lane / 4][element.depth(lane, register, part)] = element.value(bits, part);
                }
            }
        }
        let mut out = [[0_u64; LANES]; 4];
        for (register, slot) in mma.c.iter().enumerate() {
            for (lane, bits) in self.fragment(*slot, m)?.into_iter().enumerate() {
                let row = &a[lane / 4 + 8 * (register / 2)][..depth];
                let column = &b[lane % 4 * 2 + register % 2][..depth];
                let start = f32::from_bits(bits);
                let sum = row
                    .iter()
                    .zip(column)
                    .fold(start, |sum, (x, y)| x.mul_add(*y, sum));
                if sum.is_nan() {
                    let operand =
                        start.is_nan() || row.iter().chain(column).any(|value| value.is_nan());
                    if m.options.trap_nan && !operand {
                        let cause = Cause::NotANumber {
                            register: m.kernel.slot_name(mma.d[register]).to_owned(),
                            operands: format!("{row:?} · {column:?} + {start:?}"),
                        };
                        return Err(Trap::new(lane as u32, cause));
                    }
                }
                let bits = if sum.is_nan() {
                    0x7fff_ffff
                } else {
                    sum.to_bits()
                };
                out[register][lane] = u64::from(bits);
            }
        }
        for (slot, values) in mma.d.iter().zip(&out) {
            self.write(*slot, active, values);
        }
        Ok(())
    }

    /// `ldmatrix`: lane i names row i of 8 halves, and a row goes to lanes all over the warp.
    pub(super) fn load_matrix(
        &mut self,
        values: &[Slot],
        transposed: bool,
        address: Address,
        active: u32,
        m: &mut Machine<'_>,
    ) -> Trapped<()> {
        self.full(active)?;
        let addresses = self.addresses(address, active, m)?;
        let mut moment = self.moment(m);
        for (matrix, slot) in values.iter().enumerate() {
            let mut rows = [[0_u16; 8]; 8];
            for (i, row) in rows.iter_mut().enumerate() {
                let lane = 8 * matrix + i;
                let access = Access {
                    name: "ldmatrix",
                    space: address.space,
                    address: addresses[lane],
                    bytes: 16,
                    lane: lane as u32,
                };
                // Two readers: so an unordered write by any thread is a race, the namer's own too.
                for reader in [lane, (lane + 1) % LANES] {
                    moment.thread = self.thread(reader);
                    let words = m.load::<4>(&access, &[true; 4], Touch::Read, &moment)?;
                    for (word, value) in words.into_iter().enumerate() {
                        row[2 * word] = value as u16;
                        row[2 * word + 1] = (value >> 16) as u16;
                    }
                }
            }
            let out = std::array::from_fn(|lane| {
                let (i, j) = (lane / 4, lane % 4 * 2);
                let pair = if transposed {
                    [rows[j][i], rows[j + 1][i]]
                } else {
                    [rows[i][j], rows[i][j + 1]]
                };
                u64::from(pair[0]) | u64::from(pair[1]) << 16
            });
            self.write(*slot, active, &out);
        }
        Ok(())
    }
}
