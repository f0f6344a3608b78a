//! From a Hessian to its factor: dead columns, order, damping, and the precision ladder.

use ndarray::ArrayView2;

use super::job::Job;
use super::plan::Plan;
use super::settings::{LayerSettings, MAX_DAMPING};
use crate::backend::{Backend, Operation, Precision};
use crate::error::{BackendError, BackendErrorKind, Error, Result, Stage};
use crate::hessian::Hessian;
use crate::report::FactorReport;

/// What is known of a Hessian before any factorization.
#[derive(Debug)]
pub(super) struct Diagonal {
    /// As accumulated, in the original order.
    pub(super) values: Vec<f32>,
    /// Inputs that were always zero.
    pub(super) dead: Vec<bool>,
    /// Mean over all columns, dead ones included as zero.
    pub(super) mean: f64,
}

impl Diagonal {
    pub(super) fn of<B: Backend>(hessian: &Hessian<B>, layer: &str) -> Result<Self> {
        let values = hessian.diagonal()?;
        if let Some(column) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NonFinite {
                layer: layer.to_owned(),
                what: "the Hessian",
                value: values[column],
                row: column,
                col: column,
            });
        }
        if let Some(column) = values.iter().position(|&value| value < 0.0) {
            return Err(Error::NegativeDiagonal {
                layer: layer.to_owned(),
                column,
                value: values[column],
            });
        }
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
        let dead: Vec<bool> = values.iter().map(|&value| value == 0.0).collect();
        if dead.iter().all(|&dead| dead) {
            return Err(Error::ZeroHessian {
                layer: layer.to_owned(),
                tokens: hessian.tokens(),
            });
        }
        Ok(Self { values, dead, mean })
    }

    /// Columns in descending order of the diagonal, whole groups of `group` columns together (by their
    /// largest entry), ties in the original order.
    pub(super) fn descending(&self, group: usize) -> Vec<usize> {
        let sort = |columns: &mut Vec<usize>| {
            columns.sort_by(|&a, &b| self.values[b].total_cmp(&self.values[a]));
        };
        let mut groups: Vec<Vec<usize>> = (0..self.values.len())
            .collect::<Vec<_>>()
            .chunks(group)
            .map(|columns| {
                let mut columns = columns.to_vec();
                sort(&mut columns);
                columns
            })
            .collect();
        groups.sort_by(|a, b| self.values[b[0]].total_cmp(&self.values[a[0]]));
        groups.concat()
    }

    /// The diagonal with the mean of the live columns in place of the dead ones, which keeps them out of everybody's
    /// way at any scale of H.
    pub(super) fn patched(&self) -> Vec<f32> {
        self.damped(0.0, None)
    }

    /// λ and the diagonal to factor, in the given order, dead columns [patched](Self::patched).
    pub(super) fn damped(&self, damping: f64, order: Option<&[usize]>) -> Vec<f32> {
        let live = self.dead.iter().filter(|&&dead| !dead).count();
        let patch = self.mean * self.dead.len() as f64 / live as f64;
        let lambda = damping * self.mean;
        let entry = |column: usize| {
            let value = if self.dead[column] {
                patch
            } else {
                f64::from(self.values[column])
            };
            (value + lambda) as f32
        };
        match order {
            Some(order) => order.iter().map(|&column| entry(column)).collect(),
            None => (0..self.values.len()).map(entry).collect(),
        }
    }

    pub(super) fn ordered(&self, order: Option<&[usize]>) -> Vec<f32> {
        match order {
            Some(order) => order.iter().map(|&column| self.values[column]).collect(),
            None => self.values.clone(),
        }
    }
}

/// What a factor depends on besides the Hessian.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FactorSettings {
    pub(super) damping: f64,
    /// Original column of each processed column; `None` for the natural order.
    pub(super) order: Option<Vec<usize>>,
    /// Ends of the column blocks.
    pub(super) blocks: Vec<usize>,
}

impl FactorSettings {
    /// What a layer with this plan asks for.
    pub(super) fn of(
        settings: &LayerSettings,
        plan: &Plan,
        (layer, weights): (&str, ArrayView2<'_, f32>),
        diagonal: &Diagonal,
    ) -> Result<Self> {
        Ok(Self {
            damping: settings.damping,
            order: settings.order.columns(settings, layer, weights, diagonal)?,
            blocks: plan.blocks.iter().map(|block| block.columns.end).collect(),
        })
    }
}

/// A factored Hessian. The factor stands in the upper triangle of `own`, or of the Hessian's own matrix.
#[derive(Debug)]
pub(super) struct Factored<B: Backend> {
    /// The permuted matrix, where the order is not the natural one.
    pub(super) own: Option<B::Matrix>,
    /// The diagonal of R, 1 x cols.
    pub(super) scales: B::Matrix,
    /// What this factor can be reused for.
    asked: FactorSettings,
    /// Damping that was used.
    pub(super) damping: f64,
    pub(super) precision: Precision,
    pub(super) attempts: u32,
}

impl<B: Backend> Factored<B> {
    /// Whether this is the factor that was asked for.
    pub(super) fn suits(&self, asked: &FactorSettings) -> bool {
        self.asked == *asked
    }

