//! A whole model, block by block, over a [`ModelAdapter`].
//!
//! Blocks go in order. Block t sees the outputs of the already treated blocks; the Hessians of a block are
//! taken in one pass over the calibration set with that block still dense; then its layers are solved, and
//! the block is run once more with its new weights to give the next block's inputs (paper, section 4).

mod adapter;
mod plan;

use std::fmt;
use std::ops::ControlFlow;
use std::time::Instant;

pub use adapter::{BlockLayer, ModelAdapter, NoTap, Tap};
pub use plan::{ModelPlan, PlannedLayer, Rule, Selector};

use crate::error::{Error, Result};
use crate::hessian::{Batch, Statistics};
use crate::report::{LayerReport, ModelReport, ModelSeconds};
use crate::solver::{LayerPruner, LayerTask};

/// What a run is doing, for progress bars.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// A block begins.
    BlockStarted {
        /// The block.
        block: usize,
        /// Blocks of the model.
        blocks: usize,
        /// Layers to treat in it.
        layers: usize,
    },
    /// One or some more sequences have gone through a block to collect its Hessians.
    Calibrated {
        /// The block.
        block: usize,
        /// Sequences done.
        done: usize,
        /// Sequences in all.
        of: usize,
    },
    /// A layer is finished.
    LayerDone {
        /// Its report.
        report: &'a LayerReport,
    },
    /// One or some more sequences have gone through a treated block.
    Propagated {
        /// The block.
        block: usize,
        /// Sequences done.
        done: usize,
        /// Sequences in all.
        of: usize,
    },
    /// A block is finished and handed to the adapter.
    BlockDone {
        /// The block.
        block: usize,
    },
}

/// A run that ended early: the error, and what was finished before it.
///
/// Weights of finished layers have been handed to the adapter and stay there.
#[derive(Debug)]
pub struct Interrupted {
    /// What went wrong.
    pub error: Error,
    /// The layers finished before.
    pub finished: ModelReport,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} layers were finished)",
            self.error,
            self.finished.layers.len()
        )
    }
}

impl std::error::Error for Interrupted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl From<Box<Interrupted>> for Error {
    fn from(interrupted: Box<Interrupted>) -> Self {
        interrupted.error
    }
}

/// Prunes a model: every layer the plan names, block by block.
///
/// `sequences` may be empty if no planned method needs a Hessian. `progress` is called often; returning
/// [`ControlFlow::Break`] stops the run before the next step.
///
/// # Errors
/// The first failure, with the report of the layers finished before it: settings that do not fit a layer
/// (found before any work is done), a failing adapter, NaN in activations, a layer that cannot be solved.
pub fn prune_model<A: ModelAdapter>(
    adapter: &mut A,
    pruner: &dyn LayerPruner,
    sequences: &[A::Sequence],
    plan: &ModelPlan,
    progress: &mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
) -> Result<ModelReport, Box<Interrupted>> {
    let info = pruner.info();
    let mut run = Run {
        adapter,
        pruner,
        progress,
        cancelled: false,
        report: ModelReport {
            backend: info.name,
            device: info.device,
            products: info.products,
            blocks: 0,
            sequences: sequences.len(),
            layers: Vec::new(),
            skipped: Vec::new(),
            seconds: ModelSeconds::default(),
        },
    };
    let start = Instant::now();
    let result = run.all_blocks(sequences, plan);
    run.report.seconds.total = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => Ok(run.report),
        Err(error) => Err(Box::new(Interrupted {
            error,
            finished: run.report,
        })),
    }
}

struct Run<'a, A: ModelAdapter> {
    adapter: &'a mut A,
    pruner: &'a dyn LayerPruner,
    progress: &'a mut dyn FnMut(&ProgressEvent<'_>) -> ControlFlow<()>,
    cancelled: bool,
    report: ModelReport,
}

