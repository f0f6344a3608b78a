//! Budgets of a whole model: met exactly, within bounds, by every allocator.

#![allow(clippy::unwrap_used, clippy::panic)]

use crate::common::model::{Model, WIDTH, go_on, half, sequences};
use sparsegpt::allocate::{
    Allocation, Exact, GlobalMagnitude, LossScale, Owl, OwlUnit, Shares, Survey, Uniform, allocate,
    apportion,
};
use sparsegpt::backend::Host;
use sparsegpt::solver::Admm;
use sparsegpt::{
    Allocator, Budget, Error, LayerSettings, LeastTokens, Method, ModelAdapter, ModelPlan, NoTap,
    Pattern, Result, Selector, Solver, Sparsity, Starved, prune_model,
};

fn budget(percent: u32) -> Budget {
    Budget::new(Sparsity::new(f64::from(percent) / 100.0).unwrap())
}

fn find(
    model: &mut Model,
    plan: &ModelPlan,
    budget: &Budget,
    allocator: &dyn Allocator,
) -> Result<Allocation> {
    let solver = Solver::new(Host);
    allocate(
        model,
        &solver,
        &sequences(3),
        plan,
        budget,
        allocator,
        &mut go_on,
    )
}

fn all() -> Vec<Box<dyn Allocator>> {
    vec![
        Box::new(Uniform),
        Box::new(GlobalMagnitude),
        Box::new(Owl::default()),
        Box::new(Owl {
            factor: 2.0,
            lambda: 0.2,
            unit: OwlUnit::Layer,
        }),
        Box::new(Exact::default()),
        Box::new(Exact {
            scale: LossScale::Absolute,
            points: 3,
            ..Exact::default()
        }),
    ]
}

#[test]
fn every_allocator_meets_the_budget_to_the_last_zero() {
    for percent in [3, 33, 50, 71, 97] {
        for allocator in all() {
            let mut model = Model::new(3, 5);
            let dense = model.blocks.clone();
            let plan = ModelPlan::new(half()).skipping(Selector::Name("1.b".into()));
            let found = find(&mut model, &plan, &budget(percent), &*allocator).unwrap();
            assert_eq!(model.blocks, dense);
            let weights = 8 * (WIDTH * WIDTH) as u64;
            let report = &found.report;
            assert_eq!(report.allocator, allocator.describe());
            assert_eq!((report.weights, report.layers.len()), (weights, 8));
            let wanted = weights * u64::from(percent) / 100;
            let given: u64 = report.layers.iter().map(|layer| layer.zeros).sum();
            assert_eq!(
                (given, report.zeros),
                (wanted, wanted),
                "{}",
                report.allocator
            );
            let run = prune_model(
                &mut model,
                &Solver::new(Host),
                &sequences(3),
                &found.plan,
                &mut go_on,
            )
            .unwrap();
            assert_eq!(
                run.layers.iter().map(|layer| layer.pruned).sum::<u64>(),
                wanted
            );
            for layer in &run.layers {
                let share = report
                    .layers
                    .iter()
                    .find(|share| share.layer == layer.layer);
                assert_eq!(share.unwrap().zeros, layer.pruned, "{}", report.allocator);
            }
            assert_eq!(run.skipped, ["block.1.b"]);
            assert_eq!(run.allocation.as_deref(), Some(&**report));
        }
    }
}

#[test]
fn floor_and_ceiling_hold() {
    let bounds = budget(50)
        .with_floor(Sparsity::new(0.4).unwrap())
        .with_ceiling(Sparsity::new(0.55).unwrap());
    for allocator in all() {
        let found = find(
            &mut Model::new(3, 6),
            &ModelPlan::new(half()),
            &bounds,
            &*allocator,
        )
        .unwrap();
        assert_eq!(found.report.zeros, 9 * 64 / 2);
        // floor(0.4 · 64) and ceil(0.55 · 64).
        for share in &found.report.layers {
            assert!(
                (25..=36).contains(&share.zeros),
                "{}: {share:?}",
                found.report.allocator
            );
        }
    }
    let outside = budget(60).with_ceiling(Sparsity::new(0.55).unwrap());
    let error = find(
        &mut Model::new(1, 6),
        &ModelPlan::new(half()),
        &outside,
        &Uniform,
    )
    .unwrap_err();
    assert!(error.to_string().contains("from 0% to 55%"), "{error}");
}