    pub(super) fn new(
        backend: &B,
        hessian: &mut Hessian<B>,
        diagonal: &Diagonal,
        asked: FactorSettings,
        layer: &str,
    ) -> Result<Self> {
        let name = backend.info().name;
        let failed = |stage, error| Error::backend(layer, &name, stage, error);
        let order = asked.order.as_deref();
        let mut own = order
            .map(|order| backend.permute_hessian(hessian.matrix(), order))
            .transpose()
            .map_err(|e| failed(Stage::Factor, e))?;
        let matrix = match &mut own {
            Some(permuted) => permuted,
            None => hessian.matrix_to_factor(&diagonal.values),
        };
        let mut last = (0, asked.damping, Precision::F32);
        let mut factors_in_f64 = true;
        for (attempts, (damping, precision)) in (1..).zip(ladder(asked.damping)) {
            let precision = if factors_in_f64 {
                precision
            } else {
                Precision::F32
            };
            let damped = diagonal.damped(damping, order);
            match backend.inverse_factor(matrix, &damped, &asked.blocks, precision) {
                Ok(()) => {
                    let scales = backend
                        .diagonal(matrix)
                        .map_err(|e| failed(Stage::Factor, e))?;
                    if let Some(column) = untrustworthy(&scales, &damped, precision) {
                        last = (column, damping, precision);
                        continue;
                    }
                    let scales = ArrayView2::from_shape((1, scales.len()), &scales)
                        .map(|view| backend.upload(view))
                        .map_err(|_| {
                            Error::incompatible(
                                layer,
                                "the backend's diagonal has the wrong length",
                                "report this to the backend's authors",
                            )
                        })?
                        .map_err(|e| failed(Stage::Transfer, e))?;
                    return Ok(Self {
                        own,
                        scales,
                        asked,
                        damping,
                        precision,
                        attempts,
                    });
                }
                Err(error) => match error.kind() {
                    BackendErrorKind::NotPositiveDefinite { column } => {
                        last = (column, damping, precision);
                    }
                    // Such a device has more damping left to try.
                    BackendErrorKind::Unsupported if precision == Precision::F64 => {
                        factors_in_f64 = false;
                    }
                    _ => return Err(failed(Stage::Factor, error)),
                },
            }
        }
        Err(Error::NotPositiveDefinite {
            layer: layer.to_owned(),
            column: order.map_or(last.0, |order| order[last.0]),
            damping: last.1,
            precision: last.2,
        })
    }
}

/// What is tried in turn: f32, f64, then f64 with ten times the damping up to the mean diagonal itself. A
/// device without f64 climbs the same dampings in f32.
pub(super) fn ladder(damping: f64) -> impl Iterator<Item = (f64, Precision)> {
    let raised = std::iter::successors(Some((damping * 10.0).max(1e-4)), |&d| Some(d * 10.0))
        .take_while(|&d| d < 10.0 * MAX_DAMPING)
        .map(|d| (d.min(MAX_DAMPING), Precision::F64));
    [(damping, Precision::F32), (damping, Precision::F64)]
        .into_iter()
        .chain(raised)
}

/// The inverse of H with the first of some dampings, each with its precision, for which there is one; `diagonal` is that of H with
/// a damping. Tells what that took, too.
pub(super) fn invert<B: Backend>(
    job: &mut Job<'_, B>,
    hessian: &Hessian<B>,
    rungs: impl IntoIterator<Item = (f64, Precision)>,
    diagonal: impl Fn(f64) -> Vec<f32>,
) -> Result<(B::Matrix, FactorReport)> {
    job.uses(Operation::Inverse);
    let mut last = (0, 0.0, Precision::F32);
    for ((damping, precision), attempts) in rungs.into_iter().zip(1..) {
        let damped = diagonal(damping);
        match job.backend.inverse(hessian.matrix(), &damped, precision) {
            Ok(inverse) => {
                let factored = FactorReport {
                    damping,
                    precision,
                    attempts,
                };
                return Ok((inverse, factored));
            }
            Err(error) => match error.kind() {
                BackendErrorKind::NotPositiveDefinite { column } => {
                    last = (column, damping, precision);
                }
                BackendErrorKind::Unsupported if precision == Precision::F64 => {}
                _ => return Err(job.failed(Stage::Factor, error)),
            },
        }
    }
    Err(Error::NotPositiveDefinite {
        layer: job.layer.to_owned(),
        column: last.0,
        damping: last.1,
        precision: last.2,
    })
}

/// A column whose pivot has no correct digit left although the factorization went through.
///
/// The pivot U_jj² = 1/R_jj² is what remains of H_jj after subtracting the part explained by the other
/// columns; rounding leaves an error of a few ulp of H_jj in it.
fn untrustworthy(scales: &[f32], damped: &[f32], precision: Precision) -> Option<usize> {
    let smallest = match precision {
        Precision::F32 => 32.0 * f64::from(f32::EPSILON),
        Precision::F64 => 32.0 * f64::EPSILON,
    };
    scales.iter().zip(damped).position(|(&scale, &entry)| {
        let pivot = 1.0 / (f64::from(scale) * f64::from(scale));
        let trusted = scale.is_finite() && scale > 0.0 && pivot > smallest * f64::from(entry);
        !trusted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_goes_from_f32_over_f64_to_more_damping() {
        let rungs: Vec<_> = ladder(0.01).collect();
        assert_eq!(rungs[0], (0.01, Precision::F32));
        assert_eq!(rungs[1], (0.01, Precision::F64));
        assert!(rungs[2..].iter().all(|&(damping, precision)| {
            precision == Precision::F64 && damping > 0.01 && damping <= 1.0
        }));
        assert!(rungs.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert!(ladder(0.0).count() > 3);
    }

    #[test]
    fn groups_stay_together_in_descending_order() {
        let diagonal = Diagonal {
            values: vec![1.0, 5.0, 2.0, 9.0, 3.0, 3.0],
            dead: vec![false; 6],
            mean: 1.0,
        };
        assert_eq!(diagonal.descending(1), [3, 1, 4, 5, 2, 0]);
        assert_eq!(diagonal.descending(2), [3, 2, 1, 0, 4, 5]);
    }
}