impl<A: ModelAdapter> Run<'_, A> {
    fn all_blocks(&mut self, sequences: &[A::Sequence], plan: &ModelPlan) -> Result<()> {
        let planned = plan.resolve(self.adapter)?;
        self.report.blocks = planned.len();
        self.report.skipped = planned
            .iter()
            .flatten()
            .filter(|layer| layer.settings.is_none())
            .map(|layer| layer.layer.name.clone())
            .collect();
        let needs_hessian = |layers: &[PlannedLayer]| {
            layers
                .iter()
                .flat_map(|layer| &layer.settings)
                .any(|s| s.method.needs_hessian())
        };
        let last_calibrated = planned.iter().rposition(|layers| needs_hessian(layers));
        if last_calibrated.is_some() && sequences.is_empty() {
            return Err(Error::NothingToPrune {
                reason: "there are no calibration sequences, and the method needs them".to_owned(),
            });
        }
        let mut hidden = Vec::new();
        if last_calibrated.is_some() {
            for sequence in sequences {
                hidden.push(
                    self.adapter
                        .embed(sequence)
                        .map_err(|e| failed::<A>(0, "embed a calibration sequence", e))?,
                );
            }
        }
        let last_treated = planned
            .iter()
            .rposition(|layers| layers.iter().any(|layer| layer.settings.is_some()))
            .unwrap_or(0);
        for (block, layers) in planned.iter().enumerate().take(last_treated + 1) {
            if self.cancelled {
                return Err(Error::Cancelled { block });
            }
            let treated = layers
                .iter()
                .filter(|layer| layer.settings.is_some())
                .count();
            self.tell(&ProgressEvent::BlockStarted {
                block,
                blocks: planned.len(),
                layers: treated,
            });
            self.in_blocks(|adapter| {
                adapter
                    .begin_block(block)
                    .map_err(|e| failed::<A>(block, "load the block", e))
            })?;
            // Hidden states are needed as far as the last block whose Hessians are.
            let wanted = last_calibrated.is_some_and(|last| block <= last);
            let collect = wanted && needs_hessian(layers);
            let mut statistics = Vec::new();
            if collect {
                statistics = self.calibrate(block, layers, &hidden)?;
            }
            if treated > 0 {
                self.solve(block, layers, statistics)?;
            }
            if last_calibrated.is_some_and(|last| block < last) {
                self.propagate(block, &mut hidden)?;
            }
            self.in_blocks(|adapter| {
                adapter
                    .end_block(block)
                    .map_err(|e| failed::<A>(block, "store the block", e))
            })?;
            self.tell(&ProgressEvent::BlockDone { block });
        }
        Ok(())
    }

    /// Runs the dense block over the calibration set and collects the Hessian of each input that a layer
    /// needs.
    fn calibrate(
        &mut self,
        block: usize,
        layers: &[PlannedLayer],
        hidden: &[A::Hidden],
    ) -> Result<Vec<(usize, Box<dyn Statistics>)>> {
        let start = Instant::now();
        let mut tap = HessianTap {
            statistics: Vec::new(),
            error: None,
            seconds: 0.0,
        };
        for planned in layers {
            let needed = planned
                .settings
                .as_ref()
                .is_some_and(|settings| settings.method.needs_hessian());
            let input = planned.layer.input;
            if needed && !tap.wants(input) {
                let name = shared_name(layers, input);
                tap.statistics
                    .push((input, self.pruner.statistics(&name, planned.layer.cols)?));
            }
        }
        let mut done = 0;
        while done < hidden.len() {
            let batch = self.batch(&hidden[done..]);
            self.adapter
                .observe_batch(block, &hidden[done..done + batch], &mut tap)
                .map_err(|e| failed::<A>(block, "run the dense block", e))?;
            if let Some(error) = tap.error.take() {
                return Err(error);
            }
            done += batch;
            let of = self.report.sequences;
            self.tell(&ProgressEvent::Calibrated { block, done, of });
            if self.cancelled {
                return Err(Error::Cancelled { block });
            }
        }
        self.report.seconds.calibrate += start.elapsed().as_secs_f64();
        self.report.seconds.hessian += tap.seconds;
        Ok(tap.statistics)
    }

    /// Solves the block's layers, those of one input together.
    fn solve(
        &mut self,
        block: usize,
        layers: &[PlannedLayer],
        mut statistics: Vec<(usize, Box<dyn Statistics>)>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut inputs: Vec<usize> = layers.iter().map(|planned| planned.layer.input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        for input in inputs {
            let mut group = Vec::new();
            for (index, planned) in layers.iter().enumerate() {
                let Some(settings) = &planned.settings else {
                    continue;
                };
                if planned.layer.input == input {
                    let weights = self.adapter.weight(block, index).map_err(|e| {
                        failed::<A>(
                            block,
                            &format!("read the weight of {}", planned.layer.name),
                            e,
                        )
                    })?;
                    if weights.dim() != (planned.layer.rows, planned.layer.cols) {
                        return Err(Error::Shape {
                            layer: planned.layer.name.clone(),
                            what: "the adapter's weight",
                            expected: format!("{} x {}", planned.layer.rows, planned.layer.cols),
                            found_rows: weights.nrows(),
                            found_cols: weights.ncols(),
                        });
                    }
                    group.push((index, settings, weights));
                }
            }
            if group.is_empty() {
                continue;
            }
            // Taken out of the list, so that each Hessian is freed as soon as its layers are done.
            let mut hessian = statistics
                .iter()
                .position(|(of, _)| *of == input)
                .map(|at| statistics.swap_remove(at).1);
            let tasks: Vec<LayerTask<'_>> = group
                .iter()
                .map(|(index, settings, weights)| LayerTask {
                    name: &layers[*index].layer.name,
                    weights: weights.view(),
                    settings,
                })
                .collect();
            let (adapter, report) = (&mut *self.adapter, &mut self.report);
            let (progress, cancelled) = (&mut *self.progress, &mut self.cancelled);
            self.pruner
                .prune_layers(hessian.as_deref_mut(), &tasks, &mut |task, pruned| {
                    let index = group[task].0;
                    adapter
                        .replace_weight(block, index, pruned.weights)
                        .map_err(|e| {
                            failed::<A>(
                                block,
                                &format!("replace the weight of {}", layers[index].layer.name),
                                e,
                            )
                        })?;
                    report.layers.push(pruned.report);
                    if let Some(report) = report.layers.last() {
                        *cancelled |= progress(&ProgressEvent::LayerDone { report }).is_break();
                    }
                    Ok(())
                })?;
            if self.cancelled {
                return Err(Error::Cancelled { block });
            }
        }
        self.report.seconds.solve += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Runs the treated block over the calibration set to get the next block's inputs.
    fn propagate(&mut self, block: usize, hidden: &mut [A::Hidden]) -> Result<()> {
        let start = Instant::now();
        let mut done = 0;
        while done < hidden.len() {
            let batch = self.batch(&hidden[done..]);
            let next = self
                .adapter
                .run_batch(block, &hidden[done..done + batch], &mut NoTap)
                .map_err(|e| failed::<A>(block, "run the pruned block", e))?;
            if next.len() != batch {
                return Err(Error::incompatible(
                    "",
                    format!(
                        "the adapter made {} hidden states of {batch} in block {block}",
                        next.len()
                    ),
                    "return one for each from ModelAdapter::run_batch",
                ));
            }
            for (hidden, next) in hidden[done..].iter_mut().zip(next) {
                *hidden = next;
            }
            done += batch;
            let of = self.report.sequences;
            self.tell(&ProgressEvent::Propagated { block, done, of });
            if self.cancelled {
                return Err(Error::Cancelled { block });
            }
        }
        self.report.seconds.propagate += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// How many of these hidden states go through a block together.
    fn batch(&self, hidden: &[A::Hidden]) -> usize {
        self.adapter.batch(hidden).clamp(1, hidden.len())
    }

    fn in_blocks(&mut self, step: impl FnOnce(&mut A) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        let result = step(self.adapter);
        self.report.seconds.blocks += start.elapsed().as_secs_f64();
        result
    }

    fn tell(&mut self, event: &ProgressEvent<'_>) {
        self.cancelled |= (self.progress)(event).is_break();
    }
}

fn failed<A: ModelAdapter>(block: usize, action: &str, source: A::Error) -> Error {
    Error::Adapter {
        block,
        action: format!("cannot {action}"),
        source: Box::new(source),
    }
}

/// The names of the layers that read one input, for errors.
fn shared_name(layers: &[PlannedLayer], input: usize) -> String {
    let names: Vec<&str> = layers
        .iter()
        .filter(|planned| planned.layer.input == input)
        .map(|planned| planned.layer.name.as_str())
        .collect();
    names.join(", ")
}

/// Feeds observed inputs to their Hessians.
#[derive(Debug)]
struct HessianTap {
    statistics: Vec<(usize, Box<dyn Statistics>)>,
    error: Option<Error>,
    seconds: f64,
}

impl Tap for HessianTap {
    fn wants(&self, input: usize) -> bool {
        self.statistics.iter().any(|(of, _)| *of == input)
    }

    fn observe(&mut self, input: usize, batch: Batch<'_>) {
        let start = Instant::now();
        if self.error.is_none()
            && let Some((_, statistics)) = self.statistics.iter_mut().find(|(of, _)| *of == input)
        {
            self.error = statistics.update(batch).err();
        }
        self.seconds += start.elapsed().as_secs_f64();
    }
}
