#!/usr/bin/env python3
"""Writes a large LLaMA-like checkpoint with random weights, in shards, and token ids to calibrate on.

    synthetic-checkpoint.py FOLDER --gigabytes 12 --dtype f32

FOLDER gets config.json, the shards with their index, and tokens.safetensors. Blocks are added until the weights have that
size; the values are random pieces of a pool of normal ones, so that writing is as fast as the disk. Needs Python alone.
"""

import argparse
import array
import json
import random
import struct
from pathlib import Path

HIDDEN, INTERMEDIATE, HEADS, VOCABULARY = 2560, 6912, 20, 32000
SHARD_BYTES = 10**9
# Values in the pool, and the most that are taken from it at a time.
POOL, PIECE = 1 << 22, 1 << 20
SEQUENCES, LENGTH = 16, 64
WIDTHS = {"f32": 4, "i32": 4, "bf16": 2}


def block(number):
    """Names and shapes of a block."""
    prefix = f"model.layers.{number}."
    for name in "qkvo":
        yield f"{prefix}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
    for name in ("gate", "up"):
        yield f"{prefix}mlp.{name}_proj.weight", (INTERMEDIATE, HIDDEN)
    yield f"{prefix}mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{prefix}{name}.weight", (HIDDEN,)


def elements(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


def encode(values, dtype):
    """Bytes of a list of floats."""
    raw = array.array("f", values).tobytes()
    if dtype == "f32":
        return raw
    # The upper half of each f32.
    halves = array.array("H", raw)
    return halves[1::2].tobytes()


def write(path, tensors, dtype, values_of):
    """A safetensors file; `values_of` gives a tensor's bytes in pieces."""
    width = WIDTHS[dtype]
    header, at = {}, 0
    for name, shape in tensors:
        end = at + width * elements(shape)
        header[name] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            for piece in values_of(name, elements(shape)):
                file.write(piece)
    return at


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=12.0)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    draw = random.Random(0)
    width = WIDTHS[args.dtype]
    # Outputs as large as inputs, roughly.
    pool = memoryview(encode([draw.gauss(0.0, HIDDEN**-0.5) for _ in range(POOL)], args.dtype))
    ones = encode([1.0] * HIDDEN, args.dtype)

    def values_of(name, count):
        if name.endswith("norm.weight"):
            yield ones
            return
        while count:
            taken = min(count, PIECE)
            start = draw.randrange(POOL - taken + 1)
            yield pool[width * start : width * (start + taken)]
            count -= taken

    ends = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN)), ("model.norm.weight", (HIDDEN,))]
    ends.append(("lm_head.weight", (VOCABULARY, HIDDEN)))

    def bytes_of(tensors):
        return width * sum(elements(shape) for _, shape in tensors)

    # The first number of blocks with which the weights have at least that size.
    blocks = -int(-(args.gigabytes * 1e9 - bytes_of(ends)) // bytes_of(list(block(0))))
    shards = [[ends[0]]]
    for tensor in [tensor for number in range(blocks) for tensor in block(number)] + ends[1:]:
        if bytes_of(shards[-1] + [tensor]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    total, places = 0, {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write(args.folder / name, tensors, args.dtype, values_of)
        places.update({tensor: name for tensor, _ in tensors})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (args.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
    }
    (args.folder / "config.json").write_text(json.dumps(config, indent=1))
    ids = [draw.randrange(VOCABULARY) for _ in range(SEQUENCES * LENGTH)]
    raw = array.array("i", ids).tobytes()
    tokens = [("tokens", (SEQUENCES, LENGTH))]
    write(args.folder / "tokens.safetensors", tokens, "i32", lambda *_: [raw])
    print(f"{total / 1e9:.2f} GB in {len(shards)} shards, {blocks} blocks")


main()
