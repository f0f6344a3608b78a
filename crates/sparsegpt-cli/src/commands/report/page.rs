//! The page.

use serde_json::Value;
use sparsegpt::report::{ModelSeconds, StageSeconds};
use sparsegpt::{LayerReport, ModelReport, Propagation};
use sparsegpt_models::evaluate::Perplexity;

use super::chart::{self, Axis, Bar, Point};
use super::measure::Measured;
use super::{ReportArgs, Run};
use crate::commands::prune::{RunReport, by_kind, kind, mean_error};
use crate::html::Html;
use crate::table::{self, Table, left, right};

/// The name of the model that was pruned.
pub(super) const DENSE: &str = "dense";

const STYLE: &str = include_str!("style.css");
const TITLE: &str = "Pruning report";
const ERRORS: &str = "The error of a layer is the part of its output that is lost on the calibration data, tr(ΔW H ΔWᵀ) over tr(W H Wᵀ).";

pub(super) fn page(args: &ReportArgs, runs: &[Run], measured: &[Measured]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let names = names.join(", ");
    Html::page(&format!("{TITLE}: {names}"), STYLE, |page| {
        page.element("header", &[], |page| {
            page.leaf("h1", &[], &format!("{TITLE}: {names}"));
            let version = env!("CARGO_PKG_VERSION");
            page.leaf("p", &[("class", "faint")], &format!("sparsegpt {version}"));
        });
        page.element("main", &[], |page| {
            overview(page, args, runs, measured);
            perplexity(page, args, measured);
            samples(page, args, measured);
            for run in runs {
                page.element("section", &[], |page| of_run(page, run));
            }
        });
    })
}

fn overview(page: &mut Html, args: &ReportArgs, runs: &[Run], measured: &[Measured]) {
    let mut rows = Table::new([
        left("model"),
        left("methods"),
        left("patterns"),
        left("rounding"),
        right("zeros"),
        right("mean error"),
        right("seconds"),
        right("perplexity"),
    ]);
    // The dense model, where there is one, and then a model a run; none where nothing was measured.
    let (dense, pruned) = measured.split_at(measured.len().min(args.dense.iter().count()));
    for of in dense {
        let mut cells: [String; 8] = Default::default();
        cells[0].clone_from(&of.name);
        cells[7] = of.perplexity.as_ref().map_or_else(String::new, tell);
        rows.row(cells);
    }
    for (at, Run { name, report }) in runs.iter().enumerate() {
        let run = &report.run;
        let error = mean_error(run, |layer| layer.relative_error);
        let perplexity = pruned.get(at).and_then(|of| of.perplexity.as_ref());
        rows.row([
            name.clone(),
            each(run, |layer| Some(&layer.method)),
            each(run, |layer| Some(&layer.pattern)),
            each(run, |layer| layer.quantization.as_ref()),
            table::percent(run.zero_fraction()),
            error.map_or_else(String::new, |error| format!("{error:.2e}")),
            format!("{:.1}", run.seconds.total),
            perplexity.map_or_else(String::new, tell),
        ]);
    }
    rows.write(page);
    let means =
        "Means are geometric, over the layers with an error; zeros are of these layers' weights.";
    page.leaf("p", &[("class", "faint")], &format!("{ERRORS} {means}"));
}

fn tell(result: &Perplexity) -> String {
    format!("{:.2} ± {:.2}", result.perplexity, result.standard_error)
}

/// What the layers have, each once, and no more than a few.
fn each<'r>(run: &'r ModelReport, of: impl Fn(&'r LayerReport) -> Option<&'r String>) -> String {
    const SHOWN: usize = 3;
    let mut found: Vec<&str> = Vec::new();
    for value in run.layers.iter().filter_map(of) {
        if !found.contains(&value.as_str()) {
            found.push(value);
        }
        if found.len() > SHOWN {
            break;
        }
    }
    let more = if found.len() > SHOWN { ", …" } else { "" };
    found.truncate(SHOWN);
    format!("{}{more}", found.join(", "))
}

