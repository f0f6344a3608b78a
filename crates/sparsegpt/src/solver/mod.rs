//! One layer at a time: the solver and its settings.
//!
//! [`Solver`] is generic over the backend. [`LayerPruner`] is the same without the type parameter: model
//! drivers and applications hold a `Box<dyn LayerPruner>` and never name a backend.

mod admm;
mod ahead;
mod blocks;
mod chooser;
mod compose;
mod job;
mod levels;
mod method;
mod order;
pub mod own;
mod plan;
mod prepare;
mod refit;
mod rows;
mod schedule;
mod scores;
mod settings;
mod sharing;
mod slices;
mod sparsegpt;
mod target;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, CowArray, Ix2, s};

pub use method::{ADAM_RATE, Admm, MaskSource, Method, Parts, Refit, Rounding, WeightSolver};
pub use order::ColumnOrder;
pub use settings::{LayerSettings, MAX_DAMPING};

use crate::backend::{Backend, BackendInfo, Operation};
use crate::error::{Error, Result, Stage};
use crate::finite::first_non_finite;
use crate::hessian::{Hessian, Statistics};
use crate::quant::QuantizedLayer;
use crate::report::{FactorReport, LayerReport};
use crate::threads::map_ranges;
use ahead::is_one_sweep;
use chooser::{Chooser, Chosen};
use compose::Shared;
use job::Job;
use levels::Levels;
use prepare::Diagonal;
use scores::Scores;
use sharing::by_factor;

/// A layer after treatment.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub struct PrunedLayer {
    /// The new weights, rows x cols.
    pub weights: Array2<f32>,
    /// The mask, rows x cols: `true` where a weight was kept, `false` where the policy pruned it.
    pub mask: Array2<bool>,
    /// Codes and grids, where a quantizer was given.
    pub quantized: Option<QuantizedLayer>,
    /// What happened.
    pub report: LayerReport,
}

impl PrunedLayer {
    /// A layer that was treated before, as it is kept and restored.
    pub fn new(
        weights: Array2<f32>,
        mask: Array2<bool>,
        quantized: Option<QuantizedLayer>,
        report: LayerReport,
    ) -> Self {
        Self {
            weights,
            mask,
            quantized,
            report,
        }
    }
}

/// One of the layers that share an input.
#[derive(Clone, Copy, Debug)]
pub struct LayerTask<'a> {
    /// The layer's name, for reports and errors.
    pub name: &'a str,
    /// Dense weights, rows x cols.
    pub weights: ArrayView2<'a, f32>,
    /// What to do.
    pub settings: &'a LayerSettings,
}

/// Solves layers on one backend.
///
/// ```
/// use sparsegpt::{LayerSettings, Pattern, Solver, backend::Host, ndarray::Array2};
/// let solver = Solver::new(Host);
/// let activations = Array2::from_shape_fn((64, 8), |(t, c)| ((t * 7 + c * 3) % 11) as f32 - 5.0);
/// let weights = Array2::from_shape_fn((4, 8), |(r, c)| ((r * 5 + c * 2) % 7) as f32 - 3.0);
/// let mut hessian = solver.hessian(8)?;
/// hessian.update(activations.view())?;
/// let settings = LayerSettings::new(Pattern::n_of_m(2, 4)?);
/// let layer = solver.prune(weights.view(), &mut hessian, &settings)?;
/// assert_eq!(layer.report.pruned, 16);
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Solver<B: Backend> {
    backend: Arc<B>,
}

impl<B: Backend> Clone for Solver<B> {
    /// A second handle on the same backend.
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
        }
    }
}

