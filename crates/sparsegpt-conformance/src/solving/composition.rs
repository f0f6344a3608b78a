//! Methods put together from parts.

use sparsegpt::backend::Backend;
use sparsegpt::mask::GivenMask;
use sparsegpt::ndarray::{Array2, Zip};
use sparsegpt::solver::own::{LayerProblem, ScoreWeights};
use sparsegpt::solver::{ColumnOrder, MaskSource, Refit};
use sparsegpt::{LayerSettings, Method, Pattern, UniformGrid};

use super::layer::Layer;
use crate::check::{Cases, Subject, Verdict, close, ensure};
use crate::random::Random;
use crate::tolerance::ENERGY;
use crate::truth;

/// The methods that are more than a sweep.
const BEYOND_A_SWEEP: [Method; 5] = [
    Method::Admm,
    Method::Quality,
    Method::Alps,
    Method::Obc,
    Method::Obq,
];
/// Those that set weights on a mask by magnitude.
const ON_MAGNITUDE: [Method; 2] = [Method::AdaPrune, Method::AdaPruneCg];

pub(super) fn add_cases<B: Backend>(cases: &mut Cases<B>) {
    for method in BEYOND_A_SWEEP {
        let mut add = |name: &str, body: fn(&Subject<B>, Method) -> Verdict| {
            cases.add(format!("solver/{method}/{name}"), move |subject| {
                body(subject, method)
            });
        };
        add("exact_counts", exact_counts);
        add("beats_the_sweep_on_correlated_inputs", beats_the_sweep);
        add("never_above_its_mask_without_an_update", guarded);
        add("dead_inputs_first", dead_inputs);
        add("rounds_on_the_mask", rounds_on_the_mask);
        add("keeps_a_given_mask", keeps_a_given_mask);
        add("same_bits_twice", same_bits_twice);
    }
    for method in ON_MAGNITUDE {
        let mut add = |name: &str, body: fn(&Subject<B>, Method) -> Verdict| {
            cases.add(format!("solver/{method}/{name}"), move |subject| {
                body(subject, method)
            });
        };
        add("exact_counts", exact_counts);
        add("never_above_its_mask_without_an_update", guarded);
        add("dead_inputs_first", dead_inputs);
        add("keeps_a_given_mask", keeps_a_given_mask);
        add("same_bits_twice", same_bits_twice);
    }
    cases.add("solver/adaprune/lies_between_its_neighbours", adaprune);
    cases.add("solver/obc/blocks_below_the_sweep", obc_blocks);
    cases.add("solver/refit/lowers_every_row", refit_lowers);
    cases.add("solver/best/loses_least_on_what_was_held_out", best);
    cases.add("solver/order/best_is_the_best_of_its_orders", best_order);
    cases.add("solver/swaps/lower_the_error_and_keep_counts", swaps_lower);
    cases.add("solver/swaps/go_before_a_refit", swaps_before_refit);
    cases.add("solver/swaps/refine_any_mask", swaps_refine_any);
    cases.add("solver/mask_source/is_kept_by_the_sweep", source_is_kept);
    cases.add("solver/mask_source/obs_is_the_first_saliency", obs_source);
    cases.add("solver/order/rose_knows_a_given_mask", rose_on_a_mask);
    cases.add("solver/own/scores_choose_as_wanda_does", own_scores);
}

/// |w|·‖x_j‖ of each row, by a stranger.
#[derive(Debug)]
struct OwnWanda;

impl ScoreWeights for OwnWanda {
    fn describe(&self) -> String {
        "Wanda once more".to_owned()
    }
    fn scores(&self, problem: &LayerProblem<'_>) -> sparsegpt::Result<Array2<f32>> {
        let norms = problem.hessian()?.diag().mapv(|entry| entry.sqrt() as f32);
        Ok(problem.weights().mapv(f32::abs) * &norms)
    }
    fn within_rows(&self) -> bool {
        true
    }
}

fn own_scores<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    for pattern in ["50%", "2:4"] {
        let settings = with(Method::SparseGpt, pattern)?;
        let named = settings.clone().with_mask_source(MaskSource::Wanda);
        let named = layer.solve(&subject.solver, &named)?;
        let own = settings.with_own_mask_source(OwnWanda);
        let own = layer.solve(&subject.solver, &own)?;
        ensure!(
            own.mask == named.mask,
            "{pattern}: the same scores chose another mask"
        );
        ensure!(
            own.weights == named.weights,
            "{pattern}: the same mask came to other weights"
        );
    }
    Ok(())
}

