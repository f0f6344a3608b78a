//! The model driver over a small model whose every call is written down.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::ops::ControlFlow;

use crate::common::model::{Model, WIDTH, go_on, half, sequences};
use ndarray::Array2;
use sparsegpt::backend::Host;
use sparsegpt::solver::Admm;
use sparsegpt::{
    Error, LayerSettings, Method, ModelAdapter, ModelPlan, NoTap, Pattern, ProgressEvent, Selector,
    Solver, Starved, prune_model, prune_model_variants,
};

#[test]
fn blocks_go_in_order_and_only_as_far_as_needed() {
    let mut model = Model::new(3, 1);
    let plan = ModelPlan::new(half()).with_dense_last_blocks(1);
    prune_model(
        &mut model,
        &Solver::new(Host),
        &sequences(1),
        &plan,
        &mut go_on,
    )
    .unwrap();
    assert_eq!(
        model.calls,
        [
            "embed",
            "begin 0",
            "tap 0",
            "replace 0.0",
            "replace 0.1",
            "replace 0.2",
            "run 0",
            "end 0",
            "begin 1",
            "tap 1",
            "replace 1.0",
            "replace 1.1",
            "replace 1.2",
            "end 1",
        ]
    );
}

#[test]
fn hessians_see_dense_blocks_behind_compressed_ones() {
    let mut model = Model::new(2, 2);
    let data = sequences(3);
    let mut by_hand = model.clone();
    prune_model(
        &mut model,
        &Solver::new(Host),
        &data,
        &ModelPlan::new(half()),
        &mut go_on,
    )
    .unwrap();
    let solver = Solver::new(Host);
    let mut hidden = data;
    for block in 0..2 {
        let [a, b, c] = by_hand.blocks[block].clone();
        let mut outer = solver.hessian(WIDTH).unwrap();
        let mut inner = solver.hessian(WIDTH).unwrap();
        for hidden in &hidden {
            outer.update(hidden.view()).unwrap();
            let x = (hidden.dot(&a.t()) + hidden.dot(&b.t())).mapv(|x| x.max(0.0));
            inner.update(x.view()).unwrap();
        }
        let a = solver.prune(a.view(), &mut outer, &half()).unwrap().weights;
        let b = solver.prune(b.view(), &mut outer, &half()).unwrap().weights;
        let c = solver.prune(c.view(), &mut inner, &half()).unwrap().weights;
        by_hand.blocks[block] = [a, b, c];
        for hidden in &mut hidden {
            *hidden = by_hand.run_block(block, hidden, &mut NoTap).unwrap();
        }
    }
    assert_eq!(model.blocks, by_hand.blocks);
}

#[test]
fn stage_by_stage_layers_see_the_treated_ones_before_them() {
    let mut model = Model::new(2, 4);
    let data = sequences(3);
    let mut by_hand = model.clone();
    let plan = ModelPlan::new(half()).with_true_sequential(true);
    prune_model(&mut model, &Solver::new(Host), &data, &plan, &mut go_on).unwrap();
    let solver = Solver::new(Host);
    let mut hidden = data;
    for block in 0..2 {
        let [a, b, c] = by_hand.blocks[block].clone();
        let mut outer = solver.hessian(WIDTH).unwrap();
        for hidden in &hidden {
            outer.update(hidden.view()).unwrap();
        }
        let a = solver.prune(a.view(), &mut outer, &half()).unwrap().weights;
        let b = solver.prune(b.view(), &mut outer, &half()).unwrap().weights;
        let mut inner = solver.hessian(WIDTH).unwrap();
        for hidden in &hidden {
            let x = (hidden.dot(&a.t()) + hidden.dot(&b.t())).mapv(|x| x.max(0.0));
            inner.update(x.view()).unwrap();
        }
        let c = solver.prune(c.view(), &mut inner, &half()).unwrap().weights;
        by_hand.blocks[block] = [a, b, c];
        for hidden in &mut hidden {
            *hidden = by_hand.run_block(block, hidden, &mut NoTap).unwrap();
        }
    }
    assert_eq!(model.blocks, by_hand.blocks);

    // A pass for each stage, and none for one in which nothing is treated.
    let calls_with = |plan: ModelPlan| {
        let mut model = Model::new(2, 4);
        prune_model(
            &mut model,
            &Solver::new(Host),
            &sequences(1),
            &plan,
            &mut go_on,
        )
        .unwrap();
        model.calls
    };
    assert_eq!(
        calls_with(plan.clone())[..8],
        [
            "embed",
            "begin 0",
            "tap 0",
            "replace 0.0",
            "replace 0.1",
            "tap 0",
            "replace 0.2",
            "run 0",
        ]
    );
    let without_c = plan.skipping(Selector::Name("*.c".into()));
    let calls = calls_with(without_c);
    assert_eq!(calls.iter().filter(|call| *call == "tap 0").count(), 1);
}

