//! Charts of a page: inline SVG in the page's own colors.

use std::collections::BTreeMap;

use crate::html::Html;

const WIDTH: f64 = 860.0;
/// Of bars: room for labels and numbers, and the height of a row.
const LABELS: f64 = 230.0;
const NUMBERS: f64 = 130.0;
const ROW: f64 = 26.0;
/// The longest label, in letters.
const LABEL: usize = 32;
/// Of points: the height, and the room around the field.
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 42.0;
/// Colors in the style sheet.
const COLORS: usize = 10;
/// Numbers under the field, at most.
const NUMBERED: f64 = 16.0;
/// Of a field's height: what places may be off by.
const EXACT: f64 = 1e-9;

/// One bar.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    /// Before it.
    pub(super) label: String,
    /// Behind it.
    pub(super) number: String,
    /// At least 0.
    pub(super) value: f64,
}

/// Bars beneath each other, the longest across the whole field.
pub(super) fn bars(page: &mut Html, title: &str, bars: &[Bar]) {
    let longest = bars
        .iter()
        .map(|bar| bar.value)
        .filter(|value| value.is_finite())
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = ROW * bars.len() as f64;
    svg(page, title, height, |page| {
        for (at, bar) in bars.iter().enumerate() {
            let y = ROW * at as f64;
            let share = (bar.value / longest).clamp(0.0, 1.0);
            // NaN is no length.
            let share = if share.is_nan() { 0.0 } else { share };
            let length = (share * (WIDTH - LABELS - NUMBERS)).max(1.0);
            let color = format!("bar c{}", at % COLORS);
            page.element("g", &[("class", &color)], |page| {
                page.leaf("title", &[], &format!("{}: {}", bar.label, bar.number));
                label(page, "end", LABELS - 10.0, y + 17.0, &shortened(&bar.label));
                page.empty(
                    "rect",
                    &[
                        ("x", &number(LABELS)),
                        ("y", &number(y + 3.0)),
                        ("width", &number(length)),
                        ("height", &number(ROW - 6.0)),
                        ("rx", "2"),
                    ],
                );
                let behind = LABELS + length + 8.0;
                label(page, "start", behind, y + 17.0, &bar.number);
            });
        }
    });
}

/// What the vertical axis shows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Axis {
    /// Positive numbers, by their logarithm.
    Logarithmic,
    /// 0 to 1.
    Share,
}

/// A layer in a chart of points.
#[derive(Clone, Debug)]
pub(super) struct Point<'a> {
    pub(super) layer: &'a str,
    /// What it has in common with layers of other blocks: points of a kind have one color.
    pub(super) kind: String,
    /// The block's number.
    pub(super) block: f64,
    pub(super) value: f64,
}