#[test]
fn exact_is_never_predicted_above_uniform_and_says_what_it_expects() {
    for seed in 0..6 {
        for scale in [
            LossScale::Weighted,
            LossScale::Relative,
            LossScale::Absolute,
        ] {
            let exact = Exact {
                scale,
                ..Exact::default()
            };
            let mut model = Model::new(3, seed);
            // One layer that hardly matters, one that matters much.
            model.blocks[1][2] *= 0.01;
            model.blocks[2][2] *= 10.0;
            let found = find(&mut model, &ModelPlan::new(half()), &budget(50), &exact).unwrap();
            let report = &found.report;
            let sum: f64 = report
                .layers
                .iter()
                .map(|layer| layer.predicted_loss.unwrap())
                .sum();
            assert_eq!(report.predicted_loss, Some(sum));
            assert!(sum < report.uniform_loss.unwrap(), "{report:?}");
            if scale == LossScale::Absolute {
                assert!(
                    report.layers[5].zeros > 60 && report.layers[8].zeros < 32,
                    "{report:?}"
                );
            }
        }
    }
}

#[test]
fn exact_predicts_what_a_measured_point_loses() {
    // At 50 % of 64 weights every layer is measured at 32 zeros: floor, ceiling and budget leave nothing else.
    let half_only = budget(50)
        .with_floor(Sparsity::new(0.5).unwrap())
        .with_ceiling(Sparsity::new(0.5).unwrap());
    let relative = Exact {
        scale: LossScale::Relative,
        ..Exact::default()
    };
    let mut model = Model::new(1, 8);
    let found = find(&mut model, &ModelPlan::new(half()), &half_only, &relative).unwrap();
    let run = prune_model(
        &mut model,
        &Solver::new(Host),
        &sequences(3),
        &found.plan,
        &mut go_on,
    )
    .unwrap();
    for (share, layer) in found.report.layers.iter().zip(&run.layers) {
        assert_eq!(share.predicted_loss, layer.relative_error);
    }
}

#[test]
fn one_threshold_for_all_layers_prunes_the_smallest_weights_of_the_model() {
    let mut model = Model::new(2, 7);
    model.blocks[1][0] *= 0.2;
    // Ties: across layers and within one.
    model.blocks[0][1].fill(0.25);
    model.blocks[1][2].fill(-0.25);
    let mut sizes: Vec<(f32, usize)> = Vec::new();
    for (index, layer) in model.blocks.iter().flatten().enumerate() {
        sizes.extend(layer.iter().map(|weight| (weight.abs(), index)));
    }
    sizes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let plan = ModelPlan::new(half().with_method(Method::Magnitude));
    for percent in [0, 10, 30, 40, 50, 80, 100] {
        let zeros = 6 * 64 * percent as usize / 100;
        let mut expected = [0; 6];
        for &(_, layer) in &sizes[..zeros] {
            expected[layer] += 1;
        }
        model.calls.clear();
        let found = find(&mut model, &plan, &budget(percent), &GlobalMagnitude).unwrap();
        let given: Vec<u64> = found
            .report
            .layers
            .iter()
            .map(|layer| layer.zeros)
            .collect();
        assert_eq!(given, expected, "{percent} %");
        assert!(
            model
                .calls
                .iter()
                .all(|call| call.contains("begin") || call.contains("end"))
        );
    }
}

#[test]
fn what_a_method_is_made_of_does_not_matter_to_those_who_only_look() {
    let plain = ModelPlan::new(half().with_method(Method::Quality));
    let admm = Admm::GRADUAL.changed("iterations=5,ramp=3").unwrap();
    let changed = half().with_method(Method::Quality).with_admm(admm);
    let changed = ModelPlan::new(changed.with_swaps(2));
    for allocator in [
        &Owl::default() as &dyn Allocator,
        &GlobalMagnitude,
        &Uniform,
    ] {
        let zeros = |plan: &ModelPlan| {
            let found = find(&mut Model::new(2, 9), plan, &budget(50), allocator).unwrap();
            found
                .report
                .layers
                .iter()
                .map(|layer| layer.zeros)
                .collect::<Vec<_>>()
        };
        assert_eq!(zeros(&plain), zeros(&changed), "{allocator:?}");
    }
}

