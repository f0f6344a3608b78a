//! Which columns have values: a bit for each, or a number for each eight that obey an N:M pattern.

/// The columns of a tile's units that have values.
pub(crate) trait Index: Copy + Send + Sync {
    /// What the eight groups of eight columns of a unit are read from.
    fn word(self, unit: usize) -> u64;

    /// A bit for each column of a group.
    fn byte(word: u64, group: usize) -> u8;

    /// How many those are.
    fn count(byte: u8) -> usize;

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
    fn count(byte: u8) -> usize {
        byte.count_ones() as usize
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
    fn count(_byte: u8) -> usize {
        ALL[P].kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
