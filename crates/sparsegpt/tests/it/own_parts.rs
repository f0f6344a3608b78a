//! Parts of one's own: they do what the named ones do where they compute the same, and are held to what they promise.

#![allow(clippy::unwrap_used)]

use ndarray::{Array2, ArrayView2, array};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::{Host, Operation};
use sparsegpt::rowwise::exact_refit;
use sparsegpt::solver::own::{
    LayerProblem, OrderColumns, RefitWeights, ScoreWeights, SolveWeights,
};
use sparsegpt::solver::{Admm, ColumnOrder, MaskSource, Refit};
use sparsegpt::{
    Error, Hessian, LayerPruner, LayerSettings, LayerTask, Method, Pattern, Result, Solver,
    UniformGrid,
};

const ROWS: usize = 6;
const COLS: usize = 24;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_fn((rows, cols), |_| random.random_range(-1.0_f32..1.0))
}

/// Correlated inputs, of which the last is dead.
fn hessian() -> Hessian<Host> {
    let mut inputs = random(60, COLS, 1).dot(&random(COLS, COLS, 2));
    inputs.column_mut(COLS - 1).fill(0.0);
    let mut hessian = Solver::new(Host).hessian(COLS).unwrap();
    hessian.update(inputs.view()).unwrap();
    hessian
}

fn prune(settings: &LayerSettings) -> Result<sparsegpt::PrunedLayer> {
    Solver::new(Host).prune(random(ROWS, COLS, 3).view(), &mut hessian(), settings)
}

fn settings(pattern: &str) -> LayerSettings {
    LayerSettings::new(pattern.parse::<Pattern>().unwrap())
}

/// |w|·‖x_j‖ by row, or |w| by layer.
#[derive(Debug)]
struct Scores {
    norms: bool,
}

impl ScoreWeights for Scores {
    fn describe(&self) -> String {
        "a test".to_owned()
    }
    fn scores(&self, problem: &LayerProblem<'_>) -> Result<Array2<f32>> {
        let mut scores = problem.weights().mapv(f32::abs);
        if self.norms {
            for (col, mut column) in scores.columns_mut().into_iter().enumerate() {
                column *= problem.hessian()?[[col, col]].sqrt() as f32;
            }
        }
        Ok(scores)
    }
    fn needs_hessian(&self) -> bool {
        self.norms
    }
    fn within_rows(&self) -> bool {
        self.norms
    }
}

/// Answers what it is told, whatever it is asked.
#[derive(Clone, Debug)]
struct Says(Array2<f32>);

impl ScoreWeights for Says {
    fn describe(&self) -> String {
        "what it says".to_owned()
    }
    fn scores(&self, _: &LayerProblem<'_>) -> Result<Array2<f32>> {
        Ok(self.0.clone())
    }
}

impl SolveWeights for Says {
    fn describe(&self) -> String {
        "what it says".to_owned()
    }
    fn solve(&self, _: &LayerProblem<'_>, _: Option<ArrayView2<'_, bool>>) -> Result<Array2<f32>> {
        Ok(self.0.clone())
    }
}

impl RefitWeights for Says {
    fn describe(&self) -> String {
        "what it says".to_owned()
    }
    fn refit(
        &self,
        _: &LayerProblem<'_>,
        _: ArrayView2<'_, f32>,
        _: ArrayView2<'_, bool>,
    ) -> Result<Array2<f32>> {
        Ok(self.0.clone())
    }
}

/// The best weights on a mask: the given one, or that of the smallest weights.
#[derive(Debug)]
struct Exact;

impl Exact {
    fn on(problem: &LayerProblem<'_>, kept: ArrayView2<'_, bool>) -> Result<Array2<f32>> {
        let pruned = kept.mapv(|kept| !kept);
        exact_refit(
            problem.weights(),
            pruned.view(),
            problem.damped_hessian()?.view(),
        )
    }
}

impl SolveWeights for Exact {
    fn describe(&self) -> String {
        "normal equations".to_owned()
    }
    fn solve(
        &self,
        problem: &LayerProblem<'_>,
        kept: Option<ArrayView2<'_, bool>>,
    ) -> Result<Array2<f32>> {
        match kept {
            Some(kept) => Self::on(problem, kept),
            None => Self::on(
                problem,
                problem
                    .keep(problem.weights().mapv(f32::abs).view())?
                    .view(),
            ),
        }
    }
}

