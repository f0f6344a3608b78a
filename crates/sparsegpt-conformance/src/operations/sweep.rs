//! The fused sweep.
//!
//! Random cases are replayed in f64: at every column the decision that the backend took (the value it left, the mask it
//! returned) must be right for the exact weights up to rounding, and is then followed. A weight between two
//! levels, or two weights of nearly equal saliency, can so go either way without hiding or faking an error
//! further on. Cases of whole numbers have no rounding at all and must meet the host implementation exactly.

use std::ops::Range;

use sparsegpt::backend::{Backend, GridKind, GridRef, PruneRef, UpdateRows, host};
use sparsegpt::ndarray::{Array2, s};

use crate::check::{Cases, Subject, Verdict, close, ensure, equal, same_bits};
use crate::random::Random;
use crate::tolerance::{SALIENCY, SWEEP};
use crate::truth;

/// Rows, columns of the layer, the range of the sweep, and the column of the errors where it starts.
const SHAPES: [(usize, usize, Range<usize>, usize); 8] = [
    (1, 1, 0..1, 0),
    (1, 128, 0..128, 0),
    (5, 12, 0..12, 3),
    (16, 150, 20..148, 0),
    (17, 140, 7..134, 1),
    (40, 64, 63..64, 5),
    (33, 96, 24..72, 24),
    (50, 210, 84..210, 0),
];

/// Of both signs and asymmetric.
const CODEBOOK: [f32; 7] = [-1.0, -0.55, -0.2, 0.0, 0.25, 0.6, 1.3];

/// Multiples of 1/4: weights of [`exact_numbers`] lie exactly on levels and exactly half-way.
const EXACT_CODEBOOK: [f32; 6] = [-2.0, -1.0, -0.5, 0.0, 0.25, 1.5];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add(
        "operations/update_rows/nothing_to_do_is_the_identity",
        identity,
    );
    let grids = [
        ("", Levels::None),
        ("_affine", Levels::Affine),
        ("_codebook", Levels::Codebook),
    ];
    for (suffix, levels) in grids {
        for (name, prune) in [
            ("keep", Prune::Keep),
            (
                "fixed_mask",
                Prune::Fixed {
                    percent: 50,
                    offset: 0,
                },
            ),
            (
                "fixed_mask_offset",
                Prune::Fixed {
                    percent: 50,
                    offset: 13,
                },
            ),
            ("1_of_1", Prune::NofM { zeros: 1, group: 1 }),
            ("1_of_2", Prune::NofM { zeros: 1, group: 2 }),
            ("2_of_4", Prune::NofM { zeros: 2, group: 4 }),
            ("3_of_7", Prune::NofM { zeros: 3, group: 7 }),
            ("4_of_8", Prune::NofM { zeros: 4, group: 8 }),
            ("0_of_3", Prune::NofM { zeros: 0, group: 3 }),
            (
                "10_of_126",
                Prune::NofM {
                    zeros: 10,
                    group: 126,
                },
            ),
        ] {
            cases.add(
                format!("operations/update_rows/random/{name}{suffix}"),
                move |subject| random_weights(subject.backend(), prune, levels),
            );
            cases.add(
                format!("operations/update_rows/exact/{name}{suffix}"),
                move |subject| exact_numbers(subject.backend(), prune, levels),
            );
        }
    }
    cases.add("operations/update_rows/same_bits_twice", same_bits_twice);
}

#[derive(Clone, Copy)]
enum Prune {
    Keep,
    Fixed { percent: usize, offset: usize },
    NofM { zeros: usize, group: usize },
}

#[derive(Clone, Copy)]
enum Levels {
    None,
    Affine,
    Codebook,
}

/// Everything on the host.
struct Sweep {
    weights: Array2<f32>,
    factor: Array2<f32>,
    errors: Array2<f32>,
    error_offset: usize,
    losses: Array2<f32>,
    columns: Range<usize>,
    prune: Prune,
    /// Of the fixed mask.
    mask: Array2<bool>,
    levels: Levels,
    max_code: u32,
    codebook: &'static [f32],
    scale: Array2<f32>,
    zero: Array2<f32>,
    groups: Vec<usize>,
}

