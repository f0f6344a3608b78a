//! The pass over the blocks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::ops::ControlFlow;
use std::time::Instant;

use ndarray::Array2;

use super::block::{PlannedBlock, Treatment};
use super::tap::HessianTap;
use super::{
    FinishedLayer, Interrupted, ModelAdapter, ModelPlan, NoTap, ObservedLayer, ProgressEvent,
    Starved, Tap,
};
use crate::error::{Error, Result};
use crate::hessian::Statistics;
use crate::report::{LayerReport, ModelReport, ModelSeconds, Propagation, StarvedLayer};
use crate::solver::{LayerPruner, LayerSettings, LayerTask, PrunedLayer};

/// Where finished layers go, and with it what the blocks behind them are calibrated on.
pub(super) enum Outlet<'a> {
    /// Into the model, which runs on with them.
    Model,
    /// Nowhere: layers are shown and not treated, and the model stays dense.
    Observer(&'a mut dyn FnMut(&ObservedLayer<'_>) -> Result<()>),
    /// To the caller; the model stays dense.
    Caller(&'a mut dyn FnMut(FinishedLayer) -> Result<(), Box<dyn StdError + Send + Sync>>),
}

impl fmt::Debug for Outlet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outlet").field(&self.propagation()).finish()
    }
}

impl Outlet<'_> {
    fn propagation(&self) -> Propagation {
        match self {
            Self::Model => Propagation::Pruned,
            Self::Observer(_) | Self::Caller(_) => Propagation::Dense,
        }
    }

    /// Hands a layer on and keeps its report.
    fn hand_on<A: ModelAdapter>(
        &mut self,
        adapter: &mut A,
        block: usize,
        treatment: &Treatment<'_>,
        pruned: PrunedLayer,
    ) -> Result<LayerReport> {
        let Treatment { variant, index, .. } = *treatment;
        let name = &treatment.layer.name;
        match self {
            Self::Model => {
                adapter
                    .replace_weight(block, index, pruned.weights)
                    .map_err(|e| failed(block, &format!("replace the weight of {name}"), e))?;
                Ok(pruned.report)
            }
            Self::Observer(_) => Ok(pruned.report),
            Self::Caller(finished) => {
                let report = pruned.report.clone();
                let layer = FinishedLayer {
                    variant,
                    block,
                    layer: index,
                    pruned,
                };
                finished(layer).map_err(|e| {
                    failed(block, &format!("hand on {name} of variant {variant}"), e)
                })?;
                Ok(report)
            }
        }
    }
}

pub(super) struct Run<'a, A: ModelAdapter> {
    adapter: &'a mut A,
    pruner: &'a dyn LayerPruner,
    outlet: Outlet<'a>,
    progress: &'a mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
    cancelled: bool,
    /// Calibration sequences, the last ones, that only judge.
    held_out: usize,
    /// One a plan.
    reports: Vec<ModelReport>,
    /// What all plans share; each one's time of solving stands in its report.
    seconds: ModelSeconds,
}

impl<'a, A: ModelAdapter> Run<'a, A> {
    pub(super) fn new(
        adapter: &'a mut A,
        pruner: &'a dyn LayerPruner,
        outlet: Outlet<'a>,
        progress: &'a mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
    ) -> Self {
        Self {
            adapter,
            pruner,
            outlet,
            progress,
            cancelled: false,
            held_out: 0,
            reports: Vec::new(),
            seconds: ModelSeconds::default(),
        }
    }

    /// The run, with one report a plan whatever becomes of it.
    pub(super) fn all(
        mut self,
        sequences: &[A::Sequence],
        plans: &[ModelPlan],
    ) -> Result<Vec<ModelReport>, Box<Interrupted<Vec<ModelReport>>>> {
        let info = self.pruner.info();
        let report = ModelReport {
            backend: info.name,
            device: info.device,
            products: info.products,
            blocks: 0,
            sequences: sequences.len(),
            propagation: self.outlet.propagation(),
            layers: Vec::new(),
            skipped: Vec::new(),
            allocation: None,
            starved: Vec::new(),
            seconds: ModelSeconds::default(),
        };
        self.reports = plans
            .iter()
            .map(|plan| ModelReport {
                allocation: plan.allocation().cloned(),
                ..report.clone()
            })
            .collect();
        let start = Instant::now();
        let result = self.all_blocks(sequences, plans);
        self.seconds.total = start.elapsed().as_secs_f64();
        for report in &mut self.reports {
            report.seconds = ModelSeconds {
                solve: report.seconds.solve,
                ..self.seconds.clone()
            };
        }
        let finished = self.reports;
        match result {
            Ok(()) => Ok(finished),
            Err(error) => Err(Box::new(Interrupted { error, finished })),
        }
    }

