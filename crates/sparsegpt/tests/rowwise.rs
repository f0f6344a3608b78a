//! Row-wise methods on the layers that the published reference implementation solved, where their folder is there.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2};
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
        let pattern = match request.n {
            0 => Pattern::unstructured(request.sparsity).unwrap(),
            zeros => Pattern::n_of_m(zeros, request.m).unwrap(),
        };
        let settings = LayerSettings::new(pattern)
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
