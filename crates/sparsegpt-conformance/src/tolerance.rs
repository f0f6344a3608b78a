//! How far a result may be from the truth: data, one entry an operation, the same for every backend.

/// An allowed difference, in units of the last place of f32 of some magnitude that the case computes in f64:
/// the sum of the absolute values of the terms an entry is made of, unless the entry says otherwise.
#[derive(Debug)]
pub(crate) struct Tolerance {
    pub(crate) operation: &'static str,
    /// Units of `f32::EPSILON`.
    pub(crate) ulps: f64,
    pub(crate) reason: &'static str,
}

impl Tolerance {
    pub(crate) fn bound(&self, magnitude: f64) -> f64 {
        self.ulps * f64::from(f32::EPSILON) * magnitude + f64::from(f32::MIN_POSITIVE)
    }
}

pub(crate) const GRAM: Tolerance = Tolerance {
    operation: "gram_update",
    ulps: 32.0,
    reason: "an f32 sum of 600 products is off by 300 ulp of the sum of their absolute values at worst, and by \
             about √600 = 25 in a random walk; reduced-precision products (TF32) are far outside",
};

pub(crate) const FACTOR_F32: Tolerance = Tolerance {
    operation: "inverse_factor in f32",
    ulps: 32.0,
    reason: "RᵀR·H − I against the largest entry of |Rᵀ|·|R|·|H|: the backward error of a Cholesky factorization and \
             a triangular inverse of up to 200 columns",
};

pub(crate) const FACTOR_F64: Tolerance = Tolerance {
    operation: "inverse_factor in f64",
    ulps: 2.0,
    reason: "only the rounding of R to f32 is left, half a unit in each of two factors",
};

pub(crate) const SALIENCY: Tolerance = Tolerance {
    operation: "select",
    ulps: 4.0,
    reason: "|w|/scale is one division; w²/scale² three operations. Nearer saliencies may change places",
};

pub(crate) const GRID: Tolerance = Tolerance {
    operation: "fit_grid",
    ulps: 2.0,
    reason: "a scale is a difference, a product and a quotient",
};

pub(crate) const GRID_OF_CURRENT: Tolerance = Tolerance {
    operation: "fit_grid on compensated weights",
    ulps: 64.0,
    reason: "the range is that of weights which earlier sweeps have updated, each update rounded",
};

pub(crate) const GRID_ERROR: Tolerance = Tolerance {
    operation: "fit_grid, range search",
    ulps: 4096.0,
    reason: "sums of |error|^2.4 decide; powf differs between implementations, so that one of two nearly \
             equal ranges may win. 4096 ulp is 0.05 %",
};

pub(crate) const SWEEP: Tolerance = Tolerance {
    operation: "update_rows",
    ulps: 32.0,
    reason: "up to 128 dependent updates of a weight, each rounded, against |w| + Σ|e·R|",
};

pub(crate) const GEMM: Tolerance = Tolerance {
    operation: "gemm",
    ulps: 16.0,
    reason: "an f32 sum of up to 200 products; reduced-precision products (TF32) are far outside",
};

pub(crate) const REFIT: Tolerance = Tolerance {
    operation: "refit",
    ulps: 512.0,
    reason: "conjugate gradients in f32: each step's rounding is carried on by the next, with the condition of the \
             preconditioned Hessian, some hundred, in front of it",
};

pub(crate) const ENERGY: Tolerance = Tolerance {
    operation: "row_energies",
    ulps: 8.0,
    reason: "the products wH may be taken in f32, their sum is in f64",
};

pub(crate) const COMBINE: Tolerance = Tolerance {
    operation: "combine",
    ulps: 2.0,
    reason: "two products and a sum",
};

pub(crate) const HESSIAN: Tolerance = Tolerance {
    operation: "Hessian accumulation",
    ulps: 32.0,
    reason: "several rank updates and scalings of a running mean, each rounded",
};

pub(crate) const LOSS: Tolerance = Tolerance {
    operation: "losses and errors of a layer",
    ulps: 4096.0,
    reason: "relative to the loss itself. R, weights and errors are f32 and pass through a hundred dependent \
             steps; 4096 ulp is 0.05 %",
};

/// Of tr(W H Wᵀ): losses below it are what rounding the weights to f32 leaves.
pub(crate) const LOSS_FLOOR: f64 = 1e-9;

/// How far two solutions of one layer may be from each other.
#[derive(Debug)]
pub(crate) struct Agreement {
    /// Least share of entries in which both or neither are zero.
    pub(crate) pattern: f64,
    /// Largest ratio of the reconstruction errors.
    pub(crate) error_ratio: f64,
    /// Largest difference of weights, of the largest weight, in rows whose pattern agrees whole.
    pub(crate) weights: f64,
    pub(crate) reason: &'static str,
}

/// Against solutions that were chosen with clear margins, or counted in the same way.
pub(crate) const EXACT: Agreement = Agreement {
    pattern: 1.0,
    error_ratio: 1.0001,
    weights: 1e-4,
    reason: "an f64 solver through another factorization reproduces every zero",
};

/// Against the published reference, which prunes about one weight more in each block.
pub(crate) const OTHER_COUNT: Agreement = Agreement {
    pattern: 0.998,
    error_ratio: 1.002,
    weights: 1e-4,
    reason: "one weight a block more or fewer moves a few others near the threshold",
};

/// Against another way to compute the same: nothing but rounding differs.
pub(crate) const ROUNDING: Agreement = Agreement {
    pattern: 0.998,
    error_ratio: 1.002,
    weights: 1e-4,
    reason: "rounding may let two nearly equal saliencies change places",
};