    fn all_blocks(&mut self, sequences: &[A::Sequence], plans: &[ModelPlan]) -> Result<()> {
        if plans.is_empty() {
            return Err(Error::NothingToPrune {
                reason: "there is no plan; give one a variant".to_owned(),
            });
        }
        let held_out = plans.iter().map(ModelPlan::held_out).max().unwrap_or(0);
        let plans = plans
            .iter()
            .map(|plan| plan.resolve(self.adapter))
            .collect::<Result<Vec<_>>>()?;
        for (report, planned) in self.reports.iter_mut().zip(&plans) {
            report.blocks = planned.len();
            report.skipped = planned
                .iter()
                .flatten()
                .filter(|layer| layer.settings.is_none())
                .map(|layer| layer.layer.name.clone())
                .collect();
        }
        let blocks = PlannedBlock::all(&plans);
        let last_calibrated = blocks.iter().rposition(PlannedBlock::needs_hessian);
        if last_calibrated.is_some() && sequences.is_empty() {
            return Err(Error::NothingToPrune {
                reason: "there are no calibration sequences, and the method needs them".to_owned(),
            });
        }
        self.held_out = held_out;
        if last_calibrated.is_some() && self.held_out >= sequences.len() {
            return Err(Error::setting(
                "held-out sequences",
                format!("fewer than the {} of the calibration set", sequences.len()),
                self.held_out,
            ));
        }
        let mut hidden = Vec::new();
        if last_calibrated.is_some() {
            for sequence in sequences {
                hidden.push(
                    self.adapter
                        .embed(sequence)
                        .map_err(|e| failed(0, "embed a calibration sequence", e))?,
                );
            }
        }
        let last_treated = blocks
            .iter()
            .rposition(|planned| planned.treatments().next().is_some())
            .unwrap_or(0);
        for (block, planned) in blocks.iter().enumerate().take(last_treated + 1) {
            if self.cancelled {
                return Err(Error::Cancelled { block });
            }
            self.tell(&ProgressEvent::BlockStarted {
                block,
                blocks: blocks.len(),
                layers: planned.treatments().count(),
            });
            self.in_blocks(|adapter| {
                adapter
                    .begin_block(block)
                    .map_err(|e| failed(block, "load the block", e))
            })?;
            // Hidden states are needed as far as the last block whose Hessians are.
            let goes_on = last_calibrated.is_some_and(|last| block < last);
            let mut went_on = false;
            let mut statistics = Vec::new();
            let mut routed = BTreeMap::new();
            if planned.needs_hessian() {
                // Where the block stays dense, its calibration gives the next block's inputs too, unless its own are
                // needed once more.
                let may_share = planned.treatments().any(|treatment| {
                    treatment.starved == Starved::Share
                        && self.adapter.may_starve(block, treatment.layer.input)
                });
                went_on = goes_on && !may_share && self.outlet.propagation() == Propagation::Dense;
                statistics = self.calibrate(block, planned, &mut hidden, went_on)?;
                routed = self.routed(block, &statistics);
                if may_share {
                    self.share(block, planned, &mut hidden, &routed, &mut statistics)?;
                }
            }
            self.solve(block, planned, statistics, &routed)?;
            if goes_on && !went_on {
                self.propagate(block, &mut hidden)?;
            }
            self.in_blocks(|adapter| {
                adapter
                    .end_block(block)
                    .map_err(|e| failed(block, "store the block", e))
            })?;
            self.tell(&ProgressEvent::BlockDone { block });
        }
        Ok(())
    }

    /// Runs the dense block over the calibration set and collects the Hessian of each input that a layer
    /// needs. With `go_on` the hidden states become the block's outputs.
    fn calibrate(
        &mut self,
        block: usize,
        planned: &PlannedBlock<'_>,
        hidden: &mut [A::Hidden],
        go_on: bool,
    ) -> Result<Vec<(usize, Box<dyn Statistics>)>> {
        let start = Instant::now();
        let mut tap = HessianTap::default();
        for treatment in planned.treatments() {
            let input = treatment.layer.input;
            if treatment.needs_hessian() && !tap.wants(input) {
                let name = planned.shared_name(input);
                tap.statistics
                    .push((input, self.pruner.statistics(&name, treatment.layer.cols)?));
            }
        }
        self.observe(block, hidden, &mut tap, go_on)?;
        self.seconds.calibrate += start.elapsed().as_secs_f64();
        self.seconds.hessian += tap.seconds;
        Ok(tap.statistics)
    }

