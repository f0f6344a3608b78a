//! What a case is, and how it says what is wrong.

use std::fmt;

use sparsegpt::Solver;
use sparsegpt::backend::Backend;
use sparsegpt::ndarray::Array2;

use crate::tolerance::Tolerance;

/// Why a case did not pass.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The backend did something wrong.
    Wrong(String),
    /// The case could not be run here, and why.
    Skipped(String),
}

/// Any error that a case does not expect is a failure. (`Failure` is no `Error` itself, as this needs.)
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = format!("unexpected error: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::Wrong(text)
    }
}

/// The result of a case.
pub(crate) type Verdict<T = ()> = Result<T, Failure>;

/// Fails the case with a message unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        // Negated as a whole: a comparison with NaN must fail.
        let holds: bool = $condition;
        if !holds {
            return Err($crate::check::Failure::Wrong(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// The backend under test.
pub(crate) struct Subject<B: Backend> {
    /// A solver on it.
    pub(crate) solver: Solver<B>,
    /// Makes another value of it.
    pub(crate) make: Constructor<B>,
}

/// Makes a value of a backend.
pub(crate) type Constructor<B> = Box<dyn Fn() -> Result<B, <B as Backend>::Error> + Send + Sync>;

impl<B: Backend> Subject<B> {
    pub(crate) fn backend(&self) -> &B {
        self.solver.backend()
    }
}

type Body<B> = Box<dyn Fn(&Subject<B>) -> Verdict + Send + Sync>;

/// A named check.
pub(crate) struct Case<B: Backend> {
    pub(crate) name: String,
    body: Body<B>,
}

impl<B: Backend> Case<B> {
    /// Runs the case; a panic is a failure.
    pub(crate) fn run(&self, subject: &Subject<B>) -> Verdict {
        let run = std::panic::AssertUnwindSafe(|| (self.body)(subject));
        std::panic::catch_unwind(run).unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("without a message");
            Err(Failure::Wrong(format!("panic: {message}")))
        })
    }
}

/// The list that the modules of the suite add their cases to.
pub(crate) struct Cases<B: Backend>(pub(crate) Vec<Case<B>>);

impl<B: Backend> Cases<B> {
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        body: impl Fn(&Subject<B>) -> Verdict + Send + Sync + 'static,
    ) {
        self.0.push(Case {
            name: name.into(),
            body: Box::new(body),
        });
    }
}

/// Fails unless `found` is `expected` to a tolerance of `magnitude`, the size of the terms that were added up.
pub(crate) fn close(
    what: impl fmt::Display,
    found: f64,
    expected: f64,
    magnitude: f64,
    tolerance: &Tolerance,
) -> Verdict {
    let bound = tolerance.bound(magnitude);
    let difference = (found - expected).abs();
    ensure!(
        difference <= bound,
        "{what}: found {found:e}, expected {expected:e}; they differ by {difference:.3e}, allowed is \
         {bound:.3e} ({}: {})",
        tolerance.operation,
        tolerance.reason
    );
    Ok(())
}

/// Fails unless two matrices have the same bits.
pub(crate) fn same_bits(
    what: impl fmt::Display,
    found: &Array2<f32>,
    expected: &Array2<f32>,
) -> Verdict {
    let alike = |found: &f32, expected: &f32| found.to_bits() == expected.to_bits();
    all_alike(what, "expected exactly", found, expected, alike)
}

/// Fails unless two matrices are equal, 0 and −0 being the same.
pub(crate) fn equal<T: PartialEq + fmt::Debug>(
    what: impl fmt::Display,
    found: &Array2<T>,
    expected: &Array2<T>,
) -> Verdict {
    all_alike(what, "expected", found, expected, T::eq)
}

/// Fails unless two matrices have the same shape and every pair of entries is `alike`; `wanted` says before the entry
/// what was asked of it.
fn all_alike<T: fmt::Debug>(
    what: impl fmt::Display,
    wanted: &str,
    found: &Array2<T>,
    expected: &Array2<T>,
    alike: impl Fn(&T, &T) -> bool,
) -> Verdict {
    ensure!(
        found.dim() == expected.dim(),
        "{what}: shape {:?}, expected {:?}",
        found.dim(),
        expected.dim()
    );
    for ((at, found), expected) in found.indexed_iter().zip(expected) {
        ensure!(
            alike(found, expected),
            "{what}: found {found:?} at {at:?}, {wanted} {expected:?}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_of_zero_is_a_bit_and_no_difference() {
        let row = |value: f32| Array2::from_elem((1, 2), value);
        assert!(equal("zeros", &row(0.0), &row(-0.0)).is_ok());
        assert!(same_bits("zeros", &row(0.0), &row(-0.0)).is_err());
        assert!(same_bits("ones", &row(1.0), &row(1.0)).is_ok());
        assert!(equal("ones", &row(1.0), &row(2.0)).is_err());
        // NaN is no number's equal, and has bits.
        assert!(equal("NaN", &row(f32::NAN), &row(f32::NAN)).is_err());
        assert!(same_bits("NaN", &row(f32::NAN), &row(f32::NAN)).is_ok());
        let tall = Array2::from_elem((2, 1), 1.0);
        assert!(equal("shapes", &row(1.0), &tall).is_err());
        assert!(same_bits("shapes", &row(1.0), &tall).is_err());
    }
}
