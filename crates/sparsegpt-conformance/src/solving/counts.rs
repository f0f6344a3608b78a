//! Exact counts, after every block and in the end.

use std::collections::BTreeSet;

use sparsegpt::backend::Backend;
use sparsegpt::mask::{GivenMask, Sparsity};
use sparsegpt::ndarray::{Array2, s};
use sparsegpt::{LayerSettings, Pattern};

use super::layer::Layer;
use crate::check::{Cases, Subject, Verdict, ensure};
use crate::random::Random;

const BLOCK_SIZES: [usize; 9] = [1, 2, 7, 16, 127, 128, 129, 200, 300];
const MASK_BLOCK_SIZES: [usize; 5] = [1, 4, 128, 150, 200];
const PERCENTAGES: [usize; 6] = [0, 1, 33, 50, 57, 100];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    cases.add(
        "solver/counts/unstructured_after_each_mask_block",
        unstructured,
    );
    cases.add("solver/counts/per_row_after_each_mask_block", per_row);
    cases.add("solver/counts/every_percentage", every_percentage);
    cases.add("solver/counts/n_of_m", n_of_m);
    cases.add("solver/counts/n_of_m_across_blocks", n_of_m_across_blocks);
    cases.add("solver/counts/one_row_one_column", smallest_layers);
    cases.add("solver/counts/fewer_tokens_than_columns", few_tokens);
    cases.add("solver/counts/dead_columns_first", dead_columns);
    cases.add("solver/counts/act_order", act_order);
    cases.add("solver/counts/given_mask_is_kept", given_mask);
    cases.add("solver/counts/given_mask_is_extended", extended_mask);
    cases.add("solver/counts/protected_columns_and_rows", protected);
    cases.add("solver/counts/protected_at_the_end", protected_at_the_end);
    cases.add(
        "solver/counts/earlier_blocks_leave_room_for_forced_weights",
        forced_at_the_end,
    );
    cases.add("solver/counts/shared_input", shared_input);
}

fn unstructured_of(percent: usize) -> Verdict<Pattern> {
    Ok(Pattern::unstructured(percent as f64 / 100.0)?)
}

fn pruned(mask: &Array2<bool>) -> usize {
    mask.iter().filter(|&&kept| !kept).count()
}

fn unstructured<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(9, 150, 100);
    for block in BLOCK_SIZES {
        for mask_block in MASK_BLOCK_SIZES {
            let settings = LayerSettings::new(unstructured_of(57)?)
                .with_block_size(block)
                .with_mask_block_size(mask_block);
            let mask = layer.solve(&subject.solver, &settings)?.mask;
            for end in (mask_block..layer.cols())
                .step_by(mask_block)
                .chain([layer.cols()])
            {
                let found = pruned(&mask.slice(s![.., ..end]).to_owned());
                let expected = 57 * layer.rows() * end / 100;
                ensure!(
                    found == expected,
                    "block size {block}, mask block size {mask_block}: {found} pruned up to column {end}, \
                     expected {expected}"
                );
            }
        }
    }
    Ok(())
}

fn per_row<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(5, 150, 101);
    for block in BLOCK_SIZES {
        for mask_block in MASK_BLOCK_SIZES {
            let settings = LayerSettings::new(Pattern::per_row(0.33)?)
                .with_block_size(block)
                .with_mask_block_size(mask_block);
            let mask = layer.solve(&subject.solver, &settings)?.mask;
            for end in (mask_block..layer.cols())
                .step_by(mask_block)
                .chain([layer.cols()])
            {
                for row in mask.rows() {
                    let found = row.iter().take(end).filter(|&&kept| !kept).count();
                    ensure!(
                        found == 33 * end / 100,
                        "block size {block}, mask block size {mask_block}: {found} pruned in a row up to column \
                         {end}, expected {}",
                        33 * end / 100
                    );
                }
            }
        }
    }
    Ok(())
}

