//! Arguments of the coarse operations: plain data and device matrices.

use std::ops::Range;

use super::Backend;
use crate::quant::UniformGrid;

/// How many weights [`Backend::select`] chooses, and among which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SelectRule<'a> {
    /// The `count` least salient weights of all rows and columns together.
    Lowest {
        /// Weights to choose.
        count: usize,
    },
    /// The `counts[row]` least salient weights of each row.
    LowestPerRow {
        /// Weights to choose in each row (length rows).
        counts: &'a [usize],
    },
    /// The `zeros` least salient weights in each `group` consecutive columns of each row. The range's
    /// width is a multiple of `group`.
    NofM {
        /// Weights to choose in each group.
        zeros: usize,
        /// Columns in a group.
        group: usize,
    },
}

/// Arguments of [`Backend::select`].
///
/// The saliency of weight (i, j) is |w_ij| / scale_j; with scale = diag(R) this orders as the paper's
/// w² / \[H⁻¹\]_jj (Eq. 3), with scale_j = 1/√H_jj as Wanda, with 1 as magnitude. Lower is pruned first;
/// equal ones in the order of column, then row. Forced weights come before all others and count;
/// protected ones are never chosen, and a row or group with too few others gives all of them. No weight is
/// both.
#[derive(Debug)]
#[non_exhaustive]
pub struct Select<'a, B: Backend> {
    /// Current weights, rows x cols.
    pub weights: &'a B::Matrix,
    /// 1 x cols, positive.
    pub scales: &'a B::Matrix,
    /// The columns to choose among.
    pub columns: Range<usize>,
    /// How many.
    pub rule: SelectRule<'a>,
    /// rows x width of `columns`; chosen before all others.
    pub forced: Option<&'a B::Mask>,
    /// rows x width of `columns`; never chosen.
    pub protected: Option<&'a B::Mask>,
}

impl<'a, B: Backend> Select<'a, B> {
    /// A choice without forced or protected weights.
    pub fn new(
        weights: &'a B::Matrix,
        scales: &'a B::Matrix,
        columns: Range<usize>,
        rule: SelectRule<'a>,
    ) -> Self {
        Self {
            weights,
            scales,
            columns,
            rule,
            forced: None,
            protected: None,
        }
    }

    /// With forced and protected weights.
    #[must_use]
    pub fn constrained(
        mut self,
        forced: Option<&'a B::Mask>,
        protected: Option<&'a B::Mask>,
    ) -> Self {
        self.forced = forced;
        self.protected = protected;
        self
    }
}

/// Arguments of [`Backend::fit_grid`]: fits `grid` to `columns` of `weights`, one scale and zero point a
/// row (or one for all rows where `per_tensor`), and writes them to column `group` of `scale` and `zero`
/// (rows x groups). The fit is [`UniformGrid::fit`].
#[derive(Debug)]
#[non_exhaustive]
pub struct FitGrid<'a, B: Backend> {
    /// Current weights, rows x cols.
    pub weights: &'a B::Matrix,
    /// The columns to fit to.
    pub columns: Range<usize>,
    /// The kind of grid.
    pub grid: &'a UniformGrid,
    /// One scale for the whole matrix.
    pub per_tensor: bool,
    /// rows x groups.
    pub scale: &'a mut B::Matrix,
    /// rows x groups.
    pub zero: &'a mut B::Matrix,
    /// The column of `scale` and `zero` to write.
    pub group: usize,
}

impl<'a, B: Backend> FitGrid<'a, B> {
    /// All arguments at once.
    pub fn new(
        weights: &'a B::Matrix,
        columns: Range<usize>,
        grid: &'a UniformGrid,
        per_tensor: bool,
        (scale, zero): (&'a mut B::Matrix, &'a mut B::Matrix),
        group: usize,
    ) -> Self {
        Self {
            weights,
            columns,
            grid,
            per_tensor,
            scale,
            zero,
            group,
        }
    }
}

/// Which weights [`Backend::update_rows`] prunes.
#[derive(Debug)]
#[non_exhaustive]
pub enum PruneRef<'a, B: Backend> {
    /// None.
    Keep,
    /// Those of a mask chosen before (rows x anything); the sweep's first column is the mask's column
    /// `offset`.
    Fixed {
        /// `true` means prune.
        mask: &'a B::Mask,
        /// The mask's column for the sweep's first column.
        offset: usize,
    },
    /// `zeros` in each `group` columns, chosen when the sweep reaches the group, with the saliency of
    /// [`Select`] and scale = diag(R) (paper, section 3.3). The sweep's width is a multiple of `group`.
    NofM {
        /// Weights to prune in each group.
        zeros: usize,
        /// Columns in a group.
        group: usize,
    },
}

/// The levels weights are rounded to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum GridKind<'a> {
    /// scale·(clamp(round(w/scale) + zero, 0, max_code) − zero), round half to even.
    Affine {
        /// Largest code, 2^bits − 1.
        max_code: u32,
    },
    /// scale·(the level nearest to w/scale, the lower one of two equally near).
    Codebook {
        /// Levels in ascending order.
        levels: &'a [f32],
    },
}

