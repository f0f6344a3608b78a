//! Products of matrices as launches: one mechanism for all that is one.

use super::{size, size_u32};
use crate::device::{Argument, Device, Limits};
use crate::error::CudaError;
use crate::kernels::Kernel;
use crate::kernels::gemm::GEMM;
use crate::kernels::gemm_double::GEMM_DOUBLE;
use crate::kernels::gemm_tensor::GEMM_TENSOR;

const WHAT: &str = "a product";

/// Rows and columns of a block's tile.
pub(super) const TILE: usize = 128;

/// Compute capabilities whose tensor cores do three TF32 products in less time than the ordinary units take for one of
/// f32: by their data sheets they have 8, 7 and 15 times the rate, all others since Ampere at most twice.
const TENSOR: [(u32, u32); 4] = [(8, 0), (9, 0), (10, 0), (10, 3)];

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Units {
    /// f32.
    Ordinary,
    /// f32 in three products of TF32.
    Tensor,
    /// f64, all matrices.
    Double,
}

impl Units {
    /// The faster ones for f32.
    pub(super) fn of(limits: Limits) -> Self {
        if TENSOR.contains(&limits.compute_capability) {
            Self::Tensor
        } else {
            Self::Ordinary
        }
    }

    fn kernel(self) -> &'static Kernel {
        match self {
            Self::Ordinary => &GEMM,
            Self::Tensor => &GEMM_TENSOR,
            Self::Double => &GEMM_DOUBLE,
        }
    }
}

/// An operand: its first value, and the values from one of its rows (A) or columns (B) to the next, and from one depth
/// to the next. One of the two is 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    address: u64,
    across: usize,
    along: usize,
}

impl Operand {
    /// A as it stands, or the transpose of B as it stands: the depth runs along the rows in memory.
    pub(super) fn along_rows(address: u64, leading: usize) -> Self {
        Self {
            address,
            across: leading,
            along: 1,
        }
    }

    /// B as it stands, or the transpose of A as it stands.
    pub(super) fn along_columns(address: u64, leading: usize) -> Self {
        Self {
            address,
            across: 1,
            along: leading,
        }
    }
}

/// Which values of B(k, j) count; the others are taken as zero and not read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counts {
    All,
    /// Those with k ≤ j + this.
    UpTo(i32),
    /// Those with k ≥ j.
    From,
}

/// Which part of C is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    All,
    Upper,
    Lower,
}

/// C ← beta·S + alpha·A·B.
#[derive(Clone, Copy, Debug)]
pub(super) struct Multiplication {
    /// Rows of C, columns of C, depth.
    pub(super) shape: (usize, usize, usize),
    pub(super) a: Operand,
    pub(super) b: Operand,
    /// The first value, and the values from one row to the next. May be A where C is at most [`TILE`] columns wide.
    pub(super) c: (u64, usize),
    pub(super) alpha: f32,
    /// S, as `c` is given, and beta.
    pub(super) plus: Option<((u64, usize), f32)>,
    /// Only A(i, k) with k ≥ i count.
    pub(super) a_upper: bool,
    pub(super) b_counts: Counts,
    pub(super) part: Part,
}

impl Multiplication {
    /// C ← A·B.
    pub(super) fn new(
        shape: (usize, usize, usize),
        a: Operand,
        b: Operand,
        c: (u64, usize),
    ) -> Self {
        Self {
            shape,
            a,
            b,
            c,
            alpha: 1.0,
            plus: None,
            a_upper: false,
            b_counts: Counts::All,
            part: Part::All,
        }
    }

    /// C ← C + alpha·A·B.
    pub(super) fn adding(self, alpha: f32) -> Self {
        Self {
            alpha,
            plus: Some((self.c, 1.0)),
            ..self
        }
    }

    /// Enqueues it.
    pub(super) fn launch<D: Device>(&self, device: &D, units: Units) -> Result<(), CudaError> {
        let (rows, cols, depth) = self.shape;
        let ((source, source_leading), beta) = self.plus.unwrap_or((self.c, 0.0));
        let (b_form, b_shift) = match self.b_counts {
            Counts::All => (0, 0),
            Counts::UpTo(shift) => (1, shift),
            Counts::From => (2, 0),
        };
        let form = match self.part {
            Part::All => 0,
            Part::Upper => 1,
            Part::Lower => 2,
        };
        let tiles = |values: usize| size_u32(WHAT, values.div_ceil(TILE));
        device.launch(
            units.kernel(),
            [tiles(rows)?, tiles(cols)?, 1],
            &[
                Argument::Address(self.a.address),
                size(WHAT, self.a.across)?,
                size(WHAT, self.a.along)?,
                Argument::Address(self.b.address),
                size(WHAT, self.b.along)?,
                size(WHAT, self.b.across)?,
                Argument::Address(source),
                size(WHAT, source_leading)?,
                Argument::Address(self.c.0),
                size(WHAT, self.c.1)?,
                size(WHAT, rows)?,
                size(WHAT, cols)?,
                size(WHAT, depth)?,
                Argument::F32(self.alpha),
                Argument::F32(beta),
                Argument::U32(self.a_upper.into()),
                Argument::U32(b_form),
                Argument::U32(b_shift.cast_unsigned()),
                Argument::U32(form),
            ],
        )
    }
}
