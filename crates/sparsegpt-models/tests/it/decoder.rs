//! The decoder, perplexity and generation on tiny random models, against a decoder written here in plain
//! f64 loops.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use serde_json::{Value, json};
use sparsegpt::ndarray::Array2;
use sparsegpt::{Activations, Batch, ModelAdapter, NoTap, Tap};
use sparsegpt_models::checkpoint::Overlay;
use sparsegpt_models::decoder::{Transformer, TransformerAdapter};
use sparsegpt_models::evaluate::{PerplexityOptions, perplexity};
use sparsegpt_models::generate::{GenerateOptions, Generated, Stop, generate, generate_samples};
use sparsegpt_models::{Error, TensorInfo, TensorSource};

const VOCABULARY: usize = 40;
const HIDDEN: usize = 24;
const INNER: usize = 36;
const BLOCKS: usize = 2;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const MAX_POSITIONS: usize = 32;
const EPS: f64 = 1e-5;
const THETA: f64 = 10_000.0;

/// Tensors in memory.
#[derive(Clone, Debug, Default)]
struct Memory(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl TensorSource for Memory {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.get(name).map(|(shape, _)| TensorInfo {
            dtype: Dtype::F32,
            shape: shape.clone(),
        })
    }
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(self.0[name].1.clone())
    }
}

/// What distinguishes the models of this file.
#[derive(Clone, Debug)]
struct Model {
    config: Value,
    tensors: Memory,
    /// Keys that a query sees, by block.
    windows: [Option<usize>; BLOCKS],
    activation: fn(f64) -> f64,
    /// Positions are divided by this (linear rotary scaling).
    stretch: f64,
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

/// A model of random weights; `changes` go into config.json.
fn model(changes: Value, qkv_bias: bool, other_biases: bool) -> Model {
    let mut config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "rms_norm_eps": EPS,
        "max_position_embeddings": MAX_POSITIONS, "rope_theta": THETA,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut tensors = Memory::default();
    let mut add = |name: String, shape: &[usize], centre: f32, width: f32| {
        let values = (0..shape.iter().product::<usize>())
            .map(|_| centre + width * random.random_range(-1.0..1.0_f32))
            .collect();
        tensors.0.insert(name, (shape.to_vec(), values));
    };
    add(
        "model.embed_tokens.weight".into(),
        &[VOCABULARY, HIDDEN],
        0.0,
        1.0,
    );
    add("model.norm.weight".into(), &[HIDDEN], 1.0, 0.3);
    if config["tie_word_embeddings"] != json!(true) {
        add("lm_head.weight".into(), &[VOCABULARY, HIDDEN], 0.0, 1.0);
    }
    for block in 0..BLOCKS {
        let prefix = format!("model.layers.{block}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(format!("{prefix}.{norm}.weight"), &[HIDDEN], 1.0, 0.3);
        }
        for (part, rows, cols, bias) in linears(qkv_bias, other_biases) {
            add(format!("{prefix}.{part}.weight"), &[rows, cols], 0.0, 0.5);
            if bias {
                add(format!("{prefix}.{part}.bias"), &[rows], 0.0, 0.5);
            }
        }
    }
    Model {
        config,
        tensors,
        windows: [None; BLOCKS],
        activation: silu,
        stretch: 1.0,
    }
}

fn linears(qkv_bias: bool, other_biases: bool) -> [(&'static str, usize, usize, bool); 7] {
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    [
        ("self_attn.q_proj", q, HIDDEN, qkv_bias),
        ("self_attn.k_proj", kv, HIDDEN, qkv_bias),
        ("self_attn.v_proj", kv, HIDDEN, qkv_bias),
        ("self_attn.o_proj", HIDDEN, q, other_biases),
        ("mlp.gate_proj", INNER, HIDDEN, other_biases),
        ("mlp.up_proj", INNER, HIDDEN, other_biases),
        ("mlp.down_proj", HIDDEN, INNER, other_biases),
    ]
}

fn plain() -> Model {
    model(json!({}), false, false)
}

fn sliding() -> Model {
    let changes = json!({"model_type": "mistral", "sliding_window": 4});
    Model {
        windows: [Some(4); BLOCKS],
        ..model(changes, false, false)
    }
}

/// One of each thing that a config can turn on.
fn variants() -> Vec<(&'static str, Model)> {
    let qwen2 = json!({
        "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1,
        "tie_word_embeddings": true,
    });
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 4.0}});
    vec![
        ("plain", plain()),
        (
            "tied",
            model(json!({"tie_word_embeddings": true}), false, false),
        ),
        (
            "biases",
            model(
                json!({"attention_bias": true, "mlp_bias": true}),
                true,
                true,
            ),
        ),
        ("sliding window", sliding()),
        (
            "qwen2",
            Model {
                windows: [None, Some(3)],
                ..model(qwen2, true, false)
            },
        ),
        (
            "linear scaling",
            Model {
                stretch: 4.0,
                ..model(linear, false, false)
            },
        ),
        (
            "quick gelu",
            Model {
                activation: |x| x / (1.0 + (-1.702 * x).exp()),
                ..model(json!({"hidden_act": "quick_gelu"}), false, false)
            },
        ),
        (
            "tanh",
            Model {
                activation: f64::tanh,
                ..model(json!({"hidden_act": "tanh"}), false, false)
            },
        ),
        (
            "gelu",
            Model {
                activation: gelu_tanh,
                ..model(json!({"hidden_act": "gelu_pytorch_tanh"}), false, false)
            },
        ),
    ]
}

