//! What was done, as it is written beside the weights and read from there.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sparsegpt::{ModelReport, Pattern};
use sparsegpt_models::checkpoint::CastZeros;

use crate::failure::{Exit, Failure};

/// What was done, in the output folder.
pub(crate) const REPORT_FILE: &str = "sparsegpt_report.json";

/// What `sparsegpt_report.json` and `--json` hold.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct RunReport {
    pub(crate) version: String,
    pub(crate) model: PathBuf,
    /// The flags used, from the command line and the recipe file.
    pub(crate) settings: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recipe_file: Option<PathBuf>,
    /// Which of several patterns this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pattern: Option<Pattern>,
    pub(crate) calibration: Option<CalibrationReport>,
    pub(crate) weights: u64,
    pub(crate) zeros: u64,
    /// Zeros in the file beyond those that the layers report: of weights too small for the stored type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cast_zeros: Vec<CastZeros>,
    #[serde(flatten)]
    pub(crate) run: ModelReport,
}

/// What the run was calibrated on.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct CalibrationReport {
    pub(crate) source: String,
    pub(crate) seed: u64,
    pub(crate) sequences: usize,
    pub(crate) sequence_length: usize,
    pub(crate) tokens_available: usize,
    pub(crate) fingerprint: String,
}

impl RunReport {
    /// Reads and checks one: it is a file like any other, and its sums must be sums.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::file(path, format!("cannot read the report: {error}")))?;
        let report: Self = serde_json::from_str(&text).map_err(|error| {
            Failure::file(
                path,
                format!("expected the report of a pruning run of this version: {error}"),
            )
        })?;
        report
            .check()
            .map_err(|reason| Failure::file(path, reason))?;
        Ok(report)
    }

    fn check(&self) -> Result<(), String> {
        let mut sum = 0_u64;
        for layer in &self.run.layers {
            let weights = (layer.rows as u64)
                .checked_mul(layer.cols as u64)
                .filter(|&weights| weights > 0 && layer.zeros <= weights)
                .ok_or_else(|| {
                    format!(
                        "{}: expected at most as many zeros as weights, found {} in {} x {}",
                        layer.layer, layer.zeros, layer.rows, layer.cols
                    )
                })?;
            sum = sum
                .checked_add(weights)
                .ok_or("more weights than can be counted")?;
        }
        match (sum, self.run.zeros()) == (self.weights, self.zeros) {
            true => Ok(()),
            false => Err(format!(
                "expected the sums of its layers, {sum} weights and {} zeros, found {} and {}",
                self.run.zeros(),
                self.weights,
                self.zeros
            )),
        }
    }

    /// Into the folder that is not yet in place, so that report and weights appear together.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Failure> {
        let path = folder.join(REPORT_FILE);
        let text =
            serde_json::to_string_pretty(self).map_err(|error| Failure::new(Exit::Work, error))?;
        fs::write(&path, text + "\n")
            .map_err(|error| Failure::new(Exit::Work, format!("{}: {error}", path.display())))
    }
}
