#!/usr/bin/env python3
"""Holds the perplexity of pruned models opened by transformers against the command's own.

    check-transformers.py MODEL --calibration FILE --text FILE [--binary target/release/sparsegpt] [--formats LIST]
        [--samples 8] [--sequence-length 512] [--chunks 4] [--chunk-length 1024]

MODEL is a HuggingFace folder with float32 weights. It is pruned to 50 % in each format, for the packed ones with 4 bits in groups
of 64. transformers opens every result as it is, tokenizes the text and takes the perplexity of the first chunks; the command takes
it of the same weights, which are for a packed result those that the format's own package unpacks. The two may differ by 0.5 %. "Layers
equal" counts packed layers whose unpacked weights are bit for bit those of this script's formulas (check-packed.py), which the
project's tests hold against its own weights, with a zero wherever the mask of the run has one.

Needs torch, transformers, safetensors; for compressed-tensors that package, for gptq GPTQModel (its Python code is enough) and optimum.
GPTQModel's layers know half precision alone, which is slow on a CPU: give it few and short chunks (--chunks 2 --chunk-length 256).
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Compiling GPTQModel's layers takes longer than running them.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

FORMATS = {
    "huggingface": [],
    "compressed-tensors": ["--bits", "4", "--group-size", "64", "--symmetric"],
    # Asymmetric, with rows that are positive among them, whose best zero point is 0: version 1 stores zero points minus 1.
    "gptq": ["--bits", "4", "--group-size", "64"],
}
MOST = 0.005


def parse():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", type=Path)
    flags.add_argument("--calibration", required=True)
    flags.add_argument("--text", required=True)
    flags.add_argument("--binary", default="target/release/sparsegpt")
    flags.add_argument("--formats", default=",".join(FORMATS))
    flags.add_argument("--samples", type=int, default=8)
    flags.add_argument("--sequence-length", type=int, default=512)
    flags.add_argument("--chunks", type=int, default=4)
    flags.add_argument("--chunk-length", type=int, default=1024)
    return flags.parse_args()


def check_packed():
    """The module check-packed.py, whose name is none that `import` takes."""
    path = Path(__file__).with_name("check-packed.py")
    spec = importlib.util.spec_from_file_location("check_packed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(args, *rest):
    done = subprocess.run([args.binary, *map(str, rest), "--json", "--quiet"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def with_positive_rows(model, folder):
    """The same model, with every 64th row of each layer of the first block positive: its best grid has zero point 0."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix == ".safetensors":
            tensors = load_file(file)
            for name, tensor in tensors.items():
                if ".layers.0." in name and tensor.dim() == 2:
                    tensor[::64] = tensor[::64].abs() + 1e-3
            save_file(tensors, folder / file.name, {"format": "pt"})
        elif file.is_file() and "report" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def gptqmodel(parts, config):
    """What GPTQModel's own layer makes of the tensors."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    layer = TorchLinear(
        bits=config["bits"],
        group_size=config["group_size"],
        sym=config["sym"],
        desc_act=config["desc_act"],
        in_features=len(parts["g_idx"]),
        out_features=parts["qweight"].shape[1],
    )
    layer.load_state_dict(parts, strict=True)
    layer.eval()
    convert_gptq_v1_to_v2_format_module(layer, bits=config["bits"], pack_dtype=torch.int32)
    with torch.inference_mode():
        return layer.dequantize_weight().T


def unpack(folder, masks, dense):
    """Writes the unpacked checkpoint, and counts its packed layers and those that are as they should be."""
    packed = check_packed()
    config = json.loads((folder / "config.json").read_text())
    quantization = config.pop("quantization_config")
    is_gptq = quantization["quant_method"] == "gptq"
    tensors, masks = packed.tensors(folder), load_file(masks)
    suffix = ".qweight" if is_gptq else ".weight_packed"
    layers = [name.removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    least, equal = 0, 0
    for name in layers:
        taken = [tensor for tensor in tensors if tensor.startswith(name + ".")]
        parts = {tensor.removeprefix(name + "."): tensors.pop(tensor) for tensor in taken}
        if is_gptq:
            weight = gptqmodel(parts, quantization)
            expected = packed.gptq(parts, quantization["bits"])
            least += count_zero_fields(parts["qzeros"], quantization["bits"])
        else:
            weights = quantization["config_groups"]["group_0"]["weights"]
            weight = packed.compressed(dict(parts), weights)
            expected = compressed_by_formula(parts, weights)
        zeros = bool((weight[masks[name] == 0] == 0).all())
        equal += zeros and weight.dtype == expected.dtype and torch.equal(weight, expected)
        tensors[name + ".weight"] = weight.float().contiguous()
    dense.mkdir()
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    (dense / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*token*"):
        (dense / file.name).write_bytes(file.read_bytes())
    if is_gptq:
        print(f"{least} grids have zero point 1, stored as 0", file=sys.stderr)
        assert least > 0, "no grid is at the end of the range: the rows that are positive should be"
    return len(layers), equal


def count_zero_fields(words, bits):
    fields = ((words.to(torch.int64) & 0xFFFFFFFF)[..., None] >> (torch.arange(32 // bits) * bits)) & (2**bits - 1)
    return int((fields == 0).sum())


def compressed_by_formula(parts, weights):
    """(code - 8) times scale; a code is 4 bits of a row's words, low bits first."""
    assert weights["num_bits"] == 4 and weights["symmetric"], "the script unpacks 4 symmetric bits"
    words = parts["weight_packed"].to(torch.int64) & 0xFFFFFFFF
    codes = ((words[:, :, None] >> (torch.arange(8) * 4)) & 15).reshape(words.shape[0], -1) - 8
    scale = parts["weight_scale"].repeat_interleave(weights["group_size"], 1)
    return codes.to(scale.dtype) * scale


def by_transformers(folder, args, dtype):
    """As sparsegpt_models::evaluate has it: chunks without overlap, the mean over chunks of each one's mean loss."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(Path(args.text).read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu").eval()
    losses = []
    with torch.inference_mode():
        for chunk in ids.split(args.chunk_length)[: args.chunks]:
            logits = model(chunk[None]).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, chunk[1:]).item())
    return math.exp(sum(losses) / len(losses))


def main():
    args = parse()
    print("| format | packed layers | equal | here | transformers | difference |")
    print("|---|---|---|---|---|---|")
    failed = False
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for name in args.formats.split(","):
            folder, masks, dense = work / name, work / f"{name}.masks", work / f"{name}-dense"
            model = with_positive_rows(args.model, work / "positive") if name == "gptq" else args.model
            command(
                args, "prune", model, "--calibration", args.calibration, "--pattern", "50%", "--format", name, *FORMATS[name],
                "--samples", args.samples, "--sequence-length", args.sequence_length, "--save-masks", masks, "--out", folder,
            )
            packed, equal = (0, 0) if name == "huggingface" else unpack(folder, masks, dense)
            here = command(
                args, "eval", dense if packed else folder, "--text", args.text, "--recipe", "raw",
                "--sequence-length", args.chunk_length, "--limit", args.chunks,
            )["perplexity"]
            # GPTQModel's layers take half precision alone.
            there = by_transformers(folder, args, torch.float16 if name == "gptq" else torch.float32)
            difference = there / here - 1
            failed |= abs(difference) > MOST or equal != packed
            counts = f"{packed} | {equal}" if packed else " | "
            print(f"| {name} | {counts} | {here:.4f} | {there:.4f} | {100 * difference:+.3f} % |", flush=True)
    sys.exit("not as they should be" if failed else 0)


if __name__ == "__main__":
    main()
