//! Dense f32 products of other crates, for `benches/runtime/peers.py`: `crates PEER ROWSxCOLS TOKENS COPIES SECONDS` with
//! `faer` or `candle` as the peer (candle multiplies no bf16 on CPUs). Takes the next of so many copies of the weights for
//! each product, for so many seconds (0: once), and prints the median of the seconds, and how far the first product is
//! off sums in f64, over the largest value. Threads: `RAYON_NUM_THREADS`.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Products at least, but for a single one; as `layers.py` has it.
const LEAST_RUNS: usize = 3;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let [peer, shape, tokens, copies, seconds] = args.as_slice() else {
        eprintln!("expected PEER ROWSxCOLS TOKENS COPIES SECONDS, found {args:?}");
        // As `cargo bench` runs it for everything that can be measured.
        std::process::exit(if args.is_empty() { 0 } else { 2 });
    };
    let (rows, cols) = shape.split_once('x').unwrap();
    let (rows, cols): (usize, usize) = (rows.parse().unwrap(), cols.parse().unwrap());
    let (tokens, copies): (usize, usize) = (tokens.parse().unwrap(), copies.parse().unwrap());
    let seconds: f64 = seconds.parse().unwrap();

    // From -1 to 1, without a rhythm that columns could share.
    let value = |index: usize| (index * 7919 % 2003) as f32 / 1001.0 - 1.0;
    let weight: Vec<f32> = (0..rows * cols).map(value).collect();
    let x: Vec<f32> = (0..tokens * cols).map(value).collect();
    // Of the first token.
    let expected: Vec<f64> = weight
        .chunks_exact(cols)
        .map(|row| {
            let products = row.iter().zip(&x);
            products.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
        })
        .collect();

    // The time of a product, and what the first token came to.
    let mut product: Box<dyn FnMut(usize) -> (f64, Vec<f32>)> = match peer.as_str() {
        "faer" => {
            let weights = vec![weight; copies];
            let mut output = vec![0.0; rows * tokens];
            Box::new(move |run| {
                let mut y = MatMut::from_column_major_slice_mut(&mut output, rows, tokens);
                let weight = MatRef::from_row_major_slice(&weights[run % copies], rows, cols);
                let x = MatRef::from_column_major_slice(&x, cols, tokens);
                let start = Instant::now();
                matmul(y.as_mut(), Accum::Replace, weight, x, 1.0, Par::rayon(0));
                let took = start.elapsed().as_secs_f64();
                (took, y.col(0).iter().copied().collect())
            })
        }
        "candle" => {
            let x = Tensor::from_vec(x, (tokens, cols), &Device::Cpu).unwrap();
            let weights: Vec<Tensor> = (0..copies)
                .map(|_| {
                    let copy = Tensor::from_slice(&weight, (rows, cols), &Device::Cpu).unwrap();
                    copy.t().unwrap()
                })
                .collect();
            Box::new(move |run| {
                let start = Instant::now();
                let y = x.matmul(&weights[run % copies]).unwrap();
                let took = start.elapsed().as_secs_f64();
                (took, y.get(0).unwrap().to_vec1().unwrap())
            })
        }
        _ => {
            eprintln!("expected faer or candle, found {peer}");
            std::process::exit(2);
        }
    };

    let largest = expected.iter().fold(0.0, |most: f64, y| most.max(y.abs()));
    let (_, found) = product(0);
    let deviation = found
        .iter()
        .zip(&expected)
        .fold(0.0, |most: f64, (y, exact)| {
            most.max((f64::from(*y) - exact).abs())
        });
    let least = if seconds == 0.0 { 1 } else { LEAST_RUNS };
    let (mut times, start) = (Vec::new(), Instant::now());
    while times.len() < least || start.elapsed() < Duration::from_secs_f64(seconds) {
        times.push(product(times.len() + 1).0);
    }
    times.sort_by(f64::total_cmp);
    println!("{} {}", times[times.len() / 2], deviation / largest);
}