/// The quantization grid of a sweep.
#[derive(Debug)]
#[non_exhaustive]
pub struct GridRef<'a, B: Backend> {
    /// What kind of levels.
    pub kind: GridKind<'a>,
    /// rows x groups, positive.
    pub scale: &'a B::Matrix,
    /// rows x groups, integers stored as f32; not read for code books.
    pub zero: &'a B::Matrix,
    /// The group (column of `scale` and `zero`) of each column of the sweep.
    pub groups: &'a [usize],
}

impl<'a, B: Backend> GridRef<'a, B> {
    /// All parts at once.
    pub fn new(
        kind: GridKind<'a>,
        scale: &'a B::Matrix,
        zero: &'a B::Matrix,
        groups: &'a [usize],
    ) -> Self {
        Self {
            kind,
            scale,
            zero,
            groups,
        }
    }
}

/// Arguments of [`Backend::update_rows`], the fused sweep (paper, Algorithm 1 and Eq. 7).
///
/// For each row and each column j of `columns`, in order:
/// q = 0 where pruned, else the rounded or unchanged w_j; e = (w_j − q) / R_jj; w_k −= e·R_jk for the later
/// columns k **of the range**; then w_j ← q. `errors` gets e at column `error_offset + (j − start)`,
/// `losses` (rows x 1) grows by Σ e². Columns outside the range are left alone.
#[derive(Debug)]
#[non_exhaustive]
pub struct UpdateRows<'a, B: Backend> {
    /// Current weights, rows x cols.
    pub weights: &'a mut B::Matrix,
    /// R in the upper triangle, cols x cols; the strict lower triangle is not R.
    pub factor: &'a B::Matrix,
    /// rows x at least `error_offset + columns.len()`.
    pub errors: &'a mut B::Matrix,
    /// Column of `errors` for the first column of the range.
    pub error_offset: usize,
    /// rows x 1, grows.
    pub losses: &'a mut B::Matrix,
    /// At most 128 columns.
    pub columns: Range<usize>,
    /// What to prune.
    pub prune: PruneRef<'a, B>,
    /// What to round to.
    pub grid: Option<GridRef<'a, B>>,
}

impl<'a, B: Backend> UpdateRows<'a, B> {
    /// A sweep that neither prunes nor rounds; see [`pruning`](Self::pruning) and
    /// [`rounding`](Self::rounding).
    pub fn new(
        weights: &'a mut B::Matrix,
        factor: &'a B::Matrix,
        (errors, error_offset): (&'a mut B::Matrix, usize),
        losses: &'a mut B::Matrix,
        columns: Range<usize>,
    ) -> Self {
        Self {
            weights,
            factor,
            errors,
            error_offset,
            losses,
            columns,
            prune: PruneRef::Keep,
            grid: None,
        }
    }

    /// With weights to prune.
    #[must_use]
    pub fn pruning(mut self, prune: PruneRef<'a, B>) -> Self {
        self.prune = prune;
        self
    }

    /// With a grid to round to.
    #[must_use]
    pub fn rounding(mut self, grid: Option<GridRef<'a, B>>) -> Self {
        self.grid = grid;
        self
    }
}

/// Arguments of [`Backend::gemm`]:
/// C\[:, c_columns\] += alpha · A\[:, a_columns\] · B\[b_rows, b_columns\].
///
/// Where the user has asked for it a backend may round A and B; it says so in
/// [`BackendInfo::products`](super::BackendInfo::products).
#[derive(Debug)]
#[non_exhaustive]
pub struct Gemm<'a, B: Backend> {
    /// The result.
    pub c: &'a mut B::Matrix,
    /// Columns of the result to update.
    pub c_columns: Range<usize>,
    /// The factor of the product.
    pub alpha: f32,
    /// Left operand, as many rows as `c`.
    pub a: &'a B::Matrix,
    /// Columns of the left operand.
    pub a_columns: Range<usize>,
    /// Right operand.
    pub b: &'a B::Matrix,
    /// Rows of the right operand, as many as `a_columns`.
    pub b_rows: Range<usize>,
    /// Columns of the right operand, as many as `c_columns`.
    pub b_columns: Range<usize>,
}

