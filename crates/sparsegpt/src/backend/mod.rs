//! The backend trait: one device, one queue, about ten coarse operations.
//!
//! # The contract
//!
//! * **A value is a device and a queue.** Methods take `&self`; what they enqueue runs in order.
//!   [`Backend::fork`] gives a second queue on the same device. Several threads may call methods of one value at
//!   the same time.
//! * **Validation is the caller's.** The solver checks shapes, ranges, N:M divisibility, NaN and dead
//!   columns once, and that there is a row and a column. A backend may assume them and may panic where they are
//!   violated: that is a bug of the caller, not of the user.
//! * **No scalar comes back inside the block loop.** [`Backend::select`], [`Backend::fit_grid`],
//!   [`Backend::update_rows`], [`Backend::gemm`], [`Backend::open_block`] and
//!   [`Backend::close_block`] return nothing a device would have to wait for;
//!   losses add up in a device matrix.
//! * **Policies arrive as plain data**: a fixed mask, an N:M rule, a count, a grid. Never a callback.
//! * **Errors have a kind** ([`BackendError::kind`]). A missing driver, library or device is
//!   `DeviceUnavailable`, never a panic.
//! * **Same bits** on repeated calls with the same backend, device and thread count.
//!
//! Only memory, [`Backend::gram_update`] and [`Backend::inverse_factor`] must be written. The other
//! operations have default bodies that download, run the [`host`] implementation and upload; such a
//! backend is correct, and reports say which of its operations ran on the host. Override them for speed
//! and name them in [`BackendInfo::native`].
//!
//! In the repository `docs/writing-a-backend.md` builds a backend step by step, and `docs/architecture.md` says how
//! the solver uses the operations.

#[cfg(feature = "cpu")]
pub mod cpu;
mod fallback;
pub mod host;
mod operations;

use std::fmt;
use std::ops::Range;

use ndarray::{Array2, ArrayView2};

#[cfg(feature = "cpu")]
pub use cpu::Cpu;
pub use host::Host;
pub use operations::{
    Adam, AdamPace, FitGrid, Gemm, GridKind, GridRef, Project, PruneRef, Refit, Select, SelectRule,
    UpdateRows,
};

use crate::error::BackendError;
use crate::hessian::Activations;

/// Floating-point type of a factorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 64-bit floats inside the factorization; input and result stay f32.
    F64,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// Floating-point type of the operands of [`Backend::gemm`]; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Products {
    /// 32-bit floats, as the matrices hold them.
    #[default]
    F32,
    /// Rounded to bfloat16.
    Bf16,
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// The operations with a default body on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Operation {
    /// [`Backend::combine`]
    Combine,
    /// [`Backend::permute_hessian`]
    PermuteHessian,
    /// [`Backend::row_energies`]
    RowEnergies,
    /// [`Backend::select`]
    Select,
    /// [`Backend::fit_grid`]
    FitGrid,
    /// [`Backend::update_rows`]
    UpdateRows,
    /// [`Backend::gemm`]
    Gemm,
    /// [`Backend::open_block`]
    OpenBlock,
    /// [`Backend::close_block`]
    CloseBlock,
    /// [`Backend::inverse`]
    Inverse,
    /// [`Backend::project`]
    Project,
    /// [`Backend::refit`]
    Refit,
    /// [`Backend::adam`]
    Adam,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Combine,
        Self::PermuteHessian,
        Self::RowEnergies,
        Self::Select,
        Self::FitGrid,
        Self::UpdateRows,
        Self::Gemm,
        Self::OpenBlock,
        Self::CloseBlock,
        Self::Inverse,
        Self::Project,
        Self::Refit,
        Self::Adam,
    ];
}

/// What a backend says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BackendInfo {
    /// Short name, as in `cpu`.
    pub name: String,
    /// The device in words: instruction set and threads, or the GPU's name.
    pub device: String,
    /// Operations that run on the device. All others run through the host implementation.
    pub native: Vec<Operation>,
    /// What [`Backend::gemm`] multiplies.
    pub products: Products,
}

impl BackendInfo {
    /// A description; `native` names the operations that do not run through the host implementation.
    #[must_use]
    pub fn new(name: &str, device: impl Into<String>, native: &[Operation]) -> Self {
        Self {
            name: name.to_owned(),
            device: device.into(),
            native: native.to_vec(),
            products: Products::F32,
        }
    }

    /// The same for a backend whose [`Backend::gemm`] rounds its operands.
    #[must_use]
    pub fn with_products(self, products: Products) -> Self {
        Self { products, ..self }
    }

    /// Whether an operation runs on the device.
    #[must_use]
    pub fn is_native(&self, operation: Operation) -> bool {
        self.native.contains(&operation)
    }
}

