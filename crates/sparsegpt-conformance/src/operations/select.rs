//! The choice of the weights to prune.

use std::ops::Range;

use sparsegpt::backend::{Backend, Select, SelectRule, host};
use sparsegpt::ndarray::{Array2, s};

use crate::check::{Cases, Subject, Verdict, ensure, equal};
use crate::random::Random;
use crate::tolerance::SALIENCY;

/// Rows, columns of the matrix, and the range to choose among.
const SHAPES: [(usize, usize, Range<usize>); 8] = [
    (1, 1, 0..1),
    (1, 12, 0..12),
    (5, 1, 0..1),
    (5, 40, 7..8),
    (17, 30, 3..23),
    (16, 128, 0..128),
    (40, 200, 128..200),
    (33, 300, 10..290),
];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    for (name, constraints) in [
        (
            "free",
            Constraints {
                forced: 0,
                protected: 0,
            },
        ),
        (
            "forced",
            Constraints {
                forced: 20,
                protected: 0,
            },
        ),
        (
            "protected",
            Constraints {
                forced: 0,
                protected: 30,
            },
        ),
        (
            "forced_and_protected",
            Constraints {
                forced: 15,
                protected: 30,
            },
        ),
        (
            "almost_all_protected",
            Constraints {
                forced: 2,
                protected: 95,
            },
        ),
    ] {
        cases.add(format!("operations/select/ties/{name}"), move |subject| {
            ties(subject.backend(), constraints)
        });
        cases.add(format!("operations/select/random/{name}"), move |subject| {
            random_weights(subject.backend(), constraints)
        });
    }
    cases.add("operations/select/same_bits_twice", same_bits_twice);
}

/// Per cent of the weights.
#[derive(Clone, Copy)]
struct Constraints {
    forced: usize,
    protected: usize,
}

impl Constraints {
    /// Masks for forced and protected weights, no weight in both.
    fn masks(
        self,
        random: &mut Random,
        rows: usize,
        width: usize,
    ) -> (Option<Array2<bool>>, Option<Array2<bool>>) {
        let forced = random.mask(rows, width, self.forced);
        let mut protected = random.mask(rows, width, self.protected);
        protected.zip_mut_with(&forced, |protected, &forced| *protected &= !forced);
        (
            (self.forced > 0).then_some(forced),
            (self.protected > 0).then_some(protected),
        )
    }
}

/// Everything a choice depends on.
struct Choice<'a> {
    weights: &'a Array2<f32>,
    scales: &'a Array2<f32>,
    columns: Range<usize>,
    rule: SelectRule<'a>,
    forced: Option<&'a Array2<bool>>,
    protected: Option<&'a Array2<bool>>,
}

impl Choice<'_> {
    fn on<B: Backend>(&self, backend: &B) -> Verdict<Array2<bool>> {
        let upload = |mask: Option<&Array2<bool>>| {
            mask.map(|mask| backend.upload_mask(mask.view()))
                .transpose()
        };
        let (weights, scales) = (
            backend.upload(self.weights.view())?,
            backend.upload(self.scales.view())?,
        );
        let (forced, protected) = (upload(self.forced)?, upload(self.protected)?);
        let select = Select::new(&weights, &scales, self.columns.clone(), self.rule)
            .constrained(forced.as_ref(), protected.as_ref());
        Ok(backend.download_mask(&backend.select(select)?)?)
    }

    fn on_host(&self) -> Array2<bool> {
        host::select(
            self.weights.slice(s![.., self.columns.clone()]),
            self.scales.slice(s![0, self.columns.clone()]),
            self.rule,
            self.forced.map(|mask| mask.view()),
            self.protected.map(|mask| mask.view()),
        )
    }

    /// Counts exactly, never a protected weight, forced ones first, then no weight before one that is clearly
    /// less salient.
    fn check(&self, mask: &Array2<bool>) -> Verdict {
        let (rows, width) = (self.weights.nrows(), self.columns.len());
        ensure!(
            mask.dim() == (rows, width),
            "the mask is {:?}, expected {rows} x {width}",
            mask.dim()
        );
        let all = |rows: Range<usize>, columns: Range<usize>| {
            rows.flat_map(move |row| columns.clone().map(move |col| (row, col)))
                .collect::<Vec<_>>()
        };
        match self.rule {
            SelectRule::Lowest { count } => self.check_set(mask, &all(0..rows, 0..width), count),
            SelectRule::LowestPerRow { counts } => (0..rows).try_for_each(|row| {
                self.check_set(mask, &all(row..row + 1, 0..width), counts[row])
            }),
            SelectRule::NofM { zeros, group } => (0..rows).try_for_each(|row| {
                (0..width).step_by(group).try_for_each(|start| {
                    self.check_set(mask, &all(row..row + 1, start..start + group), zeros)
                })
            }),
            _ => Ok(()),
        }
    }

    fn check_set(&self, mask: &Array2<bool>, set: &[(usize, usize)], count: usize) -> Verdict {
        let marked = |of: Option<&Array2<bool>>, at| of.is_some_and(|of| of[at]);
        let (protected, free): (Vec<_>, Vec<_>) =
            set.iter().partition(|&&at| marked(self.protected, at));
        let chosen: Vec<(usize, usize)> = set.iter().copied().filter(|&at| mask[at]).collect();
        let expected = count.min(free.len());
        ensure!(
            chosen.len() == expected,
            "{:?} from {} weights: {} chosen, expected {expected}",
            self.rule,
            set.len(),
            chosen.len()
        );
        if let Some(at) = protected.iter().find(|&&at| mask[at]) {
            ensure!(
                false,
                "{:?}: the protected weight {at:?} is chosen",
                self.rule
            );
        }
        let saliency = |at: (usize, usize)| {
            let (row, col) = (at.0, at.1 + self.columns.start);
            f64::from(self.weights[[row, col]]).abs() / f64::from(self.scales[[0, col]])
        };
        let key = |at| (!marked(self.forced, at), saliency(at));
        let largest = chosen
            .iter()
            .map(|&at| (key(at), at))
            .reduce(|a, b| if a.0 > b.0 { a } else { b });
        let smallest = free
            .iter()
            .filter(|&&at| !mask[at])
            .map(|&at| (key(at), at))
            .reduce(|a, b| if a.0 < b.0 { a } else { b });
        if let (Some((chosen, at)), Some((left, left_at))) = (largest, smallest) {
            let before = (!chosen.0 && left.0)
                || chosen.0 == left.0 && chosen.1 <= left.1 + SALIENCY.bound(left.1);
            ensure!(
                before,
                "{:?}: {at:?} (free, saliency: {chosen:?}) is chosen before {left_at:?} ({left:?})",
                self.rule
            );
        }
        Ok(())
    }
}

