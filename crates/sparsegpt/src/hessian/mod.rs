//! Calibration statistics: the Hessian of the layer-wise problem, accumulated from activations.
//!
//! H = 2/(sequences) · Σ XᵀX over all tokens seen, as a running mean, as the reference implementation of
//! the paper does. The solver's results do not depend on its scale.

mod activations;

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2};

pub use activations::{Activations, Batch};

use crate::backend::{Backend, Gemm};
use crate::error::{Error, Result, Stage};

/// The Hessian of one layer input, streaming, on the device of a backend.
///
/// Made by [`Solver::hessian`](crate::Solver::hessian). Only the lower triangle means anything; the upper
/// one is the solver's scratch, so that a layer's Hessian and factor share one matrix.
///
/// ```
/// use sparsegpt::{Batch, Solver, backend::Host, ndarray::Array2};
/// let solver = Solver::new(Host);
/// let mut hessian = solver.hessian(16)?;
/// let sequence = Array2::<f32>::ones((32, 16)); // tokens x input features
/// hessian.update(sequence.view())?; // one sequence
/// hessian.update(Batch::new(sequence.view()).sequences(2))?; // a count of two
/// assert_eq!((hessian.sequences(), hessian.tokens()), (3, 64));
/// # Ok::<(), sparsegpt::Error>(())
/// ```
#[derive(Debug)]
pub struct Hessian<B: Backend> {
    backend: Arc<B>,
    layer: String,
    matrix: B::Matrix,
    /// The diagonal of H, kept here once a factorization has put R's over it.
    covered_diagonal: Option<Vec<f32>>,
    cols: usize,
    tokens: u64,
    sequences: u64,
    /// A matrix whose number of sequences nobody has told: it has no weight in a mean.
    uncounted: bool,
    /// Statistics of data that are not in this Hessian.
    held_out: Option<Box<Self>>,
    /// 2 Σ (X_d − X)ᵀX, cols x cols, with X_d the inputs that the dense model has in place of X.
    drift: Option<B::Matrix>,
    /// Whether the device failed in the middle of an update.
    unfinished: bool,
}

impl<B: Backend> Hessian<B> {
    pub(crate) fn new(backend: Arc<B>, layer: &str, cols: usize) -> Result<Self> {
        if cols == 0 {
            return Err(Error::Shape {
                layer: layer.to_owned(),
                what: "Hessian",
                expected: "at least 1 column".to_owned(),
                found_rows: 0,
                found_cols: 0,
            });
        }
        let matrix = backend
            .zeros(cols, cols)
            .map_err(|e| Error::backend(layer, &backend.info().name, Stage::Hessian, e))?;
        Ok(Self {
            backend,
            layer: layer.to_owned(),
            matrix,
            covered_diagonal: None,
            cols,
            tokens: 0,
            sequences: 0,
            uncounted: false,
            held_out: None,
            drift: None,
            unfinished: false,
        })
    }

    /// Takes a ready matrix; its counts are unknown until [`with_counts`](Self::with_counts) tells them.
    pub(crate) fn from_array(
        backend: Arc<B>,
        layer: &str,
        hessian: ArrayView2<'_, f32>,
    ) -> Result<Self> {
        let (rows, cols) = hessian.dim();
        if rows != cols || cols == 0 {
            return Err(Error::Shape {
                layer: layer.to_owned(),
                what: "Hessian",
                expected: "a square matrix with at least 1 column".to_owned(),
                found_rows: rows,
                found_cols: cols,
            });
        }
        for row in 0..rows {
            for col in 0..=row {
                let value = hessian[[row, col]];
                if !value.is_finite() {
                    return Err(Error::NonFinite {
                        layer: layer.to_owned(),
                        what: "the Hessian",
                        value,
                        row,
                        col,
                    });
                }
            }
        }
        let matrix = backend
            .upload(hessian)
            .map_err(|e| Error::backend(layer, &backend.info().name, Stage::Transfer, e))?;
        Ok(Self {
            backend,
            layer: layer.to_owned(),
            matrix,
            covered_diagonal: None,
            cols,
            tokens: 0,
            sequences: 0,
            uncounted: true,
            held_out: None,
            drift: None,
            unfinished: false,
        })
    }

