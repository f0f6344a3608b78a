//! How fast a machine does what a run is made of: measured at once, given, or those of a machine that was measured before.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use ndarray::Array2;
use serde::Serialize;
use sparsegpt::{Batch, LayerPruner, LayerSettings, LayerTask, Pattern};
use sparsegpt_models::decoder::{TransformerConfig, product_speed};

use super::{Files, Work};
use crate::failure::Failure;

/// Columns and rows of the layer that is solved to measure, at most.
const LAYER: usize = 2048;
/// Tokens of the products that are timed.
const TOKENS: usize = 512;
const REPEATS: usize = 3;
/// Bytes a second of files where nobody says: not measured, as a plan writes nothing.
const FILES: f64 = 1e9;

/// Something that a machine does at a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// Forward passes, operations a second; on the host.
    Forward,
    /// XᵀX, operations a second.
    Hessian,
    /// Activations on their way to a device, bytes a second.
    Upload,
    /// Factorization, operations a second.
    Factor,
    /// The products behind a sweep's blocks, operations a second.
    Products,
    /// The same, for the error.
    Measure,
    /// Choice of zeros, grids and the sweep itself, weights a second.
    Sweep,
    /// A layer's way to the solver and back, and the host's passes over it, weights a second.
    Transfer,
    /// Reading and writing files, bytes a second.
    Files,
    /// Not a rate: a device's memory, in bytes.
    Memory,
}

impl Stage {
    /// Those that a rate can be given for.
    const GIVEN: [Self; 9] = [
        Self::Forward,
        Self::Hessian,
        Self::Upload,
        Self::Factor,
        Self::Products,
        Self::Sweep,
        Self::Transfer,
        Self::Files,
        Self::Memory,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Hessian => "hessian",
            Self::Upload => "upload",
            Self::Factor => "factor",
            Self::Products => "products",
            Self::Measure => "measure",
            Self::Sweep => "sweep",
            Self::Transfer => "transfer",
            Self::Files => "files",
            Self::Memory => "memory",
        }
    }

    /// What its work is counted in.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Forward | Self::Hessian | Self::Factor | Self::Products | Self::Measure => "flop",
            Self::Sweep | Self::Transfer => "weights",
            Self::Upload | Self::Files | Self::Memory => "B",
        }
    }
}

/// `NAME=NUMBER`, as in `forward=110G`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GivenRate {
    stage: Stage,
    value: f64,
}

impl FromStr for GivenRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Stage::GIVEN.map(Stage::name).join(", ");
        let (name, number) = text
            .split_once('=')
            .ok_or_else(|| format!("expected NAME=NUMBER with one of the names {}", names()))?;
        let stage = Stage::GIVEN
            .into_iter()
            .find(|stage| stage.name() == name)
            .ok_or_else(|| format!("{name:?} is none of {}", names()))?;
        let (digits, scale) = match number.chars().last() {
            Some('k') => (&number[..number.len() - 1], 1e3),
            Some('M') => (&number[..number.len() - 1], 1e6),
            Some('G') => (&number[..number.len() - 1], 1e9),
            Some('T') => (&number[..number.len() - 1], 1e12),
            _ => (number, 1.0),
        };
        let value = digits.parse::<f64>().map(|value| value * scale);
        match value {
            Ok(value) if value.is_finite() && value >= 1.0 => Ok(Self { stage, value }),
            _ => Err(format!(
                "{number:?} is no rate; expected a number of 1 or more, with k, M, G or T behind it, as in 110G"
            )),
        }
    }
}

/// The machine that a plan is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Machine {
    /// This one, with the backend of --backend.
    #[default]
    Here,
    /// This one with a GPU of 80 GB, at the rates measured on an H200.
    H100,
}

impl Machine {
    /// What is known of it: `docs/benchmarks.md`, "One H200". The stages of the layers there follow from these rates and
    /// times a column.
    fn rates(self) -> &'static [(Stage, f64)] {
        match self {
            Self::Here => &[],
            Self::H100 => &[
                (Stage::Hessian, 50e12),
                (Stage::Upload, 47e9),
                (Stage::Factor, 36e12),
                (Stage::Products, 48e12),
                (Stage::Sweep, 10e9),
                (Stage::Transfer, 744e6),
                (Stage::Memory, 80e9),
            ],
        }
    }

    /// Seconds a column beside the products, of kernels that wait for each other: of a factorization, and of a sweep.
    fn column_seconds(self) -> [f64; 2] {
        match self {
            Self::Here => [0.0; 2],
            Self::H100 => [1.3e-6, 0.65e-6],
        }
    }
}

