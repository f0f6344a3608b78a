//! ADMM for one layer: an inverse, then products and projections in turn. The formulas stand at [`Admm`].
//!
//! Scaling H to a unit diagonal needs no second matrix: with N = diag(H)^½, N⁻¹HN⁻¹ + (δ + ρ)I inverted and scaled back
//! is (H + (δ + ρ)N²)⁻¹, so that W − D = ρ(Z − U − D)N²(H + (δ + ρ)N²)⁻¹ in the coordinates of the weights, and the
//! smallest |W + U| there are the smallest |w_ij + u_ij|·n_j here.

use ndarray::{Array2, ArrayView2};

use super::chooser::{Chooser, Chosen};
use super::job::Job;
use super::method::Admm;
use super::prepare::{Diagonal, invert};
use super::{Solved, in_processing_order};
use crate::backend::{Backend, Gemm, Operation, Precision, Project};
use crate::error::{Error, Result, Stage};
use crate::hessian::Hessian;
use crate::report::FactorReport;

/// Iterations between two growths of the penalty (ALPS, section 3.2).
const GROWTH_PERIOD: usize = 3;

/// An inverse that layers with the same input share.
#[derive(Debug)]
pub(super) struct Inverse<B: Backend> {
    matrix: B::Matrix,
    /// δ + ρ.
    shift: f64,
    precision: Precision,
}

/// Solves one layer.
pub(super) fn admm<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &Hessian<B>,
    settings: Admm,
    shared: &mut Option<Inverse<B>>,
) -> Result<Solved> {
    let diagonal = Diagonal::of(hessian, job.layer)?;
    job.dead.clone_from(&diagonal.dead);
    let entries = diagonal.patched();
    let start = in_processing_order(job, dense);
    let row = |entry: &dyn Fn(f32) -> f32| {
        let row = Array2::from_shape_fn((1, job.cols), |(_, column)| entry(entries[column]));
        job.upload(row.view())
    };
    let (scales, weights) = (row(&|entry| entry.sqrt().recip())?, row(&|entry| entry)?);
    let dense = job.upload(start.view())?;
    let mut duals = job.zeros(job.rows, job.cols)?;
    let mut current = job.copy(&dense)?;
    let mut mask = None;
    let mut penalty = settings.penalty;
    let mut moved = Moved::default();

    for operation in [Operation::Combine, Operation::Project, Operation::Gemm] {
        job.uses(operation);
    }
    for iteration in 0..settings.iterations {
        // S = W + U
        job.timed(Stage::Trailing, |job| {
            job.backend
                .combine(&mut current, 1.0, &duals, 1.0)
                .map_err(|e| job.failed(Stage::Trailing, e))
        })?;
        if iteration < settings.ramp || settings.ramp == 0 || mask.is_none() {
            let share = share(iteration, settings.ramp);
            let chosen = job.timed(Stage::Select, |job| {
                let columns = 0..job.cols;
                Chooser::new(job)
                    .with_share(share)
                    .choose(job, &current, &scales, columns, false)
            })?;
            mask = Some(match chosen {
                Chosen::Mask(mask) => mask,
                _ => {
                    let none = Array2::from_elem((job.rows, job.cols), false);
                    job.upload_mask(none.view())?
                }
            });
        }
        let Some(mask) = &mask else { continue };
        if iteration + 1 == settings.iterations {
            break;
        }
        if settings.growing && (iteration + 1).is_multiple_of(GROWTH_PERIOD) {
            let (changed, total) = moved.since(job.download_mask(mask)?);
            // A ramp that has not moved a zero for a while has yet to reach their full number.
            if changed == Some(0) && iteration + 1 >= settings.ramp {
                break;
            }
            // The multipliers stay as they are, where the paper scales them by 1/growth.
            penalty *= growth(changed.unwrap_or(total), total);
        }
        let shift = settings.damping + penalty;
        if shared.as_ref().is_none_or(|known| known.shift != shift) {
            *shared = None;
            // H + shift·diag(H), in f32 or where that fails in f64.
            let rungs = [(shift, Precision::F32), (shift, Precision::F64)];
            let scaled = |shift: f64| {
                let scaled = |&entry: &f32| (f64::from(entry) * (1.0 + shift)) as f32;
                entries.iter().map(scaled).collect()
            };
            let (matrix, FactorReport { precision, .. }) =
                job.timed(Stage::Factor, |job| invert(job, hessian, rungs, scaled))?;
            *shared = Some(Inverse {
                matrix,
                shift,
                precision,
            });
        }
        let Some(inverse) = shared.as_ref() else {
            continue;
        };
        current = job.timed(Stage::Trailing, |job| {
            let project = Project::new(&mut current, &mut duals, &dense, mask, &weights);
            job.backend
                .project(project)
                .map_err(|e| job.failed(Stage::Trailing, e))?;
            let mut next = job.copy(&dense)?;
            let all = 0..job.cols;
            let product = Gemm::new(
                (&mut next, all.clone()),
                penalty as f32,
                (&current, all.clone()),
                (&inverse.matrix, all.clone(), all),
            );
            job.backend
                .gemm(product)
                .map_err(|e| job.failed(Stage::Trailing, e))?;
            Ok::<_, Error>(next)
        })?;
    }

    // The projection of the last W + U.
    let mask = match &mask {
        Some(mask) => job.download_mask(mask)?,
        None => Array2::from_elem((job.rows, job.cols), false),
    };
    let mut weights = job.download_owned(current)?;
    weights.zip_mut_with(&mask, |weight, &pruned| {
        if pruned {
            *weight = 0.0;
        }
    });
    let precision = shared.as_ref().map(|inverse| inverse.precision);
    Ok(Solved {
        weights,
        mask: mask.mapv(|pruned| !pruned),
        // δ alone: the penalty goes with the iterations.
        damping: precision.map_or(0.0, |_| settings.damping),
        precision,
        attempts: match precision {
            None => 0,
            Some(Precision::F32) => 1,
            // f32 was tried first.
            Some(_) => 2,
        },
        ..Solved::nothing()
    })
}

/// The part of the zeros that an iteration prunes (Boža 2024, section 3.3).
fn share(iteration: usize, ramp: usize) -> f64 {
    if iteration + 1 >= ramp {
        return 1.0;
    }
    let left = 1.0 - (iteration + 1) as f64 / ramp as f64;
    1.0 - left.powi(3)
}

/// What the penalty is multiplied by when so many of the zeros have moved (ALPS, section 3.2).
fn growth(changed: usize, zeros: usize) -> f64 {
    if 10 * changed >= zeros {
        1.3
    } else if 200 * changed >= zeros {
        1.2
    } else {
        1.1
    }
}

/// The mask of the last growth.
#[derive(Debug, Default)]
struct Moved(Option<Array2<bool>>);

impl Moved {
    /// Zeros that were not there before, and all zeros; `None` the first time.
    fn since(&mut self, mask: Array2<bool>) -> (Option<usize>, usize) {
        let changed = self.0.as_ref().map(|before| {
            let pairs = mask.iter().zip(before);
            pairs.filter(|&(&now, &before)| now && !before).count()
        });
        let zeros = mask.iter().filter(|&&pruned| pruned).count();
        self.0 = Some(mask);
        (changed, zeros)
    }
}
