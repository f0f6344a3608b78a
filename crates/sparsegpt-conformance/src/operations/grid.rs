//! The fit of uniform grids.

use std::ops::Range;

use sparsegpt::UniformGrid;
use sparsegpt::backend::{Backend, FitGrid, GridKind, host};
use sparsegpt::ndarray::{Array2, s};

use crate::check::{Cases, Verdict, close, ensure};
use crate::random::Random;
use crate::tolerance::{GRID, GRID_ERROR};

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    for (name, mse, per_tensor) in [
        ("per_row", false, false),
        ("per_tensor", false, true),
        ("range_search_per_row", true, false),
        ("range_search_per_tensor", true, true),
    ] {
        cases.add(format!("operations/fit_grid/{name}"), move |subject| {
            each_grid(subject.backend(), mse, per_tensor)
        });
    }
}

/// Rows of every sign, a row of zeros, one with an outlier, tiny and huge ones.
fn weights() -> Array2<f32> {
    let mut weights = Random::new(40).matrix(37, 50);
    weights.row_mut(0).fill(0.0);
    weights.row_mut(1).mapv_inplace(|w| w.abs() + 0.1);
    weights.row_mut(2).mapv_inplace(|w| -w.abs() - 0.1);
    weights.row_mut(3).mapv_inplace(|w| w * 1e-6);
    weights.row_mut(4).mapv_inplace(|w| w * 1e6);
    weights[[5, 9]] = 40.0;
    weights
}

fn each_grid<B: Backend>(backend: &B, mse: bool, per_tensor: bool) -> Verdict {
    let weights = weights();
    for bits in 2..=8 {
        for symmetric in [false, true] {
            let grid = UniformGrid::new(bits)?
                .with_symmetric(symmetric)
                .with_mse(mse);
            for (columns, group) in [(0..50, 0), (7..8, 1), (12..43, 2)] {
                check(backend, &weights, &grid, columns, per_tensor, group)?;
            }
        }
    }
    let one_row = weights.slice(s![5..6, ..]).to_owned();
    check(
        backend,
        &one_row,
        &UniformGrid::new(3)?.with_mse(mse),
        0..50,
        per_tensor,
        1,
    )
}

fn check<B: Backend>(
    backend: &B,
    weights: &Array2<f32>,
    grid: &UniformGrid,
    columns: Range<usize>,
    per_tensor: bool,
    group: usize,
) -> Verdict {
    let rows = weights.nrows();
    let before = Array2::from_elem((rows, 3), 11.0);
    let device = backend.upload(weights.view())?;
    let (mut scale, mut zero) = (
        backend.upload(before.view())?,
        backend.upload(before.view())?,
    );
    backend.fit_grid(FitGrid::new(
        &device,
        columns.clone(),
        grid,
        per_tensor,
        (&mut scale, &mut zero),
        group,
    ))?;
    let (scale, zero) = (backend.download(&scale)?, backend.download(&zero)?);
    for other in (0..3).filter(|&other| other != group) {
        let untouched = scale
            .column(other)
            .iter()
            .chain(zero.column(other))
            .all(|&value| value == 11.0);
        ensure!(untouched, "fitting group {group} wrote to group {other}");
    }
    let part = weights.slice(s![.., columns.clone()]);
    let expected = grid.fit(part, per_tensor);
    let kind = GridKind::Affine {
        max_code: grid.max_code(),
    };
    let error = |row: usize, scale: f32, zero: f32| -> f64 {
        let rows = if per_tensor {
            0..part.nrows()
        } else {
            row..row + 1
        };
        part.slice(s![rows, ..])
            .iter()
            .map(|&w| {
                f64::from(host::round_to_grid(kind, w, scale, zero) - w)
                    .abs()
                    .powf(2.4)
            })
            .sum()
    };
    for row in 0..rows {
        let what = format!(
            "row {row}, columns {columns:?}, {} bit{}{}",
            grid.bits(),
            if grid.is_symmetric() {
                " symmetric"
            } else {
                ""
            },
            if per_tensor { ", per tensor" } else { "" }
        );
        let (found_scale, found_zero) = (scale[[row, group]], zero[[row, group]]);
        let (scale, zero) = (expected.scale[row], expected.zero[row]);
        ensure!(
            found_scale > 0.0 && found_scale.is_finite(),
            "{what}: scale {found_scale}"
        );
        ensure!(
            found_zero.fract() == 0.0 && (0.0..=grid.max_code() as f32).contains(&found_zero),
            "{what}: zero point {found_zero} is no code"
        );
        if grid.is_mse() {
            let (found, best) = (error(row, found_scale, found_zero), error(row, scale, zero));
            ensure!(
                found <= best + GRID_ERROR.bound(best),
                "{what}: Σ|error|^2.4 is {found:e}, the host's {best:e} ({})",
                GRID_ERROR.reason
            );
        } else {
            let (found, scale) = (f64::from(found_scale), f64::from(scale));
            close(format_args!("{what}: scale"), found, scale, scale, &GRID)?;
            // −low/scale may lie on the border between two codes.
            ensure!(
                (found_zero - zero).abs() < 0.5 || near_border(part.row(row).iter(), scale),
                "{what}: zero point {found_zero}, expected {zero}"
            );
        }
    }
    if per_tensor {
        let first = (scale[[0, group]], zero[[0, group]]);
        let same = scale
            .column(group)
            .iter()
            .zip(zero.column(group))
            .all(|(&s, &z)| (s, z) == first);
        ensure!(
            same,
            "one grid for the whole matrix must be the same in every row"
        );
    }
    Ok(())
}

/// Whether −low/scale lies so near the border between two codes that rounding decides.
fn near_border<'a>(row: impl Iterator<Item = &'a f32>, scale: f64) -> bool {
    let low = row.fold(0.0_f32, |low, &w| low.min(w));
    let code = -f64::from(low) / scale;
    (code.fract() - 0.5).abs() <= GRID.bound(code)
}
