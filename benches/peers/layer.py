"""One layer: ours against llmcompressor's `sparsify_weight`, and against the published reference where a copy is at hand.

All read the same weights and Hessian from one file and take turns in one process tree, so that a noisy machine is noisy
for all. A turn is as many solves as fit into half a second, at least one, since that is how a model's layers follow each
other and how a processor is awake; its time is their median. "First call" is the median of the first solves of some
fresh processes, whose workspace has been reserved as it is once for a model. What is timed is the solve, from weights and Hessian in
memory to pruned weights in memory; copies that a peer needs because it destroys its input are left out. Run from the
repository's root:

    benches/peers/setup.sh && target/peers/bin/python benches/peers/layer.py --shapes 768x768,2048x2048

`--reference DIR` names a folder with the authors' sparsegpt.py and quant.py.
"""

import argparse
import glob
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time

flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flags.add_argument("--shapes", default="768x768,2048x2048,4096x4096,4096x11008,11008x4096", help="rows x columns")
flags.add_argument("--patterns", default="50%,2:4,50%+4bit")
flags.add_argument("--runs", type=int, default=7)
flags.add_argument("--firsts", type=int, default=5, help="fresh processes whose first call is timed")
flags.add_argument("--threads", type=int, default=os.cpu_count())
flags.add_argument("--reference", help="folder of the published sparsegpt.py and quant.py")
flags = flags.parse_args()

import torch  # noqa: E402
from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

TURN_SECONDS = 0.5

torch.set_num_threads(flags.threads)
torch.set_grad_enabled(False)


def peer_binary():
    build = ["cargo", "bench", "--quiet", "-p", "sparsegpt", "--bench", "peer"]
    subprocess.run(build + ["--no-run"], check=True)
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    binaries = [path for path in glob.glob(f"{target}/release/deps/peer-*") if os.access(path, os.X_OK)]
    return max(binaries, key=os.path.getmtime)