#[test]
fn rules_decide_layer_by_layer() {
    let mut model = Model::new(3, 3);
    let dense = model.blocks.clone();
    let plan = ModelPlan::new(half())
        .with_rule(
            Selector::Name("*.b".into()),
            LayerSettings::new(Pattern::n_of_m(1, 4).unwrap()),
        )
        .with_rule(
            Selector::Index(8),
            LayerSettings::new(Pattern::per_row(0.25).unwrap()),
        )
        .skipping(Selector::Name("block.1.c".into()))
        .with_dense_first_blocks(1);
    let report = prune_model(
        &mut model,
        &Solver::new(Host),
        &sequences(2),
        &plan,
        &mut go_on,
    )
    .unwrap();
    let patterns: Vec<_> = report
        .layers
        .iter()
        .map(|l| (l.layer.as_str(), l.pattern.as_str(), l.pruned))
        .collect();
    assert_eq!(
        patterns,
        [
            ("block.1.a", "50%", 32),
            ("block.1.b", "1:4", 16),
            ("block.2.a", "50%", 32),
            ("block.2.b", "1:4", 16),
            ("block.2.c", "row:25%", 16),
        ]
    );
    assert_eq!(
        report.skipped,
        ["block.0.a", "block.0.b", "block.0.c", "block.1.c"]
    );
    assert_eq!(model.blocks[0], dense[0]);
    assert_eq!(model.blocks[1][2], dense[1][2]);
}

#[test]
fn a_sparsity_list_must_be_as_long_as_the_model() {
    let settings = |percent: u32| {
        LayerSettings::new(Pattern::unstructured(f64::from(percent) / 100.0).unwrap())
    };
    let plan = |count: u32| {
        ModelPlan::new(half())
            .with_settings_per_layer((0..count).map(|i| settings(i * 10)).collect())
    };
    let mut model = Model::new(2, 4);
    let report = prune_model(
        &mut model,
        &Solver::new(Host),
        &sequences(2),
        &plan(6),
        &mut go_on,
    )
    .unwrap();
    let pruned: Vec<u64> = report.layers.iter().map(|layer| layer.pruned).collect();
    assert_eq!(pruned, [0, 6, 12, 19, 25, 32]);
    for wrong in [5, 7] {
        let error = prune_model(
            &mut model,
            &Solver::new(Host),
            &sequences(2),
            &plan(wrong),
            &mut go_on,
        )
        .unwrap_err();
        assert!(
            matches!(error.error, Error::InvalidSetting { .. }),
            "{error}"
        );
    }
}

#[test]
fn plans_that_leave_nothing_or_miss_are_errors() {
    for plan in [
        ModelPlan::new(half()).with_dense_first_blocks(5),
        ModelPlan::new(half()).skipping(Selector::Name("*".into())),
        ModelPlan::new(half()).skipping(Selector::Name("lm_head".into())),
        ModelPlan::new(half()).only(Selector::Index(77)),
    ] {
        let mut model = Model::new(2, 5);
        let error = prune_model(
            &mut model,
            &Solver::new(Host),
            &sequences(1),
            &plan,
            &mut go_on,
        )
        .unwrap_err();
        assert!(
            matches!(error.error, Error::NothingToPrune { .. }),
            "{error}"
        );
        assert!(
            model.calls.is_empty(),
            "nothing may run before the plan is checked"
        );
    }
}

