//! The quantization grids of a layer on a device.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, s};

use super::job::Job;
use crate::backend::host::SweepGrid;
use crate::backend::{Backend, FitGrid, GridRef, Operation};
use crate::error::{Error, Result, Stage};
use crate::quant::{Granularity, Grid, GridLevels, QuantizedLayer, Quantizer};

/// Columns in a group whose grid is fitted when the solver reaches it, where there are such groups.
pub(super) fn fitted_on_the_way(quantizer: &dyn Quantizer, cols: usize) -> Option<usize> {
    match quantizer.granularity() {
        Granularity::Group { size, fixed: false } => Some(size.min(cols)),
        _ => None,
    }
}

/// Scales and zero points of all groups, and who belongs to which.
#[derive(Debug)]
pub(super) struct Levels<B: Backend> {
    quantizer: Arc<dyn Quantizer>,
    kind: GridLevels,
    scale: B::Matrix,
    zero: B::Matrix,
    /// Group of each processed column.
    groups: Vec<usize>,
    /// Columns in a group whose grid is fitted on the way.
    pub(super) dynamic: Option<usize>,
}

impl<B: Backend> Levels<B> {
    /// Fits everything that is found beforehand. `dense` are the weights in the original column order,
    /// `weights` the same on the device in processing order.
    pub(super) fn new(
        job: &mut Job<'_, B>,
        dense: ArrayView2<'_, f32>,
        weights: &B::Matrix,
    ) -> Result<Option<Self>> {
        let Some(quantizer) = job.settings.quantizer.clone() else {
            return Ok(None);
        };
        let kind = quantizer.levels();
        check_levels(job.layer, &*quantizer, &kind)?;
        let dynamic = fitted_on_the_way(&*quantizer, job.cols);
        let fixed = dynamic.is_none();
        let size = match quantizer.granularity() {
            Granularity::Group { size, .. } => size.min(job.cols),
            _ => job.cols,
        };
        let count = job.cols.div_ceil(size);
        let groups = (0..job.cols)
            .map(|at| {
                if fixed {
                    job.original(at) / size
                } else {
                    at / size
                }
            })
            .collect();
        let mut levels = Self {
            quantizer,
            kind,
            scale: job.zeros(job.rows, count)?,
            zero: job.zeros(job.rows, count)?,
            groups,
            dynamic,
        };
        if !fixed {
            return Ok(Some(levels));
        }
        if count == 1 {
            levels.fit_on_device(job, weights, 0..job.cols, 0)?;
        } else {
            let mut scale = Array2::zeros((job.rows, count));
            let mut zero = Array2::zeros((job.rows, count));
            for group in 0..count {
                let columns = group * size..((group + 1) * size).min(job.cols);
                let grid = levels.checked_fit(job, dense.slice(s![.., columns]))?;
                scale.column_mut(group).assign(&grid.scale);
                zero.column_mut(group).assign(&grid.zero);
            }
            levels.scale = job.upload(scale.view())?;
            levels.zero = job.upload(zero.view())?;
        }
        Ok(Some(levels))
    }

    /// Fits all grids to these weights, also those that a sweep would find on its way. Columns in their natural order.
    pub(super) fn fitted(
        job: &mut Job<'_, B>,
        dense: ArrayView2<'_, f32>,
        weights: &B::Matrix,
    ) -> Result<Option<Self>> {
        let Some(mut levels) = Self::new(job, dense, weights)? else {
            return Ok(None);
        };
        if let Some(size) = levels.dynamic {
            for first in (0..job.cols).step_by(size) {
                levels.enter(job, weights, first)?;
            }
        }
        Ok(Some(levels))
    }

