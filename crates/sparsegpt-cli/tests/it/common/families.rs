//! Tiny checkpoints of random weights, of families that are no plain decoders.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Tensor, noise, save};

pub(crate) const VOCABULARY: usize = 40;
pub(crate) const WIDTH: usize = 16;
pub(crate) const INNER: usize = 24;

/// A checkpoint of random weights: norms (one size) around 1, the rest around 0.
pub(crate) fn checkpoint(folder: &Path, config: &Value, shapes: &[(String, Vec<usize>)]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let tensors: Vec<(&str, Tensor)> = shapes
        .iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let is_norm = shape.len() == 1 && name.ends_with("weight");
            let values: Vec<f32> = noise(shape.iter().product(), seed as u64 + 1)
                .into_iter()
                .map(|value| 0.3 * value + if is_norm { 1.0 } else { 0.0 })
                .collect();
            (name.as_str(), Tensor::f32(shape, &values))
        })
        .collect();
    save(&folder.join("model.safetensors"), &tensors);
}

pub(crate) fn bert(folder: &Path) {
    let mut shapes = Vec::new();
    let mut weight = |name: &str, shape: &[usize]| {
        shapes.push((format!("{name}.weight"), shape.to_vec()));
    };
    weight("bert.embeddings.word_embeddings", &[VOCABULARY, WIDTH]);
    weight("bert.embeddings.position_embeddings", &[32, WIDTH]);
    weight("bert.embeddings.token_type_embeddings", &[2, WIDTH]);
    let mut biased = vec![
        ("bert.embeddings.LayerNorm".to_owned(), vec![WIDTH]),
        (
            "cls.predictions.transform.dense".to_owned(),
            vec![WIDTH, WIDTH],
        ),
        (
            "cls.predictions.transform.LayerNorm".to_owned(),
            vec![WIDTH],
        ),
    ];
    for block in 0..2 {
        for (part, shape) in [
            ("attention.self.query", vec![WIDTH, WIDTH]),
            ("attention.self.key", vec![WIDTH, WIDTH]),
            ("attention.self.value", vec![WIDTH, WIDTH]),
            ("attention.output.dense", vec![WIDTH, WIDTH]),
            ("attention.output.LayerNorm", vec![WIDTH]),
            ("intermediate.dense", vec![INNER, WIDTH]),
            ("output.dense", vec![WIDTH, INNER]),
            ("output.LayerNorm", vec![WIDTH]),
        ] {
            biased.push((format!("bert.encoder.layer.{block}.{part}"), shape));
        }
    }
    for (name, shape) in biased {
        shapes.push((format!("{name}.bias"), vec![shape[0]]));
        shapes.push((format!("{name}.weight"), shape));
    }
    shapes.push(("cls.predictions.bias".to_owned(), vec![VOCABULARY]));
    let config = json!({
        "model_type": "bert", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 32,
    });
    checkpoint(folder, &config, &shapes);
}

pub(crate) fn t5(folder: &Path) {
    let mut shapes = vec![("shared.weight".to_owned(), vec![VOCABULARY, WIDTH])];
    for (stack, parts) in [
        ("encoder", &["SelfAttention"][..]),
        ("decoder", &["SelfAttention", "EncDecAttention"]),
    ] {
        shapes.push((format!("{stack}.final_layer_norm.weight"), vec![WIDTH]));
        let bias = "block.0.layer.0.SelfAttention.relative_attention_bias";
        shapes.push((format!("{stack}.{bias}.weight"), vec![32, 2]));
        for block in 0..2 {
            let mut add = |layer: usize, part: &str, shape: &[usize]| {
                let name = format!("{stack}.block.{block}.layer.{layer}.{part}.weight");
                shapes.push((name, shape.to_vec()));
            };
            for (layer, attention) in parts.iter().enumerate() {
                add(layer, "layer_norm", &[WIDTH]);
                for part in ["q", "k", "v", "o"] {
                    add(layer, &format!("{attention}.{part}"), &[WIDTH, WIDTH]);
                }
            }
            add(parts.len(), "layer_norm", &[WIDTH]);
            add(parts.len(), "DenseReluDense.wi", &[INNER, WIDTH]);
            add(parts.len(), "DenseReluDense.wo", &[WIDTH, INNER]);
        }
    }
    let config = json!({
        "model_type": "t5", "d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": 2, "num_heads": 2,
        "vocab_size": VOCABULARY, "is_encoder_decoder": true, "decoder_start_token_id": 0,
    });
    checkpoint(folder, &config, &shapes);
}

pub(crate) fn mixtral(folder: &Path, active: usize) {
    let mut shapes = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, WIDTH],
        ),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
    ];
    for block in 0..2 {
        let mut add = |part: &str, shape: &[usize]| {
            shapes.push((
                format!("model.layers.{block}.{part}.weight"),
                shape.to_vec(),
            ));
        };
        for part in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{part}_proj"), &[WIDTH, WIDTH]);
        }
        add("input_layernorm", &[WIDTH]);
        add("post_attention_layernorm", &[WIDTH]);
        add("block_sparse_moe.gate", &[4, WIDTH]);
        for expert in 0..4 {
            for (part, shape) in [
                ("w1", [INNER, WIDTH]),
                ("w2", [WIDTH, INNER]),
                ("w3", [INNER, WIDTH]),
            ] {
                add(&format!("block_sparse_moe.experts.{expert}.{part}"), &shape);
            }
        }
    }
    let config = json!({
        "model_type": "mixtral", "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "num_local_experts": 4,
        "num_experts_per_tok": active, "max_position_embeddings": 64, "sliding_window": null,
    });
    checkpoint(folder, &config, &shapes);
}

/// Ready token ids without special ones, rows x 12.
pub(crate) fn ids(rows: usize) -> Tensor {
    let ids: Vec<i32> = noise(rows * 12, 77)
        .into_iter()
        .map(|value| 20 + (value.abs() * 19.0) as i32)
        .collect();
    Tensor::i32(&[rows, 12], &ids)
}

/// A tokenizer of words w20 to w39 and of these special tokens, `before` and `behind` a text.
pub(crate) fn tokenizer(folder: &Path, special: &[(&str, usize)], before: &str, behind: &str) {
    let mut vocabulary = serde_json::Map::new();
    let mut added = Vec::new();
    for &(token, id) in special {
        vocabulary.insert(token.to_owned(), id.into());
        added.push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    for id in 20..VOCABULARY {
        vocabulary.insert(format!("w{id}"), id.into());
    }
    let of = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let mut template = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut tokens = serde_json::Map::new();
    for (at, token) in [(0, before), (usize::MAX, behind)] {
        if token.is_empty() {
            continue;
        }
        template.insert(at.min(template.len()), of(token));
        let id = vocabulary[token].clone();
        tokens.insert(
            token.to_owned(),
            json!({ "id": token, "ids": [id], "tokens": [token] }),
        );
    }
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing", "single": template, "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } },
            ], "special_tokens": tokens,
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": special[0].0 },
    });
    fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
}

pub(crate) fn words(folder: &Path) -> PathBuf {
    let path = folder.join("words.txt");
    let words: Vec<String> = noise(600, 5)
        .into_iter()
        .map(|value| format!("w{}", 20 + (value.abs() * 19.0) as usize))
        .collect();
    fs::write(&path, words.join(" ")).unwrap();
    path
}
