//! The comparison as a picture: one bar a method, one group a pattern.

use plotters::prelude::*;
use sparsegpt_models::evaluate::Perplexity;

use super::Row;
use crate::failure::{Exit, Failure};

const WIDTH: u32 = 860;
const ROW: i32 = 26;
const LEFT: i32 = 190;
const RIGHT: i32 = 120;
const TOP: i32 = 64;

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
    let height = TOP + ROW * (shown.len() as i32 + 1);
    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (WIDTH, height.unsigned_abs())).into_drawing_area();
        let failed = |error: DrawingAreaErrorKind<_>| {
            let error: DrawingAreaErrorKind<std::io::Error> = error;
            Failure::new(Exit::Work, format!("cannot draw the chart: {error}"))
        };
        root.fill(&WHITE).map_err(failed)?;
        let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
        root.draw(&Text::new(title, (20, 20), text(18)))
            .map_err(failed)?;
        for (at, (row, value)) in shown.iter().enumerate() {
            let y = TOP + ROW * at as i32;
            let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
            let length = ((value / least).ln() / span * room).clamp(1.0, room) as i32;
            let color = Palette99::pick(color_of(rows, &row.method)).to_rgba();
            let label = format!("{} {}", row.pattern, row.method);
            root.draw(&Text::new(label, (20, y + 4), text(14)))
                .map_err(failed)?;
            root.draw(&Rectangle::new(
                [(LEFT, y), (LEFT + length, y + ROW - 6)],
                color.filled(),
            ))
            .map_err(failed)?;
            let number = if of_layers {
                format!("{value:.4}")
            } else {
                format!("{value:.2}")
            };
            root.draw(&Text::new(number, (LEFT + length + 8, y + 4), text(14)))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The same color for a method in every group.
fn color_of(rows: &[Row], method: &str) -> usize {
    rows.iter()
        .position(|row| row.method == method)
        .unwrap_or_default()
}
