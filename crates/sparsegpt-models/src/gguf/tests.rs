//! Tests of reading GGUF files. Files are written with candle's writer from weights in
//! HuggingFace's layout, reordered here as llama.cpp's converter does it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Cursor as Bytes;

use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value as Field};
use candle_core::quantized::{GgmlDType, QTensor};
use half::f16;
use serde_json::json;
use tempfile::tempdir;

use super::*;
use crate::checkpoint::{Checkpoint, ExpectedLayer, OutputOptions, WeightSink, fixtures};

/// A GGUF file to be.
struct File {
    fields: Vec<(String, Field)>,
    tensors: Vec<(String, QTensor)>,
}

fn texts(items: &[&str]) -> Field {
    Field::Array(
        items
            .iter()
            .map(|item| Field::String((*item).to_owned()))
            .collect(),
    )
}

fn integers(items: &[i32]) -> Field {
    Field::Array(items.iter().map(|&item| Field::I32(item)).collect())
}

impl File {
    /// Sizes and tokenizer of a model, no tensors.
    fn new(architecture: &str, config: &Value) -> Self {
        let mut file = Self {
            fields: Vec::new(),
            tensors: Vec::new(),
        };
        file.set(
            "general.architecture",
            Field::String(architecture.to_owned()),
        );
        let integer = |key: &str| Field::U32(config[key].as_u64().unwrap() as u32);
        for (suffix, key) in [
            ("block_count", "num_hidden_layers"),
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
        ] {
            file.set(&format!("{architecture}.{suffix}"), integer(key));
        }
        let epsilon = config["rms_norm_eps"].as_f64().unwrap() as f32;
        let key = format!("{architecture}.attention.layer_norm_rms_epsilon");
        file.set(&key, Field::F32(epsilon));
        file.set("tokenizer.ggml.model", Field::String("gpt2".into()));
        file.set("tokenizer.ggml.pre", Field::String("gpt-2".into()));
        file.set(
            "tokenizer.ggml.tokens",
            texts(&["<s>", "</s>", "a", "b", "ab", "Ġ", "Ġab"]),
        );
        file.set(
            "tokenizer.ggml.token_type",
            integers(&[3, 3, 1, 1, 1, 1, 1]),
        );
        file.set("tokenizer.ggml.merges", texts(&["a b", "Ġ ab"]));
        file.set("tokenizer.ggml.bos_token_id", Field::U32(0));
        file.set("tokenizer.ggml.eos_token_id", Field::U32(1));
        file
    }

    fn set(&mut self, key: &str, value: Field) {
        self.fields.retain(|(existing, _)| existing != key);
        self.fields.push((key.to_owned(), value));
    }

    fn add(&mut self, name: &str, shape: &[usize], values: &[f32], dtype: GgmlDType) {
        let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        self.tensors
            .push((name.to_owned(), QTensor::quantize(&tensor, dtype).unwrap()));
    }

    fn bytes(&self) -> Vec<u8> {
        let fields: Vec<_> = self
            .fields
            .iter()
            .map(|(key, value)| (key.as_str(), value))
            .collect();
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        let mut bytes = Bytes::new(Vec::new());
        gguf_file::write(&mut bytes, &fields, &tensors).unwrap();
        bytes.into_inner()
    }

    fn open(&self) -> Result<(tempfile::TempDir, Checkpoint)> {
        open_bytes(&self.bytes())
    }

    fn error(&self) -> String {
        self.open().unwrap_err().to_string()
    }
}

fn open_bytes(bytes: &[u8]) -> Result<(tempfile::TempDir, Checkpoint)> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path).map(|checkpoint| (folder, checkpoint))
}

fn small_config() -> Value {
    json!({
        "num_hidden_layers": 1,
        "max_position_embeddings": 16,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
    })
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| ((index * 37) % 101) as f32 / 50.0 - 1.0)
        .collect()
}