/// Where a rate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Measured,
    Given,
    /// Of the machine that the plan is for.
    Known,
    Assumed,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured",
            Self::Given => "given",
            Self::Known => "H200",
            Self::Assumed => "assumed",
        })
    }
}

/// What one stage of a run takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct StageTime {
    pub(crate) stage: Stage,
    pub(crate) work: f64,
    pub(crate) unit: &'static str,
    pub(crate) rate: f64,
    pub(crate) origin: Origin,
    pub(crate) seconds: f64,
}

/// The rates of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Rates {
    machine: Machine,
    of: BTreeMap<Stage, (f64, Origin)>,
}

/// What layers are solved and measured with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measuring<'a> {
    pub(crate) pruner: &'a dyn LayerPruner,
    pub(crate) config: &'a TransformerConfig,
    /// Columns of the widest layer that has a Hessian; 0 where none has.
    pub(crate) widest: usize,
}

impl Rates {
    /// What is given, else what is known of the machine, else measured now.
    ///
    /// # Errors
    /// If a rate is given twice, or measuring fails.
    pub(crate) fn new(
        machine: Machine,
        given: &[GivenRate],
        measuring: Measuring<'_>,
    ) -> Result<Self, Failure> {
        let mut of = BTreeMap::from([(Stage::Files, (FILES, Origin::Assumed))]);
        for &(stage, value) in machine.rates() {
            of.insert(stage, (value, Origin::Known));
        }
        for rate in given {
            let before = of.insert(rate.stage, (rate.value, Origin::Given));
            if before.is_some_and(|(_, origin)| origin == Origin::Given) {
                return Err(Failure::usage(format!(
                    "--plan-rates: {} is given twice",
                    rate.stage.name()
                )));
            }
        }
        let mut missing = |stages: &[Stage], measure: &dyn Fn() -> Result<Vec<f64>, Failure>| {
            if stages.iter().any(|stage| !of.contains_key(stage)) {
                for (&stage, value) in stages.iter().zip(measure()?) {
                    of.entry(stage).or_insert((value, Origin::Measured));
                }
            }
            Ok::<(), Failure>(())
        };
        missing(&[Stage::Forward], &|| Ok(vec![forward(measuring.config)?]))?;
        if measuring.widest > 0 {
            let stages = [
                Stage::Hessian,
                Stage::Factor,
                Stage::Products,
                Stage::Sweep,
                Stage::Transfer,
            ];
            missing(&stages, &|| solving(measuring))?;
        }
        Ok(Self { machine, of })
    }

    /// Memory of the device that the plan is for, where it is known.
    pub(crate) fn device_memory(&self) -> Option<f64> {
        self.of.get(&Stage::Memory).map(|(bytes, _)| *bytes)
    }

    /// What a run takes, stage by stage.
    pub(crate) fn stages(&self, work: &Work, files: Files) -> Vec<StageTime> {
        let [factor_column, product_column] = self.machine.column_seconds();
        // The source is read for its fingerprint and for its weights; finished blocks are kept, the result is written and read
        // again.
        let bytes = 2.0 * files.source + 3.0 * files.result;
        let works = [
            (Stage::Forward, work.forward_flops, 0.0),
            (Stage::Upload, 4.0 * work.observed_values, 0.0),
            (Stage::Hessian, work.hessian_flops, 0.0),
            (
                Stage::Factor,
                work.factor_flops,
                factor_column * work.factor_columns,
            ),
            (
                Stage::Products,
                work.trailing_flops,
                product_column * work.swept_columns,
            ),
            (Stage::Measure, work.measure_flops, 0.0),
            (Stage::Sweep, work.weights, 0.0),
            (Stage::Transfer, work.weights, 0.0),
            (Stage::Files, bytes, 0.0),
        ];
        let time = |(stage, work, beside): (Stage, f64, f64)| {
            let at = match stage {
                Stage::Measure => Stage::Products,
                stage => stage,
            };
            let &(rate, origin) = self.of.get(&at)?;
            Some(StageTime {
                stage,
                work,
                unit: stage.unit(),
                rate,
                origin,
                seconds: work / rate + beside,
            })
        };
        let stages = works.into_iter().filter(|(_, work, _)| *work > 0.0);
        stages.filter_map(time).collect()
    }
}

