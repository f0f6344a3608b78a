//! The comparison as a picture: one bar a method, one group a pattern.

use sparsegpt_models::evaluate::Perplexity;

use super::Row;
use crate::bars::{self, Bar};
use crate::failure::Failure;

/// An SVG document. Bars are perplexities where they were measured, else relative errors; both on a logarithmic scale,
/// since a collapsed model would leave nothing to see of the others.
pub(super) fn draw(rows: &[Row], dense: Option<&Perplexity>) -> Result<String, Failure> {
    let value = |row: &Row| match &row.perplexity {
        Some(result) => Some(result.perplexity),
        None => row.relative_error,
    };
    let shown: Vec<(&Row, f64)> = rows
        .iter()
        .filter_map(|row| Some((row, value(row)?)))
        .filter(|(_, value)| value.is_finite() && *value > 0.0)
        .collect();
    let of_layers = dense.is_none();
    let values = shown.iter().map(|(_, value)| *value);
    let (least, most) = values.fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    let least = dense.map_or(least * 0.5, |dense| dense.perplexity);
    let span = (most / least).ln().max(1e-9);
    let title = if of_layers {
        "relative error of the layers (geometric mean, logarithmic scale)".to_owned()
    } else {
        format!("perplexity over the dense model's {least:.2} (logarithmic scale)")
    };
    let bars: Vec<Bar> = shown
        .iter()
        .map(|(row, value)| Bar {
            label: format!("{} {}", row.pattern, row.method),
            number: match of_layers {
                true => format!("{value:.4}"),
                false => format!("{value:.2}"),
            },
            length: (value / least).ln() / span,
            color: color_of(rows, &row.method),
        })
        .collect();
    bars::draw(&title, &bars)
}

/// The same color for a method in every group.
fn color_of(rows: &[Row], method: &str) -> usize {
    rows.iter()
        .position(|row| row.method == method)
        .unwrap_or_default()
}
