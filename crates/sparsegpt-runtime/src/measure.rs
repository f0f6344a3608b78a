//! What a layer takes, dense and sparse, beside what the machine could do at best.
//!
//! Runs of the dense layer, the sparse one and the floor's measurement alternate, so that what else the machine does meets
//! all of them; the medians count. Each run takes the next of several copies of its layer, which together are at least
//! four times the last-level cache, so that no run finds weights there that a model of many layers would not (of tiny layers, there are 16384
//! copies).

use std::fmt;
use std::time::{Duration, Instant};

use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::buffer::Aligned;
use crate::dense::DenseMatrix;
use crate::error::{Error, Result};
use crate::layer::LinearLayer;
use crate::level::Level;
use crate::linear::{QuantizedLinear, SparseLinear};
use crate::quantized::{Codes, QuantizedDense, QuantizedMatrix, Width};
use crate::value::Value;

/// Copies of a layer together, over the last-level cache.
const CACHES: usize = 4;
/// Last-level cache where the system does not tell.
const USUAL_CACHE: usize = 32 << 20;
/// Copies at most: of layers of some kilobytes, what holds the copies would be larger than their weights.
const MOST_COPIES: usize = 1 << 14;
/// Runs of each at least, whatever they take.
const LEAST_RUNS: usize = 5;

/// The floor is measured for one part of so many of the time.
const FLOORS_SHARE: u32 = 4;

/// Where the zeros are.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Zeros {
    /// Each weight is zero with this probability.
    Random(f64),
    /// `zeros` of every `group` columns of each row.
    NofM {
        /// Zeros in a group.
        zeros: usize,
        /// Columns in a group.
        group: usize,
    },
}

/// A layer to measure.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Case {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Where its zeros are.
    pub zeros: Zeros,
    /// Tokens multiplied at once.
    pub tokens: usize,
    /// How long to go on measuring.
    pub duration: Duration,
    most_copies: usize,
}

impl Case {
    /// A random layer and one token, measured for two seconds.
    ///
    /// # Errors
    /// [`Error::Setting`] for a layer without weights, a sparsity outside 0..=1, or a pattern that leaves nothing or is
    /// none.
    pub fn new(rows: usize, cols: usize, zeros: Zeros) -> Result<Self> {
        let setting = |name, expected, found: &dyn fmt::Debug| {
            Err(Error::Setting {
                name,
                expected,
                found: format!("{found:?}"),
            })
        };
        // 16 bytes a weight, dense and sparse, must be a size.
        let fits = rows
            .checked_mul(cols)
            .and_then(|weights| weights.checked_mul(16));
        if rows == 0 || cols == 0 || fits.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return setting(
                "layer",
                "rows and columns of a layer that fits in memory",
                &(rows, cols),
            );
        }
        match zeros {
            Zeros::Random(sparsity) if !(0.0..=1.0).contains(&sparsity) => {
                setting("sparsity", "a fraction of zeros from 0 to 1", &sparsity)
            }
            Zeros::NofM { zeros, group } if group == 0 || zeros > group => {
                setting("pattern", "zeros:columns, as in 2:4", &(zeros, group))
            }
            _ => Ok(Self {
                rows,
                cols,
                zeros,
                tokens: 1,
                duration: Duration::from_secs(2),
                most_copies: MOST_COPIES,
            }),
        }
    }

    /// With this many tokens.
    #[must_use]
    pub fn tokens(self, tokens: usize) -> Self {
        Self { tokens, ..self }
    }

    /// Measured for this long.
    #[must_use]
    pub fn during(self, duration: Duration) -> Self {
        Self { duration, ..self }
    }

    /// On at most so many copies of the layer, one being the least. Of a single copy all runs of the dense layer come before those of the
    /// packed one, so that it may stay in the cache from run to run, as a model's layers would not.
    #[must_use]
    pub fn copies(self, most: usize) -> Self {
        Self {
            most_copies: most.clamp(1, MOST_COPIES),
            ..self
        }
    }

    /// Asks for the memory at once, and gives it back: what the system would refuse later would end the process.
    fn check_memory(&self) -> Result<()> {
        // While it is packed, the weights in f32, dense and packed; then inputs and results of both, transposed and not.
        let weights = self.rows.saturating_mul(self.cols);
        let activations = self.rows.saturating_add(self.cols);
        let activations = activations.saturating_mul(self.tokens);
        let bytes = weights.saturating_add(activations).saturating_mul(16);
        let reserved = Vec::<u8>::new().try_reserve_exact(bytes);
        reserved.map_err(|_| Error::Setting {
            name: "layer",
            expected: "rows, columns and tokens that fit in memory; measure a smaller layer or fewer tokens",
            found: format!("{} x {} and {} tokens", self.rows, self.cols, self.tokens),
        })
    }

    fn weight<V: Value>(&self) -> Array2<V> {
        let mut random = Random(0x5EED);
        let mut weight = Array2::from_shape_simple_fn((self.rows, self.cols), || {
            // Never zero, or the density would not be the one asked for.
            V::from_f32(0.01 + random.fraction() as f32)
        });
        match self.zeros {
            Zeros::Random(sparsity) => weight.mapv_inplace(|value| {
                if random.fraction() < sparsity {
                    V::zeroed()
                } else {
                    value
                }
            }),
            Zeros::NofM { zeros, group } => {
                for mut row in weight.rows_mut() {
                    for mut columns in row.exact_chunks_mut(group) {
                        let mut left = zeros;
                        for (index, value) in columns.iter_mut().enumerate() {
                            // Each choice of places is as likely as any other.
                            let share = left as f64 / (group - index) as f64;
                            if random.fraction() < share {
                                *value = V::zeroed();
                                left -= 1;
                            }
                        }
                    }
                }
            }
        }
        weight
    }
}