fn every_percentage<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(7, 43, 102);
    for percent in PERCENTAGES {
        let settings = LayerSettings::new(unstructured_of(percent)?).with_mask_block_size(10);
        let solution = layer.solve(&subject.solver, &settings)?;
        let expected = percent * layer.weights.len() / 100;
        ensure!(
            pruned(&solution.mask) == expected,
            "{percent} %: {} pruned, expected {expected}",
            pruned(&solution.mask)
        );
        if percent == 0 {
            ensure!(
                solution.weights == layer.weights,
                "0 % must leave the weights as they are"
            );
        }
        let settings = LayerSettings::new(Pattern::per_row(percent as f64 / 100.0)?);
        let found = pruned(&layer.solve(&subject.solver, &settings)?.mask);
        let expected = layer.rows() * (percent * layer.cols() / 100);
        ensure!(
            found == expected,
            "row:{percent} %: {found} pruned, expected {expected}"
        );
    }
    Ok(())
}

fn ensure_n_of_m(mask: &Array2<bool>, zeros: usize, group: usize) -> Verdict {
    for (row, kept) in mask.rows().into_iter().enumerate() {
        for (at, kept) in kept.to_vec().chunks(group).enumerate() {
            let found = kept.iter().filter(|&&kept| !kept).count();
            ensure!(
                found == zeros,
                "{zeros}:{group}: {found} zeros in group {at} of row {row}, expected {zeros}"
            );
        }
    }
    Ok(())
}

fn n_of_m<B: Backend>(subject: &Subject<B>) -> Verdict {
    for (zeros, group, cols) in [
        (2, 4, 200),
        (1, 2, 130),
        (3, 7, 203),
        (4, 8, 136),
        (1, 1, 9),
        (0, 4, 12),
        (4, 4, 12),
        (5, 9, 45),
        (31, 100, 200),
        (70, 140, 280),
    ] {
        let layer = Layer::new(17, cols, 103);
        let settings = LayerSettings::new(Pattern::n_of_m(zeros, group)?);
        ensure_n_of_m(&layer.solve(&subject.solver, &settings)?.mask, zeros, group)?;
    }
    Ok(())
}

fn n_of_m_across_blocks<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(6, 210, 104);
    for block in BLOCK_SIZES {
        for (zeros, group) in [(3, 7), (1, 2), (20, 42)] {
            let settings =
                LayerSettings::new(Pattern::n_of_m(zeros, group)?).with_block_size(block);
            ensure_n_of_m(&layer.solve(&subject.solver, &settings)?.mask, zeros, group)?;
            // A protected row takes the choice out of the sweep.
            let settings = settings.with_protected_rows(vec![2]);
            let mut mask = layer.solve(&subject.solver, &settings)?.mask;
            ensure!(
                mask.row(2).iter().all(|&kept| kept),
                "a protected row must be kept whole"
            );
            mask = mask.select(sparsegpt::ndarray::Axis(0), &[0, 1, 3, 4, 5]);
            ensure_n_of_m(&mask, zeros, group)?;
        }
    }
    Ok(())
}

fn smallest_layers<B: Backend>(subject: &Subject<B>) -> Verdict {
    for (rows, cols) in [
        (1, 1),
        (1, 2),
        (2, 1),
        (1, 129),
        (129, 1),
        (15, 16),
        (16, 15),
    ] {
        let layer = Layer::new(rows, cols, 105);
        let settings = LayerSettings::new(unstructured_of(50)?);
        let found = pruned(&layer.solve(&subject.solver, &settings)?.mask);
        ensure!(
            found == rows * cols / 2,
            "{rows} x {cols}: {found} pruned at 50 %"
        );
        let settings = LayerSettings::new(Pattern::n_of_m(1, 1)?);
        let found = layer.solve(&subject.solver, &settings)?;
        ensure!(
            pruned(&found.mask) == rows * cols,
            "{rows} x {cols}: 1:1 must prune everything"
        );
    }
    Ok(())
}

fn few_tokens<B: Backend>(subject: &Subject<B>) -> Verdict {
    for tokens in [1, 3, 40] {
        let layer = Layer::with_inputs(12, 130, tokens, &[], 106);
        for pattern in [unstructured_of(50)?, Pattern::n_of_m(1, 2)?] {
            let found = pruned(
                &layer
                    .solve(&subject.solver, &LayerSettings::new(pattern))?
                    .mask,
            );
            ensure!(
                found == 12 * 65,
                "{tokens} tokens, {pattern}: {found} pruned"
            );
        }
    }
    Ok(())
}