fn small() -> File {
    let mut file = File::new("llama", &small_config());
    file.add("token_embd.weight", &[7, 32], &ramp(7 * 32), GgmlDType::F32);
    file.add(
        "blk.0.attn_q.weight",
        &[32, 32],
        &ramp(32 * 32),
        GgmlDType::F32,
    );
    file.add(
        "blk.0.ffn_up.weight",
        &[32, 32],
        &ramp(32 * 32),
        GgmlDType::Q4_0,
    );
    file
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

/// `permute` of llama.cpp's converter: reshape to (heads, 2, pairs, columns), swap the middle two.
fn interleave(values: &[f32], heads: usize, rows: usize) -> Vec<f32> {
    let columns = values.len() / rows;
    let pairs = rows / heads / 2;
    let mut out = vec![0.0; values.len()];
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..pairs {
                let from = (head * 2 + side) * pairs + pair;
                let to = (head * pairs + pair) * 2 + side;
                out[to * columns..(to + 1) * columns]
                    .copy_from_slice(&values[from * columns..(from + 1) * columns]);
            }
        }
    }
    out
}

fn gguf_name(name: &str) -> String {
    let name = name.replace("model.layers.", "blk.");
    for (hugging_face, gguf) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        if name.contains(hugging_face) {
            return name.replace(hugging_face, gguf);
        }
    }
    name
}

/// Every tensor of a golden checkpoint comes out of a GGUF file of it as it was.
fn assert_family_survives(family: &str, interleaved: bool) {
    let Some(folder) = fixtures::shared(&format!("golden/families/{family}")) else {
        return;
    };
    let original = Checkpoint::open(&folder).unwrap();
    let config = original.config();
    let mut file = File::new(if interleaved { "llama" } else { family }, config);
    let heads = |key: &str| config[key].as_u64().unwrap() as usize;
    for name in original.tensors().names() {
        let mut values = original.tensors().read_f32(&name).unwrap();
        let shape = original.tensors().info(&name).unwrap().shape;
        if interleaved && name.contains("q_proj") {
            values = interleave(&values, heads("num_attention_heads"), shape[0]);
        } else if interleaved && name.contains("k_proj") {
            values = interleave(&values, heads("num_key_value_heads"), shape[0]);
        }
        file.add(&gguf_name(&name), &shape, &values, GgmlDType::F32);
    }
    let (_folder, read) = file.open().unwrap();
    assert_eq!(read.tensors().names(), original.tensors().names());
    for name in original.tensors().names() {
        assert_eq!(read.tensors().info(&name), original.tensors().info(&name));
        let (found, expected) = (
            read.tensors().read_f32(&name),
            original.tensors().read_f32(&name),
        );
        assert_eq!(found.unwrap(), expected.unwrap(), "{name}");
    }
    for key in [
        "model_type",
        "architectures",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
    ] {
        assert_eq!(read.config()[key], config[key], "{key}");
    }
    assert_eq!(read.config()["rope_theta"], 10_000.0);
}

#[test]
fn llama_comes_out_in_hugging_face_order() {
    assert_family_survives("llama", true);
}

#[test]
fn qwen2_keeps_its_order_and_has_its_biases() {
    assert_family_survives("qwen2", false);
}

#[test]
fn rows_are_put_in_order_for_each_head() {
    // Two heads of four rows, one column: r_h_pair_side.
    let stored = [0., 10., 1., 11., 2., 12., 3., 13.];
    assert_eq!(
        split_rotary_pairs(&stored, 2, &[8, 1]),
        [0., 1., 10., 11., 2., 3., 12., 13.]
    );
    assert_eq!(
        split_rotary_pairs(&interleave(&ramp(48), 3, 12), 3, &[12, 4]),
        ramp(48)
    );
}