fn layer() -> Layer {
    Layer::new(8, 32, 900)
}

fn with(method: Method, pattern: &str) -> Verdict<LayerSettings> {
    Ok(LayerSettings::new(pattern.parse::<Pattern>()?).with_method(method))
}

fn exact_counts<B: Backend>(subject: &Subject<B>, method: Method) -> Verdict {
    for (rows, cols) in [(1, 8), (3, 17)] {
        let layer = Layer::new(rows, cols, 901);
        for (pattern, zeros) in [
            ("50%", None),
            ("row:30%", Some(rows * (cols * 3 / 10))),
            ("2:4", Some(rows * cols / 2)),
            ("0%", Some(0)),
            ("100%", Some(rows * cols)),
        ] {
            if pattern == "2:4" && cols % 4 != 0 {
                continue;
            }
            let solution = layer.solve(&subject.solver, &with(method, pattern)?)?;
            // Where the method compares within rows, each row has its own floor.
            let of_layer = rows * cols / 2;
            let of_rows = rows * (cols / 2);
            let pruned = solution.report.pruned as usize;
            let fits = match zeros {
                Some(zeros) => pruned == zeros,
                None => pruned == of_layer || pruned == of_rows,
            };
            ensure!(
                fits,
                "{pattern} of {rows} x {cols}: {pruned} pruned, expected {zeros:?}"
            );
        }
    }
    Ok(())
}

fn error<B: Backend>(
    subject: &Subject<B>,
    layer: &Layer,
    settings: &LayerSettings,
) -> Verdict<f64> {
    let solution = layer.solve(&subject.solver, settings)?;
    solution
        .report
        .reconstruction_error
        .ok_or_else(|| crate::check::Failure::Wrong("no error was measured".to_owned()))
}

fn beats_the_sweep<B: Backend>(subject: &Subject<B>, method: Method) -> Verdict {
    for pattern in ["50%", "2:4"] {
        let sweep = error(subject, &layer(), &with(Method::SparseGpt, pattern)?)?;
        let ours = error(subject, &layer(), &with(method, pattern)?)?;
        ensure!(
            ours < sweep,
            "{pattern}: {method} leaves {ours:e}, the sweep {sweep:e}"
        );
    }
    Ok(())
}

fn guarded<B: Backend>(subject: &Subject<B>, method: Method) -> Verdict {
    for seed in 910..912 {
        let layer = Layer::new(8, 24, seed);
        let solution = layer.solve(&subject.solver, &with(method, "80%")?)?;
        let mut masked = solution.clone();
        masked.weights = Array2::from_shape_fn(masked.mask.dim(), |at| {
            if masked.mask[at] {
                layer.weights[at]
            } else {
                0.0
            }
        });
        let (ours, without) = (layer.error(&solution), layer.error(&masked));
        ensure!(
            ours <= without * (1.0 + 1e-6),
            "{ours:e} with the update, {without:e} without"
        );
    }
    Ok(())
}

fn dead_inputs<B: Backend>(subject: &Subject<B>, method: Method) -> Verdict {
    let dead = [0, 7, 31];
    let layer = Layer::with_inputs(9, 32, 80, &dead, 920);
    let solution = layer.solve(&subject.solver, &with(method, "25%")?)?;
    for column in dead {
        ensure!(
            solution.mask.column(column).iter().all(|kept| !kept),
            "dead column {column} was not pruned"
        );
    }
    let pruned = solution.report.pruned;
    ensure!(pruned == 9 * 8, "{pruned} pruned, expected {}", 9 * 8);
    Ok(())
}

fn rounds_on_the_mask<B: Backend>(subject: &Subject<B>, method: Method) -> Verdict {
    for pattern in ["50%", "2:4"] {
        let rounded = |method| -> Verdict<_> {
            Ok(with(method, pattern)?.with_quantizer(UniformGrid::new(4)?))
        };
        let solution = layer().solve(&subject.solver, &rounded(method)?)?;
        ensure!(
            solution.quantized.is_some(),
            "no codes although a quantizer was given"
        );
        let sweep = error(subject, &layer(), &rounded(Method::SparseGpt)?)?;
        let ours = layer().error(&solution);
        ensure!(
            ours < sweep,
            "{pattern} with 4 bits: {method} leaves {ours:e}, the sweep {sweep:e}"
        );
    }
    Ok(())
}