type Rows = Vec<Vec<f64>>;

/// The decoder as its papers describe it, one number at a time.
impl Model {
    fn load(&self) -> Transformer {
        Transformer::load(&self.config, &self.source()).unwrap()
    }

    fn source(&self) -> Arc<dyn TensorSource> {
        Arc::new(self.tensors.clone())
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.tensors.0[name]
            .1
            .iter()
            .map(|&value| f64::from(value))
            .collect()
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        let weight = self.vector(name);
        x.iter()
            .map(|row| {
                let square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
                row.iter()
                    .zip(&weight)
                    .map(|(v, w)| v / (square + EPS).sqrt() * w)
                    .collect()
            })
            .collect()
    }

    fn linear(&self, name: &str, x: &Rows) -> Rows {
        let weight = self.vector(&format!("{name}.weight"));
        let bias = format!("{name}.bias");
        let bias = self
            .tensors
            .0
            .contains_key(&bias)
            .then(|| self.vector(&bias));
        x.iter()
            .map(|row| {
                weight
                    .chunks(row.len())
                    .enumerate()
                    .map(|(out, w)| {
                        let start = bias.as_ref().map_or(0.0, |bias| bias[out]);
                        start + w.iter().zip(row).map(|(w, v)| w * v).sum::<f64>()
                    })
                    .collect()
            })
            .collect()
    }

    /// The head `head` of every row, turned by its position.
    fn rotated(&self, x: &Rows, head: usize) -> Rows {
        let half = HEAD_DIM / 2;
        x.iter()
            .enumerate()
            .map(|(position, row)| {
                let x = &row[head * HEAD_DIM..(head + 1) * HEAD_DIM];
                (0..HEAD_DIM)
                    .map(|i| {
                        let frequency = THETA.powf(-2.0 * (i % half) as f64 / HEAD_DIM as f64);
                        let angle = position as f64 / self.stretch * frequency;
                        let partner = if i < half { -x[i + half] } else { x[i - half] };
                        x[i] * angle.cos() + partner * angle.sin()
                    })
                    .collect()
            })
            .collect()
    }

