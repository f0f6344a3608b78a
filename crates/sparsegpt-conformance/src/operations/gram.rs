//! H ← beta·H + alpha·XᵀX.

use sparsegpt::Activations;
use sparsegpt::backend::{Backend, host};
use sparsegpt::half::{bf16, f16};
use sparsegpt::ndarray::{Array2, ArrayView2, s};

use crate::check::{Cases, Subject, Verdict, close, equal, same_bits};
use crate::random::Random;
use crate::tolerance::GRAM;

/// Tokens x columns: one token, one column, fewer tokens than columns, more than one tile of anything.
const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (3, 1),
    (1, 6),
    (5, 7),
    (64, 32),
    (300, 129),
    (17, 200),
    (600, 33),
];

/// The running mean of the Hessian, and plain sums.
const FACTORS: [(f32, f32); 4] = [(1.0, 0.0), (1.0, 1.0), (2.0 / 3.0, 2.0 / 3.0), (-0.5, 0.25)];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("operations/gram_update/f32", |subject| {
        each_shape(subject, |backend, x, h, factors| {
            check(backend, x.view().into(), h, factors)
        })
    });
    cases.add("operations/gram_update/bf16", |subject| {
        each_shape(subject, |backend, x, h, factors| {
            check(backend, x.mapv(bf16::from_f32).view().into(), h, factors)
        })
    });
    cases.add("operations/gram_update/f16", |subject| {
        each_shape(subject, |backend, x, h, factors| {
            check(backend, x.mapv(f16::from_f32).view().into(), h, factors)
        })
    });
    cases.add("operations/gram_update/strided_views", strided);
    cases.add("operations/gram_update/no_tokens", no_tokens);
    cases.add(
        "operations/gram_update/whole_numbers_are_exact",
        whole_numbers,
    );
    cases.add("operations/gram_update/same_bits_twice", same_bits_twice);
}

/// A Hessian with garbage in its strict upper triangle.
fn scratch_above(random: &mut Random, cols: usize) -> Array2<f32> {
    Array2::from_shape_fn((cols, cols), |(i, j)| {
        if i < j {
            random.garbage()
        } else {
            random.bell()
        }
    })
}

fn lower(matrix: &Array2<f32>) -> Array2<f32> {
    Array2::from_shape_fn(
        matrix.dim(),
        |(i, j)| if i < j { 0.0 } else { matrix[[i, j]] },
    )
}

fn update<B: Backend>(
    backend: &B,
    x: Activations<'_>,
    h: &Array2<f32>,
    (alpha, beta): (f32, f32),
) -> Verdict<Array2<f32>> {
    let mut device = backend.upload(h.view())?;
    backend.gram_update(&mut device, x, alpha, beta)?;
    Ok(lower(&backend.download(&device)?))
}

fn check<B: Backend>(
    backend: &B,
    x: Activations<'_>,
    h: &Array2<f32>,
    (alpha, beta): (f32, f32),
) -> Verdict {
    let found = update(backend, x, h, (alpha, beta))?;
    let (tokens, cols) = (x.tokens(), x.cols());
    let wide = Array2::from_shape_fn((tokens, cols), |(token, col)| f64::from(x.get(token, col)));
    let magnitudes = wide.mapv(f64::abs);
    let (sums, magnitudes) = (wide.t().dot(&wide), magnitudes.t().dot(&magnitudes));
    let (alpha, beta) = (f64::from(alpha), f64::from(beta));
    for i in 0..cols {
        for j in 0..=i {
            let before = beta * f64::from(h[[i, j]]);
            close(
                format_args!(
                    "H[{i}, {j}] from {tokens} tokens, {cols} columns, alpha {alpha}, beta {beta}"
                ),
                f64::from(found[[i, j]]),
                before + alpha * sums[[i, j]],
                before.abs() + alpha.abs() * magnitudes[[i, j]],
                &GRAM,
            )?;
        }
    }
    Ok(())
}

fn each_shape<B: Backend>(
    subject: &Subject<B>,
    check: impl Fn(&B, &Array2<f32>, &Array2<f32>, (f32, f32)) -> Verdict,
) -> Verdict {
    let mut random = Random::new(10);
    for (tokens, cols) in SHAPES {
        let x = random.activations(tokens, cols);
        let h = scratch_above(&mut random, cols);
        for factors in FACTORS {
            check(subject.backend(), &x, &h, factors)?;
        }
    }
    Ok(())
}

fn strided<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(11);
    let x = random.activations(60, 45);
    let half = x.mapv(bf16::from_f32);
    fn views<T>(x: &Array2<T>) -> [ArrayView2<'_, T>; 4] {
        [
            x.t(),
            x.slice(s![..;2, 1..;3]),
            x.slice(s![..;-1, ..]),
            x.slice(s![5..40, 7..20]),
        ]
    }
    for (view, half) in views(&x).into_iter().zip(views(&half)) {
        let h = scratch_above(&mut random, view.ncols());
        check(subject.backend(), view.into(), &h, (0.5, 0.75))?;
        check(subject.backend(), half.into(), &h, (0.5, 0.75))?;
    }
    Ok(())
}

fn no_tokens<B: Backend>(subject: &Subject<B>) -> Verdict {
    let h = scratch_above(&mut Random::new(12), 37);
    for beta in [1.0, 0.5, 0.0] {
        let none = Array2::<f32>::zeros((0, 37));
        let found = update(subject.backend(), none.view().into(), &h, (3.0, beta))?;
        equal(
            "H after no tokens",
            &found,
            &lower(&h).mapv(|value| beta * value),
        )?;
        let none = Array2::<f16>::from_elem((0, 37), f16::ZERO);
        let found = update(subject.backend(), none.view().into(), &h, (3.0, beta))?;
        equal(
            "H after no f16 tokens",
            &found,
            &lower(&h).mapv(|value| beta * value),
        )?;
    }
    Ok(())
}

/// Sums of small whole numbers have no rounding: the host implementation must be met bit for bit.
fn whole_numbers<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(13);
    for (tokens, cols) in SHAPES {
        let x = random.integers(tokens, cols, 4);
        let h = random.integers(cols, cols, 9);
        let mut expected = h.clone();
        host::gram_update(expected.view_mut(), x.view().into(), 0.5, 2.0);
        let found = update(subject.backend(), x.view().into(), &h, (0.5, 2.0))?;
        equal("H of whole numbers", &found, &lower(&expected))?;
    }
    Ok(())
}

fn same_bits_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(14);
    let x = random.activations(300, 129);
    let h = scratch_above(&mut random, 129);
    let first = update(subject.backend(), x.view().into(), &h, (0.3, 0.7))?;
    for _ in 0..3 {
        let again = update(subject.backend(), x.view().into(), &h, (0.3, 0.7))?;
        same_bits("the same gram_update again", &again, &first)?;
    }
    let other = (subject.make)()?;
    same_bits(
        "the same gram_update on another value",
        &update(&other, x.view().into(), &h, (0.3, 0.7))?,
        &first,
    )
}
