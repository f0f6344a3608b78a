//! The fast CPU backend: faer for products and factorizations, rayon for rows, SIMD chosen at run time.
//!
//! Every operation is held to the plain one in [`host`](super::host) by the conformance suite.
//!
//! Parallelism is explicit: a backend value owns one thread pool, every operation runs inside it, and
//! faer is told its thread count. Nothing runs on rayon's global pool, and nothing nests.

mod factor;
mod gram;
mod iterate;
mod linear;
mod lowest;
mod memory;
mod packed;
mod products;
mod select;
mod sweep;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use faer::Par;
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

pub use memory::CpuMatrix;

use memory::Buffers;
use packed::Kernel;
use products::Engine;

use super::{
    Adam, Backend, BackendInfo, FitGrid, Gemm, Operation, Precision, Products, Project, Refit,
    Select, UpdateRows,
};
use crate::error::HostError;
use crate::hessian::Activations;

/// The fast CPU backend.
///
/// ```
/// use sparsegpt::backend::{Backend, Cpu};
/// let cpu = Cpu::new(2)?;
/// assert_eq!(cpu.threads(), 2);
/// # Ok::<(), sparsegpt::error::HostError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    arch: pulp::Arch,
    buffers: Buffers,
    /// What multiplies bf16 values without widening them, if anything does.
    bf16: Option<Kernel>,
    /// What [`Backend::gemm`] multiplies.
    products: Products,
}

/// Rows and columns of the product that [`Cpu::reserve`] runs at most: enough for panels of most of their full size.
const PANEL_SIDE: usize = 1024;

/// A mask of the [`Cpu`] backend.
#[derive(Debug)]
pub struct CpuMask(Array2<bool>);

impl Cpu {
    /// More threads than this are a slip of the hand: they would take minutes to start.
    pub const MOST_THREADS: usize = 1024;

    /// A backend with its own pool of `threads` threads, at most [`MOST_THREADS`](Self::MOST_THREADS); 0 means one a core.
    ///
    /// # Errors
    /// [`HostError::Threads`] if the threads cannot be started, or are more than that.
    pub fn new(threads: usize) -> Result<Self, HostError> {
        if threads > Self::MOST_THREADS {
            return Err(HostError::Threads {
                threads,
                reason: format!("at most {} are supported", Self::MOST_THREADS),
            });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("sparsegpt-{index}"))
            .build()
            .map_err(|error| HostError::Threads {
                threads,
                reason: error.to_string(),
            })?;
        let arch = pulp::Arch::new();
        Ok(Self {
            pool: Arc::new(pool),
            arch,
            buffers: Buffers::default(),
            bf16: Kernel::for_bf16(arch),
            products: Products::F32,
        })
    }

    /// The same with a lower instruction set in the kernels of this crate, for tests: 0 is code without SIMD, and
    /// each further number the next set that this processor has. `None` behind the last.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[doc(hidden)]
    pub fn at_simd_level(threads: usize, level: usize) -> Result<Option<Self>, HostError> {
        let mut levels = vec![pulp::Arch::Scalar];
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            levels.extend(pulp::x86::V3::try_new().map(pulp::Arch::V3));
            levels.extend(pulp::x86::V4::try_new().map(pulp::Arch::V4));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(pulp::aarch64::Neon::try_new().map(pulp::Arch::Neon));
        let with = |arch: &pulp::Arch| {
            Ok(Self {
                arch: *arch,
                bf16: Kernel::for_bf16(*arch),
                ..Self::new(threads)?
            })
        };
        levels.get(level).map(with).transpose()
    }

