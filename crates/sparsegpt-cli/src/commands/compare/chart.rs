//! The comparison as a picture: one bar a method, one group a pattern.

use plotters::prelude::*;

use crate::failure::{Exit, Failure};

const WIDTH: u32 = 860;
const ROW: i32 = 26;
const LEFT: i32 = 190;
const RIGHT: i32 = 120;
const TOP: i32 = 64;

/// A method with a pattern, and how it did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bar<'a> {
    pub(super) pattern: &'a str,
    pub(super) method: &'a str,
    pub(super) value: Option<f64>,
}

/// What the bars are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Measure {
    /// Geometric means of relative errors.
    Layers,
    /// Relative errors of one layer.
    Layer,
    Perplexity {
        /// The dense model's.
        dense: f64,
    },
}

impl Measure {
    fn title(self) -> String {
        match self {
            Self::Layers => {
                "relative error of the layers (geometric mean, logarithmic scale)".to_owned()
            }
            Self::Layer => "relative error of the layer (logarithmic scale)".to_owned(),
            Self::Perplexity { dense } => {
                format!("perplexity over the dense model's {dense:.2} (logarithmic scale)")
            }
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Layers | Self::Layer => 4,
            Self::Perplexity { .. } => 2,
        }
    }
}

/// An SVG document. Bars are on a logarithmic scale, since a collapsed model would leave nothing to see of the others.
pub(super) fn draw(bars: &[Bar<'_>], measure: Measure) -> Result<String, Failure> {
    let shown: Vec<(&Bar<'_>, f64)> = bars
        .iter()
        .filter_map(|bar| Some((bar, bar.value?)))
        .filter(|(_, value)| value.is_finite() && *value > 0.0)
        .collect();
    let values = shown.iter().map(|(_, value)| *value);
    let (least, most) = values.fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    let least = match measure {
        Measure::Perplexity { dense } => dense,
        Measure::Layers | Measure::Layer => least * 0.5,
    };
    let span = (most / least).ln().max(1e-9);
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
        root.draw(&Text::new(measure.title(), (20, 20), text(18)))
            .map_err(failed)?;
        for (at, (bar, value)) in shown.iter().enumerate() {
            let y = TOP + ROW * at as i32;
            let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
            let length = ((value / least).ln() / span * room).clamp(1.0, room) as i32;
            let color = Palette99::pick(color_of(bars, bar.method)).to_rgba();
            let label = format!("{} {}", bar.pattern, bar.method);
            root.draw(&Text::new(label, (20, y + 4), text(14)))
                .map_err(failed)?;
            root.draw(&Rectangle::new(
                [(LEFT, y), (LEFT + length, y + ROW - 6)],
                color.filled(),
            ))
            .map_err(failed)?;
            let number = format!("{value:.0$}", measure.digits());
            root.draw(&Text::new(number, (LEFT + length + 8, y + 4), text(14)))
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The same color for a method in every group.
fn color_of(bars: &[Bar<'_>], method: &str) -> usize {
    bars.iter()
        .position(|bar| bar.method == method)
        .unwrap_or_default()
}