#[test]
fn owl_keeps_blocks_with_more_outliers_denser() {
    let mut model = Model::new(3, 9);
    // Outliers in the second block, fewer in the third.
    for at in 0..6 {
        model.blocks[1][0][[at, 1]] *= 30.0;
    }
    model.blocks[2][1][[2, 2]] *= 30.0;
    let owl = Owl::default();
    // The published ratios, from the dense model's inputs.
    let mut hidden = sequences(3);
    let mut ratios = Vec::new();
    for block in 0..3 {
        let [a, b, c] = model.blocks[block].clone();
        let inner: Vec<_> = hidden
            .iter()
            .map(|x| (x.dot(&a.t()) + x.dot(&b.t())).mapv(|x| x.max(0.0)))
            .collect();
        let norm = |inputs: &[ndarray::Array2<f32>], column: usize| {
            let squares = inputs
                .iter()
                .flat_map(|x| x.column(column).to_vec())
                .map(|x| x * x);
            squares.sum::<f32>().sqrt()
        };
        let mut scores = Vec::new();
        for (weights, inputs) in [(&a, &hidden), (&b, &hidden), (&c, &inner)] {
            for ((_, column), weight) in weights.indexed_iter() {
                scores.push(weight.abs() * norm(inputs, column));
            }
        }
        let bound = 5.0 * scores.iter().sum::<f32>() / scores.len() as f32;
        ratios.push(scores.iter().filter(|&&score| score > bound).count());
        for hidden in &mut hidden {
            *hidden = model.run_block(block, hidden, &mut NoTap).unwrap();
        }
    }
    assert!(
        ratios[1] > ratios[2] && ratios[2] >= ratios[0],
        "{ratios:?}"
    );
    let found = find(&mut model, &ModelPlan::new(half()), &budget(70), &owl).unwrap();
    let of_block = |block: usize| -> f64 {
        let layers = &found.report.layers[3 * block..3 * block + 3];
        layers.iter().map(|layer| layer.zeros).sum::<u64>() as f64 / 192.0
    };
    let width = (ratios[1] - ratios[0]) as f64;
    for (block, &ratio) in ratios.iter().enumerate() {
        let below_the_densest = 0.16 * (ratios[1] - ratio) as f64 / width;
        // Within the rounding to whole zeros.
        assert!(
            (of_block(block) - of_block(1) - below_the_densest).abs() < 6.0 / 192.0,
            "{ratios:?} {:?}",
            found.report
        );
    }
}

#[test]
fn what_comes_in_portions_meets_the_budget_as_far_as_they_allow() {
    let settings = |pattern: &str, method| {
        LayerSettings::new(pattern.parse::<Pattern>().unwrap()).with_method(method)
    };
    for (settings, step) in [
        (settings("row:50%", Method::SparseGpt), 8),
        (settings("50%", Method::Wanda), 8),
        (settings("block:4:50%", Method::SparseGpt), 4),
    ] {
        for allocator in all() {
            for percent in [30, 55] {
                let mut model = Model::new(2, 10);
                let plan = ModelPlan::new(settings.clone());
                let found = find(&mut model, &plan, &budget(percent), &*allocator).unwrap();
                let wanted = 6 * 64 * u64::from(percent) / 100;
                assert_eq!(
                    found.report.zeros,
                    wanted / step * step,
                    "{}",
                    found.report.allocator
                );
                let run = prune_model(
                    &mut model,
                    &Solver::new(Host),
                    &sequences(3),
                    &found.plan,
                    &mut go_on,
                )
                .unwrap();
                for (share, layer) in found.report.layers.iter().zip(&run.layers) {
                    assert_eq!(share.zeros, layer.pruned, "{}", layer.pattern);
                }
            }
        }
    }
}

#[test]
fn patterns_that_fix_their_zeros_are_refused_by_name() {
    for pattern in ["2:4", "4:6:8", "dense"] {
        let plan = ModelPlan::new(half()).with_rule(
            Selector::Name("0.c".into()),
            LayerSettings::new(pattern.parse::<Pattern>().unwrap()),
        );
        let error = find(&mut Model::new(1, 1), &plan, &budget(50), &Uniform).unwrap_err();
        assert!(matches!(error, Error::Incompatible { .. }));
        assert!(
            error.to_string().contains("block.0.c") && error.to_string().contains(pattern),
            "{error}"
        );
    }
}