/// The block formats as the GGUF specification gives them, for one row.
fn dequantize_by_hand(dtype: GgmlDType, bytes: &[u8]) -> Vec<f32> {
    let half = |at: &[u8]| f16::from_le_bytes([at[0], at[1]]).to_f32();
    let nibbles = |packed: &[u8]| -> Vec<f32> {
        let low = packed.iter().map(|byte| f32::from(byte & 15));
        low.chain(packed.iter().map(|byte| f32::from(byte >> 4)))
            .collect()
    };
    match dtype {
        GgmlDType::Q8_0 => bytes
            .chunks(34)
            .flat_map(|b| {
                b[2..]
                    .iter()
                    .map(|&q| f32::from(q as i8) * half(b))
                    .collect::<Vec<_>>()
            })
            .collect(),
        GgmlDType::Q4_0 => bytes
            .chunks(18)
            .flat_map(|b| {
                nibbles(&b[2..])
                    .into_iter()
                    .map(|q| (q - 8.0) * half(b))
                    .collect::<Vec<_>>()
            })
            .collect(),
        GgmlDType::Q4_1 => bytes
            .chunks(20)
            .flat_map(|b| {
                nibbles(&b[4..])
                    .into_iter()
                    .map(|q| q * half(b) + half(&b[2..]))
                    .collect::<Vec<_>>()
            })
            .collect(),
        _ => unreachable!("not a block format written out here"),
    }
}

#[test]
fn every_stored_type_is_read() {
    let mut config = small_config();
    config["hidden_size"] = 256.into();
    let values = ramp(256 * 4);
    // Largest error over values in -1..1: rounding of the type, half a step of the grid.
    for (dtype, tolerance) in [
        (GgmlDType::F32, 0.0),
        (GgmlDType::F16, 5e-4),
        (GgmlDType::BF16, 4e-3),
        (GgmlDType::Q8_0, 0.01),
        (GgmlDType::Q4_0, 0.13),
        (GgmlDType::Q4_1, 0.07),
        (GgmlDType::Q4K, 0.1),
        (GgmlDType::Q6K, 0.04),
    ] {
        let mut file = File::new("llama", &config);
        file.add("token_embd.weight", &[4, 256], &values, dtype);
        let (_folder, read) = file.open().unwrap();
        let name = "model.embed_tokens.weight";
        assert_eq!(read.tensors().info(name).unwrap().dtype, Dtype::F32);
        let found = read.tensors().read_f32(name).unwrap();
        let largest = found
            .iter()
            .zip(&values)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(largest <= tolerance, "{dtype:?}: {largest}");
        if matches!(dtype, GgmlDType::Q8_0 | GgmlDType::Q4_0 | GgmlDType::Q4_1) {
            let by_hand = dequantize_by_hand(dtype, &file.tensors[0].1.data().unwrap());
            let differs = found
                .iter()
                .zip(&by_hand)
                .any(|(a, b)| (a - b).abs() > 1e-6);
            assert!(!differs && found.len() == by_hand.len(), "{dtype:?}");
        }
    }
}

#[test]
fn configuration_knows_scalings_windows_and_tying() {
    let open = |change: &dyn Fn(&mut File)| {
        let mut file = small();
        change(&mut file);
        file.open()
            .map(|(_folder, checkpoint)| checkpoint.config().clone())
    };
    let plain = open(&|_| {}).unwrap();
    assert_eq!(plain["rms_norm_eps"], 1e-5);
    assert_eq!(plain["tie_word_embeddings"], true);
    assert_eq!(plain["rope_scaling"], Value::Null);
    assert_eq!(
        (&plain["head_dim"], &plain["vocab_size"]),
        (&json!(16), &json!(7))
    );
    assert_eq!(
        (&plain["bos_token_id"], &plain["eos_token_id"]),
        (&json!(0), &json!(1))
    );

    let head = open(&|file| {
        file.add("output.weight", &[7, 32], &ramp(7 * 32), GgmlDType::F32);
    });
    assert_eq!(head.unwrap()["tie_word_embeddings"], false);
    let linear = open(&|file| {
        file.set("llama.rope.scaling.type", Field::String("linear".into()));
        file.set("llama.rope.scaling.factor", Field::F32(4.0));
    });
    assert_eq!(linear.unwrap()["rope_scaling"]["factor"], 4.0);
    let window = open(&|file| file.set("llama.attention.sliding_window", Field::U32(8))).unwrap();
    assert_eq!(
        (&window["model_type"], &window["sliding_window"]),
        (&json!("mistral"), &json!(8))
    );

    let yarn = open(&|file| file.set("llama.rope.scaling.type", Field::String("yarn".into())));
    assert_contains(
        &yarn.unwrap_err().to_string(),
        &["llama.rope.scaling.type", "yarn"],
    );
    let experts = open(&|file| file.set("llama.expert_count", Field::U32(8)));
    assert_contains(&experts.unwrap_err().to_string(), &["llama.expert_count"]);
    let partial = open(&|file| file.set("llama.rope.dimension_count", Field::U32(8)));
    assert_contains(
        &partial.unwrap_err().to_string(),
        &["llama.rope.dimension_count", "16", "8"],
    );
}