impl RefitWeights for Exact {
    fn describe(&self) -> String {
        "normal equations".to_owned()
    }
    fn refit(
        &self,
        problem: &LayerProblem<'_>,
        _: ArrayView2<'_, f32>,
        kept: ArrayView2<'_, bool>,
    ) -> Result<Array2<f32>> {
        Self::on(problem, kept)
    }
}

#[derive(Debug)]
struct Order(fn(&[f32], usize) -> Vec<usize>);

impl OrderColumns for Order {
    fn describe(&self) -> String {
        "a test".to_owned()
    }
    fn order(&self, _: ArrayView2<'_, f32>, diagonal: &[f32], group: usize) -> Result<Vec<usize>> {
        Ok(self.0(diagonal, group))
    }
}

fn descending(diagonal: &[f32], _: usize) -> Vec<usize> {
    let mut columns: Vec<usize> = (0..diagonal.len()).collect();
    columns.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    columns
}

#[test]
fn scores_choose_as_the_named_sources_do() {
    for pattern in ["50%", "2:4", "row:40%", "block:4:50%", "2:2:4"] {
        for method in [Method::Magnitude, Method::SparseGpt, Method::Quality] {
            for (norms, named) in [(true, MaskSource::Wanda), (false, MaskSource::Magnitude)] {
                let settings = settings(pattern).with_method(method);
                let own = settings.clone().with_own_mask_source(Scores { norms });
                let (own, named) = (
                    prune(&own).unwrap(),
                    prune(&settings.with_mask_source(named)).unwrap(),
                );
                assert_eq!(own.mask, named.mask, "{pattern} {method} {norms}");
                assert_eq!(own.weights, named.weights, "{pattern} {method} {norms}");
                assert_eq!(own.report.method, format!("{method}, mask by a test"));
                assert!(own.report.host_operations.contains(&Operation::Select));
            }
        }
    }
}

#[test]
fn scores_that_need_no_calibration_are_asked_without() {
    let settings = settings("50%").with_method(Method::Magnitude);
    let own = settings
        .clone()
        .with_own_mask_source(Scores { norms: false });
    assert!(!own.needs_hessian());
    let weights = random(ROWS, COLS, 3);
    let solver = Solver::new(Host);
    let own = solver.prune_uncalibrated(weights.view(), &own).unwrap();
    let named = solver
        .prune_uncalibrated(weights.view(), &settings)
        .unwrap();
    assert_eq!(own.weights, named.weights);
    let needs = settings.with_own_mask_source(Scores { norms: true });
    assert!(needs.needs_hessian());
    let error = solver
        .prune_uncalibrated(weights.view(), &needs)
        .unwrap_err();
    assert!(error.to_string().contains("needs calibration"), "{error}");
}

#[test]
fn a_solver_is_given_the_mask_or_chooses_it() {
    let exact = settings("50%")
        .with_method(Method::Magnitude)
        .with_refit(Refit::Exact);
    let exact = prune(&exact).unwrap();
    // On the mask of another source, by itself, and by the policy.
    let base = settings("50%").with_own_solver(Exact);
    for settings in [
        base.clone().with_method(Method::Magnitude),
        base.clone().with_mask_source(MaskSource::Magnitude),
        base,
    ] {
        let own = prune(&settings).unwrap();
        assert_eq!(own.mask, exact.mask);
        assert_eq!(own.weights, exact.weights);
        assert!(own.report.method.contains("weights by normal equations"));
        assert_eq!(
            own.report.reconstruction_error,
            exact.report.reconstruction_error
        );
    }
    let given = LayerSettings::new(sparsegpt::mask::GivenMask::keeping(exact.mask.view()))
        .with_own_solver(Exact);
    assert_eq!(prune(&given).unwrap().weights, exact.weights);
}

#[test]
fn the_pattern_holds_whatever_a_solver_returns() {
    let dense = random(ROWS, COLS, 9);
    for pattern in ["50%", "2:4", "row:40%", "block:4:50%", "2:2:4"] {
        let settings = settings(pattern).with_own_solver(Says(dense.clone()));
        let own = prune(&settings).unwrap();
        let named = prune(&self::settings(pattern).with_method(Method::Magnitude)).unwrap();
        assert_eq!(own.report.pruned, named.report.pruned, "{pattern}");
        assert!(
            ndarray::Zip::from(&own.weights)
                .and(&own.mask)
                .all(|&weight, &kept| kept || weight == 0.0)
        );
        // Never above its mask without an update: nonsense is not taken.
        let mut masked = random(ROWS, COLS, 3);
        masked.zip_mut_with(&own.mask, |weight, &kept| {
            if !kept {
                *weight = 0.0
            }
        });
        let quantized = settings.with_quantizer(UniformGrid::new(4).unwrap());
        let quantized = prune(&quantized).unwrap();
        assert!(
            ndarray::Zip::from(&quantized.weights)
                .and(&quantized.mask)
                .all(|&weight, &kept| kept || weight == 0.0)
        );
        assert!(
            error(&own.weights) <= error(&masked) * (1.0 + 1e-6),
            "{pattern}"
        );
    }
}

