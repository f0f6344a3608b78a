//! Magnitude and Wanda.

use sparsegpt::backend::Backend;
use sparsegpt::ndarray::Array2;
use sparsegpt::{LayerSettings, Method, Pattern, UniformGrid};

use super::layer::Layer;
use crate::check::{Cases, Subject, Verdict, ensure, equal};

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add(
        "solver/magnitude/prunes_the_smallest_and_keeps_the_rest",
        magnitude,
    );
    cases.add("solver/magnitude/needs_no_calibration", uncalibrated);
    cases.add("solver/wanda/prunes_the_least_salient_of_each_row", wanda);
    cases.add("solver/magnitude/rounds_to_nearest", rounds_to_nearest);
}

/// Fails unless kept weights are the dense ones and no pruned one is clearly more salient than a kept one of
/// the same set.
fn ensure_least_salient(
    layer: &Layer,
    solution: &sparsegpt::PrunedLayer,
    set_of: impl Fn(usize, usize) -> usize,
    saliency: impl Fn(usize, usize) -> f64,
) -> Verdict {
    let mut largest_pruned: Vec<f64> = Vec::new();
    let mut smallest_kept: Vec<f64> = Vec::new();
    for ((row, col), &kept) in solution.mask.indexed_iter() {
        let set = set_of(row, col);
        if largest_pruned.len() <= set {
            largest_pruned.resize(set + 1, f64::NEG_INFINITY);
            smallest_kept.resize(set + 1, f64::INFINITY);
        }
        let value = saliency(row, col);
        if kept {
            smallest_kept[set] = smallest_kept[set].min(value);
            ensure!(
                solution.weights[[row, col]] == layer.weights[[row, col]],
                "the kept weight ({row}, {col}) was changed"
            );
        } else {
            largest_pruned[set] = largest_pruned[set].max(value);
        }
    }
    for (set, (pruned, kept)) in largest_pruned.iter().zip(&smallest_kept).enumerate() {
        ensure!(
            *pruned <= kept * (1.0 + 1e-6),
            "set {set}: saliency {pruned:e} was pruned before {kept:e}"
        );
    }
    Ok(())
}

fn magnitude<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(12, 60, 500);
    let saliency = |row, col| f64::from(layer.weights[[row, col]]).abs();
    let solve = |pattern: &str| {
        let settings =
            LayerSettings::new(pattern.parse::<Pattern>()?).with_method(Method::Magnitude);
        layer.solve(&subject.solver, &settings)
    };
    ensure_least_salient(&layer, &solve("57%")?, |_, _| 0, saliency)?;
    ensure_least_salient(&layer, &solve("row:57%")?, |row, _| row, saliency)?;
    ensure_least_salient(
        &layer,
        &solve("2:4")?,
        |row, col| row * 15 + col / 4,
        saliency,
    )?;
    let pruned = solve("57%")?.report.pruned;
    ensure!(pruned == 57 * 720 / 100, "{pruned} pruned at 57 %");
    Ok(())
}

fn uncalibrated<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(12, 60, 501);
    let settings = LayerSettings::new(Pattern::unstructured(0.5)?).with_method(Method::Magnitude);
    let with = layer.solve(&subject.solver, &settings)?;
    let without = subject
        .solver
        .prune_uncalibrated(layer.weights.view(), &settings)?;
    equal(
        "magnitude without a Hessian",
        &without.weights,
        &with.weights,
    )?;
    ensure!(
        without.report.reconstruction_error.is_none(),
        "an error without a Hessian"
    );
    for method in [Method::SparseGpt, Method::Wanda] {
        let settings = settings.clone().with_method(method);
        let found = subject
            .solver
            .prune_uncalibrated(layer.weights.view(), &settings);
        ensure!(
            matches!(found, Err(sparsegpt::Error::Incompatible { .. })),
            "{method} without a Hessian must be refused"
        );
    }
    Ok(())
}

fn wanda<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(12, 60, 502);
    let saliency = |row, col| {
        f64::from(layer.weights[[row, col]]).abs() * f64::from(layer.hessian[[col, col]]).sqrt()
    };
    let solve = |pattern: &str| {
        let settings = LayerSettings::new(pattern.parse::<Pattern>()?).with_method(Method::Wanda);
        layer.solve(&subject.solver, &settings)
    };
    // A sparsity of the layer is one of each row.
    for pattern in ["50%", "row:50%"] {
        let solution = solve(pattern)?;
        ensure_least_salient(&layer, &solution, |row, _| row, saliency)?;
        for row in solution.mask.rows() {
            let pruned = row.iter().filter(|&&kept| !kept).count();
            ensure!(
                pruned == 30,
                "{pattern}: {pruned} pruned in a row, expected 30"
            );
        }
    }
    ensure_least_salient(
        &layer,
        &solve("2:4")?,
        |row, col| row * 15 + col / 4,
        saliency,
    )
}

fn rounds_to_nearest<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(12, 60, 503);
    let grid = UniformGrid::new(4)?;
    let settings = LayerSettings::new(Pattern::unstructured(0.5)?)
        .with_method(Method::Magnitude)
        .with_quantizer(grid.clone());
    let solution = layer.solve(&subject.solver, &settings)?;
    let fit = grid.fit(layer.weights.view(), false);
    let nearest = Array2::from_shape_fn(layer.weights.dim(), |(row, col)| {
        if !solution.mask[[row, col]] {
            return 0.0;
        }
        let (scale, zero) = (fit.scale[row], fit.zero[row]);
        ((layer.weights[[row, col]] / scale).round_ties_even() + zero).clamp(0.0, 15.0) * scale
            - zero * scale
    });
    for ((at, found), expected) in solution.weights.indexed_iter().zip(&nearest) {
        ensure!(
            (found - expected).abs() < 1e-5,
            "{at:?}: {found}, the nearest level is {expected}"
        );
    }
    Ok(())
}
