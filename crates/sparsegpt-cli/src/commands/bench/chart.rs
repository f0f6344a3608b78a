//! Dense and sparse side by side as a picture.

use super::model::{Measured, Report};
use crate::bars::{Bar, draw as draw_bars};
use crate::failure::Failure;
use crate::table;

/// An SVG document. The longer bar of each pair is as long as the picture is wide.
pub(super) fn draw(report: &Report) -> Result<String, Failure> {
    /// What it is called, where it stands, how it is written.
    type Pair = (
        &'static str,
        fn(&Measured) -> Option<f64>,
        fn(f64) -> String,
    );
    let speed = |value: f64| format!("{value:.1}");
    let pairs: [Pair; 5] = [
        (
            "prefill, tokens/s",
            |measured| Some(measured.prefill_tokens_per_second),
            speed,
        ),
        (
            "decode, tokens/s",
            |measured| Some(measured.decode_tokens_per_second),
            speed,
        ),
        (
            "linear layers",
            |measured| Some(measured.linear_bytes as f64),
            table::bytes,
        ),
        (
            "all matrices",
            |measured| Some(measured.matrix_bytes as f64),
            table::bytes,
        ),
        (
            "peak memory",
            |measured| measured.peak_bytes.map(|bytes| bytes as f64),
            table::bytes,
        ),
    ];
    let mut bars = Vec::new();
    for (name, value, number) in pairs {
        let (Some(dense), Some(sparse)) = (value(&report.dense), value(&report.sparse)) else {
            continue;
        };
        for (color, (kind, value)) in [("dense", dense), ("sparse", sparse)]
            .into_iter()
            .enumerate()
        {
            bars.push(Bar {
                label: format!("{name} {kind}"),
                number: number(value),
                length: value / dense.max(sparse),
                color,
            });
        }
    }
    draw_bars("dense and sparse kernels", &bars)
}
