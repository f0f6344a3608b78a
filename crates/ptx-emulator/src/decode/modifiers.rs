//! The dotted parts of an opcode, taken one by one; what nobody took is an error.

use super::Parsed;
use crate::syntax::{ParseError, ScalarType};

pub(super) struct Modifiers<'s> {
    line: u32,
    opcode: &'s str,
    base: &'s str,
    rest: Vec<&'s str>,
}

impl<'s> Modifiers<'s> {
    pub(super) fn new(line: u32, opcode: &'s str) -> Self {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or("");
        Self {
            line,
            opcode,
            base,
            rest: parts.collect(),
        }
    }

    pub(super) fn line(&self) -> u32 {
        self.line
    }

    /// What stands before the first dot.
    pub(super) fn base(&self) -> &'s str {
        self.base
    }

    /// Takes a modifier that may be there.
    pub(super) fn has(&mut self, name: &str) -> bool {
        let place = self.rest.iter().position(|part| *part == name);
        if let Some(place) = place {
            self.rest.remove(place);
        }
        place.is_some()
    }

    /// Takes the first modifier of a table that is there.
    pub(super) fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let (place, value) = self.rest.iter().enumerate().find_map(|(i, part)| {
            table
                .iter()
                .find(|(name, _)| name == part)
                .map(|(_, value)| (i, *value))
        })?;
        self.rest.remove(place);
        Some(value)
    }

    /// Takes a modifier that must be there.
    pub(super) fn required<T: Copy>(&mut self, table: &[(&str, T)]) -> Parsed<T> {
        self.one_of(table).ok_or_else(|| {
            let names: Vec<_> = table.iter().map(|(name, _)| format!(".{name}")).collect();
            self.expected(&format!("one of {}", names.join(" ")))
        })
    }

    /// Takes the next type, which must be one of `allowed`.
    pub(super) fn ty(&mut self, allowed: &[ScalarType]) -> Parsed<ScalarType> {
        let found = self
            .rest
            .iter()
            .enumerate()
            .find_map(|(i, part)| ScalarType::from_name(part).map(|ty| (i, ty)));
        match found {
            Some((place, ty)) if allowed.contains(&ty) => {
                self.rest.remove(place);
                Ok(ty)
            }
            _ => {
                let names: Vec<_> = allowed.iter().map(ToString::to_string).collect();
                Err(self.expected(&format!("a type among {}", names.join(" "))))
            }
        }
    }

    /// Takes all that `matches`.
    pub(super) fn drop_all(&mut self, matches: impl Fn(&str) -> bool) {
        self.rest.retain(|part| !matches(part));
    }

    pub(super) fn expected(&self, expected: &str) -> ParseError {
        ParseError::new(self.line, format!("`{}`", self.opcode), expected)
    }

    pub(super) fn unknown(&self) -> ParseError {
        ParseError::new(
            self.line,
            format!("instruction `{}`", self.opcode),
            "an instruction of the subset this emulator executes (see the crate's documentation)",
        )
    }

    /// Results of approximate instructions differ between devices, so none is modelled.
    pub(super) fn refuse_inexact(&self) -> Parsed<()> {
        for part in &self.rest {
            if matches!(*part, "approx" | "full" | "ftz") {
                return Err(self.expected(&format!(
                    "no `.{part}`: its bits differ from device to device or lose subnormals; use the `.rn` form"
                )));
            }
        }
        Ok(())
    }

    pub(super) fn finish(&self) -> Parsed<()> {
        match self.rest.first() {
            None => Ok(()),
            Some(part) => Err(ParseError::new(
                self.line,
                format!("`.{part}` in `{}`", self.opcode),
                format!("the forms of `{}` this emulator executes", self.base),
            )),
        }
    }
}
