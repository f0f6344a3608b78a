//! Permutations from a seed, to show that results do not depend on an order.

/// Permutes, or leaves alone if it has no seed.
#[derive(Clone, Debug)]
pub(crate) struct Shuffle(Option<u64>);

impl Shuffle {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self(seed)
    }

    /// Fisher and Yates, with the numbers of SplitMix64.
    pub(crate) fn permute<T>(&mut self, items: &mut [T]) {
        let Some(state) = &mut self.0 else { return };
        for last in (1..items.len()).rev() {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            items.swap(last, (z % (last as u64 + 1)) as usize);
        }
    }
}