#[test]
fn magnitude_runs_without_calibration() {
    let mut model = Model::new(2, 6);
    let plan = ModelPlan::new(half().with_method(Method::Magnitude));
    let report = prune_model(&mut model, &Solver::new(Host), &[], &plan, &mut go_on).unwrap();
    assert_eq!(report.zeros(), 6 * 32);
    assert!(
        !model
            .calls
            .iter()
            .any(|call| call.starts_with("tap") || call.starts_with("run"))
    );
    let error = prune_model(
        &mut model,
        &Solver::new(Host),
        &[],
        &ModelPlan::new(half()),
        &mut go_on,
    )
    .unwrap_err();
    assert!(error.to_string().contains("calibration"), "{error}");
}

#[test]
fn failures_name_the_layer_and_keep_what_is_finished() {
    let mut model = Model::new(3, 7);
    model.poison = true;
    let error = prune_model(
        &mut model,
        &Solver::new(Host),
        &sequences(2),
        &ModelPlan::new(half()),
        &mut go_on,
    )
    .unwrap_err();
    assert_eq!(error.finished.layers.len(), 3);
    assert_eq!(error.error.layer(), Some("block.1.c"));
    assert!(
        matches!(error.error, Error::NonFinite { row: 3, col: 2, .. }),
        "{error}"
    );

    let mut model = Model::new(3, 8);
    model.fail_at = Some(2);
    let error = prune_model(
        &mut model,
        &Solver::new(Host),
        &sequences(2),
        &ModelPlan::new(half()),
        &mut go_on,
    )
    .unwrap_err();
    assert!(
        matches!(error.error, Error::Adapter { block: 2, .. }),
        "{error}"
    );
    assert_eq!(error.finished.layers.len(), 6);
}

