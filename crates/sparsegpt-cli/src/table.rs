//! Plain text tables.

use std::fmt;

use crate::html::Html;

/// The heading of a column, and to which side its cells are set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    heading: &'static str,
    flush_right: bool,
}

/// A column of words.
pub(crate) fn left(heading: &'static str) -> Column {
    Column {
        heading,
        flush_right: false,
    }
}

/// A column of numbers.
pub(crate) fn right(heading: &'static str) -> Column {
    Column {
        heading,
        flush_right: true,
    }
}

/// Rows of cells under headings.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(columns: [Column; N]) -> Self {
        Self {
            rows: vec![columns.map(|column| column.heading.to_owned())],
            columns,
        }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The same for a page.
    pub(crate) fn write(&self, page: &mut Html) {
        let row = |page: &mut Html, cell: &'static str, cells: &[String; N]| {
            page.element("tr", &[], |page| {
                for (text, column) in cells.iter().zip(&self.columns) {
                    let right: &[(&str, &str)] = &[("class", "right")];
                    let attributes = if column.flush_right { right } else { &[] };
                    page.leaf(cell, attributes, text);
                }
            });
        };
        page.element("div", &[("class", "scroll")], |page| {
            page.element("table", &[], |page| {
                let mut rows = self.rows.iter();
                page.element("thead", &[], |page| {
                    rows.by_ref()
                        .take(1)
                        .for_each(|cells| row(page, "th", cells));
                });
                page.element("tbody", &[], |page| {
                    rows.for_each(|cells| row(page, "td", cells));
                });
            });
        });
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: [usize; N] = std::array::from_fn(|column| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        });
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), column) in row.iter().zip(&widths).zip(&self.columns) {
                if !line.is_empty() {
                    line += "  ";
                }
                line += &if column.flush_right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `12.34 %`.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// Bytes in the largest fitting of B, KiB, MiB, GiB.
pub(crate) fn bytes(count: f64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value:.0} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A quantity in the largest fitting of its unit, k, M, G, T and P of it.
pub(crate) fn quantity(count: f64, unit: &str) -> String {
    const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let mut value = count;
    let mut prefix = 0;
    while value >= 999.5 && prefix + 1 < PREFIXES.len() {
        value /= 1000.0;
        prefix += 1;
    }
    let decimals = if value < 99.95 { 1 } else { 0 };
    format!("{value:.decimals$} {}{unit}", PREFIXES[prefix])
}

/// Seconds in words fit for their size.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        format!("{seconds:.2} s")
    } else if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else if seconds < 7200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else if seconds < 172_800.0 {
        format!("{:.1} h", seconds / 3600.0)
    } else {
        format!("{:.1} days", seconds / 86_400.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new([left("layer"), right("zeros")]);
        table.row(["a".to_owned(), "1".to_owned()]);
        table.row(["long name".to_owned(), "123456".to_owned()]);
        assert_eq!(
            table.to_string(),
            "layer       zeros\na               1\nlong name  123456\n"
        );
    }

    #[test]
    fn sizes_and_times_take_a_fitting_unit() {
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(1536.0 * 1024.0), "1.5 MiB");
        assert_eq!(bytes(3.0 * 1024.0_f64.powi(4)), "3072.0 GiB");
        assert_eq!(seconds(0.5), "0.50 s");
        assert_eq!(seconds(90.0), "90 s");
        assert_eq!(seconds(600.0), "10 min");
        assert_eq!(seconds(9000.0), "2.5 h");
        assert_eq!(seconds(432_000.0), "5.0 days");
        assert_eq!(quantity(12.0, "B"), "12.0 B");
        assert_eq!(quantity(1.75e12, "flop"), "1.8 Tflop");
        assert_eq!(quantity(999_600.0, "weights"), "1.0 Mweights");
        assert_eq!(quantity(110e9, "flop"), "110 Gflop");
        assert_eq!(quantity(3e18, "flop"), "3000 Pflop");
    }
}
