//! Rounding, alone and together with pruning.

use std::sync::Arc;

use sparsegpt::backend::Backend;
use sparsegpt::ndarray::{Array1, ArrayView2};
use sparsegpt::quant::{Granularity, Grid, GridLevels, QuantizedLayer, Quantizer};
use sparsegpt::{LayerSettings, Pattern, PrunedLayer, UniformGrid};

use super::layer::Layer;
use crate::check::{Cases, Failure, Subject, Verdict, ensure, equal};

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("solver/quantization/every_width_and_symmetry", every_width);
    cases.add("solver/quantization/groups", groups);
    cases.add(
        "solver/quantization/static_groups_are_those_of_the_dense_weights",
        static_groups,
    );
    cases.add("solver/quantization/per_tensor", per_tensor);
    cases.add("solver/quantization/joint_keeps_counts_and_zeros", joint);
    cases.add("solver/quantization/act_order", act_order);
    cases.add("solver/quantization/code_book", code_book);
    cases.add(
        "solver/quantization/beats_rounding_to_nearest",
        beats_rounding,
    );
}

/// The codes and grids must give the weights again, bit for bit.
fn ensure_codes<'a>(
    layer: &Layer,
    solution: &'a PrunedLayer,
    groups: usize,
) -> Verdict<&'a QuantizedLayer> {
    let Some(quantized) = &solution.quantized else {
        return Err(Failure::Wrong("no quantized form in the result".to_owned()));
    };
    equal(
        "weights from codes and grids",
        &quantized.dequantize(),
        &solution.weights,
    )?;
    ensure!(
        quantized.scale.dim() == (layer.rows(), groups)
            && quantized.zero.dim() == (layer.rows(), groups),
        "scales are {:?}, expected {} x {groups}",
        quantized.scale.dim(),
        layer.rows()
    );
    ensure!(
        quantized.group_of_column.len() == layer.cols()
            && quantized
                .group_of_column
                .iter()
                .all(|&group| group < groups),
        "groups of columns: {:?}",
        quantized.group_of_column
    );
    Ok(quantized)
}

fn every_width<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(9, 70, 700);
    for bits in 2..=8 {
        let mut errors = Vec::new();
        for (symmetric, mse) in [(false, false), (true, false), (false, true), (true, true)] {
            let grid = UniformGrid::new(bits)?
                .with_symmetric(symmetric)
                .with_mse(mse);
            let solution =
                layer.solve(&subject.solver, &LayerSettings::quantize_only(grid.clone()))?;
            let codes = &ensure_codes(&layer, &solution, 1)?.codes;
            ensure!(
                codes.iter().all(|&code| u32::from(code) <= grid.max_code()),
                "{bits} bit: a code beyond {}",
                grid.max_code()
            );
            ensure!(
                solution.report.pruned == 0,
                "quantization alone must not prune"
            );
            errors.push(solution.report.relative_error.unwrap_or(f64::INFINITY));
        }
        // 4^-bits up to a generous factor.
        let limit = 6.0 * 0.25_f64.powi(bits as i32);
        ensure!(
            errors.iter().all(|&error| error < limit),
            "{bits} bit: relative errors {errors:?}"
        );
    }
    Ok(())
}

fn groups<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(9, 150, 701);
    for size in [1, 16, 60, 128, 149, 150, 1000] {
        for block in [128, 10, 300] {
            for fixed in [false, true] {
                let granularity = Granularity::Group { size, fixed };
                let grid = UniformGrid::new(4)?.with_granularity(granularity);
                let settings = LayerSettings::quantize_only(grid).with_block_size(block);
                let solution = layer.solve(&subject.solver, &settings)?;
                let quantized = ensure_codes(&layer, &solution, 150_usize.div_ceil(size))?;
                let mut groups = quantized.group_of_column.iter().enumerate();
                let in_order = groups.all(|(column, &group)| group == column / size);
                ensure!(in_order, "groups of {size}: a column is in the wrong group");
            }
        }
    }
    Ok(())
}

fn static_groups<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(9, 100, 702);
    let grid = UniformGrid::new(4)?.with_static_groups(30);
    for act_order in [false, true] {
        let settings = LayerSettings::quantize_only(grid.clone()).with_act_order(act_order);
        let solution = layer.solve(&subject.solver, &settings)?;
        let quantized = ensure_codes(&layer, &solution, 4)?;
        for (group, start) in (0..100).step_by(30).enumerate() {
            let columns: Vec<usize> = (start..(start + 30).min(100)).collect();
            let dense = layer.weights.select(sparsegpt::ndarray::Axis(1), &columns);
            let expected = UniformGrid::fit(&grid, dense.view(), false);
            ensure!(
                quantized.scale.column(group) == expected.scale
                    && quantized.zero.column(group) == expected.zero,
                "static group {group} (act-order {act_order}) is not that of the dense weights"
            );
        }
    }
    Ok(())
}

fn per_tensor<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(9, 70, 703);
    let grid = UniformGrid::new(6)?.with_granularity(Granularity::PerTensor);
    let solution = layer.solve(&subject.solver, &LayerSettings::quantize_only(grid))?;
    let scale = &ensure_codes(&layer, &solution, 1)?.scale;
    ensure!(
        scale.iter().all(|&entry| entry == scale[[0, 0]]),
        "one scale for the layer"
    );
    Ok(())
}

