//! Dense, sparse and floor of some layers, alternating in one run: `layers [DTYPE] [ROWSxCOLS] [TOKENS] [SECONDS]`, all
//! of them for everything that is not given. Threads: `RAYON_NUM_THREADS`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use sparsegpt_runtime::half::{bf16, f16};
use sparsegpt_runtime::measure::{Case, Zeros, layer};

const PATTERNS: [(&str, Zeros); 8] = [
    ("10%", Zeros::Random(0.1)),
    ("20%", Zeros::Random(0.2)),
    ("30%", Zeros::Random(0.3)),
    ("50%", Zeros::Random(0.5)),
    ("60%", Zeros::Random(0.6)),
    ("70%", Zeros::Random(0.7)),
    ("80%", Zeros::Random(0.8)),
    ("2:4", Zeros::NofM { zeros: 2, group: 4 }),
];

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let given = |index: usize, usual: &[&str]| match args.get(index) {
        Some(arg) => vec![arg.clone()],
        None => usual.iter().map(|value| (*value).to_owned()).collect(),
    };
    let seconds: f64 = given(3, &["2"])[0].parse().unwrap();
    println!(
        "dtype  rows x cols    tokens zeros  dense ms sparse ms  floor ms  dense/sparse  floor/sparse  dense floor/dense   GB/s GFLOP/s"
    );
    for dtype in given(0, &["f32", "bf16", "f16"]) {
        for shape in given(1, &["4096x4096", "4096x11008"]) {
            for tokens in given(2, &["1", "400"]) {
                let (rows, cols) = shape.split_once('x').unwrap();
                for (name, zeros) in PATTERNS {
                    let case =
                        Case::new(rows.parse().unwrap(), cols.parse().unwrap(), zeros).unwrap();
                    let case = case
                        .tokens(tokens.parse().unwrap())
                        .during(Duration::from_secs_f64(seconds));
                    let timing = match dtype.as_str() {
                        "f32" => layer::<f32>(&case),
                        "bf16" => layer::<bf16>(&case),
                        "f16" => layer::<f16>(&case),
                        other => panic!("expected f32, bf16 or f16, found {other}"),
                    }
                    .unwrap();
                    println!(
                        "{dtype:5}  {shape:13} {tokens:>7} {name:>5} {:9.3} {:9.3} {:9.3} {:13.2} {:13.2} {:18.2} {:6.1} {:7.1}",
                        timing.dense_seconds * 1e3,
                        timing.sparse_seconds * 1e3,
                        timing.floor_seconds * 1e3,
                        timing.dense_seconds / timing.sparse_seconds,
                        timing.floor_seconds / timing.sparse_seconds,
                        timing.dense_floor_seconds / timing.dense_seconds,
                        timing.bandwidth / 1e9,
                        timing.flops / 1e9,
                    );
                }
            }
        }
    }
}
