//! Memory, queues, and what a backend says about itself.

use std::collections::BTreeSet;

use sparsegpt::backend::{Backend, Gemm};
use sparsegpt::ndarray::{Array2, s};

use crate::check::{Cases, Subject, Verdict, ensure, equal, same_bits};
use crate::random::Random;

const SHAPES: [(usize, usize); 7] = [
    (1, 1),
    (1, 7),
    (5, 1),
    (17, 33),
    (128, 127),
    (3, 300),
    (300, 3),
];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add("operations/info/is_coherent", info_is_coherent);
    cases.add("operations/memory/round_trip_keeps_every_bit", round_trip);
    cases.add(
        "operations/memory/views_of_any_layout_are_uploaded",
        layouts,
    );
    cases.add("operations/memory/zeros_are_zero", zeros);
    cases.add("operations/memory/a_copy_is_independent", copy);
    cases.add("operations/memory/masks_round_trip", masks);
    cases.add(
        "operations/memory/a_thousand_allocations",
        a_thousand_allocations,
    );
    cases.add("operations/memory/diagonal", diagonal);
    cases.add("operations/fork/works_beside_and_after_the_first", fork);
}

fn info_is_coherent<B: Backend>(subject: &Subject<B>) -> Verdict {
    let info = subject.backend().info();
    ensure!(!info.name.is_empty(), "the backend's name is empty");
    ensure!(!info.device.is_empty(), "the device's description is empty");
    let unique: BTreeSet<_> = info.native.iter().collect();
    ensure!(
        unique.len() == info.native.len(),
        "native operations named twice: {:?}",
        info.native
    );
    ensure!(
        subject.backend().info() == info,
        "two calls of info() differ"
    );
    Ok(())
}

fn round_trip<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let mut random = Random::new(1);
    let special = [
        -0.0,
        1.0e-45,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    for (rows, cols) in SHAPES {
        let mut host = random.matrix(rows, cols);
        for (value, special) in host.iter_mut().zip(special) {
            *value = special;
        }
        let device = backend.upload(host.view())?;
        ensure!(
            backend.shape(&device) == (rows, cols),
            "shape of a {rows} x {cols} matrix is {:?}",
            backend.shape(&device)
        );
        same_bits("download of an upload", &backend.download(&device)?, &host)?;
    }
    Ok(())
}

fn layouts<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let host = Random::new(2).matrix(19, 24);
    let views = [
        host.t(),
        host.slice(s![..;2, 1..;3]),
        host.slice(s![..;-1, ..]),
        host.slice(s![3..9, 5..6]),
    ];
    for view in views {
        let device = backend.upload(view)?;
        same_bits(
            "download of a strided upload",
            &backend.download(&device)?,
            &view.to_owned(),
        )?;
    }
    Ok(())
}

fn zeros<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    for (rows, cols) in SHAPES {
        // Dirty some memory first, so that a recycled buffer would show.
        drop(backend.upload(Array2::from_elem((rows, cols), 7.0).view())?);
        let device = backend.zeros(rows, cols)?;
        ensure!(
            backend.shape(&device) == (rows, cols),
            "zeros({rows}, {cols}) has another shape"
        );
        same_bits(
            "zeros",
            &backend.download(&device)?,
            &Array2::zeros((rows, cols)),
        )?;
    }
    Ok(())
}

fn copy<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let host = Random::new(3).integers(9, 14, 9);
    let mut first = backend.upload(host.view())?;
    let mut second = backend.copy(&first)?;
    let one = backend.upload(Array2::ones((9, 14)).view())?;
    backend.combine(&mut first, 1.0, &one, 1.0)?;
    same_bits(
        "the copy after a change of its source",
        &backend.download(&second)?,
        &host,
    )?;
    let changed = &host + 1.0;
    backend.combine(&mut second, 1.0, &one, -1.0)?;
    same_bits(
        "the source after a change of its copy",
        &backend.download(&first)?,
        &changed,
    )
}

fn masks<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let mut random = Random::new(4);
    for (rows, cols) in SHAPES {
        let host = random.mask(rows, cols, 40);
        let device = backend.upload_mask(host.view())?;
        equal("mask", &backend.download_mask(&device)?, &host)?;
    }
    let host = random.mask(10, 21, 50);
    let device = backend.upload_mask(host.t())?;
    equal(
        "transposed mask",
        &backend.download_mask(&device)?,
        &host.t().to_owned(),
    )
}

fn a_thousand_allocations<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let host = Random::new(5).matrix(64, 65);
    let mask = host.mapv(|value| value > 0.0);
    for _ in 0..1000 {
        let matrix = backend.upload(host.view())?;
        drop((
            backend.zeros(65, 64)?,
            backend.copy(&matrix)?,
            backend.upload_mask(mask.view())?,
        ));
    }
    backend.synchronize()?;
    let device = backend.upload(host.view())?;
    same_bits(
        "a matrix after a thousand others",
        &backend.download(&device)?,
        &host,
    )
}

fn diagonal<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let mut random = Random::new(6);
    for cols in [1, 2, 31, 129] {
        let host = random.matrix(cols, cols);
        let device = backend.upload(host.view())?;
        let found = backend.diagonal(&device)?;
        ensure!(
            found == host.diag().to_vec(),
            "diagonal of a {cols} x {cols} matrix is wrong: {found:?}"
        );
    }
    Ok(())
}

fn fork<B: Backend>(subject: &Subject<B>) -> Verdict {
    let backend = subject.backend();
    let fork = backend.fork()?;
    ensure!(
        fork.info() == backend.info(),
        "the fork describes itself as {:?}, its origin as {:?}",
        fork.info(),
        backend.info()
    );
    let (a, b) = (Random::new(7).matrix(33, 40), Random::new(8).matrix(40, 21));
    let product = |backend: &B| -> Verdict<Array2<f32>> {
        let (a, b) = (backend.upload(a.view())?, backend.upload(b.view())?);
        let mut c = backend.zeros(33, 21)?;
        backend.gemm(Gemm::new(
            (&mut c, 0..21),
            1.0,
            (&a, 0..40),
            (&b, 0..40, 0..21),
        ))?;
        Ok(backend.download(&c)?)
    };
    let expected = product(backend)?;
    same_bits("a product on the fork", &product(&fork)?, &expected)?;
    fork.synchronize()?;
    backend.synchronize()?;
    drop(fork);
    same_bits(
        "a product after the fork is gone",
        &product(backend)?,
        &expected,
    )?;
    let grandchild = backend.fork()?.fork()?;
    same_bits(
        "a product on a fork of a dropped fork",
        &product(&grandchild)?,
        &expected,
    )
}
