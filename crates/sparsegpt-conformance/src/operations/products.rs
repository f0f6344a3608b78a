//! Products, sums and permutations of matrices.

use std::ops::Range;

use sparsegpt::backend::{Backend, Gemm, host};
use sparsegpt::ndarray::{Array2, s};

use crate::check::{Cases, Subject, Verdict, close, ensure, equal, same_bits};
use crate::random::Random;
use crate::tolerance::{COMBINE, ENERGY, GEMM};
use crate::truth;

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("operations/gemm/parts_of_matrices", gemm_parts);
    cases.add("operations/gemm/whole_numbers_are_exact", gemm_exact);
    cases.add("operations/gemm/same_bits_twice", gemm_twice);
    cases.add("operations/row_energies/against_f64", row_energies);
    cases.add(
        "operations/row_energies/same_bits_twice",
        row_energies_twice,
    );
    cases.add(
        "operations/permute_hessian/moves_entries_exactly",
        permute_hessian,
    );
    cases.add("operations/combine/against_f64", combine);
}

/// C\[:, c\] += alpha · A\[:, a\] · B\[b_rows, b_cols\] with rows of C.
struct Product {
    rows: usize,
    c: (usize, Range<usize>),
    a: (usize, Range<usize>),
    b: (usize, usize, Range<usize>, Range<usize>),
    alpha: f32,
}

fn products() -> Vec<Product> {
    let product = |rows, c, a, b, alpha| Product {
        rows,
        c,
        a,
        b,
        alpha,
    };
    vec![
        product(1, (1, 0..1), (1, 0..1), (1, 1, 0..1, 0..1), -1.0),
        product(7, (9, 0..9), (5, 0..5), (5, 9, 0..5, 0..9), 1.0),
        product(
            16,
            (200, 128..200),
            (128, 0..128),
            (200, 200, 0..128, 128..200),
            -1.0,
        ),
        product(
            17,
            (200, 150..151),
            (128, 3..40),
            (200, 200, 11..48, 199..200),
            -1.0,
        ),
        product(
            33,
            (130, 1..130),
            (64, 63..64),
            (130, 130, 0..1, 1..130),
            0.5,
        ),
        product(
            1,
            (300, 100..300),
            (200, 0..200),
            (300, 300, 50..250, 100..300),
            -1.0,
        ),
        product(20, (40, 10..10), (8, 0..8), (40, 40, 0..8, 10..10), -1.0),
    ]
}

impl Product {
    fn operands(&self, mut matrix: impl FnMut(usize, usize) -> Array2<f32>) -> [Array2<f32>; 3] {
        [
            matrix(self.rows, self.c.0),
            matrix(self.rows, self.a.0),
            matrix(self.b.0, self.b.1),
        ]
    }

    fn on<B: Backend>(&self, backend: &B, operands: &[Array2<f32>; 3]) -> Verdict<Array2<f32>> {
        let [c, a, b] = operands;
        let mut c = backend.upload(c.view())?;
        let (a, b) = (backend.upload(a.view())?, backend.upload(b.view())?);
        backend.gemm(Gemm::new(
            (&mut c, self.c.1.clone()),
            self.alpha,
            (&a, self.a.1.clone()),
            (&b, self.b.2.clone(), self.b.3.clone()),
        ))?;
        Ok(backend.download(&c)?)
    }
}

fn gemm_parts<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(60);
    for product in products() {
        let operands = product.operands(|rows, cols| random.matrix(rows, cols));
        let found = product.on(subject.backend(), &operands)?;
        let [c, a, b] = operands;
        let a = truth::widen(a.slice(s![.., product.a.1.clone()]));
        let b = truth::widen(b.slice(s![product.b.2.clone(), product.b.3.clone()]));
        let alpha = f64::from(product.alpha);
        let (sums, sizes) = (a.dot(&b), a.mapv(f64::abs).dot(&b.mapv(f64::abs)));
        for ((row, col), &found) in found.indexed_iter() {
            let before = c[[row, col]];
            if !product.c.1.contains(&col) {
                ensure!(
                    found.to_bits() == before.to_bits(),
                    "C[{row}, {col}] outside {:?} was changed",
                    product.c.1
                );
                continue;
            }
            let at = [row, col - product.c.1.start];
            let before = f64::from(before);
            close(
                format_args!("C[{row}, {col}]"),
                f64::from(found),
                before + alpha * sums[at],
                before.abs() + alpha.abs() * sizes[at],
                &GEMM,
            )?;
        }
    }
    Ok(())
}

fn gemm_exact<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(61);
    for product in products() {
        let operands = product.operands(|rows, cols| random.integers(rows, cols, 5));
        let found = product.on(subject.backend(), &operands)?;
        let [mut expected, a, b] = operands;
        host::gemm(
            expected.slice_mut(s![.., product.c.1.clone()]),
            product.alpha,
            a.slice(s![.., product.a.1.clone()]),
            b.slice(s![product.b.2.clone(), product.b.3.clone()]),
        );
        equal("C of whole numbers", &found, &expected)?;
    }
    Ok(())
}