// --- damaged input -------------------------------------------------------------------------

/// Position of the fields after a tensor's name: dimensions, type, offset.
fn after_name(bytes: &[u8], name: &str) -> usize {
    let at = bytes
        .windows(name.len())
        .position(|window| window == name.as_bytes());
    at.unwrap() + name.len()
}

/// The file with the offset of a matrix overwritten.
fn with_offset(name: &str, offset: u64) -> Vec<u8> {
    let mut bytes = small().bytes();
    let at = after_name(&bytes, name) + 4 + 2 * 8 + 4;
    bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    bytes
}

fn bytes_error(bytes: &[u8]) -> String {
    open_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn truncated_files_are_refused() {
    let whole = small().bytes();
    assert!(open_bytes(&whole).is_ok());
    // The last values end before the padding of the file.
    let end = whole.len() - 32;
    for len in (0..end).step_by(7) {
        assert_contains(&bytes_error(&whole[..len]), &["model.gguf"]);
    }
    // Of several values that are missing, the first in the file are named.
    let error = || bytes_error(&with_offset("token_embd.weight", 1 << 40)[..end - 1024]);
    assert_contains(&error(), &["do not fit"]);
    let named = |error: String| error.split('"').nth(1).map(str::to_owned);
    let first = named(error());
    assert!((0..8).all(|_| named(error()) == first));
}

#[test]
fn damage_anywhere_in_the_header_never_panics() {
    let whole = small().bytes();
    let header = after_name(&whole, "blk.0.ffn_up.weight") + 64;
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut opened = 0;
    for position in 0..header {
        for damage in [0x00, 0x01, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[position] = damage;
            fs::write(&path, bytes).unwrap();
            let Ok(read) = Checkpoint::open(&path) else {
                continue;
            };
            opened += 1;
            // Errors are fine here, too.
            let _ = read.tokenizer();
            for name in read.tensors().names() {
                let _ = read.tensors().read_f32(&name);
            }
        }
    }
    assert!(opened > 0);
}

#[test]
fn places_outside_the_file_or_on_each_other_are_refused() {
    for offset in [1 << 20, 1 << 62, u64::MAX, u64::MAX - 200] {
        let error = bytes_error(&with_offset("blk.0.ffn_up.weight", offset));
        assert_contains(&error, &["blk.0.ffn_up.weight", "do not fit"]);
    }
    let error = bytes_error(&with_offset("blk.0.ffn_up.weight", 32));
    assert_contains(&error, &["blk.0.ffn_up.weight", "overlaps"]);

    // A huge shape, one whose size overflows, and rows that are no whole blocks.
    for (rows, columns) in [(1_u64 << 40, 32_u64), (1 << 60, 1 << 60), (32, 33)] {
        let mut bytes = small().bytes();
        let at = after_name(&bytes, "blk.0.ffn_up.weight") + 4;
        bytes[at..at + 8].copy_from_slice(&columns.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&rows.to_le_bytes());
        assert_contains(&bytes_error(&bytes), &["blk.0.ffn_up.weight"]);
    }
    let mut bytes = small().bytes();
    let at = after_name(&bytes, "blk.0.ffn_up.weight") + 4 + 16;
    bytes[at..at + 4].copy_from_slice(&999_u32.to_le_bytes());
    assert_contains(&bytes_error(&bytes), &["999"]);
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let mut counts = small().bytes();
    counts[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_contains(&bytes_error(&counts), &["model.gguf", "tensor_count"]);
    let mut version = small().bytes();
    version[4] = 9;
    assert_contains(&bytes_error(&version), &["version"]);

    for alignment in [Field::U32(0), Field::U8(0), Field::I16(0)] {
        let mut file = small();
        file.set("general.alignment", alignment);
        assert_contains(&file.error(), &["general.alignment", "at least 1"]);
    }
    let mut file = small();
    file.set("general.architecture", Field::String("gpt2".into()));
    assert_contains(&file.error(), &["general.architecture", "gpt2", "qwen2"]);
    let mut file = small();
    file.set("llama.block_count", Field::String("1".into()));
    assert_contains(&file.error(), &["llama.block_count", "integer"]);
    let mut file = small();
    file.fields.retain(|(key, _)| key != "llama.context_length");
    assert_contains(&file.error(), &["llama.context_length", "missing"]);
    let mut file = small();
    file.set("llama.attention.head_count", Field::U32(0));
    assert_contains(&file.error(), &["llama.attention.head_count", "at least 1"]);
    let mut file = small();
    file.set("llama.attention.head_count_kv", Field::U32(3));
    assert_contains(&file.error(), &["head_count_kv", "divisor"]);
}

#[test]
fn tensors_that_do_not_belong_are_refused() {
    for (name, said) in [
        ("blk.0.attn_q.scale", "LLaMA family"),
        ("blk.1.ffn_up.weight", "1 blocks"),
        ("blk.00.ffn_up.weight", "twice"),
        ("blk.0.attn_k.weight", "1 heads of 16 rows"),
    ] {
        let mut file = small();
        file.add(name, &[32, 32], &ramp(32 * 32), GgmlDType::F32);
        assert_contains(&file.error(), &[said]);
    }
    let mut file = small();
    file.tensors.remove(0);
    assert_contains(&file.error(), &["token_embd.weight"]);
}

// --- tokenizers ----------------------------------------------------------------------------

#[test]
fn byte_level_tokenizer_follows_the_metadata() {
    let (_folder, read) = small().open().unwrap();
    let tokenizer = read.tokenizer().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), &[1][..]));
    assert_eq!(tokenizer.vocab_size(), 7);
    assert_eq!(tokenizer.encode("ab ab a</s>").unwrap(), [4, 6, 5, 2, 1]);
    assert_eq!(tokenizer.decode(&[4, 6, 1]).unwrap(), "ab ab");

    let mut file = small();
    file.set("tokenizer.ggml.add_bos_token", Field::Bool(true));
    file.set("tokenizer.ggml.eot_token_id", Field::U32(3));
    let tokenizer = file.open().unwrap().1.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("ab").unwrap(), [0, 4]);
    assert_eq!(tokenizer.encode_plain("ab").unwrap(), [4]);
    assert_eq!(tokenizer.eos(), [1, 3]);
}