fn perplexity(page: &mut Html, args: &ReportArgs, measured: &[Measured]) {
    let results = measured
        .iter()
        .filter_map(|of| Some((of, of.perplexity.as_ref()?)));
    let results: Vec<_> = results.collect();
    let (Some(text), Some((_, first))) = (&args.text, results.first()) else {
        return;
    };
    page.element("section", &[], |page| {
        page.leaf("h2", &[], "Perplexity");
        let bars: Vec<Bar> = results
            .iter()
            .map(|(of, result)| Bar {
                label: of.name.clone(),
                number: tell(result),
                value: result.perplexity,
            })
            .collect();
        let title = format!(
            "{}, recipe {}: {} chunks of {} tokens; less is better, ± is the standard error",
            text.display(),
            args.recipe.unwrap_or_default(),
            first.chunks,
            first.sequence_length
        );
        chart::bars(page, &title, &bars);
    });
}

fn samples(page: &mut Html, args: &ReportArgs, measured: &[Measured]) {
    if args.prompt.is_empty() {
        return;
    }
    page.element("section", &[], |page| {
        page.leaf("h2", &[], "Samples of text");
        let how = if args.temperature == 0.0 {
            "the likeliest token each time".to_owned()
        } else {
            format!("temperature {}, seed {}", args.temperature, args.seed)
        };
        let about = format!("At most {} new tokens, {how}.", args.max_new_tokens);
        page.leaf("p", &[("class", "faint")], &about);
        for (at, prompt) in args.prompt.iter().enumerate() {
            for of in measured {
                let Some(sample) = of.samples.get(at) else {
                    continue;
                };
                page.leaf("h3", &[], &of.name);
                page.element("blockquote", &[("dir", "auto")], |page| {
                    page.inline("span", &[("class", "prompt")], prompt);
                    page.text(&sample.text);
                });
            }
        }
    });
}

fn of_run(page: &mut Html, Run { name, report }: &Run) {
    let run = &report.run;
    page.leaf("h2", &[], name);
    facts(page, report);
    page.leaf("h3", &[], "Kinds of layers");
    by_kind(run).write(page);
    page.leaf("h3", &[], "Errors");
    let errors = run.layers.iter().filter_map(|layer| layer.relative_error);
    match errors.filter(|&error| error > 0.0).count() {
        0 => page.leaf(
            "p",
            &[],
            "No error was measured: nothing was lost, or the method needs no calibration data.",
        ),
        drawn => {
            let left_out = match run.layers.len() - drawn {
                0 => String::new(),
                others => format!("; {others} without one are not shown"),
            };
            let title = format!("error by block and kind of layer, logarithmic scale{left_out}");
            let points = points(run, |layer| layer.relative_error);
            chart::points(page, &title, Axis::Logarithmic, &points);
        }
    }
    let held_out = points(run, |layer| layer.held_out_error);
    if !held_out.is_empty() {
        let title = "error on the sequences that were held out";
        chart::points(page, title, Axis::Logarithmic, &held_out);
    }
    page.leaf("h3", &[], "Sparsity");
    let zeros = points(run, |layer| Some(layer.zero_fraction()));
    let title = "zeros of each layer's weights";
    chart::points(page, title, Axis::Share, &zeros);
    page.leaf("h3", &[], "Time");
    chart::bars(page, "seconds of the run by stage", &stages(&run.seconds));
    let solving = solving(&run.layers);
    if !solving.is_empty() {
        chart::bars(page, "seconds of solving by step", &solving);
    }
    others(page, run);
    page.element("details", &[], |page| {
        page.leaf("summary", &[], &format!("All {} layers", run.layers.len()));
        layers(run).write(page);
    });
}