/// tr(ΔW H ΔWᵀ).
fn error(weights: &Array2<f32>) -> f64 {
    let lower = hessian().to_array().unwrap();
    let h = Array2::from_shape_fn(lower.dim(), |(i, j)| f64::from(lower[[i.max(j), i.min(j)]]));
    let difference = (&random(ROWS, COLS, 3) - weights).mapv(f64::from);
    (&difference.dot(&h) * &difference).sum()
}

#[test]
fn a_refit_is_kept_only_where_the_error_drops() {
    let plain = prune(&settings("50%")).unwrap();
    let worse = settings("50%").with_own_refit(Says(random(ROWS, COLS, 9)));
    let kept = prune(&worse).unwrap();
    assert_eq!(kept.weights, plain.weights);
    assert!(kept.report.method.ends_with("refit what it says"));
    let (own, named) = (
        prune(&settings("50%").with_own_refit(Exact)).unwrap(),
        prune(&settings("50%").with_refit(Refit::Exact)).unwrap(),
    );
    assert_eq!(own.weights, named.weights);
    assert!(own.report.host_operations.contains(&Operation::Refit));
}

#[test]
fn an_order_is_swept_and_shared() {
    let named = prune(&settings("50%").with_order(ColumnOrder::Descending)).unwrap();
    let own = settings("50%").with_own_order(Order(descending));
    let swept = prune(&own).unwrap();
    assert_eq!(swept.weights, named.weights);
    assert_eq!(swept.report.order, Some(ColumnOrder::Own));
    assert!(swept.report.method.ends_with("order a test"));
    // Two layers in the same order share their factor.
    let weights = random(ROWS, COLS, 3);
    let task = LayerTask {
        name: "x",
        weights: weights.view(),
        settings: &own,
    };
    let mut seconds = Vec::new();
    LayerPruner::prune_layers(
        &Solver::new(Host),
        Some(&mut hessian()),
        &[task, task],
        &mut |_, layer| {
            seconds.push(layer.report.seconds.factor);
            Ok(())
        },
    )
    .unwrap();
    assert_eq!(seconds[1], 0.0);
}

#[test]
fn weights_of_dead_inputs_go_first_whatever_their_scores() {
    let mut loud = random(ROWS, COLS, 4).mapv(f32::abs);
    loud.column_mut(COLS - 1).fill(1e6);
    let dead =
        |layer: &sparsegpt::PrunedLayer| layer.mask.column(COLS - 1).iter().all(|kept| !kept);
    for pattern in ["50%", "row:40%", "2:4", "1:4"] {
        let settings = settings(pattern).with_own_mask_source(Says(loud.clone()));
        assert!(dead(&prune(&settings).unwrap()), "{pattern}");
    }
}

/// Remembers what the mask is that the problem speaks of, and the one it is given.
#[derive(Clone, Debug, Default)]
struct Masks(std::sync::Arc<std::sync::Mutex<Vec<[Array2<bool>; 2]>>>);

impl RefitWeights for Masks {
    fn describe(&self) -> String {
        "a test".to_owned()
    }
    fn refit(
        &self,
        problem: &LayerProblem<'_>,
        weights: ArrayView2<'_, f32>,
        kept: ArrayView2<'_, bool>,
    ) -> Result<Array2<f32>> {
        let chosen = problem.keep(problem.weights().mapv(f32::abs).view())?;
        self.0.lock().unwrap().push([chosen, kept.to_owned()]);
        Ok(weights.to_owned())
    }
}

