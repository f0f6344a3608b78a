//! Products of column ranges.

use sparsegpt::backend::Gemm;

use super::product::{Multiplication, Operand, Units};
use crate::backend::CudaBackend;
use crate::device::{Device, Product};
use crate::error::CudaError;

/// Multiplications from which on the kernel for tensor cores is as fast as cuBLAS: a product of 8192³. The one for ordinary units
/// never is. Measured on an H100 (docs/benchmarks.md).
const OWN_IS_AS_FAST: u64 = 1 << 39;

/// See [`Gemm`]. The device's own library multiplies where there is one to be used, and it is faster.
pub(crate) fn gemm<D: Device>(device: &D, args: Gemm<'_, CudaBackend<D>>) -> Result<(), CudaError> {
    let (rows, cols, depth) = (args.c.rows, args.c_columns.len(), args.a_columns.len());
    if rows == 0 || cols == 0 || depth == 0 {
        return Ok(());
    }
    let a = (args.a.columns(device, &args.a_columns), args.a.leading());
    let b = (
        args.b.at(device, args.b_rows.start, args.b_columns.start),
        args.b.leading(),
    );
    let c = (args.c.columns(device, &args.c_columns), args.c.leading());
    let product = Product {
        rows,
        cols,
        depth,
        alpha: args.alpha,
        a,
        b,
        c,
    };
    let units = Units::of(device.limits());
    let multiplications = [rows, cols, depth].map(|it| it as u64);
    let large = multiplications.iter().product::<u64>() >= OWN_IS_AS_FAST;
    if !(large && units == Units::Tensor)
        && let Some(done) = device.library_gemm(&product)
    {
        return done;
    }
    Multiplication::new(
        (rows, cols, depth),
        Operand::along_rows(a.0, a.1),
        Operand::along_columns(b.0, b.1),
        c,
    )
    .adding(args.alpha)
    .launch(device, units)
}
