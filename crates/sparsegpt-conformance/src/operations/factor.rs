//! The factor of the inverse Hessian.

use sparsegpt::backend::{Backend, Precision};
use sparsegpt::error::{BackendError, BackendErrorKind};
use sparsegpt::ndarray::{Array2, s};

use crate::check::{Cases, Failure, Verdict, close, ensure, same_bits};
use crate::random::Random;
use crate::tolerance::{FACTOR_F32, FACTOR_F64};
use crate::truth;

const SIZES: [usize; 12] = [1, 2, 3, 5, 16, 33, 64, 100, 127, 128, 129, 200];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    for precision in [Precision::F32, Precision::F64] {
        let mut add = |name: &str, body: fn(&B, Precision) -> Verdict| {
            cases.add(
                format!("operations/inverse_factor/{precision}/{name}"),
                move |subject| body(subject.backend(), precision),
            );
        };
        add("is_the_inverse", is_the_inverse);
        add("in_blocks", in_blocks);
        add("leaves_the_lower_triangle", leaves_the_lower_triangle);
        add("names_the_failing_column", names_the_failing_column);
        add("refuses_what_is_not_finite", refuses_what_is_not_finite);
        add("can_be_tried_again", can_be_tried_again);
        add("same_bits_twice", same_bits_twice);
    }
    cases.add(
        "operations/inverse_factor/f64/keeps_digits_that_f32_has_not",
        |subject| keeps_digits_that_f32_has_not(subject.backend()),
    );
}

/// A positive definite matrix: its strict lower triangle, with garbage everywhere else, and its diagonal.
pub(super) fn definite(random: &mut Random, cols: usize) -> (Array2<f32>, Vec<f32>) {
    let x = truth::widen(random.activations(2 * cols + 3, cols).view());
    let h = x.t().dot(&x) / x.nrows() as f64;
    let damping = 0.01 * h.diag().mean().unwrap_or(1.0);
    let diagonal = h
        .diag()
        .iter()
        .map(|&entry| (entry + damping) as f32)
        .collect();
    let matrix = Array2::from_shape_fn((cols, cols), |(i, j)| {
        if i > j {
            h[[i, j]] as f32
        } else {
            random.garbage()
        }
    });
    (matrix, diagonal)
}

/// Runs the operation: the matrix afterwards, and how it ended. A precision that the device does not have
/// skips the case, which only f64 may.
fn factor<B: Backend>(
    backend: &B,
    matrix: &Array2<f32>,
    diagonal: &[f32],
    precision: Precision,
) -> Verdict<(Array2<f32>, Result<(), BackendErrorKind>)> {
    factor_in_blocks(backend, matrix, diagonal, &[diagonal.len()], precision)
}

/// The same with the ends of the diagonal blocks.
fn factor_in_blocks<B: Backend>(
    backend: &B,
    matrix: &Array2<f32>,
    diagonal: &[f32],
    blocks: &[usize],
    precision: Precision,
) -> Verdict<(Array2<f32>, Result<(), BackendErrorKind>)> {
    let mut device = backend.upload(matrix.view())?;
    let ended = match backend.inverse_factor(&mut device, diagonal, blocks, precision) {
        Ok(()) => Ok(()),
        Err(error) => match error.kind() {
            BackendErrorKind::Unsupported if precision == Precision::F64 => {
                return Err(Failure::Skipped(
                    "the device factors in f32 only".to_owned(),
                ));
            }
            kind @ BackendErrorKind::NotPositiveDefinite { .. } => Err(kind),
            _ => return Err(error.into()),
        },
    };
    Ok((backend.download(&device)?, ended))
}

fn ensure_lower_untouched(found: &Array2<f32>, before: &Array2<f32>) -> Verdict {
    for ((i, j), value) in found.indexed_iter() {
        ensure!(
            i <= j || value.to_bits() == before[[i, j]].to_bits(),
            "the strict lower triangle must stay as it was: ({i}, {j}) was {}, is {value}",
            before[[i, j]]
        );
    }
    Ok(())
}

