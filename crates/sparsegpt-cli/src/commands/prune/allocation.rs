//! Zeros divided among the layers, before the run.

use sparsegpt::allocate::allocate;
use sparsegpt::{AllocationReport, ModelPlan};
use sparsegpt_models::calibration::Calibration;
use sparsegpt_models::checkpoint::Overlay;

use super::Job;
use crate::cost::{self, CalibrationSize, Work};
use crate::failure::Failure;
use crate::{model, table};

impl Job<'_> {
    /// The plan with a sparsity for each layer, where that is asked for: the one of this variant.
    pub(super) fn allocated(
        &self,
        plan: &ModelPlan,
        variant: usize,
        calibration: Option<&Calibration>,
    ) -> Result<ModelPlan, Failure> {
        let Some(Some(allocating)) = self.allocating.get(variant) else {
            return Ok(plan.clone());
        };
        let allocator = allocating.allocator();
        let mut unchanged = Overlay::new(self.checkpoint.tensors());
        let mut adapter = model::adapter(self.checkpoint, &mut unchanged)?;
        let sequences = calibration.map_or(&[][..], |calibration| &calibration.sequences);
        let passes = vec![self.planned[variant].clone(); allocating.solutions().max(1)];
        let mut progress = self.progress_over(&passes, calibration);
        let found = allocate(
            &mut adapter,
            self.pruner,
            sequences,
            plan,
            &allocating.budget,
            &*allocator,
            &mut |event| progress.show(event),
        );
        progress.finish();
        Ok(found?.plan)
    }

    /// What allocation takes before the run.
    pub(super) fn allocation_work(&self, size: CalibrationSize) -> Work {
        let mut work = Work::default();
        for (planned, allocating) in self.planned.iter().zip(self.allocating) {
            let Some(allocating) = allocating else {
                continue;
            };
            if !allocating.allocator().needs_calibration() {
                continue;
            }
            let solutions = allocating.solutions();
            let passes = vec![planned.clone(); solutions.max(1)];
            let of_variant = cost::work(&passes, self.config, size);
            work += match solutions {
                0 => of_variant.without_solving(),
                _ => of_variant,
            };
        }
        work
    }
}

/// What was divided, for people.
pub(super) fn text(report: &AllocationReport) -> String {
    let share = |zeros: u64, weights: u64| zeros as f64 / weights.max(1) as f64;
    let shares = report
        .layers
        .iter()
        .map(|layer| share(layer.zeros, layer.weights));
    let least = shares.clone().fold(1.0, f64::min);
    let most = shares.fold(0.0, f64::max);
    let losses = match (report.predicted_loss, report.uniform_loss) {
        (Some(predicted), Some(uniform)) => {
            format!("; predicted loss {predicted:.4e}, {uniform:.4e} if uniform")
        }
        _ => String::new(),
    };
    format!(
        "zeros allocated by {}: {} of {} weights, {} to {} of a layer{losses} ({:.2} s)\n",
        report.allocator,
        report.zeros,
        report.weights,
        table::percent(least),
        table::percent(most),
        report.seconds
    )
}