/// What a sweep leaves.
struct Outcome {
    weights: Array2<f32>,
    errors: Array2<f32>,
    losses: Array2<f32>,
    mask: Option<Array2<bool>>,
}

impl Sweep {
    fn kind(&self) -> Option<GridKind<'static>> {
        match self.levels {
            Levels::None => None,
            Levels::Affine => Some(GridKind::Affine {
                max_code: self.max_code,
            }),
            Levels::Codebook => Some(GridKind::Codebook {
                levels: self.codebook,
            }),
        }
    }

    fn on<B: Backend>(&self, backend: &B) -> Verdict<Outcome> {
        let mut weights = backend.upload(self.weights.view())?;
        let factor = backend.upload(self.factor.view())?;
        let mut errors = backend.upload(self.errors.view())?;
        let mut losses = backend.upload(self.losses.view())?;
        let mask = backend.upload_mask(self.mask.view())?;
        let (scale, zero) = (
            backend.upload(self.scale.view())?,
            backend.upload(self.zero.view())?,
        );
        let prune = match self.prune {
            Prune::Keep => PruneRef::Keep,
            Prune::Fixed { offset, .. } => PruneRef::Fixed {
                mask: &mask,
                offset,
            },
            Prune::NofM { zeros, group } => PruneRef::NofM { zeros, group },
        };
        let grid = self
            .kind()
            .map(|kind| GridRef::new(kind, &scale, &zero, &self.groups));
        let chosen = backend.update_rows(
            UpdateRows::new(
                &mut weights,
                &factor,
                (&mut errors, self.error_offset),
                &mut losses,
                self.columns.clone(),
            )
            .pruning(prune)
            .rounding(grid),
        )?;
        Ok(Outcome {
            weights: backend.download(&weights)?,
            errors: backend.download(&errors)?,
            losses: backend.download(&losses)?,
            mask: chosen
                .map(|mask| backend.download_mask(&mask))
                .transpose()?,
        })
    }

    fn on_host(&self) -> Outcome {
        let (mut weights, mut errors, mut losses) = (
            self.weights.clone(),
            self.errors.clone(),
            self.losses.clone(),
        );
        let width = self.columns.len();
        let prune = match self.prune {
            Prune::Keep => host::SweepPrune::Keep,
            Prune::Fixed { offset, .. } => {
                host::SweepPrune::Fixed(self.mask.slice(s![.., offset..offset + width]))
            }
            Prune::NofM { zeros, group } => host::SweepPrune::NofM { zeros, group },
        };
        let mask = host::update_rows(host::Sweep {
            weights: weights.slice_mut(s![.., self.columns.clone()]),
            factor: self
                .factor
                .slice(s![self.columns.clone(), self.columns.clone()]),
            errors: errors.slice_mut(s![.., self.error_offset..self.error_offset + width]),
            losses: losses.column_mut(0),
            prune,
            grid: self.kind().map(|kind| host::SweepGrid {
                kind,
                scale: self.scale.view(),
                zero: self.zero.view(),
                groups: &self.groups,
            }),
        });
        Outcome {
            weights,
            errors,
            losses,
            mask,
        }
    }

    /// What must hold whatever the rounding: nothing outside the range is written, a mask comes back for N:M
    /// and only there, pruned weights are zero.
    fn check_frame(&self, outcome: &Outcome) -> Verdict {
        for ((row, col), value) in outcome.weights.indexed_iter() {
            ensure!(
                self.columns.contains(&col)
                    || value.to_bits() == self.weights[[row, col]].to_bits(),
                "weight ({row}, {col}) outside the columns {:?} was changed",
                self.columns
            );
        }
        let written = self.error_offset..self.error_offset + self.columns.len();
        for ((row, col), value) in outcome.errors.indexed_iter() {
            ensure!(
                written.contains(&col) || value.to_bits() == self.errors[[row, col]].to_bits(),
                "error ({row}, {col}) outside the columns {written:?} was changed"
            );
        }
        let in_flight = matches!(self.prune, Prune::NofM { .. });
        ensure!(
            outcome.mask.is_some() == in_flight,
            "a mask must come back for N:M and only there; came back: {}",
            outcome.mask.is_some()
        );
        if let Some(mask) = &outcome.mask {
            let expected = (self.weights.nrows(), self.columns.len());
            ensure!(
                mask.dim() == expected,
                "the mask is {:?}, expected {expected:?}",
                mask.dim()
            );
        }
        Ok(())
    }

    /// Follows the backend's decisions in f64 and checks each of them.
    fn check_replayed(&self, outcome: &Outcome) -> Verdict {
        self.check_frame(outcome)?;
        let width = self.columns.len();
        let first = self.columns.start;
        let r = truth::widen(
            self.factor
                .slice(s![self.columns.clone(), self.columns.clone()]),
        );
        for row in 0..self.weights.nrows() {
            let before = self.weights.slice(s![row, self.columns.clone()]);
            let mut w: Vec<f64> = before.iter().map(|&w| f64::from(w)).collect();
            let mut size: Vec<f64> = w.iter().map(|w| w.abs()).collect();
            let (mut loss, mut loss_size) = (f64::from(self.losses[[row, 0]]), 0.0);
            for j in 0..width {
                let at = format!("row {row}, column {j} of the sweep");
                if let (Prune::NofM { zeros, group }, Some(mask)) = (self.prune, &outcome.mask)
                    && j % group == 0
                {
                    let scored: Vec<(f64, f64, bool)> = (j..j + group)
                        .map(|k| {
                            let slack =
                                (SWEEP.bound(size[k]) + SALIENCY.bound(w[k].abs())) / r[[k, k]];
                            (w[k].abs() / r[[k, k]], slack, mask[[row, k]])
                        })
                        .collect();
                    check_group(&at, &scored, zeros)?;
                }
                let pruned = match (self.prune, &outcome.mask) {
                    (Prune::Fixed { offset, .. }, _) => self.mask[[row, offset + j]],
                    (_, Some(mask)) => mask[[row, j]],
                    _ => false,
                };
                let left = outcome.weights[[row, first + j]];
                if pruned {
                    ensure!(left == 0.0, "{at}: pruned, but {left} is left");
                } else if let Some(kind) = self.kind() {
                    self.check_level(&at, kind, row, j, (w[j], SWEEP.bound(size[j])), left)?;
                } else {
                    close(
                        format_args!("{at}: the weight"),
                        f64::from(left),
                        w[j],
                        size[j],
                        &SWEEP,
                    )?;
                }
                // Without a decision nothing is left over.
                let decided = pruned || self.kind().is_some();
                let e = if decided {
                    (w[j] - f64::from(left)) / r[[j, j]]
                } else {
                    0.0
                };
                let found = f64::from(outcome.errors[[row, self.error_offset + j]]);
                let e_size = (size[j] + f64::from(left).abs()) / r[[j, j]];
                close(format_args!("{at}: the error"), found, e, e_size, &SWEEP)?;
                loss += e * e;
                loss_size += e_size * e_size;
                for k in j + 1..width {
                    w[k] -= e * r[[j, k]];
                    size[k] += (e * r[[j, k]]).abs();
                }
            }
            let found = f64::from(outcome.losses[[row, 0]]);
            let size = loss_size + f64::from(self.losses[[row, 0]]).abs();
            close(
                format_args!("row {row}: the loss"),
                found,
                loss,
                size,
                &SWEEP,
            )?;
        }
        Ok(())
    }

    /// `left` must be a level of the grid, and none may be clearly nearer to `w`.
    fn check_level(
        &self,
        at: &str,
        kind: GridKind<'_>,
        row: usize,
        column: usize,
        (w, slack): (f64, f64),
        left: f32,
    ) -> Verdict {
        let group = self.groups[column];
        let (scale, zero) = (self.scale[[row, group]], self.zero[[row, group]]);
        let levels: Vec<f32> = match kind {
            GridKind::Affine { max_code } => (0..=max_code)
                .map(|code| (code as f32 - zero) * scale)
                .collect(),
            GridKind::Codebook { levels } => levels.iter().map(|level| scale * level).collect(),
            _ => Vec::new(),
        };
        ensure!(
            levels.contains(&left),
            "{at}: {left} is no level of the grid {levels:?}"
        );
        let distance = |level: f32| (f64::from(level) - w).abs();
        let nearest = levels
            .iter()
            .fold(f64::INFINITY, |least, &level| least.min(distance(level)));
        ensure!(
            distance(left) <= nearest + 2.0 * slack,
            "{at}: {left} is left of {w}, the nearest level is {nearest:e} away"
        );
        Ok(())
    }
}