fn facts(page: &mut Html, report: &RunReport) {
    let run = &report.run;
    let mut facts: Vec<(&str, String)> = vec![
        ("model", report.model.display().to_string()),
        ("flags", flags(&report.settings)),
    ];
    if let Some(file) = &report.recipe_file {
        facts.push(("recipe file", file.display().to_string()));
    }
    if let Some(pattern) = report.pattern {
        facts.push(("pattern", format!("{pattern}, one of several in one pass")));
    }
    let calibration = match &report.calibration {
        None => "none".to_owned(),
        Some(of) => format!(
            "{} sequences of {} tokens from {}, fingerprint {}",
            of.sequences, of.sequence_length, of.source, of.fingerprint
        ),
    };
    facts.push(("calibration", calibration));
    if report.calibration.is_some() {
        let inputs = match run.propagation {
            Propagation::Dense => "of the dense blocks before it",
            Propagation::Pruned => "of the pruned blocks before it",
        };
        facts.push(("inputs of a block", inputs.to_owned()));
    }
    let layers = format!(
        "{} treated in {} blocks, {} left as they were",
        run.layers.len(),
        run.blocks,
        run.skipped.len()
    );
    facts.push(("layers", layers));
    let zeros = format!(
        "{} of {} weights ({})",
        report.zeros,
        report.weights,
        table::percent(run.zero_fraction())
    );
    facts.push(("zeros", zeros));
    let cast = report.cast_zeros.iter().map(|cast| cast.zeros);
    if let Some(more) = cast.reduce(u64::saturating_add) {
        let more = format!("{more} weights too small for the stored type");
        facts.push(("zeros beside", more));
    }
    if let Some(by) = &run.allocation {
        let range = format!(
            "by {}: {} of all, {} to {} of a layer",
            by.allocator, by.sparsity, by.floor, by.ceiling
        );
        facts.push(("allocation", range));
    }
    let backend = format!(
        "{} ({}), {} products",
        run.backend, run.device, run.products
    );
    facts.push(("backend", backend));
    facts.push(("version", format!("sparsegpt {}", report.version)));
    page.element("dl", &[], |page| {
        for (name, fact) in &facts {
            page.leaf("dt", &[], name);
            page.leaf("dd", &[], fact);
        }
    });
}

/// The flags of the run as they would be typed.
fn flags(settings: &Value) -> String {
    let one = |key: &str, value: &Value| match value {
        Value::Bool(true) => format!("--{key}"),
        Value::String(text) => format!("--{key} {text}"),
        other => format!("--{key} {other}"),
    };
    let given = settings.as_object().into_iter().flatten();
    let flags: Vec<String> = given
        .flat_map(|(key, value)| match value {
            Value::Array(values) => values.iter().map(|value| one(key, value)).collect(),
            value => vec![one(key, value)],
        })
        .collect();
    flags.join(" ")
}

fn points(run: &ModelReport, value: impl Fn(&LayerReport) -> Option<f64>) -> Vec<Point<'_>> {
    let layers = run.layers.iter();
    layers
        .filter_map(|layer| {
            Some(Point {
                layer: &layer.layer,
                kind: kind(&layer.layer),
                block: block(&layer.layer),
                value: value(layer)?,
            })
        })
        .collect()
}

/// The number of the block in a layer's name; 0 where it has none.
fn block(name: &str) -> f64 {
    let number = name.split('.').find_map(|part| part.parse::<u32>().ok());
    number.map_or(0.0, f64::from)
}

fn stages(seconds: &ModelSeconds) -> Vec<Bar> {
    let named = [
        ("loading and storing", seconds.blocks),
        ("forward, calibrating", seconds.calibrate - seconds.hessian),
        ("Hessians", seconds.hessian),
        ("solving", seconds.solve),
        ("forward, going on", seconds.propagate),
    ];
    let sum: f64 = named.iter().map(|(_, seconds)| seconds).sum();
    let mut bars = seconds_bars(&named);
    bars.extend(seconds_bars(&[("other", seconds.total - sum)]));
    bars
}

