//! What every step of a layer's treatment needs to know, and what it leaves for the report.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use ndarray::{Array2, ArrayView2};

use super::settings::LayerSettings;
use crate::backend::{Backend, BackendInfo, Operation};
use crate::error::{Error, Result, Stage};
use crate::finite::first_non_finite;
use crate::mask::{BlockMask, MaskBlock};
use crate::report::StageSeconds;

/// One layer under treatment.
#[derive(Debug)]
pub(super) struct Job<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) info: BackendInfo,
    pub(super) layer: &'a str,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) settings: &'a LayerSettings,
    /// Original column of each processed column; `None` for the natural order.
    pub(super) order: Option<Vec<usize>>,
    /// Inputs that were always zero, original order; empty without a Hessian.
    pub(super) dead: Vec<bool>,
    pub(super) protected_columns: Vec<bool>,
    pub(super) protected_rows: Vec<bool>,
    pub(super) seconds: StageSeconds,
    host_operations: BTreeSet<Operation>,
}

impl<'a, B: Backend> Job<'a, B> {
    /// Checks settings and weights.
    pub(super) fn new(
        backend: &'a B,
        layer: &'a str,
        weights: ArrayView2<'_, f32>,
        settings: &'a LayerSettings,
    ) -> Result<Self> {
        let (rows, cols) = weights.dim();
        if rows == 0 || cols == 0 {
            return Err(Error::Shape {
                layer: layer.to_owned(),
                what: "the weights",
                expected: "at least 1 row and 1 column".to_owned(),
                found_rows: rows,
                found_cols: cols,
            });
        }
        if let Some((row, col)) = first_non_finite(weights) {
            return Err(Error::NonFinite {
                layer: layer.to_owned(),
                what: "the weights",
                value: weights[[row, col]],
                row,
                col,
            });
        }
        settings.validate(layer, rows, cols)?;
        let marked = |positions: &[usize], len: usize| {
            let mut marks = vec![false; len];
            for &position in positions {
                marks[position] = true;
            }
            marks
        };
        Ok(Self {
            backend,
            info: backend.info(),
            layer,
            rows,
            cols,
            settings,
            order: None,
            dead: Vec::new(),
            protected_columns: marked(&settings.protected_columns, cols),
            protected_rows: marked(&settings.protected_rows, rows),
            seconds: StageSeconds::default(),
            host_operations: BTreeSet::new(),
        })
    }

    /// The same for some of the rows; [`merge`](Self::merge) takes in what it leaves for the report.
    pub(super) fn of_rows(&self, rows: Range<usize>) -> Self {
        Self {
            backend: self.backend,
            info: self.info.clone(),
            layer: self.layer,
            rows: rows.len(),
            cols: self.cols,
            settings: self.settings,
            order: self.order.clone(),
            dead: self.dead.clone(),
            protected_columns: self.protected_columns.clone(),
            protected_rows: self.protected_rows[rows].to_vec(),
            seconds: StageSeconds::default(),
            host_operations: BTreeSet::new(),
        }
    }

    pub(super) fn merge(&mut self, part: Self) {
        self.seconds.take_in(&part.seconds);
        self.host_operations.extend(part.host_operations);
    }

