//! Which columns have values: a bit for each, or a number for each eight that obey an N:M pattern.

/// The columns of a tile's units that have values.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "plain code goes by the masks")
)]
pub(crate) trait Index: Copy + Send + Sync {
    /// What the eight groups of eight columns of a unit are read from.
    fn word(self, unit: usize) -> u64;

    /// The pattern and the codes of all units, where it is codes.
    fn codes(&self) -> Option<(&'static Shape, &[u8])> {
        None
    }

    /// A bit for each column of a group.
    fn byte(word: u64, group: usize) -> u8;

    /// Values of the unit before those of a group. None waits for the groups before it.
    fn before(word: u64, group: usize) -> usize;

    /// Values of the unit before those of the second four columns of a group, whose `byte` is this.
    fn before_half(word: u64, group: usize, byte: u8) -> usize;

    /// Values of the unit.
    fn total(word: u64) -> usize;

    /// A bit for each column of the unit.
    fn mask(self, unit: usize) -> u64 {
        let word = self.word(unit);
        u64::from_le_bytes(std::array::from_fn(|group| Self::byte(word, group)))
    }
}

/// A bit for each weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits<'a>(pub(crate) &'a [u64]);

impl Index for Bits<'_> {
    #[inline(always)]
    fn word(self, unit: usize) -> u64 {
        self.0[unit]
    }

    #[inline(always)]
    fn byte(word: u64, group: usize) -> u8 {
        (word >> (8 * group)) as u8
    }

    #[inline(always)]
    fn before(word: u64, group: usize) -> usize {
        match group {
            0 => 0,
            _ => (word << (64 - 8 * group)).count_ones() as usize,
        }
    }

    #[inline(always)]
    fn before_half(word: u64, group: usize, _byte: u8) -> usize {
        (word << (60 - 8 * group)).count_ones() as usize
    }

    #[inline(always)]
    fn total(word: u64) -> usize {
        word.count_ones() as usize
    }
}

/// An N:M pattern: N zeros in every M columns, M being 4 or 8.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) zeros: usize,
    pub(crate) group: usize,
    /// Values of eight columns.
    pub(crate) kept: usize,
    /// Bits of a code; so many bytes are a unit's codes.
    pub(crate) bits: usize,
    /// Codes that mean something.
    pub(crate) codes: usize,
    /// The columns of each code, rising.
    pub(crate) bytes: [u8; 128],
}

/// The patterns that are stored by codes.
pub(crate) static SHAPES: [Shape; 4] = ALL;
const ALL: [Shape; 4] = [shape(2, 4), shape(4, 8), shape(1, 4), shape(2, 8)];

const fn shape(zeros: usize, group: usize) -> Shape {
    let kept = (group - zeros) as u32;
    let mut bytes = [0; 128];
    let mut codes = 0;
    let mut byte = 0_u32;
    while byte < 256 {
        let fits = match group {
            4 => (byte & 15).count_ones() == kept && (byte >> 4).count_ones() == kept,
            _ => byte.count_ones() == kept,
        };
        if fits {
            bytes[codes] = byte as u8;
            codes += 1;
        }
        byte += 1;
    }
    Shape {
        zeros,
        group,
        kept: 8 / group * (group - zeros),
        bits: (codes - 1).ilog2() as usize + 1,
        codes,
        bytes,
    }
}

/// Codes of the pattern `SHAPES[P]`, eight bytes longer than the last unit's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a, const P: usize>(pub(crate) &'a [u8]);

impl<const P: usize> Index for Codes<'_, P> {
    #[inline(always)]
    fn codes(&self) -> Option<(&'static Shape, &[u8])> {
        Some((&SHAPES[P], self.0))
    }

    #[inline(always)]
    fn word(self, unit: usize) -> u64 {
        let at = unit * ALL[P].bits;
        let bytes: &[u8; 8] = self.0[at..].first_chunk().unwrap_or(&[0; 8]);
        u64::from_le_bytes(*bytes)
    }

    #[inline(always)]
    fn byte(word: u64, group: usize) -> u8 {
        let bits = ALL[P].bits;
        let code = (word >> (bits * group)) as usize & ((1 << bits) - 1);
        SHAPES[P].bytes[code]
    }

    #[inline(always)]
    fn before(_word: u64, group: usize) -> usize {
        ALL[P].kept * group
    }

    #[inline(always)]
    fn before_half(_word: u64, group: usize, byte: u8) -> usize {
        let half = match ALL[P].group {
            4 => ALL[P].kept / 2,
            _ => (byte & 15).count_ones() as usize,
        };
        ALL[P].kept * group + half
    }

    #[inline(always)]
    fn total(_word: u64) -> usize {
        8 * ALL[P].kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts of an index against those of the bits.
    fn counts_agree<I: Index>(index: I, unit: usize) {
        let (word, mask) = (index.word(unit), index.mask(unit));
        let below = |column: usize| (0..column).filter(|at| mask >> at & 1 == 1).count();
        for group in 0..8 {
            let byte = I::byte(word, group);
            assert_eq!(I::before(word, group), below(8 * group));
            assert_eq!(I::before_half(word, group, byte), below(8 * group + 4));
        }
        assert_eq!(I::total(word), below(64));
    }

    #[test]
    fn counts_are_those_of_the_bits() {
        let words = [
            0,
            u64::MAX,
            1 << 63,
            1,
            0xf0f0_1234_8001_7e3c,
            0x5555_aaaa_0ff0_c003,
        ];
        for unit in 0..words.len() {
            counts_agree(Bits(&words), unit);
        }
        let mut codes = [0_u8; 32];
        for (at, code) in codes.iter_mut().enumerate() {
            *code = (at * 37 % 251) as u8;
        }
        // Codes without a meaning stand for no columns, so only those that have one are taken.
        fn all<const P: usize>(codes: &[u8]) {
            let meaningful = |unit| {
                let word = Codes::<P>(codes).word(unit);
                (0..8).all(|group| {
                    (word >> (ALL[P].bits * group)) as usize & ((1 << ALL[P].bits) - 1)
                        < ALL[P].codes
                })
            };
            let units: Vec<_> = (0..(codes.len() - 8) / ALL[P].bits)
                .filter(|&unit| meaningful(unit))
                .collect();
            for &unit in &units {
                counts_agree(Codes::<P>(codes), unit);
            }
        }
        let zeros = [0_u8; 24];
        for codes in [&codes[..], &zeros] {
            all::<0>(codes);
            all::<1>(codes);
            all::<2>(codes);
            all::<3>(codes);
        }
    }

    #[test]
    fn codes_are_as_short_as_they_can_be() {
        let bits: Vec<_> = SHAPES
            .iter()
            .map(|shape| (shape.codes, shape.bits))
            .collect();
        // Two of four twice: 6 · 6; four of eight: 70; one of four twice: 4 · 4; two of eight: 28.
        assert_eq!(bits, [(36, 6), (70, 7), (16, 4), (28, 5)]);
        for shape in &SHAPES {
            for byte in &shape.bytes[..shape.codes] {
                assert_eq!(byte.count_ones() as usize, shape.kept);
            }
        }
    }
}