fn keeps_a_given_mask<B: Backend>(subject: &Subject<B>, method: Method) -> Verdict {
    let layer = layer();
    let keep = Array2::from_shape_fn(layer.weights.dim(), |(row, col)| {
        (row * 5 + col * 3) % 7 > 2
    });
    let settings = LayerSettings::new(GivenMask::keeping(keep.view())).with_method(method);
    let solution = layer.solve(&subject.solver, &settings)?;
    ensure!(solution.mask == keep, "the given mask was changed");
    Ok(())
}

fn same_bits_twice<B: Backend>(subject: &Subject<B>, method: Method) -> Verdict {
    let settings = with(method, "50%")?;
    let first = layer().solve(&subject.solver, &settings)?;
    ensure!(
        first.report.factor_attempts <= 1,
        "{} factorizations tried for an easy Hessian",
        first.report.factor_attempts
    );
    let again = layer().solve(&subject.solver, &settings)?;
    crate::check::same_bits("the same layer again", &again.weights, &first.weights)
}

fn refit_lowers<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    for method in [Method::SparseGpt, Method::Wanda, Method::Magnitude] {
        let plain = layer.solve(&subject.solver, &with(method, "50%")?)?;
        for refit in [
            Refit::ConjugateGradients { steps: 10 },
            Refit::Adam { steps: 40 },
            Refit::Exact,
        ] {
            let settings = with(method, "50%")?.with_refit(refit);
            let refitted = layer.solve(&subject.solver, &settings)?;
            ensure!(
                refitted.mask == plain.mask,
                "{method}: the refit {refit} changed the mask"
            );
            let (before, after) = (layer.error(&plain), layer.error(&refitted));
            ensure!(
                after < before,
                "{method}: {after:e} with the refit {refit}, {before:e} without"
            );
        }
    }
    Ok(())
}

/// Between its mask without an update and the best weights on that mask, which its twin comes close to.
fn adaprune<B: Backend>(subject: &Subject<B>) -> Verdict {
    for pattern in ["50%", "2:4"] {
        let of = |method| error(subject, &layer(), &with(method, pattern)?);
        let exact = with(Method::Magnitude, pattern)?
            .with_damping(0.0)
            .with_refit(Refit::Exact);
        let exact = error(subject, &layer(), &exact)?;
        let (magnitude, adam) = (of(Method::Magnitude)?, of(Method::AdaPrune)?);
        ensure!(
            exact <= adam * (1.0 + 1e-6) && adam < magnitude,
            "{pattern}: AdaPrune leaves {adam:e}, its mask without an update {magnitude:e}, the best weights {exact:e}"
        );
        let twin = of(Method::AdaPruneCg)?;
        ensure!(
            exact <= twin * (1.0 + 1e-6) && twin <= 1.1 * exact,
            "{pattern}: conjugate gradients leave {twin:e} on the mask, the best weights {exact:e}"
        );
    }
    Ok(())
}

fn obc_blocks<B: Backend>(subject: &Subject<B>) -> Verdict {
    let pattern = "block:4:50%";
    let sweep = error(subject, &layer(), &with(Method::SparseGpt, pattern)?)?;
    let solution = layer().solve(&subject.solver, &with(Method::Obc, pattern)?)?;
    let pruned = solution.report.pruned;
    ensure!(pruned == 128, "{pruned} pruned, expected half of 8 x 32");
    for row in solution.mask.rows() {
        let whole = row.to_vec();
        ensure!(
            whole
                .chunks(4)
                .all(|run| run.iter().all(|kept| kept == &run[0])),
            "a run of {pattern} is pruned in part"
        );
    }
    let ours = layer().error(&solution);
    ensure!(
        ours < sweep,
        "{pattern}: the greedy search leaves {ours:e}, the sweep {sweep:e}"
    );
    Ok(())
}

fn source_is_kept<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    for (source, method) in [
        (MaskSource::Wanda, Method::Wanda),
        (MaskSource::Magnitude, Method::Magnitude),
        (MaskSource::Ria, Method::Ria),
    ] {
        let alone = layer.solve(&subject.solver, &with(method, "50%")?)?;
        let settings = with(Method::SparseGpt, "50%")?.with_mask_source(source);
        let swept = layer.solve(&subject.solver, &settings)?;
        ensure!(
            swept.mask == alone.mask,
            "{source}: the sweep changed the mask"
        );
        ensure!(
            layer.error(&swept) < layer.error(&alone),
            "{source}: the sweep made good for nothing"
        );
    }
    Ok(())
}

