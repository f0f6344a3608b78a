//! The pass over the blocks.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

use ndarray::Array2;

use super::block::{PlannedBlock, Treatment};
use super::tap::{HessianTap, KeepingTap};
use super::{
    BlockKeeper, FinishedLayer, Interrupted, ModelAdapter, ModelPlan, NoTap, ObservedLayer,
    ProgressEvent, Starved, Tap,
};
use crate::error::{Error, Result};
use crate::hessian::Statistics;
use crate::report::{LayerReport, ModelReport, ModelSeconds, Propagation};
use crate::solver::{LayerPruner, LayerSettings, LayerTask};

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
        name: &str,
        layer: FinishedLayer,
    ) -> Result<LayerReport> {
        let FinishedLayer { variant, block, .. } = layer;
        match self {
            Self::Model => {
                adapter
                    .replace_weight(block, layer.layer, layer.pruned.weights)
                    .map_err(|e| failed(block, &format!("replace the weight of {name}"), e))?;
                Ok(layer.pruned.report)
            }
            Self::Observer(_) => Ok(layer.pruned.report),
            Self::Caller(finished) => {
                let report = layer.pruned.report.clone();
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
    keeper: Option<&'a mut dyn BlockKeeper>,
    cancelled: bool,
    /// Calibration sequences, the last ones, that only judge.
    held_out: usize,
    /// The dense model's hidden states before the block at hand, where a layer aims at its outputs.
    dense: Vec<A::Hidden>,
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
            keeper: None,
            cancelled: false,
            held_out: 0,
            dense: Vec::new(),
            reports: Vec::new(),
            seconds: ModelSeconds::default(),
        }
    }

    /// The same with a place for finished blocks, and perhaps some in it.
    pub(super) fn keeping(mut self, keeper: &'a mut dyn BlockKeeper) -> Self {
        self.keeper = Some(keeper);
        self
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
        let aims_at_dense = blocks.iter().any(PlannedBlock::has_dense_targets);
        if aims_at_dense && self.outlet.propagation() == Propagation::Pruned {
            if blocks.iter().any(|planned| planned.stages().len() > 1) {
                return Err(Error::setting(
                    "dense targets",
                    "0 for runs that calibrate the layers of a block in turn (true-sequential): the dense block is gone by then",
                    "more",
                ));
            }
            for sequence in sequences {
                let embedded = self.adapter.embed(sequence);
                let embedded =
                    embedded.map_err(|e| failed(0, "embed a calibration sequence", e))?;
                self.dense.push(embedded);
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
            // Where the block stays dense, its calibration gives the next block's inputs too, unless its own are needed once
            // more.
            let may_share = planned.treatments().any(|treatment| {
                treatment.starved == Starved::Share
                    && self.adapter.may_starve(block, treatment.layer.input)
            });
            let went_on = goes_on
                && planned.needs_hessian()
                && !may_share
                && self.outlet.propagation() == Propagation::Dense;
            if self.keeper.as_ref().is_some_and(|keeper| keeper.has(block)) {
                self.pass_dense(block, planned)?;
                self.restore(block, planned)?;
                if went_on {
                    self.calibrate(block, planned, &[], &mut hidden, went_on)?;
                }
            } else {
                for inputs in self.stages(planned) {
                    let mut statistics =
                        self.calibrate(block, planned, &inputs, &mut hidden, went_on)?;
                    let routed = self.routed(block, &statistics);
                    if may_share {
                        self.share(block, planned, &mut hidden, &routed, &mut statistics)?;
                    }
                    self.solve(block, planned, &inputs, statistics, &routed)?;
                }
                self.commit(block)?;
            }
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

    /// Runs the block, dense as it still is, on the dense model's hidden states, where there are any: in the batches in which
    /// calibrating it would.
    fn pass_dense(&mut self, block: usize, planned: &PlannedBlock<'_>) -> Result<()> {
        let of = self.dense.len();
        let calibrating = match planned.needs_hessian() {
            true => of.saturating_sub(self.held_out),
            false => of,
        };
        for sequences in [0..calibrating, calibrating..of] {
            self.dense_inputs(block, &[], sequences)?;
        }
        Ok(())
    }

    /// Takes the block over from an earlier run.
    fn restore(&mut self, block: usize, planned: &PlannedBlock<'_>) -> Result<()> {
        let inputs = self.stages(planned).concat();
        let Self {
            adapter,
            outlet,
            keeper,
            reports,
            ..
        } = self;
        let Some(keeper) = keeper else {
            return Ok(());
        };
        let treatments: Vec<_> = planned.treatments().collect();
        let mut missing: BTreeSet<_> = treatments.iter().map(|t| (t.variant, t.index)).collect();
        let mut starved = BTreeMap::new();
        keeper
            .restore(block, &mut |layer| {
                let place = (layer.variant, layer.layer);
                let treatment = treatments.iter().find(|t| (t.variant, t.index) == place);
                let treatment = treatment
                    .filter(|_| layer.block == block && missing.remove(&place))
                    .filter(|treatment| {
                        layer.pruned.weights.dim() == (treatment.layer.rows, treatment.layer.cols)
                    })
                    .ok_or_else(|| foreign(block, &layer.pruned.report.layer))?;
                if let Some(tokens) = layer.starved {
                    starved.insert(place, tokens);
                }
                let done = outlet.hand_on(*adapter, &treatment.layer.name, layer)?;
                reports[treatment.variant].layers.push(done);
                Ok(())
            })
            .map_err(|e| failed(block, "take over the finished block", e))?;
        if let Some((_, layer)) = missing.first() {
            return Err(foreign(block, &format!("layer {layer}, which is missing")));
        }
        // In the order in which a run comes upon them.
        for input in inputs {
            for treatment in planned.reading(input) {
                if let Some(&tokens) = starved.get(&(treatment.variant, treatment.index)) {
                    let report = &mut reports[treatment.variant];
                    report.starved.push(treatment.starved_layer(tokens));
                }
            }
        }
        self.tell(&ProgressEvent::BlockRestored { block });
        Ok(())
    }

    fn commit(&mut self, block: usize) -> Result<()> {
        match &mut self.keeper {
            Some(keeper) => keeper
                .commit(block)
                .map_err(|e| failed(block, "keep the finished block", e)),
            None => Ok(()),
        }
    }

    /// The inputs whose layers are calibrated and treated together, in turn: all of a block, or those of each stage.
    fn stages(&self, planned: &PlannedBlock<'_>) -> Vec<Vec<usize>> {
        match self.outlet.propagation() {
            Propagation::Pruned => planned.stages(),
            Propagation::Dense => vec![planned.inputs()],
        }
    }

    /// Runs the block as it is over the calibration set and collects the Hessian of each of some inputs that a layer
    /// needs, without a pass where none does. With `go_on` the hidden states become the block's outputs.
    fn calibrate(
        &mut self,
        block: usize,
        planned: &PlannedBlock<'_>,
        inputs: &[usize],
        hidden: &mut [A::Hidden],
        go_on: bool,
    ) -> Result<Vec<(usize, Box<dyn Statistics>)>> {
        let start = Instant::now();
        let mut tap = HessianTap::default();
        for treatment in planned.treatments() {
            let input = treatment.layer.input;
            if treatment.needs_hessian() && inputs.contains(&input) && !tap.wants(input) {
                let name = planned.shared_name(input);
                tap.statistics
                    .push((input, self.pruner.statistics(&name, treatment.layer.cols)?));
            }
        }
        if tap.statistics.is_empty() && !go_on {
            self.dense_inputs(block, &[], 0..self.dense.len())?;
            return Ok(Vec::new());
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
        let wanted: Vec<usize> = tap
            .statistics
            .iter()
            .map(|(input, _)| *input)
            .filter(|&input| !self.adapter.may_starve(block, input))
            .collect();
        let of = hidden.len();
        let calibrating = of - self.held_out;
        let mut done = 0;
        while done < of {
            tap.holds_out = done >= calibrating;
            let end = if tap.holds_out { of } else { calibrating };
            let batch = self.batch(&hidden[done..end]);
            // The dense model has been shown this block when its inputs are looked at again.
            if !self.dense.is_empty() && !tap.all {
                tap.dense = self.dense_inputs(block, &wanted, done..done + batch)?;
            }
            let hidden = &mut hidden[done..done + batch];
            let action = "run the dense block";
            if go_on {
                self.advance(block, hidden, tap, action)?;
            } else {
                self.adapter
                    .observe_batch(block, hidden, tap)
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

    /// Runs the block, dense as it still is, on some of the dense model's hidden states, which become its outputs; what its
    /// layers read on the way.
    fn dense_inputs(
        &mut self,
        block: usize,
        wanted: &[usize],
        sequences: Range<usize>,
    ) -> Result<Vec<(usize, Array2<f32>)>> {
        let mut tap = KeepingTap::new(wanted.to_vec());
        let mut dense = std::mem::take(&mut self.dense);
        let mut done = sequences.start;
        while done < sequences.end {
            // At once where the inputs are wanted, as the others come.
            let batch = match wanted {
                [] => self.batch(&dense[done..sequences.end]),
                _ => sequences.len(),
            };
            let hidden = &mut dense[done..done + batch];
            self.advance(block, hidden, &mut tap, "run the dense block")?;
            done += batch;
        }
        self.dense = dense;
        Ok(tap.kept)
    }

    /// Solves the layers that read some of a block's inputs, those of one input together, under all plans, or shows them
    /// to the observer.
    fn solve(
        &mut self,
        block: usize,
        planned: &PlannedBlock<'_>,
        inputs: &[usize],
        mut statistics: Vec<(usize, Box<dyn Statistics>)>,
        routed: &BTreeMap<usize, u64>,
    ) -> Result<()> {
        let mut since = Instant::now();
        for &input in inputs {
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
            let routed = routed.get(&input).copied();
            let starved =
                |treatment: &Treatment<'_>| routed.filter(|&tokens| treatment.starves_at(tokens));
            let settings = self.settings(&group, routed, tokens)?;
            // What is left to magnitude is not measured on the few tokens that were too few to calibrate on.
            if !settings.iter().any(|settings| settings.needs_hessian()) {
                hessian = hessian.filter(|_| !group.iter().any(|one| starved(one).is_some()));
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
                keeper,
                cancelled,
                reports,
                ..
            } = self;
            pruner.prune_layers(hessian.as_deref_mut(), &tasks, &mut |task, mut pruned| {
                let treatment = &group[task];
                if let Some(tokens) = starved(treatment) {
                    pruned.report.tokens = pruned.report.tokens.max(tokens);
                }
                let name = &treatment.layer.name;
                let mut layer = FinishedLayer {
                    variant: treatment.variant,
                    block,
                    layer: treatment.index,
                    starved: starved(treatment),
                    pruned,
                };
                if let Some(keeper) = keeper {
                    keeper
                        .keep(&mut layer)
                        .map_err(|e| failed(block, &format!("keep {name}"), e))?;
                }
                let done = outlet.hand_on(*adapter, name, layer)?;
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
            let report = &mut self.reports[treatment.variant];
            report.starved.push(treatment.starved_layer(routed));
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

/// What was kept is not of this run.
fn foreign(block: usize, layer: &str) -> Error {
    Error::incompatible(
        layer,
        format!("what was kept of block {block} is not what this plan treats there"),
        "start over",
    )
}

fn failed(block: usize, action: &str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::Adapter {
        block,
        action: format!("cannot {action}"),
        source: source.into(),
    }
}
