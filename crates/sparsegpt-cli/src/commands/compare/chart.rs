//! The comparison as a picture: one bar a method, one group a pattern.

use crate::bars;
use crate::failure::Failure;

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
    let drawn: Vec<bars::Bar> = shown
        .iter()
        .map(|(bar, value)| bars::Bar {
            label: format!("{} {}", bar.pattern, bar.method),
            number: format!("{value:.0$}", measure.digits()),
            length: (value / least).ln() / span,
            color: color_of(bars, bar.method),
        })
        .collect();
    bars::draw(&measure.title(), &drawn)
}

/// The same color for a method in every group.
fn color_of(bars: &[Bar<'_>], method: &str) -> usize {
    bars.iter()
        .position(|bar| bar.method == method)
        .unwrap_or_default()
}