    /// Says how many sequences and tokens are behind a Hessian that was handed in as a matrix, so that more
    /// data can be added to it.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for 0 sequences.
    pub fn with_counts(mut self, sequences: u64, tokens: u64) -> Result<Self> {
        if sequences == 0 {
            return Err(Error::setting(
                "sequences behind a Hessian",
                "at least 1",
                0,
            ));
        }
        (self.sequences, self.tokens, self.uncounted) = (sequences, tokens, false);
        Ok(self)
    }

    fn check_counted(&self) -> Result<()> {
        self.check_finished()?;
        if self.uncounted {
            return Err(Error::incompatible(
                &self.layer,
                "a Hessian given as a matrix has no sequence count, so nothing can be added to it",
                "tell its counts with Hessian::with_counts, or accumulate it from activations",
            ));
        }
        Ok(())
    }

    /// Adds activations: `hessian.update(x.view())` for one sequence, or a [`Batch`].
    ///
    /// # Errors
    /// If the activations have another number of columns, hold NaN or infinity (in a token that counts),
    /// or the batch's sequence count or token mask does not fit: then nothing has changed. If the device fails: then a part of
    /// the batch may be in the statistics, and whatever is asked of them from then on is [`Error::Incompatible`].
    pub fn update<'a>(&mut self, batch: impl Into<Batch<'a>>) -> Result<()> {
        self.check_counted()?;
        let Batch {
            activations,
            sequences,
            token_mask,
        } = batch.into();
        if activations.cols() != self.cols {
            return Err(Error::Shape {
                layer: self.layer.clone(),
                what: "the activations",
                expected: format!("tokens x {}", self.cols),
                found_rows: activations.tokens(),
                found_cols: activations.cols(),
            });
        }
        if sequences == 0 {
            return Err(
                Error::setting("sequences in a batch", "at least 1", 0).for_layer(&self.layer)
            );
        }
        let runs = match token_mask {
            None => vec![(0, activations.tokens())],
            Some(mask) if mask.len() == activations.tokens() => runs_of_true(mask),
            Some(mask) => {
                return Err(Error::incompatible(
                    &self.layer,
                    format!(
                        "the token mask has {} entries for {} tokens",
                        mask.len(),
                        activations.tokens()
                    ),
                    "give one entry for each token",
                ));
            }
        };
        for &(start, end) in &runs {
            let part = activations.slice_tokens(start, end);
            let found = self.backend.enter(|| part.first_non_finite());
            if let Some((row, col, value)) = found {
                return Err(Error::NonFinite {
                    layer: self.layer.clone(),
                    what: "the activations",
                    value,
                    row: start + row,
                    col,
                });
            }
        }
        self.uncover().map_err(|e| self.failed(Stage::Hessian, e))?;
        // The running mean, 2/N Σ XᵀX with N the number of sequences, one contiguous run of tokens at a
        // time: only the first one scales what is there.
        let Some(sum) = self.sequences.checked_add(sequences) else {
            return Err(Error::setting(
                "sequences in a batch",
                "a smaller number",
                sequences,
            ));
        };
        let mut beta = (self.sequences as f64 / sum as f64) as f32;
        let alpha = (2.0 / sum as f64) as f32;
        self.changing(|this| {
            for (start, end) in if runs.is_empty() { vec![(0, 0)] } else { runs } {
                let part = activations.slice_tokens(start, end);
                this.backend
                    .gram_update(&mut this.matrix, part, alpha, beta)
                    .map_err(|e| this.failed(Stage::Hessian, e))?;
                this.tokens = this.tokens.saturating_add((end - start) as u64);
                beta = 1.0;
            }
            this.sequences = sum;
            Ok(())
        })
    }

    /// A step that may fail half way: then what is there is neither what it was nor what it should be, and nothing more is done with it.
    fn changing(&mut self, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.unfinished = true;
        step(self)?;
        self.unfinished = false;
        Ok(())
    }

    fn check_finished(&self) -> Result<()> {
        match self.unfinished {
            false => Ok(()),
            true => Err(Error::incompatible(
                &self.layer,
                "the device failed while these statistics were updated, and a part of the batch may be in them",
                "accumulate them anew, from the first batch on",
            )),
        }
    }

    /// Adds activations to statistics of their own, on which layers solved with this Hessian are judged: the error on
    /// data that the solver did not see.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn hold_out<'a>(&mut self, batch: impl Into<Batch<'a>>) -> Result<()> {
        if self.held_out.is_none() {
            let held_out = Self::new(self.backend.clone(), &self.layer, self.cols)?;
            self.held_out = Some(Box::new(held_out));
        }
        match &mut self.held_out {
            Some(held_out) => held_out.update(batch),
            None => Ok(()),
        }
    }

    /// The statistics of the data that were held out.
    #[must_use]
    pub fn held_out(&self) -> Option<&Self> {
        self.held_out.as_deref()
    }

    /// [`update`](Self::update), and what the dense model has in place of these activations (same tokens x cols): how far the
    /// inputs have drifted from it. [`LayerSettings::dense_targets`](crate::LayerSettings::dense_targets) reads that.
    /// Costs a second matrix of cols², and 4·tokens·cols² flops where `update` takes half as many.
    ///
    /// # Errors
    /// As [`update`](Self::update), and if the dense activations have another shape or hold NaN or infinity.
    pub fn update_from_dense<'a>(
        &mut self,
        batch: impl Into<Batch<'a>>,
        dense: ArrayView2<'_, f32>,
    ) -> Result<()> {
        let batch: Batch<'a> = batch.into();
        let (tokens, cols) = (batch.activations.tokens(), batch.activations.cols());
        if dense.dim() != (tokens, cols) {
            return Err(Error::Shape {
                layer: self.layer.clone(),
                what: "the dense model's activations",
                expected: format!("{tokens} x {cols}, as the others"),
                found_rows: dense.nrows(),
                found_cols: dense.ncols(),
            });
        }
        // A mask of another length is refused with the batch.
        let counts = |token: usize| {
            batch
                .token_mask
                .is_none_or(|mask| mask.get(token).is_none_or(|&counts| counts))
        };
        let broken = dense
            .indexed_iter()
            .find(|&((token, _), value)| counts(token) && !value.is_finite());
        if let Some(((row, col), &value)) = broken {
            return Err(Error::NonFinite {
                layer: self.layer.clone(),
                what: "the dense model's activations",
                value,
                row,
                col,
            });
        }
        self.update(batch)?;
        let mut inputs = Array2::zeros((tokens, cols));
        // Turned, as the left operand of a product.
        let mut drift = Array2::zeros((cols, tokens));
        for token in (0..tokens).filter(|&token| counts(token)) {
            for col in 0..cols {
                let input = batch.activations.get(token, col);
                inputs[[token, col]] = input;
                drift[[col, token]] = dense[[token, col]] - input;
            }
        }
        self.changing(|this| {
            this.add_drift(inputs, drift)
                .map_err(|e| this.failed(Stage::Hessian, e))
        })
    }

    fn add_drift(&mut self, inputs: Array2<f32>, drift: Array2<f32>) -> Result<(), B::Error> {
        let (cols, tokens) = drift.dim();
        let mut sum = match self.drift.take() {
            Some(sum) => sum,
            None => self.backend.zeros(cols, cols)?,
        };
        let (inputs, drift) = (
            self.backend.upload_owned(inputs)?,
            self.backend.upload_owned(drift)?,
        );
        self.backend.gemm(Gemm::new(
            (&mut sum, 0..cols),
            2.0,
            (&drift, 0..tokens),
            (&inputs, 0..tokens, 0..cols),
        ))?;
        self.drift = Some(sum);
        Ok(())
    }

    /// 2/(sequences) Σ (X_d − X)ᵀX without its factor, and that factor, where dense activations were told of.
    pub(crate) fn drift(&self) -> Option<(&B::Matrix, f32)> {
        let drift = self.drift.as_ref()?;
        Some((drift, (1.0 / self.sequences as f64) as f32))
    }

    /// Takes in the statistics of another part of the calibration set, what was held out of it included; the result is, up to
    /// rounding, that of the whole set.
    ///
    /// # Errors
    /// If the other Hessian has another number of columns, and where the device fails, as [`update`](Self::update).
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if other.cols != self.cols {
            return Err(Error::Shape {
                layer: self.layer.clone(),
                what: "the Hessian to merge",
                expected: format!("{0} x {0}", self.cols),
                found_rows: other.cols,
                found_cols: other.cols,
            });
        }
        self.check_counted()?;
        other.check_counted()?;
        if let Some(others) = &other.held_out {
            let own = match self.held_out.take() {
                Some(own) => own,
                None => Box::new(Self::new(self.backend.clone(), &self.layer, self.cols)?),
            };
            self.held_out.insert(own).merge(others)?;
        }
        let sum = self.sequences.saturating_add(other.sequences);
        if other.sequences == 0 {
            return Ok(());
        }
        let share = |sequences: u64| (sequences as f64 / sum as f64) as f32;
        let (own, others) = (share(self.sequences), share(other.sequences));
        let diagonal: Vec<f32> = self
            .diagonal()?
            .iter()
            .zip(other.diagonal()?)
            .map(|(own_entry, others_entry)| own * own_entry + others * others_entry)
            .collect();
        self.changing(|this| {
            this.backend
                .combine(&mut this.matrix, own, &other.matrix, others)
                .and_then(|()| this.backend.set_diagonal(&mut this.matrix, &diagonal))
                .map_err(|e| this.failed(Stage::Hessian, e))?;
            if let Some(others) = &other.drift {
                let merged = match &mut this.drift {
                    Some(drift) => this.backend.combine(drift, 1.0, others, 1.0),
                    none => this.backend.copy(others).map(|drift| *none = Some(drift)),
                };
                merged.map_err(|e| this.failed(Stage::Hessian, e))?;
            }
            this.covered_diagonal = None;
            this.sequences = sum;
            this.tokens = this.tokens.saturating_add(other.tokens);
            Ok(())
        })
    }

    /// The matrix on the host, cols x cols; the lower triangle is H, the strict upper one is zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_array(&self) -> Result<Array2<f32>> {
        self.check_finished()?;
        let mut h = self
            .backend
            .download(&self.matrix)
            .map_err(|e| self.failed(Stage::Transfer, e))?;
        for row in 0..self.cols {
            for col in row + 1..self.cols {
                h[[row, col]] = 0.0;
            }
        }
        if let Some(diagonal) = &self.covered_diagonal {
            h.diag_mut()
                .iter_mut()
                .zip(diagonal)
                .for_each(|(to, from)| *to = *from);
        }
        Ok(h)
    }

    /// The diagonal of H.
    pub(crate) fn diagonal(&self) -> Result<Vec<f32>> {
        self.check_finished()?;
        match &self.covered_diagonal {
            Some(diagonal) => Ok(diagonal.clone()),
            None => self
                .backend
                .diagonal(&self.matrix)
                .map_err(|e| self.failed(Stage::Transfer, e)),
        }
    }

    /// The matrix: H in the strict lower triangle, in the others whatever the last factorization left.
    pub(crate) fn matrix(&self) -> &B::Matrix {
        &self.matrix
    }

    /// The matrix for a factorization in place; `diagonal` is that of H and is kept.
    pub(crate) fn matrix_to_factor(&mut self, diagonal: &[f32]) -> &mut B::Matrix {
        self.covered_diagonal
            .get_or_insert_with(|| diagonal.to_vec());
        &mut self.matrix
    }

    /// Puts the diagonal of H back in its place.
    fn uncover(&mut self) -> Result<(), B::Error> {
        if let Some(diagonal) = &self.covered_diagonal {
            self.backend.set_diagonal(&mut self.matrix, diagonal)?;
            self.covered_diagonal = None;
        }
        Ok(())
    }

    /// Input features: rows and columns of H.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Tokens seen, padding not counted. 0 for a Hessian that was handed in as a matrix.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Sequences seen. 0 for a Hessian that was handed in as a matrix.
    #[must_use]
    pub fn sequences(&self) -> u64 {
        self.sequences
    }

    /// The layer named in errors.
    #[must_use]
    pub fn layer(&self) -> &str {
        &self.layer
    }

    fn failed(&self, stage: Stage, error: B::Error) -> Error {
        Error::backend(&self.layer, &self.backend.info().name, stage, error)
    }
}