fn dead_columns<B: Backend>(subject: &Subject<B>) -> Verdict {
    let dead = [0, 1, 40, 63, 149];
    let layer = Layer::with_inputs(8, 150, 300, &dead, 107);
    for (act_order, mask_block) in [(false, 128), (false, 16), (true, 128)] {
        let settings = LayerSettings::new(unstructured_of(50)?)
            .with_act_order(act_order)
            .with_mask_block_size(mask_block);
        let solution = layer.solve(&subject.solver, &settings)?;
        let found = pruned(&solution.mask);
        ensure!(
            found == 8 * 150 / 2,
            "{found} pruned with dead columns, they count"
        );
        for column in dead {
            ensure!(
                solution.mask.column(column).iter().all(|&kept| !kept),
                "dead column {column} must be pruned first (act-order {act_order})"
            );
        }
    }
    // More dead weights than zeros asked for: the weights are zero all the same.
    let settings = LayerSettings::new(unstructured_of(1)?);
    let solution = layer.solve(&subject.solver, &settings)?;
    for column in dead {
        ensure!(
            solution.weights.column(column).iter().all(|&w| w == 0.0),
            "dead column {column} must be zero"
        );
    }
    let settings = LayerSettings::new(Pattern::n_of_m(2, 5)?);
    ensure_n_of_m(&layer.solve(&subject.solver, &settings)?.mask, 2, 5)
}

/// Weights without a choice in the last blocks, more than these blocks' share: the ones before take less.
fn forced_at_the_end<B: Backend>(subject: &Subject<B>) -> Verdict {
    let (rows, cols) = (5, 70);
    let dead: Vec<usize> = (40..cols).collect();
    let layer = Layer::with_inputs(rows, cols, 150, &dead, 108);
    for mask_block in [128, 16, 7] {
        for (pattern, expected) in [
            (Pattern::unstructured(0.5)?, rows * cols / 2),
            (Pattern::per_row(0.5)?, rows * (cols / 2)),
        ] {
            let settings = LayerSettings::new(pattern).with_mask_block_size(mask_block);
            let found = pruned(&layer.solve(&subject.solver, &settings)?.mask);
            ensure!(
                found == expected,
                "{pattern}, dead columns at the end, mask blocks of {mask_block}: {found} pruned, expected {expected}"
            );
        }
        let layer = Layer::new(rows, cols, 109);
        let mut keep = Array2::from_elem((rows, cols), true);
        keep.slice_mut(s![.., 42..]).fill(false);
        let extended = GivenMask::keeping(keep.view()).extended_to(Sparsity::new(0.5)?);
        let settings = LayerSettings::new(extended).with_mask_block_size(mask_block);
        let mask = layer.solve(&subject.solver, &settings)?.mask;
        ensure!(
            pruned(&mask) == rows * cols / 2,
            "a given mask extended to 50 %: {} pruned, expected {}",
            pruned(&mask),
            rows * cols / 2
        );
        ensure!(
            mask.slice(s![.., 42..]).iter().all(|&kept| !kept),
            "a given zero is kept"
        );
    }
    Ok(())
}

fn act_order<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(11, 132, 108);
    for (block, mask_block) in [(128, 128), (16, 4), (1, 1), (100, 132)] {
        let settings = LayerSettings::new(unstructured_of(50)?)
            .with_act_order(true)
            .with_block_size(block)
            .with_mask_block_size(mask_block);
        let found = pruned(&layer.solve(&subject.solver, &settings)?.mask);
        ensure!(found == 11 * 66, "act-order, block {block}: {found} pruned");
        for (zeros, group) in [(2, 4), (5, 11)] {
            let settings = LayerSettings::new(Pattern::n_of_m(zeros, group)?)
                .with_act_order(true)
                .with_block_size(block);
            ensure_n_of_m(&layer.solve(&subject.solver, &settings)?.mask, zeros, group)?;
        }
    }
    Ok(())
}

fn given_mask<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(10, 140, 109);
    for percent in [0, 30, 100] {
        let keep = Random::new(110).mask(10, 140, percent);
        for (act_order, block) in [(false, 128), (true, 128), (false, 9)] {
            let settings = LayerSettings::new(GivenMask::keeping(keep.view()))
                .with_act_order(act_order)
                .with_block_size(block);
            let solution = layer.solve(&subject.solver, &settings)?;
            ensure!(solution.mask == keep, "a given mask must be kept as it is");
        }
    }
    Ok(())
}