/// What was measured. Seconds are medians.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Timing {
    /// The dense layer of this crate.
    pub dense_seconds: f64,
    /// The packed layer.
    pub sparse_seconds: f64,
    /// The dense layer's fastest run. On a shared machine medians tell of the neighbours, too, with whom cores and memory are shared; the
    /// fastest of many runs is nearest to what the kernel itself takes.
    pub dense_least_seconds: f64,
    /// The packed layer's fastest run.
    pub sparse_least_seconds: f64,
    /// The packed bytes over the bandwidth, or the nonzero multiply-adds over their rate, whichever is more.
    pub floor_seconds: f64,
    /// The same for the dense layer.
    pub dense_floor_seconds: f64,
    /// Bytes of the dense weights.
    pub dense_bytes: usize,
    /// Bytes of the packed weights.
    pub sparse_bytes: usize,
    /// Stored values over weights.
    pub density: f64,
    /// Bytes a second of reading memory with all threads.
    pub bandwidth: f64,
    /// Operations a second of multiply-adds on registers with all threads, two each.
    pub flops: f64,
    /// Runs of the packed layer.
    pub runs: usize,
    /// Threads.
    pub threads: usize,
}

/// Measures a random layer in the rayon pool of the caller.
///
/// # Errors
/// [`Error::Setting`] if the layer and its activations do not fit in memory.
pub fn layer<V: Value>(case: &Case) -> Result<Timing> {
    Ok(Prepared::<SparseLinear<V>>::random(case)?.measure(&Machine::new(), case.duration))
}