/// Of (saliency, slack, chosen): `zeros` are chosen, and none of them is clearly more salient than one that is not.
fn check_group(at: &str, scored: &[(f64, f64, bool)], zeros: usize) -> Verdict {
    let count = scored.iter().filter(|(_, _, chosen)| *chosen).count();
    ensure!(
        count == zeros,
        "{at}: {count} weights of the group are pruned, expected {zeros}"
    );
    for &(saliency, slack, _) in scored.iter().filter(|(_, _, chosen)| *chosen) {
        for &(other, other_slack, _) in scored.iter().filter(|(_, _, chosen)| !*chosen) {
            ensure!(
                saliency <= other + slack + other_slack,
                "{at}: saliency {saliency} is pruned before {other}: {scored:?}"
            );
        }
    }
    Ok(())
}

/// The range, shortened to whole groups.
fn whole_groups(columns: &Range<usize>, prune: Prune) -> Option<Range<usize>> {
    let group = match prune {
        Prune::NofM { group, .. } => group,
        _ => 1,
    };
    let width = columns.len() / group * group;
    (width > 0).then_some(columns.start..columns.start + width)
}

/// Upper triangle from `entry`, garbage below it.
fn factor(
    random: &mut Random,
    cols: usize,
    mut entry: impl FnMut(&mut Random, bool) -> f32,
) -> Array2<f32> {
    Array2::from_shape_fn((cols, cols), |(i, j)| match i.cmp(&j) {
        std::cmp::Ordering::Greater => random.garbage(),
        order => entry(random, order.is_eq()),
    })
}

