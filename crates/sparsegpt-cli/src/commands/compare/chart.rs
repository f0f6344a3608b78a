//! The comparison as a picture: a panel for each figure, in it one bar for each method and pattern.

use crate::bars::{self, Panel};
use crate::failure::Failure;

/// A method with a pattern, and how it did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bar<'a> {
    pub(super) pattern: &'a str,
    pub(super) method: &'a str,
    pub(super) relative_error: Option<f64>,
    pub(super) held_out_error: Option<f64>,
    pub(super) seconds: f64,
    pub(super) perplexity: Option<f64>,
}

/// What the bars are of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    /// Geometric means of relative errors, and where a text was given the dense model's perplexity.
    Model { dense: Option<f64> },
    /// Relative errors of one layer.
    Layer,
}

/// An SVG document with a panel for each figure that was measured. Bars are on a logarithmic scale, since a collapsed model would
/// leave nothing to see of the others.
pub(super) fn draw(bars: &[Bar<'_>], subject: Subject) -> Result<String, Failure> {
    let (of, dense) = match subject {
        Subject::Model { dense } => ("layers, geometric mean", dense),
        Subject::Layer => ("layer", None),
    };
    let scale = "(logarithmic scale)";
    let mut panels = vec![
        panel(
            bars,
            format!("relative error of the {of} {scale}"),
            (4, None),
            |bar| bar.relative_error,
        ),
        panel(
            bars,
            format!("relative error on what was held out {scale}"),
            (4, None),
            |bar| bar.held_out_error,
        ),
        panel(
            bars,
            format!("seconds of solving {scale}"),
            (2, None),
            |bar| Some(bar.seconds),
        ),
    ];
    if let Some(dense) = dense {
        let title = format!("perplexity over the dense model's {dense:.2} {scale}");
        panels.push(panel(bars, title, (2, Some(dense)), |bar| bar.perplexity));
    }
    panels.retain(|panel| !panel.bars.is_empty());
    bars::draw_panels(&panels)
}

/// The bars of one figure; `from` is where they begin, by default half of the least.
fn panel(
    bars: &[Bar<'_>],
    title: String,
    (digits, from): (usize, Option<f64>),
    figure: impl Fn(&Bar<'_>) -> Option<f64>,
) -> Panel {
    let shown: Vec<(&Bar<'_>, f64)> = bars
        .iter()
        .filter_map(|bar| Some((bar, figure(bar)?)))
        .filter(|(_, value)| value.is_finite() && *value > 0.0)
        .collect();
    let values = shown.iter().map(|(_, value)| *value);
    let (least, most) = values.fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    let least = from.unwrap_or(least * 0.5);
    let span = (most / least).ln().max(1e-9);
    let drawn = shown.iter().map(|(bar, value)| bars::Bar {
        label: format!("{} {}", bar.pattern, bar.method),
        number: format!("{value:.digits$}"),
        length: (value / least).ln() / span,
        color: color_of(bars, bar.method),
    });
    Panel {
        title,
        bars: drawn.collect(),
    }
}

/// The same color for a method in every group.
fn color_of(bars: &[Bar<'_>], method: &str) -> usize {
    bars.iter()
        .position(|bar| bar.method == method)
        .unwrap_or_default()
}