impl<B: Backend> Solver<B> {
    /// A solver on a backend.
    #[must_use]
    pub fn new(backend: B) -> Self {
        Self {
            backend: Arc::new(backend),
        }
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// An empty Hessian for a layer with `cols` input features.
    ///
    /// # Errors
    /// If `cols` is 0 or the device has no memory.
    pub fn hessian(&self, cols: usize) -> Result<Hessian<B>> {
        self.hessian_for("", cols)
    }

    /// The same with a layer's name for errors.
    ///
    /// # Errors
    /// As [`hessian`](Self::hessian).
    pub fn hessian_for(&self, layer: &str, cols: usize) -> Result<Hessian<B>> {
        Hessian::new(self.backend.clone(), layer, cols)
    }

    /// A Hessian from a ready matrix (cols x cols, any scale, undamped; only the lower triangle is read).
    ///
    /// # Errors
    /// If the matrix is not square or holds NaN or infinity.
    pub fn hessian_from(&self, hessian: ArrayView2<'_, f32>) -> Result<Hessian<B>> {
        self.hessian_from_for("", hessian)
    }

    /// The same with a layer's name for errors.
    ///
    /// # Errors
    /// As [`hessian_from`](Self::hessian_from).
    pub fn hessian_from_for(
        &self,
        layer: &str,
        hessian: ArrayView2<'_, f32>,
    ) -> Result<Hessian<B>> {
        Hessian::from_array(self.backend.clone(), layer, hessian)
    }

    /// Treats one layer: `weights` is rows x cols (output x input features), `hessian` that of its input.
    ///
    /// The Hessian keeps its meaning and can be used again; its upper triangle is scratch.
    ///
    /// # Errors
    /// If settings are out of range or do not fit the layer, if weights or Hessian hold NaN or infinity, if
    /// the shapes do not match, if the Hessian is zero or cannot be factored, or if the backend fails.
    pub fn prune(
        &self,
        weights: ArrayView2<'_, f32>,
        hessian: &mut Hessian<B>,
        settings: &LayerSettings,
    ) -> Result<PrunedLayer> {
        let name = hessian.layer().to_owned();
        self.prune_one(
            &LayerTask {
                name: &name,
                weights,
                settings,
            },
            Some(hessian),
            &mut Shared::default(),
        )
    }

    /// Treats a layer by a method that needs no calibration ([`Method::Magnitude`]).
    ///
    /// # Errors
    /// As [`prune`](Self::prune), and if the method needs a Hessian.
    pub fn prune_uncalibrated(
        &self,
        weights: ArrayView2<'_, f32>,
        settings: &LayerSettings,
    ) -> Result<PrunedLayer> {
        self.prune_one(
            &LayerTask {
                name: "",
                weights,
                settings,
            },
            None,
            &mut Shared::default(),
        )
    }

    /// Treats layers that read the same input, or one layer in several ways: one Hessian, and one factor
    /// where damping, order and column blocks are the same.
    ///
    /// Neither depends on the pattern or the bits, so that of several sparsities of a layer only the first
    /// pays for the factorization. Each result has the same bits as from a call of its own. There are as many
    /// factorizations as different factors, whatever the order of the tasks: with
    /// another [`LayerSettings::order`] than the natural one it depends on the groups of an N:M pattern, which
    /// stay together, and an M that does not divide the block size moves the blocks. One factor is in memory
    /// at a time.
    ///
    /// ```
    /// use sparsegpt::{LayerSettings, LayerTask, Pattern, Solver, UniformGrid};
    /// use sparsegpt::{backend::Host, ndarray::Array2};
    /// # let activations = Array2::from_shape_fn((64, 8), |(t, c)| ((t * 7 + c * 3) % 11) as f32 - 5.0);
    /// # let weights = Array2::from_shape_fn((5, 8), |(r, c)| ((r * 5 + c * 2) % 7) as f32 - 2.5);
    /// let solver = Solver::new(Host);
    /// let mut hessian = solver.hessian(8)?;
    /// hessian.update(activations.view())?;
    /// let variants = [
    ///     LayerSettings::new(Pattern::unstructured(0.4)?),
    ///     LayerSettings::new(Pattern::unstructured(0.5)?),
    ///     LayerSettings::new(Pattern::n_of_m(2, 4)?),
    ///     LayerSettings::new(Pattern::unstructured(0.5)?).with_quantizer(UniformGrid::new(4)?),
    /// ];
    /// let tasks: Vec<_> = variants
    ///     .iter()
    ///     .map(|settings| LayerTask { name: "up_proj", weights: weights.view(), settings })
    ///     .collect();
    /// let layers = solver.prune_shared(&mut hessian, &tasks)?;
    /// let pruned: Vec<u64> = layers.iter().map(|layer| layer.report.pruned).collect();
    /// assert_eq!(pruned, [16, 20, 20, 20]);
    /// // The one factorization stands in the seconds of the first.
    /// assert!(layers[1..].iter().all(|layer| layer.report.seconds.factor == 0.0));
    /// // The same bits as alone.
    /// let alone = solver.prune(weights.view(), &mut hessian, &variants[2])?;
    /// assert_eq!(layers[2].weights, alone.weights);
    /// # Ok::<(), sparsegpt::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`prune`](Self::prune); the error names the layer, and layers treated before it are lost.
    pub fn prune_shared(
        &self,
        hessian: &mut Hessian<B>,
        tasks: &[LayerTask<'_>],
    ) -> Result<Vec<PrunedLayer>> {
        let mut layers = Vec::with_capacity(tasks.len());
        self.prune_in_turn(Some(hessian), tasks, &mut |task, layer| {
            layers.push((task, layer));
            Ok(())
        })?;
        layers.sort_by_key(|(task, _)| *task);
        Ok(layers.into_iter().map(|(_, layer)| layer).collect())
    }

    /// All tasks, those with the same factor in a row; `done` gets each layer with its index in `tasks`.
    fn prune_in_turn(
        &self,
        mut hessian: Option<&mut Hessian<B>>,
        tasks: &[LayerTask<'_>],
        done: &mut dyn FnMut(usize, PrunedLayer) -> Result<()>,
    ) -> Result<()> {
        let order = match &hessian {
            Some(hessian) => by_factor(hessian, tasks),
            None => (0..tasks.len()).collect(),
        };
        let mut shared = Shared::default();
        for (at, &task) in order.iter().enumerate() {
            let next = order.get(at + 1).map(|&next| &tasks[next]);
            let next = next
                .filter(|next| is_one_sweep(tasks[task].settings) && is_one_sweep(next.settings));
            shared.ahead.announce(next.map(|next| next.weights));
            let layer = self.prune_one(&tasks[task], hessian.as_deref_mut(), &mut shared)?;
            done(task, layer)?;
        }
        Ok(())
    }

    fn prune_one(
        &self,
        task: &LayerTask<'_>,
        hessian: Option<&mut Hessian<B>>,
        shared: &mut Shared<'_, B>,
    ) -> Result<PrunedLayer> {
        self.backend
            .enter(|| self.prune_inside(task, hessian, shared))
    }

    fn prune_inside(
        &self,
        task: &LayerTask<'_>,
        hessian: Option<&mut Hessian<B>>,
        shared: &mut Shared<'_, B>,
    ) -> Result<PrunedLayer> {
        let start = Instant::now();
        let LayerTask {
            name,
            weights,
            settings,
        } = *task;
        let mut job = Job::new(&*self.backend, name, weights, settings)?;
        job.check_protection()?;
        if let Some(hessian) = &hessian
            && hessian.cols() != job.cols
        {
            return Err(Error::Shape {
                layer: name.to_owned(),
                what: "the Hessian",
                expected: format!("{0} x {0}, for the {0} columns of the weights", job.cols),
                found_rows: hessian.cols(),
                found_cols: hessian.cols(),
            });
        }
        let counts = hessian
            .as_ref()
            .map_or((0, 0), |hessian| (hessian.tokens(), hessian.sequences()));
        let mut hessian = hessian;
        let moved = match &hessian {
            Some(hessian) => target::of_layer(&mut job, weights, hessian, &mut shared.recentring)?,
            None => None,
        };
        let dense_targets = moved.as_ref().map(|(_, inverted)| *inverted);
        let weights = moved.as_ref().map_or(weights, |(moved, _)| moved.view());
        let solved = compose::solve(&mut job, weights, hessian.as_deref_mut(), shared)?;
        let held_out_error = match hessian {
            Some(hessian) => compose::held_out_error(&mut job, weights, &solved.weights, hessian)?,
            None => None,
        };
        let (zeros, pruned) = counts_of(name, &solved)?;
        let mut seconds = job.seconds.clone();
        seconds.total = start.elapsed().as_secs_f64();
        let report = LayerReport {
            layer: name.to_owned(),
            rows: job.rows,
            cols: job.cols,
            method: match solved.method {
                Some(method) => format!("{} ({method})", settings.describe_method()),
                None => settings.describe_method(),
            },
            pattern: settings.mask.describe(),
            quantization: settings
                .quantizer
                .as_ref()
                .map(|quantizer| quantizer.describe()),
            pruned,
            zeros,
            dead_columns: job.dead.iter().filter(|&&dead| dead).count(),
            solver_loss: solved.solver_loss,
            reconstruction_error: solved.error.map(|(error, _)| error),
            relative_error: solved
                .error
                .map(|(error, total)| if total > 0.0 { error / total } else { 0.0 }),
            held_out_error,
            damping: solved.damping,
            precision: solved.precision,
            factor_attempts: solved.attempts,
            order: solved.order,
            tokens: counts.0,
            sequences: counts.1,
            backend: job.info.name.clone(),
            products: job.info.products,
            host_operations: job.host_operations(),
            dense_targets,
            seconds,
        };
        Ok(PrunedLayer {
            weights: solved.weights,
            mask: solved.mask,
            quantized: solved.quantized,
            report,
        })
    }
}

/// How many weights are zero and how many were pruned; weights that are not finite are an error.
fn counts_of(layer: &str, solved: &Solved) -> Result<(u64, u64)> {
    let (weights, mask) = (solved.weights.view(), solved.mask.view());
    let parts = map_ranges(weights.dim(), |rows| {
        let (mut zeros, mut pruned) = (0, 0);
        // Row by row, so that memory is read once for both questions.
        for row in rows {
            let values = weights.row(row);
            if let Some((_, col)) = first_non_finite(values.insert_axis(Axis(0))) {
                return Err(Error::Overflow {
                    layer: layer.to_owned(),
                    value: weights[[row, col]],
                    row,
                    col,
                });
            }
            zeros += count(values, |weight| weight == 0.0);
            pruned += count(mask.row(row), |kept| !kept);
        }
        Ok((zeros, pruned))
    });
    parts.into_iter().try_fold((0, 0), |sum, part| {
        let part = part?;
        Ok((sum.0 + part.0, sum.1 + part.1))
    })
}

/// How many of a row's values are counted; free of branches.
fn count<T: Copy>(row: ArrayView1<'_, T>, counts: impl Fn(T) -> bool) -> u64 {
    let ones = |sum: u32, &value: &T| sum + u32::from(counts(value));
    u64::from(match row.to_slice() {
        Some(row) => row.iter().fold(0, ones),
        None => row.iter().fold(0, ones),
    })
}

/// What a method hands back, in the original column order.
#[derive(Debug)]
struct Solved {
    weights: Array2<f32>,
    /// `true` = kept.
    mask: Array2<bool>,
    quantized: Option<QuantizedLayer>,
    solver_loss: Option<f64>,
    /// tr(ΔW H ΔWᵀ) and tr(W H Wᵀ).
    error: Option<(f64, f64)>,
    damping: f64,
    precision: Option<crate::backend::Precision>,
    attempts: u32,
    /// The candidate that was taken, where there were several.
    method: Option<Method>,
    /// The order of the columns, where they were swept.
    order: Option<ColumnOrder>,
}

impl Solved {
    /// Takes in another factorization behind the same result: the report tells the largest damping.
    fn also_factored(&mut self, other: FactorReport) {
        self.damping = self.damping.max(other.damping);
        self.attempts = self.attempts.max(other.attempts);
        self.precision = self.precision.or(Some(other.precision));
    }

    /// The factorization behind the result, where there was one.
    fn factored(&self) -> Option<FactorReport> {
        let Self {
            damping,
            precision,
            attempts,
            ..
        } = *self;
        precision.map(|precision| FactorReport {
            damping,
            precision,
            attempts,
        })
    }

    fn nothing() -> Self {
        Self {
            weights: Array2::default((0, 0)),
            mask: Array2::default((0, 0)),
            quantized: None,
            solver_loss: None,
            error: None,
            damping: 0.0,
            precision: None,
            attempts: 0,
            method: None,
            order: None,
        }
    }
}

/// Magnitude, Wanda and RIA: a mask, no compensation, and where a quantizer is given, rounding to nearest.
fn without_update<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: Option<&mut Hessian<B>>,
) -> Result<Solved> {
    let statistics = hessian
        .map(|hessian| Ok::<_, Error>((Diagonal::of(hessian, job.layer)?, hessian)))
        .transpose()?;
    if let Some((diagonal, _)) = &statistics {
        job.dead.clone_from(&diagonal.dead);
    }
    let start = in_processing_order(job, dense);
    let device = job.upload(start.view())?;
    let mut mask = Array2::from_elem((job.rows, job.cols), true);
    let mut factored = None;
    if job.settings.mask.prunes() {
        let known = statistics
            .as_ref()
            .map(|(diagonal, hessian)| (diagonal, &**hessian));
        let chosen = job.timed(Stage::Select, |job| {
            let (scores, inverted) = Scores::of(job, start.view(), known)?;
            factored = inverted;
            let weights = scores.weights.as_ref().unwrap_or(&device);
            let columns = 0..job.cols;
            Chooser::new(job).choose(job, weights, &scores.scales, columns, false)
        })?;
        if let Chosen::Mask(pruned) = chosen {
            mask = job
                .backend
                .download_mask(&pruned)
                .map_err(|e| job.failed(Stage::Transfer, e))?
                .mapv(|pruned| !pruned);
        }
    }
    let mut weights = start.to_owned();
    on_mask(&mut weights, mask.view());
    let quantized = job.timed(Stage::Grid, |job| {
        round_to_nearest(job, start.view(), &device, &mut weights)
    })?;
    let error = match statistics {
        Some((diagonal, hessian)) => job.timed(Stage::Measure, |job| {
            let difference = job.upload_owned(&start - &weights)?;
            measure(
                job,
                start.view(),
                &difference,
                hessian.matrix(),
                &diagonal.values,
            )
        })?,
        None => None,
    };
    let mut solved = Solved {
        weights,
        mask,
        quantized,
        solver_loss: error.map(|(error, _)| 0.5 * error),
        error,
        ..Solved::nothing()
    };
    if let Some(factored) = factored {
        solved.also_factored(factored);
    }
    Ok(solved)
}

/// Rounds `weights` to the grids of the dense weights; pruned ones are zero and stay so.
fn round_to_nearest<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    device: &B::Matrix,
    weights: &mut Array2<f32>,
) -> Result<Option<QuantizedLayer>> {
    let Some(levels) = Levels::fitted(job, dense, device)? else {
        return Ok(None);
    };
    // Encoding rounds to the nearest level, and decoding gives that level back.
    let quantized = levels.finish(job, weights.view())?;
    weights.assign(&quantized.dequantize());
    Ok(Some(quantized))
}

/// Zero outside the mask.
fn on_mask(weights: &mut Array2<f32>, kept: ArrayView2<'_, bool>) {
    weights.zip_mut_with(&kept, |weight, &kept| {
        if !kept {
            *weight = 0.0;
        }
    });
}

/// Dense weights in the order of processing; unprotected weights of dead columns are zero.
fn in_processing_order<'a, B: Backend>(
    job: &Job<'_, B>,
    dense: ArrayView2<'a, f32>,
) -> CowArray<'a, f32, Ix2> {
    let mut ordered: CowArray<'a, f32, Ix2> = match &job.order {
        Some(order) => dense.select(Axis(1), order).into(),
        None => dense.into(),
    };
    for at in 0..job.cols {
        let column = job.original(at);
        if job.is_dead(column) && !job.protected_columns[column] {
            for row in (0..job.rows).filter(|&row| !job.protected_rows[row]) {
                ordered[[row, at]] = 0.0;
            }
        }
    }
    ordered
}

