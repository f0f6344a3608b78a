//! The two ends of a block of columns.

use std::ops::Range;

use sparsegpt::backend::Backend;
use sparsegpt::ndarray::{Array2, s};

use crate::check::{Cases, Subject, Verdict, close, ensure, same_bits};
use crate::random::Random;
use crate::tolerance::GEMM;
use crate::truth;

/// Rows, columns, and the block.
const BLOCKS: [(usize, usize, Range<usize>); 8] = [
    (1, 1, 0..1),
    (1, 300, 128..256),
    (5, 7, 3..4),
    (16, 64, 0..64),
    (17, 200, 128..200),
    (70, 257, 256..257),
    (129, 260, 1..128),
    (33, 300, 20..290),
];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("operations/open_block/against_f64", open_block);
    cases.add("operations/open_block/same_bits_twice", open_block_twice);
    cases.add("operations/close_block/subtracts", close_block);
}

/// W, D, and a factor with garbage everywhere but in the upper triangle of its diagonal block.
fn case(random: &mut Random, rows: usize, cols: usize, block: &Range<usize>) -> [Array2<f32>; 3] {
    let (weights, rest) = (random.matrix(rows, cols), random.matrix(rows, cols));
    let factor = Array2::from_shape_fn((cols, cols), |(i, j)| {
        if i <= j && block.contains(&i) && block.contains(&j) {
            random.uniform()
        } else {
            random.garbage()
        }
    });
    [weights, rest, factor]
}

fn opened<B: Backend>(
    backend: &B,
    [weights, rest, factor]: &[Array2<f32>; 3],
    block: &Range<usize>,
) -> Verdict<Array2<f32>> {
    let mut device = backend.upload(weights.view())?;
    let (rest, factor) = (backend.upload(rest.view())?, backend.upload(factor.view())?);
    backend.open_block(&mut device, &rest, &factor, block.clone())?;
    Ok(backend.download(&device)?)
}

fn open_block<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(70);
    for (rows, cols, block) in BLOCKS {
        let case = case(&mut random, rows, cols, &block);
        let found = opened(subject.backend(), &case, &block)?;
        let [weights, rest, factor] = case;
        let r = factor.slice(s![block.clone(), block.clone()]);
        let r = Array2::from_shape_fn(
            r.dim(),
            |(i, j)| {
                if i <= j { f64::from(r[[i, j]]) } else { 0.0 }
            },
        );
        let gathered = truth::widen(weights.slice(s![.., block.clone()]));
        let sums = gathered.dot(&r);
        let sizes = gathered.mapv(f64::abs).dot(&r.mapv(f64::abs));
        for ((row, col), &found) in found.indexed_iter() {
            if block.contains(&col) {
                let at = [row, col - block.start];
                let dense = f64::from(rest[[row, col]]);
                close(
                    format_args!("W[{row}, {col}] of {rows} x {cols}, block {block:?}"),
                    f64::from(found),
                    dense + sums[at],
                    dense.abs() + sizes[at],
                    &GEMM,
                )?;
            } else {
                ensure!(
                    found.to_bits() == weights[[row, col]].to_bits(),
                    "W[{row}, {col}] outside {block:?} was changed"
                );
            }
        }
    }
    Ok(())
}

fn open_block_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(71);
    for (rows, cols, block) in BLOCKS {
        let case = case(&mut random, rows, cols, &block);
        let first = opened(subject.backend(), &case, &block)?;
        let again = opened(subject.backend(), &case, &block)?;
        same_bits("the same block opened again", &again, &first)?;
    }
    Ok(())
}

fn close_block<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let mut random = Random::new(72);
    for (rows, cols, block) in BLOCKS {
        let [weights, rest, _] = case(&mut random, rows, cols, &block);
        let mut expected = rest.clone();
        let mut columns = expected.slice_mut(s![.., block.clone()]);
        columns -= &weights.slice(s![.., block.clone()]);
        let mut device = backend.upload(rest.view())?;
        backend.close_block(&mut device, &backend.upload(weights.view())?, block.clone())?;
        same_bits(
            "what a block has lost",
            &backend.download(&device)?,
            &expected,
        )?;
    }
    Ok(())
}