fn extended_mask<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(10, 140, 111);
    let keep = Random::new(112).mask(10, 140, 80);
    for (percent, act_order, mask_block) in [
        (50, false, 128),
        (50, true, 128),
        (50, false, 10),
        (5, false, 128),
        (100, false, 128),
    ] {
        let given = GivenMask::keeping(keep.view());
        // A mask that has more zeros than asked for keeps them.
        let expected = given.pruned().max(percent * 1400 / 100);
        let policy = given.extended_to(Sparsity::new(percent as f64 / 100.0)?);
        let settings = LayerSettings::new(policy)
            .with_act_order(act_order)
            .with_mask_block_size(mask_block);
        let mask = layer.solve(&subject.solver, &settings)?.mask;
        let all_there = mask
            .iter()
            .zip(&keep)
            .all(|(&kept, &wanted)| wanted || !kept);
        ensure!(all_there, "the zeros of the given mask must stay");
        // Blocks in which the mask has more zeros than their share are made up for later.
        ensure!(
            pruned(&mask) == expected,
            "extended to {percent} %, mask block {mask_block}: {} pruned, expected {expected}",
            pruned(&mask)
        );
    }
    Ok(())
}

fn protected<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(10, 140, 113);
    let (columns, rows) = (vec![0, 3, 64, 139], vec![1, 9]);
    let patterns = [
        (unstructured_of(50)?, 700),
        (Pattern::per_row(0.5)?, 8 * 70),
        (Pattern::n_of_m(2, 4)?, 8 * 70),
    ];
    for (pattern, expected) in patterns {
        for act_order in [false, true] {
            let settings = LayerSettings::new(pattern)
                .with_act_order(act_order)
                .with_protected_columns(columns.clone())
                .with_protected_rows(rows.clone());
            let mask = layer.solve(&subject.solver, &settings)?.mask;
            for ((row, col), &kept) in mask.indexed_iter() {
                let protected = rows.contains(&row) || columns.contains(&col);
                ensure!(
                    kept || !protected,
                    "{pattern}: the protected weight ({row}, {col}) is pruned"
                );
            }
            ensure!(
                pruned(&mask) == expected,
                "{pattern}, act-order {act_order}: {} pruned beside protected weights, expected {expected}",
                pruned(&mask)
            );
        }
    }
    Ok(())
}

/// The last columns cannot take their share; earlier blocks must take more.
fn protected_at_the_end<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = Layer::new(10, 140, 114);
    let columns: BTreeSet<usize> = (80..140).collect();
    let settings = LayerSettings::new(unstructured_of(50)?)
        .with_mask_block_size(20)
        .with_protected_columns(columns.into_iter().collect());
    let found = pruned(&layer.solve(&subject.solver, &settings)?.mask);
    ensure!(
        found == 700,
        "{found} pruned with the last columns protected, expected 700"
    );
    Ok(())
}

/// Several layers on one Hessian come out as each of them alone.
fn shared_input<B: Backend>(subject: &Subject<B>) -> Verdict {
    let first = Layer::new(12, 60, 115);
    let second = Random::new(116).matrix(5, 60);
    let solver = &subject.solver;
    let settings = LayerSettings::new(unstructured_of(50)?);
    let ordered = LayerSettings::new(Pattern::n_of_m(2, 4)?).with_act_order(true);
    let task = |name, weights, settings| sparsegpt::LayerTask {
        name,
        weights,
        settings,
    };
    let tasks = [
        task("q", first.weights.view(), &settings),
        task("k", second.view(), &settings),
        task("v", first.weights.view(), &ordered),
        task("gate", second.view(), &settings),
    ];
    let mut hessian = solver.hessian_from(first.hessian.view())?;
    let together = solver.prune_shared(&mut hessian, &tasks)?;
    ensure!(
        together.len() == tasks.len(),
        "{} results for {} layers",
        together.len(),
        tasks.len()
    );
    for (task, shared) in tasks.iter().zip(together) {
        let mut hessian = solver.hessian_from(first.hessian.view())?;
        let alone = solver.prune(task.weights, &mut hessian, task.settings)?;
        crate::check::same_bits(
            format_args!("layer {} on a shared Hessian", task.name),
            &shared.weights,
            &alone.weights,
        )?;
        ensure!(
            shared.report.layer == task.name,
            "the report names {:?}",
            shared.report.layer
        );
    }
    Ok(())
}
