//! Several plans in one pass over a small model whose every call is written down.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::ops::ControlFlow;

use crate::common::counting::Counting;
use crate::common::model::{Broken, Model, WIDTH, go_on, half, sequences};
use ndarray::Array2;
use sparsegpt::backend::{Backend, Host};
use sparsegpt::driver::Interrupted;
use sparsegpt::{
    Error, FinishedLayer, LayerSettings, Method, ModelAdapter, ModelPlan, ModelReport, NoTap,
    Pattern, ProgressEvent, Propagation, Selector, Solver, UniformGrid, prune_model,
    prune_model_variants,
};

fn pattern(text: &str) -> LayerSettings {
    LayerSettings::new(text.parse::<Pattern>().unwrap())
}

fn settings() -> Vec<LayerSettings> {
    vec![
        pattern("40%"),
        half(),
        pattern("2:4"),
        half().with_quantizer(UniformGrid::new(4).unwrap()),
    ]
}

fn plans(settings: &[LayerSettings]) -> Vec<ModelPlan> {
    settings.iter().cloned().map(ModelPlan::new).collect()
}

/// Finished weights by variant, block and layer.
type Finished = BTreeMap<(usize, usize, usize), Array2<f32>>;
type Failed = Box<Interrupted<Vec<ModelReport>>>;

fn run<B: Backend>(
    model: &mut Model,
    solver: &Solver<B>,
    count: usize,
    plans: &[ModelPlan],
) -> Result<(Finished, Vec<ModelReport>), Failed> {
    let mut finished = Finished::new();
    let reports = prune_model_variants(
        model,
        solver,
        &sequences(count),
        plans,
        &mut |layer| {
            let at = (layer.variant, layer.block, layer.layer);
            assert!(finished.insert(at, layer.pruned.weights).is_none());
            Ok(())
        },
        &mut go_on,
    )?;
    Ok((finished, reports))
}

#[test]
fn each_block_runs_once_for_each_sequence() {
    let mut model = Model::new(3, 1);
    let dense = model.blocks.clone();
    let mut plans = plans(&settings());
    plans[0] = plans[0].clone().with_dense_last_blocks(1);
    run(&mut model, &Solver::new(Host), 2, &plans).unwrap();
    assert_eq!(
        model.calls,
        [
            "embed", "embed", "begin 0", "tap 0", "tap 0", "end 0", "begin 1", "tap 1", "tap 1",
            "end 1", "begin 2", "tap 2", "tap 2", "end 2",
        ]
    );
    assert_eq!(model.blocks, dense);
}

#[test]
fn blocks_that_need_no_hessian_run_only_on_the_way_to_one_that_does() {
    let mut model = Model::new(4, 1);
    let only = |block| {
        ModelPlan::new(half()).only(Selector::Blocks {
            first: block,
            last: block,
        })
    };
    run(&mut model, &Solver::new(Host), 1, &[only(0), only(2)]).unwrap();
    assert_eq!(
        model.calls,
        [
            "embed", "begin 0", "tap 0", "end 0", "begin 1", "run 1", "end 1", "begin 2", "tap 2",
            "end 2",
        ]
    );
}

#[test]
fn every_variant_is_solved_on_the_dense_activations() {
    let mut model = Model::new(3, 2);
    let settings = settings();
    let (finished, reports) = run(&mut model, &Solver::new(Host), 3, &plans(&settings)).unwrap();
    assert_eq!(finished.len(), 4 * 3 * 3);

    let solver = Solver::new(Host);
    let mut hidden = sequences(3);
    for block in 0..3 {
        let [a, b, _] = &model.blocks[block];
        let mut outer = solver.hessian(WIDTH).unwrap();
        let mut inner = solver.hessian(WIDTH).unwrap();
        for hidden in &hidden {
            outer.update(hidden.view()).unwrap();
            let x = (hidden.dot(&a.t()) + hidden.dot(&b.t())).mapv(|x| x.max(0.0));
            inner.update(x.view()).unwrap();
        }
        for (variant, settings) in settings.iter().enumerate() {
            for (layer, weights) in model.blocks[block].iter().enumerate() {
                let hessian = if layer == 2 { &mut inner } else { &mut outer };
                let alone = solver.prune(weights.view(), hessian, settings).unwrap();
                let found = &finished[&(variant, block, layer)];
                assert_eq!(*found, alone.weights, "{variant} {block} {layer}");
                let report = &reports[variant].layers[3 * block + layer];
                assert_eq!(
                    report.reconstruction_error,
                    alone.report.reconstruction_error
                );
                assert_eq!(report.sequences, 3);
            }
        }
        let mut dense = model.clone();
        for hidden in &mut hidden {
            *hidden = dense.run_block(block, hidden, &mut NoTap).unwrap();
        }
    }
}

