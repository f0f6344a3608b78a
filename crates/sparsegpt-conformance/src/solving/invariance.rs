//! What must not change a result.

use sparsegpt::backend::Backend;
use sparsegpt::ndarray::Axis;
use sparsegpt::{LayerPruner, LayerSettings, LayerTask, Pattern, UniformGrid};

use super::layer::Layer;
use crate::check::{Cases, Subject, Verdict, ensure, same_bits};

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("solver/invariance/order_of_rows", row_order);
    cases.add(
        "solver/invariance/block_size_of_a_pruning_sweep",
        pruning_block_size,
    );
    cases.add(
        "solver/invariance/block_size_of_a_rounding_sweep",
        rounding_block_size,
    );
    cases.add("solver/invariance/scale_of_the_hessian", hessian_scale);
    cases.add("solver/invariance/scale_of_the_weights", weight_scale);
    cases.add(
        "solver/invariance/strict_upper_triangle_of_the_hessian",
        upper_triangle,
    );
    cases.add("solver/invariance/same_bits_twice", same_bits_twice);
    cases.add("solver/invariance/erased_pruner", erased);
}

fn settings() -> Verdict<[LayerSettings; 5]> {
    Ok([
        LayerSettings::new(Pattern::unstructured(0.5)?),
        LayerSettings::new(Pattern::per_row(0.6)?).with_mask_block_size(32),
        LayerSettings::new(Pattern::n_of_m(2, 4)?),
        LayerSettings::new(Pattern::n_of_m(2, 4)?).with_act_order(true),
        LayerSettings::new(Pattern::unstructured(0.5)?).with_quantizer(UniformGrid::new(4)?),
    ])
}

fn row_order<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(37, 100, 300);
    let order: Vec<usize> = (0..37).map(|row| (row * 10 + 3) % 37).collect();
    let permuted = Layer {
        weights: layer.weights.select(Axis(0), &order),
        hessian: layer.hessian.clone(),
    };
    for settings in settings()? {
        let expected = layer
            .solve(&subject.solver, &settings)?
            .weights
            .select(Axis(0), &order);
        let found = permuted.solve(&subject.solver, &settings)?.weights;
        permuted.ensure_agreement("rows in another order", &found, &expected)?;
    }
    Ok(())
}

/// With the mask block fixed, the block size only says when updates are done.
fn pruning_block_size<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(16, 200, 301);
    for pattern in ["50%", "row:50%", "2:4"] {
        let settings = LayerSettings::new(pattern.parse::<Pattern>()?).with_mask_block_size(8);
        let expected = layer.solve(&subject.solver, &settings)?.weights;
        for block in [1, 8, 24, 100, 127, 200, 300] {
            let settings = settings.clone().with_block_size(block);
            let found = layer.solve(&subject.solver, &settings)?.weights;
            layer.ensure_agreement(&format!("{pattern}, block size {block}"), &found, &expected)?;
        }
    }
    Ok(())
}

fn rounding_block_size<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(16, 200, 302);
    for (name, grid) in [
        ("per row", UniformGrid::new(4)?),
        ("groups of 32", UniformGrid::new(3)?.with_groups(32)),
        (
            "static groups of 50",
            UniformGrid::new(4)?.with_static_groups(50),
        ),
    ] {
        let settings = LayerSettings::quantize_only(grid);
        let expected = layer.solve(&subject.solver, &settings)?.weights;
        for block in [1, 7, 64, 127, 129, 200, 300] {
            let settings = settings.clone().with_block_size(block);
            let found = layer.solve(&subject.solver, &settings)?.weights;
            layer.ensure_agreement(&format!("{name}, block size {block}"), &found, &expected)?;
        }
    }
    Ok(())
}

fn hessian_scale<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::with_inputs(16, 120, 300, &[5, 77], 303);
    for settings in settings()? {
        let expected = layer.solve(&subject.solver, &settings)?.weights;
        for scale in [1e-3, 1e3, 1e-9, 1e9] {
            let scaled = Layer {
                weights: layer.weights.clone(),
                hessian: layer.hessian.mapv(|h| h * scale),
            };
            let found = scaled.solve(&subject.solver, &settings)?.weights;
            layer.ensure_agreement(&format!("Hessian times {scale}"), &found, &expected)?;
        }
    }
    Ok(())
}

fn weight_scale<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(16, 120, 304);
    for settings in settings()? {
        let expected = layer.solve(&subject.solver, &settings)?.weights;
        for scale in [1e-4, 1e4] {
            let scaled = Layer {
                weights: layer.weights.mapv(|w| w * scale),
                hessian: layer.hessian.clone(),
            };
            let found = scaled.solve(&subject.solver, &settings)?.weights;
            let expected = expected.mapv(|w| w * scale);
            scaled.ensure_agreement(&format!("weights times {scale}"), &found, &expected)?;
        }
    }
    Ok(())
}

fn upper_triangle<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(8, 72, 305);
    let mut lower = layer.hessian.clone();
    for ((i, j), entry) in lower.indexed_iter_mut() {
        if i < j {
            *entry = f32::NAN;
        }
    }
    for settings in settings()? {
        let solver = &subject.solver;
        let expected = layer.solve(solver, &settings)?.weights;
        let mut hessian = solver.hessian_from(lower.view())?;
        let found = solver
            .prune(layer.weights.view(), &mut hessian, &settings)?
            .weights;
        same_bits("weights from the lower triangle alone", &found, &expected)?;
    }
    Ok(())
}

fn same_bits_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(33, 148, 306);
    let other = sparsegpt::Solver::new((subject.make)()?);
    for settings in settings()? {
        let first = layer.solve(&subject.solver, &settings)?;
        for solver in [&subject.solver, &other] {
            let again = layer.solve(solver, &settings)?;
            same_bits("the same layer again", &again.weights, &first.weights)?;
            ensure!(
                again.report.solver_loss == first.report.solver_loss
                    && again.report.reconstruction_error == first.report.reconstruction_error,
                "the same layer again has another loss"
            );
        }
    }
    Ok(())
}

/// Through `dyn LayerPruner`, as model drivers call it.
fn erased<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(10, 64, 307);
    let pruner: &dyn LayerPruner = &subject.solver;
    for settings in settings()? {
        let expected = layer.solve(&subject.solver, &settings)?.weights;
        let mut statistics = pruner.statistics_from("", layer.hessian.view())?;
        let task = LayerTask {
            name: "erased",
            weights: layer.weights.view(),
            settings: &settings,
        };
        let mut found = Vec::new();
        pruner.prune_layers(Some(&mut *statistics), &[task], &mut |index, solution| {
            found.push((index, solution));
            Ok(())
        })?;
        let [(0, solution)] = found.as_slice() else {
            return Err(crate::check::Failure::Wrong(format!(
                "{} results for one layer",
                found.len()
            )));
        };
        same_bits(
            "weights through the erased pruner",
            &solution.weights,
            &expected,
        )?;
    }
    Ok(())
}