/// The error on held-out data is that of their own Hessian, and the method taken the one with the least.
fn best<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    let mut random = Random::new(930);
    let seen = random.activations(200, layer.cols());
    let unseen = random.activations(70, layer.cols());
    let h = truth::widen(unseen.view());
    let h = h.t().dot(&h) * 2.0;
    let total = truth::energy(&truth::widen(layer.weights.view()), &h);
    let mut hessian = subject.solver.hessian(layer.cols())?;
    hessian.update(seen.view())?;
    hessian.hold_out(unseen.view())?;
    let mut solve = |method| -> Verdict<f64> {
        let settings = with(method, "2:4")?;
        let solution = subject
            .solver
            .prune(layer.weights.view(), &mut hessian, &settings)?;
        let difference = truth::widen((&layer.weights - &solution.weights).view());
        let expected = truth::energy(&difference, &h) / total;
        let found = solution.report.held_out_error.unwrap_or(f64::NAN);
        close(
            format_args!("{method}: the held-out error"),
            found,
            expected,
            1.0,
            &ENERGY,
        )?;
        Ok(found)
    };
    let best = solve(Method::Best)?;
    for method in [Method::SparseGpt, Method::Quality, Method::Alps] {
        let alone = solve(method)?;
        ensure!(
            best <= alone,
            "{method} leaves {alone:e}, the best {best:e}"
        );
    }
    Ok(())
}

fn best_order<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    let in_order = |order| -> Verdict<_> {
        let settings = with(Method::SparseGpt, "50%")?.with_order(order);
        layer.solve(&subject.solver, &settings)
    };
    let best = in_order(ColumnOrder::Best)?;
    for order in [
        ColumnOrder::Natural,
        ColumnOrder::Descending,
        ColumnOrder::Rose,
    ] {
        let alone = in_order(order)?;
        ensure!(
            best.report.reconstruction_error <= alone.report.reconstruction_error,
            "{order} leaves {:?}, the best {:?}",
            alone.report.reconstruction_error,
            best.report.reconstruction_error
        );
        ensure!(
            alone.report.order == Some(order)
                || (order, alone.report.order) == (ColumnOrder::Rose, Some(ColumnOrder::Natural)),
            "{order} reported as {:?}",
            alone.report.order
        );
    }
    Ok(())
}

/// What comes behind swaps keeps their counts, and prunes at all.
fn swaps_before_refit<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    for (method, refit) in [
        (Method::Wanda, Some(Refit::ConjugateGradients { steps: 5 })),
        (Method::Magnitude, Some(Refit::Exact)),
        (Method::AdaPruneCg, None),
    ] {
        for (pattern, zeros) in [("50%", 128), ("2:4", 128), ("row:25%", 64)] {
            let mut settings = with(method, pattern)?.with_swaps(3);
            settings.refit = refit;
            let solution = layer.solve(&subject.solver, &settings)?;
            ensure!(
                solution.report.pruned == zeros && solution.report.zeros >= zeros,
                "{method} {pattern}: {} pruned, {} zeros, expected {zeros}",
                solution.report.pruned,
                solution.report.zeros
            );
            let without = layer.error(&layer.solve(&subject.solver, &with(method, pattern)?)?);
            ensure!(
                method == Method::AdaPruneCg || layer.error(&solution) < without,
                "{method} {pattern}: no better with swaps and refit than without"
            );
        }
    }
    Ok(())
}

fn swaps_lower<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    for (method, pattern) in [
        (Method::Magnitude, "50%"),
        (Method::Wanda, "50%"),
        (Method::Wanda, "2:4"),
        (Method::Ria, "row:30%"),
    ] {
        let plain = layer.solve(&subject.solver, &with(method, pattern)?)?;
        let settings = with(method, pattern)?.with_swaps(20);
        let swapped = layer.solve(&subject.solver, &settings)?;
        let group = if pattern == "2:4" { 4 } else { layer.cols() };
        let zeros = |mask: &[bool]| mask.iter().filter(|&&kept| !kept).count();
        for (before, after) in plain.mask.rows().into_iter().zip(swapped.mask.rows()) {
            let (before, after) = (before.to_vec(), after.to_vec());
            let groups = before.chunks(group).zip(after.chunks(group));
            ensure!(
                groups
                    .into_iter()
                    .all(|(before, after)| zeros(before) == zeros(after)),
                "{method} {pattern}: swaps changed the count of a row or group"
            );
        }
        let (before, after) = (layer.error(&plain), layer.error(&swapped));
        ensure!(
            after < before,
            "{method} {pattern}: {after:e} with swaps, {before:e} without"
        );
    }
    Ok(())
}