    /// Rounds the operands of the solver's large products, the trailing updates, to bf16 and adds up in f32, on the
    /// processor's dot products. Twice the arithmetic an instruction for a little of the result's quality, if the processor starts as many
    /// of them as of f32's: AMD's do by published timings, on Intel's it takes twice as long (`cargo bench -p sparsegpt --bench hessian` tells);
    /// [`BackendInfo::products`] and the reports say so.
    ///
    /// ```
    /// use sparsegpt::backend::{Backend, Cpu, Products};
    /// use sparsegpt::error::{BackendError, BackendErrorKind};
    /// match Cpu::new(1)?.with_bf16_products() {
    ///     Ok(cpu) => assert_eq!(cpu.info().products, Products::Bf16),
    ///     // Not on this processor.
    ///     Err(error) => assert_eq!(error.kind(), BackendErrorKind::Unsupported),
    /// }
    /// # Ok::<(), sparsegpt::error::HostError>(())
    /// ```
    ///
    /// # Errors
    /// [`HostError::Unsupported`] without AVX-512 BF16.
    pub fn with_bf16_products(self) -> Result<Self, HostError> {
        if self.bf16.is_none() {
            return Err(HostError::Unsupported {
                what: "bf16 products",
                missing: Kernel::missing(),
            });
        }
        Ok(Self {
            products: Products::Bf16,
            ..self
        })
    }

    /// The same on a processor without dot products of bf16: f32 arithmetic takes their place, with the same results
    /// and without their speed, to test them and to measure what they do to quality.
    #[doc(hidden)]
    #[must_use]
    pub fn emulating_bf16(self) -> Self {
        Self {
            bf16: Some(Kernel::EmulatedBf16(self.arch)),
            ..self
        }
    }

    /// Threads in the pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Takes the workspace for layers of this size from the system, and touches it: what otherwise the first layer does, which
    /// then takes half as long again as the next. (A layer whose error is measured takes one more matrix of its weights' size.)
    ///
    /// ```
    /// use sparsegpt::backend::Cpu;
    /// let cpu = Cpu::new(2)?;
    /// cpu.reserve(768, 3072)?;
    /// assert!(cpu.workspace_bytes() > 4 * 768 * 3072);
    /// # Ok::<(), sparsegpt::error::HostError>(())
    /// ```
    ///
    /// # Errors
    /// [`HostError::OutOfMemory`].
    pub fn reserve(&self, rows: usize, cols: usize) -> Result<(), HostError> {
        self.run(|engine| {
            // Weights, the look-back form's other matrix of their size, and the factor.
            let mut weights = self.buffers.zeros(rows, cols)?;
            let other = self.buffers.zeros(rows, cols)?;
            let factor = self.buffers.zeros(cols, cols)?;
            // The threads' own memory, which holds panels of a product's operands.
            let (rows, cols) = (rows.min(PANEL_SIDE), cols.min(PANEL_SIDE));
            engine.add_product(
                weights.faer_mut().submatrix_mut(0, 0, rows, cols),
                1.0,
                other.faer().submatrix(0, 0, rows, cols),
                factor.faer().submatrix(0, 0, cols, cols),
            );
            Ok(())
        })
    }

    /// Bytes of the buffers that are kept for the next layers: the workspace of the solves behind, and enough for
    /// more of the same size without new memory. It belongs to this value and its clones and forks.
    #[must_use]
    pub fn workspace_bytes(&self) -> usize {
        self.buffers.bytes()
    }

    /// Gives the kept buffers back to the system, as after the last layer of a model.
    pub fn release_workspace(&self) {
        self.buffers.clear();
    }

    /// Runs a step inside the pool, telling it what multiplies large matrices on how many threads.
    fn run<T: Send>(&self, step: impl FnOnce(Engine) -> T + Send) -> T {
        let par = match NonZeroUsize::new(self.threads()) {
            Some(threads) if threads.get() > 1 => Par::Rayon(threads),
            _ => Par::Seq,
        };
        let packed = Kernel::for_f32(self.arch);
        self.pool.install(|| step(Engine { par, packed }))
    }
}

impl Backend for Cpu {
    type Matrix = CpuMatrix;
    type Mask = CpuMask;
    type Error = HostError;

    fn info(&self) -> BackendInfo {
        // pulp prints the level with all its features behind it: `V3(V3 { … })`.
        let level = format!("{:?}", self.arch);
        let level = level.split('(').next().unwrap_or_default();
        let emulated = self.bf16.is_some_and(Kernel::is_emulated);
        let products = match self.products {
            Products::F32 => "",
            Products::Bf16 if emulated => ", emulated bf16 products",
            Products::Bf16 => ", bf16 products",
        };
        let device = format!(
            "{} {level}, {} threads{products}",
            std::env::consts::ARCH,
            self.threads()
        );
        BackendInfo::new("cpu", device, &Operation::ALL).with_products(self.products)
    }

