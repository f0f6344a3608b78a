//! `quantization_config` of config.json.

use serde_json::{Map, Value, json};

use super::{Packed, PackedFormat};

impl Packed {
    /// What config.json says of the packed layers. `dense` are the names, without `.weight`, of all other matrices, `head` is
    /// that of the head, which may have none of its own.
    pub(in super::super) fn quantization_config(&self, dense: &[&str], head: &str) -> Value {
        let scheme = &self.scheme;
        match scheme.format {
            PackedFormat::Gptq => {
                // "-:" and an expression: a module that is not quantized.
                let left_out: Map<String, Value> = dense
                    .iter()
                    .map(|name| (format!("-:^{}$", name.replace('.', r"\.")), json!({})))
                    .collect();
                json!({
                    "quant_method": "gptq",
                    "checkpoint_format": "gptq",
                    "bits": scheme.bits,
                    "group_size": scheme.group_size.map_or(-1, |size| size as i64),
                    "sym": scheme.symmetric,
                    "desc_act": scheme.permuted,
                    "static_groups": false,
                    "lm_head": false,
                    "pack_dtype": "int32",
                    "dynamic": left_out,
                    "meta": { "quantizer": [concat!("sparsegpt:", env!("CARGO_PKG_VERSION"))] },
                })
            }
            PackedFormat::CompressedTensors => {
                let strategy = match scheme.group_size {
                    Some(_) => "group",
                    None => "channel",
                };
                // A head that is the table of embeddings is a layer to the reader nevertheless.
                let mut ignore: Vec<&str> = dense.to_vec();
                // transformers 5 calls GPT-NeoX's head as that of all others while it loads.
                let heads = match head {
                    "embed_out" => &["embed_out", "lm_head"][..],
                    _ => &[head],
                };
                for head in heads {
                    if !ignore.contains(head) {
                        ignore.push(head);
                    }
                }
                json!({
                    "quant_method": "compressed-tensors",
                    "format": "pack-quantized",
                    "quantization_status": "compressed",
                    "global_compression_ratio": null,
                    "kv_cache_scheme": null,
                    "ignore": ignore,
                    "config_groups": {
                        "group_0": {
                            "targets": ["Linear"],
                            "weights": {
                                "num_bits": scheme.bits,
                                "type": "int",
                                "symmetric": scheme.symmetric,
                                "strategy": strategy,
                                "group_size": scheme.group_size,
                                "dynamic": false,
                            },
                            "input_activations": null,
                            "output_activations": null,
                        },
                    },
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::PackedScheme;
    use super::*;

    #[test]
    fn the_head_is_left_out_by_each_of_its_names() {
        let packed = Packed {
            scheme: PackedScheme {
                format: PackedFormat::CompressedTensors,
                bits: 4,
                group_size: None,
                symmetric: true,
                permuted: false,
            },
            layers: BTreeMap::new(),
        };
        let ignored =
            |dense: &[&str], head: &str| packed.quantization_config(dense, head)["ignore"].clone();
        assert_eq!(
            ignored(&["embed_out"], "embed_out"),
            json!(["embed_out", "lm_head"])
        );
        assert_eq!(ignored(&[], "embed_out"), json!(["embed_out", "lm_head"]));
        assert_eq!(
            ignored(&["a", "lm_head"], "lm_head"),
            json!(["a", "lm_head"])
        );
        assert_eq!(ignored(&["a"], "lm_head"), json!(["a", "lm_head"]));
    }
}