/// Masks that a solver chose or a caller gave are refined as those of a score are.
fn swaps_refine_any<B: Backend>(subject: &Subject<B>) -> Verdict {
    let layer = layer();
    let h = truth::widen(layer.hessian.view());
    // What a mask (`true` = kept) loses if nothing makes up for its zeros.
    let loss = |mask: &Array2<bool>| {
        let lost = Zip::from(&layer.weights)
            .and(mask)
            .map_collect(|&weight, &kept| if kept { 0.0 } else { f64::from(weight) });
        truth::energy(&lost, &h)
    };
    let mut random = Random::new(931);
    let given = GivenMask::keeping(random.mask(layer.rows(), layer.cols(), 50).view());
    for (name, settings) in [
        ("sparsegpt 50%", with(Method::SparseGpt, "50%")?),
        ("sparsegpt 2:4", with(Method::SparseGpt, "2:4")?),
        ("quality 50%", with(Method::Quality, "50%")?),
        ("a given mask", LayerSettings::new(given)),
    ] {
        let plain = layer.solve(&subject.solver, &settings)?;
        let swapped = layer.solve(&subject.solver, &settings.with_swaps(20))?;
        ensure!(
            plain.report.pruned == swapped.report.pruned,
            "{name}: {} pruned, with swaps {}",
            plain.report.pruned,
            swapped.report.pruned
        );
        let (before, after) = (loss(&plain.mask), loss(&swapped.mask));
        ensure!(
            after < before,
            "{name}: the mask alone loses {after:e} with swaps, {before:e} without"
        );
    }
    Ok(())
}

/// w² / [(H + λI)⁻¹]_jj on the dense weights.
fn obs_source<B: Backend>(subject: &Subject<B>) -> Verdict {
    const DAMPING: f64 = 0.01;
    let layer = layer();
    let settings = with(Method::Magnitude, "50%")?.with_mask_source(MaskSource::Obs);
    let solution = layer.solve(&subject.solver, &settings)?;
    ensure!(
        solution.report.pruned == 128 && solution.report.damping == DAMPING,
        "{} pruned with damping {}, expected 128 with {DAMPING}",
        solution.report.pruned,
        solution.report.damping
    );
    let mut h = truth::widen(layer.hessian.view());
    let mean = h.diag().mean().unwrap_or_default();
    h.diag_mut().mapv_inplace(|entry| entry + DAMPING * mean);
    let inverse = sparsegpt::rowwise::inverse(h.view())?;
    let saliency = |(row, col): (usize, usize)| {
        f64::from(layer.weights[[row, col]]).powi(2) / inverse[[col, col]]
    };
    let of = |kept: bool| {
        let marked = solution.mask.indexed_iter();
        marked
            .filter(move |(_, mark)| **mark == kept)
            .map(|(at, _)| saliency(at))
    };
    let (most_pruned, least_kept) = (
        of(false).fold(0.0, f64::max),
        of(true).fold(f64::INFINITY, f64::min),
    );
    ensure!(
        most_pruned <= least_kept * 1.001,
        "a weight of saliency {most_pruned:e} is pruned, one of {least_kept:e} is kept"
    );
    Ok(())
}

/// Columns that lose much come first on a mask that is given, too.
fn rose_on_a_mask<B: Backend>(subject: &Subject<B>) -> Verdict {
    let (rows, cols) = (3, 256);
    let mut layer = Layer::new(rows, cols, 932);
    // What is pruned stands in the last block of 128 columns.
    let mut keep = Array2::from_elem((rows, cols), true);
    for column in (130..cols).step_by(2) {
        keep.column_mut(column).fill(false);
        layer
            .weights
            .column_mut(column)
            .mapv_inplace(|weight| weight * 3.0);
    }
    let settings = LayerSettings::new(GivenMask::keeping(keep.view()));
    let natural = layer.solve(&subject.solver, &settings)?;
    let rose = layer.solve(&subject.solver, &settings.with_order(ColumnOrder::Rose))?;
    ensure!(
        rose.report.order == Some(ColumnOrder::Rose) && rose.mask == keep,
        "swept in order {:?}",
        rose.report.order
    );
    let (natural, rose) = (layer.error(&natural), layer.error(&rose));
    ensure!(
        rose < natural,
        "columns that come first are made good for by more others: {rose:e} in ROSE's order, {natural:e} in the natural one"
    );
    Ok(())
}
