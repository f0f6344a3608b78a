//! LAPACK as the oracle of the CPU backend's factorization, which has no code in common with it.

#![allow(clippy::unwrap_used)]

use ndarray_linalg::{EigValsh, UPLO};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::{Backend, Cpu, Gemm, Precision};
use sparsegpt::error::{BackendError, BackendErrorKind};
use sparsegpt::ndarray::{Array2, ArrayView2, s};
use sparsegpt_lapack::Lapack;

/// Unit roundoff of f32.
const U_F32: f64 = 1.0 / (1_u32 << 24) as f64;
/// Unit roundoff of f64.
const U_F64: f64 = 1.0 / (1_u64 << 53) as f64;

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform on [-1, 1).
    fn uniform(&mut self) -> f64 {
        f64::from(self.0.next_u32() >> 8) / f64::from(1_u32 << 23) - 1.0
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Array2<f64> {
        Array2::from_shape_simple_fn((rows, cols), || self.uniform())
    }
}

/// A symmetric matrix as backends get it: the strict lower triangle, and the diagonal.
struct Hessian {
    lower: Array2<f32>,
    diagonal: Vec<f32>,
}

impl Hessian {
    fn new(h: &Array2<f64>) -> Self {
        Self {
            lower: Array2::from_shape_fn(
                h.dim(),
                |(i, j)| {
                    if i > j { h[[i, j]] as f32 } else { f32::NAN }
                },
            ),
            diagonal: h.diag().iter().map(|&entry| entry as f32).collect(),
        }
    }

    fn cols(&self) -> usize {
        self.diagonal.len()
    }

    /// Largest eigenvalue over smallest, of the matrix as it was rounded to f32.
    fn condition(&self) -> f64 {
        let h = Array2::from_shape_fn(self.lower.dim(), |(i, j)| {
            f64::from(if i == j {
                self.diagonal[i]
            } else {
                self.lower[[i.max(j), i.min(j)]]
            })
        });
        let eigenvalues = h.eigvalsh(UPLO::Lower).unwrap();
        eigenvalues[self.cols() - 1] / eigenvalues[0]
    }

    fn factor<B: Backend>(
        &self,
        backend: &B,
        blocks: &[usize],
        precision: Precision,
    ) -> Result<Factor, BackendErrorKind> {
        let mut device = backend.upload(self.lower.view()).unwrap();
        let ended = backend.inverse_factor(&mut device, &self.diagonal, blocks, precision);
        let found = backend.download(&device).unwrap();
        for ((i, j), value) in found.indexed_iter() {
            assert!(
                i <= j || value.to_bits() == self.lower[[i, j]].to_bits(),
                "the strict lower triangle must stay as it was: ({i}, {j})"
            );
        }
        ended.map_err(|error| error.kind())?;
        Ok(Factor::new(found.view(), blocks))
    }
}

/// What a backend has put into the upper triangle.
struct Factor {
    /// U above the diagonal blocks, 0 elsewhere.
    above: Array2<f64>,
    /// R_BB in the diagonal blocks, 0 elsewhere.
    inside: Array2<f64>,
}

impl Factor {
    fn new(found: ArrayView2<'_, f32>, blocks: &[usize]) -> Self {
        let part = |in_block: bool| {
            Array2::from_shape_fn(found.dim(), |(i, j)| {
                let first = blocks.iter().copied().filter(|&end| end <= j).max();
                let is_in_block = i >= first.unwrap_or(0);
                if i <= j && is_in_block == in_block {
                    f64::from(found[[i, j]])
                } else {
                    0.0
                }
            })
        };
        Self {
            above: part(false),
            inside: part(true),
        }
    }
}

fn norm(matrix: &Array2<f64>) -> f64 {
    matrix.iter().map(|entry| entry * entry).sum::<f64>().sqrt()
}

/// Ends of blocks of one width, the last one narrower.
fn ends(cols: usize, width: usize) -> Vec<usize> {
    let full = (1..cols.div_ceil(width)).map(|block| block * width);
    full.chain([cols]).collect()
}

/// Inputs of a layer, neighbours correlated: H/tokens + 1 % damping.
fn damped(random: &mut Random, cols: usize) -> Hessian {
    let mut x = random.matrix(2 * cols + 3, cols);
    for col in 1..cols {
        let mixed = &x.column(col - 1) * 0.7 + &x.column(col) * 0.7;
        x.column_mut(col).assign(&mixed);
    }
    let mut h = x.t().dot(&x) / x.nrows() as f64;
    let damping = 0.01 * h.diag().mean().unwrap();
    h.diag_mut().mapv_inplace(|entry| entry + damping);
    Hessian::new(&h)
}

