//! How texts are laid out: one as it comes; several under headings, or in columns where the terminal is wide.

use textwrap::core::display_width;

use super::Sample;
use crate::console::Console;
use crate::failure::Failure;

/// Columns of text are at least so wide.
const LEAST_COLUMN: usize = 40;
/// What stands between two columns.
const GAP: &str = "   ";

/// Where the texts go.
#[derive(Debug)]
pub(super) struct Page<'a> {
    layout: Layout,
    samples: usize,
    opening: &'a str,
    console: &'a Console,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// One text, alone.
    Plain,
    /// One after the other.
    Headings,
    /// The models beside each other, on so many places of the terminal.
    Columns(usize),
}

impl<'a> Page<'a> {
    /// For so many models and samples of each; `opening` stands before each text.
    pub(super) fn new(
        models: usize,
        samples: usize,
        opening: &'a str,
        console: &'a Console,
    ) -> Self {
        let layout = match (models, samples, console.columns()) {
            (1, 1, _) => Layout::Plain,
            (2.., _, Some(width)) if column(width, models) >= LEAST_COLUMN => {
                Layout::Columns(width)
            }
            _ => Layout::Headings,
        };
        Self {
            layout,
            samples,
            opening,
            console,
        }
    }

    /// Whether texts are shown while they are written.
    pub(super) fn streams(&self) -> bool {
        self.samples == 1 && !matches!(self.layout, Layout::Columns(_))
    }

    /// Before the first piece of a model's text.
    pub(super) fn begin(&self, name: &str) -> Result<(), Failure> {
        if !self.streams() {
            return Ok(());
        }
        if self.layout == Layout::Headings {
            self.console.print(&heading(name))?;
        }
        self.console.print(self.opening)
    }

    /// A piece of a text.
    pub(super) fn piece(&self, new: &str) -> Result<(), Failure> {
        match self.streams() {
            true => self.console.print(new),
            false => Ok(()),
        }
    }

    /// Behind the last piece of a model's texts.
    pub(super) fn of_model(&self, name: &str, samples: &[Sample]) -> Result<(), Failure> {
        match self.layout {
            Layout::Plain => self.console.print("\n"),
            Layout::Headings if self.streams() => self.console.print("\n\n"),
            Layout::Headings => samples.iter().enumerate().try_for_each(|(at, sample)| {
                let heading = heading(&format!("{name}, {}", self.number(at)));
                let text = format!("{heading}{}{}\n\n", self.opening, sample.text);
                self.console.print(&text)
            }),
            Layout::Columns(_) => Ok(()),
        }
    }

    /// Behind all models.
    pub(super) fn end(&self, models: &[(&str, &[Sample])]) -> Result<(), Failure> {
        let Layout::Columns(width) = self.layout else {
            return Ok(());
        };
        for at in 0..self.samples {
            let texts = models.iter().map(|(name, samples)| {
                let name = match self.samples {
                    1 => (*name).to_owned(),
                    _ => format!("{name}, {}", self.number(at)),
                };
                let text = samples.get(at).map_or("", |sample| &sample.text);
                heading(&name) + self.opening + text
            });
            let texts: Vec<String> = texts.collect();
            self.console.print(&(beside(&texts, width) + "\n"))?;
        }
        Ok(())
    }

    fn number(&self, at: usize) -> String {
        format!("sample {} of {}", at + 1, self.samples)
    }
}

/// A line, underlined.
fn heading(text: &str) -> String {
    format!("{text}\n{}\n", "-".repeat(display_width(text)))
}

/// The width of one of so many columns.
fn column(width: usize, columns: usize) -> usize {
    width.saturating_sub(GAP.len() * (columns - 1)) / columns
}

/// Texts in columns of equal width, lines broken between words.
fn beside(texts: &[String], width: usize) -> String {
    let width = column(width, texts.len());
    let lines: Vec<Vec<String>> = texts
        .iter()
        .map(|text| {
            // A tab has no width of its own.
            let text = text.replace('\t', "    ");
            let lines = textwrap::wrap(&text, width).into_iter();
            lines.map(|line| line.into_owned()).collect()
        })
        .collect();
    let longest = lines.iter().map(Vec::len).max().unwrap_or(0);
    let mut page = String::new();
    for at in 0..longest {
        let mut row = String::new();
        for (column, lines) in lines.iter().enumerate() {
            if column > 0 {
                row += GAP;
            }
            let line = lines.get(at).map_or("", String::as_str);
            row += line;
            row += &" ".repeat(width.saturating_sub(display_width(line)));
        }
        page += row.trim_end();
        page.push('\n');
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_equal_width_and_break_between_words() {
        let texts = [
            "dense\n-----\nOne word more",
            "50 %\n----\nzwölf\n\n日本語 x",
        ];
        assert_eq!(
            beside(&texts.map(str::to_owned), 23),
            "dense        50 %\n-----        ----\nOne word     zwölf\nmore\n             日本語 x\n"
        );
        assert_eq!(beside(&["a\tb".to_owned()], 10), "a    b\n");
        assert_eq!(column(83, 2), 40);
    }
}