impl<'a, B: Backend> Gemm<'a, B> {
    /// All parts at once.
    pub fn new(
        (c, c_columns): (&'a mut B::Matrix, Range<usize>),
        alpha: f32,
        (a, a_columns): (&'a B::Matrix, Range<usize>),
        (b, b_rows, b_columns): (&'a B::Matrix, Range<usize>, Range<usize>),
    ) -> Self {
        Self {
            c,
            c_columns,
            alpha,
            a,
            a_columns,
            b,
            b_rows,
            b_columns,
        }
    }
}

/// Arguments of [`Backend::project`], between two products of ADMM (Boyd et al. 2011, section 3.1.1; Boža 2024).
///
/// `sums` S = W + U (rows x cols) comes in. Where the mask prunes, U_ij ← S_ij, elsewhere 0: what the projection
/// Z on the mask leaves of S. `sums` becomes the right side of the next product, with the dense weights D:
/// S_ij ← (Z_ij − U_ij − D_ij)·weight_j.
#[derive(Debug)]
#[non_exhaustive]
pub struct Project<'a, B: Backend> {
    /// rows x cols, in and out.
    pub sums: &'a mut B::Matrix,
    /// The multipliers U, rows x cols, out.
    pub duals: &'a mut B::Matrix,
    /// The dense weights D, rows x cols.
    pub dense: &'a B::Matrix,
    /// rows x cols.
    pub mask: &'a B::Mask,
    /// 1 x cols.
    pub weights: &'a B::Matrix,
}

impl<'a, B: Backend> Project<'a, B> {
    /// All parts at once.
    pub fn new(
        sums: &'a mut B::Matrix,
        duals: &'a mut B::Matrix,
        dense: &'a B::Matrix,
        mask: &'a B::Mask,
        weights: &'a B::Matrix,
    ) -> Self {
        Self {
            sums,
            duals,
            dense,
            mask,
            weights,
        }
    }
}

/// Arguments of [`Backend::refit`]: `steps` iterations of conjugate gradients for each row by itself, on
/// min (d − q)H(d − q)ᵀ over the q that are zero where the mask prunes, preconditioned by the diagonal of H
/// (ALPS, Meng et al. 2024, Algorithm 2, with a step length a row).
///
/// A row's residual is g = ((d − q)H)⊙m, with m = 1 where weights are kept and 0 elsewhere. The first direction is
/// p = z = g⊘diag(H). Each step: t = (pH)⊙m, α = gz/pt, q += αp, g −= αt, z' = g⊘diag(H), β = gz'/gz, p = z' + βp.
/// A row stops where pt is not positive, or gz has fallen below 1e-14 of where it began: rounding is all that is left.
#[derive(Debug)]
#[non_exhaustive]
pub struct Refit<'a, B: Backend> {
    /// q, rows x cols, in and out; zero where the mask prunes.
    pub weights: &'a mut B::Matrix,
    /// d, rows x cols.
    pub dense: &'a B::Matrix,
    /// H in the strict lower triangle, cols x cols.
    pub h: &'a B::Matrix,
    /// The diagonal of H, positive.
    pub diagonal: &'a [f32],
    /// rows x cols, `true` means "prune".
    pub mask: &'a B::Mask,
    /// Iterations.
    pub steps: usize,
}

impl<'a, B: Backend> Refit<'a, B> {
    /// All parts at once.
    pub fn new(
        weights: &'a mut B::Matrix,
        dense: &'a B::Matrix,
        (h, diagonal): (&'a B::Matrix, &'a [f32]),
        mask: &'a B::Mask,
        steps: usize,
    ) -> Self {
        Self {
            weights,
            dense,
            h,
            diagonal,
            mask,
            steps,
        }
    }
}

/// Arguments of [`Backend::adam`]: `steps` steps of Adam (Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1) for each row by
/// itself, on scale·(d − q)H(d − q)ᵀ over the q that are zero where the mask prunes. The gradient is that of AdaPrune's loss
/// (Hubara et al. 2021, arXiv 2102.08124) on all calibration data at once.
///
/// With m = v = 0 before the first step, β₁ = 0.9, β₂ = 0.999 and ε = 1e-8, step t = 1, 2, … is
/// g = −2·scale·((d − q)H)⊙mask, with 1 for kept weights in the mask and 0 for others; m ← β₁m + (1 − β₁)g;
/// v ← β₂v + (1 − β₂)g²; q ← q − rate·(m/(1 − β₁ᵗ))/(√(v/(1 − β₂ᵗ)) + ε).
#[derive(Debug)]
#[non_exhaustive]
pub struct Adam<'a, B: Backend> {
    /// q, rows x cols, in and out; zero where the mask prunes.
    pub weights: &'a mut B::Matrix,
    /// d, rows x cols.
    pub dense: &'a B::Matrix,
    /// H in the strict lower triangle, cols x cols.
    pub h: &'a B::Matrix,
    /// The diagonal of H.
    pub diagonal: &'a [f32],
    /// rows x cols, `true` means "prune".
    pub mask: &'a B::Mask,
    /// How often to step, and how far.
    pub pace: AdamPace,
}

/// The numbers of [`Adam`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdamPace {
    /// Steps.
    pub steps: usize,
    /// The learning rate: about what a weight moves by in one of the first steps.
    pub rate: f64,
    /// The factor of the loss. It matters beside ε alone.
    pub scale: f64,
}

impl AdamPace {
    /// All parts at once.
    #[must_use]
    pub fn new(steps: usize, rate: f64, scale: f64) -> Self {
        Self { steps, rate, scale }
    }
}

impl<'a, B: Backend> Adam<'a, B> {
    /// All parts at once.
    pub fn new(
        weights: &'a mut B::Matrix,
        dense: &'a B::Matrix,
        (h, diagonal): (&'a B::Matrix, &'a [f32]),
        mask: &'a B::Mask,
        pace: AdamPace,
    ) -> Self {
        Self {
            weights,
            dense,
            h,
            diagonal,
            mask,
            pace,
        }
    }
}
