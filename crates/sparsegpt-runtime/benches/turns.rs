//! Layers that are measured in turns with other programs', for `benches/runtime/peers.py`. A line on stdin, a line on stdout:
//!
//! ```text
//! make KEY DTYPE ROWSxCOLS SPARSITY TOKENS COPIES  ->  made
//! turn KEY SECONDS                                 ->  SPARSE DENSE FLOOR   (medians, seconds)
//! drop KEY                                         ->  dropped
//! ```
//!
//! DTYPE is f32, bf16 or f16; COPIES of the layer at most, 0 for as many as are four times the last-level cache. Of one copy, all runs of
//! the sparse kernel follow each other. Threads: `RAYON_NUM_THREADS`. A process of its own for each turn would get its memory anew from a
//! system that others have left little (and was slower for it).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::io::{BufRead, IsTerminal, Write, stdin, stdout};
use std::time::Duration;

use sparsegpt_runtime::half::{bf16, f16};
use sparsegpt_runtime::measure::{Case, Machine, Prepared, Timing, Zeros};
use sparsegpt_runtime::{SparseLinear, Value};

type Turn = Box<dyn Fn(&Machine, Duration) -> Timing>;

fn make(dtype: &str, shape: &str, sparsity: &str, tokens: &str, copies: &str) -> Turn {
    let (rows, cols) = shape.split_once('x').unwrap();
    let zeros = Zeros::Random(sparsity.parse().unwrap());
    let case = Case::new(rows.parse().unwrap(), cols.parse().unwrap(), zeros).unwrap();
    let case = case.tokens(tokens.parse().unwrap());
    let case = match copies.parse().unwrap() {
        0 => case,
        most => case.copies(most),
    };
    match dtype {
        "f32" => turn::<f32>(&case),
        "bf16" => turn::<bf16>(&case),
        "f16" => turn::<f16>(&case),
        other => panic!("expected f32, bf16 or f16, found {other}"),
    }
}

fn turn<V: Value>(case: &Case) -> Turn {
    let prepared = Prepared::<SparseLinear<V>>::random(case).unwrap();
    Box::new(move |machine, duration| prepared.measure(machine, duration))
}

fn main() {
    if stdin().is_terminal() {
        // As `cargo bench` runs it for everything that can be measured.
        eprintln!("expected lines of make, turn and drop on stdin");
        return;
    }
    let (mut machine, mut layers) = (None, HashMap::new());
    for line in stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["make", key, dtype, shape, sparsity, tokens, copies] => {
                let layer = make(dtype, shape, sparsity, tokens, copies);
                layers.insert((*key).to_owned(), layer);
                "made".to_owned()
            }
            ["turn", key, seconds] => {
                let duration = Duration::from_secs_f64(seconds.parse().unwrap());
                let timing = layers[*key](machine.get_or_insert_with(Machine::new), duration);
                format!(
                    "{} {} {}",
                    timing.sparse_seconds, timing.dense_seconds, timing.floor_seconds
                )
            }
            ["drop", key] => {
                layers.remove(*key);
                "dropped".to_owned()
            }
            _ => panic!("expected make, turn or drop with what belongs to it, found {line:?}"),
        };
        println!("{answer}");
        stdout().flush().unwrap();
    }
}