fn in_original_order<'a, B: Backend>(
    job: &Job<'_, B>,
    ordered: CowArray<'a, f32, Ix2>,
) -> CowArray<'a, f32, Ix2> {
    match &job.order {
        None => ordered,
        Some(order) => {
            let mut original = Array2::zeros(ordered.dim());
            for (at, &column) in order.iter().enumerate() {
                original
                    .slice_mut(s![.., column])
                    .assign(&ordered.column(at));
            }
            original.into()
        }
    }
}

/// tr(ΔW H ΔWᵀ) and tr(W H Wᵀ), both in processing order; `None` where measuring is switched off,
/// or overflows.
fn measure<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    difference: &B::Matrix,
    h: &B::Matrix,
    diagonal: &[f32],
) -> Result<Option<(f64, f64)>> {
    if !job.settings.measure {
        return Ok(None);
    }
    energies(job, dense, difference, h, diagonal)
}

/// The same whether measuring is switched on or not.
fn energies<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    difference: &B::Matrix,
    h: &B::Matrix,
    diagonal: &[f32],
) -> Result<Option<(f64, f64)>> {
    job.uses(Operation::RowEnergies);
    let energy = |weights: &B::Matrix| -> Result<f64> {
        let rows = job
            .backend
            .row_energies(weights, h, diagonal)
            .map_err(|e| job.failed(Stage::Measure, e))?;
        Ok(rows.iter().sum())
    };
    let (error, total) = (energy(difference)?, energy(&job.upload(dense)?)?);
    // Nothing is said rather than something wrong where weights as large as 1e19 overflow. Rounding may push a tiny
    // energy below zero.
    let known = error.is_finite() && total.is_finite();
    Ok(known.then(|| (error.max(0.0), total.max(0.0))))
}

