//! `sparsegpt methods`: what `--method` can be, and the flags that put other parts into a method.

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

/// A value of a flag.
#[derive(Clone, Copy, Debug, Serialize)]
struct Part {
    flag: &'static str,
    what: &'static str,
    paper: &'static str,
}

#[derive(Debug, Serialize)]
struct Listed {
    methods: Vec<Entry>,
    parts: &'static [Part],
}

const fn part(flag: &'static str, what: &'static str, paper: &'static str) -> Part {
    Part { flag, what, paper }
}

const PARTS: [Part; 20] = [
    part(
        "--mask-source solver",
        "the weight solver chooses as it goes",
        "of the method",
    ),
    part(
        "--mask-source magnitude",
        "the smallest weights",
        "Zhu & Gupta 2017, arXiv 1710.01878",
    ),
    part(
        "--mask-source wanda",
        "the smallest weight times input norm of each row",
        "Sun et al. 2023, arXiv 2306.11695",
    ),
    part(
        "--mask-source ria",
        "the smallest relative importance times input norm",
        "Zhang et al. 2024, ICLR 2024",
    ),
    part(
        "--mask-source obs",
        "the smallest w² over the diagonal of the inverse Hessian, all columns at once",
        "Hassibi & Stork 1993, NIPS 5",
    ),
    part(
        "--swaps COUNT",
        "exchanges zeros for kept weights of a row where that loses less",
        "SparseSwaps 2025, arXiv 2512.10922",
    ),
    part(
        "--refit none",
        "the weights stay as the method leaves them",
        "of the method",
    ),
    part(
        "--refit cg:STEPS",
        "conjugate gradients on the mask",
        "Meng et al. 2024, arXiv 2406.07831",
    ),
    part(
        "--refit adam:STEPS",
        "Adam on the mask",
        "Hubara et al. 2021, arXiv 2102.08124",
    ),
    part(
        "--refit exact",
        "the best weights on the mask, a factorization a row; for small layers",
        "normal equations",
    ),
    part(
        "--order natural",
        "columns are swept as they are",
        "Frantar & Alistarh 2023, arXiv 2301.00774",
    ),
    part(
        "--order descending",
        "by descending diagonal of the Hessian (act-order)",
        "Frantar et al. 2022, arXiv 2210.17323",
    ),
    part(
        "--order rose",
        "by descending loss of what is pruned, where blocks differ",
        "Su et al. 2026, arXiv 2603.05878",
    ),
    part(
        "--order best",
        "each of these, and the result of least error",
        "of this project",
    ),
    part(
        "--allocate uniform",
        "the same sparsity in all layers",
        "Frantar & Alistarh 2023, arXiv 2301.00774",
    ),
    part(
        "--allocate owl",
        "blocks with more outliers stay denser",
        "Yin et al. 2023, arXiv 2310.05175",
    ),
    part(
        "--allocate exact",
        "the least sum of measured losses, by dynamic programming",
        "of this project, after Frantar & Alistarh 2022 (SPDY)",
    ),
    part(
        "--allocate global",
        "one magnitude threshold for the whole model",
        "Han et al. 2015, arXiv 1506.02626",
    ),
    part(
        "--dense-targets STRENGTH",
        "aims at the dense model's outputs",
        "Li et al. 2025, arXiv 2504.02692",
    ),
    part(
        "repair",
        "a low-rank adapter beside the pruned layers (the command of this name)",
        "Liu et al. 2024, arXiv 2410.21271",
    ),
];

pub(crate) fn run(_: &MethodsArgs, console: &Console) -> Result<(), Failure> {
    let methods = Method::ALL.map(|method| Entry {
        method,
        what: method.describe(),
        paper: method.paper(),
        parts: method.parts(),
    });
    let mut table = Table::new([left("--method"), left("what it does"), left("from")]);
    for entry in &methods {
        table.row([
            entry.method.to_string(),
            entry.what.to_owned(),
            entry.paper.to_owned(),
        ]);
    }
    let mut parts = Table::new([
        left("in place of its own"),
        left("what it does"),
        left("from"),
    ]);
    for part in &PARTS {
        parts.row([part.flag, part.what, part.paper].map(str::to_owned));
    }
    console.print(&format!("{table}\n{parts}"))?;
    console.print_json(&Listed {
        methods: methods.into(),
        parts: &PARTS,
    })
}
