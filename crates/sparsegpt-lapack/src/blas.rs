//! The two products that BLAS does, and what OpenBLAS says about itself.

use std::ffi::{CStr, c_char, c_int};

use cblas_sys::{CblasLower, CblasNoTrans, CblasRowMajor, CblasTrans, cblas_sgemm, cblas_ssyrk};

use crate::error::LapackError;

/// Sizes as BLAS counts them.
#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: c_int,
    cols: c_int,
    stride: c_int,
}

impl Shape {
    /// Row i of a matrix is `cols` values from i·stride on.
    ///
    /// # Panics
    /// If the last row ends behind `len` values.
    fn new(len: usize, rows: usize, cols: usize, stride: usize) -> Result<Self, LapackError> {
        let end = match rows {
            0 => 0,
            _ if cols == 0 => 0,
            _ => (rows - 1) * stride + cols,
        };
        assert!(
            cols <= stride && end <= len,
            "{rows} rows of {cols} values, one every {stride}, do not fit in {len} values"
        );
        let count = |size| c_int::try_from(size).map_err(|_| LapackError::TooLarge { size });
        Ok(Self {
            rows: count(rows)?,
            cols: count(cols)?,
            // BLAS wants a positive one even for nothing.
            stride: count(stride.max(1))?,
        })
    }
}

/// A matrix inside a row-major one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    values: &'a [f32],
    shape: Shape,
}

impl<'a> Rows<'a> {
    /// # Panics
    /// If the last row ends behind the values.
    pub(crate) fn new(
        values: &'a [f32],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, LapackError> {
        let shape = Shape::new(values.len(), rows, cols, stride)?;
        Ok(Self { values, shape })
    }
}

/// A matrix inside a row-major one, to be written.
#[derive(Debug)]
pub(crate) struct RowsMut<'a> {
    values: &'a mut [f32],
    shape: Shape,
}

impl<'a> RowsMut<'a> {
    /// # Panics
    /// If the last row ends behind the values.
    pub(crate) fn new(
        values: &'a mut [f32],
        rows: usize,
        cols: usize,
        stride: usize,
    ) -> Result<Self, LapackError> {
        let shape = Shape::new(values.len(), rows, cols, stride)?;
        Ok(Self { values, shape })
    }
}

/// H ← beta·H + alpha·XᵀX on the lower triangle.
///
/// # Panics
/// If the sizes do not match.
pub(crate) fn gram(beta: f32, h: RowsMut<'_>, alpha: f32, x: Rows<'_>) {
    let (of_h, of_x) = (h.shape, x.shape);
    assert_eq!(
        (of_h.rows, of_h.cols),
        (of_x.cols, of_x.cols),
        "h must be cols x cols"
    );
    // SAFETY: both shapes lie inside their slices (`Shape::new`), and their sizes match as ssyrk wants them:
    // X is k x n with n the order of H. H is borrowed mutably, so the two do not overlap.
    unsafe {
        cblas_ssyrk(
            CblasRowMajor,
            CblasLower,
            CblasTrans,
            of_h.cols,
            of_x.rows,
            alpha,
            x.values.as_ptr(),
            of_x.stride,
            beta,
            h.values.as_mut_ptr(),
            of_h.stride,
        );
    }
}

/// C ← C + alpha·A·B.
///
/// # Panics
/// If the sizes do not match.
pub(crate) fn add_product(c: RowsMut<'_>, alpha: f32, a: Rows<'_>, b: Rows<'_>) {
    let (of_c, of_a, of_b) = (c.shape, a.shape, b.shape);
    assert_eq!(of_a.cols, of_b.rows, "inner sizes must match");
    assert_eq!(
        (of_c.rows, of_c.cols),
        (of_a.rows, of_b.cols),
        "outer sizes must match"
    );
    // SAFETY: the shapes lie inside their slices (`Shape::new`), and their sizes match as sgemm wants them: A is
    // m x k, B k x n, C m x n. C is borrowed mutably, so it overlaps with neither.
    unsafe {
        cblas_sgemm(
            CblasRowMajor,
            CblasNoTrans,
            CblasNoTrans,
            of_c.rows,
            of_c.cols,
            of_a.cols,
            alpha,
            a.values.as_ptr(),
            of_a.stride,
            b.values.as_ptr(),
            of_b.stride,
            1.0,
            c.values.as_mut_ptr(),
            of_c.stride,
        );
    }
}

unsafe extern "C" {
    safe fn openblas_get_num_threads() -> c_int;
    safe fn openblas_get_corename() -> *const c_char;
}

/// Threads that OpenBLAS uses.
pub(crate) fn threads() -> c_int {
    openblas_get_num_threads()
}

/// The processor whose kernels OpenBLAS has chosen.
pub(crate) fn core() -> String {
    let name = openblas_get_corename();
    if name.is_null() {
        return "unknown processor".to_owned();
    }
    // SAFETY: it is not null, and OpenBLAS returns a string that is part of the library.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}
