//! The comparison on one layer.

use std::path::Path;

use ndarray::Array2;
use serde::Serialize;
use sparsegpt::backend::Operation;
use sparsegpt::mask::GivenMask;
use sparsegpt::solver::{Refit, Rounding, WeightSolver};
use sparsegpt::{LayerPruner, LayerSettings, LayerTask, Method, PrunedLayer, Statistics};

use super::chart::{Bar, Subject};
use super::{CompareArgs, chart, methods};
use crate::commands::prune::{PruneFlags, used};
use crate::console::Console;
use crate::failure::{Exit, Failure};
use crate::flags::LayerFlags;
use crate::layer_file::LayerFile;
use crate::table::{Table, left, right};
use crate::{bars, interrupt};

/// Up to this rows·cols³, methods that treat every row by itself take a minute or so.
const ROW_BY_ROW: f64 = 2e11;

/// One method with one pattern.
#[derive(Debug, Serialize)]
struct Row {
    pattern: String,
    method: String,
    /// tr(ΔW H ΔWᵀ) over tr(W H Wᵀ).
    relative_error: Option<f64>,
    /// The same on what was held out.
    held_out_error: Option<f64>,
    /// The error over that of the best weights on the same mask, not rounded.
    over_exact: Option<f64>,
    zeros: f64,
    seconds: f64,
    /// 0 for methods without a factorization.
    damping: f64,
    host_operations: Vec<Operation>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    layer: &'a Path,
    rows_of_weights: usize,
    cols: usize,
    tokens: u64,
    sequences: u64,
    held_out: usize,
    rows: Vec<Row>,
}

/// Whether a path is that of one layer, and not of a model.
pub(super) fn is_one(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "safetensors")
}

