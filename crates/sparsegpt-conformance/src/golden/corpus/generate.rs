//! Makes the corpus.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sparsegpt::ndarray::Array2;

use super::FILES;
use crate::golden::case::Request;
use crate::random::Random;
use crate::truth::{energy, inverse_factor, widen};

/// Closest a decision may come to going the other way, relative to what is compared. Rounding in f32 moves
/// saliencies and weights by about 1e-6.
const MARGIN: f64 = 2e-4;

struct Recipe {
    rows: usize,
    cols: usize,
    tokens: usize,
    dead: &'static [usize],
    request: Request,
}

fn recipes() -> Vec<Recipe> {
    let recipe = |name: &str, edit: &dyn Fn(&mut Recipe)| {
        let mut recipe = Recipe {
            rows: 10,
            cols: 32,
            tokens: 80,
            dead: &[],
            request: Request {
                name: name.to_owned(),
                sparsity: 0.0,
                n: 0,
                m: 0,
                bits: 16,
                symmetric: false,
                mse: false,
                per_channel: true,
                group_size: 0,
                block_size: 8,
                damping: 0.01,
                reconstruction_error: 0.0,
            },
        };
        edit(&mut recipe);
        recipe
    };
    vec![
        recipe("unstructured_50", &|r| r.request.sparsity = 0.5),
        recipe("unstructured_50_damping_10pct", &|r| {
            (r.request.sparsity, r.request.damping) = (0.5, 0.1);
        }),
        recipe("unstructured_70_one_block", &|r| {
            (r.request.sparsity, r.request.block_size) = (0.7, 128);
        }),
        recipe("unstructured_50_dead_columns", &|r| {
            (r.request.sparsity, r.dead) = (0.5, &[0, 13, 14, 31]);
        }),
        recipe("unstructured_50_ragged_columns", &|r| {
            (r.request.sparsity, r.cols) = (0.5, 29)
        }),
        recipe("unstructured_50_one_row", &|r| {
            (r.request.sparsity, r.rows) = (0.5, 1)
        }),
        recipe("unstructured_50_one_column_blocks", &|r| {
            (r.request.sparsity, r.request.block_size) = (0.5, 1);
        }),
        recipe("unstructured_50_fewer_tokens_than_columns", &|r| {
            (r.request.sparsity, r.tokens) = (0.5, 12);
        }),
        recipe("nm_2_4", &|r| (r.request.n, r.request.m) = (2, 4)),
        recipe("nm_3_7", &|r| {
            (r.request.n, r.request.m, r.cols, r.request.block_size) = (3, 7, 35, 14);
        }),
        recipe("nm_1_2_one_row", &|r| {
            (r.request.n, r.request.m, r.rows) = (1, 2, 1)
        }),
        recipe("joint_50_int4", &|r| {
            (r.request.sparsity, r.request.bits) = (0.5, 4)
        }),
        recipe("joint_2_4_int3_symmetric", &|r| {
            (
                r.request.n,
                r.request.m,
                r.request.bits,
                r.request.symmetric,
            ) = (2, 4, 3, true);
        }),
        recipe("quantize_int4", &|r| r.request.bits = 4),
        recipe("quantize_int3_groups_ragged", &|r| {
            (r.request.bits, r.request.group_size, r.cols) = (3, 12, 30);
        }),
        recipe("quantize_int4_per_tensor", &|r| {
            (r.request.bits, r.request.per_channel) = (4, false);
        }),
    ]
}

/// What the f64 solver returns.
struct Solution {
    weights: Array2<f64>,
    scale: Array2<f64>,
    zero: Array2<f64>,
    /// The closest decision.
    margin: f64,
}