    /// Runs `step` with the grids on the host.
    pub(super) fn on_host<T>(
        &self,
        job: &Job<'_, B>,
        step: impl FnOnce(SweepGrid<'_>) -> Result<T>,
    ) -> Result<T> {
        let (scale, zero) = (job.download(&self.scale)?, job.download(&self.zero)?);
        step(SweepGrid {
            kind: self.kind.kind(),
            scale: scale.view(),
            zero: zero.view(),
            groups: &self.groups,
        })
    }

    /// Fits the grid of the group that starts at `start`, if it is one found on the way.
    pub(super) fn enter(
        &mut self,
        job: &mut Job<'_, B>,
        weights: &B::Matrix,
        start: usize,
    ) -> Result<()> {
        match self.dynamic {
            Some(size) if start.is_multiple_of(size) => {
                let columns = start..(start + size).min(job.cols);
                self.fit_on_device(job, weights, columns, start / size)
            }
            _ => Ok(()),
        }
    }

    fn fit_on_device(
        &mut self,
        job: &mut Job<'_, B>,
        weights: &B::Matrix,
        columns: Range<usize>,
        group: usize,
    ) -> Result<()> {
        let quantizer = self.quantizer.clone();
        if let Some(grid) = quantizer.as_uniform() {
            job.uses(Operation::FitGrid);
            let per_tensor = quantizer.granularity() == Granularity::PerTensor;
            let targets = (&mut self.scale, &mut self.zero);
            return job
                .backend
                .fit_grid(FitGrid::new(
                    weights, columns, grid, per_tensor, targets, group,
                ))
                .map_err(|e| job.failed(Stage::Grid, e));
        }
        job.host_operation(Operation::FitGrid);
        let current = job.download(weights)?;
        let grid = self.checked_fit(job, current.slice(s![.., columns]))?;
        let mut scale = job.download(&self.scale)?;
        let mut zero = job.download(&self.zero)?;
        scale.column_mut(group).assign(&grid.scale);
        zero.column_mut(group).assign(&grid.zero);
        self.scale = job.upload(scale.view())?;
        self.zero = job.upload(zero.view())?;
        Ok(())
    }

    /// A quantizer's fit, held to its contract.
    fn checked_fit(&self, job: &Job<'_, B>, weights: ArrayView2<'_, f32>) -> Result<Grid> {
        let grid = self.quantizer.fit(weights)?;
        let fits = grid.scale.len() == job.rows
            && grid.zero.len() == job.rows
            && grid
                .scale
                .iter()
                .all(|&scale| scale.is_finite() && scale > 0.0)
            && grid.zero.iter().all(|&zero| match self.kind {
                GridLevels::Affine { max_code } => {
                    zero.fract() == 0.0 && (0.0..=max_code as f32).contains(&zero)
                }
                GridLevels::Codebook { .. } => zero.is_finite(),
            });
        if fits {
            Ok(grid)
        } else {
            Err(Error::incompatible(
                job.layer,
                format!(
                    "quantizer {:?} returned a grid that is not {} positive scales and as many zero points, integers among the codes",
                    self.quantizer.describe(),
                    job.rows
                ),
                "mend the quantizer's fit",
            ))
        }
    }

    pub(super) fn grid(&self, columns: Range<usize>) -> GridRef<'_, B> {
        GridRef::new(
            self.kind.kind(),
            &self.scale,
            &self.zero,
            &self.groups[columns],
        )
    }

    /// Codes and grids in the original column order.
    pub(super) fn finish(
        self,
        job: &Job<'_, B>,
        weights: ArrayView2<'_, f32>,
    ) -> Result<QuantizedLayer> {
        let mut group_of_column = vec![0; job.cols];
        for (at, group) in self.groups.iter().enumerate() {
            group_of_column[job.original(at)] = *group;
        }
        let scale = job.download(&self.scale)?;
        let zero = job.download(&self.zero)?;
        Ok(QuantizedLayer::encode(
            weights,
            self.kind,
            scale,
            zero,
            group_of_column,
        ))
    }
}

fn check_levels(layer: &str, quantizer: &dyn Quantizer, kind: &GridLevels) -> Result<()> {
    let reason = match kind {
        GridLevels::Affine { max_code } if !(1..=255).contains(max_code) => {
            format!("largest code {max_code}, expected 1 to 255")
        }
        GridLevels::Codebook { levels }
            if levels.is_empty()
                || levels.len() > 256
                || levels.iter().any(|level| !level.is_finite())
                || levels.windows(2).any(|pair| pair[0] >= pair[1]) =>
        {
            "a code book must have 1 to 256 finite levels in ascending order".to_owned()
        }
        GridLevels::Codebook { levels }
            if quantizer.represents_zero() && !levels.contains(&0.0) =>
        {
            format!(
                "quantizer {:?} says that 0 is a level, its code book has none",
                quantizer.describe()
            )
        }
        _ => return Ok(()),
    };
    Err(Error::incompatible(
        layer,
        reason,
        "mend the quantizer's levels",
    ))
}
