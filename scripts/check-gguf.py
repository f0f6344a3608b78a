#!/usr/bin/env python3
"""Holds a GGUF file of `sparsegpt export` against the checkpoint it was made from, read by the package `gguf`.

    check-gguf.py OUT.gguf MODEL

Every tensor is compared bit by bit with what gguf's own quantization makes of MODEL's, q and k after the permutation of
llama.cpp's converter. Needs gguf, numpy; reads safetensors itself.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, quants
from gguf.constants import GGMLQuantizationType as Type

PARTS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        for name, info in json.loads(raw[8 : 8 + length]).items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + at for at in info["data_offsets"])
            if info["dtype"] == "BF16":
                wide = np.frombuffer(raw[start:end], np.uint16).astype(np.uint32) << 16
                values = wide.view(np.float32)
            else:
                kind = {"F32": np.float32, "F16": np.float16}[info["dtype"]]
                values = np.frombuffer(raw[start:end], kind).astype(np.float32)
            found[name] = values.reshape(info["shape"])
    return found


def permute(weights, heads):
    """LlamaModel.permute of llama.cpp's converter."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def main(path, model):
    reader = GGUFReader(path)
    config = json.loads((Path(model) / "config.json").read_text())
    source = tensors(model)
    architecture = str(reader.get_field("general.architecture").contents())
    count = reader.get_field("tokenizer.ggml.tokens").contents()
    assert len(count) == config["vocab_size"]
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        name, kind = tensor.name.rsplit(".", 1)
        block, part = "", name
        if name.startswith("blk."):
            _, number, part = name.split(".", 2)
            block = f"model.layers.{number}."
        values = source.pop(f"{block}{PARTS[part]}.{kind}")
        if architecture == "llama" and part in heads:
            values = permute(values, heads[part])
        expected = quants.quantize(values, Type(tensor.tensor_type))
        found = np.asarray(tensor.data)
        assert found.tobytes() == expected.tobytes(), tensor.name
    left = [name for name in source if name != "lm_head.weight" or not config["tie_word_embeddings"]]
    assert not left, left
    print(f"{len(reader.tensors)} tensors of {architecture} as gguf makes them")


if __name__ == "__main__":
    main(*sys.argv[1:])