/// A point for each layer over its block's number. Layers of one kind and block, as experts are, share a point and have a line
/// from the least to the most.
pub(super) fn points(page: &mut Html, title: &str, axis: Axis, points: &[Point<'_>]) {
    let drawn = |point: &&Point<'_>| axis.takes(point.value);
    let shown: Vec<&Point<'_>> = points.iter().filter(drawn).collect();
    let (Some(least), Some(most)) = (
        shown.iter().map(|point| point.value).reduce(f64::min),
        shown.iter().map(|point| point.value).reduce(f64::max),
    ) else {
        return;
    };
    let last = shown.iter().map(|point| point.block).fold(1.0, f64::max);
    let scale = Scale::new(axis, least, most);
    let x = |block: f64| LEFT + 12.0 + (WIDTH - LEFT - RIGHT - 24.0) * block / last;
    let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - scale.place(value));
    let mut kinds: Vec<(&str, BTreeMap<u64, Vec<&Point<'_>>>)> = Vec::new();
    for point in shown {
        let at = match kinds.iter().position(|(kind, _)| *kind == point.kind) {
            Some(at) => at,
            None => {
                kinds.push((&point.kind, BTreeMap::new()));
                kinds.len() - 1
            }
        };
        let of_block = kinds[at].1.entry(point.block as u64).or_default();
        of_block.push(point);
    }
    svg(page, title, HEIGHT, |page| {
        for tick in scale.ticks() {
            let at = y(tick);
            let ends = [(LEFT, at), (WIDTH - RIGHT, at)];
            line(page, "grid", ends);
            label(page, "end", LEFT - 8.0, at + 4.0, &axis.tell(tick));
        }
        for block in numbered(last) {
            let name = format!("{block}");
            label(page, "middle", x(block), HEIGHT - BOTTOM + 20.0, &name);
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        label(page, "middle", middle, HEIGHT - 4.0, "block");
        for (color, (_, blocks)) in kinds.iter().enumerate() {
            let class = format!("kind c{}", color % COLORS);
            page.element("g", &[("class", &class)], |page| {
                let groups: Vec<Group<'_, '_>> = blocks.values().map(|of| Group::of(of)).collect();
                let path: Vec<String> = groups
                    .iter()
                    .map(|group| format!("{},{}", number(x(group.block)), number(y(group.middle))))
                    .collect();
                page.empty("polyline", &[("points", &path.join(" "))]);
                for group in &groups {
                    if group.least < group.most {
                        let at = x(group.block);
                        line(page, "range", [(at, y(group.least)), (at, y(group.most))]);
                    }
                    let place = [
                        ("cx", number(x(group.block))),
                        ("cy", number(y(group.middle))),
                    ];
                    let [cx, cy] = &place;
                    let attributes = [(cx.0, &*cx.1), (cy.0, &*cy.1), ("r", "3.5")];
                    page.element("circle", &attributes, |page| {
                        page.leaf("title", &[], &group.tell(axis));
                    });
                }
            });
        }
    });
    page.element("ul", &[("class", "legend")], |page| {
        for (color, (kind, _)) in kinds.iter().enumerate() {
            page.leaf("li", &[("class", &format!("c{}", color % COLORS))], kind);
        }
    });
}

/// The layers of one kind in one block.
struct Group<'p, 'a> {
    layers: &'p [&'p Point<'a>],
    block: f64,
    least: f64,
    middle: f64,
    most: f64,
}

impl<'p, 'a> Group<'p, 'a> {
    /// Of at least one layer.
    fn of(layers: &'p [&'p Point<'a>]) -> Self {
        let values = || layers.iter().map(|point| point.value);
        Self {
            layers,
            block: layers.first().map_or(0.0, |point| point.block),
            least: values().fold(f64::INFINITY, f64::min),
            middle: values().sum::<f64>() / layers.len() as f64,
            most: values().fold(0.0, f64::max),
        }
    }

    fn tell(&self, axis: Axis) -> String {
        match self.layers {
            [one] => format!("{}: {}", one.layer, axis.exactly(one.value)),
            several => format!(
                "{} layers of {}, block {}: {} to {}, mean {}",
                several.len(),
                several.first().map_or("", |point| &point.kind),
                self.block,
                axis.exactly(self.least),
                axis.exactly(self.most),
                axis.exactly(self.middle)
            ),
        }
    }
}

impl Axis {
    fn takes(self, value: f64) -> bool {
        match self {
            Self::Logarithmic => value.is_finite() && value > 0.0,
            Self::Share => (0.0..=1.0).contains(&value),
        }
    }

    fn tell(self, tick: f64) -> String {
        match self {
            Self::Logarithmic => format!("{tick:.0e}"),
            Self::Share => format!("{:.0} %", 100.0 * tick),
        }
    }

    fn exactly(self, value: f64) -> String {
        match self {
            Self::Logarithmic => format!("{value:.3e}"),
            Self::Share => crate::table::percent(value),
        }
    }
}

/// The vertical axis: from which number to which, of logarithms where the axis is of these.
struct Scale {
    axis: Axis,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(axis: Axis, least: f64, most: f64) -> Self {
        let (from, to) = match axis {
            Axis::Share => (0.0, 1.0),
            Axis::Logarithmic => {
                let (from, to) = (least.log10().floor(), most.log10().ceil());
                (from, to.max(from + 1.0))
            }
        };
        Self { axis, from, to }
    }

    /// 0 at the bottom, 1 at the top.
    fn place(&self, value: f64) -> f64 {
        let value = match self.axis {
            Axis::Share => value,
            Axis::Logarithmic => value.log10(),
        };
        (value - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.axis {
            Axis::Share => vec![0.0, 0.25, 0.5, 0.75, 1.0],
            Axis::Logarithmic => {
                // f64 has some 600 decades.
                let decades = (self.to - self.from) as i32;
                let step = (decades / 8 + 1) as usize;
                let within: &[f64] = if decades <= 3 {
                    &[1.0, 2.0, 5.0]
                } else {
                    &[1.0]
                };
                (0..=decades)
                    .step_by(step)
                    .flat_map(|at| {
                        let decade = 10_f64.powi(self.from as i32 + at);
                        within.iter().map(move |times| times * decade)
                    })
                    // 10 to a power is not exact, and 0 where it is too small for a number.
                    .filter(|tick| (-EXACT..=1.0 + EXACT).contains(&self.place(*tick)))
                    .collect()
            }
        }
    }
}

/// Some block numbers, evenly spaced.
fn numbered(last: f64) -> Vec<f64> {
    let mut step = 1.0;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if last / step < NUMBERED {
            break;
        }
        step *= factor;
    }
    // Steps are whole but for 2.5, which comes after a 2.
    let count = (last / step) as u32;
    (0..=count).map(|at| f64::from(at) * step).collect()
}

fn svg(page: &mut Html, title: &str, height: f64, inner: impl FnOnce(&mut Html)) {
    page.element("figure", &[], |page| {
        page.leaf("figcaption", &[], title);
        let field = format!("0 0 {} {}", number(WIDTH), number(height));
        page.element(
            "svg",
            &[("viewBox", &field), ("role", "img"), ("aria-label", title)],
            inner,
        );
    });
}

fn label(page: &mut Html, anchor: &str, x: f64, y: f64, text: &str) {
    let attributes = [
        ("x", &*number(x)),
        ("y", &*number(y)),
        ("text-anchor", anchor),
    ];
    page.leaf("text", &attributes, text);
}

fn line(page: &mut Html, class: &str, [(x1, y1), (x2, y2)]: [(f64, f64); 2]) {
    let attributes = [
        ("class", class),
        ("x1", &*number(x1)),
        ("y1", &*number(y1)),
        ("x2", &*number(x2)),
        ("y2", &*number(y2)),
    ];
    page.empty("line", &attributes);
}

/// A place, to a hundredth.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= LABEL {
        return text.to_owned();
    }
    // The ends of paths and layers' names tell more than their beginnings.
    let skipped = text.chars().count() - LABEL + 1;
    format!("…{}", text.chars().skip(skipped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_few_and_whole_numbers() {
        for last in [1.0, 5.0, 29.0, 93.0, 125.0, 1e9, 1e19] {
            let numbers = numbered(last);
            assert!((2..=17).contains(&numbers.len()), "{last}: {numbers:?}");
            assert!(numbers.iter().all(|at| at.fract() == 0.0), "{numbers:?}");
            assert!(numbers.iter().all(|&at| at <= last), "{numbers:?}");
        }
        for (least, most) in [
            (0.3, 0.3),
            (1e-3, 0.02),
            (1e-9, 1e3),
            (1e-300, 1e300),
            (5e-324, 1.0),
        ] {
            let scale = Scale::new(Axis::Logarithmic, least, most);
            let ticks = scale.ticks();
            assert!((2..=10).contains(&ticks.len()), "{least}: {ticks:?}");
            for value in [least, most].into_iter().chain(ticks) {
                assert!(
                    (-EXACT..=1.0 + EXACT).contains(&scale.place(value)),
                    "{value}"
                );
            }
        }
    }

    #[test]
    fn places_are_short_and_labels_too() {
        assert_eq!(number(12.0), "12");
        assert_eq!(number(100.0), "100");
        assert_eq!(number(0.456), "0.46");
        let name = shortened(&"é".repeat(100));
        assert_eq!(name.chars().count(), LABEL);
        assert_eq!(shortened("short"), "short");
    }
}
