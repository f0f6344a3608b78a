#!/usr/bin/env python3
"""Holds packed checkpoints against the packages that read them.

    check-packed.py PACKED PLAIN

PACKED is what `prune --format gptq` or `--format compressed-tensors` wrote, PLAIN what the same command wrote without
--format. Every packed layer is unpacked, by compressed-tensors' own decompressor or by the formulas of GPTQModel's
torch kernel, and its zeros are compared with PLAIN's: the same weights have to be zero in a first block, whose calibration
does not depend on the format. Needs safetensors and torch, and for that format compressed-tensors.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open


def tensors(folder):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            found.update({name: shard.get_tensor(name) for name in shard.keys()})
    return found


def gptq(parts, bits):
    """GPTQModel, TorchQuantLinear.dequantize_weight, after convert_gptq_v1_to_v2_format_module."""
    assert bits in (2, 4, 8), "the script unpacks 2, 4 and 8 bits"
    each, mask = 32 // bits, 2**bits - 1
    ones = sum(1 << (bits * at) for at in range(each))
    # A word at a time, as that function adds it: a carry would show.
    zeros = (parts["qzeros"].to(torch.int64) + ones) & 0xFFFFFFFF
    shifts = torch.arange(each) * bits
    zeros = ((zeros[:, :, None] >> shifts) & mask).reshape(zeros.shape[0], -1)
    words = parts["qweight"].to(torch.int64) & 0xFFFFFFFF
    codes = ((words[:, None, :] >> shifts[None, :, None]) & mask).reshape(-1, words.shape[1])
    index = parts["g_idx"].to(torch.int64)
    return (parts["scales"][index] * (codes - zeros[index])).T


def compressed(parts, weights):
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    return PackedQuantizationCompressor.decompress(parts, scheme)["weight"]


def main(packed, plain):
    config = json.loads((Path(packed) / "config.json").read_text())["quantization_config"]
    found, expected = tensors(packed), tensors(plain)
    suffix = {"gptq": ".qweight", "compressed-tensors": ".weight_packed"}[config["quant_method"]]
    layers = sorted(name.removesuffix(suffix) for name in found if name.endswith(suffix))
    assert layers, "no packed layer"
    first = [name for name in layers if ".0." in name]
    for layer in layers:
        parts = {
            name.removeprefix(layer + "."): tensor
            for name, tensor in found.items()
            if name.startswith(layer + ".")
        }
        if config["quant_method"] == "gptq":
            weight = gptq(parts, config["bits"])
        else:
            weight = compressed(parts, config["config_groups"]["group_0"]["weights"])
        dense = expected[layer + ".weight"]
        assert weight.shape == dense.shape, (layer, weight.shape, dense.shape)
        assert torch.isfinite(weight).all(), layer
        if layer in first:
            assert torch.equal(weight == 0, dense == 0), layer
            error = (weight.float() - dense.float()).abs().max()
            assert error <= 2e-3 * dense.float().abs().max(), (layer, error)
    print(f"{len(layers)} layers unpacked, {len(first)} of the first block as they are in {plain}")


if __name__ == "__main__":
    main(*sys.argv[1:])
