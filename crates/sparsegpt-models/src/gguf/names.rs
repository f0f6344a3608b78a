//! GGUF tensor names and their HuggingFace equivalents in the LLaMA family.

/// Tensors of the whole model.
const MODEL: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Tensors of a block, without `.weight` or `.bias`.
const BLOCK: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// What a GGUF tensor is in a HuggingFace checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HuggingFaceName<'a> {
    pub(super) name: String,
    /// The block's number and the part of it, as `attn_q`.
    pub(super) block: Option<(usize, &'a str)>,
}

/// `None` for a tensor that the family does not have.
pub(super) fn to_hugging_face(gguf: &str) -> Option<HuggingFaceName<'_>> {
    let Some(rest) = gguf.strip_prefix("blk.") else {
        let (_, name) = MODEL.iter().find(|(from, _)| *from == gguf)?;
        return Some(HuggingFaceName {
            name: (*name).to_owned(),
            block: None,
        });
    };
    let (index, rest) = rest.split_once('.')?;
    let index: usize = index.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let (_, module) = BLOCK.iter().find(|(from, _)| *from == part)?;
    let name = format!("model.layers.{index}.{module}.{kind}");
    Some(HuggingFaceName {
        name,
        block: Some((index, part)),
    })
}

/// The GGUF name of a HuggingFace tensor, and the part of a block that it is, as `attn_q`. `None` for a tensor that the
/// family does not have.
pub(super) fn to_gguf(hugging_face: &str) -> Option<(String, Option<&'static str>)> {
    let Some(rest) = hugging_face.strip_prefix("model.layers.") else {
        let (name, _) = MODEL.iter().find(|(_, to)| *to == hugging_face)?;
        return Some(((*name).to_owned(), None));
    };
    let (index, rest) = rest.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") || index.parse::<usize>().is_err() {
        return None;
    }
    let (part, _) = BLOCK.iter().find(|(_, to)| *to == module)?;
    Some((format!("blk.{index}.{part}.{kind}"), Some(part)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_go_both_ways() {
        let names = BLOCK.map(|(part, _)| format!("blk.12.{part}.weight"));
        let whole = MODEL.map(|(name, _)| name.to_owned());
        for name in names.iter().chain(&whole) {
            let there = to_hugging_face(name).unwrap();
            assert_eq!(to_gguf(&there.name).unwrap().0, *name);
        }
        assert!(to_gguf("model.layers.0.mlp.experts.0.w1.weight").is_none());
        assert!(to_gguf("model.layers.x.mlp.up_proj.weight").is_none());
    }
}
