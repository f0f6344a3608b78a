//! Backends with one mistake each: the suite must catch every one of them.
#![allow(clippy::unwrap_used)]

use std::ops::Range;

use sparsegpt::Activations;
use sparsegpt::backend::{
    Adam, AdamPace, Backend, BackendInfo, FitGrid, Gemm, GridRef, Host, Operation, Precision,
    Project, PruneRef, Refit, Select, SelectRule, UpdateRows,
};
use sparsegpt::error::HostError;
use sparsegpt::ndarray::{Array2, ArrayView2, s};
use sparsegpt_conformance::check_matching;

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    UploadsTheTransposeOfStridedViews,
    ZerosAreNotCleared,
    GramIgnoresBeta,
    GramRoundsInputsLikeTf32,
    GramSkipsTheLastToken,
    FactorSpoilsTheLowerTriangle,
    FactorNamesAnotherColumn,
    FactorReadsTheStoredDiagonal,
    FactorIgnoresPrecision,
    FactorLeavesTheTriangleOnlyOnSuccess,
    SelectIgnoresProtected,
    SelectIgnoresForced,
    SelectTakesRowsFirstAmongTies,
    SelectOneTooMany,
    SelectIgnoresScales,
    GridForgetsTheGroup,
    GridForgetsZeroInTheRange,
    SweepIgnoresMaskOffset,
    SweepIgnoresErrorOffset,
    SweepUpdatesBeyondTheRange,
    SweepOverwritesLosses,
    SweepSkipsTheLastRow,
    SweepReadsZerosAsKept,
    SweepPerturbsScales,
    SweepUsesOneGroup,
    GemmIgnoresAlpha,
    GemmIgnoresRowOffset,
    EnergiesUseTheUpperTriangle,
    PermuteTakesTheInverse,
    CombineIgnoresAlpha,
    DiagonalIsShifted,
    NotDeterministic,
    FactorIgnoresBlocks,
    OpenBlockForgetsTheDenseWeights,
    CloseBlockTakesAllColumns,
    InverseHasOneTriangle,
    ProjectKeepsOldDuals,
    ProjectForgetsTheWeights,
    RefitIgnoresTheMask,
    RefitIgnoresTheDiagonal,
    RefitStopsTooEarly,
    AdamIgnoresTheMask,
    AdamForgetsTheScale,
    AdamStopsTooEarly,
}

