//! Comma-separated values as RFC 4180 has them: fields may stand in double quotes, and then hold commas, line ends and quotes
//! written twice.

use std::path::Path;

use serde_json::{Map, Value};

use super::record::Record;
use crate::text::open;
use crate::{Error, Result};

/// The rows of a file as records, the first row being the names of their fields; `limit` at most.
pub(super) fn records(path: &Path, limit: usize) -> Result<Vec<Record>> {
    let failed = |source| Error::io("read", path, source);
    let text = std::io::read_to_string(open(path)?).map_err(failed)?;
    let text = text.trim_start_matches('\u{feff}');
    let broken =
        |line: usize, reason: String| Error::format(path, format!("line {line}: {reason}"));
    let mut rows = Rows {
        rest: text,
        line: 1,
    };
    let names = rows.next().transpose();
    let names = names.map_err(|line| broken(line, UNCLOSED.to_owned()))?;
    let (_, names) = names.ok_or_else(|| broken(1, "expected the names of the fields".into()))?;
    let mut records = Vec::new();
    for row in rows.take(limit) {
        let (line, cells) = row.map_err(|line| broken(line, UNCLOSED.to_owned()))?;
        if cells.len() != names.len() {
            return Err(broken(
                line,
                format!(
                    "expected {} fields as in the first line, found {}",
                    names.len(),
                    cells.len()
                ),
            ));
        }
        let named = names.iter().map(|name| name.trim().to_owned()).zip(cells);
        let fields: Map<String, Value> = named.map(|(name, cell)| (name, cell.into())).collect();
        records.push(Record::new(path, format!("line {line}"), fields));
    }
    Ok(records)
}

const UNCLOSED: &str =
    "expected a double quote at the end of the field that begins with one, found none";

/// Rows, each with the number of its first line; an error is the line of a field whose quotes stay open. Empty lines are passed over.
struct Rows<'t> {
    rest: &'t str,
    line: usize,
}

impl Iterator for Rows<'_> {
    type Item = std::result::Result<(usize, Vec<String>), usize>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rest) = self
            .rest
            .strip_prefix("\r\n")
            .or_else(|| self.rest.strip_prefix('\n'))
        {
            self.rest = rest;
            self.line += 1;
        }
        if self.rest.is_empty() {
            return None;
        }
        let first = self.line;
        let mut cells = Vec::new();
        loop {
            let Some(cell) = self.cell() else {
                // Nothing can be told of what stands behind.
                self.rest = "";
                return Some(Err(first));
            };
            cells.push(cell);
            match self.rest.strip_prefix(',') {
                Some(rest) => self.rest = rest,
                None => return Some(Ok((first, cells))),
            }
        }
    }
}

impl Rows<'_> {
    /// The next cell, up to a comma or the end of the row; `None` if it begins with a quote and has no closing one.
    fn cell(&mut self) -> Option<String> {
        let mut cell = String::new();
        if let Some(quoted) = self.rest.strip_prefix('"') {
            let mut rest = quoted;
            loop {
                let (text, behind) = rest.split_once('"')?;
                cell += text;
                self.line += text.matches('\n').count();
                match behind.strip_prefix('"') {
                    Some(behind) => {
                        cell.push('"');
                        rest = behind;
                    }
                    None => {
                        self.rest = behind;
                        break;
                    }
                }
            }
        }
        let end = self.rest.find([',', '\n']).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        let (text, line_end) = match (text.strip_suffix('\r'), rest.starts_with(',')) {
            (Some(text), false) => (text, 1),
            _ => (text, 0),
        };
        cell += text;
        self.rest = &self.rest[end - line_end..];
        Some(cell)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn rows(text: &str) -> Vec<(usize, Vec<String>)> {
        let rows = Rows {
            rest: text,
            line: 1,
        };
        rows.map(std::result::Result::unwrap).collect()
    }

    #[test]
    fn quotes_commas_and_line_ends_are_told_apart() {
        let text = "a,b,c\r\n1,\"two, \"\"2\"\"\r\nlines\",\n\n\"\",x \"y\",z";
        let expected: [(usize, [&str; 3]); 3] = [
            (1, ["a", "b", "c"]),
            (2, ["1", "two, \"2\"\r\nlines", ""]),
            (5, ["", "x \"y\"", "z"]),
        ];
        let expected = expected.map(|(line, cells)| (line, cells.map(str::to_owned).to_vec()));
        assert_eq!(rows(text), expected);
        assert!(rows("\n\r\n").is_empty());
        assert_eq!(rows("a,\n"), [(1, vec!["a".to_owned(), String::new()])]);
        let mut open = Rows {
            rest: "a\n\"b\nc",
            line: 1,
        };
        assert!(open.next().unwrap().is_ok());
        assert_eq!(open.next(), Some(Err(2)));
        assert_eq!(open.next(), None);
    }
}