/// Runs a check for each rule that fits a width.
fn each_rule(
    random: &mut Random,
    rows: usize,
    width: usize,
    mut check: impl FnMut(SelectRule<'_>) -> Verdict,
) -> Verdict {
    let all = rows * width;
    for count in [0, 1, all / 3, all / 2, all - 1, all] {
        check(SelectRule::Lowest { count })?;
    }
    let counts: Vec<usize> = (0..rows).map(|_| random.below(width + 1)).collect();
    check(SelectRule::LowestPerRow { counts: &counts })?;
    check(SelectRule::LowestPerRow {
        counts: &vec![width / 2; rows],
    })?;
    for (zeros, group) in [
        (0, 1),
        (1, 1),
        (1, 2),
        (2, 4),
        (4, 4),
        (4, 8),
        (2, 3),
        (3, 5),
        (3, 7),
        (9, 20),
        (40, 72),
    ] {
        if width.is_multiple_of(group) {
            check(SelectRule::NofM { zeros, group })?;
        }
    }
    check(SelectRule::NofM {
        zeros: width / 2,
        group: width,
    })
}

/// Few different saliencies, all exact in f32: the order of ties (column, then row) decides, and the host
/// implementation must be met exactly.
fn ties<B: Backend>(backend: &B, constraints: Constraints) -> Verdict {
    let mut random = Random::new(30);
    for (rows, cols, columns) in SHAPES {
        let mut weights = random.integers(rows, cols, 3);
        // −0 is as small as 0.
        weights.mapv_inplace(|w| {
            if w == 0.0 && random.below(2) == 0 {
                -0.0
            } else {
                w
            }
        });
        let scales = Array2::from_shape_simple_fn((1, cols), || [0.5, 1.0, 2.0][random.below(3)]);
        let (forced, protected) = constraints.masks(&mut random, rows, columns.len());
        each_rule(&mut random, rows, columns.len(), |rule| {
            let choice = Choice {
                weights: &weights,
                scales: &scales,
                columns: columns.clone(),
                rule,
                forced: forced.as_ref(),
                protected: protected.as_ref(),
            };
            let mask = choice.on(backend)?;
            choice.check(&mask)?;
            equal(
                format_args!("{rule:?} among columns {columns:?} of {rows} x {cols}, with ties"),
                &mask,
                &choice.on_host(),
            )
        })?;
    }
    Ok(())
}

fn random_weights<B: Backend>(backend: &B, constraints: Constraints) -> Verdict {
    let mut random = Random::new(31);
    for (rows, cols, columns) in SHAPES {
        let weights = random.matrix(rows, cols);
        let scales = Array2::from_shape_simple_fn((1, cols), || 1.1 + random.uniform());
        let (forced, protected) = constraints.masks(&mut random, rows, columns.len());
        each_rule(&mut random, rows, columns.len(), |rule| {
            let choice = Choice {
                weights: &weights,
                scales: &scales,
                columns: columns.clone(),
                rule,
                forced: forced.as_ref(),
                protected: protected.as_ref(),
            };
            choice.check(&choice.on(backend)?)
        })?;
    }
    Ok(())
}

fn same_bits_twice<B: Backend>(subject: &Subject<B>) -> Verdict {
    let mut random = Random::new(32);
    let weights = random.integers(64, 128, 2);
    let scales = Array2::ones((1, 128));
    let choice = Choice {
        weights: &weights,
        scales: &scales,
        columns: 0..128,
        rule: SelectRule::Lowest { count: 4000 },
        forced: None,
        protected: None,
    };
    let first = choice.on(subject.backend())?;
    equal(
        "the same choice again",
        &choice.on(subject.backend())?,
        &first,
    )
}