/// Each with the cases that must catch it.
const FAULTS: [(Fault, &str); 44] = [
    (
        Fault::UploadsTheTransposeOfStridedViews,
        "operations/memory/",
    ),
    (Fault::ZerosAreNotCleared, "operations/memory/"),
    (Fault::GramIgnoresBeta, "operations/gram_update/"),
    (Fault::GramRoundsInputsLikeTf32, "operations/gram_update/"),
    (Fault::GramSkipsTheLastToken, "operations/gram_update/"),
    (
        Fault::FactorSpoilsTheLowerTriangle,
        "operations/inverse_factor/",
    ),
    (
        Fault::FactorNamesAnotherColumn,
        "operations/inverse_factor/",
    ),
    (
        Fault::FactorReadsTheStoredDiagonal,
        "operations/inverse_factor/",
    ),
    (Fault::FactorIgnoresPrecision, "operations/inverse_factor/"),
    (
        Fault::FactorLeavesTheTriangleOnlyOnSuccess,
        "operations/inverse_factor/",
    ),
    (Fault::SelectIgnoresProtected, "operations/select/"),
    (Fault::SelectIgnoresForced, "operations/select/"),
    (Fault::SelectTakesRowsFirstAmongTies, "operations/select/"),
    (Fault::SelectOneTooMany, "operations/select/"),
    (Fault::SelectIgnoresScales, "operations/select/"),
    (Fault::GridForgetsTheGroup, "operations/fit_grid/"),
    (Fault::GridForgetsZeroInTheRange, "operations/fit_grid/"),
    (Fault::SweepIgnoresMaskOffset, "operations/update_rows/"),
    (Fault::SweepIgnoresErrorOffset, "operations/update_rows/"),
    (Fault::SweepUpdatesBeyondTheRange, "operations/update_rows/"),
    (Fault::SweepOverwritesLosses, "operations/update_rows/"),
    (Fault::SweepSkipsTheLastRow, "operations/update_rows/"),
    (Fault::SweepReadsZerosAsKept, "operations/update_rows/"),
    (Fault::SweepPerturbsScales, "operations/update_rows/"),
    (Fault::SweepUsesOneGroup, "operations/update_rows/"),
    (Fault::GemmIgnoresAlpha, "operations/gemm/"),
    (Fault::GemmIgnoresRowOffset, "operations/gemm/"),
    (
        Fault::EnergiesUseTheUpperTriangle,
        "operations/row_energies/",
    ),
    (Fault::PermuteTakesTheInverse, "operations/permute_hessian/"),
    (Fault::CombineIgnoresAlpha, "operations/combine/"),
    (Fault::DiagonalIsShifted, "operations/memory/"),
    (Fault::NotDeterministic, "operations/gemm/"),
    (Fault::FactorIgnoresBlocks, "operations/inverse_factor/"),
    (
        Fault::OpenBlockForgetsTheDenseWeights,
        "operations/open_block/",
    ),
    (Fault::CloseBlockTakesAllColumns, "operations/close_block/"),
    (Fault::InverseHasOneTriangle, "operations/inverse/"),
    (Fault::ProjectKeepsOldDuals, "operations/project/"),
    (Fault::ProjectForgetsTheWeights, "operations/project/"),
    (Fault::RefitIgnoresTheMask, "operations/refit/"),
    (Fault::RefitIgnoresTheDiagonal, "operations/refit/"),
    (Fault::RefitStopsTooEarly, "operations/refit/"),
    (Fault::AdamIgnoresTheMask, "operations/adam/"),
    (Fault::AdamForgetsTheScale, "operations/adam/"),
    (Fault::AdamStopsTooEarly, "operations/adam/"),
];

/// The host backend with a fault.
#[derive(Debug)]
struct Broken {
    fault: Fault,
    calls: std::sync::atomic::AtomicU32,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            calls: 0.into(),
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }
}

impl Backend for Broken {
    type Matrix = Array2<f32>;
    type Mask = Array2<bool>;
    type Error = HostError;

    fn info(&self) -> BackendInfo {
        BackendInfo::new("broken", format!("{:?}", self.fault), &Operation::ALL)
    }

    fn fork(&self) -> Result<Self, HostError> {
        Ok(Self::new(self.fault))
    }