#[test]
fn the_progress_callback_can_stop_a_run() {
    let mut model = Model::new(3, 9);
    let mut layers = 0;
    let error = prune_model(
        &mut model,
        &Solver::new(Host),
        &sequences(2),
        &ModelPlan::new(half()),
        &mut |event| {
            layers += usize::from(matches!(event, ProgressEvent::LayerDone { .. }));
            if layers == 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    )
    .unwrap_err();
    assert!(matches!(error.error, Error::Cancelled { .. }), "{error}");
    assert!(error.finished.layers.len() < 9);
}

#[test]
fn held_out_sequences_judge_and_do_not_calibrate() {
    let run = |sequences: &[Array2<f32>], held_out| {
        let mut model = Model::new(2, 1);
        let plan = ModelPlan::new(half()).with_held_out(held_out);
        prune_model(&mut model, &Solver::new(Host), sequences, &plan, &mut go_on)
            .map(|report| (report, model.blocks))
    };
    let all = sequences(5);
    let (report, _) = run(&all, 2).unwrap();
    for layer in &report.layers {
        assert_eq!(layer.sequences, 3, "{}", layer.layer);
        assert!(layer.held_out_error.unwrap() > 0.0, "{}", layer.layer);
    }
    let (plain, weights) = run(&all[..3], 0).unwrap();
    assert!(
        plain
            .layers
            .iter()
            .all(|layer| layer.held_out_error.is_none())
    );
    // The first block, whose inputs no other sequence can have changed.
    let (_, with_judge) = run(&all, 2).unwrap();
    assert_eq!(weights[0], with_judge[0]);
    let error = run(&all, 5).unwrap_err();
    assert!(error.to_string().contains("fewer than the 5"), "{error}");
}

#[test]
fn layers_that_no_token_reaches_follow_the_plan_and_stand_in_the_report() {
    let dense = Model {
        starve: Some((1, 0)),
        ..Model::new(2, 7)
    };
    let run = |plan: ModelPlan| {
        let mut model = dense.clone();
        let solver = Solver::new(Host);
        prune_model(&mut model, &solver, &sequences(3), &plan, &mut go_on)
            .map(|report| (model, report))
    };
    let (model, report) = run(ModelPlan::new(half())).unwrap();
    let [starved] = &report.starved[..] else {
        panic!("{:?}", report.starved)
    };
    assert_eq!((starved.layer.as_str(), starved.tokens), ("block.1.c", 0));
    assert_eq!(starved.treatment, Starved::Magnitude);
    let starved = report.layers.last().unwrap();
    assert_eq!(
        (
            starved.layer.as_str(),
            starved.tokens,
            starved.method.as_str()
        ),
        ("block.1.c", 0, "magnitude")
    );
    assert_eq!(starved.zeros as usize, WIDTH * WIDTH / 2);
    // The larger half stays, unchanged.
    let (before, after) = (&dense.blocks[1][2], &model.blocks[1][2]);
    let mut sizes: Vec<f32> = before.iter().map(|w| w.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let threshold = sizes[WIDTH * WIDTH / 2];
    for (before, after) in before.iter().zip(after) {
        let expected = if before.abs() < threshold {
            0.0
        } else {
            *before
        };
        assert_eq!(*after, expected);
    }

    let error = run(ModelPlan::new(half()).with_starved(Starved::Error))
        .err()
        .unwrap();
    let message = error.to_string();
    assert!(message.contains("block.1.c"), "{message}");
    assert_eq!(error.finished.layers.len(), 5);
}

/// The inputs of the layers of a block: of `a` and `b`, and of `c`.
fn inputs(block: &[Array2<f32>; 3], hidden: &Array2<f32>) -> [Array2<f32>; 2] {
    let [a, b, _] = block;
    let inner = (hidden.dot(&a.t()) + hidden.dot(&b.t())).mapv(|x| x.max(0.0));
    [hidden.clone(), inner]
}

#[test]
fn layers_aim_at_the_dense_models_outputs() {
    let (mut plain, data) = (Model::new(2, 5), sequences(4));
    let (mut model, mut by_hand, dense) = (plain.clone(), plain.clone(), plain.clone());
    let run = |model: &mut Model, plan: ModelPlan| {
        prune_model(model, &Solver::new(Host), &data, &plan, &mut go_on).unwrap()
    };
    run(&mut plain, ModelPlan::new(half()));
    let plan = ModelPlan::new(half()).with_dense_targets(0.25);
    let report = run(&mut model, plan.clone());
    assert_eq!(report.layers[0].method, "sparsegpt, dense targets 0.25");
    let settings = half().with_dense_targets(0.25);
    let solver = Solver::new(Host);
    let (mut hidden, mut dense_hidden) = (data.clone(), data.clone());
    for block in 0..2 {
        let mut hessians = [
            solver.hessian(WIDTH).unwrap(),
            solver.hessian(WIDTH).unwrap(),
        ];
        for (hidden, of_dense) in hidden.iter().zip(&dense_hidden) {
            let now = inputs(&by_hand.blocks[block], hidden);
            let of_dense = inputs(&dense.blocks[block], of_dense);
            for ((hessian, now), of_dense) in hessians.iter_mut().zip(&now).zip(&of_dense) {
                hessian
                    .update_from_dense(now.view(), of_dense.view())
                    .unwrap();
            }
        }
        for hidden in &mut dense_hidden {
            *hidden = dense.clone().run_block(block, hidden, &mut NoTap).unwrap();
        }
        for (layer, input) in [(0, 0), (1, 0), (2, 1)] {
            let weights = by_hand.blocks[block][layer].clone();
            let solved = solver.prune(weights.view(), &mut hessians[input], &settings);
            by_hand.blocks[block][layer] = solved.unwrap().weights;
        }
        for hidden in &mut hidden {
            *hidden = by_hand.run_block(block, hidden, &mut NoTap).unwrap();
        }
    }
    assert_eq!(model.blocks, by_hand.blocks);
    // Before the first block nothing has drifted.
    assert_eq!(model.blocks[0], plain.blocks[0]);
    assert_ne!(model.blocks[1], plain.blocks[1]);

    let both = plan.with_true_sequential(true);
    let mut model = Model::new(2, 5);
    let error = prune_model(&mut model, &Solver::new(Host), &data, &both, &mut go_on).unwrap_err();
    assert!(error.to_string().contains("true-sequential"), "{error}");
}

/// With all of the strength and nothing pruned, a layer becomes the least-squares answer: (X_d Wᵀ − X Ŵᵀ)ᵀX = 0.
#[test]
fn targets_are_the_least_squares_answer() {
    let [inputs, of_dense]: [Array2<f32>; 2] = sequences(2).try_into().unwrap();
    let weights = Model::new(1, 6).blocks[0][0].clone();
    let solver = Solver::new(Host);
    let mut hessian = solver.hessian(WIDTH).unwrap();
    hessian
        .update_from_dense(inputs.view(), of_dense.view())
        .unwrap();
    let settings = LayerSettings::new(Pattern::Dense)
        .with_damping(0.0)
        .with_dense_targets(1.0);
    let target = solver
        .prune(weights.view(), &mut hessian, &settings)
        .unwrap()
        .weights;
    let left = of_dense.dot(&weights.t()) - inputs.dot(&target.t());
    let gradient = left.t().dot(&inputs);
    assert!(
        gradient.iter().all(|entry| entry.abs() < 1e-3),
        "{gradient}"
    );
    assert!(left.iter().any(|entry| entry.abs() > 0.1));

    // Two halves of the tokens, merged, know as much.
    let half = |tokens: std::ops::Range<usize>| {
        let part = |all: &Array2<f32>| all.slice(ndarray::s![tokens.clone(), ..]).to_owned();
        let mut hessian = solver.hessian(WIDTH).unwrap();
        hessian
            .update_from_dense(part(&inputs).view(), part(&of_dense).view())
            .unwrap();
        hessian
    };
    let mut merged = half(0..11);
    merged.merge(&half(11..20)).unwrap();
    let again = solver
        .prune(weights.view(), &mut merged, &settings)
        .unwrap()
        .weights;
    let off = (again - &target).mapv(f32::abs);
    assert!(off.iter().all(|&off| off < 1e-3), "{off}");

    let narrow = of_dense.slice(ndarray::s![.., ..3]);
    let error = hessian
        .update_from_dense(inputs.view(), narrow)
        .unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let beyond = settings.with_dense_targets(1.5);
    assert!(beyond.validate("", WIDTH, WIDTH).is_err());
}

/// Fewer tokens than columns: only a damped Hessian has an inverse.
#[test]
fn the_damping_behind_dense_targets_is_reported() {
    let [inputs, of_dense]: [Array2<f32>; 2] = sequences(2).try_into().unwrap();
    let weights = Model::new(1, 6).blocks[0][0].clone();
    let solver = Solver::new(Host);
    let of_tokens = |tokens: usize, settings: &LayerSettings| {
        let first = ndarray::s![..tokens, ..];
        let mut hessian = solver.hessian(WIDTH).unwrap();
        hessian
            .update_from_dense(inputs.slice(first), of_dense.slice(first))
            .unwrap();
        let pruned = solver.prune(weights.view(), &mut hessian, settings);
        pruned.unwrap().report
    };
    let plain = LayerSettings::new(Pattern::Dense).with_damping(0.0);
    let aiming = plain.clone().with_dense_targets(0.5);
    assert_eq!(of_tokens(20, &plain).dense_targets, None);
    let enough = of_tokens(20, &aiming).dense_targets.unwrap();
    assert_eq!((enough.damping, enough.attempts), (0.0, 1));
    let report = of_tokens(2, &aiming);
    let few = report.dense_targets.unwrap();
    assert!(few.damping > 0.0 && few.attempts > 2, "{few:?}");
    let told = format!("dense targets with damping {}", few.damping);
    assert!(report.to_string().contains(&told), "{report}");
}

#[test]
fn starved_layers_can_share_the_tokens_of_the_whole_block() {
    let starving = Model {
        starve: Some((1, 0)),
        ..Model::new(2, 7)
    };
    let run = |model: &Model, plan: ModelPlan| {
        let mut model = model.clone();
        let solver = Solver::new(Host);
        let report = prune_model(&mut model, &solver, &sequences(3), &plan, &mut go_on).unwrap();
        (model, report)
    };
    let sharing = ModelPlan::new(half()).with_starved(Starved::Share);
    let (shared, report) = run(&starving, sharing.clone());
    // As if all tokens had gone there.
    let (fed, _) = run(&Model::new(2, 7), ModelPlan::new(half()));
    assert_eq!(shared.blocks, fed.blocks);
    assert_eq!(report.starved[0].treatment, Starved::Share);
    assert_eq!(report.starved[0].tokens, 0);
    assert_eq!(report.layers.last().unwrap().tokens, 3 * 20);
    // The block is run once more, and only with the layer that starves.
    let taps = |model: &Model| model.calls.iter().filter(|call| *call == "tap 1").count();
    assert_eq!((taps(&shared), taps(&fed)), (6, 3));

    // Several plans in one pass, of which one shares: in the first block, so that the inputs of the second are needed
    // after the second look.
    let mut starving = Model {
        starve: Some((0, 0)),
        ..Model::new(2, 7)
    };
    let plans = [sharing, ModelPlan::new(half())];
    let mut weights = Vec::new();
    let reports = prune_model_variants(
        &mut starving,
        &Solver::new(Host),
        &sequences(3),
        &plans,
        &mut |finished| {
            if (finished.block, finished.layer) == (0, 2) {
                weights.push(finished.pruned.weights);
            }
            Ok(())
        },
        &mut go_on,
    )
    .unwrap();
    assert_eq!(reports[0].starved[0].treatment, Starved::Share);
    assert_eq!(reports[1].starved[0].treatment, Starved::Magnitude);
    assert_ne!(weights[0], weights[1]);
    let (fed, _) = run(&Model::new(2, 7), ModelPlan::new(half()));
    assert!(weights.contains(&fed.blocks[0][2]));
}

#[test]
fn starved_layers_are_left_to_magnitude_whatever_the_method_is_made_of() {
    let starving = || Model {
        starve: Some((1, 0)),
        ..Model::new(2, 7)
    };
    let run = |settings: LayerSettings| {
        let mut model = starving();
        let plan = ModelPlan::new(settings);
        let report = prune_model(
            &mut model,
            &Solver::new(Host),
            &sequences(3),
            &plan,
            &mut go_on,
        );
        (model.blocks[1][2].clone(), report.unwrap())
    };
    let (by_magnitude, _) = run(half());
    let admm = half()
        .with_method(Method::Quality)
        .with_admm(Admm::GRADUAL.changed("iterations=5,ramp=3").unwrap());
    let (weights, report) = run(admm);
    assert_eq!(report.starved.len(), 1);
    assert_eq!(weights, by_magnitude);
}

#[test]
fn a_second_look_at_a_block_leaves_the_dense_models_states_where_they_were() {
    let treated = |starved: Starved| {
        let mut model = Model {
            starve: Some((0, 0)),
            ..Model::new(2, 7)
        };
        let plan = ModelPlan::new(half())
            .with_dense_targets(0.25)
            .with_starved(starved);
        let solver = Solver::new(Host);
        prune_model(&mut model, &solver, &sequences(3), &plan, &mut go_on).unwrap();
        model.blocks
    };
    let (shared, alone) = (treated(Starved::Share), treated(Starved::Magnitude));
    assert_ne!(shared[0], alone[0]);
    // The first block's weights have no part in what it passes on.
    assert_eq!(shared[1], alone[1]);
}

#[test]
fn too_few_tokens_are_as_many_as_the_plan_says() {
    let starving = Model {
        starve: Some((1, 2)),
        ..Model::new(2, 7)
    };
    let starved = |least: &str, starved: Starved| {
        let plan = ModelPlan::new(half())
            .with_starved(starved)
            .with_least_tokens(least.parse().unwrap());
        let solver = Solver::new(Host);
        prune_model(
            &mut starving.clone(),
            &solver,
            &sequences(3),
            &plan,
            &mut go_on,
        )
        .map(|report| report.starved)
    };
    // Two tokens of each of three sequences; the layer has 8 columns.
    for enough in ["0", "6", "75%"] {
        assert!(
            starved(enough, Starved::Error).unwrap().is_empty(),
            "{enough}"
        );
    }
    for short in ["7", "76%"] {
        let found = starved(short, Starved::Magnitude).unwrap();
        assert_eq!((found[0].tokens, found[0].least_tokens), (6, 7), "{short}");
        let error = starved(short, Starved::Error).unwrap_err().to_string();
        assert!(
            error.contains("block.1.c") && error.contains("6 calibration tokens"),
            "{error}"
        );
    }
}
