//! Looking for NaN and infinity at the speed of memory.

use half::{bf16, f16};
use ndarray::{ArrayView2, s};

use crate::threads::map_ranges;

/// A floating-point type whose bits tell what is finite.
pub(crate) trait Float: Copy + Sync {
    /// Bits without the sign; of all finite values below those of infinity.
    fn magnitude(self) -> u32;
    /// The magnitude of infinity.
    const INFINITY: u32;
}

impl Float for f32 {
    fn magnitude(self) -> u32 {
        self.to_bits() & 0x7fff_ffff
    }
    const INFINITY: u32 = 0x7f80_0000;
}

impl Float for bf16 {
    fn magnitude(self) -> u32 {
        u32::from(self.to_bits() & 0x7fff)
    }
    const INFINITY: u32 = 0x7f80;
}

impl Float for f16 {
    fn magnitude(self) -> u32 {
        u32::from(self.to_bits() & 0x7fff)
    }
    const INFINITY: u32 = 0x7c00;
}

/// Row and column of the first value that is NaN or infinite.
pub(crate) fn first_non_finite<T: Float>(values: ArrayView2<'_, T>) -> Option<(usize, usize)> {
    let found = map_ranges(values.dim(), |rows| {
        let (row, col) = first_in(values.slice(s![rows.clone(), ..]))?;
        Some((rows.start + row, col))
    });
    found.into_iter().flatten().next()
}

/// The same, on this thread.
fn first_in<T: Float>(values: ArrayView2<'_, T>) -> Option<(usize, usize)> {
    // The largest magnitude, unlike a search, is found without a branch; the position is looked for only
    // where there is one.
    let largest = |largest: u32, &value: &T| largest.max(value.magnitude());
    values
        .rows()
        .into_iter()
        .enumerate()
        .find_map(|(row, values)| {
            let found = match values.to_slice() {
                Some(values) => values.iter().fold(0, largest),
                None => values.iter().fold(0, largest),
            };
            let not_finite = |value: &T| value.magnitude() >= T::INFINITY;
            (found >= T::INFINITY).then(|| (row, values.iter().position(not_finite).unwrap_or(0)))
        })
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn the_first_of_a_large_matrix_is_found() {
        let mut values = Array2::from_elem((3000, 500), 1.0_f32);
        assert_eq!(first_non_finite(values.view()), None);
        for at in [(2999, 499), (2000, 3), (1999, 499), (0, 1)] {
            values[at] = f32::NAN;
            assert_eq!(first_non_finite(values.view()), Some(at));
        }
    }

    #[test]
    fn nan_and_both_infinities_are_found_at_their_place() {
        let mut values = Array2::from_elem((5, 7), f32::MAX);
        values[[0, 0]] = f32::MIN;
        assert_eq!(first_non_finite(values.view()), None);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[[3, 4]] = bad;
            assert_eq!(first_non_finite(values.view()), Some((3, 4)));
            assert_eq!(first_non_finite(values.t()), Some((4, 3)));
            assert_eq!(first_non_finite(values.slice(s![2.., ..;2])), Some((1, 2)));
            assert_eq!(first_non_finite(values.mapv(bf16::from_f32).view()), {
                // f32::MAX rounds to infinity in 16 bits.
                Some((0, 0))
            });
            values.mapv_inplace(|value| if value.is_finite() { 1.0 } else { value });
            assert_eq!(
                first_non_finite(values.mapv(bf16::from_f32).view()),
                Some((3, 4))
            );
            assert_eq!(
                first_non_finite(values.mapv(f16::from_f32).view()),
                Some((3, 4))
            );
            values.mapv_inplace(|value| if value.is_finite() { f32::MAX } else { value });
        }
    }
}
