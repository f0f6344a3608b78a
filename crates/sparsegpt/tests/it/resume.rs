//! Runs that end early and are gone on with.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::ops::ControlFlow;

use crate::common::model::{Model, go_on, half, sequences};
use sparsegpt::backend::Host;
use sparsegpt::report::{ModelSeconds, StageSeconds};
use sparsegpt::{
    BlockKeeper, FinishedLayer, LayerSettings, LeastTokens, ModelPlan, ModelReport, Pattern,
    ProgressEvent, Solver, Starved, prune_model, prune_model_resumable, prune_model_variants,
    prune_model_variants_resumable,
};

type Boxed = Box<dyn StdError + Send + Sync>;

/// Blocks in memory.
#[derive(Clone, Debug, Default)]
struct Kept {
    begun: Vec<FinishedLayer>,
    finished: BTreeMap<usize, Vec<FinishedLayer>>,
    full_at: Option<usize>,
}

impl BlockKeeper for Kept {
    fn has(&self, block: usize) -> bool {
        self.finished.contains_key(&block)
    }

    fn restore(
        &mut self,
        block: usize,
        take: &mut dyn FnMut(FinishedLayer) -> sparsegpt::Result<()>,
    ) -> Result<(), Boxed> {
        for layer in &self.finished[&block] {
            take(layer.clone())?;
        }
        Ok(())
    }

    fn keep(&mut self, layer: &mut FinishedLayer) -> Result<(), Boxed> {
        self.begun.push(layer.clone());
        Ok(())
    }

    fn commit(&mut self, block: usize) -> Result<(), Boxed> {
        if self.full_at == Some(block) {
            return Err("the disk is full".into());
        }
        self.finished.insert(block, std::mem::take(&mut self.begun));
        Ok(())
    }
}

fn model() -> Model {
    Model {
        starve: Some((1, 2)),
        ..Model::new(4, 7)
    }
}

fn plans() -> [ModelPlan; 2] {
    let two_of_four = LayerSettings::new(Pattern::n_of_m(2, 4).unwrap());
    let least = LeastTokens::Count(7);
    [ModelPlan::new(half()), ModelPlan::new(two_of_four)]
        .map(|plan| plan.with_held_out(1).with_least_tokens(least))
}

fn without_seconds(mut report: ModelReport) -> ModelReport {
    report.seconds = ModelSeconds::default();
    for layer in &mut report.layers {
        layer.seconds = StageSeconds::default();
    }
    report
}