#[test]
fn a_refit_is_shown_the_mask_that_was_chosen() {
    for method in [Method::SparseGpt, Method::Wanda, Method::Quality] {
        for pattern in ["50%", "2:4"] {
            let masks = Masks::default();
            let layer = prune(
                &settings(pattern)
                    .with_method(method)
                    .with_own_refit(masks.clone()),
            );
            let layer = layer.unwrap();
            let seen = masks.0.lock().unwrap();
            assert_eq!(seen.len(), 1);
            assert!(
                seen[0].iter().all(|mask| *mask == layer.mask),
                "{method} {pattern}"
            );
        }
    }
}

#[test]
fn weights_whose_error_overflows_are_not_taken() {
    let huge = random(ROWS, COLS, 9).mapv(|weight| weight.signum() * 1e37);
    let settings = settings("50%").with_own_solver(Says(huge));
    let mut hessian = hessian().to_array().unwrap();
    hessian.mapv_inplace(|entry| entry * 1e6);
    let weights = random(ROWS, COLS, 3);
    let layer = {
        let solver = Solver::new(Host);
        let mut hessian = solver.hessian_from(hessian.view()).unwrap();
        solver
            .prune(weights.view(), &mut hessian, &settings)
            .unwrap()
    };
    assert!(layer.weights.iter().all(|weight| weight.abs() <= 1.0));
    #[cfg(feature = "cpu")]
    {
        let solver = Solver::new(sparsegpt::backend::Cpu::new(1).unwrap());
        let mut hessian = solver.hessian_from(hessian.view()).unwrap();
        let layer = solver
            .prune(weights.view(), &mut hessian, &settings)
            .unwrap();
        assert!(layer.weights.iter().all(|weight| weight.abs() <= 1.0));
    }
}

#[test]
fn what_is_wrong_is_named() {
    let refused = |settings: LayerSettings, words: &str| {
        let error = prune(&settings).unwrap_err();
        assert!(matches!(error, Error::Incompatible { .. }), "{error}");
        assert!(
            error.to_string().contains(words),
            "{error} without {words:?}"
        );
    };
    let small = array![[1.0]];
    let mut nan = random(ROWS, COLS, 5);
    nan[[1, 2]] = f32::NAN;
    let negative = Array2::from_elem((ROWS, COLS), -1.0);
    refused(
        settings("50%").with_own_mask_source(Says(small.clone())),
        "(1, 1) values for (6, 24)",
    );
    refused(
        settings("50%").with_own_mask_source(Says(nan.clone())),
        "NaN for weight (1, 2)",
    );
    refused(
        settings("50%").with_own_mask_source(Says(negative)),
        "score -1",
    );
    refused(
        settings("50%").with_own_solver(Says(small.clone())),
        "values for",
    );
    refused(settings("50%").with_own_solver(Says(nan.clone())), "NaN");
    refused(settings("50%").with_own_refit(Says(small)), "values for");
    refused(settings("50%").with_own_refit(Says(nan)), "NaN");

    let order = |order| settings("2:4").with_own_order(Order(order));
    refused(order(|_, _| vec![0, 1, 2]), "column 3 is missing");
    refused(order(|_, _| vec![0, 1, 2, 2]), "column 2 comes twice");
    refused(order(|_, _| vec![24]), "column 24 of 24");
    refused(
        order(|_, _| (0..COLS).map(|at| (at * 5) % COLS).collect()),
        "one group of 4",
    );

    refused(
        settings("50%").with_mask_source(MaskSource::Own),
        "none is given",
    );
    refused(settings("50%").with_refit(Refit::Own), "none is given");
    refused(
        settings("50%").with_order(ColumnOrder::Own),
        "none is given",
    );
    refused(
        settings("50%")
            .with_method(Method::Wanda)
            .with_mask_source(MaskSource::Solver),
        "no solver that could choose",
    );
    refused(
        settings("block:4:50%").with_swaps(2),
        "swaps would break it",
    );
    // A mask that leaves no choice needs nobody who makes it.
    let given = Array2::from_elem((ROWS, COLS), true);
    let given = LayerSettings::new(sparsegpt::mask::GivenMask::keeping(given.view()));
    let whole = prune(
        &given
            .with_method(Method::Wanda)
            .with_mask_source(MaskSource::Solver),
    );
    assert_eq!(whole.unwrap().report.pruned, 0);
    refused(
        settings("50%")
            .with_own_solver(Exact)
            .with_method(Method::Best),
        "takes the place",
    );
    refused(
        settings("50%")
            .with_own_solver(Exact)
            .with_method(Method::Admm)
            .with_admm(Admm::GRADUAL),
        "takes the place",
    );
}