    fn synchronize(&self) -> Result<(), HostError> {
        Ok(())
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Array2<f32>, HostError> {
        let value = if self.is(Fault::ZerosAreNotCleared) {
            1.0
        } else {
            0.0
        };
        Ok(Array2::from_elem((rows, cols), value))
    }

    fn shape(&self, matrix: &Array2<f32>) -> (usize, usize) {
        matrix.dim()
    }

    fn upload(&self, host: ArrayView2<'_, f32>) -> Result<Array2<f32>, HostError> {
        if self.is(Fault::UploadsTheTransposeOfStridedViews) && !host.is_standard_layout() {
            let values = host.t().iter().copied().collect();
            return Ok(Array2::from_shape_vec(host.dim(), values).unwrap());
        }
        Host.upload(host)
    }

    fn download(&self, matrix: &Array2<f32>) -> Result<Array2<f32>, HostError> {
        Host.download(matrix)
    }

    fn copy(&self, matrix: &Array2<f32>) -> Result<Array2<f32>, HostError> {
        Host.copy(matrix)
    }

    fn upload_mask(&self, host: ArrayView2<'_, bool>) -> Result<Array2<bool>, HostError> {
        Host.upload_mask(host)
    }

    fn download_mask(&self, mask: &Array2<bool>) -> Result<Array2<bool>, HostError> {
        Host.download_mask(mask)
    }

    fn gram_update(
        &self,
        h: &mut Array2<f32>,
        x: Activations<'_>,
        alpha: f32,
        beta: f32,
    ) -> Result<(), HostError> {
        match self.fault {
            Fault::GramIgnoresBeta => Host.gram_update(h, x, alpha, 1.0),
            Fault::GramRoundsInputsLikeTf32 => {
                let rounded = Array2::from_shape_fn((x.tokens(), x.cols()), |(token, col)| {
                    f32::from_bits(x.get(token, col).to_bits() & !0x1fff)
                });
                Host.gram_update(h, rounded.view().into(), alpha, beta)
            }
            Fault::GramSkipsTheLastToken => Host.gram_update(
                h,
                x.slice_tokens(0, x.tokens().saturating_sub(1)),
                alpha,
                beta,
            ),
            _ => Host.gram_update(h, x, alpha, beta),
        }
    }

    fn inverse_factor(
        &self,
        h: &mut Array2<f32>,
        diagonal: &[f32],
        blocks: &[usize],
        precision: Precision,
    ) -> Result<(), HostError> {
        let before = h.clone();
        let diagonal = match self.fault {
            Fault::FactorReadsTheStoredDiagonal => h.diag().to_vec(),
            _ => diagonal.to_vec(),
        };
        let precision = if self.is(Fault::FactorIgnoresPrecision) {
            Precision::F32
        } else {
            precision
        };
        let whole = [diagonal.len()];
        let blocks = if self.is(Fault::FactorIgnoresBlocks) {
            &whole
        } else {
            blocks
        };
        let ended = Host.inverse_factor(h, &diagonal, blocks, precision);
        let spoils = match self.fault {
            Fault::FactorSpoilsTheLowerTriangle => true,
            Fault::FactorLeavesTheTriangleOnlyOnSuccess => ended.is_err(),
            _ => false,
        };
        if spoils && h.nrows() > 1 {
            h[[1, 0]] = before[[1, 0]] + 1.0;
        }
        match ended {
            Err(HostError::NotPositiveDefinite { column })
                if self.is(Fault::FactorNamesAnotherColumn) =>
            {
                Err(HostError::NotPositiveDefinite {
                    column: diagonal.len() - 1 - column,
                })
            }
            ended => ended,
        }
    }

    fn open_block(
        &self,
        weights: &mut Array2<f32>,
        rest: &Array2<f32>,
        factor: &Array2<f32>,
        columns: Range<usize>,
    ) -> Result<(), HostError> {
        let zeros = Array2::zeros(rest.dim());
        let rest = if self.is(Fault::OpenBlockForgetsTheDenseWeights) {
            &zeros
        } else {
            rest
        };
        Host.open_block(weights, rest, factor, columns)
    }

    fn close_block(
        &self,
        rest: &mut Array2<f32>,
        weights: &Array2<f32>,
        columns: Range<usize>,
    ) -> Result<(), HostError> {
        let columns = if self.is(Fault::CloseBlockTakesAllColumns) {
            0..rest.ncols()
        } else {
            columns
        };
        Host.close_block(rest, weights, columns)
    }

    fn diagonal(&self, matrix: &Array2<f32>) -> Result<Vec<f32>, HostError> {
        let mut diagonal = Host.diagonal(matrix)?;
        if self.is(Fault::DiagonalIsShifted) {
            diagonal.rotate_left(1);
        }
        Ok(diagonal)
    }

    fn combine(
        &self,
        target: &mut Array2<f32>,
        alpha: f32,
        other: &Array2<f32>,
        beta: f32,
    ) -> Result<(), HostError> {
        let alpha = if self.is(Fault::CombineIgnoresAlpha) {
            1.0
        } else {
            alpha
        };
        Host.combine(target, alpha, other, beta)
    }

    fn permute_hessian(&self, h: &Array2<f32>, order: &[usize]) -> Result<Array2<f32>, HostError> {
        if self.is(Fault::PermuteTakesTheInverse) {
            let mut inverse = vec![0; order.len()];
            for (to, &from) in order.iter().enumerate() {
                inverse[from] = to;
            }
            return Host.permute_hessian(h, &inverse);
        }
        Host.permute_hessian(h, order)
    }

    fn row_energies(
        &self,
        w: &Array2<f32>,
        h: &Array2<f32>,
        diagonal: &[f32],
    ) -> Result<Vec<f64>, HostError> {
        if self.is(Fault::EnergiesUseTheUpperTriangle) {
            return Host.row_energies(w, &h.t().to_owned(), diagonal);
        }
        Host.row_energies(w, h, diagonal)
    }

    fn select(&self, args: Select<'_, Self>) -> Result<Array2<bool>, HostError> {
        let Select {
            weights,
            scales,
            columns,
            rule,
            forced,
            protected,
            ..
        } = args;
        let forced = if self.is(Fault::SelectIgnoresForced) {
            None
        } else {
            forced
        };
        let protected = if self.is(Fault::SelectIgnoresProtected) {
            None
        } else {
            protected
        };
        let ones = Array2::ones(scales.dim());
        let scales = if self.is(Fault::SelectIgnoresScales) {
            &ones
        } else {
            scales
        };
        let rule = match rule {
            SelectRule::Lowest { count } if self.is(Fault::SelectOneTooMany) => {
                SelectRule::Lowest { count: count + 1 }
            }
            rule => rule,
        };
        if self.is(Fault::SelectTakesRowsFirstAmongTies)
            && let SelectRule::Lowest { count } = rule
        {
            // The order of a matrix read row by row.
            let mut all: Vec<_> = (0..weights.nrows())
                .flat_map(|row| (0..columns.len()).map(move |col| (row, col)))
                .filter(|&at| !protected.is_some_and(|mask| mask[at]))
                .collect();
            let key = |&(row, col): &(usize, usize)| {
                let free = !forced.is_some_and(|mask| mask[[row, col]]);
                let col = columns.start + col;
                (
                    free,
                    (weights[[row, col]] / scales[[0, col]]).abs().to_bits(),
                )
            };
            all.sort_by_key(key);
            let mut mask = Array2::from_elem((weights.nrows(), columns.len()), false);
            for &at in all.iter().take(count) {
                mask[at] = true;
            }
            return Ok(mask);
        }
        Host.select(Select::new(weights, scales, columns, rule).constrained(forced, protected))
    }

    fn inverse(
        &self,
        h: &Array2<f32>,
        diagonal: &[f32],
        precision: Precision,
    ) -> Result<Array2<f32>, HostError> {
        let mut inverse = Host.inverse(h, diagonal, precision)?;
        if self.is(Fault::InverseHasOneTriangle) {
            inverse = Array2::from_shape_fn(inverse.dim(), |(i, j)| match i >= j {
                true => inverse[[i, j]],
                false => 0.0,
            });
        }
        Ok(inverse)
    }

    fn project(&self, args: Project<'_, Self>) -> Result<(), HostError> {
        let Project {
            sums,
            duals,
            dense,
            mask,
            weights,
            ..
        } = args;
        let before = duals.clone();
        let ones = Array2::ones(weights.dim());
        let weights = if self.is(Fault::ProjectForgetsTheWeights) {
            &ones
        } else {
            weights
        };
        Host.project(Project::new(sums, duals, dense, mask, weights))?;
        if self.is(Fault::ProjectKeepsOldDuals) {
            *duals =
                Array2::from_shape_fn(
                    before.dim(),
                    |at| {
                        if mask[at] { duals[at] } else { before[at] }
                    },
                );
        }
        Ok(())
    }

    fn refit(&self, args: Refit<'_, Self>) -> Result<(), HostError> {
        let Refit {
            weights,
            dense,
            h,
            diagonal,
            mask,
            steps,
            ..
        } = args;
        let none = Array2::from_elem(mask.dim(), false);
        let mask = if self.is(Fault::RefitIgnoresTheMask) {
            &none
        } else {
            mask
        };
        let stored = h.diag().to_vec();
        let diagonal = if self.is(Fault::RefitIgnoresTheDiagonal) {
            &stored
        } else {
            diagonal
        };
        let early = usize::from(self.is(Fault::RefitStopsTooEarly));
        let steps = steps.saturating_sub(early);
        Host.refit(Refit::new(weights, dense, (h, diagonal), mask, steps))
    }

    fn adam(&self, args: Adam<'_, Self>) -> Result<(), HostError> {
        let Adam {
            weights,
            dense,
            h,
            diagonal,
            mask,
            pace,
            ..
        } = args;
        let none = Array2::from_elem(mask.dim(), false);
        let mask = if self.is(Fault::AdamIgnoresTheMask) {
            &none
        } else {
            mask
        };
        let scale = if self.is(Fault::AdamForgetsTheScale) {
            1.0
        } else {
            pace.scale
        };
        let early = usize::from(self.is(Fault::AdamStopsTooEarly));
        let pace = AdamPace::new(pace.steps.saturating_sub(early), pace.rate, scale);
        Host.adam(Adam::new(weights, dense, (h, diagonal), mask, pace))
    }

    fn fit_grid(&self, args: FitGrid<'_, Self>) -> Result<(), HostError> {
        let FitGrid {
            weights,
            columns,
            grid,
            per_tensor,
            scale,
            zero,
            group,
            ..
        } = args;
        let group = if self.is(Fault::GridForgetsTheGroup) {
            0
        } else {
            group
        };
        if self.is(Fault::GridForgetsZeroInTheRange) && !grid.is_symmetric() && !per_tensor {
            for (row, values) in weights
                .slice(s![.., columns])
                .rows()
                .into_iter()
                .enumerate()
            {
                let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), &w| {
                    (low.min(w), high.max(w))
                });
                let step = ((high - low) / grid.max_code() as f32).max(f32::MIN_POSITIVE);
                scale[[row, group]] = step;
                zero[[row, group]] = (-low / step).round().clamp(0.0, grid.max_code() as f32);
            }
            return Ok(());
        }
        Host.fit_grid(FitGrid::new(
            weights,
            columns,
            grid,
            per_tensor,
            (scale, zero),
            group,
        ))
    }

    fn update_rows(&self, args: UpdateRows<'_, Self>) -> Result<Option<Array2<bool>>, HostError> {
        let UpdateRows {
            weights,
            factor,
            errors,
            error_offset,
            losses,
            columns,
            prune,
            grid,
            ..
        } = args;
        let (rows, first, end) = (weights.nrows(), columns.start, columns.end);
        let (weights_before, losses_before) = (weights.clone(), losses.clone());
        let errors_before = errors.clone();
        let prune = match prune {
            PruneRef::Fixed { mask, offset } => {
                let offset = if self.is(Fault::SweepIgnoresMaskOffset) {
                    0
                } else {
                    offset
                };
                PruneRef::Fixed { mask, offset }
            }
            PruneRef::NofM { zeros, group } => {
                let kept = self.is(Fault::SweepReadsZerosAsKept);
                PruneRef::NofM {
                    zeros: if kept { group - zeros } else { zeros },
                    group,
                }
            }
            _ => PruneRef::Keep,
        };
        let error_offset = if self.is(Fault::SweepIgnoresErrorOffset) {
            0
        } else {
            error_offset
        };
        let zeros = [0; 128];
        let perturbed = match (&grid, self.fault) {
            (Some(grid), Fault::SweepPerturbsScales) => Some(grid.scale * (1.0 - 1e-6)),
            _ => None,
        };
        let grid = grid.map(|grid| {
            let one_group = self.is(Fault::SweepUsesOneGroup);
            let groups = if one_group {
                &zeros[..columns.len()]
            } else {
                grid.groups
            };
            GridRef::new(
                grid.kind,
                perturbed.as_ref().unwrap_or(grid.scale),
                grid.zero,
                groups,
            )
        });
        let sweep = UpdateRows::new(
            &mut *weights,
            factor,
            (&mut *errors, error_offset),
            &mut *losses,
            columns.clone(),
        );
        let mask = Host.update_rows(sweep.pruning(prune).rounding(grid))?;
        match self.fault {
            Fault::SweepUpdatesBeyondTheRange if end < weights.ncols() => {
                weights[[0, end]] += 1.0;
            }
            Fault::SweepOverwritesLosses => *losses -= &losses_before,
            Fault::SweepSkipsTheLastRow if rows > 1 => {
                let last = s![rows - 1, first..end];
                weights.slice_mut(last).assign(&weights_before.slice(last));
                errors
                    .row_mut(rows - 1)
                    .assign(&errors_before.row(rows - 1));
            }
            _ => {}
        }
        Ok(mask)
    }

    fn gemm(&self, args: Gemm<'_, Self>) -> Result<(), HostError> {
        let Gemm {
            c,
            c_columns,
            alpha,
            a,
            a_columns,
            b,
            b_rows,
            b_columns,
            ..
        } = args;
        let alpha = if self.is(Fault::GemmIgnoresAlpha) {
            1.0
        } else {
            alpha
        };
        let b_rows = if self.is(Fault::GemmIgnoresRowOffset) {
            0..b_rows.len()
        } else {
            b_rows
        };
        let first = (c.nrows() > 0 && !c_columns.is_empty()).then_some([0, c_columns.start]);
        Host.gemm(Gemm::new(
            (c, c_columns),
            alpha,
            (a, a_columns),
            (b, b_rows, b_columns),
        ))?;
        if self.is(Fault::NotDeterministic)
            && let Some(first) = first
        {
            // The last bit depends on the call, as with atomic additions.
            let call = self
                .calls
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            c[first] = f32::from_bits(c[first].to_bits() ^ (call & 1));
        }
        Ok(())
    }
}

