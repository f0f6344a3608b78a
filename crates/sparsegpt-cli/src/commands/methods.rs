//! `sparsegpt methods`: what `--method` can be.

use clap::Args;
use serde::Serialize;
use sparsegpt::Method;
use sparsegpt::solver::Parts;

use crate::console::Console;
use crate::failure::Failure;
use crate::table::{Table, left};

/// Flags of `methods`.
#[derive(Args, Debug)]
pub(crate) struct MethodsArgs {}

#[derive(Debug, Serialize)]
struct Entry {
    method: Method,
    what: &'static str,
    paper: &'static str,
    parts: Parts,
}

pub(crate) fn run(_: &MethodsArgs, console: &Console) -> Result<(), Failure> {
    let entries = Method::ALL.map(|method| Entry {
        method,
        what: method.describe(),
        paper: method.paper(),
        parts: method.parts(),
    });
    let mut table = Table::new([left("method"), left("what it does"), left("from")]);
    for entry in &entries {
        table.row([
            entry.method.to_string(),
            entry.what.to_owned(),
            entry.paper.to_owned(),
        ]);
    }
    console.print(&table.to_string())?;
    console.print_json(&entries)
}