#[test]
fn settings_out_of_range_and_missing_data_are_errors() {
    let plan = ModelPlan::new(half());
    let wrong: [(Box<dyn Allocator>, &str); 4] = [
        (
            Box::new(Owl {
                factor: 0.0,
                ..Owl::default()
            }),
            "outlier factor",
        ),
        (
            Box::new(Owl {
                lambda: 0.6,
                ..Owl::default()
            }),
            "lambda",
        ),
        (
            Box::new(Exact {
                points: 1,
                ..Exact::default()
            }),
            "at least 2",
        ),
        (
            Box::new(Exact {
                resolution: 0,
                ..Exact::default()
            }),
            "quanta",
        ),
    ];
    for (allocator, named) in wrong {
        let error = find(&mut Model::new(1, 1), &plan, &budget(50), &*allocator).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    let magnitude = ModelPlan::new(half().with_method(Method::Magnitude));
    let error = find(
        &mut Model::new(1, 1),
        &magnitude,
        &budget(50),
        &Exact::default(),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("magnitude measured no loss"),
        "{error}"
    );
    let error = allocate(
        &mut Model::new(1, 1),
        &Solver::new(Host),
        &[],
        &plan,
        &budget(50),
        &Owl::default(),
        &mut go_on,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("no calibration sequences"),
        "{error}"
    );
}

/// Gives what it was told to.
#[derive(Debug)]
struct Stranger(fn(Vec<u64>) -> Vec<u64>);

impl Allocator for Stranger {
    fn describe(&self) -> String {
        "stranger".to_owned()
    }
    fn allocate(&self, model: &mut dyn Survey, budget: &Budget) -> Result<Shares> {
        let layers = model.layers();
        let right = apportion(layers, &vec![0.5; layers.len()], budget.zeros(layers))?;
        Ok(Shares::new((self.0)(right)))
    }
}

#[test]
fn strange_allocators_are_held_to_the_budget() {
    let with = |change| {
        find(
            &mut Model::new(1, 1),
            &ModelPlan::new(half()),
            &budget(50),
            &Stranger(change),
        )
    };
    assert!(with(|right| right).is_ok());
    let wrong: [fn(Vec<u64>) -> Vec<u64>; 4] = [
        |mut zeros| {
            zeros[0] += 1;
            zeros
        },
        |mut zeros| {
            zeros[0] -= 1;
            zeros
        },
        |mut zeros| {
            zeros.pop();
            zeros
        },
        |_| vec![96, 0, 0],
    ];
    for change in wrong {
        let error = with(change).unwrap_err();
        assert!(
            error.to_string().contains("allocator \"stranger\""),
            "{error}"
        );
    }
}

#[test]
fn the_allocated_plan_calibrates_as_the_one_it_was_made_of() {
    let plan = ModelPlan::new(half())
        .with_held_out(1)
        .with_true_sequential(true)
        .with_starved(Starved::Error)
        .with_least_tokens(LeastTokens::Count(9));
    let mut model = Model::new(2, 5);
    let found = find(&mut model, &plan, &budget(50), &Uniform).unwrap();
    assert_eq!(
        (found.plan.held_out(), found.plan.true_sequential()),
        (1, true)
    );
    for layer in found.plan.resolve(&model).unwrap().iter().flatten() {
        assert_eq!((layer.starved, layer.least_tokens), (Starved::Error, 9));
    }
}

#[test]
fn losses_of_starved_layers_are_known_where_they_share_the_blocks_tokens() {
    let mut model = Model {
        starve: Some((1, 2)),
        ..Model::new(2, 5)
    };
    let plan = ModelPlan::new(half()).with_least_tokens(LeastTokens::Count(7));
    let sharing = plan.clone().with_starved(Starved::Share);
    let found = find(&mut model, &sharing, &budget(50), &Exact::default()).unwrap();
    assert!(found.report.predicted_loss.unwrap() > 0.0);
    let error = find(&mut model, &plan, &budget(50), &Exact::default()).unwrap_err();
    assert!(error.to_string().contains("block.1.c"), "{error}");
}
