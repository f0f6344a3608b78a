//! Tensors by name, with their shapes checked before they are read.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};

use super::LlamaConfig;
use crate::{Error, Result, TensorSource};

/// One linear layer of a block: its name within the block, shape, input and bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinearSpec {
    pub(super) part: &'static str,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Layers with the same number read the same activations.
    pub(super) input: usize,
    pub(super) bias: bool,
}

/// Inputs of a block's layers.
pub(super) const ATTENTION_INPUT: usize = 0;
pub(super) const ATTENTION_OUTPUT: usize = 1;
pub(super) const MLP_INPUT: usize = 2;
pub(super) const MLP_OUTPUT: usize = 3;

/// The linear layers of every block, in the order q, k, v, o, gate, up, down.
pub(super) fn linear_specs(config: &LlamaConfig) -> [LinearSpec; 7] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let linear = |part, (rows, cols), input, bias| LinearSpec {
        part,
        rows,
        cols,
        input,
        bias,
    };
    [
        linear(
            "self_attn.q_proj",
            (q, hidden),
            ATTENTION_INPUT,
            config.qkv_bias,
        ),
        linear(
            "self_attn.k_proj",
            (kv, hidden),
            ATTENTION_INPUT,
            config.qkv_bias,
        ),
        linear(
            "self_attn.v_proj",
            (kv, hidden),
            ATTENTION_INPUT,
            config.qkv_bias,
        ),
        linear(
            "self_attn.o_proj",
            (hidden, q),
            ATTENTION_OUTPUT,
            config.output_bias,
        ),
        linear("mlp.gate_proj", (inner, hidden), MLP_INPUT, config.mlp_bias),
        linear("mlp.up_proj", (inner, hidden), MLP_INPUT, config.mlp_bias),
        linear(
            "mlp.down_proj",
            (hidden, inner),
            MLP_OUTPUT,
            config.mlp_bias,
        ),
    ]
}

/// The name of a part of a block, as in `model.layers.3.mlp.down_proj`.
pub(super) fn block_name(block: usize, part: &str) -> String {
    format!("model.layers.{block}.{part}")
}

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const FINAL_NORM: &str = "model.norm.weight";
pub(super) const HEAD: &str = "lm_head.weight";
pub(super) const NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];

/// Reads a tensor after holding its shape against the expected one.
pub(super) fn read(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<Tensor> {
    check(source, name, shape)?;
    let values = source.read_f32(name)?;
    if let Some((at, value)) = values
        .iter()
        .enumerate()
        .find(|(_, value)| !value.is_finite())
    {
        return Err(Error::tensor(
            name,
            format!("holds {value} at position {at}; expected finite weights"),
        ));
    }
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn check(source: &dyn TensorSource, name: &str, shape: &[usize]) -> Result<()> {
    let Some(info) = source.info(name) else {
        return Err(Error::tensor(
            name,
            format!("missing from the checkpoint; config.json calls for one of shape {shape:?}"),
        ));
    };
    if info.shape != shape {
        return Err(Error::tensor(
            name,
            format!(
                "has shape {:?}, config.json calls for {shape:?}",
                info.shape
            ),
        ));
    }
    Ok(())
}

/// Checks every tensor of the model against the configuration, without reading any: each one there, in its
/// shape, and none that the model would not use.
pub(super) fn check_all(config: &LlamaConfig, source: &dyn TensorSource) -> Result<()> {
    let hidden = config.hidden_size;
    let mut known = BTreeSet::new();
    let mut expect = |name: String, shape: &[usize]| {
        check(source, &name, shape)?;
        known.insert(name);
        Ok::<(), Error>(())
    };
    expect(EMBEDDING.to_owned(), &[config.vocab_size, hidden])?;
    expect(FINAL_NORM.to_owned(), &[hidden])?;
    if !config.tied {
        expect(HEAD.to_owned(), &[config.vocab_size, hidden])?;
    }
    for block in 0..config.blocks {
        for norm in NORMS {
            expect(block_name(block, &format!("{norm}.weight")), &[hidden])?;
        }
        for linear in linear_specs(config) {
            let name = block_name(block, linear.part);
            expect(format!("{name}.weight"), &[linear.rows, linear.cols])?;
            if linear.bias {
                expect(format!("{name}.bias"), &[linear.rows])?;
            }
        }
    }
    // A tied head may stand in the file a second time; old checkpoints carry the rotary frequencies.
    let tolerated =
        |name: &str| name.ends_with(".rotary_emb.inv_freq") || (config.tied && name == HEAD);
    match source
        .names()
        .into_iter()
        .find(|name| !known.contains(name) && !tolerated(name))
    {
        Some(surplus) => Err(Error::tensor(
            surplus,
            format!(
                "is in the checkpoint, but a {:?} model with this config.json has no such tensor",
                config.family
            ),
        )),
        None => Ok(()),
    }
}