/// Inputs in nearly equal pairs, no damping.
fn pairs(random: &mut Random, cols: usize, gap: f64) -> Hessian {
    let mut x = random.matrix(3 * cols, cols);
    for col in (1..cols).step_by(2) {
        let near = &x.column(col - 1) + &(&x.column(col) * gap);
        x.column_mut(col).assign(&near);
    }
    Hessian::new(&(x.t().dot(&x) / x.nrows() as f64))
}

/// Compares the CPU backend in one precision with LAPACK in f64.
///
/// To first order U moves by U·up(R ΔH Rᵀ) and R by −up(R ΔH Rᵀ)·R when H moves by ΔH, so both by κ(H)·‖ΔH‖/‖H‖ of
/// themselves at most. A Cholesky factorization is the exact one of an H that is off by √cols units of roundoff
/// (Higham & Mary 2019; by cols at worst), and the inverses in the blocks add less. Last, the results are rounded to f32.
fn compare(cpu: &Cpu, h: &Hessian, precision: Precision, what: &str) {
    let cols = h.cols();
    let roundoff = match precision {
        Precision::F32 => U_F32,
        _ => U_F64,
    };
    let condition = h.condition();
    let off = (cols as f64).sqrt() * roundoff * condition;
    assert!(
        off < 0.05,
        "{what}: a comparison at condition {condition:e} shows nothing"
    );
    let whole = h.factor(&Lapack, &[cols], Precision::F64).unwrap();
    let single = h.factor(&Lapack, &ends(cols, 1), Precision::F64).unwrap();
    let (of_r, of_u) = (norm(&whole.inside), {
        let diagonal = single.inside.diag().mapv(|r| 1.0 / r);
        norm(&(single.above + Array2::from_diag(&diagonal)))
    });
    for width in [cols, 128, 48, 1] {
        let blocks = ends(cols, width);
        let expected = h.factor(&Lapack, &blocks, Precision::F64).unwrap();
        let found = h.factor(cpu, &blocks, precision).unwrap();
        for (part, found, expected, size) in [
            ("U", found.above, expected.above, of_u),
            ("R", found.inside, expected.inside, of_r),
        ] {
            // Both sides are rounded to f32.
            let allowed = off * size + 2.0 * U_F32 * norm(&expected);
            let difference = norm(&(found - expected));
            println!(
                "{what}, {cols} columns in blocks of {width}, {precision}, condition {condition:.1e}: \
                 {part} differs by {difference:.1e}, allowed is {allowed:.1e}"
            );
            assert!(difference <= allowed, "{part} is off; see above");
        }
    }
}

#[test]
fn factors_of_damped_hessians_agree() {
    let mut random = Random::new(1);
    for threads in [1, 2] {
        let cpu = Cpu::new(threads).unwrap();
        for cols in [1, 2, 17, 64, 130, 300, 700] {
            let h = damped(&mut random, cols);
            compare(&cpu, &h, Precision::F32, "damped");
            compare(&cpu, &h, Precision::F64, "damped");
        }
    }
}

#[test]
fn factors_of_ill_conditioned_hessians_agree() {
    let mut random = Random::new(2);
    let cpu = Cpu::new(2).unwrap();
    for cols in [2, 50, 130, 300] {
        compare(
            &cpu,
            &pairs(&mut random, cols, 0.1),
            Precision::F32,
            "pairs",
        );
        // Beyond what f32 can do: the other of a pair leaves a millionth of the pivot.
        let h = pairs(&mut random, cols, 0.001);
        assert!(h.condition() > 1e6, "{:e}", h.condition());
        compare(&cpu, &h, Precision::F64, "near pairs");
    }
}