/// A solver whose backend is not in the type.
pub trait LayerPruner: Debug + Send + Sync {
    /// The backend's description.
    fn info(&self) -> BackendInfo;

    /// Empty calibration statistics for the input of the layer(s) named `layer`, `cols` features wide.
    ///
    /// # Errors
    /// If `cols` is 0 or the device has no memory.
    fn statistics(&self, layer: &str, cols: usize) -> Result<Box<dyn Statistics>>;

    /// Statistics from a ready Hessian; see [`Solver::hessian_from`].
    ///
    /// # Errors
    /// As [`Solver::hessian_from`].
    fn statistics_from(
        &self,
        layer: &str,
        hessian: ArrayView2<'_, f32>,
    ) -> Result<Box<dyn Statistics>>;

    /// Treats the layers that read one input, or one of them in several ways; see [`Solver::prune_shared`]. `done`
    /// gets each layer as soon as it is finished, with its index in `tasks`, those that share a factor in a row.
    /// Without statistics only methods that need none can run.
    ///
    /// # Errors
    /// As [`Solver::prune`], and if the statistics are another backend's. Layers handed to `done` before
    /// the error are finished.
    fn prune_layers(
        &self,
        statistics: Option<&mut dyn Statistics>,
        tasks: &[LayerTask<'_>],
        done: &mut dyn FnMut(usize, PrunedLayer) -> Result<()>,
    ) -> Result<()>;
}

impl<B: Backend> LayerPruner for Solver<B> {
    fn info(&self) -> BackendInfo {
        self.backend.info()
    }

    fn statistics(&self, layer: &str, cols: usize) -> Result<Box<dyn Statistics>> {
        Ok(Box::new(self.hessian_for(layer, cols)?))
    }

    fn statistics_from(
        &self,
        layer: &str,
        hessian: ArrayView2<'_, f32>,
    ) -> Result<Box<dyn Statistics>> {
        Ok(Box::new(self.hessian_from_for(layer, hessian)?))
    }

    fn prune_layers(
        &self,
        statistics: Option<&mut dyn Statistics>,
        tasks: &[LayerTask<'_>],
        done: &mut dyn FnMut(usize, PrunedLayer) -> Result<()>,
    ) -> Result<()> {
        let hessian = match statistics {
            None => None,
            Some(statistics) => Some(
                statistics
                    .as_any_mut()
                    .downcast_mut::<Hessian<B>>()
                    .ok_or_else(|| Error::ForeignStatistics {
                        layer: tasks
                            .first()
                            .map_or_else(String::new, |task| task.name.to_owned()),
                        backend: self.info().name,
                    })?,
            ),
        };
        self.prune_in_turn(hessian, tasks, done)
    }
}
