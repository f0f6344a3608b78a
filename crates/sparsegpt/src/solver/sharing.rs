//! Which tasks on one Hessian share a factor.

use super::LayerTask;
use super::method::WeightSolver;
use super::plan::Plan;
use super::prepare::{Diagonal, FactorSettings};
use crate::backend::Backend;
use crate::hessian::Hessian;

/// The indices of `tasks` with those that ask for the same factor, of which only the last is kept, in a row. Each
/// factor comes where it is first asked for; tasks that share one, and those that need none, keep their order.
pub(super) fn by_factor<B: Backend>(hessian: &Hessian<B>, tasks: &[LayerTask<'_>]) -> Vec<usize> {
    let natural = (0..tasks.len()).collect();
    if tasks.len() < 2 {
        return natural;
    }
    // A Hessian that cannot be used is the error of the first task that needs it.
    let Ok(diagonal) = Diagonal::of(hessian, "") else {
        return natural;
    };
    let mut factors: Vec<FactorSettings> = Vec::new();
    let mut ranks = Vec::with_capacity(tasks.len());
    for task in tasks {
        ranks.push(match asked(&diagonal, task) {
            // Beside the one before it, as it neither makes a factor nor drops one.
            None => factors.len().saturating_sub(1),
            Some(asked) => match factors.iter().position(|known| *known == asked) {
                Some(known) => known,
                None => {
                    factors.push(asked);
                    factors.len() - 1
                }
            },
        });
    }
    let mut order = natural;
    order.sort_by_key(|&task| ranks[task]);
    order
}

/// The factor that a task asks for; `None` where it needs none, or is an error when its turn comes.
fn asked(diagonal: &Diagonal, task: &LayerTask<'_>) -> Option<FactorSettings> {
    let (settings, (rows, cols)) = (task.settings, task.weights.dim());
    let sound = settings.parts().weights == WeightSolver::Sweep
        && cols == diagonal.values.len()
        && settings.validate(task.name, rows, cols).is_ok();
    if !sound {
        return None;
    }
    let plan = Plan::new(settings, cols);
    FactorSettings::of(settings, &plan, (task.name, task.weights), diagonal).ok()
}