pub(super) fn run(
    args: &CompareArgs,
    flags: &PruneFlags,
    threads: usize,
    console: &Console,
) -> Result<(), Failure> {
    refuse_what_needs_a_model(args, flags)?;
    let held_out = flags.held_out.unwrap_or(0);
    let layer = LayerFile::read(&args.model)?;
    let (rows, cols) = layer.weights.dim();
    let row_by_row = args
        .row_by_row
        .unwrap_or_else(|| rows as f64 * (cols as f64).powi(3) <= ROW_BY_ROW);
    let usual = usual(row_by_row, flags.layer.bits.is_some());
    let methods = methods(args.methods.as_deref(), &usual)?;
    // Everything is checked before anything is solved.
    let mut runs = Vec::new();
    for &pattern in &flags.layer.patterns()? {
        for &method in &methods {
            let flags = flags.layer.of_method(method, &methods);
            let settings = layer.settings(&flags, pattern)?;
            settings.validate(&layer.name, rows, cols)?;
            runs.push((method, settings));
        }
    }
    let pruner = flags.layer.solver(threads, console)?;
    let mut statistics = layer.statistics(&*pruner, held_out)?;
    let mut bench = Bench {
        layer: &layer,
        pruner: &*pruner,
        statistics: &mut *statistics,
    };
    let bar = console.progress(runs.len() as u64);
    let mut found = Vec::new();
    for (method, settings) in &runs {
        let pattern = settings.mask.describe();
        bar.set_message(format!("{method} {pattern}"));
        let solved = bench.solve(settings)?;
        let error = solved.report.reconstruction_error;
        let exact = match row_by_row {
            true => bench.best_error_on(&solved.mask)?,
            false => None,
        };
        found.push(Row {
            pattern,
            method: method.to_string(),
            relative_error: solved.report.relative_error,
            held_out_error: solved.report.held_out_error,
            over_exact: error
                .zip(exact)
                .filter(|(_, exact)| *exact > 0.0)
                .map(|(error, exact)| error / exact),
            zeros: solved.report.zero_fraction(),
            seconds: solved.report.seconds.total,
            damping: solved.report.damping,
            host_operations: solved.report.host_operations,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        layer: &args.model,
        rows_of_weights: rows,
        cols,
        tokens: bench.statistics.tokens(),
        sequences: bench.statistics.sequences(),
        held_out,
        rows: found,
    };
    console.print(&table(&report))?;
    if let Some(path) = &args.chart {
        let bars: Vec<Bar<'_>> = report.rows.iter().map(Row::bar).collect();
        bars::write(path, &chart::draw(&bars, Subject::Layer)?)?;
    }
    console.print_json(&report)
}

/// All methods that are not made of others, as far as the layer's size and the flags leave them sense.
fn usual(row_by_row: bool, rounds: bool) -> Vec<Method> {
    let all = Method::ALL.into_iter();
    all.filter(|&method| {
        let parts = method.parts();
        method != Method::Best
            && (row_by_row || parts.weights != WeightSolver::Obc)
            && (rounds || parts.rounding != Rounding::Greedy)
    })
    .collect()
}

fn refuse_what_needs_a_model(args: &CompareArgs, flags: &PruneFlags) -> Result<(), Failure> {
    let of_a_model = PruneFlags {
        layer: LayerFlags::default(),
        held_out: None,
        ..flags.clone()
    };
    let used = used(&of_a_model)?;
    let in_recipe = used
        .as_object()
        .and_then(|used| used.keys().next().cloned());
    let of_text = [
        ("text", args.text.is_some()),
        ("recipe", args.recipe.is_some()),
        ("chunk-length", args.chunk_length.is_some()),
        ("limit", args.limit.is_some()),
    ];
    let of_text = of_text.iter().find(|(_, given)| *given);
    match in_recipe.or_else(|| of_text.map(|(flag, _)| (*flag).to_owned())) {
        None => Ok(()),
        Some(flag) => Err(Failure::usage(format!(
            "--{flag} is about a whole model, and {} is one layer: leave it out, or give the model's folder",
            args.model.display()
        ))),
    }
}

/// The layer, and what it is solved with.
struct Bench<'a> {
    layer: &'a LayerFile,
    pruner: &'a dyn LayerPruner,
    statistics: &'a mut dyn Statistics,
}

impl Bench<'_> {
    /// One run by itself, factorization included.
    fn solve(&mut self, settings: &LayerSettings) -> Result<PrunedLayer, Failure> {
        interrupt::check()?;
        let task = LayerTask {
            name: &self.layer.name,
            weights: self.layer.weights.view(),
            settings,
        };
        let mut solved = None;
        self.pruner
            .prune_layers(Some(self.statistics), &[task], &mut |_, layer| {
                solved = Some(layer);
                Ok(())
            })?;
        solved.ok_or_else(|| Failure::new(Exit::Work, "the solver handed no layer on"))
    }

    /// The error of the best weights on a mask (`true` = kept), with as little damping as it takes.
    fn best_error_on(&mut self, mask: &Array2<bool>) -> Result<Option<f64>, Failure> {
        let settings = LayerSettings::new(GivenMask::keeping(mask.view()))
            .with_method(Method::Magnitude)
            .with_refit(Refit::Exact)
            .with_damping(0.0);
        Ok(self.solve(&settings)?.report.reconstruction_error)
    }
}

impl Row {
    fn bar(&self) -> Bar<'_> {
        Bar {
            pattern: &self.pattern,
            method: &self.method,
            relative_error: self.relative_error,
            held_out_error: self.held_out_error,
            seconds: self.seconds,
            perplexity: None,
        }
    }
}

fn table(report: &Report<'_>) -> String {
    let mut table = Table::new([
        left("pattern"),
        left("method"),
        right("error"),
        right("held out"),
        right("over exact"),
        right("zeros"),
        right("seconds"),
    ]);
    let number = |value: Option<f64>, digits| {
        value.map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    for row in &report.rows {
        table.row([
            row.pattern.clone(),
            row.method.clone(),
            number(row.relative_error, 5),
            number(row.held_out_error, 5),
            number(row.over_exact, 3),
            crate::table::percent(row.zeros),
            format!("{:.3}", row.seconds),
        ]);
    }
    let tokens = match report.tokens {
        // A Hessian does not tell.
        0 => String::new(),
        tokens => format!(", {tokens} tokens"),
    };
    format!(
        "{} x {} weights{tokens}\n{table}\nerror: the part of the output that is lost, on the calibration data; over exact: of the error that the best weights on the same mask leave\n",
        report.rows_of_weights, report.cols
    )
}