#[test]
fn the_first_block_is_that_of_a_single_run_and_later_ones_are_not() {
    let (finished, reports) = {
        let mut model = Model::new(2, 3);
        run(&mut model, &Solver::new(Host), 3, &plans(&settings())).unwrap()
    };
    let mut alone = Model::new(2, 3);
    let report = prune_model(
        &mut alone,
        &Solver::new(Host),
        &sequences(3),
        &ModelPlan::new(half()),
        &mut go_on,
    )
    .unwrap();
    for layer in 0..3 {
        assert_eq!(finished[&(1, 0, layer)], alone.blocks[0][layer]);
        assert_ne!(finished[&(1, 1, layer)], alone.blocks[1][layer]);
    }
    assert_eq!(report.propagation, Propagation::Pruned);
    assert!(
        reports
            .iter()
            .all(|report| report.propagation == Propagation::Dense)
    );
}

#[test]
fn there_is_one_factorization_an_input_and_order() {
    let factorizations = |plans: &[ModelPlan]| {
        let solver = Solver::new(Counting::default());
        run(&mut Model::new(3, 4), &solver, 2, plans).unwrap();
        solver.backend().factorizations()
    };
    // Two inputs in each of three blocks.
    assert_eq!(factorizations(&plans(&settings())), 6);
    // Whatever the order of the plans and the rules in them, factors that are the same are made once: that
    // of single columns and that of groups of 4.
    let ordered: Vec<LayerSettings> = ["50%", "2:4", "40%", "1:4"]
        .map(|text| pattern(text).with_act_order(true))
        .into();
    let with_rules: Vec<ModelPlan> = plans(&ordered)
        .into_iter()
        .map(|plan| plan.with_rule(Selector::Name("*.a".into()), ordered[3].clone()))
        .collect();
    assert_eq!(factorizations(&with_rules), 12);
    let damped = [half(), pattern("2:4"), half().with_damping(0.1), half()];
    assert_eq!(factorizations(&plans(&damped)), 12);
}

#[test]
fn reports_are_one_a_plan() {
    let plans = [
        ModelPlan::new(half()).skipping(Selector::Name("*.a".into())),
        ModelPlan::new(pattern("2:4")).with_dense_first_blocks(1),
    ];
    let (finished, reports) = run(&mut Model::new(2, 5), &Solver::new(Host), 2, &plans).unwrap();
    let names = |report: &ModelReport| -> Vec<String> {
        report.layers.iter().map(|l| l.layer.clone()).collect()
    };
    assert_eq!(
        names(&reports[0]),
        ["block.0.b", "block.0.c", "block.1.b", "block.1.c"]
    );
    assert_eq!(reports[0].skipped, ["block.0.a", "block.1.a"]);
    assert_eq!(names(&reports[1]), ["block.1.a", "block.1.b", "block.1.c"]);
    assert_eq!(reports[1].skipped, ["block.0.a", "block.0.b", "block.0.c"]);
    assert_eq!(finished.len(), 7);
    for report in &reports {
        assert_eq!((report.blocks, report.sequences), (2, 2));
        assert_eq!(report.zero_fraction(), 0.5);
        assert_eq!(report.seconds.propagate, 0.0);
        assert!(report.seconds.solve > 0.0 && report.seconds.total >= report.seconds.solve);
    }
    // What is shared is the same in all.
    assert_eq!(reports[0].seconds.calibrate, reports[1].seconds.calibrate);
}

#[test]
fn magnitude_alone_needs_no_forward_pass() {
    let magnitude = |text: &str| ModelPlan::new(pattern(text).with_method(Method::Magnitude));
    let mut model = Model::new(2, 6);
    let plans = [magnitude("25%"), magnitude("2:4")];
    let (finished, reports) = run(&mut model, &Solver::new(Host), 0, &plans).unwrap();
    assert_eq!((reports[0].zeros(), reports[1].zeros()), (6 * 16, 6 * 32));
    assert_eq!(model.calls, ["begin 0", "end 0", "begin 1", "end 1"]);
    let mut alone = Model::new(2, 6);
    prune_model(&mut alone, &Solver::new(Host), &[], &plans[1], &mut go_on).unwrap();
    for ((_, block, layer), weights) in finished.iter().filter(|((v, ..), _)| *v == 1) {
        assert_eq!(*weights, alone.blocks[*block][*layer]);
    }
}