#[test]
fn a_run_that_is_gone_on_with_has_the_bits_of_one_that_was_never_stopped() {
    let (solver, data, [plan, _]) = (Solver::new(Host), sequences(4), plans());
    let mut whole = model();
    let expected = prune_model(&mut whole, &solver, &data, &plan, &mut go_on).unwrap();
    let expected = without_seconds(expected);
    let [starved] = &expected.starved[..] else {
        panic!("{:?}", expected.starved)
    };
    assert_eq!(starved.layer, "block.1.c");
    // Two tokens of each of the three sequences that calibrate.
    assert_eq!((starved.tokens, starved.least_tokens), (6, 7));
    // Stopped after so many layers.
    for stop in 1..12 {
        let mut kept = Kept::default();
        let mut layers = 0;
        let mut stop_there = |event: &ProgressEvent<'_>| {
            layers += usize::from(matches!(event, ProgressEvent::LayerDone { .. }));
            match layers == stop {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        prune_model_resumable(
            &mut model(),
            &solver,
            &data,
            &plan,
            &mut kept,
            &mut stop_there,
        )
        .unwrap_err();
        let finished = kept.finished.len();
        assert_eq!(finished, stop.saturating_sub(1) / 3, "{stop}");
        kept.begun.clear();
        let mut resumed = model();
        let report =
            prune_model_resumable(&mut resumed, &solver, &data, &plan, &mut kept, &mut go_on)
                .unwrap();
        assert_eq!(without_seconds(report), expected, "{stop}");
        assert_eq!(resumed.blocks, whole.blocks, "{stop}");
        let calibrated = |block| resumed.calls.contains(&format!("tap {block}"));
        assert!((0..finished).all(|block| !calibrated(block)), "{stop}");
        assert!((finished..4).all(calibrated), "{stop}");
    }
}

#[test]
fn so_has_one_that_aims_at_the_dense_models_outputs_shares_tokens_or_goes_in_stages() {
    let (solver, data, [plan, _]) = (Solver::new(Host), sequences(4), plans());
    let cases = [
        plan.clone().with_dense_targets(0.25),
        plan.clone()
            .with_dense_targets(0.25)
            .with_starved(Starved::Share),
        plan.with_true_sequential(true),
    ];
    for plan in cases {
        let mut whole = model();
        let expected = prune_model(&mut whole, &solver, &data, &plan, &mut go_on).unwrap();
        let expected = without_seconds(expected);
        for full_at in 0..4 {
            let mut kept = Kept {
                full_at: Some(full_at),
                ..Kept::default()
            };
            prune_model_resumable(&mut model(), &solver, &data, &plan, &mut kept, &mut go_on)
                .unwrap_err();
            assert_eq!(kept.finished.len(), full_at);
            let mut kept = Kept {
                finished: kept.finished,
                ..Kept::default()
            };
            let mut resumed = model();
            let report =
                prune_model_resumable(&mut resumed, &solver, &data, &plan, &mut kept, &mut go_on)
                    .unwrap();
            assert_eq!(without_seconds(report), expected, "{full_at}");
            assert_eq!(resumed.blocks, whole.blocks, "{full_at}");
            assert_eq!(kept.finished.len(), 4);
        }
    }
}

#[test]
fn so_has_one_with_several_plans() {
    let (solver, data, [first, second]) = (Solver::new(Host), sequences(4), plans());
    let plans = [first.with_starved(Starved::Share), second];
    let mut whole = BTreeMap::new();
    let expected = prune_model_variants(
        &mut model(),
        &solver,
        &data,
        &plans,
        &mut |layer| {
            whole.insert(
                (layer.variant, layer.block, layer.layer),
                layer.pruned.weights,
            );
            Ok(())
        },
        &mut go_on,
    )
    .unwrap();
    let expected: Vec<_> = expected.into_iter().map(without_seconds).collect();
    for full_at in 0..4 {
        let mut kept = Kept {
            full_at: Some(full_at),
            ..Kept::default()
        };
        let run = |kept: &mut Kept| {
            let mut layers = BTreeMap::new();
            let result = prune_model_variants_resumable(
                &mut model(),
                &solver,
                &data,
                &plans,
                kept,
                &mut |layer| {
                    layers.insert(
                        (layer.variant, layer.block, layer.layer),
                        layer.pruned.weights,
                    );
                    Ok(())
                },
                &mut go_on,
            );
            result.map(|reports| (reports, layers))
        };
        let error = run(&mut kept).unwrap_err().error;
        assert!(
            error.source().unwrap().to_string().contains("disk"),
            "{error}"
        );
        assert_eq!(kept.finished.len(), full_at);
        let mut kept = Kept {
            finished: kept.finished,
            ..Kept::default()
        };
        let (reports, layers) = run(&mut kept).unwrap();
        let reports: Vec<_> = reports.into_iter().map(without_seconds).collect();
        assert_eq!(reports, expected, "{full_at}");
        assert_eq!(layers, whole, "{full_at}");
    }
}

#[test]
fn what_was_kept_of_another_run_is_refused() {
    let (solver, data, [plan, _]) = (Solver::new(Host), sequences(4), plans());
    let mut kept = Kept::default();
    prune_model_resumable(&mut model(), &solver, &data, &plan, &mut kept, &mut go_on).unwrap();
    let spoil = [
        |layers: &mut Vec<FinishedLayer>| drop(layers.pop()),
        |layers: &mut Vec<FinishedLayer>| layers[0].layer = 1,
        |layers: &mut Vec<FinishedLayer>| layers[0].variant = 1,
        |layers: &mut Vec<FinishedLayer>| layers[0].block = 2,
        |layers: &mut Vec<FinishedLayer>| layers.push(layers[0].clone()),
    ];
    for spoil in spoil {
        let mut kept = kept.clone();
        spoil(kept.finished.get_mut(&1).unwrap());
        let error =
            prune_model_resumable(&mut model(), &solver, &data, &plan, &mut kept, &mut go_on)
                .unwrap_err()
                .error;
        let source = error.source().map_or(String::new(), ToString::to_string);
        assert!(format!("{error} {source}").contains("block 1"), "{error}");
    }
}
