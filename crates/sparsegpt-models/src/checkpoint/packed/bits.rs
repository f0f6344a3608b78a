//! Codes of a few bits in a stream of 32-bit words: the first code in the lowest bits, codes across two words where 32 is no
//! multiple of them. For 3 bits that is GPTQ's 10, 1, 10, 1, 10 in three words, and compressed-tensors' dense packing for all.

const WORD: u32 = 32;

/// Words for so many codes; the last one may be partly empty.
pub(super) fn words(codes: usize, bits: u32) -> usize {
    (codes * bits as usize).div_ceil(WORD as usize)
}

/// The codes, each below 2^bits, as words.
pub(super) fn pack(codes: impl Iterator<Item = u32>, bits: u32) -> Vec<u32> {
    let mut packed = Vec::new();
    let (mut pending, mut filled) = (0_u64, 0);
    for code in codes {
        pending |= u64::from(code) << filled;
        filled += bits;
        if filled >= WORD {
            packed.push(pending as u32);
            pending >>= WORD;
            filled -= WORD;
        }
    }
    if filled > 0 {
        packed.push(pending as u32);
    }
    packed
}

/// The first `count` codes of a stream.
pub(super) fn unpack(words: impl Iterator<Item = u32>, bits: u32, count: usize) -> Vec<u32> {
    let mut codes = Vec::with_capacity(count);
    let (mut pending, mut filled) = (0_u64, 0);
    for word in words {
        pending |= u64::from(word) << filled;
        filled += WORD;
        while filled >= bits && codes.len() < count {
            codes.push((pending & ((1 << bits) - 1)) as u32);
            pending >>= bits;
            filled -= bits;
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        for bits in 1..=8 {
            for count in [1, 10, 31, 32, 33, 100] {
                let codes: Vec<u32> = (0..count).map(|i| i * 37 % (1 << bits)).collect();
                let packed = pack(codes.iter().copied(), bits);
                assert_eq!(packed.len(), words(codes.len(), bits));
                assert_eq!(unpack(packed.into_iter(), bits, codes.len()), codes);
            }
        }
    }

    #[test]
    fn three_bits_lie_as_gptq_packs_them() {
        let codes: Vec<u32> = (0..32).map(|i| (i * 5 + 3) % 8).collect();
        let mut expected = [0_u32; 3];
        // Frantar et al., GPTQ reference code, Quant3Linear.pack.
        for j in 0..10 {
            expected[0] |= codes[j] << (3 * j);
            expected[1] |= codes[11 + j] << (3 * j + 1);
            expected[2] |= codes[22 + j] << (3 * j + 2);
        }
        expected[0] |= codes[10] << 30;
        expected[1] |= codes[10] >> 2 & 1;
        expected[1] |= codes[21] << 31;
        expected[2] |= codes[21] >> 1 & 3;
        assert_eq!(pack(codes.into_iter(), 3), expected);
    }
}
