//! Charts of horizontal bars.

use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use plotters::prelude::*;
use sparsegpt_models::staging::StagedFile;

use crate::failure::{Exit, Failure};

const WIDTH: u32 = 860;
const ROW: i32 = 26;
/// Room for labels, at least.
const LEFT: i32 = 190;
/// Of a letter, on the average.
const LETTER: usize = 8;
const RIGHT: i32 = 120;
const TOP: i32 = 64;

/// One bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    /// Before it.
    pub(crate) label: String,
    /// Behind it.
    pub(crate) number: String,
    /// 0 to 1, the longest.
    pub(crate) length: f64,
    /// Bars of the same number have the same color.
    pub(crate) color: usize,
}

/// Reads the name of a file to write that says by its ending what it is, so that a slip does not replace a file of another kind.
pub(crate) fn name_ending_in(ending: &'static str) -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(move |path| {
        let found = path.extension().and_then(|found| found.to_str());
        match found.is_some_and(|found| found.eq_ignore_ascii_case(ending)) {
            true => Ok(path),
            false => Err(format!("expected a name that ends in .{ending}")),
        }
    })
}

/// Writes a picture, which appears under its name when it is whole.
pub(crate) fn write(path: &Path, picture: &str) -> Result<(), Failure> {
    finish(StagedFile::create(path).map_err(Failure::writing)?, picture)
}

/// The same for a place that was found fit beforehand.
pub(crate) fn finish(mut file: StagedFile, picture: &str) -> Result<(), Failure> {
    file.append(picture.as_bytes())
        .and_then(|()| file.finish())
        .map_err(Failure::writing)
}

/// Bars under a title.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

impl Panel {
    fn height(&self) -> i32 {
        TOP + ROW * (self.bars.len() as i32 + 1)
    }
}

/// An SVG document of one panel.
pub(crate) fn draw(title: &str, bars: &[Bar]) -> Result<String, Failure> {
    draw_panels(&[Panel {
        title: title.to_owned(),
        bars: bars.to_vec(),
    }])
}

/// An SVG document, one panel below another.
pub(crate) fn draw_panels(panels: &[Panel]) -> Result<String, Failure> {
    let height: i32 = panels.iter().map(Panel::height).sum();
    let labels = panels.iter().flat_map(|panel| &panel.bars);
    let longest = labels.map(|bar| bar.label.chars().count()).max();
    let left = LEFT.max((40 + LETTER * longest.unwrap_or(0)) as i32);
    let width = WIDTH + (left - LEFT).unsigned_abs();
    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (width, height.unsigned_abs())).into_drawing_area();
        let failed = |error: DrawingAreaErrorKind<_>| {
            let error: DrawingAreaErrorKind<std::io::Error> = error;
            Failure::new(Exit::Work, format!("cannot draw the chart: {error}"))
        };
        root.fill(&WHITE).map_err(failed)?;
        let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
        let mut top = 0;
        for panel in panels {
            root.draw(&Text::new(panel.title.clone(), (20, top + 20), text(18)))
                .map_err(failed)?;
            for (at, bar) in panel.bars.iter().enumerate() {
                let y = top + TOP + ROW * at as i32;
                let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
                let length = (bar.length * room).clamp(1.0, room) as i32;
                let color = Palette99::pick(bar.color).to_rgba();
                root.draw(&Text::new(bar.label.clone(), (20, y + 4), text(14)))
                    .map_err(failed)?;
                root.draw(&Rectangle::new(
                    [(left, y), (left + length, y + ROW - 6)],
                    color.filled(),
                ))
                .map_err(failed)?;
                root.draw(&Text::new(
                    bar.number.clone(),
                    (left + length + 8, y + 4),
                    text(14),
                ))
                .map_err(failed)?;
            }
            top += panel.height();
        }
        root.present().map_err(failed)?;
    }
    Ok(svg)
}
