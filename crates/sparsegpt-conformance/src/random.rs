//! Seeded test data. Only sums and products are used, so every platform gets the same numbers.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::ndarray::Array2;

/// A stream of numbers.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform on [-1, 1), a multiple of 2⁻²³.
    pub(crate) fn uniform(&mut self) -> f32 {
        let bits = self.0.next_u32() >> 8;
        bits as f32 / (1_u32 << 23) as f32 - 1.0
    }

    /// Bell-shaped with variance 1: the sum of three uniform numbers.
    pub(crate) fn bell(&mut self) -> f32 {
        self.uniform() + self.uniform() + self.uniform()
    }

    /// 0 to `limit` − 1.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit as u64) as usize
    }

    /// Small whole numbers, −`largest` to `largest`.
    pub(crate) fn integers(&mut self, rows: usize, cols: usize, largest: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, cols), || {
            self.below(2 * largest + 1) as f32 - largest as f32
        })
    }

    pub(crate) fn matrix(&mut self, rows: usize, cols: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, cols), || self.bell())
    }

    /// `true` with the given chance in a hundred.
    pub(crate) fn mask(&mut self, rows: usize, cols: usize, percent: usize) -> Array2<bool> {
        Array2::from_shape_simple_fn((rows, cols), || self.below(100) < percent)
    }

    /// Activations as layers see them: neighbouring features correlated, some much larger than others.
    pub(crate) fn activations(&mut self, tokens: usize, cols: usize) -> Array2<f32> {
        let sizes: Vec<f32> = (0..cols)
            .map(|_| [0.3, 0.7, 1.0, 1.0, 1.6, 4.0][self.below(6)] * (1.0 + 0.3 * self.uniform()))
            .collect();
        let mut x = Array2::zeros((tokens, cols));
        for token in 0..tokens {
            let mut previous = 0.0;
            for col in 0..cols {
                previous = 0.7 * previous + 0.7 * self.bell();
                x[[token, col]] = sizes[col] * previous;
            }
        }
        x
    }

    /// Matrix entries for the places of which the contract says that nobody reads them.
    pub(crate) fn garbage(&mut self) -> f32 {
        [f32::NAN, f32::INFINITY, -3.0e30, 7.0][self.below(4)]
    }
}
