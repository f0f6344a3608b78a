//! The filter `tojson` as transformers has it: Python's `json.dumps`, which escapes nothing for HTML.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::MOST_BYTES;

/// `json.dumps(value, ensure_ascii, indent)`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut to = Limited(Vec::new());
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut to, OneLine)),
        Some(width) if width <= MOST_BYTES => {
            let indent = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut to, formatter))
        }
        Some(width) => return Err(refuse(format!("indent={width} is too much"))),
    };
    written.map_err(|error| refuse(error.to_string()))?;
    let text = String::from_utf8(to.0).map_err(|error| refuse(error.to_string()))?;
    Ok(match ensure_ascii {
        Some(true) => Value::from(ascii(&text)),
        _ => Value::from(text),
    })
}

fn refuse(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"))
}

/// Characters beyond ASCII, which stand in strings alone, by their numbers.
fn ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            let units = &mut [0; 2];
            for unit in character.encode_utf16(units) {
                escaped += &format!("\\u{unit:04x}");
            }
        }
    }
    escaped
}

/// With blanks behind commas and colons.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Memory for so much.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::Error::other(format!("longer than {MOST_BYTES} bytes")));
        }
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