#[test]
fn what_is_wrong_is_found_before_anything_runs() {
    let fails = |plans: &[ModelPlan], count: usize| {
        let mut model = Model::new(2, 7);
        let interrupted = run(&mut model, &Solver::new(Host), count, plans).unwrap_err();
        assert!(model.calls.is_empty());
        assert_eq!(interrupted.finished.len(), plans.len());
        interrupted.error
    };
    let nothing = |error: &Error| matches!(error, Error::NothingToPrune { .. });
    assert!(nothing(&fails(&[], 1)));
    assert!(nothing(&fails(&plans(&settings()), 0)));
    let empty = ModelPlan::new(half()).with_dense_first_blocks(2);
    assert!(nothing(&fails(&[ModelPlan::new(half()), empty], 1)));
    let error = fails(&plans(&[half(), pattern("2:5")]), 1);
    assert!(error.to_string().contains("block.0.a"), "{error}");
}

#[test]
fn failures_keep_what_is_finished() {
    let mut model = Model::new(3, 8);
    model.poison = true;
    let interrupted = run(&mut model, &Solver::new(Host), 2, &plans(&settings())).unwrap_err();
    assert_eq!(interrupted.error.layer(), Some("block.1.c"));
    let finished: Vec<usize> = interrupted
        .finished
        .iter()
        .map(|r| r.layers.len())
        .collect();
    assert_eq!(finished, [3; 4]);
    assert!(interrupted.to_string().contains("12 layers"));
}

#[test]
fn a_layer_that_the_caller_refuses_ends_the_run() {
    let mut taken = 0;
    let mut take = |layer: FinishedLayer| -> Result<(), Box<dyn StdError + Send + Sync>> {
        if (layer.variant, layer.block, layer.layer) == (1, 1, 2) {
            return Err(Broken.into());
        }
        taken += 1;
        Ok(())
    };
    let interrupted = prune_model_variants(
        &mut Model::new(2, 9),
        &Solver::new(Host),
        &sequences(1),
        &plans(&[half(), half()]),
        &mut take,
        &mut go_on,
    )
    .unwrap_err();
    let Error::Adapter {
        block: 1, source, ..
    } = &interrupted.error
    else {
        panic!("{interrupted}");
    };
    assert!(source.is::<Broken>());
    assert!(interrupted.error.to_string().contains("block.1.c"));
    assert_eq!(taken, 11);
    assert_eq!(interrupted.finished[1].layers.len(), 5);
}

#[test]
fn the_progress_callback_sees_all_and_can_stop() {
    let mut events = Vec::new();
    let mut told = |stop_at: usize| {
        events.clear();
        let result = prune_model_variants(
            &mut Model::new(2, 10),
            &Solver::new(Host),
            &sequences(2),
            &plans(&[half(), pattern("2:4")]),
            &mut |_| Ok(()),
            &mut |event| {
                events.push(match event {
                    ProgressEvent::BlockStarted { layers, .. } => format!("{layers} layers"),
                    ProgressEvent::Calibrated { done, of, .. } => format!("{done} of {of}"),
                    ProgressEvent::LayerDone { report } => report.pattern.clone(),
                    ProgressEvent::BlockDone { .. } => "done".to_owned(),
                    other => panic!("{other:?}"),
                });
                if events.len() == stop_at {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        );
        (result, events.clone())
    };
    let block = [
        "6 layers", "1 of 2", "2 of 2", "50%", "50%", "2:4", "2:4", "50%", "2:4", "done",
    ];
    let (result, all) = told(usize::MAX);
    assert_eq!(all, [block, block].concat());
    assert_eq!(result.unwrap().len(), 2);
    // No layer is finished after the event at which the run was stopped.
    for stop_at in [1, 2, 4, 8, 10, 15] {
        let (result, events) = told(stop_at);
        let interrupted = result.unwrap_err();
        assert!(matches!(interrupted.error, Error::Cancelled { .. }));
        let finished: usize = interrupted.finished.iter().map(|r| r.layers.len()).sum();
        let seen = |events: &[String]| {
            let layers = events.iter().filter(|e| *e == "50%" || *e == "2:4");
            layers.count()
        };
        assert_eq!(finished, seen(&events), "{stop_at}");
    }
}