    /// Tokens that have reached each input which may starve.
    fn routed(
        &self,
        block: usize,
        statistics: &[(usize, Box<dyn Statistics>)],
    ) -> BTreeMap<usize, u64> {
        let may_starve = statistics
            .iter()
            .filter(|(input, _)| self.adapter.may_starve(block, *input));
        may_starve
            .map(|(input, statistics)| (*input, statistics.tokens()))
            .collect()
    }

    /// Puts statistics of all tokens of the block in place of those of starved inputs whose layers are to share them.
    fn share(
        &mut self,
        block: usize,
        planned: &PlannedBlock<'_>,
        hidden: &mut [A::Hidden],
        routed: &BTreeMap<usize, u64>,
        statistics: &mut [(usize, Box<dyn Statistics>)],
    ) -> Result<()> {
        let start = Instant::now();
        let mut tap = HessianTap {
            all: true,
            ..HessianTap::default()
        };
        for (&input, &tokens) in routed {
            let mut group = planned.reading(input).into_iter();
            let sharing = group.find(|treatment| {
                treatment.starved == Starved::Share && treatment.starves_at(tokens)
            });
            if let Some(treatment) = sharing {
                let name = planned.shared_name(input);
                let of_all = self.pruner.statistics(&name, treatment.layer.cols)?;
                tap.statistics.push((input, of_all));
            }
        }
        if !tap.statistics.is_empty() {
            self.observe(block, hidden, &mut tap, false)?;
        }
        for (input, of_all) in tap.statistics {
            if let Some((_, own)) = statistics.iter_mut().find(|(of, _)| *of == input) {
                *own = of_all;
            }
        }
        self.seconds.calibrate += start.elapsed().as_secs_f64();
        self.seconds.hessian += tap.seconds;
        Ok(())
    }

    /// Runs the dense block over the calibration set with a tap. With `go_on` the hidden states become the block's
    /// outputs.
    fn observe(
        &mut self,
        block: usize,
        hidden: &mut [A::Hidden],
        tap: &mut HessianTap,
        go_on: bool,
    ) -> Result<()> {
        let of = hidden.len();
        let calibrating = of - self.held_out;
        let mut done = 0;
        while done < of {
            tap.holds_out = done >= calibrating;
            let end = if tap.holds_out { of } else { calibrating };
            let batch = self.batch(&hidden[done..end]);
            let inputs = &mut hidden[done..done + batch];
            let action = "run the dense block";
            if go_on {
                self.advance(block, inputs, tap, action)?;
            } else {
                self.adapter
                    .observe_batch(block, inputs, tap)
                    .map_err(|e| failed(block, action, e))?;
            }
            if let Some(error) = tap.error.take() {
                return Err(error);
            }
            done += batch;
            self.tell(&ProgressEvent::Calibrated { block, done, of });
            if self.cancelled {
                return Err(Error::Cancelled { block });
            }
        }
        Ok(())
    }