#[test]
fn splits_are_those_of_the_named_pre_tokenizer() {
    let ids = |pre: &str, text: &str| {
        let mut file = small();
        file.set("tokenizer.ggml.pre", Field::String(pre.into()));
        let tokens = [
            "<s>", "</s>", "1", "2", "3", "12", "123", "Ġ", "Ġ1", "é", "Ã", "©", "Ã©",
        ];
        file.set("tokenizer.ggml.tokens", texts(&tokens));
        file.set(
            "tokenizer.ggml.token_type",
            integers(&[3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        );
        file.set(
            "tokenizer.ggml.merges",
            texts(&["1 2", "12 3", "Ġ 1", "Ã ©"]),
        );
        let (_folder, read) = file.open().unwrap();
        read.tokenizer()
            .and_then(|tokenizer| tokenizer.encode_plain(text))
            .unwrap()
    };
    // GPT-2 keeps all digits together with the space before, LLaMA 3 three at most and no space,
    // the others each alone.
    assert_eq!(ids("gpt-2", "3123 1"), [4, 6, 8]);
    assert_eq!(ids("llama-bpe", "3123 1"), [4, 5, 4, 7, 2]);
    assert_eq!(ids("qwen2", "123 12"), [2, 3, 4, 7, 2, 3]);
    assert_eq!(ids("smollm", "123 12"), [2, 3, 4, 7, 2, 3]);
    // Qwen composes e and its accent into one letter first.
    assert_eq!(ids("qwen2", "e\u{301}"), [12]);

    let mut file = small();
    file.set("tokenizer.ggml.pre", Field::String("other".into()));
    let error = file.open().unwrap().1.tokenizer().unwrap_err().to_string();
    assert_contains(&error, &["tokenizer.ggml.pre", "other", "smollm"]);
}

#[test]
fn llama3_tokenizers_start_with_bos_unless_told_otherwise() {
    let mut file = small();
    file.set("tokenizer.ggml.pre", Field::String("llama-bpe".into()));
    assert_eq!(
        file.open()
            .unwrap()
            .1
            .tokenizer()
            .unwrap()
            .encode("ab")
            .unwrap(),
        [0, 4]
    );
    file.set("tokenizer.ggml.add_bos_token", Field::Bool(false));
    assert_eq!(
        file.open()
            .unwrap()
            .1
            .tokenizer()
            .unwrap()
            .encode("ab")
            .unwrap(),
        [4]
    );
}

#[test]
fn sentencepiece_merges_by_score() {
    let mut file = small();
    file.set("tokenizer.ggml.model", Field::String("llama".into()));
    let tokens = [
        "<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "c", "ab", "bc", "▁a", "abc",
    ];
    let scores = [
        0., 0., 0., 0., 0., -10., -11., -12., -13., -3., -2., -4., -1.,
    ];
    file.set("tokenizer.ggml.tokens", texts(&tokens));
    file.set(
        "tokenizer.ggml.scores",
        Field::Array(scores.map(Field::F32).to_vec()),
    );
    file.set(
        "tokenizer.ggml.token_type",
        integers(&[2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1]),
    );
    file.set("tokenizer.ggml.bos_token_id", Field::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Field::U32(2));
    let tokenizer = file.open().unwrap().1.tokenizer().unwrap();
    // "▁abc": bc has the best score of the first pairs, then abc.
    assert_eq!(tokenizer.encode_plain("abc").unwrap(), [5, 12]);
    assert_eq!(tokenizer.encode_plain("ab").unwrap(), [5, 9]);
    assert_eq!(tokenizer.encode("a a").unwrap(), [1, 11, 11]);
    // A letter that is no piece becomes its bytes.
    assert_eq!(tokenizer.encode_plain("aé").unwrap(), [11, 3, 4]);
    for text in ["abc", "a a", "aé", "ab  c"] {
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(),
            text
        );
    }
    file.set("tokenizer.ggml.scores", Field::Array(vec![Field::F32(0.0)]));
    let error = file.open().unwrap().1.tokenizer().unwrap_err().to_string();
    assert_contains(&error, &["tokenizer.ggml.scores", "13", "1"]);
}

#[test]
fn damaged_tokenizers_are_refused() {
    let error = |key: &str, value: Field| {
        let mut file = small();
        file.set(key, value);
        file.open().unwrap().1.tokenizer().unwrap_err().to_string()
    };
    let cases = [
        ("tokenizer.ggml.tokens", texts(&[])),
        ("tokenizer.ggml.tokens", integers(&[1])),
        ("tokenizer.ggml.token_type", integers(&[1])),
        ("tokenizer.ggml.merges", texts(&["ab"])),
        ("tokenizer.ggml.model", Field::String("t5".into())),
    ];
    for (key, value) in cases {
        assert_contains(&error(key, value), &[key]);
    }
    assert_contains(
        &error("tokenizer.ggml.bos_token_id", Field::U32(99)),
        &["token 99"],
    );
    assert_contains(
        &error("tokenizer.ggml.merges", texts(&["a x"])),
        &["tokenizer", "x"],
    );
}

// --- writing back --------------------------------------------------------------------------

#[test]
fn written_back_as_a_folder() {
    let (folder, read) = small().open().unwrap();
    let out = folder.path().join("out");
    let name = "model.layers.0.mlp.up_proj.weight";
    let mut writer = read.create_output(&out, &OutputOptions::default()).unwrap();
    let pruned: Vec<f32> = ramp(1024)
        .iter()
        .enumerate()
        .map(|(i, v)| if i % 2 == 0 { 0.0 } else { *v + 3.0 })
        .collect();
    let stored = writer.store(name, &pruned).unwrap();
    let layer = ExpectedLayer {
        tensor: name.into(),
        zeros: 512,
        pattern: Some((2, 4)),
    };
    assert_eq!(stored.zeros, 512);
    writer.finish(&[layer]).unwrap();

    let written = Checkpoint::open(&out).unwrap();
    assert_eq!(written.config(), read.config());
    assert_eq!(written.tensors().names(), read.tensors().names());
    assert_eq!(written.tensors().read_f32(name).unwrap(), pruned);
    for name in [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ] {
        assert_eq!(written.tensors().info(name), read.tensors().info(name));
        let (copy, original) = (
            written.tensors().read_f32(name),
            read.tensors().read_f32(name),
        );
        assert_eq!(copy.unwrap(), original.unwrap());
    }
    let (copy, original) = (written.tokenizer().unwrap(), read.tokenizer().unwrap());
    assert_eq!(
        copy.encode("ab ab").unwrap(),
        original.encode("ab ab").unwrap()
    );
    assert_eq!((copy.bos(), copy.eos()), (original.bos(), original.eos()));

    let half = folder.path().join("half");
    let options = OutputOptions {
        dtype: Some(Dtype::BF16),
        force: false,
    };
    read.create_output(&half, &options)
        .unwrap()
        .finish(&[])
        .unwrap();
    let written = Checkpoint::open(&half).unwrap();
    assert_eq!(written.config()["torch_dtype"], "bfloat16");
    assert_eq!(written.tensors().info(name).unwrap().dtype, Dtype::BF16);

    // The folder of the GGUF file itself is not replaced, even by force.
    let options = OutputOptions {
        dtype: None,
        force: true,
    };
    assert!(read.create_output(folder.path(), &options).is_err());
}

#[test]
fn smollm2_is_read_as_transformers_reads_it() {
    let Some(path) = fixtures::smollm2() else {
        return;
    };
    let read = Checkpoint::open(&path).unwrap();
    let config = read.config();
    for (key, value) in [
        ("model_type", json!("llama")),
        ("hidden_size", json!(576)),
        ("num_hidden_layers", json!(30)),
        ("num_attention_heads", json!(9)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(64)),
        ("vocab_size", json!(49152)),
        ("rope_theta", json!(100_000.0)),
        ("rms_norm_eps", json!(1e-5)),
        ("tie_word_embeddings", json!(true)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(read.tensors().names().len(), 272);
    let name = "model.layers.29.mlp.down_proj.weight";
    assert_eq!(read.tensors().info(name).unwrap().shape, [576, 1536]);
    let values = read.tensors().read_f32(name).unwrap();
    assert!(values.len() == 576 * 1536 && values.iter().all(|value| value.is_finite()));
}

/// A golden checkpoint with a tokenizer, since those have none.
fn with_tokenizer(family: &str) -> Option<(tempfile::TempDir, Checkpoint)> {
    let golden = fixtures::shared(&format!("golden/families/{family}"))?;
    let folder = tempdir().unwrap();
    for entry in fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let (_small, tokens) = small().open().unwrap();
    tokens.tokenizer().unwrap().save(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    Some((folder, checkpoint))
}

#[test]
fn what_is_written_is_read_as_it_was() {
    for family in ["llama", "mistral", "qwen2"] {
        let Some((folder, original)) = with_tokenizer(family) else {
            return;
        };
        let path = folder.path().join("out.gguf");
        let written = original
            .export_gguf(&path, GgufType::F32, &|| true)
            .unwrap();
        assert_eq!(written.bytes, fs::metadata(&path).unwrap().len());
        let read = Checkpoint::open(&path).unwrap();
        let (tensors, before) = (read.tensors(), original.tensors());
        assert_eq!(tensors.names().len(), written.tensors);
        for name in tensors.names() {
            assert_eq!(
                tensors.read_f32(&name).unwrap(),
                before.read_f32(&name).unwrap(),
                "{family} {name}"
            );
        }
        for key in [
            "model_type",
            "hidden_size",
            "num_key_value_heads",
            "rms_norm_eps",
            "vocab_size",
            "max_position_embeddings",
            "tie_word_embeddings",
        ] {
            assert_eq!(read.config()[key], original.config()[key], "{family} {key}");
        }
        let ids =
            |checkpoint: &Checkpoint| checkpoint.tokenizer().unwrap().encode("ab ab").unwrap();
        assert_eq!(ids(&read), ids(&original), "{family}");
    }
}

#[test]
fn narrow_types_are_those_of_ggml() {
    let Some((folder, original)) = with_tokenizer("llama") else {
        return;
    };
    let name = "model.layers.0.mlp.down_proj.weight";
    let values = original.tensors().read_f32(name).unwrap();
    let largest = values
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    for (stored, dtype, steps) in [
        (GgufType::F16, GgmlDType::F16, 2048.0),
        (GgufType::Bf16, GgmlDType::BF16, 256.0),
        (GgufType::Q8_0, GgmlDType::Q8_0, 250.0),
    ] {
        let path = folder.path().join(format!("{stored}.gguf"));
        original.export_gguf(&path, stored, &|| true).unwrap();
        let read = Checkpoint::open(&path).unwrap().tensors();
        let found = read.read_f32(name).unwrap();
        // candle's own quantization of the same matrix.
        let shape = original.tensors().info(name).unwrap().shape;
        let tensor = Tensor::from_slice(&values, shape, &Device::Cpu).unwrap();
        let theirs = QTensor::quantize(&tensor, dtype).unwrap();
        let theirs: Vec<f32> = theirs
            .dequantize(&Device::Cpu)
            .and_then(|tensor| tensor.flatten_all()?.to_vec1())
            .unwrap();
        assert_eq!(found, theirs, "{stored}");
        let error = found.iter().zip(&values).map(|(a, b)| (a - b).abs());
        let worst = error.fold(0.0_f32, f32::max);
        assert!(worst > 0.0 && worst <= largest / steps, "{stored}: {worst}");
    }
}

#[test]
fn what_gguf_has_no_name_for_is_refused() {
    let Some(golden) = fixtures::shared("golden/families/opt") else {
        return;
    };
    let folder = tempdir().unwrap();
    let path = folder.path().join("out.gguf");
    let error = Checkpoint::open(&golden)
        .unwrap()
        .export_gguf(&path, GgufType::F16, &|| true)
        .unwrap_err()
        .to_string();
    assert_contains(&error, &["\"opt\"", "llama", "mistral", "qwen2"]);
    assert!(!path.exists());
    let Some((_folder, original)) = with_tokenizer("llama") else {
        return;
    };
    let stopped = original.export_gguf(&path, GgufType::F16, &|| false);
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
