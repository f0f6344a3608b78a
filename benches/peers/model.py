"""A whole model: `sparsegpt prune` against PyTorch, transformers' forward pass with llmcompressor's layer functions.

Both prune every linear layer of SmolLM2-135M block by block on the same calibration tokens (a safetensors file with the
tensor `calibration_tokens`, sequences x length), two passes a block; reading, writing and evaluating the model are left
out. The two take turns. Run from the repository's root:

    scripts/fetch-smollm2.sh && benches/peers/setup.sh
    target/peers/bin/python benches/peers/model.py --calibration TOKENS.safetensors
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flags.add_argument("--model", type=Path, default=Path("data-local/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
flags.add_argument("--calibration", required=True)
flags.add_argument("--pattern", default="50%")
flags.add_argument("--runs", type=int, default=1)
flags.add_argument("--threads", type=int, default=os.cpu_count())
flags = flags.parse_args()

import torch  # noqa: E402
from blocks import prune_blocks  # noqa: E402
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import (  # noqa: E402
    accumulate_hessian,
    make_empty_hessian,
    sparsify_weight,
)
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(flags.threads)
torch.set_grad_enabled(False)


def ours():
    """Seconds by stage, as the report tells them."""
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    with tempfile.TemporaryDirectory() as folder:
        command = [f"{target}/release/sparsegpt", "prune", str(flags.model), "--calibration", flags.calibration]
        command += ["--pattern", flags.pattern, "--threads", str(flags.threads), "--out", f"{folder}/out", "--json"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = json.loads(run.stdout)["seconds"]
    return {
        "forward": seconds["calibrate"] - seconds["hessian"],
        "hessian": seconds["hessian"],
        "solve": seconds["solve"],
        "second forward": seconds["propagate"],
        "total": seconds["total"],
    }


def pytorch():
    model = AutoModelForCausalLM.from_pretrained(flags.model.parent, gguf_file=flags.model.name, dtype=torch.float32)
    tokens = load_file(flags.calibration)["calibration_tokens"].long()
    n, m = map(int, flags.pattern.split(":")) if ":" in flags.pattern else (0, 0)
    sparsity = 0.5 if m else float(flags.pattern.rstrip("%")) / 100
    hessians, samples = {}, {}

    def accumulate(linear, inputs):
        if linear not in hessians:
            hessians[linear], samples[linear] = make_empty_hessian(linear), 0
        hessians[linear], samples[linear] = accumulate_hessian(inputs, linear, hessians[linear], samples[linear])

    def solve(linear):
        weight = sparsify_weight(linear, hessians, sparsity, n, m, 128, 0.01, False)[1]
        hessians.pop(linear, None)
        return weight

    return prune_blocks(model, tokens, accumulate, solve)


subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "sparsegpt-cli"], check=True)
runs = [(ours(), pytorch()) for _ in range(flags.runs)]
print(f"torch {torch.__version__}, {flags.threads} threads, {flags.pattern}, medians of {flags.runs} alternating runs\n")
print("| seconds | ours | PyTorch + llmcompressor | times faster |\n|---|---|---|---|")
for stage in runs[0][0]:
    own, other = (statistics.median(run[side][stage] for run in runs) for side in (0, 1))
    print(f"| {stage} | {own:.1f} | {other:.1f} | {other / own:.2f} |")
