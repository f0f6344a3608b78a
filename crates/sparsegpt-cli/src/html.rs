//! HTML that is well-formed and escaped by construction.

use std::borrow::Cow;

/// Names and values of an element's attributes.
pub(crate) type Attributes<'a> = [(&'static str, &'a str)];

/// A piece of a page. Every element is closed by the call that opens it, every text and value is escaped: what comes from
/// a checkpoint or a model cannot become markup. A page is well-formed XML too.
#[derive(Debug, Default)]
pub(crate) struct Html(String);

impl Html {
    /// A page with a style sheet and a body. It can load nothing: neither scripts nor anything from elsewhere.
    pub(crate) fn page(title: &str, style: &str, body: impl FnOnce(&mut Self)) -> String {
        let mut page = Self("<!DOCTYPE html>\n".to_owned());
        page.element("html", &[("lang", "en")], |page| {
            page.element("head", &[], |page| {
                page.empty("meta", &[("charset", "utf-8")]);
                page.empty(
                    "meta",
                    &[
                        ("http-equiv", "Content-Security-Policy"),
                        ("content", "default-src 'none'; style-src 'unsafe-inline'"),
                    ],
                );
                page.empty(
                    "meta",
                    &[
                        ("name", "viewport"),
                        ("content", "width=device-width, initial-scale=1"),
                    ],
                );
                page.empty(
                    "meta",
                    &[("name", "color-scheme"), ("content", "light dark")],
                );
                page.leaf("title", &[], title);
                page.leaf("style", &[], style);
            });
            page.element("body", &[], body);
        });
        page.0
    }

    /// An element with others in it.
    pub(crate) fn element(
        &mut self,
        name: &'static str,
        attributes: &Attributes<'_>,
        inner: impl FnOnce(&mut Self),
    ) {
        self.enclose(name, attributes, inner);
        self.0.push('\n');
    }

    /// The same within a line of text, where a line break would be seen.
    pub(crate) fn inline(&mut self, name: &'static str, attributes: &Attributes<'_>, text: &str) {
        self.enclose(name, attributes, |page| page.text(text));
    }

    /// An element with text alone in it.
    pub(crate) fn leaf(&mut self, name: &'static str, attributes: &Attributes<'_>, text: &str) {
        self.element(name, attributes, |page| page.text(text));
    }

    /// An element with nothing in it.
    pub(crate) fn empty(&mut self, name: &'static str, attributes: &Attributes<'_>) {
        self.open(name, attributes);
        self.0 += "/>\n";
    }

    /// A text.
    pub(crate) fn text(&mut self, text: &str) {
        self.0 += &escape(text);
    }

    fn enclose(
        &mut self,
        name: &'static str,
        attributes: &Attributes<'_>,
        inner: impl FnOnce(&mut Self),
    ) {
        self.open(name, attributes);
        self.0.push('>');
        inner(self);
        self.0 += "</";
        self.0 += name;
        self.0.push('>');
    }

    fn open(&mut self, name: &'static str, attributes: &Attributes<'_>) {
        self.0.push('<');
        self.0 += name;
        for (key, value) in attributes {
            self.0.push(' ');
            self.0 += key;
            self.0 += "=\"";
            self.0 += &escape(value);
            self.0.push('"');
        }
    }
}

/// The text as it may stand between tags and in quotes. Characters that no document may hold are replaced.
fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().all(|c| escaped(c).is_none()) {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match escaped(c) {
            Some(other) => result += other,
            None => result.push(c),
        }
    }
    Cow::Owned(result)
}

fn escaped(c: char) -> Option<&'static str> {
    match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '"' => Some("&quot;"),
        '\'' => Some("&#39;"),
        '\t' | '\n' => None,
        // The production Char of XML 1.0, and the controls of C1, which HTML takes for errors.
        c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => Some("\u{fffd}"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_written_becomes_markup() {
        let mut page = Html::default();
        page.leaf(
            "p",
            &[("title", "\" onclick='x'")],
            "<script>a && b</script>\u{0}\u{1b}[31m\r\u{85}\u{ffff} ü\n",
        );
        assert_eq!(
            page.0,
            "<p title=\"&quot; onclick=&#39;x&#39;\">&lt;script&gt;a &amp;&amp; b&lt;/script&gt;\
             \u{fffd}\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd} ü\n</p>\n"
        );
    }

    #[test]
    fn elements_are_closed_in_order() {
        let mut page = Html::default();
        page.element("ul", &[], |page| {
            page.leaf("li", &[], "a");
            page.empty("br", &[]);
            page.inline("b", &[], "b");
            page.text("c");
        });
        assert_eq!(page.0, "<ul><li>a</li>\n<br/>\n<b>b</b>c</ul>\n");
    }
}