    fn attention(&self, block: usize, x: &Rows) -> Rows {
        let part = |part: &str| format!("model.layers.{block}.self_attn.{part}_proj");
        let (q, k, v) = (
            self.linear(&part("q"), x),
            self.linear(&part("k"), x),
            self.linear(&part("v"), x),
        );
        let mut mixed = vec![vec![0.0; HEADS * HEAD_DIM]; x.len()];
        for head in 0..HEADS {
            let kv_head = head / (HEADS / KV_HEADS);
            let (q, k) = (self.rotated(&q, head), self.rotated(&k, kv_head));
            for query in 0..x.len() {
                let first =
                    self.windows[block].map_or(0, |window| (query + 1).saturating_sub(window));
                let weights: Vec<f64> = (first..=query)
                    .map(|key| {
                        let dot: f64 = q[query].iter().zip(&k[key]).map(|(a, b)| a * b).sum();
                        (dot / (HEAD_DIM as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for (weight, key) in weights.iter().zip(first..) {
                    for i in 0..HEAD_DIM {
                        mixed[query][head * HEAD_DIM + i] +=
                            weight / sum * v[key][kv_head * HEAD_DIM + i];
                    }
                }
            }
        }
        mixed
    }

    /// The block's output, and the inputs of its linear layers on the way.
    fn block(&self, block: usize, hidden: &Rows) -> (Rows, [Rows; 4]) {
        let name = |part: &str| format!("model.layers.{block}.{part}");
        let add = |a: &Rows, b: &Rows| -> Rows {
            a.iter()
                .zip(b)
                .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect())
                .collect()
        };
        let attention_input = self.norm(&name("input_layernorm.weight"), hidden);
        let mixed = self.attention(block, &attention_input);
        let hidden = add(hidden, &self.linear(&name("self_attn.o_proj"), &mixed));
        let mlp_input = self.norm(&name("post_attention_layernorm.weight"), &hidden);
        let gate = self.linear(&name("mlp.gate_proj"), &mlp_input);
        let up = self.linear(&name("mlp.up_proj"), &mlp_input);
        let inner: Rows = gate
            .iter()
            .zip(&up)
            .map(|(gate, up)| {
                gate.iter()
                    .zip(up)
                    .map(|(g, u)| (self.activation)(*g) * u)
                    .collect()
            })
            .collect();
        let hidden = add(&hidden, &self.linear(&name("mlp.down_proj"), &inner));
        (hidden, [attention_input, mixed, mlp_input, inner])
    }

    fn embed(&self, tokens: &[u32]) -> Rows {
        let table = self.vector("model.embed_tokens.weight");
        tokens
            .iter()
            .map(|&t| table[t as usize * HIDDEN..][..HIDDEN].to_vec())
            .collect()
    }

    fn logits(&self, tokens: &[u32]) -> Rows {
        let hidden = (0..BLOCKS).fold(self.embed(tokens), |x, block| self.block(block, &x).0);
        let head = match self.tensors.0.contains_key("lm_head.weight") {
            true => "lm_head",
            false => "model.embed_tokens",
        };
        self.linear(head, &self.norm("model.norm.weight", &hidden))
    }

    /// −log p of every token but the first.
    fn losses(&self, tokens: &[u32]) -> Vec<f64> {
        let log_sum = |row: &Vec<f64>| row.iter().map(|v| v.exp()).sum::<f64>().ln();
        let logits = self.logits(tokens);
        logits
            .iter()
            .zip(&tokens[1..])
            .map(|(row, &t)| log_sum(row) - row[t as usize])
            .collect()
    }
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| random.random_range(0..VOCABULARY as u32))
        .collect()
}

fn assert_close(found: &[f32], expected: &Rows, what: &str) {
    let expected: Vec<f64> = expected.concat();
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0_f64, |scale, v| scale.max(v.abs()));
    for (index, (&found, expected)) in found.iter().zip(&expected).enumerate() {
        let difference = (f64::from(found) - expected).abs();
        assert!(
            difference < 1e-5 * scale,
            "{what}: entry {index} is {found}, expected {expected}"
        );
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn argmax(row: &[f64]) -> u32 {
    let best = (0..row.len())
        .max_by(|&a, &b| row[a].total_cmp(&row[b]))
        .unwrap();
    best as u32
}

#[test]
fn logits_equal_those_of_plain_loops() {
    for (name, model) in variants() {
        let sequences = [tokens(17, 1), tokens(17, 2)];
        let logits = model
            .load()
            .forward(&[&sequences[0], &sequences[1]])
            .unwrap();
        assert_eq!(logits.dims(), [2, 17, VOCABULARY]);
        let expected: Rows = sequences
            .iter()
            .flat_map(|tokens| model.logits(tokens))
            .collect();
        assert_close(&values(&logits), &expected, name);
    }
}

#[test]
fn cached_steps_equal_one_pass() {
    for (name, model) in variants() {
        let tokens = tokens(20, 4);
        let expected = model.logits(&tokens);
        let llama = model.load();
        let mut cache = llama.cache();
        let mut seen = 0;
        for step in [5, 1, 1, 6, 1, 4, 2] {
            let logits = llama.next(&tokens[seen..seen + step], &mut cache).unwrap();
            seen += step;
            assert_eq!(cache.tokens(), seen);
            assert_close(
                &logits,
                &expected[seen - 1..seen].to_vec(),
                &format!("{name} at {seen}"),
            );
        }
        assert_eq!(seen, tokens.len());
    }
}

/// Keeps the inputs that it wants.
struct Recorder {
    wanted: Vec<usize>,
    seen: Vec<(usize, Vec<f32>)>,
}

impl Tap for Recorder {
    fn wants(&self, input: usize) -> bool {
        self.wanted.contains(&input)
    }
    fn observe(&mut self, input: usize, batch: Batch<'_>) {
        let Activations::F32(view) = batch.activations() else {
            panic!("f32 expected")
        };
        self.seen.push((input, view.iter().copied().collect()));
    }
}

#[test]
fn adapter_streams_the_same_blocks_and_shows_their_inputs() {
    for (name, model) in variants() {
        let tokens = tokens(11, 5);
        let mut sink = Overlay::new(model.source());
        let mut adapter =
            TransformerAdapter::new(&model.config, model.source(), &mut sink).unwrap();
        assert_eq!(adapter.blocks(), BLOCKS);
        let mut hidden = adapter.embed(&tokens.clone().into()).unwrap();
        let mut expected = model.embed(&tokens);
        for block in 0..BLOCKS {
            adapter.begin_block(block).unwrap();
            let mut all = Recorder {
                wanted: vec![0, 1, 2, 3],
                seen: Vec::new(),
            };
            let mut two = Recorder {
                wanted: vec![1, 3],
                seen: Vec::new(),
            };
            let next = adapter.run_block(block, &hidden, &mut all).unwrap();
            let again = adapter.run_block(block, &hidden, &mut two).unwrap();
            let untapped = adapter.run_block(block, &hidden, &mut NoTap).unwrap();
            assert_eq!(values(next.states()), values(again.states()));
            assert_eq!(values(next.states()), values(untapped.states()));
            let (output, inputs) = model.block(block, &expected);
            assert_close(&values(next.states()), &output, name);
            assert_eq!(
                all.seen.iter().map(|(input, _)| *input).collect::<Vec<_>>(),
                [0, 1, 2, 3]
            );
            for ((input, found), expected) in all.seen.iter().zip(&inputs) {
                assert_close(found, expected, &format!("{name}, input {input}"));
            }
            assert_eq!(two.seen, [all.seen[1].clone(), all.seen[3].clone()]);
            for layer in adapter.layers(block).unwrap() {
                assert_eq!(inputs[layer.input][0].len(), layer.cols, "{}", layer.name);
            }
            adapter.end_block(block).unwrap();
            (hidden, expected) = (next, output);
        }
        drop(adapter);
        assert_eq!(sink.replaced_count(), 0, "{name}: nothing was replaced");
    }
}

#[test]
fn replaced_weights_are_used_at_once_and_reach_the_sink_alone() {
    let model = plain();
    let tokens = tokens(9, 6);
    let mut sink = Overlay::new(model.source());
    let stored = sink.clone();
    let mut adapter = TransformerAdapter::new(&model.config, model.source(), &mut sink).unwrap();
    let hidden = adapter.embed(&tokens.clone().into()).unwrap();
    adapter.begin_block(0).unwrap();
    let layers = adapter.layers(0).unwrap();
    let names: Vec<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
    let expected = linears(false, false).map(|(part, ..)| format!("model.layers.0.{part}"));
    assert_eq!(names, expected);
    assert_eq!(
        layers.iter().map(|layer| layer.input).collect::<Vec<_>>(),
        [0, 0, 0, 1, 2, 2, 3]
    );

    let mut changed = model.clone();
    for layer in [1, 6] {
        let name = format!("{}.weight", layers[layer].name);
        let (shape, values) = changed.tensors.0.get_mut(&name).unwrap();
        let dense = adapter.weight(0, layer).unwrap();
        assert_eq!(dense.shape(), shape.as_slice());
        assert_eq!(dense.iter().copied().collect::<Vec<_>>(), *values);
        // Every other weight pruned; a matrix that is not row-major must arrive all the same.
        let mut index = 0;
        let pruned = dense.mapv(|value| {
            index += 1;
            if index % 2 == 0 { 0.0 } else { value }
        });
        *values = pruned.iter().copied().collect();
        let mut column_major =
            Array2::zeros((layers[layer].cols, layers[layer].rows)).reversed_axes();
        column_major.assign(&pruned);
        adapter.replace_weight(0, layer, column_major).unwrap();
        assert_eq!(adapter.weight(0, layer).unwrap(), pruned);
    }
    let output = adapter.run_block(0, &hidden, &mut NoTap).unwrap();
    assert_close(
        &values(output.states()),
        &changed.block(0, &model.embed(&tokens)).0,
        "replaced",
    );
    adapter.end_block(0).unwrap();
    assert!(
        adapter.run_block(0, &hidden, &mut NoTap).is_err(),
        "the block is gone"
    );
    assert!(adapter.weight(0, 0).is_err(), "the block is gone");
    assert_eq!(stored.replaced_count(), 2);
    let written: Arc<dyn TensorSource> = Arc::new(stored);
    let written = Transformer::load(&model.config, &written).unwrap();
    assert_close(
        &values(&written.forward(&[&tokens]).unwrap()),
        &changed.logits(&tokens),
        "written",
    );
}

#[test]
fn tensors_that_do_not_fit_the_config_are_named() {
    let query = "model.layers.1.self_attn.q_proj.weight";
    let surplus = "model.layers.1.self_attn.q_proj.bias";
    let load = |change: &dyn Fn(&mut Memory)| {
        let mut model = plain();
        change(&mut model.tensors);
        let whole = Transformer::load(&model.config, &model.source()).map(|_| ());
        let mut sink = Overlay::new(model.source());
        let streamed =
            TransformerAdapter::new(&model.config, model.source(), &mut sink).map(|_| ());
        assert_eq!(whole.is_ok(), streamed.is_ok());
        whole.err().map(|error| error.to_string())
    };
    for name in [
        query,
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ] {
        let error = load(&|tensors| drop(tensors.0.remove(name))).unwrap();
        assert!(error.contains(name) && error.contains("missing"), "{error}");
        let error = load(&|tensors| {
            let (shape, values) = tensors.0.get_mut(name).unwrap();
            shape[0] -= 1;
            values.truncate(shape.iter().product());
        });
        assert!(error.as_ref().unwrap().contains(name), "{error:?}");
    }
    // Transposed: as many values, wrong shape.
    let error = load(&|tensors| tensors.0.get_mut(query).unwrap().0.reverse()).unwrap();
    assert!(
        error.contains(query) && error.contains("[24, 48]"),
        "{error}"
    );
    let error = load(&|tensors| {
        tensors.0.insert(surplus.into(), (vec![48], vec![0.0; 48]));
    });
    assert!(error.as_ref().unwrap().contains(surplus), "{error:?}");
    let inverse_frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq";
    assert_eq!(
        load(&|tensors| drop(
            tensors
                .0
                .insert(inverse_frequencies.into(), (vec![4], vec![0.0; 4]))
        )),
        None
    );

    let mut tied = model(json!({"tie_word_embeddings": true}), false, false);
    let embedding = tied.tensors.0["model.embed_tokens.weight"].clone();
    tied.tensors.0.insert("lm_head.weight".into(), embedding);
    assert!(
        Transformer::load(&tied.config, &tied.source()).is_ok(),
        "a tied head may stand there twice"
    );
}

#[test]
fn sequences_that_do_not_fit_the_model_are_refused() {
    let llama = plain().load();
    let long = tokens(MAX_POSITIONS + 1, 7);
    assert!(llama.forward(&[&long[1..]]).is_ok());
    for (sequences, found) in [
        (vec![long.as_slice()], "33"),
        (vec![&long[..3], &long[..4]], "[3, 4]"),
        (vec![&[][..]], "[0]"),
        (vec![], "[]"),
        (vec![&[1, VOCABULARY as u32]], "40"),
    ] {
        let error = llama.forward(&sequences).unwrap_err().to_string();
        assert!(error.contains(found), "{error}");
    }
    let mut cache = llama.cache();
    llama.next(&long[..MAX_POSITIONS], &mut cache).unwrap();
    assert!(
        llama.next(&long[..1], &mut cache).is_err(),
        "the context is full"
    );
}

#[test]
fn perplexity_is_the_mean_over_whole_chunks() {
    let model = sliding();
    let llama = model.load();
    let text = tokens(3 * 12 + 11, 8);
    let chunks: Vec<f64> = text
        .chunks_exact(12)
        .map(|chunk| model.losses(chunk).iter().sum::<f64>() / 11.0)
        .collect();
    for (limit, count) in [(None, 3), (Some(2), 2), (Some(9), 3)] {
        let mut calls = Vec::new();
        let options = PerplexityOptions {
            sequence_length: 12,
            limit,
        };
        let found = perplexity(&llama, &text, &options, &mut |done, total, so_far| {
            calls.push((done, total, so_far));
            true
        })
        .unwrap();
        let mean = chunks[..count].iter().sum::<f64>() / count as f64;
        let variance = chunks[..count]
            .iter()
            .map(|nll| (nll - mean).powi(2))
            .sum::<f64>()
            / (count - 1) as f64;
        assert_eq!(
            (found.chunks, found.tokens, found.chunk_nll.len()),
            (count, 12 * count, count)
        );
        for (found, expected) in found.chunk_nll.iter().zip(&chunks) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{found} against {expected}"
            );
        }
        assert!((found.mean_nll - mean).abs() < 1e-5);
        assert!((found.perplexity / mean.exp() - 1.0).abs() < 1e-5);
        let error = mean.exp() * (variance / count as f64).sqrt();
        assert!((found.standard_error / error - 1.0).abs() < 1e-3);
        assert_eq!(calls.len(), count);
        assert_eq!(calls[count - 1], (count, count, found.perplexity));
    }
}

#[test]
fn perplexity_refuses_what_it_cannot_measure() {
    let llama = plain().load();
    let text = tokens(40, 9);
    let measure = |tokens: &[u32], sequence_length, limit| {
        let options = PerplexityOptions {
            sequence_length,
            limit,
        };
        perplexity(&llama, tokens, &options, &mut |_, _, _| true)
    };
    assert!(measure(&text, MAX_POSITIONS, None).is_ok());
    for (tokens, length, limit, found) in [
        (&text[..7], 8, None, "7 tokens"),
        (&text[..], 1, None, "1"),
        (&text[..], 0, None, "0"),
        (&text[..], 8, Some(0), "limit"),
        (&text[..], MAX_POSITIONS + 1, None, "33"),
        (&[1, 2, 3, VOCABULARY as u32][..], 4, None, "40"),
    ] {
        let error = measure(tokens, length, limit).unwrap_err().to_string();
        assert!(error.contains(found), "{error}");
    }
}

#[test]
fn greedy_text_takes_the_likeliest_token_of_a_whole_pass() {
    for model in [plain(), sliding()] {
        let llama = model.load();
        let mut text = tokens(5, 10);
        let prompt = text.clone();
        for _ in 0..12 {
            text.push(argmax(model.logits(&text).last().unwrap()));
        }
        let options = GenerateOptions {
            max_new_tokens: 12,
            ..Default::default()
        };
        let mut streamed = Vec::new();
        let generated = generate(&llama, &prompt, &options, &mut |token| {
            streamed.push(token);
            true
        })
        .unwrap();
        assert_eq!(generated.tokens, text[5..]);
        assert_eq!(generated.tokens, streamed);
        assert_eq!(generated.stop, Stop::MaxNewTokens);

        // The same text, ended by its fourth token where that is an end-of-text token.
        let end = text[8];
        let first = text[5..].iter().position(|&token| token == end).unwrap();
        let options = GenerateOptions {
            eos: vec![end],
            ..options
        };
        let generated = generate(&llama, &prompt, &options, &mut |_| true).unwrap();
        assert_eq!(
            (generated.tokens.as_slice(), generated.stop),
            (&text[5..5 + first], Stop::EndOfText)
        );
    }
}

#[test]
fn generation_says_why_it_stopped_and_refuses_bad_prompts() {
    let llama = plain().load();
    let prompt = tokens(MAX_POSITIONS - 3, 11);
    let options = GenerateOptions {
        max_new_tokens: 100,
        temperature: 1.0,
        seed: 5,
        ..Default::default()
    };
    let run = |prompt: &[u32], options: &GenerateOptions, most: usize| {
        let mut count = 0;
        generate(&llama, prompt, options, &mut |_| {
            count += 1;
            count < most
        })
    };
    let full = run(&prompt, &options, usize::MAX).unwrap();
    // The token after the last position can still be predicted.
    assert_eq!((full.tokens.len(), full.stop), (4, Stop::ContextFull));
    assert_eq!(full, run(&prompt, &options, usize::MAX).unwrap());
    let stopped = run(&prompt, &options, 2).unwrap();
    assert_eq!(
        (stopped.tokens.as_slice(), stopped.stop),
        (&full.tokens[..2], Stop::Caller)
    );
    let short = GenerateOptions {
        max_new_tokens: 20,
        ..options.clone()
    };
    let texts: Vec<_> = (0..4)
        .map(|seed| {
            run(
                &prompt[..4],
                &GenerateOptions {
                    seed,
                    ..short.clone()
                },
                99,
            )
            .unwrap()
        })
        .collect();
    assert!(
        texts.iter().any(|text| text != &texts[0]),
        "the seed must matter"
    );
    for (prompt, found) in [
        (&[][..], "prompt"),
        (&tokens(MAX_POSITIONS + 1, 12)[..], "33"),
        (&[VOCABULARY as u32][..], "40"),
    ] {
        let error = run(prompt, &options, 99).unwrap_err().to_string();
        assert!(error.contains(found), "{error}");
    }
}

/// The keys turn anew once a sequence has more than twelve tokens.
fn stretched() -> Model {
    let factors = |first: f64| {
        (0..HEAD_DIM / 2)
            .map(|i| first + i as f64)
            .collect::<Vec<_>>()
    };
    let scaling = json!({
        "type": "longrope", "short_factor": factors(1.0), "long_factor": factors(3.0),
        "original_max_position_embeddings": 12,
    });
    let changes = json!({
        "rope_scaling": scaling, "original_max_position_embeddings": 12,
    });
    model(changes, false, false)
}

/// The keys turn anew with each token behind the twelfth.
fn beyond_its_context() -> Model {
    let scaling = json!({"type": "dynamic", "factor": 3.0});
    model(
        json!({"rope_scaling": scaling, "max_position_embeddings": 12}),
        false,
        false,
    )
}

#[test]
fn a_sample_is_the_same_alone_and_among_others() {
    let more = [("longrope", stretched()), ("dynamic", beyond_its_context())];
    for (name, model) in variants().into_iter().chain(more) {
        let llama = model.load();
        let prompt = tokens(6, 12);
        let options = GenerateOptions {
            max_new_tokens: 16,
            temperature: 1.5,
            repetition_penalty: 1.2,
            min_p: Some(0.01),
            seed: 3,
            eos: vec![7, 21, 30],
            ..Default::default()
        };
        // More than run together, one of them twice.
        let numbers = [4, 0, 1, 2, 3, 0, 9];
        let mut streamed = vec![Vec::new(); numbers.len()];
        let together = generate_samples(&llama, &prompt, &options, &numbers, &mut |at, token| {
            streamed[at].push(token);
            true
        });
        let together = together.unwrap();
        let alone = |number: u64| {
            let one = generate_samples(&llama, &prompt, &options, &[number], &mut |_, _| true);
            one.unwrap().remove(0)
        };
        let each: Vec<Generated> = numbers.iter().map(|&number| alone(number)).collect();
        assert_eq!(together, each, "{name}");
        let tokens: Vec<_> = together
            .iter()
            .map(|sample| sample.tokens.clone())
            .collect();
        assert_eq!(tokens, streamed, "{name}");
        assert_eq!(
            together[1],
            generate(&llama, &prompt, &options, &mut |_| true).unwrap()
        );
        assert!(
            together[0] != together[1] && together[1] != together[2],
            "{name}"
        );
        // Some end before others that run with them.
        let mut lengths = each[..4].iter().map(|one| one.tokens.len());
        let first = lengths.next();
        assert!(
            lengths.any(|length| Some(length) != first),
            "{name}: {each:?}"
        );
        assert!(each.iter().any(|one| one.stop == Stop::EndOfText));
    }
}

#[test]
fn a_sample_that_is_stopped_leaves_the_others() {
    let llama = plain().load();
    let prompt = tokens(4, 14);
    let options = GenerateOptions {
        max_new_tokens: 6,
        temperature: 2.0,
        ..Default::default()
    };
    let all = generate_samples(&llama, &prompt, &options, &[0, 1, 2], &mut |_, _| true).unwrap();
    let mut count = 0;
    let stopped = generate_samples(&llama, &prompt, &options, &[0, 1, 2], &mut |at, _| {
        count += usize::from(at == 1);
        at != 1 || count < 3
    });
    let stopped = stopped.unwrap();
    assert_eq!((&stopped[0], &stopped[2]), (&all[0], &all[2]));
    assert_eq!(stopped[1].stop, Stop::Caller);
    assert_eq!(stopped[1].tokens, all[1].tokens[..3]);
    let none = generate_samples(&llama, &prompt, &options, &[], &mut |_, _| true).unwrap();
    assert!(none.is_empty());
}