#[test]
fn the_same_backend_without_a_fault_passes() {
    let summary = check_matching("operations/", || Ok(Broken::new(Fault::None))).unwrap();
    assert!(summary.failed.is_empty(), "{:#?}", summary.failed);
    assert!(summary.passed.len() > 100);
}

fn is_caught(fault: Fault, cases: &str) -> bool {
    let summary = check_matching(cases, move || Ok(Broken::new(fault))).unwrap();
    assert!(
        summary.passed.len() + summary.failed.len() > 0,
        "no case is named {cases}"
    );
    !summary.failed.is_empty()
}

#[test]
fn every_fault_is_caught_by_the_cases_of_its_operation() {
    let missed: Vec<_> = FAULTS
        .into_iter()
        .filter(|&(fault, cases)| !is_caught(fault, cases))
        .collect();
    assert!(missed.is_empty(), "the suite missed {missed:?}");
}

#[test]
fn faults_show_in_whole_layers_too() {
    for (fault, cases) in [
        (Fault::SelectIgnoresProtected, "solver/counts/protected"),
        (Fault::SelectOneTooMany, "solver/counts/every_percentage"),
        (Fault::FactorSpoilsTheLowerTriangle, "solver/hessian/"),
        (Fault::SweepReadsZerosAsKept, "solver/counts/n_of_m"),
        (Fault::SweepUsesOneGroup, "solver/quantization/groups"),
        (
            Fault::GemmIgnoresRowOffset,
            "solver/losses/are_the_quadratic_form",
        ),
        (
            Fault::EnergiesUseTheUpperTriangle,
            "solver/losses/compensation_pays",
        ),
        (Fault::NotDeterministic, "solver/invariance/same_bits_twice"),
        (Fault::SelectOneTooMany, "golden/corpus/"),
        (Fault::GridForgetsTheGroup, "golden/corpus/"),
        (Fault::FactorIgnoresBlocks, "golden/corpus/"),
        (Fault::OpenBlockForgetsTheDenseWeights, "golden/corpus/"),
        (Fault::CloseBlockTakesAllColumns, "golden/corpus/"),
    ] {
        assert!(is_caught(fault, cases), "{fault:?} passes {cases}");
    }
}