fn gemm_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(62);
    for product in products() {
        let operands = product.operands(|rows, cols| random.matrix(rows, cols));
        let first = product.on(subject.backend(), &operands)?;
        same_bits(
            "the same product again",
            &product.on(subject.backend(), &operands)?,
            &first,
        )?;
    }
    Ok(())
}

/// Weights, a matrix whose upper triangle and diagonal are garbage, and the diagonal that counts.
fn energy_case(
    rows: usize,
    cols: usize,
    random: &mut Random,
) -> (Array2<f32>, Array2<f32>, Vec<f32>) {
    let weights = random.matrix(rows, cols);
    let h = Array2::from_shape_fn((cols, cols), |(i, j)| {
        if i > j {
            random.uniform()
        } else {
            random.garbage()
        }
    });
    let diagonal = (0..cols).map(|_| 1.5 + random.uniform()).collect();
    (weights, h, diagonal)
}

fn energies_on<B: Backend>(
    backend: &B,
    (weights, h, diagonal): &(Array2<f32>, Array2<f32>, Vec<f32>),
) -> Verdict<Vec<f64>> {
    let (weights, h) = (backend.upload(weights.view())?, backend.upload(h.view())?);
    Ok(backend.row_energies(&weights, &h, diagonal)?)
}

fn row_energies<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(63);
    for (rows, cols) in [(1, 1), (1, 50), (9, 1), (17, 129), (40, 64), (3, 200)] {
        let case = energy_case(rows, cols, &mut random);
        let found = energies_on(subject.backend(), &case)?;
        ensure!(
            found.len() == rows,
            "{} energies for {rows} rows",
            found.len()
        );
        let (weights, h, diagonal) = case;
        let h = truth::symmetric(h.view(), &diagonal);
        let sizes = h.mapv(f64::abs);
        for (row, &found) in found.iter().enumerate() {
            let w = weights.row(row).mapv(f64::from);
            let size = w.mapv(f64::abs);
            let expected = w.dot(&h.dot(&w));
            let magnitude = size.dot(&sizes.dot(&size));
            close(
                format_args!("energy of row {row} of {rows} x {cols}"),
                found,
                expected,
                magnitude,
                &ENERGY,
            )?;
        }
    }
    Ok(())
}

fn row_energies_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let case = energy_case(40, 129, &mut Random::new(64));
    let first = energies_on(subject.backend(), &case)?;
    let again = energies_on(subject.backend(), &case)?;
    ensure!(first == again, "the same energies again differ");
    Ok(())
}

fn permute_hessian<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let mut random = Random::new(65);
    for cols in [1, 2, 17, 130] {
        let h = Array2::from_shape_fn((cols, cols), |(i, j)| {
            if i > j {
                random.bell()
            } else {
                random.garbage()
            }
        });
        let mut order: Vec<usize> = (0..cols).collect();
        for last in (1..cols).rev() {
            order.swap(last, random.below(last + 1));
        }
        let device = backend.upload(h.view())?;
        let found = backend.download(&backend.permute_hessian(&device, &order)?)?;
        ensure!(
            found.dim() == (cols, cols),
            "the permuted Hessian is {:?}",
            found.dim()
        );
        for i in 0..cols {
            for j in 0..i {
                let expected = h[[order[i].max(order[j]), order[i].min(order[j])]];
                ensure!(
                    found[[i, j]].to_bits() == expected.to_bits(),
                    "({i}, {j}) of the permuted Hessian is {}, expected {expected}",
                    found[[i, j]]
                );
            }
        }
    }
    Ok(())
}

fn combine<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let mut random = Random::new(66);
    for (rows, cols) in [(1, 1), (5, 9), (64, 64), (33, 130)] {
        let (target, other) = (random.matrix(rows, cols), random.matrix(rows, cols));
        for (alpha, beta) in [
            (1.0_f32, 1.0_f32),
            (0.25, 0.75),
            (0.0, 1.0),
            (1.0, 0.0),
            (0.3, -0.7),
        ] {
            let mut device = backend.upload(target.view())?;
            let device_other = backend.upload(other.view())?;
            backend.combine(&mut device, alpha, &device_other, beta)?;
            same_bits(
                "the other matrix",
                &backend.download(&device_other)?,
                &other,
            )?;
            let found = backend.download(&device)?;
            for ((at, &found), (&t, &o)) in found.indexed_iter().zip(target.iter().zip(&other)) {
                let t = f64::from(alpha) * f64::from(t);
                let o = f64::from(beta) * f64::from(o);
                close(
                    format_args!("{at:?}"),
                    f64::from(found),
                    t + o,
                    t.abs() + o.abs(),
                    &COMBINE,
                )?;
            }
        }
    }
    Ok(())
}