    /// Solves the block's layers, those of one input together, under all plans, or shows them to the observer.
    fn solve(
        &mut self,
        block: usize,
        planned: &PlannedBlock<'_>,
        mut statistics: Vec<(usize, Box<dyn Statistics>)>,
        routed: &BTreeMap<usize, u64>,
    ) -> Result<()> {
        let mut since = Instant::now();
        for input in planned.inputs() {
            let group = planned.reading(input);
            let weights = self.weights(block, &group)?;
            // Taken out of the list, so that each Hessian is freed as soon as its layers are done.
            let mut hessian = statistics
                .iter()
                .position(|(of, _)| *of == input)
                .map(|at| statistics.swap_remove(at).1);
            if let Outlet::Observer(seen) = &mut self.outlet {
                for treatment in &group {
                    seen(&ObservedLayer {
                        block,
                        layer: treatment.index,
                        name: &treatment.layer.name,
                        weights: weights[&treatment.index].view(),
                        statistics: hessian.as_deref(),
                    })?;
                }
                continue;
            }
            let tokens = hessian.as_ref().map_or(0, |hessian| hessian.tokens());
            let settings = self.settings(&group, routed.get(&input).copied(), tokens)?;
            // What is left to magnitude is not measured on the few tokens that were too few to calibrate on.
            if !settings.iter().any(|settings| settings.needs_hessian()) {
                let starved = |treatment: &Treatment<'_>| {
                    routed
                        .get(&input)
                        .is_some_and(|&tokens| treatment.starves_at(tokens))
                };
                hessian = hessian.filter(|_| !group.iter().any(starved));
            }
            let tasks: Vec<LayerTask<'_>> = group
                .iter()
                .zip(&settings)
                .map(|(treatment, settings)| LayerTask {
                    name: &treatment.layer.name,
                    weights: weights[&treatment.index].view(),
                    settings,
                })
                .collect();
            let Self {
                adapter,
                pruner,
                outlet,
                progress,
                cancelled,
                reports,
                ..
            } = self;
            pruner.prune_layers(hessian.as_deref_mut(), &tasks, &mut |task, pruned| {
                let treatment = &group[task];
                let done = outlet.hand_on(*adapter, block, treatment, pruned)?;
                let report = &mut reports[treatment.variant];
                report.seconds.solve += since.elapsed().as_secs_f64();
                since = Instant::now();
                *cancelled |= progress(&ProgressEvent::LayerDone { report: &done }).is_break();
                report.layers.push(done);
                if *cancelled {
                    return Err(Error::Cancelled { block });
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// What is done to a group's layers; where too few tokens were routed to their input (`None`: it cannot starve),
    /// what is done then, with statistics of so many.
    fn settings<'p>(
        &mut self,
        group: &[Treatment<'p>],
        routed: Option<u64>,
        tokens: u64,
    ) -> Result<Vec<Cow<'p, LayerSettings>>> {
        let of = |treatment: &Treatment<'p>| {
            let Some(routed) = routed.filter(|&routed| treatment.starves_at(routed)) else {
                return Ok(Cow::Borrowed(treatment.settings));
            };
            let settings = treatment.starved(routed, tokens)?;
            self.reports[treatment.variant].starved.push(StarvedLayer {
                layer: treatment.layer.name.clone(),
                tokens: routed,
                least_tokens: treatment.least_tokens,
                treatment: treatment.starved,
            });
            Ok(settings)
        };
        group.iter().map(of).collect()
    }

    /// The dense weights of a group's layers, by index.
    fn weights(
        &self,
        block: usize,
        group: &[Treatment<'_>],
    ) -> Result<BTreeMap<usize, Array2<f32>>> {
        let mut weights = BTreeMap::new();
        for &Treatment { index, layer, .. } in group {
            if weights.contains_key(&index) {
                continue;
            }
            let weight = self
                .adapter
                .weight(block, index)
                .map_err(|e| failed(block, &format!("read the weight of {}", layer.name), e))?;
            if weight.dim() != (layer.rows, layer.cols) {
                return Err(Error::Shape {
                    layer: layer.name.clone(),
                    what: "the adapter's weight",
                    expected: format!("{} x {}", layer.rows, layer.cols),
                    found_rows: weight.nrows(),
                    found_cols: weight.ncols(),
                });
            }
            weights.insert(index, weight);
        }
        Ok(weights)
    }

    /// How many of these hidden states go through a block together.
    fn batch(&self, hidden: &[A::Hidden]) -> usize {
        self.adapter.batch(hidden).clamp(1, hidden.len())
    }

    /// Runs a block; what comes out takes the place of what goes in.
    fn advance(
        &mut self,
        block: usize,
        hidden: &mut [A::Hidden],
        tap: &mut dyn Tap,
        action: &str,
    ) -> Result<()> {
        let next = self
            .adapter
            .run_batch(block, hidden, tap)
            .map_err(|e| failed(block, action, e))?;
        if next.len() != hidden.len() {
            return Err(Error::incompatible(
                "",
                format!(
                    "the adapter made {} hidden states of {} in block {block}",
                    next.len(),
                    hidden.len()
                ),
                "return one for each from ModelAdapter::run_batch",
            ));
        }
        for (hidden, next) in hidden.iter_mut().zip(next) {
            *hidden = next;
        }
        Ok(())
    }

    /// Runs the block as it is now over the calibration set to get the next block's inputs.
    fn propagate(&mut self, block: usize, hidden: &mut [A::Hidden]) -> Result<()> {
        let start = Instant::now();
        let action = match self.outlet.propagation() {
            Propagation::Pruned => "run the pruned block",
            Propagation::Dense => "run the dense block",
        };
        let of = hidden.len();
        let mut done = 0;
        while done < of {
            let batch = self.batch(&hidden[done..]);
            self.advance(block, &mut hidden[done..done + batch], &mut NoTap, action)?;
            done += batch;
            self.tell(&ProgressEvent::Propagated { block, done, of });
            if self.cancelled {
                return Err(Error::Cancelled { block });
            }
        }
        self.seconds.propagate += start.elapsed().as_secs_f64();
        Ok(())
    }

    fn in_blocks(&mut self, step: impl FnOnce(&mut A) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let result = step(self.adapter);
        self.seconds.blocks += start.elapsed().as_secs_f64();
        result
    }

    fn tell(&mut self, event: &ProgressEvent<'_>) {
        self.cancelled |= (self.progress)(event).is_break();
    }
}

fn failed(block: usize, action: &str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::Adapter {
        block,
        action: format!("cannot {action}"),
        source: source.into(),
    }
}
