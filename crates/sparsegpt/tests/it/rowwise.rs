//! Row-wise methods on the layers that the published reference implementation solved, where their folder is there.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use serde_json::Value;
use sparsegpt::backend::{Host, host};
use sparsegpt::rowwise::exact_refit;
use sparsegpt::{LayerSettings, Method, Pattern, Solver};

/// What was asked for, and the error that the reference leaves: tr(ΔW H ΔWᵀ) on the undamped H.
struct Request {
    name: String,
    sparsity: f64,
    /// Zeros in each `m` columns; 0 = not semi-structured.
    n: usize,
    m: usize,
    bits: u32,
    damping: f64,
}

impl Request {
    fn of(case: &Value) -> Self {
        let count = |key: &str| case[key].as_u64().unwrap();
        Self {
            name: case["name"].as_str().unwrap().to_owned(),
            sparsity: case["sparsity"].as_f64().unwrap(),
            n: count("n") as usize,
            m: count("m") as usize,
            bits: count("bits") as u32,
            damping: case["damping"].as_f64().unwrap(),
        }
    }
}

struct Golden {
    request: Request,
    weight: Array2<f32>,
    /// Symmetric, undamped.
    hessian: Array2<f64>,
    /// The reference's result.
    solution: Array2<f32>,
}

/// The fast backend, where it is built.
#[cfg(feature = "cpu")]
fn fast() -> sparsegpt::backend::Cpu {
    sparsegpt::backend::Cpu::new(2).unwrap()
}

#[cfg(not(feature = "cpu"))]
fn fast() -> Host {
    Host
}

impl Golden {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let case = metadata.metadata().as_ref().unwrap().get("case").unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let matrix = |name: &str| {
            let view = tensors.tensor(name).unwrap();
            let values = view.data().as_chunks().0.iter();
            let values = values.map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Array2::from_shape_vec((view.shape()[0], view.shape()[1]), values).unwrap()
        };
        let h = matrix("hessian");
        Self {
            request: Request::of(&serde_json::from_str(case).unwrap()),
            weight: matrix("weight"),
            hessian: Array2::from_shape_fn(h.dim(), |(row, col)| {
                f64::from(h[[row.max(col), row.min(col)]])
            }),
            solution: matrix("pruned"),
        }
    }

    /// H with λ on its diagonal, and the mean in the place of what is zero there.
    fn damped(&self) -> Array2<f64> {
        let mut damped = self.hessian.clone();
        let diagonal = self.hessian.diag();
        let live = diagonal.iter().filter(|&&entry| entry > 0.0).count();
        let (sum, cols) = (diagonal.sum(), diagonal.len());
        damped.diag_mut().mapv_inplace(|entry| {
            let entry = if entry > 0.0 {
                entry
            } else {
                sum / live as f64
            };
            entry + self.request.damping * sum / cols as f64
        });
        damped
    }

    fn pattern(&self) -> Pattern {
        match self.request.n {
            0 => Pattern::unstructured(self.request.sparsity).unwrap(),
            zeros => Pattern::n_of_m(zeros, self.request.m).unwrap(),
        }
    }

    /// The error of a method's result.
    fn error_of(&self, method: Method) -> f64 {
        let settings = LayerSettings::new(self.pattern())
            .with_method(method)
            .with_damping(self.request.damping);
        let solver = Solver::new(fast());
        let h = self.hessian.mapv(|entry| entry as f32);
        let mut hessian = solver.hessian_from(h.view()).unwrap();
        let solved = solver
            .prune(self.weight.view(), &mut hessian, &settings)
            .unwrap();
        self.error(solved.weights.view(), &self.hessian)
    }

    fn error(&self, weights: ArrayView2<'_, f32>, h: &Array2<f64>) -> f64 {
        let difference = self.weight.mapv(f64::from) - weights.mapv(f64::from);
        (&difference.dot(h) * &difference).sum()
    }
}