/// Three groups of uneven width, not in ascending order, as act-order leaves them.
fn groups(width: usize) -> Vec<usize> {
    (0..width).map(|j| [2, 0, 1, 0][4 * j / width]).collect()
}

fn fixed_mask(random: &mut Random, rows: usize, width: usize, prune: Prune) -> Array2<bool> {
    match prune {
        Prune::Fixed { percent, offset } => random.mask(rows, width + offset + 2, percent),
        _ => Array2::from_elem((1, 1), false),
    }
}

fn random_weights<B: Backend>(backend: &B, prune: Prune, levels: Levels) -> Verdict {
    let mut random = Random::new(50);
    for (rows, cols, columns, error_offset) in SHAPES {
        let Some(columns) = whole_groups(&columns, prune) else {
            continue;
        };
        let width = columns.len();
        let factor = factor(&mut random, cols, |random, on_diagonal| {
            if on_diagonal {
                1.0 + 0.5 * random.uniform()
            } else {
                0.1 * random.uniform()
            }
        });
        let sweep = Sweep {
            weights: random.matrix(rows, cols),
            factor,
            errors: random.matrix(rows, error_offset + width + 2),
            error_offset,
            losses: random.matrix(rows, 1),
            mask: fixed_mask(&mut random, rows, width, prune),
            groups: groups(width),
            columns,
            prune,
            levels,
            max_code: 15,
            codebook: &CODEBOOK,
            scale: random.matrix(rows, 3).mapv(|s| 0.2 + 0.05 * s),
            zero: random.integers(rows, 3, 4).mapv(|zero| zero + 7.0),
        };
        sweep.check_replayed(&sweep.on(backend)?)?;
    }
    Ok(())
}

