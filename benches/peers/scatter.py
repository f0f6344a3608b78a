"""How far the perplexity of a pruned model moves by rounding alone: SparseGPT in plain PyTorch (the loop of
benches/gpu/torch_loop.py) on a model opened by transformers, once for each damping. Dampings that differ in the fourth digit ask
for the same thing; what differs is the last bits of the arithmetic. Block by block with compressed inputs, float32.

    benches/peers/setup.sh
    target/peers/bin/python benches/peers/scatter.py --calibration TOKENS.safetensors --text wiki.test.raw [--pattern 2:4]
        [--dampings 0.01,0.010001,0.009999,0.010002,0.009998] [--model FOLDER_OR_GGUF]

TOKENS has the tensor `calibration_tokens` (sequences x length). Perplexity as `sparsegpt eval --recipe raw --sequence-length 1024
--limit 32` takes it: of the text as one, in chunks without overlap.
"""

import argparse
import math
import os
import statistics
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from blocks import prune_blocks

sys.path.insert(0, str(Path(__file__).parent.parent / "gpu"))
from torch_loop import plain_loop  # noqa: E402


def parse():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", type=Path, default=Path("data-local/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    flags.add_argument("--calibration", required=True)
    flags.add_argument("--text", type=Path, required=True)
    flags.add_argument("--pattern", default="2:4")
    flags.add_argument("--dampings", default="0.01,0.010001,0.009999,0.010002,0.009998")
    flags.add_argument("--chunks", type=int, default=32)
    flags.add_argument("--chunk-length", type=int, default=1024)
    flags.add_argument("--threads", type=int, default=os.cpu_count())
    return flags.parse_args()


def opened(flags):
    """The folder or file, as from_pretrained takes it."""
    if flags.model.suffix == ".gguf":
        return flags.model.parent, {"gguf_file": flags.model.name}
    return flags.model, {}


def perplexity(model, ids, flags):
    losses = []
    for chunk in ids.split(flags.chunk_length)[: flags.chunks]:
        logits = model(chunk[None], use_cache=False).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, chunk[1:]).item())
    return math.exp(sum(losses) / len(losses))


def pruned(model, tokens, pattern, damping):
    hessians, counts = {}, {}

    def accumulate(linear, inputs):
        """H = 2 / sequences times the sum of the inputs' products, as a running mean."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        product = 2 * (flat.T @ flat)
        count = counts[linear] = counts.get(linear, 0) + 1
        hessians[linear] = product if count == 1 else hessians[linear] * ((count - 1) / count) + product / count

    prune_blocks(model, tokens, accumulate, lambda linear: plain_loop(linear.weight.data, hessians.pop(linear), pattern, damping))
    return model


def main():
    flags = parse()
    torch.set_num_threads(flags.threads)
    torch.set_grad_enabled(False)
    folder, how = opened(flags)
    tokens = load_file(flags.calibration)["calibration_tokens"].long()
    ids = AutoTokenizer.from_pretrained(folder, **how)(flags.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {flags.threads} threads, {flags.pattern}\n")
    print("| damping | perplexity |\n|---|---|", flush=True)
    found = []
    for damping in flags.dampings.split(","):
        model = AutoModelForCausalLM.from_pretrained(folder, **how, dtype=torch.float32).eval()
        found.append(perplexity(pruned(model, tokens, flags.pattern, float(damping)), ids, flags))
        print(f"| {damping} | {found[-1]:.2f} |", flush=True)
    print(f"| mean | {statistics.mean(found):.2f} |\n| median | {statistics.median(found):.2f} |")


main()