fn joint<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::with_inputs(12, 140, 300, &[3, 100], 704);
    for pattern in ["50%", "2:4", "row:30%", "5:7"] {
        for grid in [
            UniformGrid::new(4)?,
            UniformGrid::new(3)?.with_symmetric(true).with_groups(48),
            UniformGrid::new(2)?.with_static_groups(64).with_mse(true),
        ] {
            let pattern: Pattern = pattern.parse()?;
            let dense = LayerSettings::new(pattern);
            let groups = match grid.granularity() {
                Granularity::Group { size, .. } => 140_usize.div_ceil(size),
                _ => 1,
            };
            let expected = layer.solve(&subject.solver, &dense)?.report.pruned;
            let solution = layer.solve(&subject.solver, &dense.with_quantizer(grid))?;
            ensure_codes(&layer, &solution, groups)?;
            ensure!(
                solution.report.pruned == expected,
                "{pattern}: {} pruned together with rounding, {expected} without",
                solution.report.pruned
            );
            ensure!(
                solution.report.zeros >= solution.report.pruned,
                "{pattern}: fewer zeros than pruned weights"
            );
        }
    }
    Ok(())
}

fn act_order<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(12, 130, 705);
    for (grid, groups) in [
        (UniformGrid::new(4)?, 1),
        (UniformGrid::new(4)?.with_groups(32), 5),
        (UniformGrid::new(4)?.with_static_groups(32), 5),
    ] {
        for pattern in [
            Pattern::Dense,
            Pattern::unstructured(0.5)?,
            Pattern::n_of_m(1, 2)?,
        ] {
            let settings = LayerSettings::new(pattern)
                .with_quantizer(grid.clone())
                .with_act_order(true);
            let solution = layer.solve(&subject.solver, &settings)?;
            ensure_codes(&layer, &solution, groups)?;
        }
    }
    Ok(())
}

/// A quantizer of a caller's, with or without zero among its levels.
#[derive(Debug)]
struct CodeBook {
    levels: Arc<[f32]>,
    group: usize,
}

impl Quantizer for CodeBook {
    fn describe(&self) -> String {
        format!("code book of {}", self.levels.len())
    }

    fn granularity(&self) -> Granularity {
        Granularity::Group {
            size: self.group,
            fixed: false,
        }
    }

    fn represents_zero(&self) -> bool {
        self.levels.contains(&0.0)
    }

    fn fit(&self, weights: ArrayView2<'_, f32>) -> sparsegpt::Result<Grid> {
        let scale: Array1<f32> = weights
            .rows()
            .into_iter()
            .map(|row| row.iter().fold(1e-6_f32, |largest, w| largest.max(w.abs())))
            .collect();
        let zero = Array1::zeros(scale.len());
        Ok(Grid::new(scale, zero))
    }

    fn levels(&self) -> GridLevels {
        GridLevels::Codebook {
            levels: self.levels.clone(),
        }
    }
}

fn code_book<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(12, 130, 706);
    let book = |levels: &[f32]| CodeBook {
        levels: levels.into(),
        group: 32,
    };
    let with_zero = [-1.0, -0.5, -0.2, 0.0, 0.1, 0.35, 0.7, 1.0];
    for settings in [
        LayerSettings::quantize_only(book(&with_zero)),
        LayerSettings::quantize_only(book(&[-1.0, -0.3, 0.3, 1.0])),
        LayerSettings::new(Pattern::unstructured(0.5)?).with_quantizer(book(&with_zero)),
        LayerSettings::new(Pattern::n_of_m(2, 5)?).with_quantizer(book(&with_zero)),
    ] {
        let solution = layer.solve(&subject.solver, &settings)?;
        let codes = &ensure_codes(&layer, &solution, 5)?.codes;
        ensure!(
            codes.iter().all(|&code| code < 8),
            "a code beyond the code book"
        );
    }
    let refused = LayerSettings::new(Pattern::unstructured(0.5)?)
        .with_quantizer(book(&[-1.0, -0.3, 0.3, 1.0]));
    let mut hessian = subject.solver.hessian_from(layer.hessian.view())?;
    let found = subject
        .solver
        .prune(layer.weights.view(), &mut hessian, &refused);
    ensure!(
        matches!(found, Err(sparsegpt::Error::Incompatible { .. })),
        "pruning with a code book without zero must be refused"
    );
    Ok(())
}

fn beats_rounding<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(16, 120, 707);
    let settings = LayerSettings::quantize_only(UniformGrid::new(3)?);
    let ours = layer
        .solve(&subject.solver, &settings)?
        .report
        .reconstruction_error;
    let nearest = layer
        .solve(
            &subject.solver,
            &settings.with_method(sparsegpt::Method::Magnitude),
        )?
        .report
        .reconstruction_error;
    let (ours, nearest) = (ours.unwrap_or(f64::INFINITY), nearest.unwrap_or(0.0));
    ensure!(
        ours < 0.8 * nearest,
        "error {ours:e} against {nearest:e} of rounding to nearest"
    );
    Ok(())
}