/// The rate of a product as the blocks have them.
fn forward(config: &TransformerConfig) -> Result<f64, Failure> {
    let inner = match &config.experts {
        Some(experts) => experts.intermediate_size,
        None => config.intermediate_size,
    };
    let (rows, cols) = (inner.min(LAYER), config.hidden_size.min(LAYER));
    Ok(product_speed(TOKENS, rows, cols)?)
}

/// The rates of Hessian, factor, products, sweep and transfer, on one layer of noise.
fn solving(measuring: Measuring<'_>) -> Result<Vec<f64>, Failure> {
    let Measuring { pruner, widest, .. } = measuring;
    let size = widest.min(LAYER);
    let activations = noise(TOKENS, size, 1);
    let weights = noise(size, size, 2);
    let mut statistics = pruner.statistics("(speed)", size)?;
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        statistics.update(Batch::new(activations.view()))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let settings = LayerSettings::with_mask(Arc::new(Pattern::unstructured(0.5)?));
    let task = LayerTask {
        name: "(speed)",
        weights: weights.view(),
        settings: &settings,
    };
    let mut fastest: Option<sparsegpt::LayerReport> = None;
    for _ in 0..REPEATS {
        pruner.prune_layers(Some(&mut *statistics), &[task], &mut |_, pruned| {
            let report = pruned.report;
            let faster = fastest
                .as_ref()
                .is_none_or(|fastest| report.seconds.total < fastest.seconds.total);
            if faster {
                fastest = Some(report);
            }
            Ok(())
        })?;
    }
    let seconds = fastest.map(|report| report.seconds).unwrap_or_default();
    let columns = size as f64;
    let sweep = seconds.select + seconds.grid + seconds.update_rows;
    let named = seconds.factor + seconds.trailing + seconds.measure + sweep;
    let rate = |work: f64, seconds: f64| work / seconds.max(1e-9);
    Ok(vec![
        rate(TOKENS as f64 * columns.powi(2), best),
        rate(columns.powi(3) / 3.0, seconds.factor),
        rate(columns.powi(3), seconds.trailing),
        rate(columns.powi(2), sweep),
        rate(columns.powi(2), seconds.total - named),
    ])
}

/// Numbers between -1 and 1 without pattern (a 64 bit generator of Knuth's).
fn noise(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn seconds(work: &Work) -> f64 {
        let known = Machine::H100.rates().iter();
        let rates = Rates {
            machine: Machine::H100,
            of: known
                .map(|&(stage, value)| (stage, (value, Origin::Known)))
                .collect(),
        };
        let files = Files {
            source: 0.0,
            result: 0.0,
            unpacked: false,
            cast: false,
        };
        rates
            .stages(work, files)
            .iter()
            .map(|stage| stage.seconds)
            .sum()
    }

    /// A layer whose Hessian is there, its error not measured, as the tables of docs/benchmarks.md have them.
    fn layer(rows: f64, cols: f64) -> Work {
        Work {
            factor_flops: cols.powi(3) / 3.0,
            factor_columns: cols,
            trailing_flops: rows * cols * cols,
            swept_columns: cols,
            weights: rows * cols,
            ..Work::default()
        }
    }

    #[test]
    fn the_gpu_s_rates_give_the_layers_that_were_measured() {
        // docs/benchmarks.md, "One H200": totals of 50 %.
        for (rows, cols, measured) in [
            (4096.0, 4096.0, 0.0317),
            (4096.0, 11008.0, 0.1022),
            (12288.0, 12288.0, 0.2905),
            (49152.0, 12288.0, 1.0120),
            (12288.0, 49152.0, 2.7653),
        ] {
            let error = seconds(&layer(rows, cols)) / measured - 1.0;
            assert!(error.abs() < 0.1, "{rows} x {cols}: {error}");
        }
    }

    #[test]
    fn rates_are_read_with_their_units() {
        let given: GivenRate = "forward=1.5T".parse().unwrap();
        assert_eq!((given.stage, given.value), (Stage::Forward, 1.5e12));
        for (text, named) in [
            ("forward", "NAME=NUMBER"),
            ("speed=1G", "none of forward"),
            ("files=", "is no rate"),
            ("files=-3G", "is no rate"),
            ("files=infG", "is no rate"),
            ("files=0", "is no rate"),
            ("files=3µ", "is no rate"),
        ] {
            let error = text.parse::<GivenRate>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
