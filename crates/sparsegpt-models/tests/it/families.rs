//! The decoder against the logits of HuggingFace transformers, and pruned models against the published
//! reference implementation. The golden files are not part of the repository; without them each test says
//! so and passes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sparsegpt::backend::Cpu;
use sparsegpt::quant::UniformGrid;
use sparsegpt::{
    LayerSettings, LeastTokens, ModelPlan, ModelReport, Pattern, ProgressEvent, Selector, Solver,
    Starved, prune_model,
};
use sparsegpt_models::checkpoint::{Checkpoint, ExpectedLayer, OutputOptions, Overlay};
use sparsegpt_models::decoder::{ModelKind, Transformer, TransformerAdapter};
use sparsegpt_models::evaluate::token_nll;
use sparsegpt_models::generate::{GenerateOptions, generate, generate_samples};
use sparsegpt_models::inspect::inspect;
use sparsegpt_models::{Error, Sequence};

fn golden(part: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("SPARSEGPT_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let folder = shared.join("golden").join(part);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no golden files for {part} (set SPARSEGPT_SHARED)");
    None
}

/// Tensors of a safetensors file, and its metadata.
struct File {
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
}

impl File {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                (
                    name.to_owned(),
                    (view.shape().to_vec(), view.data().to_vec()),
                )
            })
            .collect();
        Self { tensors, metadata }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = &self.tensors[name].1;
        bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    fn tokens(&self, name: &str) -> Vec<Vec<u32>> {
        let (shape, bytes) = &self.tensors[name];
        bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect::<Vec<_>>()
            .chunks(shape[1])
            .map(<[u32]>::to_vec)
            .collect()
    }

    /// The sequences of a tensor of token ids, with their padding where the file tells it.
    fn sequences(&self, name: &str) -> Vec<Sequence> {
        let mut sequences: Vec<Sequence> =
            self.tokens(name).into_iter().map(Sequence::from).collect();
        if self.tensors.contains_key("decoder_tokens") {
            for (sequence, tokens) in sequences.iter_mut().zip(self.tokens("decoder_tokens")) {
                sequence.decoder_tokens = tokens;
            }
        }
        if !self.tensors.contains_key("attention_mask") {
            return sequences;
        }
        let masks = self.tokens("attention_mask").into_iter();
        sequences
            .into_iter()
            .zip(masks)
            .map(|(sequence, mask)| {
                let mask = mask.into_iter().map(|entry| entry != 0).collect();
                sequence.with_attention_mask(mask).unwrap()
            })
            .collect()
    }
}

fn plain(tokens: &[Vec<u32>]) -> Vec<Sequence> {
    tokens.iter().cloned().map(Sequence::from).collect()
}

