//! ADMM with other settings than a method's own.

#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sparsegpt::backend::Cpu;
use sparsegpt::ndarray::Array2;
use sparsegpt::solver::Admm;
use sparsegpt::{LayerSettings, Method, Pattern, PrunedLayer, Result, Solver};

fn solve(settings: &LayerSettings) -> Result<PrunedLayer> {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut matrix = |rows, cols| {
        Array2::from_shape_simple_fn((rows, cols), || random.random_range(-1.0..1.0_f32))
    };
    let weights = matrix(12, 32);
    // Inputs that share directions.
    let inputs = matrix(200, 20).dot(&matrix(20, 32)) + 0.1 * &matrix(200, 32);
    let solver = Solver::new(Cpu::new(1).unwrap());
    let mut hessian = solver.hessian(32)?;
    hessian.update(inputs.view())?;
    solver.prune(weights.view(), &mut hessian, settings)
}

fn with(method: Method, admm: Option<Admm>) -> LayerSettings {
    let mut settings = LayerSettings::new(Pattern::n_of_m(2, 4).unwrap()).with_method(method);
    settings.admm = admm;
    settings
}

#[test]
fn settings_as_the_methods_own_change_nothing_and_others_do() {
    for (method, own) in [
        (Method::Admm, Admm::GRADUAL),
        (Method::Quality, Admm::GRADUAL),
        (Method::Alps, Admm::ALPS),
    ] {
        let without = solve(&with(method, None)).unwrap();
        let same = solve(&with(method, Some(own))).unwrap();
        assert_eq!(without.weights, same.weights, "{method}");
        let mut fewer = own;
        (fewer.iterations, fewer.ramp) = (3, 2);
        let other = solve(&with(method, Some(fewer))).unwrap();
        assert_ne!(without.weights, other.weights, "{method}");
        assert_eq!(other.report.pruned, 12 * 16, "{method}");
        assert!(
            other.report.method.contains("iterations=3,ramp=2,"),
            "{}",
            other.report.method
        );
    }
}

#[test]
fn a_long_ramp_reaches_the_full_number_of_zeros_whatever_stands_still_on_the_way() {
    for pattern in ["50%", "row:10%", "2:4", "4:8"] {
        for admm in [
            "iterations=40,ramp=40,growing=true",
            "iterations=200,ramp=180,growing=true",
        ] {
            let settings = LayerSettings::new(pattern.parse::<Pattern>().unwrap())
                .with_method(Method::Admm)
                .with_admm(Admm::GRADUAL.changed(admm).unwrap());
            let zeros = match pattern {
                "row:10%" => 12 * 3,
                _ => 12 * 16,
            };
            let layer = solve(&settings).unwrap();
            assert_eq!(layer.report.pruned, zeros, "{pattern} {admm}");
        }
    }
}

#[test]
fn written_settings_are_read_back() {
    for own in [Admm::GRADUAL, Admm::ALPS] {
        let written = own.to_string();
        assert_eq!(Admm::GRADUAL.changed(&written).unwrap(), own, "{written}");
    }
    let changed = Admm::ALPS.changed("penalty = 0.5, growing=false").unwrap();
    assert_eq!((changed.penalty, changed.growing), (0.5, false));
    assert_eq!(changed.iterations, Admm::ALPS.iterations);
}

#[test]
fn settings_out_of_range_or_without_use_are_refused() {
    for (changes, named) in [
        ("", "name=value"),
        ("steps=3", "name=value"),
        ("iterations", "whole number for iterations"),
        ("iterations=-1", "whole number for iterations"),
        ("growing=1", "true or false for growing"),
        ("penalty=x", "number for penalty"),
        ("penalty=1,penalty=2", "each setting once"),
        ("iterations=0,ramp=0", "at least 1"),
        ("iterations=10", "at most the iterations, 10"),
        ("damping=-0.1", "from 0"),
        ("damping=NaN", "from 0"),
        ("penalty=0", "above 0"),
        ("penalty=inf", "above 0"),
    ] {
        let error = Admm::GRADUAL.changed(changes).unwrap_err().to_string();
        assert!(error.contains(named), "{changes}: {error}");
    }
    let mut beyond = Admm::GRADUAL;
    beyond.penalty = f64::NAN;
    for (method, admm, named) in [
        (Method::SparseGpt, Admm::GRADUAL, "has none"),
        (Method::Best, Admm::GRADUAL, "of their own"),
        (Method::Quality, beyond, "above 0"),
    ] {
        let error = solve(&with(method, Some(admm))).unwrap_err().to_string();
        assert!(error.contains(named), "{method}: {error}");
    }
}