/// The same with codes of a grid that `group` columns of a row share, a multiple of 64.
///
/// # Errors
/// [`Error::Packed`] for another group, and as [`layer`].
pub fn quantized_layer(case: &Case, width: Width, group: usize) -> Result<Timing> {
    case.check_memory()?;
    let weight = case.weight::<f32>();
    let zero = (1 << (width.bits() - 1)) as u8;
    let mut random = Random(2);
    let codes = weight.mapv(|value| match value {
        0.0 => zero,
        // Any other: the zero is half of all.
        _ => {
            (usize::from(zero) + 1 + (random.fraction() * (usize::from(zero) - 1) as f64) as usize)
                as u8
        }
    });
    let grid = (case.rows, case.cols.div_ceil(group.max(1)));
    let (scales, zeros) = (Array2::from_elem(grid, 0.01), Array2::from_elem(grid, zero));
    let codes = Codes {
        width,
        codes: codes.view(),
        scales: scales.view(),
        zeros: zeros.view(),
        group,
    };
    let sparse = QuantizedLinear::sparse(QuantizedMatrix::from_codes(&codes)?, None)?;
    let dense = QuantizedLinear::dense(QuantizedDense::from_codes(&codes)?, None)?;
    Ok(Prepared::new(case, dense, sparse).measure(&Machine::new(), case.duration))
}

/// What the floor is measured with: memory of four times the last-level cache.
pub struct Machine(Aligned<u64>);

impl Machine {
    /// Takes the memory.
    #[must_use]
    pub fn new() -> Self {
        // In the same pages as the weights; written, or all of it would be one page of zeros.
        let mut memory = Aligned::zeroed(CACHES * last_level_cache() / size_of::<u64>());
        memory.fill(1_u64);
        Self(memory)
    }