fn logits(model: &Transformer, sequences: &[Sequence]) -> Vec<f32> {
    let logits = model.forward_sequences(sequences).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference of any logit of a token that counts.
fn logit_difference(model: &Transformer, expected: &File) -> f32 {
    let sequences = expected.sequences("tokens");
    let vocabulary = model.config().vocab_size;
    let (found, expected) = (logits(model, &sequences), expected.floats("logits"));
    assert_eq!(found.len(), expected.len());
    let counts = sequences
        .iter()
        .flat_map(|sequence| match &sequence.attention_mask {
            Some(mask) => mask.clone(),
            None => vec![true; found.len() / vocabulary / sequences.len()],
        });
    let rows = found.chunks(vocabulary).zip(expected.chunks(vocabulary));
    rows.zip(counts)
        .filter(|(_, counts)| *counts)
        .map(|((found, expected), _)| largest_difference(found, expected))
        .fold(0.0, f32::max)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn logits_equal_those_of_transformers() {
    for family in [
        "llama",
        "llama3_rope_scaling",
        "mistral",
        "qwen2",
        "gpt_neox",
        "gemma",
        "opt",
        "opt_350m_style",
        "bloom",
        "gpt2",
        "gptj",
        "mixtral",
        "bert",
        "t5",
    ] {
        let Some(folder) = golden(&format!("families/{family}")) else {
            return;
        };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let model = Transformer::load(checkpoint.config(), &checkpoint.tensors()).unwrap();
        let expected = File::read(&folder.join("expected.safetensors"));
        let difference = logit_difference(&model, &expected);
        eprintln!("{family}: largest logit difference {difference:.1e}");
        assert!(difference < 2e-3, "{family}: {difference}");
    }
}

/// Experts get tokens by what each sequence is, so that they see now one and now several.
#[test]
fn samples_of_every_decoder_are_the_same_alone_and_together() {
    for family in [
        "gpt_neox",
        "gemma",
        "opt",
        "opt_350m_style",
        "bloom",
        "gpt2",
        "gptj",
        "mixtral",
    ] {
        let Some(folder) = golden(&format!("families/{family}")) else {
            return;
        };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let model = Transformer::load(checkpoint.config(), &checkpoint.tensors()).unwrap();
        let options = GenerateOptions {
            max_new_tokens: 8,
            temperature: 2.0,
            ..Default::default()
        };
        let samples = |numbers: &[u64]| {
            generate_samples(&model, &[5, 9, 3], &options, numbers, &mut |_, _| true).unwrap()
        };
        let together = samples(&[0, 1, 2, 3, 4]);
        for (number, sample) in (0..).zip(together) {
            assert_eq!(samples(&[number]), [sample], "{family}, sample {number}");
        }
    }
}

/// Checkpoints that `scripts/family-checkpoints.py` has written, each pruned besides.
#[test]
fn further_families_equal_transformers() {
    let Some(folder) = std::env::var_os("SPARSEGPT_FAMILIES") else {
        eprintln!("skipped: no further checkpoints (set SPARSEGPT_FAMILIES)");
        return;
    };
    let mut folders: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let mut wrong = Vec::new();
    for folder in folders {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let model = match Transformer::load(checkpoint.config(), &checkpoint.tensors()) {
            Ok(model) => model,
            Err(error) => {
                wrong.push(format!("{}: {error}", folder.display()));
                continue;
            }
        };
        let expected = File::read(&folder.join("expected.safetensors"));
        let difference = logit_difference(&model, &expected);
        let name = folder.file_name().unwrap().display();
        let mut line = format!("{name}: largest logit difference {difference:.1e}");
        let mut cached = 0.0;
        if model.config().kind() == ModelKind::Decoder {
            let tokens = expected.tokens("tokens");
            let mut cache = model.cache();
            let (first, rest) = tokens[0].split_at(20);
            model.next(first, &mut cache).unwrap();
            let last = model.next(rest, &mut cache).unwrap();
            let vocabulary = model.config().vocab_size;
            let at = (tokens[0].len() - 1) * vocabulary;
            cached = largest_difference(&last, &expected.floats("logits")[at..at + vocabulary]);
            line += &format!(", in two steps {cached:.1e}");
        }
        eprintln!("{line}");
        if difference.max(cached) >= 2e-3 {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn experts_are_calibrated_on_their_own_tokens() {
    let Some(folder) = golden("families/mixtral") else {
        return;
    };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let run = |sequences: &[Sequence]| {
        let mut sink = Overlay::new(checkpoint.tensors());
        let mut adapter =
            TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut sink).unwrap();
        let settings = LayerSettings::new("50%".parse::<Pattern>().unwrap());
        prune_model(
            &mut adapter,
            &Solver::new(Cpu::new(2).unwrap()),
            sequences,
            &ModelPlan::new(settings),
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap()
    };
    let tokens = File::read(&folder.join("expected.safetensors")).tokens("tokens");
    let report = run(&plain(&tokens));
    // q, k, v and o, and three layers for each of 4 experts, in 2 blocks.
    assert_eq!(report.layers.len(), 2 * (4 + 3 * 4));
    assert!(report.starved.is_empty());
    for block in 0..2 {
        let of_experts = report.layers.iter().filter(|layer| {
            let name = format!("model.layers.{block}.block_sparse_moe.experts.");
            layer.layer.starts_with(&name) && layer.layer.ends_with(".w2")
        });
        let seen: Vec<u64> = of_experts.map(|layer| layer.tokens).collect();
        // Each token goes to two of them.
        assert_eq!(seen.iter().sum::<u64>(), 2 * 3 * 48, "{seen:?}");
    }
    // One token reaches two experts of four.
    let report = run(&[tokens[0][..1].into()]);
    assert_eq!(report.layers.len(), 32);
    assert_eq!(report.starved.len(), 2 * 2 * 3, "{:?}", report.starved);
    for layer in &report.layers {
        let starved = report
            .starved
            .iter()
            .any(|starved| starved.layer == layer.layer);
        assert_eq!(layer.tokens == 0, starved);
        assert_eq!(layer.zeros as usize, layer.rows * layer.cols / 2);
    }
}

/// Prunes a model to 50 % in memory.
fn prune(folder: &Path, sequences: &[Sequence]) -> (ModelReport, Overlay) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let pruned = Overlay::new(checkpoint.tensors());
    let mut sink = pruned.clone();
    let mut adapter =
        TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut sink).unwrap();
    let report = prune_model(
        &mut adapter,
        &Solver::new(Cpu::new(2).unwrap()),
        sequences,
        &ModelPlan::new(LayerSettings::new("50%".parse::<Pattern>().unwrap())),
        &mut |_| ControlFlow::Continue(()),
    )
    .unwrap();
    (report, pruned)
}

#[test]
fn padding_stays_out_of_an_encoders_statistics() {
    let Some(folder) = golden("families/bert") else {
        return;
    };
    let tokens = File::read(&folder.join("expected.safetensors")).tokens("tokens");
    // Sequences of 48, 30 and 17 tokens, each alone, and filled up with the padding token.
    let lengths = [48, 30, 17];
    let cut = |at: usize| tokens[at][..lengths[at]].to_vec();
    let alone: Vec<Sequence> = (0..3).map(|at| cut(at).into()).collect();
    let filled = |at: usize| [cut(at), vec![0; 48 - lengths[at]]].concat().into();
    let filled: Vec<Sequence> = (0..3).map(filled).collect();
    let (expected, of_alone) = prune(&folder, &alone);
    let (found, of_filled) = prune(&folder, &filled);
    assert_eq!(found.layers.len(), 2 * 6);
    for (found, expected) in found.layers.iter().zip(&expected.layers) {
        assert_eq!(
            (&found.layer, found.tokens),
            (&expected.layer, 48 + 30 + 17)
        );
        assert_eq!(expected.tokens, found.tokens);
        let (a, b) = (found.solver_loss.unwrap(), expected.solver_loss.unwrap());
        assert!(
            (a / b - 1.0).abs() < 1e-3,
            "{}: {a} against {b}",
            found.layer
        );
    }
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let load = |pruned: Overlay| {
        let source: std::sync::Arc<dyn sparsegpt_models::TensorSource> =
            std::sync::Arc::new(pruned);
        Transformer::load(checkpoint.config(), &source).unwrap()
    };
    let [a, b] = [of_alone, of_filled].map(|pruned| logits(&load(pruned), &alone[..1]));
    assert!(largest_difference(&a, &b) < 2e-2);
}

/// The published implementation's order for a model with two stacks: the encoder's blocks, then the decoder's, which see
/// the pruned encoder's output.
#[test]
fn an_encoders_output_reaches_the_decoder_pruned() {
    let Some(folder) = golden("families/t5") else {
        return;
    };
    let sequences = File::read(&folder.join("expected.safetensors")).sequences("tokens");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let (report, pruned) = prune(&folder, &sequences);
    // q, k, v, o and two feed-forward layers in each of two blocks, and q, k, v, o of cross-attention in the decoder's.
    assert_eq!(report.layers.len(), 2 * 6 + 2 * 10);
    let of = |name: &str| {
        report
            .layers
            .iter()
            .find(|layer| layer.layer == name)
            .unwrap()
    };
    for block in 0..2 {
        let cross = |part: &str| {
            of(&format!(
                "decoder.block.{block}.layer.1.EncDecAttention.{part}"
            ))
        };
        assert_eq!(
            (cross("q").tokens, cross("k").tokens, cross("v").tokens),
            (72, 144, 144)
        );
        assert_eq!(
            of(&format!("decoder.block.{block}.layer.0.SelfAttention.q")).tokens,
            72
        );
        assert_eq!(
            of(&format!("encoder.block.{block}.layer.0.SelfAttention.q")).tokens,
            144
        );
    }
    let order: Vec<&str> = report.layers.iter().map(|layer| &*layer.layer).collect();
    let first_of_decoder = order
        .iter()
        .position(|name| name.starts_with("decoder"))
        .unwrap();
    assert_eq!(first_of_decoder, 12);
    // With the encoder pruned beforehand, the decoder comes out the same as in one run.
    let of_encoder = Overlay::new(checkpoint.tensors());
    let mut sink = of_encoder.clone();
    let plan = || ModelPlan::new(LayerSettings::new("50%".parse::<Pattern>().unwrap()));
    let solver = Solver::new(Cpu::new(2).unwrap());
    let mut go_on = |_: &ProgressEvent<'_>| ControlFlow::Continue(());
    let mut adapter =
        TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut sink).unwrap();
    let encoder = plan().only(Selector::Name("encoder*".into()));
    prune_model(&mut adapter, &solver, &sequences, &encoder, &mut go_on).unwrap();
    drop(adapter);
    let encoder: std::sync::Arc<dyn sparsegpt_models::TensorSource> =
        std::sync::Arc::new(of_encoder);
    let both = Overlay::new(encoder.clone());
    let mut sink = both.clone();
    let mut adapter = TransformerAdapter::new(checkpoint.config(), encoder, &mut sink).unwrap();
    let decoder = plan().only(Selector::Name("decoder*".into()));
    prune_model(&mut adapter, &solver, &sequences, &decoder, &mut go_on).unwrap();
    drop(adapter);
    let name = "decoder.block.1.layer.1.EncDecAttention.v.weight";
    let read = |source: &Overlay| sparsegpt_models::TensorSource::read_f32(source, name).unwrap();
    assert_eq!(read(&both), read(&pruned));

    let source: std::sync::Arc<dyn sparsegpt_models::TensorSource> = std::sync::Arc::new(pruned);
    let model = Transformer::load(checkpoint.config(), &source).unwrap();
    assert!(
        logits(&model, &sequences)
            .iter()
            .all(|logit| logit.is_finite())
    );
    let alone = model.forward(&[&[5, 6]]).unwrap_err().to_string();
    assert!(alone.contains("decoder tokens"), "{alone}");
}

#[test]
fn starved_experts_share_the_tokens_of_their_block() {
    let Some(folder) = golden("families/mixtral") else {
        return;
    };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let tokens = File::read(&folder.join("expected.safetensors")).tokens("tokens");
    let run = |tokens: &[Vec<u32>], plan: ModelPlan| {
        let mut sink = Overlay::new(checkpoint.tensors());
        let mut adapter =
            TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut sink).unwrap();
        let solver = Solver::new(Cpu::new(2).unwrap());
        let go_on = &mut |_: &ProgressEvent<'_>| ControlFlow::Continue(());
        prune_model(&mut adapter, &solver, &plain(tokens), &plan, go_on).unwrap()
    };
    let sharing = || {
        ModelPlan::new(LayerSettings::new("50%".parse::<Pattern>().unwrap()))
            .with_starved(Starved::Share)
    };
    // Two experts of four get the one token of a sequence; all get it where they share.
    let report = run(&[tokens[0][..1].to_vec()], sharing());
    assert_eq!(report.starved.len(), 2 * 2 * 3);
    assert!(report.layers.iter().all(|layer| layer.tokens == 1));
    assert!(
        report
            .layers
            .iter()
            .all(|layer| layer.method == "sparsegpt")
    );
    // Every expert has fewer than all of the 144 tokens.
    let report = run(
        &tokens,
        sharing().with_least_tokens(LeastTokens::Count(144)),
    );
    assert_eq!(report.starved.len(), 2 * 4 * 3);
    assert!(
        report
            .starved
            .iter()
            .all(|starved| (1..144).contains(&starved.tokens))
    );
    let of_experts = report
        .layers
        .iter()
        .filter(|layer| layer.layer.contains("experts"));
    assert!(of_experts.clone().all(|layer| layer.tokens == 144));
    // Gate and up of all experts read the same tokens then, and so their errors are of the same size as if all did.
    assert_eq!(of_experts.count(), 2 * 4 * 3);
}

#[test]
fn an_encoder_has_no_next_token() {
    let Some(folder) = golden("families/bert") else {
        return;
    };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let model = Transformer::load(checkpoint.config(), &checkpoint.tensors()).unwrap();
    let refused = |error: Error| {
        let message = error.to_string();
        assert!(message.contains("bert is an encoder"), "{message}");
    };
    refused(generate(&model, &[5], &GenerateOptions::default(), &mut |_| true).unwrap_err());
    refused(model.next(&[5], &mut model.cache()).unwrap_err());
    refused(token_nll(&model, &[5, 6]).unwrap_err());
}

#[test]
fn pruned_models_equal_those_of_the_reference() {
    for (family, file) in [
        ("llama", "pruned_unstructured_50"),
        ("llama", "pruned_nm_2_4"),
        ("gpt_neox", "pruned_unstructured_50"),
        ("opt", "pruned_unstructured_50"),
        ("opt", "pruned_joint_50_int4"),
        ("bloom", "pruned_unstructured_50"),
        ("gpt2", "pruned_unstructured_50"),
    ] {
        let Some(folder) = golden(&format!("families/{family}")) else {
            return;
        };
        let (pattern, bits) = match file {
            "pruned_nm_2_4" => ("2:4", None),
            "pruned_joint_50_int4" => ("50%", Some(4)),
            _ => ("50%", None),
        };
        let golden = File::read(&folder.join(format!("{file}.safetensors")));
        let losses: BTreeMap<String, f64> =
            serde_json::from_str(&golden.metadata["solver_losses"]).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let pruned = Overlay::new(checkpoint.tensors());
        let mut sink = pruned.clone();
        let mut adapter =
            TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut sink).unwrap();
        let mut settings = LayerSettings::new(pattern.parse::<Pattern>().unwrap());
        if let Some(bits) = bits {
            settings = settings.with_quantizer(UniformGrid::new(bits).unwrap());
        }
        let report = prune_model(
            &mut adapter,
            &Solver::new(Cpu::new(2).unwrap()),
            &golden.sequences("calibration_tokens"),
            &ModelPlan::new(settings),
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap();
        assert_eq!(report.layers.len(), losses.len());
        let (mut agreeing, mut weights) = (0, 0);
        for layer in &report.layers {
            let ratio = layer.solver_loss.unwrap() / losses[&layer.layer];
            assert!(
                (ratio - 1.0).abs() < 0.02,
                "{}: loss ratio {ratio}",
                layer.layer
            );
            let name = format!("{}.weight", layer.layer);
            let ours = sparsegpt_models::TensorSource::read_f32(&pruned, &name).unwrap();
            let theirs = golden.floats(&name);
            let same = ours
                .iter()
                .zip(&theirs)
                .filter(|(a, b)| (**a == 0.0) == (**b == 0.0))
                .count();
            assert!(
                same as f64 >= 0.99 * ours.len() as f64,
                "{}: {same}",
                layer.layer
            );
            agreeing += same;
            weights += ours.len();
        }
        let source: std::sync::Arc<dyn sparsegpt_models::TensorSource> =
            std::sync::Arc::new(pruned.clone());
        let model = Transformer::load(checkpoint.config(), &source).unwrap();
        let expected = File::read(&folder.join("expected.safetensors"));
        let difference = largest_difference(
            &logits(&model, &expected.sequences("tokens")),
            &golden.floats("logits"),
        );
        eprintln!(
            "{family}, {file}: zeros agree in {agreeing} of {weights}, logits within {difference:.2e}"
        );
        if pattern == "2:4" {
            // The same counting as the reference's, so the same model.
            assert!(difference < 2e-3, "{file}: {difference}");
        }
    }
}

#[test]
fn patterns_hold_along_the_inputs_of_weights_stored_the_other_way_round() {
    let Some(folder) = golden("families/gpt2") else {
        return;
    };
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("pruned");
    let mut writer = checkpoint
        .create_output(&out, &OutputOptions::default())
        .unwrap();
    let mut adapter =
        TransformerAdapter::new(checkpoint.config(), checkpoint.tensors(), &mut writer).unwrap();
    let settings = LayerSettings::new("2:4".parse::<Pattern>().unwrap());
    let golden = File::read(&folder.join("pruned_unstructured_50.safetensors"));
    let report = prune_model(
        &mut adapter,
        &Solver::new(Cpu::new(2).unwrap()),
        &golden.sequences("calibration_tokens"),
        &ModelPlan::new(settings),
        &mut |_| ControlFlow::Continue(()),
    )
    .unwrap();
    drop(adapter);
    let expected: Vec<ExpectedLayer> = report
        .layers
        .iter()
        .map(|layer| ExpectedLayer {
            tensor: format!("{}.weight", layer.layer),
            zeros: layer.zeros,
            pattern: Some((2, 4)),
        })
        .collect();
    // Fails if the pattern does not hold along the inputs.
    writer.finish(&expected).unwrap();
    let found = inspect(&Checkpoint::open(&out).unwrap(), &mut |_, _| true).unwrap();
    assert_eq!(found.len(), 8);
    for tensor in found {
        let patterns: Vec<String> = tensor.patterns.iter().map(ToString::to_string).collect();
        assert!(patterns.contains(&"2:4".to_owned()), "{}", tensor.name);
    }
}

#[test]
fn smollm2_equals_transformers() {
    let Some(folder) = golden("smollm2") else {
        return;
    };
    let model = std::env::var_os("SPARSEGPT_SMOLLM2").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../data-local/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    if !model.is_file() {
        eprintln!("skipped: no SmolLM2 (scripts/fetch-smollm2.sh fetches it)");
        return;
    }
    let expected = File::read(&folder.join("expected.safetensors"));
    let checkpoint = Checkpoint::open(&model).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let model = Transformer::load(checkpoint.config(), &checkpoint.tensors()).unwrap();
    let tokens = expected.tokens("tokens");
    for (sequence, &nll) in tokens.iter().zip(&expected.floats("mean_nll")) {
        let losses = token_nll(&model, sequence).unwrap();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        assert!((mean - f64::from(nll)).abs() < 1e-4, "{mean} against {nll}");
    }
    let vocabulary = model.config().vocab_size;
    let last: Vec<f32> = tokens
        .iter()
        .flat_map(|sequence| model.next(sequence, &mut model.cache()).unwrap())
        .collect();
    assert_eq!(last.len(), 4 * vocabulary);
    let difference = largest_difference(&last, &expected.floats("last_logits"));
    eprintln!("SmolLM2: largest logit difference {difference:.1e}");
    assert!(difference < 1e-2, "{difference}");

    let golden: Vec<u32> = serde_json::from_str(&expected.metadata["greedy_tokens"]).unwrap();
    let prompt = tokenizer
        .encode(&expected.metadata["greedy_prompt"])
        .unwrap();
    assert_eq!(prompt, golden[..prompt.len()]);
    let options = GenerateOptions {
        max_new_tokens: golden.len() - prompt.len(),
        ..Default::default()
    };
    let continuation = generate(&model, &prompt, &options, &mut |_| true).unwrap();
    assert_eq!(continuation.tokens, golden[prompt.len()..]);
    assert_eq!(
        tokenizer.decode(&golden).unwrap(),
        expected.metadata["greedy_text"]
    );
}