/// Algorithm 1 of the paper with Eq. 7, one column at a time over all later columns.
fn solve(recipe: &Recipe, dense: &Array2<f32>, hessian: &Array2<f32>) -> Solution {
    let request = &recipe.request;
    let (rows, cols) = dense.dim();
    let mut w = widen(dense.view());
    let mut h = widen(hessian.view());
    let mean = h.diag().sum() / cols as f64;
    for &column in recipe.dead {
        w.column_mut(column).fill(0.0);
        h[[column, column]] = 1.0;
    }
    for column in 0..cols {
        h[[column, column]] += request.damping * mean;
    }
    let r = inverse_factor(&h).unwrap();
    let group = if request.group_size > 0 {
        request.group_size
    } else {
        cols
    };
    let groups = cols.div_ceil(group);
    let (mut scale, mut zero) = (Array2::zeros((rows, groups)), Array2::zeros((rows, groups)));
    let mut margin = f64::INFINITY;
    let mut mask = Array2::from_elem((rows, cols), false);
    let mut pruned = 0;
    for j in 0..cols {
        if request.quantizes() && j % group == 0 {
            let columns: Vec<usize> = (j..(j + group).min(cols)).collect();
            let everything: Vec<f64> = w
                .columns()
                .into_iter()
                .skip(j)
                .take(columns.len())
                .flatten()
                .copied()
                .collect();
            for row in 0..rows {
                let values: Vec<f64> = columns.iter().map(|&col| w[[row, col]]).collect();
                let values = if request.per_channel {
                    &values
                } else {
                    &everything
                };
                let (s, z, distance) = fit(request, values);
                (scale[[row, j / group]], zero[[row, j / group]]) = (s, z);
                margin = margin.min(distance);
            }
        }
        let mut choose = |candidates: Vec<(usize, usize)>, count: usize, w: &Array2<f64>| {
            let mut scored: Vec<_> = candidates
                .into_iter()
                .map(|(row, col)| ((w[[row, col]] / r[[col, col]]).powi(2), col, row))
                .collect();
            scored.sort_by(|a, b| a.partial_cmp(b).unwrap());
            for &(_, col, row) in &scored[..count] {
                mask[[row, col]] = true;
            }
            if count > 0 && count < scored.len() {
                let (last, next) = (scored[count - 1].0, scored[count].0);
                // Equal zeros of dead columns are ordered by position, not by rounding.
                if next > 0.0 {
                    margin = margin.min((next - last) / next);
                }
            }
        };
        if request.n > 0 && j % request.m == 0 {
            for row in 0..rows {
                choose(
                    (j..j + request.m).map(|col| (row, col)).collect(),
                    request.n,
                    &w,
                );
            }
        }
        if request.sparsity > 0.0 && j % request.block_size == 0 {
            let end = (j + request.block_size).min(cols);
            let target = (request.sparsity * (rows * end) as f64) as usize;
            let block = (j..end)
                .flat_map(|col| (0..rows).map(move |row| (row, col)))
                .collect();
            choose(block, target - pruned, &w);
            pruned = target;
        }
        for row in 0..rows {
            let current = w[[row, j]];
            let q = match () {
                () if mask[[row, j]] => 0.0,
                () if request.quantizes() => {
                    let (s, z) = (scale[[row, j / group]], zero[[row, j / group]]);
                    let code = current / s;
                    margin = margin.min(from_border(code));
                    ((code.round_ties_even() + z).clamp(0.0, largest_code(request)) - z) * s
                }
                () => current,
            };
            let e = (current - q) / r[[j, j]];
            for k in j + 1..cols {
                w[[row, k]] -= e * r[[j, k]];
            }
            w[[row, j]] = q;
        }
    }
    Solution {
        weights: w,
        scale,
        zero,
        margin,
    }
}

fn largest_code(request: &Request) -> f64 {
    f64::from((1_u32 << request.bits) - 1)
}

/// How far a value is from lying between two whole numbers.
fn from_border(value: f64) -> f64 {
    ((value - value.floor()) - 0.5).abs()
}

/// Scale, zero point, and how far the latter is from being another one.
fn fit(request: &Request, values: &[f64]) -> (f64, f64, f64) {
    let low = values.iter().copied().fold(0.0, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    if request.symmetric {
        let high = high.max(-low);
        (
            2.0 * high / largest_code(request),
            f64::from(1_u32 << (request.bits - 1)),
            1.0,
        )
    } else {
        let scale = (high - low) / largest_code(request);
        (
            scale,
            (-low / scale).round_ties_even(),
            from_border(-low / scale),
        )
    }
}

/// The file of a recipe from the first seed that leaves a margin.
fn make(recipe: &Recipe) -> Vec<u8> {
    for seed in 0.. {
        let mut random = Random::new(seed);
        let dense = random.matrix(recipe.rows, recipe.cols);
        let mut x = random.activations(recipe.tokens, recipe.cols);
        for &column in recipe.dead {
            x.column_mut(column).fill(0.0);
        }
        let x = widen(x.view());
        let hessian = (x.t().dot(&x) * 2.0).mapv(|entry| entry as f32);
        let solution = solve(recipe, &dense, &hessian);
        if solution.margin < MARGIN {
            continue;
        }
        let pruned = solution.weights.mapv(|w| w as f32);
        let mut request = recipe.request.clone();
        request.reconstruction_error = energy(
            &(widen(dense.view()) - widen(pruned.view())),
            &widen(hessian.view()),
        );
        let (scale, zero) = (
            solution.scale.mapv(|scale| scale as f32),
            solution.zero.mapv(|zero| zero as f32),
        );
        let mut tensors = vec![
            ("weight", &dense),
            ("hessian", &hessian),
            ("pruned", &pruned),
        ];
        if request.quantizes() {
            tensors.extend([("scale", &scale), ("zero", &zero)]);
        }
        return serialize(&tensors, &request, seed);
    }
    unreachable!("seeds do not run out")
}

fn serialize(tensors: &[(&str, &Array2<f32>)], request: &Request, seed: u64) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, values)| {
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|(&(name, values), bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, values.shape().to_vec(), bytes).unwrap(),
        )
    });
    let mut case = serde_json::to_value(request).unwrap();
    case["seed"] = seed.into();
    case["made_by"] = "sparsegpt-conformance, src/golden/corpus/generate.rs".into();
    let metadata = HashMap::from([("case".to_owned(), case.to_string())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn the_corpus_is_what_its_generator_makes() {
    let recipes = recipes();
    assert_eq!(recipes.len(), FILES.len());
    for (recipe, (name, bytes)) in recipes.iter().zip(FILES) {
        assert_eq!(recipe.request.name, *name);
        assert!(
            make(recipe) == *bytes,
            "{name} differs from what the generator makes"
        );
    }
}

#[test]
#[ignore = "writes into the source tree"]
fn write_the_corpus() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/golden/corpus");
    for recipe in recipes() {
        let path = folder.join(format!("{}.safetensors", recipe.request.name));
        std::fs::write(path, make(&recipe)).unwrap();
    }
}