    fn fork(&self) -> Result<Self, HostError> {
        Ok(self.clone())
    }

    fn synchronize(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(|| sparsegpt_threads::awake(work))
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<CpuMatrix, HostError> {
        self.run(|_| self.buffers.zeros(rows, cols))
    }

    fn shape(&self, matrix: &CpuMatrix) -> (usize, usize) {
        matrix.dim()
    }

    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<CpuMatrix, HostError> {
        self.run(|_| self.buffers.copy(host))
    }

    fn download(&self, matrix: &CpuMatrix) -> Result<Array2<f32>, HostError> {
        Ok(matrix.view().to_owned())
    }

    fn upload_owned(&self, host: Array2<f32>) -> Result<CpuMatrix, HostError> {
        if host.is_standard_layout() {
            Ok(CpuMatrix::adopt(host))
        } else {
            self.upload(host.view())
        }
    }

    fn download_owned(&self, matrix: CpuMatrix) -> Result<Array2<f32>, HostError> {
        self.run(|_| matrix.into_array())
    }

    fn copy(&self, matrix: &CpuMatrix) -> Result<CpuMatrix, HostError> {
        self.run(|_| self.buffers.copy(matrix.view()))
    }

    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<CpuMask, HostError> {
        Ok(CpuMask(host.as_standard_layout().into_owned()))
    }

    fn download_mask(&self, mask: &CpuMask) -> Result<Array2<bool>, HostError> {
        Ok(mask.0.clone())
    }

    fn gram_update(
        &self,
        h: &mut CpuMatrix,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), HostError> {
        self.run(|_| {
            let kernel = Kernel::F32(self.arch);
            // What was asked for by name serves here, too.
            let asked_for = self.products == Products::Bf16;
            let bf16 = self.bf16.filter(|bf16| asked_for || bf16.serves_hessians());
            gram::add_gram(kernel, bf16, h, x, (alpha, beta));
        });
        Ok(())
    }

    fn inverse_factor(
        &self,
        h: &mut CpuMatrix,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), HostError> {
        self.run(|engine| factor::inverse_factor(h.faer_mut(), diagonal, blocks, precision, engine))
    }

    fn diagonal(&self, matrix: &CpuMatrix) -> Result<Vec<f32>, HostError> {
        Ok(matrix.view().diag().to_vec())
    }

    fn set_diagonal(&self, matrix: &mut CpuMatrix, diagonal: &[f32]) -> Result<(), HostError> {
        matrix
            .view_mut()
            .diag_mut()
            .iter_mut()
            .zip(diagonal)
            .for_each(|(to, from)| *to = *from);
        Ok(())
    }

    fn combine(
        &self,
        target: &mut CpuMatrix,
        alpha: f32,
        other: &CpuMatrix,
        beta: f32,
    ) -> Result<(), HostError> {
        super::host::combine(target.view_mut(), alpha, other.view(), beta);
        Ok(())
    }

    fn permute_hessian(&self, h: &CpuMatrix, order: &[usize]) -> Result<CpuMatrix, HostError> {
        let permuted = super::host::permute_hessian(h.view(), order);
        self.upload(permuted.view())
    }

    fn row_energies(
        &self,
        w: &CpuMatrix,
        h: &CpuMatrix,
        diagonal: &[f32],
    ) -> Result<Vec<f64>, HostError> {
        Ok(self.run(|_| linear::row_energies(w, h, diagonal)))
    }

    fn select(&self, args: Select<'_, Self>) -> Result<CpuMask, HostError> {
        let Select {
            weights,
            scales,
            columns,
            rule,
            forced,
            protected,
        } = args;
        let weights = weights.view().slice_move(s![.., columns.clone()]);
        let scales = scales.view().slice_move(s![0, columns]);
        let (forced, protected) = (
            forced.map(|mask| mask.0.view()),
            protected.map(|mask| mask.0.view()),
        );
        Ok(CpuMask(self.run(|_| {
            select::select(self.arch, weights, scales, rule, forced, protected)
        })))
    }

    fn fit_grid(&self, args: FitGrid<'_, Self>) -> Result<(), HostError> {
        let FitGrid {
            weights,
            columns,
            grid,
            per_tensor,
            scale,
            zero,
            group,
        } = args;
        let weights = weights.view().slice_move(s![.., columns]);
        if per_tensor {
            let fit = grid.fit(weights, true);
            scale.view_mut().column_mut(group).assign(&fit.scale);
            zero.view_mut().column_mut(group).assign(&fit.zero);
        } else {
            let rows: Vec<(f32, f32)> = self.run(|_| {
                (0..weights.nrows())
                    .into_par_iter()
                    .map(|row| grid.fit_row(weights.index_axis(Axis(0), row)))
                    .collect()
            });
            let (mut scale, mut zero) = (scale.view_mut(), zero.view_mut());
            for (row, (row_scale, row_zero)) in rows.into_iter().enumerate() {
                scale[[row, group]] = row_scale;
                zero[[row, group]] = row_zero;
            }
        }
        Ok(())
    }

    fn update_rows(&self, args: UpdateRows<'_, Self>) -> Result<Option<CpuMask>, HostError> {
        Ok(self.run(|_| sweep::update_rows(self.arch, args)))
    }

    fn open_block(
        &self,
        weights: &mut CpuMatrix,
        rest: &CpuMatrix,
        factor: &CpuMatrix,
        columns: Range<usize>,
    ) -> Result<(), HostError> {
        self.run(|engine| linear::open_block(weights, rest, factor, columns, engine));
        Ok(())
    }

    fn close_block(
        &self,
        rest: &mut CpuMatrix,
        weights: &CpuMatrix,
        columns: Range<usize>,
    ) -> Result<(), HostError> {
        self.run(|_| linear::close_block(rest, weights, columns));
        Ok(())
    }

    fn gemm(&self, args: Gemm<'_, Self>) -> Result<(), HostError> {
        let bf16 = self.bf16.filter(|_| self.products == Products::Bf16);
        self.run(|engine| linear::gemm(args, bf16, engine));
        Ok(())
    }

    fn inverse(
        &self,
        h: &CpuMatrix,
        diagonal: &[f32],
        precision: Precision,
    ) -> Result<CpuMatrix, HostError> {
        let mut factor = self.copy(h)?;
        self.inverse_factor(&mut factor, diagonal, &[diagonal.len()], precision)?;
        let mut inverse = self.zeros(diagonal.len(), diagonal.len())?;
        self.run(|engine| {
            factor::inverse_from_factor(inverse.faer_mut(), factor.faer(), engine.par);
        });
        Ok(inverse)
    }

    fn project(&self, args: Project<'_, Self>) -> Result<(), HostError> {
        self.run(|_| iterate::project(args));
        Ok(())
    }

    fn refit(&self, args: Refit<'_, Self>) -> Result<(), HostError> {
        let mut full = self.copy(args.h)?;
        let (rows, cols) = args.weights.dim();
        let [mut residual, mut direction, mut product] = [
            self.zeros(rows, cols)?,
            self.zeros(rows, cols)?,
            self.zeros(rows, cols)?,
        ];
        self.run(|engine| {
            factor::symmetric(full.faer_mut(), args.diagonal);
            let scratch = [&mut residual, &mut direction, &mut product];
            iterate::refit(args, &full, scratch, engine);
        });
        Ok(())
    }

    fn adam(&self, args: Adam<'_, Self>) -> Result<(), HostError> {
        let mut full = self.copy(args.h)?;
        let (rows, cols) = args.weights.dim();
        let [mut difference, mut product, mut first, mut second] = [
            self.zeros(rows, cols)?,
            self.zeros(rows, cols)?,
            self.zeros(rows, cols)?,
            self.zeros(rows, cols)?,
        ];
        self.run(|engine| {
            factor::symmetric(full.faer_mut(), args.diagonal);
            let scratch = [&mut difference, &mut product, &mut first, &mut second];
            iterate::adam(args, &full, scratch, engine);
        });
        Ok(())
    }
}