fn solving(layers: &[LayerReport]) -> Vec<Bar> {
    let sum = |of: fn(&StageSeconds) -> f64| -> f64 {
        layers.iter().map(|layer| of(&layer.seconds)).sum()
    };
    seconds_bars(&[
        ("transfer", sum(|of| of.transfer)),
        ("factor", sum(|of| of.factor)),
        ("choice of zeros", sum(|of| of.select)),
        ("grids", sum(|of| of.grid)),
        ("sweeps", sum(|of| of.update_rows)),
        ("trailing updates", sum(|of| of.trailing)),
        ("refit", sum(|of| of.refit)),
        ("measuring the error", sum(|of| of.measure)),
    ])
}

/// Bars of those that took any time.
fn seconds_bars(seconds: &[(&str, f64)]) -> Vec<Bar> {
    let taken = seconds.iter().filter(|(_, seconds)| *seconds > 0.0);
    taken
        .map(|&(name, seconds)| Bar {
            label: name.to_owned(),
            number: format!("{seconds:.2} s"),
            value: seconds,
        })
        .collect()
}

/// What was not treated as the others were.
fn others(page: &mut Html, run: &ModelReport) {
    if !run.starved.is_empty() {
        page.element("details", &[], |page| {
            let title = format!(
                "{} layers of experts with too few calibration tokens",
                run.starved.len()
            );
            page.leaf("summary", &[], &title);
            let mut rows = Table::new([left("layer"), right("tokens"), right("asked for")]);
            for layer in &run.starved {
                rows.row([
                    layer.layer.clone(),
                    layer.tokens.to_string(),
                    layer.least_tokens.to_string(),
                ]);
            }
            rows.write(page);
        });
    }
    if !run.skipped.is_empty() {
        page.element("details", &[], |page| {
            let title = format!("{} layers left as they were", run.skipped.len());
            page.leaf("summary", &[], &title);
            page.element("ul", &[], |page| {
                for layer in &run.skipped {
                    page.leaf("li", &[], layer);
                }
            });
        });
    }
}

fn layers(run: &ModelReport) -> Table<12> {
    let mut rows = Table::new([
        left("layer"),
        right("rows x columns"),
        left("method"),
        left("pattern"),
        left("rounding"),
        right("zeros"),
        right("error"),
        right("held out"),
        right("damping"),
        right("factored at"),
        right("tokens"),
        right("seconds"),
    ]);
    let error = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3e}"));
    for layer in &run.layers {
        rows.row([
            layer.layer.clone(),
            format!("{} x {}", layer.rows, layer.cols),
            layer.method.clone(),
            layer.pattern.clone(),
            layer.quantization.clone().unwrap_or_default(),
            table::percent(layer.zero_fraction()),
            error(layer.relative_error),
            error(layer.held_out_error),
            match layer.precision {
                Some(_) => layer.damping.to_string(),
                None => String::new(),
            },
            layer.precision.map_or_else(String::new, |precision| {
                format!("{precision}, attempt {}", layer.factor_attempts)
            }),
            layer.tokens.to_string(),
            format!("{:.3}", layer.seconds.total),
        ]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn flags_stand_as_they_are_typed() {
        let settings = json!({"bits": 4, "pattern": ["50%", "2:4"], "symmetric": true});
        assert_eq!(
            flags(&settings),
            "--bits 4 --pattern 50% --pattern 2:4 --symmetric"
        );
        assert_eq!(flags(&Value::Null), "");
    }

    #[test]
    fn blocks_are_the_first_numbers_of_names() {
        assert_eq!(block("model.layers.12.mlp.experts.3.up_proj"), 12.0);
        assert_eq!(block("lm_head"), 0.0);
        assert_eq!(block("layers.99999999999.x"), 0.0);
    }

    #[test]
    fn the_style_sheet_needs_no_escaping() {
        assert!(!STYLE.contains(['<', '>', '&', '"', '\'']));
    }
}