/// H = UUᵀ for a U of small whole numbers times powers of two, with pivots that are powers of four: no step of any
/// factorization rounds, however ill-conditioned H is, so both must give U itself and the exact inverses of its blocks.
#[test]
fn factors_of_whole_numbers_are_exact() {
    let mut random = Random::new(3);
    let cpu = Cpu::new(2).unwrap();
    for cols in [1, 2, 9, 33, 40] {
        let scales: Vec<f64> = (0..cols)
            .map(|_| [0.5, 1.0, 2.0, 4.0][(random.0.next_u32() % 4) as usize])
            .collect();
        let u = Array2::from_shape_fn((cols, cols), |(i, j)| match i {
            _ if i == j => scales[i],
            _ if i < j => scales[i] * f64::from(random.0.next_u32() % 3) - scales[i],
            _ => 0.0,
        });
        let h = Hessian::new(&u.dot(&u.t()));
        for width in [cols, 8, 1] {
            let blocks = ends(cols, width);
            for precision in [Precision::F32, Precision::F64] {
                for found in [
                    h.factor(&Lapack, &blocks, precision).unwrap(),
                    h.factor(&cpu, &blocks, precision).unwrap(),
                ] {
                    let mut first = 0;
                    for &end in &blocks {
                        let (above, block) = (s![..first, first..end], s![first..end, first..end]);
                        assert_eq!(found.above.slice(above), u.slice(above));
                        let identity = found.inside.slice(block).dot(&u.slice(block));
                        assert_eq!(identity, Array2::<f64>::eye(end - first));
                        first = end;
                    }
                }
            }
        }
    }
}

#[test]
fn failing_pivots_are_named_alike() {
    let mut random = Random::new(4);
    let cpu = Cpu::new(2).unwrap();
    for cols in [5, 130, 700] {
        let h = damped(&mut random, cols);
        let u = h
            .factor(&Lapack, &ends(cols, 1), Precision::F64)
            .unwrap()
            .above;
        for column in [0, cols / 3, cols / 2, cols - 2, cols - 1] {
            // What the columns behind it explain is more than there is.
            let explained: f64 = u.row(column).iter().map(|entry| entry * entry).sum();
            for entry in [0.9 * explained as f32 - 0.01, f32::NAN, f32::INFINITY] {
                let mut diagonal = h.diagonal.clone();
                diagonal[column] = entry;
                let broken = Hessian {
                    lower: h.lower.clone(),
                    diagonal,
                };
                let expected = Some(BackendErrorKind::NotPositiveDefinite { column });
                for precision in [Precision::F32, Precision::F64] {
                    for blocks in [ends(cols, cols), ends(cols, 128)] {
                        let what = format!("{entry} in column {column} of {cols}, {precision}");
                        let lapack = broken.factor(&Lapack, &blocks, precision).err();
                        assert_eq!(lapack, expected, "LAPACK, {what}");
                        let cpu = broken.factor(&cpu, &blocks, precision).err();
                        assert_eq!(cpu, expected, "CPU, {what}");
                    }
                }
            }
        }
    }
}

/// At sizes where OpenBLAS uses its threads, and while others use them too.
#[test]
fn large_results_have_the_same_bits_again() {
    let mut random = Random::new(5);
    let cols = 700;
    let x = random.matrix(900, cols).mapv(|value| value as f32);
    let h = damped(&mut random, cols);
    let results = || -> Vec<Vec<u32>> {
        let mut gram = Lapack.upload(h.lower.view()).unwrap();
        Lapack
            .gram_update(&mut gram, x.view().into(), 0.5, 0.0)
            .unwrap();
        let mut factors = [Precision::F32, Precision::F64].map(|precision| {
            let mut device = Lapack.upload(h.lower.view()).unwrap();
            Lapack
                .inverse_factor(&mut device, &h.diagonal, &ends(cols, 128), precision)
                .unwrap();
            device
        });
        let x = Lapack.upload(x.view()).unwrap();
        let mut product = Lapack.zeros(900, cols).unwrap();
        Lapack
            .gemm(Gemm::new(
                (&mut product, 0..cols),
                1.0,
                (&x, 0..cols),
                (&factors[0], 0..cols, 0..cols),
            ))
            .unwrap();
        let [f32, f64] = &mut factors;
        [&gram, f32, f64, &product]
            .map(|matrix| {
                let host = Lapack.download(matrix).unwrap();
                host.iter().map(|value| value.to_bits()).collect()
            })
            .to_vec()
    };
    let first = results();
    for _ in 0..3 {
        assert!(results() == first, "another result from the same thread");
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..4).map(|_| scope.spawn(results)).collect();
        for other in others {
            assert!(
                other.join().unwrap() == first,
                "another result beside others"
            );
        }
    });
}
