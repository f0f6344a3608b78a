//! What was done, for people.

use std::fmt::Write;

use sparsegpt::backend::Precision;
use sparsegpt::report::ModelSeconds;
use sparsegpt::{LayerReport, ModelReport, Starved};
use sparsegpt_models::checkpoint::{Checkpoint, WrittenCheckpoint};

use super::{Outcome, REPORT_FILE, RunReport, allocation};
use crate::model;
use crate::table::{self, Table, left, right};

/// What several patterns in one pass mean for the results.
pub(super) const DENSE_CALIBRATION: &str = "With several patterns each block is calibrated on the dense model's activations, not on those of the pruned blocks before it: results differ from those of single runs.\n";

pub(super) fn of(report: &RunReport, written: &WrittenCheckpoint, source: &Checkpoint) -> String {
    let mut text = layers(&report.run);
    text += &calibration(report);
    text += &seconds(&report.run.seconds);
    text += &place(written);
    text + &remark(report, written, source)
}

/// The same for several patterns of one pass, and what that means for the results.
pub(super) fn of_variants(variants: &[Outcome<'_>], source: &Checkpoint) -> String {
    let mut text = String::new();
    for Outcome { report, output } in variants {
        if let Some(pattern) = report.pattern {
            let _ = writeln!(text, "pattern {pattern}");
        }
        text += &layers(&report.run);
        let _ = writeln!(text, "{:.2} s solving", report.run.seconds.solve);
        text += &place(output);
        text.push('\n');
    }
    if let Some(Outcome { report, output }) = variants.first() {
        text += &calibration(report);
        let mut all = report.run.seconds.clone();
        all.solve = variants.iter().map(|v| v.report.run.seconds.solve).sum();
        text += &seconds(&all);
        if report.calibration.is_some() {
            text += DENSE_CALIBRATION;
        }
        text += &remark(report, output, source);
    }
    text
}

fn layers(run: &ModelReport) -> String {
    let mut text = by_kind(run).to_string();
    if let Some(first) = run.starved.first() {
        let done = match first.treatment {
            Starved::Share => "were calibrated on those of all experts of their block",
            _ => "were pruned by magnitude",
        };
        let _ = writeln!(
            text,
            "{} layers of experts saw too few calibration tokens and {done} (starved in {REPORT_FILE}); more or other text may reach them",
            run.starved.len()
        );
    }
    for layer in &run.layers {
        if layer.factor_attempts > 1 {
            let precision = layer
                .precision
                .map_or_else(String::new, |p| format!(" in {p}"));
            let _ = writeln!(
                text,
                "{}: factored at attempt {}{precision}, with damping {}",
                layer.layer, layer.factor_attempts, layer.damping
            );
        }
        if let Some(inverted) = layer.dense_targets.filter(|f| f.attempts > 1) {
            let _ = writeln!(
                text,
                "{}: inverted for --dense-targets at attempt {} in {}, with damping {}",
                layer.layer, inverted.attempts, inverted.precision, inverted.damping
            );
        }
    }
    let _ = writeln!(
        text,
        "\n{} layers treated, {} left as they were: {} of {} weights are zero ({})",
        run.layers.len(),
        run.skipped.len(),
        run.zeros(),
        run.weights(),
        table::percent(run.zero_fraction()),
    );
    if let Some(report) = &run.allocation {
        text += &allocation::text(report);
    }
    text
}

fn calibration(report: &RunReport) -> String {
    report
        .calibration
        .as_ref()
        .map_or_else(String::new, |calibration| {
            format!(
                "calibration: {} x {} tokens, {} (fingerprint {})\n",
                calibration.sequences,
                calibration.sequence_length,
                calibration.source,
                calibration.fingerprint
            )
        })
}

fn seconds(s: &ModelSeconds) -> String {
    format!(
        "seconds: {:.2} in all; {:.2} calibrating (of that {:.2} Hessians), {:.2} solving, {:.2} propagating, {:.2} loading and storing\n",
        s.total, s.calibrate, s.hessian, s.solve, s.propagate, s.blocks
    )
}

fn place(written: &WrittenCheckpoint) -> String {
    let mut text = format!(
        "written and checked: {} ({} tensors, {}; details in {REPORT_FILE})\n",
        written.path.display(),
        written.tensors,
        table::bytes(written.bytes as f64),
    );
    if !written.cast_zeros.is_empty() {
        let zeros: u64 = written.cast_zeros.iter().map(|cast| cast.zeros).sum();
        let _ = writeln!(
            text,
            "the file has {zeros} more zeros than reported above, of weights too small for its type, in {} tensors (cast_zeros in {REPORT_FILE})",
            written.cast_zeros.len()
        );
    }
    text
}

fn remark(report: &RunReport, written: &WrittenCheckpoint, source: &Checkpoint) -> String {
    let before = model::stored_bytes(source);
    let size = if before == written.bytes {
        "the weights take as many bytes as before".to_owned()
    } else {
        "the size follows the type of the weights, not their zeros".to_owned()
    };
    let mut layers = report.run.layers.iter();
    let rounded = layers.any(|layer| layer.quantization.is_some());
    let format = report
        .settings
        .get("format")
        .and_then(|format| format.as_str());
    let packed = format.is_some_and(|format| format != "huggingface");
    let codes = if rounded && !packed {
        " Rounded weights are stored as ordinary floats."
    } else {
        ""
    };
    format!(
        "Zeros are stored like other weights: {size}, and engines that multiply dense matrices run it at the same speed.{codes}\n"
    )
}

/// A row for each kind of layer: those of the same name but for the block's number. A hard factor is one that
/// needed more precision or more damping than the first attempt had.
pub(crate) fn by_kind(run: &ModelReport) -> Table<7> {
    let mut kinds: Vec<(String, Vec<&LayerReport>)> = Vec::new();
    for layer in &run.layers {
        let name = kind(&layer.layer);
        match kinds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, layers)) => layers.push(layer),
            None => kinds.push((name, vec![layer])),
        }
    }
    let raised = |layer: &&&LayerReport| {
        layer.factor_attempts > 1 || layer.precision.is_some_and(|p| p != Precision::F32)
    };
    let mut table = Table::new([
        left("layers"),
        right("number"),
        right("zeros"),
        right("mean error"),
        right("largest"),
        right("hard factors"),
        right("seconds"),
    ]);
    for (name, layers) in &kinds {
        let weights: u64 = layers
            .iter()
            .map(|layer| (layer.rows * layer.cols) as u64)
            .sum();
        let zeros: u64 = layers.iter().map(|layer| layer.zeros).sum();
        let errors: Vec<f64> = layers
            .iter()
            .filter_map(|layer| layer.relative_error)
            .collect();
        let (mean, largest) = if errors.is_empty() {
            ("-".to_owned(), "-".to_owned())
        } else {
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            let largest = errors.iter().copied().fold(0.0, f64::max);
            (format!("{mean:.2e}"), format!("{largest:.2e}"))
        };
        let seconds: f64 = layers.iter().map(|layer| layer.seconds.total).sum();
        table.row([
            name.clone(),
            layers.len().to_string(),
            table::percent(zeros as f64 / weights.max(1) as f64),
            mean,
            largest,
            layers.iter().filter(raised).count().to_string(),
            format!("{seconds:.2}"),
        ]);
    }
    table
}

/// Geometric mean over the layers of an error of theirs; `None` where no layer has one.
pub(crate) fn mean_error(
    run: &ModelReport,
    error: impl Fn(&LayerReport) -> Option<f64>,
) -> Option<f64> {
    // Layers without any error, as where nothing is pruned, would make every mean zero.
    let logs: Vec<f64> = run
        .layers
        .iter()
        .filter_map(error)
        .filter(|&error| error > 0.0)
        .map(f64::ln)
        .collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// A layer's name with `*` for the block's number.
pub(crate) fn kind(name: &str) -> String {
    let parts = name.split('.').map(|part| {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            "*"
        } else {
            part
        }
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn kinds_leave_the_block_out() {
        assert_eq!(
            kind("model.layers.12.mlp.up_proj"),
            "model.layers.*.mlp.up_proj"
        );
        assert_eq!(kind("lm_head"), "lm_head");
    }
}
