//! Shapes that take paths through the kernels which the conformance suite's do not: several blocks of rows with groups of
//! N:M across all registers of a lane, several long groups in a row, more rows than slices. Numbers are exact, so that
//! the host implementation must be met bit by bit.

#![allow(clippy::unwrap_used)]

use crate::emulated::Emulated;
use ndarray::{Array2, s};
use sparsegpt::UniformGrid;
use sparsegpt::backend::{
    Backend, FitGrid, GridKind, GridRef, Host, PruneRef, Select, SelectRule, UpdateRows,
};
use sparsegpt_cuda::CudaBackend;

/// Multiples of 1/4 between -2 and 2, each often.
fn quarters(rows: usize, cols: usize, seed: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(row, col)| {
        let mixed = (row * 7919 + col * 104_729 + seed * 31)
            .wrapping_mul(2_654_435_761)
            .rotate_right(13);
        (mixed % 17) as f32 / 4.0 - 2.0
    })
}

/// A word less a weight, whole words, a weight more; more words than a block has threads; nothing at all.
#[test]
fn masks_come_back_as_they_went() {
    let backend = CudaBackend::new(Emulated::new());
    for (rows, cols) in [
        (0, 5),
        (1, 1),
        (1, 31),
        (4, 8),
        (3, 11),
        (2, 32),
        (5, 13),
        (128, 64),
        (70, 119),
    ] {
        let mask = quarters(rows, cols, rows).mapv(|value| value < 0.0);
        let on_device = backend.upload_mask(mask.view()).unwrap();
        let found = backend.download_mask(&on_device).unwrap();
        assert_eq!(found, mask, "{rows} x {cols}");
    }
}

fn chosen<B: Backend>(backend: &B, weights: &Array2<f32>, rule: SelectRule<'_>) -> Array2<bool> {
    let device = backend.upload(weights.view()).unwrap();
    let scales = Array2::from_shape_fn(
        (1, weights.ncols()),
        |(_, col)| {
            if col % 3 == 0 { 1.0 } else { 0.5 }
        },
    );
    let scales = backend.upload(scales.view()).unwrap();
    let columns = 0..weights.ncols();
    let mask = backend
        .select(Select::new(&device, &scales, columns, rule))
        .unwrap();
    backend.download_mask(&mask).unwrap()
}

#[test]
fn groups_and_rows_longer_than_a_block_has_threads() {
    let weights = quarters(3, 1200, 1);
    let emulator = CudaBackend::new(Emulated::new());
    for rule in [
        // Positions of more than one digit, several columns a thread.
        SelectRule::LowestPerRow {
            counts: &[0, 1200, 577],
        },
        // Four groups in a row, too large for a thread a weight.
        SelectRule::NofM {
            zeros: 111,
            group: 300,
        },
        // The largest that is not, and one that leaves threads without a weight.
        SelectRule::NofM {
            zeros: 77,
            group: 240,
        },
        SelectRule::Lowest { count: 1801 },
    ] {
        assert_eq!(
            chosen(&emulator, &weights, rule),
            chosen(&Host, &weights, rule),
            "{rule:?}"
        );
    }
}

#[test]
fn a_tie_that_only_the_last_digit_of_the_position_decides() {
    let weights = Array2::from_elem((70, 129), -0.5);
    let emulator = CudaBackend::new(Emulated::new());
    for count in [1, 4515, 9029] {
        let rule = SelectRule::Lowest { count };
        assert_eq!(
            chosen(&emulator, &weights, rule),
            chosen(&Host, &weights, rule),
            "{rule:?}"
        );
    }
}

#[test]
fn one_grid_for_more_rows_than_slices() {
    let weights = quarters(1500, 3, 2);
    let fit = |mse: bool| {
        let grid = UniformGrid::new(3).unwrap().with_mse(mse);
        let emulator = CudaBackend::new(Emulated::new());
        let device = emulator.upload(weights.view()).unwrap();
        let (mut scale, mut zero) = (
            emulator.zeros(1500, 1).unwrap(),
            emulator.zeros(1500, 1).unwrap(),
        );
        emulator
            .fit_grid(FitGrid::new(
                &device,
                1..3,
                &grid,
                true,
                (&mut scale, &mut zero),
                0,
            ))
            .unwrap();
        let expected = grid.fit(weights.slice(s![.., 1..3]), true);
        let found = (
            emulator.download(&scale).unwrap(),
            emulator.download(&zero).unwrap(),
        );
        (found, expected)
    };
    for mse in [false, true] {
        let ((scale, zero), expected) = fit(mse);
        assert_eq!(scale.column(0), expected.scale, "range search: {mse}");
        assert_eq!(zero.column(0), expected.zero, "range search: {mse}");
    }
}

/// Weights, errors, losses and mask after a sweep of the columns 2 .. 130 of a layer.
fn swept<B: Backend>(
    backend: &B,
    prune: (usize, usize),
    kind: Option<GridKind<'_>>,
) -> [Array2<f32>; 4] {
    let (rows, cols) = (65, 131);
    // Short chains of links by halves: nothing is rounded.
    let factor = Array2::from_shape_fn((cols, cols), |(i, j)| match j.checked_sub(i) {
        Some(0) => 1.0,
        Some(1) if i % 8 == 0 => 0.5,
        Some(40) => -0.5,
        Some(_) => 0.0,
        None => 1e30,
    });
    let factor = backend.upload(factor.view()).unwrap();
    let mut weights = backend.upload(quarters(rows, cols, 3).view()).unwrap();
    let mut errors = backend.zeros(rows, 128).unwrap();
    let mut losses = backend.zeros(rows, 1).unwrap();
    let scale = backend
        .upload(Array2::from_elem((rows, 4), 0.5).view())
        .unwrap();
    let zero = quarters(rows, 4, 4).mapv(|zero| (zero + 4.0).round());
    let zero = backend.upload(zero.view()).unwrap();
    let groups: Vec<usize> = (0..128).map(|j| (j / 5) % 4).collect();
    let mask = backend
        .update_rows(
            UpdateRows::new(&mut weights, &factor, (&mut errors, 0), &mut losses, 2..130)
                .pruning(PruneRef::NofM {
                    zeros: prune.0,
                    group: prune.1,
                })
                .rounding(kind.map(|kind| GridRef::new(kind, &scale, &zero, &groups))),
        )
        .unwrap();
    let mask = backend.download_mask(&mask.unwrap()).unwrap();
    [
        backend.download(&weights).unwrap(),
        backend.download(&errors).unwrap(),
        backend.download(&losses).unwrap(),
        mask.mapv(|pruned| f32::from(u8::from(pruned))),
    ]
}

#[test]
fn groups_of_every_reach() {
    let emulator = CudaBackend::new(Emulated::new());
    let levels = [-2.0, -0.5, 0.0, 0.25, 1.5];
    for prune in [(1, 2), (3, 64), (31, 32), (50, 128), (128, 128)] {
        for kind in [
            None,
            Some(GridKind::Affine { max_code: 7 }),
            Some(GridKind::Codebook { levels: &levels }),
            Some(GridKind::Codebook { levels: &[0.5] }),
        ] {
            let (found, expected) = (swept(&emulator, prune, kind), swept(&Host, prune, kind));
            for (what, (found, expected)) in ["weights", "errors", "losses", "mask"]
                .iter()
                .zip(found.iter().zip(&expected))
            {
                assert_eq!(found, expected, "{what} for {prune:?}, {kind:?}");
            }
        }
    }
}