    /// Seconds to read a byte.
    fn byte_seconds(&self) -> f64 {
        timed(|| read(&self.0)).0 / size_of_val(&*self.0) as f64
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// A layer to measure more than once: its copies, dense and packed, and activations.
///
/// ```
/// use std::time::Duration;
/// use sparsegpt_runtime::SparseLinear;
/// use sparsegpt_runtime::measure::{Case, Machine, Prepared, Zeros};
///
/// let case = Case::new(64, 256, Zeros::Random(0.5))?.copies(1);
/// let prepared = Prepared::<SparseLinear<f32>>::random(&case)?;
/// let timing = prepared.measure(&Machine::new(), Duration::ZERO);
/// assert!(timing.sparse_seconds > 0.0);
/// # Ok::<(), sparsegpt_runtime::Error>(())
/// ```
pub struct Prepared<L> {
    dense: Vec<L>,
    sparse: Vec<L>,
    /// Whether runs of each follow each other.
    apart: bool,
    x: Array2<f32>,
}

impl<V: Value> Prepared<SparseLinear<V>> {
    /// A random layer.
    ///
    /// # Errors
    /// As [`layer`].
    pub fn random(case: &Case) -> Result<Self> {
        case.check_memory()?;
        let weight = case.weight::<V>();
        let sparse = SparseLinear::smallest(weight.view(), None)?;
        let dense = SparseLinear::dense(DenseMatrix::from_dense(weight.view()), None)?;
        drop(weight);
        Ok(Self::new(case, dense, sparse))
    }
}

impl<L: LinearLayer + Clone> Prepared<L> {
    fn new(case: &Case, dense: L, sparse: L) -> Self {
        let mut random = Random(1);
        let copies = |layer: L| {
            let copies = (CACHES * last_level_cache()).div_ceil(layer.bytes().max(1));
            vec![layer; copies.min(case.most_copies)]
        };
        let prepared = Self {
            dense: copies(dense),
            sparse: copies(sparse),
            apart: case.most_copies == 1,
            x: Array2::from_shape_simple_fn((case.tokens, case.cols), || random.fraction() as f32),
        };
        // Copies are read once before they are timed: in a virtual machine the first reader of memory that has only been written may
        // have to wait for each page.
        let token = prepared.x.slice(s![..case.tokens.min(1), ..]);
        for layer in prepared.dense.iter().chain(&prepared.sparse) {
            let _ = std::hint::black_box(layer.forward(token));
        }
        prepared
    }

    /// Measures for so long, in the rayon pool of the caller, instead of [`Case::duration`].
    #[must_use]
    pub fn measure(&self, machine: &Machine, duration: Duration) -> Timing {
        use Run::{Dense, Floor, Sparse};
        match self.apart {
            false => self.timing(machine, &[&[Dense, Sparse, Floor]], duration),
            true => self.timing(machine, &[&[Dense], &[Sparse], &[Floor]], duration / 3),
        }
    }

    /// Takes turns between some runs for so long, and then between others.
    fn timing(&self, machine: &Machine, turns: &[&[Run]], duration: Duration) -> Timing {
        let mut seconds = [const { Vec::new() }; 4];
        // As in a model, where products follow each other.
        sparsegpt_threads::awake(|| {
            for runs in turns {
                self.run(machine, runs, duration, &mut seconds);
            }
        });
        let runs = seconds[1].len();
        let [dense_least_seconds, sparse_least_seconds] =
            [0, 1].map(|which: usize| seconds[which].iter().copied().fold(f64::INFINITY, f64::min));
        let [
            dense_seconds,
            sparse_seconds,
            byte_seconds,
            operation_seconds,
        ] = seconds.map(median);
        let (dense, sparse) = (&self.dense[0], &self.sparse[0]);
        let weights = (dense.rows() * dense.cols()) as f64;
        let floor = |layer: &L, density: f64| {
            let operations = 2.0 * density * weights * self.x.nrows() as f64;
            (layer.bytes() as f64 * byte_seconds).max(operations * operation_seconds)
        };
        let density = sparse.storage().density();
        Timing {
            dense_seconds,
            sparse_seconds,
            dense_least_seconds,
            sparse_least_seconds,
            floor_seconds: floor(sparse, density),
            dense_floor_seconds: floor(dense, 1.0),
            dense_bytes: dense.bytes(),
            sparse_bytes: sparse.bytes(),
            density,
            bandwidth: 1.0 / byte_seconds,
            flops: 1.0 / operation_seconds,
            runs,
            threads: rayon::current_num_threads(),
        }
    }

    fn run(
        &self,
        machine: &Machine,
        runs: &[Run],
        duration: Duration,
        seconds: &mut [Vec<f64>; 4],
    ) {
        let start = Instant::now();
        let (mut round, mut on_floor) = (0, Duration::ZERO);
        while round < LEAST_RUNS || start.elapsed() < duration {
            let next = |layers: &[L]| {
                let layer = &layers[round % layers.len()];
                timed(|| layer.forward(self.x.view())).0
            };
            for run in runs {
                match run {
                    Run::Dense => seconds[0].push(next(&self.dense)),
                    Run::Sparse => seconds[1].push(next(&self.sparse)),
                    // It takes as long as thousands of runs of a small layer, and changes slowly.
                    Run::Floor if on_floor * FLOORS_SHARE > start.elapsed() => {}
                    Run::Floor => {
                        let began = Instant::now();
                        seconds[2].push(machine.byte_seconds());
                        let (took, operations) = timed(multiply_add);
                        seconds[3].push(took / operations);
                        on_floor += began.elapsed();
                    }
                }
            }
            round += 1;
        }
    }
}

/// What is run.
#[derive(Clone, Copy)]
enum Run {
    Dense,
    Sparse,
    /// Reading, and multiply-adds.
    Floor,
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = std::hint::black_box(work());
    (start.elapsed().as_secs_f64(), result)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Reads all of it with all threads.
fn read(memory: &[u64]) -> u64 {
    const PIECE: usize = 1 << 17;
    let level = Level::detect();
    let pieces = memory.par_chunks(PIECE);
    pieces
        .map(|piece| read_piece(level, piece))
        .reduce(|| 0, |a, b| a ^ b)
}

/// Reads with the level's vectors: narrow loads fill the processor's window before enough of memory is on its way (of 16 bytes 18
/// GB/s, of 64 bytes 24, in the same minute on a Sapphire Rapids).
fn read_piece(level: Level, piece: &[u64]) -> u64 {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the level.
        Level::Avx512 | Level::Avx512Vbmi2 => unsafe { crate::kernel::xor_by_lines(piece) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { crate::kernel::xor_by_halves(piece) },
        _ => piece.iter().fold(0, |all, word| all ^ word),
    }
}

/// Multiply-adds on all threads; how many operations they were.
fn multiply_add() -> f64 {
    /// Some milliseconds, beside which waking the threads is nothing.
    const STEPS: usize = 2_000_000;
    let operations = rayon::broadcast(|_| chains(STEPS));
    operations.into_iter().sum()
}

/// Twelve chains of vectors, so many steps of each; how many operations they were, two a lane.
fn chains(steps: usize) -> f64 {
    let factor = std::hint::black_box(0.5);
    let (lanes, sum) = match Level::detect() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the level.
        Level::Avx512 | Level::Avx512Vbmi2 => unsafe {
            crate::kernel::multiply_adds_of_sixteen(steps, factor)
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { crate::kernel::multiply_adds(steps, factor) },
        _ => {
            let mut sums = [[0.0_f32; 8]; 12];
            for _ in 0..steps {
                sums.iter_mut()
                    .flatten()
                    .for_each(|sum| *sum += factor * factor);
            }
            (8, sums.iter().flatten().sum::<f32>())
        }
    };
    std::hint::black_box(sum);
    2.0 * (12 * lanes * steps) as f64
}

/// Bytes of the last-level cache.
fn last_level_cache() -> usize {
    let told = (0..8).rev().find_map(|index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        let kibibytes: usize = text.trim().strip_suffix('K')?.parse().ok()?;
        kibibytes.checked_mul(1024)
    });
    told.unwrap_or(USUAL_CACHE)
}

/// SplitMix64, which is enough for places of zeros.
struct Random(u64);

impl Random {
    /// 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn layers_have_the_zeros_asked_for() {
        let case = Case::new(64, 256, Zeros::NofM { zeros: 3, group: 8 }).unwrap();
        let weight = case.weight::<f32>();
        for row in weight.rows() {
            for group in row.exact_chunks(8) {
                assert_eq!(group.iter().filter(|value| **value == 0.0).count(), 3);
            }
        }
        let case = Case::new(64, 256, Zeros::Random(0.7)).unwrap();
        let weight = case.weight::<f32>();
        let zeros = weight.iter().filter(|value| **value == 0.0).count() as f64;
        assert!((zeros / weight.len() as f64 - 0.7).abs() < 0.02, "{zeros}");
    }

    #[test]
    fn cases_without_sense_are_refused() {
        for (rows, cols, zeros, named) in [
            (0, 4, Zeros::Random(0.5), "layer"),
            (usize::MAX, 4, Zeros::Random(0.5), "layer"),
            (4, 4, Zeros::Random(1.5), "sparsity"),
            (4, 4, Zeros::Random(f64::NAN), "sparsity"),
            (4, 4, Zeros::NofM { zeros: 5, group: 4 }, "pattern"),
        ] {
            let error = Case::new(rows, cols, zeros).unwrap_err();
            assert!(error.to_string().starts_with(named), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_in_memory_is_refused() {
        let side = 1 << 25;
        let case = Case::new(side, side, Zeros::Random(0.5)).unwrap();
        for case in [
            case,
            Case::new(8, 8, Zeros::Random(0.5))
                .unwrap()
                .tokens(usize::MAX / 64),
        ] {
            let error = layer::<f32>(&case).unwrap_err().to_string();
            assert!(error.contains("fit in memory"), "{error}");
            let error = quantized_layer(&case, Width::Four, 64)
                .unwrap_err()
                .to_string();
            assert!(error.contains("fit in memory"), "{error}");
        }
    }
}