fn is_the_inverse<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    let tolerance = match precision {
        Precision::F32 => &FACTOR_F32,
        _ => &FACTOR_F64,
    };
    let mut random = Random::new(20);
    for cols in SIZES {
        let (matrix, diagonal) = definite(&mut random, cols);
        let (found, ended) = factor(backend, &matrix, &diagonal, precision)?;
        ensure!(
            ended.is_ok(),
            "{cols} columns: {ended:?} for a positive definite matrix"
        );
        let r = Array2::from_shape_fn((cols, cols), |(i, j)| {
            if i <= j {
                f64::from(found[[i, j]])
            } else {
                0.0
            }
        });
        ensure!(
            r.diag()
                .iter()
                .all(|&entry| entry > 0.0 && entry.is_finite()),
            "{cols} columns: the diagonal of R must be positive: {:?}",
            r.diag()
        );
        let h = truth::symmetric(matrix.view(), &diagonal);
        let residual = r.t().dot(&r).dot(&h) - Array2::<f64>::eye(cols);
        let sizes = r.mapv(f64::abs);
        let magnitude = sizes
            .t()
            .dot(&sizes)
            .dot(&h.mapv(f64::abs))
            .iter()
            .copied()
            .fold(1.0, f64::max);
        let largest = residual
            .iter()
            .fold(0.0_f64, |largest, entry| largest.max(entry.abs()));
        ensure!(
            largest <= tolerance.bound(magnitude),
            "{cols} columns, {precision}: RᵀRH − I has an entry of {largest:.3e}, allowed is {:.3e} ({})",
            tolerance.bound(magnitude),
            tolerance.reason
        );
    }
    Ok(())
}

/// Ends of blocks of the same width, or of widths that alternate between it and 1.
fn block_ends(cols: usize, width: usize, uneven: bool) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut end = 0;
    while end < cols {
        let next = if uneven && ends.len() % 2 == 0 {
            1
        } else {
            width
        };
        end = (end + next).min(cols);
        ends.push(end);
    }
    ends
}

/// UUᵀ is H, with U above the diagonal blocks and U_BB the inverse of what stands in them.
fn in_blocks<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    let tolerance = match precision {
        Precision::F32 => &FACTOR_F32,
        _ => &FACTOR_F64,
    };
    let mut random = Random::new(25);
    for cols in [1, 2, 5, 33, 100, 129, 200, 300] {
        let (matrix, diagonal) = definite(&mut random, cols);
        let h = truth::symmetric(matrix.view(), &diagonal);
        for (width, uneven) in [
            (1, false),
            (3, true),
            (32, false),
            (100, true),
            (128, false),
        ] {
            let ends = block_ends(cols, width, uneven);
            let (found, ended) = factor_in_blocks(backend, &matrix, &diagonal, &ends, precision)?;
            let what = format!("{cols} columns in blocks that end at {ends:?}");
            ensure!(ended.is_ok(), "{what}: {ended:?}");
            ensure_lower_untouched(&found, &matrix)?;
            let mut u = Array2::from_shape_fn((cols, cols), |(i, j)| {
                if i <= j {
                    f64::from(found[[i, j]])
                } else {
                    0.0
                }
            });
            let mut growth = 1.0_f64;
            let mut first = 0;
            for &end in &ends {
                let r = u.slice(s![first..end, first..end]).to_owned();
                let block = truth::inverse_of_upper(&r);
                let products = r.mapv(f64::abs).dot(&block.mapv(f64::abs));
                growth = products.iter().fold(growth, |a, &b| a.max(b));
                u.slice_mut(s![first..end, first..end]).assign(&block);
                first = end;
            }
            let residual = u.dot(&u.t()) - &h;
            let sizes = u.mapv(f64::abs);
            let magnitude = sizes.dot(&sizes.t()).iter().fold(0.0_f64, |a, &b| a.max(b)) * growth;
            let largest = residual.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            ensure!(
                largest <= tolerance.bound(magnitude),
                "{what}, {precision}: UUᵀ − H has an entry of {largest:.3e}, allowed is {:.3e} ({})",
                tolerance.bound(magnitude),
                tolerance.reason
            );
        }
    }
    Ok(())
}

/// Inputs in nearly equal pairs: what the other of a pair leaves of a pivot is in the last digits of f32.
fn keeps_digits_that_f32_has_not<B: Backend>(backend: &B) -> Verdict {
    let mut random = Random::new(24);
    for cols in [2, 10, 64, 130] {
        let mut x = truth::widen(random.activations(3 * cols, cols).view());
        for col in (1..cols).step_by(2) {
            for mut token in x.rows_mut() {
                token[col] = token[col - 1] + 0.003 * f64::from(random.bell());
            }
        }
        let h = x.t().dot(&x).mapv(|entry| entry as f32);
        let diagonal = h.diag().to_vec();
        let (found, ended) = factor(backend, &h, &diagonal, Precision::F64)?;
        ensure!(
            ended.is_ok(),
            "{cols} columns: {ended:?} for a positive definite matrix"
        );
        let expected = truth::inverse_factor(&truth::symmetric(h.view(), &diagonal))
            .ok_or_else(|| Failure::Wrong("the test matrix is not definite".to_owned()))?;
        for i in 0..cols {
            let largest = expected.row(i).iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            for j in i..cols {
                let (found, expected) = (f64::from(found[[i, j]]), expected[[i, j]]);
                close(
                    format_args!("R[{i}, {j}] of {cols} columns"),
                    found,
                    expected,
                    largest,
                    &FACTOR_F64,
                )?;
            }
        }
    }
    Ok(())
}