/// The cases that only prune; a notice and none where the folder is absent.
fn pruning_cases() -> Vec<Golden> {
    let shared = std::env::var_os("SPARSEGPT_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let folder = shared.join("golden").join("layers");
    let Ok(list) = std::fs::read(folder.join("cases.json")) else {
        println!(
            "skipped: no golden/layers beside the workspace; SPARSEGPT_SHARED may name the shared folder"
        );
        return Vec::new();
    };
    let list: Value = serde_json::from_slice(&list).unwrap();
    let requests = list.as_array().unwrap().iter().map(Request::of);
    let pruning =
        requests.filter(|request| request.bits == 16 && (request.n > 0 || request.sparsity > 0.0));
    let cases: Vec<Golden> = pruning
        .map(|request| Golden::read(&folder.join(request.name + ".safetensors")))
        .collect();
    assert!(!cases.is_empty());
    cases
}

#[test]
fn conjugate_gradients_come_close_to_the_exact_refit() {
    for case in pruning_cases() {
        let pruned = case.solution.mapv(|weight| weight == 0.0);
        let damped = case.damped();
        let exact = exact_refit(case.weight.view(), pruned.view(), damped.view()).unwrap();
        let exact = case.error(exact.view(), &damped);
        let (h, diagonal) = (
            damped.mapv(|entry| entry as f32),
            damped.diag().mapv(|entry| entry as f32).to_vec(),
        );
        for (steps, within) in [(20, 1.1), (40, 1.01)] {
            let mut weights = case.solution.clone();
            let dense = case.weight.view();
            host::refit(
                weights.view_mut(),
                dense,
                (h.view(), &diagonal),
                pruned.view(),
                steps,
            );
            let found = case.error(weights.view(), &damped);
            println!(
                "{}: {steps} steps leave {:.4}",
                case.request.name,
                found / exact
            );
            // Where nothing can be better, rounding to f32 may be.
            assert!(
                exact <= found * (1.0 + 1e-6) && found <= within * exact,
                "{}: {found:e} after {steps} steps, exactly {exact:e}",
                case.request.name
            );
        }
    }
}

#[test]
fn obc_stays_below_the_sweep() {
    for case in pruning_cases() {
        let request = &case.request;
        let settings = LayerSettings::new(case.pattern())
            .with_method(Method::Obc)
            .with_damping(request.damping);
        let solver = Solver::new(Host);
        let h = case.hessian.mapv(|entry| entry as f32);
        let mut hessian = solver.hessian_from(h.view()).unwrap();
        let ours = solver
            .prune(case.weight.view(), &mut hessian, &settings)
            .unwrap();
        let expected = match request.n {
            0 => (request.sparsity * case.weight.len() as f64).floor() as usize,
            zeros => case.weight.len() / request.m * zeros,
        };
        assert_eq!(ours.report.pruned as usize, expected, "{}", request.name);
        let found = case.error(ours.weights.view(), &case.hessian);
        let reference = case.error(case.solution.view(), &case.hessian);
        println!(
            "{}: {:.3} of the reference's error",
            request.name,
            found / reference
        );
        assert!(
            found <= reference,
            "{}: {found:e}, the reference {reference:e}",
            request.name
        );
    }
}

/// A layer of inputs with loud and quiet channels that share a little with each other, as those of language models do.
fn mildly_correlated(rows: usize, cols: usize, seed: u64) -> Golden {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // A sum of uniform numbers is normal enough.
    let mut normal = || {
        (0..6)
            .map(|_| random.random_range(-0.5..0.5_f64))
            .sum::<f64>()
            * 1.4
    };
    let tokens = 6 * cols;
    let common = Array2::from_shape_fn((tokens, 4), |_| normal());
    let mixing = Array2::from_shape_fn((4, cols), |_| 0.3 * normal());
    let loudness: Vec<f64> = (0..cols).map(|_| normal().exp()).collect();
    let own = Array2::from_shape_fn((tokens, cols), |_| normal());
    let mut inputs = own + common.dot(&mixing);
    for (column, loudness) in loudness.iter().enumerate() {
        inputs.column_mut(column).mapv_inplace(|x| x * loudness);
    }
    let weight = Array2::from_shape_fn((rows, cols), |_| (0.06 * normal()) as f32);
    Golden {
        request: Request {
            name: format!("mild correlation {seed}"),
            sparsity: 0.5,
            n: 0,
            m: 0,
            bits: 16,
            damping: 0.01,
        },
        solution: weight.clone(),
        weight,
        hessian: inputs.t().dot(&inputs),
    }
}

/// The paper's baselines in its order (section 4): magnitude, AdaPrune, SparseGPT, and ExactOBS, from the largest error to
/// the least. On the strongly correlated layers of the golden files the best weights on a bad mask are worth more than a
/// good mask, and AdaPrune stands before SparseGPT.
#[test]
fn the_baselines_come_in_the_papers_order() {
    let mild: Vec<Golden> = (0..3).map(|seed| mildly_correlated(48, 96, seed)).collect();
    let in_order = mild.len();
    for (at, case) in mild.into_iter().chain(pruning_cases()).enumerate() {
        let [magnitude, adaprune, twin, sparsegpt, obc] = [
            Method::Magnitude,
            Method::AdaPrune,
            Method::AdaPruneCg,
            Method::SparseGpt,
            Method::Obc,
        ]
        .map(|method| case.error_of(method));
        let found = format!(
            "{}: of magnitude's error AdaPrune leaves {:.4}, its twin {:.4}, SparseGPT {:.4}, ExactOBS {:.4}",
            case.request.name,
            adaprune / magnitude,
            twin / magnitude,
            sparsegpt / magnitude,
            obc / magnitude
        );
        println!("{found}");
        assert!(magnitude > adaprune && magnitude > twin, "{found}");
        assert!(magnitude > sparsegpt && sparsegpt > obc, "{found}");
        assert!(adaprune > obc && twin > obc, "{found}");
        if at < in_order {
            assert!(adaprune > sparsegpt && twin > sparsegpt, "{found}");
        }
    }
}
