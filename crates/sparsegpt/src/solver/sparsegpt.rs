//! The paper's Algorithm 1, with Eq. 7 where a quantizer is given, block by block, looking back.
//!
//! With H = UUᵀ, W the dense weights and Ŵ the result, the current weights of a block B, after all columns
//! before it are final, are W_B + (W − Ŵ)_{<B} U_{<B,B} U_BB⁻¹: the form of QuIP's LDLQ (Chee et al. 2023), equal
//! to the paper's lazy updates by R = U⁻¹ in exact arithmetic. It needs no inverse of more than the diagonal blocks,
//! and two matrices of the layer's size: one gathers (W − Ŵ)U and then holds Ŵ, one holds W and then W − Ŵ.

use ndarray::{ArrayView2, s};

use super::ahead::Ahead;
use super::blocks::State;
use super::compose::Shared;
use super::job::Job;
use super::levels::Levels;
use super::order::ColumnOrder;
use super::plan::Plan;
use super::prepare::{Diagonal, FactorSettings, Factored};
use super::{Solved, in_original_order, in_processing_order, measure, slices};
use crate::backend::{Backend, Operation};
use crate::error::{Result, Stage};
use crate::hessian::Hessian;

/// Solves one layer.
pub(super) fn sparsegpt<B: Backend>(
    job: &mut Job<'_, B>,
    dense: ArrayView2<'_, f32>,
    hessian: &mut Hessian<B>,
    shared: &mut Shared<'_, B>,
) -> Result<Solved> {
    let diagonal = Diagonal::of(hessian, job.layer)?;
    let plan = Plan::new(job.settings, job.cols);
    let asked = FactorSettings::of(job.settings, &plan, (job.layer, dense), &diagonal)?;
    job.order.clone_from(&asked.order);
    job.dead.clone_from(&diagonal.dead);

    let start = in_processing_order(job, dense);
    let Shared {
        factored, ahead, ..
    } = shared;
    if !factored.as_ref().is_some_and(|known| known.suits(&asked)) {
        // Dropped before the next one is made: its matrix may be as large as the Hessian.
        *factored = None;
    }
    let factored = match factored {
        Some(known) => known,
        none => none.insert(job.timed(Stage::Factor, |job| {
            if asked.order.is_some() {
                job.uses(Operation::PermuteHessian);
            }
            Factored::new(job.backend, hessian, &diagonal, asked, job.layer)
        })?),
    };
    let made = Made {
        factor: factored.own.as_ref().unwrap_or_else(|| hessian.matrix()),
        scales: &factored.scales,
        diagonal: diagonal.ordered(job.order.as_deref()),
    };
    // Only weights that are solved for as they are can have been sent ahead.
    let sent = ahead.take(start.view());
    let solved = match slices::of(job, plan.widest_block())? {
        None => {
            let ahead = start.is_view().then_some(ahead);
            solve_rows(job, start.view(), sent, &plan, &made, ahead)?
        }
        Some(slices) => {
            let mut whole = slices::Whole::new(job);
            for rows in slices {
                let mut part = job.of_rows(rows.clone());
                let start = start.slice(s![rows.clone(), ..]);
                let solved = solve_rows(&mut part, start, None, &plan, &made, None)?;
                job.merge(part);
                whole.put(rows, solved);
            }
            whole.finish()
        }
    };
    Ok(Solved {
        damping: factored.damping,
        precision: Some(factored.precision),
        attempts: factored.attempts,
        order: Some(match job.order {
            Some(_) => job.settings.order,
            None => ColumnOrder::Natural,
        }),
        ..solved
    })
}

/// What all rows of a layer share.
#[derive(Debug)]
struct Made<'a, B: Backend> {
    factor: &'a B::Matrix,
    /// The diagonal of R, 1 x cols.
    scales: &'a B::Matrix,
    /// That of H, in the order of processing.
    diagonal: Vec<f32>,
}

/// Solves the rows of a job, dense weights in the order of processing, which may have been `sent` before.
fn solve_rows<B: Backend>(
    job: &mut Job<'_, B>,
    start: ArrayView2<'_, f32>,
    sent: Option<B::Matrix>,
    plan: &Plan,
    made: &Made<'_, B>,
    ahead: Option<&mut Ahead<'_, B>>,
) -> Result<Solved> {
    let rest = job.timed(Stage::Transfer, |job| match sent {
        Some(sent) => Ok(sent),
        None => job.upload(start),
    })?;
    let levels = job.timed(Stage::Grid, |job| {
        Levels::new(job, in_original_order(job, start.into()).view(), &rest)
    })?;
    let mut state = State::new(job, plan, rest, levels)?;
    state.solve(job, plan, made.factor, made.scales)?;
    if let Some(ahead) = ahead {
        job.timed(Stage::Transfer, |job| ahead.send(job));
    }

    let squares = job.download(&state.losses)?;
    let solver_loss = 0.5 * squares.iter().map(|&square| f64::from(square)).sum::<f64>();
    let error = job.timed(Stage::Measure, |job| {
        measure(job, start, &state.rest, made.factor, &made.diagonal)
    })?;
    let mask = job.timed(Stage::Transfer, |job| state.kept(job))?;
    let weights = job.timed(Stage::Transfer, |job| job.download_owned(state.weights))?;
    let weights = in_original_order(job, weights.into()).into_owned();
    let quantized = state
        .levels
        .map(|levels| levels.finish(job, weights.view()))
        .transpose()?;
    Ok(Solved {
        weights,
        mask,
        quantized,
        solver_loss: Some(solver_loss).filter(|loss| loss.is_finite()),
        error,
        ..Solved::nothing()
    })
}