/// The half-open ranges of consecutive `true`.
fn runs_of_true(mask: &[bool]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (at, _) in mask.iter().enumerate().filter(|&(_, &counts)| counts) {
        match runs.last_mut() {
            Some((_, end)) if *end == at => *end = at + 1,
            _ => runs.push((at, at + 1)),
        }
    }
    runs
}

/// A [`Hessian`] whose backend is not in the type: what callers of a
/// [`LayerPruner`](crate::LayerPruner) hold.
pub trait Statistics: Debug + Send + Any {
    /// Adds activations; see [`Hessian::update`].
    ///
    /// # Errors
    /// As [`Hessian::update`].
    fn update(&mut self, batch: Batch<'_>) -> Result<()>;

    /// Adds activations that are held out; see [`Hessian::hold_out`].
    ///
    /// # Errors
    /// As [`Hessian::hold_out`].
    fn hold_out(&mut self, batch: Batch<'_>) -> Result<()>;

    /// Adds activations beside those of the dense model; see [`Hessian::update_from_dense`].
    ///
    /// # Errors
    /// As [`Hessian::update_from_dense`].
    fn update_from_dense(&mut self, batch: Batch<'_>, dense: ArrayView2<'_, f32>) -> Result<()>;

    /// Takes in another part's statistics; see [`Hessian::merge`].
    ///
    /// # Errors
    /// As [`Hessian::merge`], and if the other statistics are another backend's.
    fn merge(&mut self, other: &dyn Statistics) -> Result<()>;

    /// The matrix on the host; see [`Hessian::to_array`].
    ///
    /// # Errors
    /// If the device fails.
    fn to_array(&self) -> Result<Array2<f32>>;

    /// The diagonal of H alone: the squared norm of each input feature over all tokens, times 2/(sequences).
    ///
    /// # Errors
    /// If the device fails.
    fn diagonal(&self) -> Result<Vec<f32>> {
        Ok(self.to_array()?.diag().to_vec())
    }

    /// Tokens seen.
    fn tokens(&self) -> u64;

    /// Sequences seen.
    fn sequences(&self) -> u64;

    /// For the solver, which knows its own backend.
    fn as_any(&self) -> &dyn Any;

    /// For the solver, which knows its own backend.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

impl<B: Backend> Statistics for Hessian<B> {
    fn update(&mut self, batch: Batch<'_>) -> Result<()> {
        Self::update(self, batch)
    }

    fn hold_out(&mut self, batch: Batch<'_>) -> Result<()> {
        Self::hold_out(self, batch)
    }

    fn update_from_dense(&mut self, batch: Batch<'_>, dense: ArrayView2<'_, f32>) -> Result<()> {
        Self::update_from_dense(self, batch, dense)
    }

    fn merge(&mut self, other: &dyn Statistics) -> Result<()> {
        let other =
            other
                .as_any()
                .downcast_ref::<Self>()
                .ok_or_else(|| Error::ForeignStatistics {
                    layer: self.layer.clone(),
                    backend: self.backend.info().name,
                })?;
        Self::merge(self, other)
    }

    fn to_array(&self) -> Result<Array2<f32>> {
        Self::to_array(self)
    }

    fn diagonal(&self) -> Result<Vec<f32>> {
        Self::diagonal(self)
    }

    fn tokens(&self) -> u64 {
        self.tokens
    }

    fn sequences(&self) -> u64 {
        self.sequences
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