fn leaves_the_lower_triangle<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    let mut random = Random::new(21);
    for cols in SIZES {
        let (matrix, mut diagonal) = definite(&mut random, cols);
        let (found, _) = factor(backend, &matrix, &diagonal, precision)?;
        ensure_lower_untouched(&found, &matrix)?;
        for failing in [0, cols / 2, cols - 1] {
            diagonal[failing] = -1.0;
            let (found, ended) = factor(backend, &matrix, &diagonal, precision)?;
            ensure!(ended.is_err(), "a negative diagonal entry must be refused");
            ensure_lower_untouched(&found, &matrix)?;
        }
    }
    Ok(())
}

fn ensure_fails_at(column: usize, ended: &Result<(), BackendErrorKind>, what: &str) -> Verdict {
    let expected = Err(BackendErrorKind::NotPositiveDefinite { column });
    ensure!(
        *ended == expected,
        "{what}: expected {expected:?}, found {ended:?}"
    );
    Ok(())
}

fn names_the_failing_column<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    for cols in [1, 2, 5, 64, 129, 200] {
        for failing in [0, cols / 3, cols - 1] {
            let mut diagonal = vec![1.0; cols];
            let identity = Array2::zeros((cols, cols));
            for value in [0.0, -2.0] {
                diagonal[failing] = value;
                let (_, ended) = factor(backend, &identity, &diagonal, precision)?;
                ensure_fails_at(
                    failing,
                    &ended,
                    &format!("diagonal entry {value} of {cols} columns"),
                )?;
            }
            // The last column explains more of this one than there is: 1 − 2² < 0.
            if failing + 1 < cols {
                let mut matrix = identity;
                matrix[[cols - 1, failing]] = 2.0;
                let (_, ended) = factor(backend, &matrix, &vec![1.0; cols], precision)?;
                ensure_fails_at(
                    failing,
                    &ended,
                    &format!("an indefinite matrix of {cols} columns"),
                )?;
            }
        }
    }
    Ok(())
}

fn refuses_what_is_not_finite<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    for cols in [1, 5, 129] {
        for failing in [0, cols / 2, cols - 1] {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut diagonal = vec![1.0; cols];
                diagonal[failing] = value;
                let identity = Array2::zeros((cols, cols));
                let (found, ended) = factor(backend, &identity, &diagonal, precision)?;
                ensure_fails_at(
                    failing,
                    &ended,
                    &format!("diagonal entry {value} of {cols} columns"),
                )?;
                ensure_lower_untouched(&found, &identity)?;
                if failing + 1 < cols {
                    let mut matrix = identity;
                    matrix[[cols - 1, failing]] = value;
                    let (found, ended) = factor(backend, &matrix, &vec![1.0; cols], precision)?;
                    ensure_fails_at(failing, &ended, &format!("entry {value} of {cols} columns"))?;
                    ensure_lower_untouched(&found, &matrix)?;
                }
            }
        }
    }
    Ok(())
}

/// What the solver does: after a failure it comes back with another diagonal, in the same matrix.
fn can_be_tried_again<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    let mut random = Random::new(22);
    for cols in [1, 17, 129] {
        let (matrix, diagonal) = definite(&mut random, cols);
        let (fresh, _) = factor(backend, &matrix, &diagonal, precision)?;
        let mut device = backend.upload(matrix.view())?;
        let mut spoilt = diagonal.clone();
        spoilt[cols / 2] = -1.0;
        for _ in 0..2 {
            let failed = backend.inverse_factor(&mut device, &spoilt, &[cols], precision);
            ensure!(failed.is_err(), "a negative diagonal entry must be refused");
            backend.inverse_factor(&mut device, &diagonal, &[cols], precision)?;
            let again = backend.download(&device)?;
            for ((i, j), value) in again.indexed_iter() {
                ensure!(
                    value.to_bits() == fresh[[i, j]].to_bits() || i > j,
                    "{cols} columns: R[{i}, {j}] is {value} on a second attempt, {} on a first",
                    fresh[[i, j]]
                );
            }
        }
    }
    Ok(())
}

fn same_bits_twice<B: Backend>(backend: &B, precision: Precision) -> Verdict {
    let (matrix, diagonal) = definite(&mut Random::new(23), 200);
    let (first, _) = factor(backend, &matrix, &diagonal, precision)?;
    let (again, _) = factor(backend, &matrix, &diagonal, precision)?;
    same_bits("the same factorization again", &again, &first)
}
