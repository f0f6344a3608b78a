//! Several patterns in one pass: a folder of checkpoints, one for each.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sparsegpt::{ModelPlan, ModelReport, prune_model_variants_resumable};
use sparsegpt_models::calibration::Calibration;
use sparsegpt_models::checkpoint::{
    CheckpointSet, CheckpointWriter, OutputOptions, Overlay, WeightSink, WrittenCheckpoint,
};
use sparsegpt_models::resume::StateFolder;

use super::keep::Keeper;
use super::{Job, Outcome, RunReport, summary};
use crate::failure::Failure;
use crate::flags::folder_name;
use crate::{interrupt, model};

/// For `--json`.
#[derive(Debug, Serialize)]
struct Outcomes<'a> {
    /// The folder of the folders.
    output: PathBuf,
    variants: Vec<Outcome<'a>>,
}

pub(super) fn write(job: &Job<'_>, out: &Path, options: &OutputOptions) -> Result<(), Failure> {
    let patterns = &job.flags.layer.pattern;
    let mut set = job
        .checkpoint
        .create_outputs(out, options)
        .map_err(Failure::writing)?;
    interrupt::left_over(Some(set.staging().to_path_buf()));
    job.console.tell_leftovers(set.leftovers());
    let state = StateFolder::open(set.path(), job.args.fresh).map_err(Failure::writing)?;
    let writers = patterns
        .iter()
        .map(|&pattern| set.begin(&folder_name(pattern)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::writing)?;
    let (calibration, mut keeper) = job.begun(state, &writers[0])?;
    let (reports, written) = pruned(job, set, writers, &mut keeper, calibration.as_ref())
        .map_err(|failure| failure.leaving(keeper.left()))?;
    keeper.done()?;
    interrupt::left_over(None);

    let outcomes = Outcomes {
        output: out.to_path_buf(),
        variants: reports
            .iter()
            .zip(&written)
            .map(|(report, output)| Outcome { report, output })
            .collect(),
    };
    job.console
        .print(&summary::of_variants(&outcomes.variants, job.checkpoint))?;
    job.console.print_json(&outcomes)
}

/// The set in its place, and what was done for each pattern.
fn pruned(
    job: &Job<'_>,
    set: CheckpointSet<'_>,
    mut writers: Vec<CheckpointWriter>,
    keeper: &mut Keeper,
    calibration: Option<&Calibration>,
) -> Result<(Vec<RunReport>, Vec<WrittenCheckpoint>), Failure> {
    let plans = job
        .plans
        .iter()
        .enumerate()
        .map(|(variant, plan)| job.allocated(plan, variant, calibration))
        .collect::<Result<Vec<_>, _>>()?;
    let runs = prune(job, &plans, &mut writers, keeper, calibration)?;
    let mut reports = Vec::new();
    let mut written = Vec::new();
    for ((writer, run), &pattern) in writers.into_iter().zip(runs).zip(&job.flags.layer.pattern) {
        interrupt::check()?;
        let mut report = job.report(run, Some(pattern), calibration)?;
        written.push(job.finish(writer, &mut report)?);
        reports.push(report);
    }
    interrupt::check()?;
    let written = set.finish(written).map_err(Failure::writing)?;
    Ok((reports, written))
}

/// Weights go to their writers as they are finished, and are rounded to the type in which they are stored.
fn prune(
    job: &Job<'_>,
    plans: &[ModelPlan],
    writers: &mut [CheckpointWriter],
    keeper: &mut Keeper,
    calibration: Option<&Calibration>,
) -> Result<Vec<ModelReport>, Failure> {
    // The model stays dense: nothing is ever stored in this.
    let mut unchanged = Overlay::new(job.checkpoint.tensors());
    let mut adapter = model::adapter(job.checkpoint, &mut unchanged)?;
    let sequences = calibration.map_or(&[][..], |calibration| &calibration.sequences);
    let mut progress = job.progress(calibration);
    let result = prune_model_variants_resumable(
        &mut adapter,
        job.pruner,
        sequences,
        plans,
        keeper,
        &mut |layer| {
            let name = format!("{}.weight", layer.pruned.report.layer);
            let values = job.config.stored_values(&name, &layer.pruned.weights);
            writers[layer.variant].store(&name, &values)?;
            Ok(())
        },
        &mut |event| progress.show(event),
    );
    progress.finish();
    result.map_err(|interrupted| interrupted.error.into())
}