/// One device with one queue. See the [module documentation](self) for the contract.
///
/// Matrices are f32, row-major at the border ([`upload`](Self::upload), [`download`](Self::download));
/// what they look like inside is the backend's own affair.
pub trait Backend: fmt::Debug + Send + Sync + Sized + 'static {
    /// A matrix of f32 on the device.
    type Matrix: fmt::Debug + Send + Sync;
    /// A matrix of booleans on the device; `true` means "prune".
    type Mask: fmt::Debug + Send + Sync;
    /// The backend's error type.
    type Error: BackendError;

    /// Name, device and native operations.
    fn info(&self) -> BackendInfo;

    /// A second queue on the same device.
    ///
    /// # Errors
    /// If the device refuses.
    fn fork(&self) -> Result<Self, Self::Error>;

    /// Waits until everything enqueued so far is done.
    ///
    /// # Errors
    /// Whatever went wrong in the meantime.
    fn synchronize(&self) -> Result<(), Self::Error>;

    /// Bytes left for matrices on a device whose memory is not the host's; `None` where it is. The solver takes a layer that
    /// needs more in slices of rows.
    ///
    /// # Errors
    /// `DeviceLost`.
    fn free_bytes(&self) -> Result<Option<usize>, Self::Error> {
        Ok(None)
    }

    /// Runs the host's part of a layer's treatment. A backend with threads of its own runs `work` on one of
    /// them, so that the many operations inside need not wake them one by one.
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }

    /// A matrix of zeros.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn zeros(&self, rows: usize, cols: usize) -> Result<Self::Matrix, Self::Error>;

    /// Rows and columns of a matrix.
    fn shape(&self, matrix: &Self::Matrix) -> (usize, usize);

    /// Copies a host matrix to the device; the view may have any layout.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Self::Matrix, Self::Error>;

    /// Copies a device matrix to the host, after everything enqueued before it, in the standard (row-major)
    /// layout.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn download(&self, matrix: &Self::Matrix) -> Result<Array2<f32>, Self::Error>;

    /// [`upload`](Self::upload) of a matrix that the caller no longer needs: memory of the host may be taken
    /// over as it is.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn upload_owned(&self, host: Array2<f32>) -> Result<Self::Matrix, Self::Error> {
        self.upload(host.view())
    }

    /// [`download`](Self::download) of a matrix that is no longer needed on the device.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn download_owned(&self, matrix: Self::Matrix) -> Result<Array2<f32>, Self::Error> {
        self.download(&matrix)
    }

    /// A second matrix with the same contents.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn copy(&self, matrix: &Self::Matrix) -> Result<Self::Matrix, Self::Error>;

    /// Copies a mask to the device; `true` means "prune".
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Self::Mask, Self::Error>;

    /// Copies a mask to the host.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn download_mask(&self, mask: &Self::Mask) -> Result<Array2<bool>, Self::Error>;

    /// H ← beta·H + alpha·XᵀX on the lower triangle (diagonal included) of `h` (cols x cols); the strict
    /// upper triangle is scratch and may hold anything before and after. `x` is tokens x cols; half
    /// precision is multiplied as it is or widened tile by tile, never as a whole. There may be no tokens: H is
    /// then only scaled.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn gram_update(
        &self,
        h: &mut Self::Matrix,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), Self::Error>;

    /// Factors H = UUᵀ with U upper triangular (a Cholesky factorization from the last column to the first),
    /// where H has the strict lower triangle of `h` and the given `diagonal` (length cols, dead columns
    /// patched and damping added by the solver).
    ///
    /// `blocks` are the ends of consecutive column blocks, ascending, the last one cols. What goes into the
    /// upper triangle of `h`, diagonal included (the solver knows H's own): above the diagonal blocks, U;
    /// in each diagonal block, the block's inverse R_BB = U_BB⁻¹, upper triangular. It is the block of
    /// R = U⁻¹, with RᵀR = H⁻¹, the paper's factor; one block of all columns gives R whole. Neither H⁻¹ nor
    /// the rest of R is ever formed.
    ///
    /// **The strict lower triangle must be left as it was**, on success and on failure: the solver comes
    /// back with another precision or diagonal, and measures errors with it. After a failure the upper one may hold
    /// anything. More precision than asked for is allowed.
    ///
    /// # Errors
    /// `NotPositiveDefinite` with the column of `h` whose pivot was not positive or not finite: of several the
    /// largest, as the factorization begins at the last column. `Unsupported` for a precision the device does not
    /// have; `OutOfMemory`, `DeviceLost`.
    fn inverse_factor(
        &self,
        h: &mut Self::Matrix,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), Self::Error>;

    /// The diagonal of a square matrix, on the host. Called once or twice a layer.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn diagonal(&self, matrix: &Self::Matrix) -> Result<Vec<f32>, Self::Error> {
        Ok(self.download(matrix)?.diag().to_vec())
    }

    /// Overwrites the diagonal of a square matrix. Called when a factored Hessian is used again.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn set_diagonal(&self, matrix: &mut Self::Matrix, diagonal: &[f32]) -> Result<(), Self::Error> {
        let mut host = self.download(matrix)?;
        host.diag_mut()
            .iter_mut()
            .zip(diagonal)
            .for_each(|(to, from)| *to = *from);
        *matrix = self.upload(host.view())?;
        Ok(())
    }

    /// target ← alpha·target + beta·other, element by element (merging two Hessians).
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn combine(
        &self,
        target: &mut Self::Matrix,
        alpha: f32,
        other: &Self::Matrix,
        beta: f32,
    ) -> Result<(), Self::Error> {
        fallback::combine(self, target, alpha, other, beta)
    }

    /// The Hessian with rows and columns in another order: lower triangle of the result at (i, j) is
    /// H at (order\[i\], order\[j\]), read from the strict lower triangle of `h`. The result's diagonal is
    /// not used by the caller.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn permute_hessian(
        &self,
        h: &Self::Matrix,
        order: &[usize],
    ) -> Result<Self::Matrix, Self::Error> {
        fallback::permute_hessian(self, h, order)
    }

    /// wᵢ H wᵢᵀ for every row wᵢ of `w` (rows x cols), where H has the strict lower triangle of `h` and
    /// the given `diagonal`. Called at the end of a layer.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn row_energies(
        &self,
        w: &Self::Matrix,
        h: &Self::Matrix,
        diagonal: &[f32],
    ) -> Result<Vec<f64>, Self::Error> {
        fallback::row_energies(self, w, h, diagonal)
    }

    /// Chooses the weights to prune among some columns; see [`Select`].
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn select(&self, args: Select<'_, Self>) -> Result<Self::Mask, Self::Error> {
        fallback::select(self, args)
    }

    /// Fits a uniform grid to some columns; see [`FitGrid`].
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn fit_grid(&self, args: FitGrid<'_, Self>) -> Result<(), Self::Error> {
        fallback::fit_grid(self, args)
    }

    /// The fused sweep over at most 128 columns; see [`UpdateRows`]. Returns the mask chosen on the way
    /// for [`PruneRef::NofM`], and `None` for the other rules.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn update_rows(&self, args: UpdateRows<'_, Self>) -> Result<Option<Self::Mask>, Self::Error> {
        fallback::update_rows(self, args)
    }

    /// Brings the columns of a block up to date before they are swept:
    /// W\[:, B\] ← D\[:, B\] + W\[:, B\]·R_BB, where `weights` W holds the updates gathered so far
    /// (Σ over the columns k before the block of e_k U_kB), `rest` D the dense weights, and the diagonal
    /// block of `factor` the upper triangular R_BB.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn open_block(
        &self,
        weights: &mut Self::Matrix,
        rest: &Self::Matrix,
        factor: &Self::Matrix,
        columns: Range<usize>,
    ) -> Result<(), Self::Error> {
        fallback::open_block(self, weights, rest, factor, columns)
    }

    /// After the sweeps of a block, what its columns have lost: D\[:, B\] −= W\[:, B\], the e_k that later
    /// blocks make good.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn close_block(
        &self,
        rest: &mut Self::Matrix,
        weights: &Self::Matrix,
        columns: Range<usize>,
    ) -> Result<(), Self::Error> {
        fallback::close_block(self, rest, weights, columns)
    }

    /// A product of column ranges; see [`Gemm`].
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn gemm(&self, args: Gemm<'_, Self>) -> Result<(), Self::Error> {
        fallback::gemm(self, args)
    }

    /// H⁻¹ with both triangles, where H has the strict lower triangle of `h` and the given `diagonal`. What ADMM
    /// multiplies by once an iteration; called once a Hessian.
    ///
    /// # Errors
    /// As [`inverse_factor`](Self::inverse_factor).
    fn inverse(
        &self,
        h: &Self::Matrix,
        diagonal: &[f32],
        precision: Precision,
    ) -> Result<Self::Matrix, Self::Error> {
        fallback::inverse(self, h, diagonal, precision)
    }

    /// The elementwise part of an ADMM iteration: from W + U to the multipliers and to what the next product reads; see
    /// [`Project`].
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn project(&self, args: Project<'_, Self>) -> Result<(), Self::Error> {
        fallback::project(self, args)
    }

    /// Conjugate gradients on the weights that a mask keeps; see [`Refit`].
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn refit(&self, args: Refit<'_, Self>) -> Result<(), Self::Error> {
        fallback::refit(self, args)
    }

    /// Adam on the weights that a mask keeps; see [`Adam`].
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`.
    fn adam(&self, args: Adam<'_, Self>) -> Result<(), Self::Error> {
        fallback::adam(self, args)
    }
}
