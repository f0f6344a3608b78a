//! Statistics of parts put together.

#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::Solver;
use sparsegpt::backend::Host;
use sparsegpt::ndarray::Array2;

#[test]
fn what_was_held_out_is_merged_too() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut sequence =
        || Array2::from_shape_simple_fn((7, 4), || random.random_range(-1.0..1.0_f32));
    let sequences: Vec<Array2<f32>> = (0..6).map(|_| sequence()).collect();
    let solver = Solver::new(Host);
    // Sequences that calibrate, and sequences that are held out.
    let of = |calibrate: &[usize], held_out: &[usize]| {
        let mut hessian = solver.hessian(4).unwrap();
        for &at in calibrate {
            hessian.update(sequences[at].view()).unwrap();
        }
        for &at in held_out {
            hessian.hold_out(sequences[at].view()).unwrap();
        }
        hessian
    };
    let whole = of(&[0, 1, 2], &[3, 4, 5]);
    for (mut one, other) in [
        (of(&[0, 1], &[3]), of(&[2], &[4, 5])),
        (of(&[0, 1, 2], &[]), of(&[], &[3, 4, 5])),
        (of(&[0, 1, 2], &[3, 4, 5]), of(&[], &[])),
    ] {
        one.merge(&other).unwrap();
        let parts = [
            (&one, &whole),
            (one.held_out().unwrap(), whole.held_out().unwrap()),
        ];
        for (found, expected) in parts {
            assert_eq!(found.sequences(), expected.sequences());
            assert_eq!(found.tokens(), expected.tokens());
            let difference = found.to_array().unwrap() - expected.to_array().unwrap();
            assert!(
                difference.iter().all(|entry| entry.abs() < 1e-5),
                "{difference}"
            );
        }
    }
}