    /// Runs a part of the treatment with other settings and weights.
    pub(super) fn stage<T>(
        &mut self,
        weights: ArrayView2<'_, f32>,
        settings: &LayerSettings,
        step: impl FnOnce(&mut Job<'_, B>) -> Result<T>,
    ) -> Result<T> {
        let mut stage = Job::new(self.backend, self.layer, weights, settings)?;
        let result = step(&mut stage)?;
        let Job {
            dead,
            seconds,
            host_operations,
            ..
        } = stage;
        self.dead = dead;
        self.seconds.take_in(&seconds);
        self.host_operations.extend(host_operations);
        Ok(result)
    }

    /// Checks that the protected weights leave enough to prune.
    pub(super) fn check_protection(&self) -> Result<()> {
        if self.settings.protected_columns.is_empty() && self.settings.protected_rows.is_empty() {
            return Ok(());
        }
        let columns = self.unprotected_columns_from(0);
        let available = self.unprotected_rows() * columns;
        let short = match self.checked(self.asked_whole()?, self.cols)? {
            BlockMask::Lowest { total, .. } => total > available as u64,
            BlockMask::LowestPerRow { total, .. } => total > columns,
            BlockMask::NofM { zeros, group } => self
                .protected_columns
                .chunks(group)
                .any(|group| group.iter().filter(|&&protected| !protected).count() < zeros),
            _ => false,
        };
        if short {
            return Err(Error::incompatible(
                self.layer,
                format!(
                    "pattern {} needs more zeros than the {} protected columns and {} protected rows leave",
                    self.settings.mask.describe(),
                    self.protected_columns
                        .iter()
                        .filter(|&&protected| protected)
                        .count(),
                    self.protected_rows
                        .iter()
                        .filter(|&&protected| protected)
                        .count()
                ),
                "protect less or ask for fewer zeros",
            ));
        }
        Ok(())
    }

    /// What the policy asks of all columns together.
    fn asked_whole(&self) -> Result<BlockMask> {
        let original: Vec<usize> = (0..self.cols).collect();
        let whole = MaskBlock::whole(self.layer, self.rows, &original);
        self.settings.mask.choose(&whole)
    }

    /// Whether the policy leaves nothing to choose.
    pub(super) fn mask_is_given(&self) -> Result<bool> {
        Ok(matches!(self.asked_whole()?, BlockMask::Fixed(_)))
    }

    /// A policy's answer for `width` columns, held to what the rest of the solver relies on.
    pub(super) fn checked(&self, answer: BlockMask, width: usize) -> Result<BlockMask> {
        if let BlockMask::NofM { zeros, group } = answer {
            crate::mask::Pattern::n_of_m(zeros, group)?;
            if !width.is_multiple_of(group) {
                return Err(Error::incompatible(
                    self.layer,
                    format!(
                        "mask policy {:?} asks for {zeros}:{group} in {width} columns",
                        self.settings.mask.describe()
                    ),
                    "implement MaskPolicy::group and refuse layers whose columns it does not divide",
                ));
            }
        }
        Ok(self.per_row_where_needed(answer))
    }

    /// Where a method compares within each row, as Wanda does (Sun et al. 2023, section 3), a sparsity of the layer
    /// becomes one of each row.
    fn per_row_where_needed(&self, answer: BlockMask) -> BlockMask {
        match answer {
            BlockMask::Lowest { target, total } if self.settings.compares_within_rows() => {
                BlockMask::LowestPerRow {
                    target: target as usize / self.rows,
                    total: total as usize / self.rows,
                }
            }
            answer => answer,
        }
    }

    pub(super) fn original(&self, processed: usize) -> usize {
        self.order
            .as_ref()
            .map_or(processed, |order| order[processed])
    }

    pub(super) fn is_dead(&self, original: usize) -> bool {
        self.dead.get(original).copied().unwrap_or(false)
    }

    pub(super) fn unprotected_rows(&self) -> usize {
        self.protected_rows
            .iter()
            .filter(|&&protected| !protected)
            .count()
    }

    /// Unprotected columns among the processed columns from `start` on.
    pub(super) fn unprotected_columns_from(&self, start: usize) -> usize {
        (start..self.cols)
            .filter(|&at| !self.protected_columns[self.original(at)])
            .count()
    }

    /// The protected weights among some columns, if there are any.
    pub(super) fn protected_block(&self, original: &[usize]) -> Option<Array2<bool>> {
        let any = self.protected_rows.contains(&true)
            || original
                .iter()
                .any(|&column| self.protected_columns[column]);
        any.then(|| {
            Array2::from_shape_fn((self.rows, original.len()), |(row, at)| {
                self.protected_rows[row] || self.protected_columns[original[at]]
            })
        })
    }

    /// The weights among some columns that are pruned whatever their saliency, if there are any.
    pub(super) fn forced_block(&self, original: &[usize]) -> Option<Array2<bool>> {
        let by_policy = self.settings.mask.forced();
        let any = by_policy.is_some() || original.iter().any(|&column| self.is_dead(column));
        any.then(|| {
            Array2::from_shape_fn((self.rows, original.len()), |(row, at)| {
                self.is_dead(original[at])
                    || by_policy
                        .as_ref()
                        .is_some_and(|forced| forced[[row, original[at]]])
            })
        })
    }

    /// Notes that an operation is about to be used; one that the backend does not have runs on the host.
    pub(super) fn uses(&mut self, operation: Operation) {
        if !self.info.is_native(operation) {
            self.host_operations.insert(operation);
        }
    }

    /// Notes that an operation runs on the host whatever the backend can.
    pub(super) fn host_operation(&mut self, operation: Operation) {
        self.host_operations.insert(operation);
    }

    pub(super) fn host_operations(&self) -> Vec<Operation> {
        self.host_operations.iter().copied().collect()
    }

    /// Runs a step and books its time.
    pub(super) fn timed<T>(&mut self, stage: Stage, step: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let result = step(self);
        self.seconds.add(stage, start.elapsed());
        result
    }

    pub(super) fn failed(&self, stage: Stage, error: B::Error) -> Error {
        Error::backend(self.layer, &self.info.name, stage, error)
    }

    pub(super) fn download(&self, matrix: &B::Matrix) -> Result<Array2<f32>> {
        self.backend
            .download(matrix)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }

    pub(super) fn copy(&self, matrix: &B::Matrix) -> Result<B::Matrix> {
        self.backend
            .copy(matrix)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }

    pub(super) fn download_mask(&self, mask: &B::Mask) -> Result<Array2<bool>> {
        self.backend
            .download_mask(mask)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }

    pub(super) fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<B::Mask> {
        self.backend
            .upload_mask(host)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }

    pub(super) fn upload(&self, host: ArrayView2<'_, f32>) -> Result<B::Matrix> {
        self.backend
            .upload(host)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }

    pub(super) fn upload_owned(&self, host: Array2<f32>) -> Result<B::Matrix> {
        self.backend
            .upload_owned(host)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }

    pub(super) fn download_owned(&self, matrix: B::Matrix) -> Result<Array2<f32>> {
        self.backend
            .download_owned(matrix)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }

    pub(super) fn zeros(&self, rows: usize, cols: usize) -> Result<B::Matrix> {
        self.backend
            .zeros(rows, cols)
            .map_err(|e| self.failed(Stage::Transfer, e))
    }
}