class Ours:
    name = "ours"

    def __init__(self, binary, file):
        self.process = subprocess.Popen(
            [binary, file, str(flags.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.ask(None) == "ready"

    def ask(self, line):
        if line is not None:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            sys.exit("the peer process ended early")
        return answer

    def takes(self, pattern):
        return True

    def run(self, pattern):
        return float(self.ask(pattern))

    def result(self, pattern):
        out = tempfile.mktemp(suffix=".safetensors")
        self.ask(f"{pattern} {out}")
        assert self.ask(None) == "written"
        pruned = load_file(out)["pruned"]
        os.remove(out)
        return pruned

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def n_and_m(pattern):
    pattern = pattern.removesuffix("+4bit")
    return tuple(map(int, pattern.split(":"))) if ":" in pattern else (0, 0)


class LlmCompressor:
    name = "llmcompressor"

    def __init__(self, weight, hessian):
        self.weight, self.hessian = weight, hessian

    def takes(self, pattern):
        return not pattern.endswith("+4bit")

    def solve(self, pattern):
        module = torch.nn.Linear(*reversed(self.weight.shape), bias=False)
        module.weight.data = self.weight.clone()
        hessian = self.hessian.clone()
        n, m = n_and_m(pattern)
        sparsity = 0.5 if m else float(pattern.rstrip("%")) / 100
        start = time.perf_counter()
        _, pruned = sparsify_weight(module, {module: hessian}, sparsity, n, m, 128, 0.01, False)
        return time.perf_counter() - start, pruned

    def run(self, pattern):
        return self.solve(pattern)[0]

    def result(self, pattern):
        return self.solve(pattern)[1]


class Reference:
    name = "reference"

    def __init__(self, weight, hessian):
        sys.path.insert(0, flags.reference)
        self.module = importlib.import_module("sparsegpt")
        self.quant = importlib.import_module("quant")
        self.weight, self.hessian = weight, hessian

    def takes(self, pattern):
        return True

    def solve(self, pattern):
        layer = torch.nn.Linear(*reversed(self.weight.shape), bias=False)
        layer.weight.data = self.weight.clone()
        solver = self.module.SparseGPT(layer)
        solver.H = self.hessian.clone()
        n, m = n_and_m(pattern)
        if pattern.endswith("+4bit"):
            solver.quantizer = self.quant.Quantizer()
            solver.quantizer.configure(4, perchannel=True, sym=False, mse=False)
        sparsity = 0.5 if m else float(pattern.removesuffix("+4bit").rstrip("%")) / 100
        stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
        start = time.perf_counter()
        solver.fasterprune(sparsity, prunen=n, prunem=m, percdamp=0.01, blocksize=128)
        seconds = time.perf_counter() - start
        sys.stdout = stdout
        return seconds, layer.weight.data

    def run(self, pattern):
        return self.solve(pattern)[0]

    def result(self, pattern):
        return self.solve(pattern)[1]


def turn(solver, pattern):
    """The median of one turn's solves."""
    times, end = [], time.perf_counter() + TURN_SECONDS
    while not times or time.perf_counter() < end:
        times.append(solver.run(pattern))
    return statistics.median(times)


def first_call(binary, file, pattern):
    times = []
    for _ in range(flags.firsts):
        # As between turns; once it is ready, a program would not wait with its first layer.
        time.sleep(0.3)
        fresh = Ours(binary, file)
        times.append(fresh.run(pattern))
        fresh.close()
    return statistics.median(times)


def problem(rows, cols):
    """Weights, and a Hessian whose columns differ in size and share a direction."""
    torch.manual_seed(0)
    weight = torch.randn(rows, cols)
    inputs = (torch.randn(cols + 512, cols) + 0.5 * torch.randn(cols + 512, 1)) * (0.2 + 1.8 * torch.rand(cols))
    return weight, 2 / 32 * inputs.T @ inputs


binary = peer_binary()
peers = ["llmcompressor"] + (["reference"] if flags.reference else [])
print(f"torch {torch.__version__}, {flags.threads} threads, medians of {flags.runs} alternating turns, seconds\n")
print("| layer | pattern | ours | first call | " + " | ".join(f"{p} | times faster | loss, ours over {p}" for p in peers) + " |")
print("|---" * (4 + 3 * len(peers)) + "|")
for shape in flags.shapes.split(","):
    rows, cols = map(int, shape.split("x"))
    weight, hessian = problem(rows, cols)
    exact_hessian = hessian.double()
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/layer.safetensors"
        save_file({"weight": weight, "hessian": hessian}, file)
        ours = Ours(binary, file)
        for pattern in flags.patterns.split(","):
            rivals = [LlmCompressor(weight, hessian)]
            if flags.reference:
                rivals.append(Reference(weight, hessian))
            rivals = [rival for rival in rivals if rival.takes(pattern)]
            first = first_call(binary, file, pattern)
            for solver in [ours, *rivals]:
                solver.run(pattern)
            seconds = {ours: [], **{rival: [] for rival in rivals}}
            for _ in range(flags.runs):
                for solver, times in seconds.items():
                    # Let the other's threads, which spin for a while, go to sleep.
                    time.sleep(0.3)
                    times.append(turn(solver, pattern))
            median = {solver.name: statistics.median(times) for solver, times in seconds.items()}

            def loss(pruned):
                difference = (weight - pruned).double()
                return torch.sum(difference @ exact_hessian * difference).item()

            own = loss(ours.result(pattern)) if rivals else 0
            cells = [f"{rows} x {cols}", pattern, f"{median['ours']:.4f}", f"{first:.4f}"]
            for name in peers:
                rival = next((rival for rival in rivals if rival.name == name), None)
                if rival is None:
                    cells += ["", "", ""]
                    continue
                ratio = own / loss(rival.result(pattern))
                cells += [f"{median[name]:.4f}", f"{median[name] / median['ours']:.1f}", f"{ratio:.4f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
        ours.close()