/// Weights, factor and scales are small multiples of powers of two, the diagonal of R is one: no operation
/// rounds, ties are ties, and half-way values are exactly half-way.
fn exact_numbers<B: Backend>(backend: &B, prune: Prune, levels: Levels) -> Verdict {
    let mut random = Random::new(51);
    for (rows, cols, columns, error_offset) in SHAPES {
        let Some(columns) = whole_groups(&columns, prune) else {
            continue;
        };
        let width = columns.len();
        // R links each column to few others, so that numbers stay small.
        let factor = factor(&mut random, cols, |random, on_diagonal| {
            if on_diagonal {
                1.0
            } else {
                [0.5, -0.5, 1.0][random.below(3)] * f32::from(u8::from(random.below(cols) < 2))
            }
        });
        let sweep = Sweep {
            weights: random.integers(rows, cols, 8).mapv(|w| w * 0.25),
            factor,
            errors: random.integers(rows, error_offset + width + 2, 5),
            error_offset,
            losses: random.integers(rows, 1, 5),
            mask: fixed_mask(&mut random, rows, width, prune),
            groups: groups(width),
            columns,
            prune,
            levels,
            max_code: 7,
            codebook: &EXACT_CODEBOOK,
            scale: random
                .mask(rows, 3, 50)
                .mapv(|large| if large { 1.0 } else { 0.5 }),
            zero: random.integers(rows, 3, 2).mapv(|zero| zero + 3.0),
        };
        let (found, expected) = (sweep.on(backend)?, sweep.on_host());
        sweep.check_frame(&found)?;
        if let (Some(found), Some(expected)) = (&found.mask, &expected.mask) {
            equal("the mask of an exact sweep", found, expected)?;
        }
        equal(
            "the weights of an exact sweep",
            &found.weights,
            &expected.weights,
        )?;
        equal(
            "the errors of an exact sweep",
            &found.errors,
            &expected.errors,
        )?;
        equal(
            "the losses of an exact sweep",
            &found.losses,
            &expected.losses,
        )?;
    }
    Ok(())
}

fn identity<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(52);
    for (rows, cols, columns, error_offset) in SHAPES {
        let width = columns.len();
        let factor = factor(&mut random, cols, |random, _| 1.5 + random.uniform());
        let sweep = Sweep {
            weights: random.matrix(rows, cols),
            factor,
            errors: random.matrix(rows, error_offset + width),
            error_offset,
            losses: random.matrix(rows, 1),
            mask: Array2::from_elem((1, 1), false),
            groups: groups(width),
            columns,
            prune: Prune::Keep,
            levels: Levels::None,
            max_code: 15,
            codebook: &CODEBOOK,
            scale: Array2::ones((rows, 3)),
            zero: Array2::zeros((rows, 3)),
        };
        let outcome = sweep.on(subject.backend())?;
        sweep.check_frame(&outcome)?;
        same_bits("weights", &outcome.weights, &sweep.weights)?;
        same_bits("losses", &outcome.losses, &sweep.losses)?;
        let written = outcome.errors.slice(s![.., error_offset..]);
        ensure!(
            written.iter().all(|&error| error == 0.0),
            "errors must be zero: {written:?}"
        );
    }
    Ok(())
}

fn same_bits_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(53);
    let sweep = Sweep {
        weights: random.matrix(50, 128),
        factor: factor(&mut random, 128, |random, on_diagonal| {
            if on_diagonal {
                1.0
            } else {
                0.1 * random.uniform()
            }
        }),
        errors: Array2::zeros((50, 128)),
        error_offset: 0,
        losses: Array2::zeros((50, 1)),
        columns: 0..128,
        prune: Prune::NofM { zeros: 2, group: 4 },
        mask: Array2::from_elem((1, 1), false),
        levels: Levels::Affine,
        max_code: 15,
        codebook: &CODEBOOK,
        scale: Array2::from_elem((50, 3), 0.3),
        zero: Array2::from_elem((50, 3), 7.0),
        groups: groups(128),
    };
    let (first, again) = (sweep.on(subject.backend())?, sweep.on(subject.backend())?);
    same_bits(
        "weights of the same sweep again",
        &again.weights,
        &first.weights,
    )?;
    same_bits(
        "errors of the same sweep again",
        &again.errors,
        &first.errors,
    )?;
    same_bits(
        "losses of the same sweep again",
        &again.losses,
        &first.losses,
    )
}
