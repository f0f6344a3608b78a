"""The rivals of `layers` on a GPU: SparseGPT in plain PyTorch as users run it, and llmcompressor's layer function.

The plain loop factors with torch.linalg.cholesky, torch.cholesky_inverse and torch.linalg.cholesky again, sweeps column by
column, and keeps TF32 off. Weights and Hessian are on the device before the clock starts, the result is on it when it
stops. One JSON object a line; benches/gpu/report.py makes tables of them.

    torch_loop.py --rates                                 rates of products and copies
    torch_loop.py --shapes 4096x4096 --patterns 50%,2:4   layers, by the plain loop
    torch_loop.py ... --llmcompressor FOLDER              and by llmcompressor, from the wheels in a folder (llmcompressor,
                                                          loguru; transformers must be installed)
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
import types
import zipfile

import torch

BLOCK = 128


def say(**line):
    print(json.dumps(line), flush=True)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse(pattern):
    """Sparsity, zeros, group (0 where unstructured), bits (0 where not quantized)."""
    mask, plus, bits = pattern.partition("+")
    bits = int(bits.removesuffix("bit")) if plus else 0
    if ":" in mask:
        zeros, group = map(int, mask.split(":"))
        return zeros / group, zeros, group, bits
    return float(mask.removesuffix("%")) / 100, 0, 0, bits


class Grid:
    """Asymmetric levels, a scale and a zero point for each row, from its extremes."""

    def __init__(self, weight, bits):
        self.top = 2**bits - 1
        low = weight.amin(1, keepdim=True).clamp(max=0)
        high = weight.amax(1, keepdim=True).clamp(min=0)
        self.scale = (high - low).clamp(min=1e-12) / self.top
        self.zero = torch.round(-low / self.scale)

    def nearest(self, column):
        code = torch.round(column.unsqueeze(1) / self.scale + self.zero).clamp(0, self.top)
        return (self.scale * (code - self.zero)).squeeze(1)


def plain_loop(weight, hessian, pattern, damping=0.01):
    """SparseGPT (Frantar and Alistarh 2023, Algorithm 1), one column after another."""
    sparsity, zeros, group, bits = parse(pattern)
    weight, hessian = weight.clone(), hessian.clone()
    rows, cols = weight.shape
    grid = Grid(weight, bits) if bits else None

    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    diagonal += damping * diagonal.mean()
    lower = torch.linalg.cholesky(hessian)
    del hessian, diagonal
    inverse = torch.cholesky_inverse(lower)
    del lower
    factor = torch.linalg.cholesky(inverse, upper=True)
    del inverse

    for begin in range(0, cols, BLOCK):
        end = min(begin + BLOCK, cols)
        block = weight[:, begin:end].clone()
        part = factor[begin:end, begin:end]
        pivots = part.diagonal()
        errors = torch.zeros_like(block)
        pruned = torch.zeros_like(block, dtype=torch.bool)
        if not group:
            saliency = (block / pivots) ** 2
            # The value that so many are not above.
            threshold = saliency.flatten().sort().values[int(saliency.numel() * sparsity) - 1]
            pruned = saliency <= threshold
        for j in range(end - begin):
            if group and j % group == 0:
                saliency = (block[:, j : j + group] / pivots[j : j + group]) ** 2
                least = saliency.topk(zeros, dim=1, largest=False).indices
                pruned.scatter_(1, least + j, True)
            column = block[:, j]
            kept = column.clone()
            kept[pruned[:, j]] = 0
            if grid:
                kept = grid.nearest(kept)
            error = (column - kept) / pivots[j]
            block[:, j:] -= torch.outer(error, part[j, j:])
            weight[:, begin + j] = kept
            errors[:, j] = error
        weight[:, end:] -= errors @ factor[begin:end, end:]
    return weight


def llmcompressor_function(folder):
    """`sparsify_weight` out of its wheel: the file alone, as the package around it needs much that is of no use here."""
    (wheel,) = folder.glob("llmcompressor-*.whl")
    (loguru,) = folder.glob("loguru-*.whl")
    sys.path.insert(0, str(loguru))
    name = "llmcompressor/modifiers/pruning/sparsegpt/sgpt_sparsify.py"
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(name)
    module = types.ModuleType("sgpt_sparsify")
    exec(compile(source, f"{wheel}/{name}", "exec"), module.__dict__)
    return module.sparsify_weight


def by_llmcompressor(sparsify):
    def solve(weight, hessian, pattern):
        sparsity, zeros, group, _ = parse(pattern)
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        return sparsify(module, {module: hessian.clone()}, sparsity, zeros, group, BLOCK, 0.01, False)[1]

    return solve


def problem(rows, cols, tokens, device):
    """Weights, and a Hessian whose columns differ in size and share a direction."""
    torch.manual_seed(0)
    weight = torch.rand(rows, cols, device=device) * 2 - 1
    inputs = torch.rand(tokens, cols, device=device) * 2 - 1 + 0.1 * (torch.rand(tokens, 1, device=device) * 2 - 1)
    inputs *= 0.2 + 1.8 * torch.rand(cols, device=device)
    return weight, 2 / tokens * inputs.T @ inputs


def layers(flags, device):
    solvers = {"PyTorch loop": plain_loop}
    if flags.llmcompressor:
        try:
            solvers["llmcompressor"] = by_llmcompressor(llmcompressor_function(flags.llmcompressor))
        except (ImportError, ValueError, KeyError) as error:
            print(f"llmcompressor is left out: {error!r}", file=sys.stderr)
    # The libraries' own preparations are not timed.
    warm = problem(256, 256, 1024, device)
    for solve in solvers.values():
        solve(*warm, "50%")
    for shape in flags.shapes.split(","):
        rows, cols = map(int, shape.split("x"))
        weight, hessian = problem(rows, cols, flags.tokens, device)
        for pattern in flags.patterns.split(","):
            sparsity, *_, bits = parse(pattern)
            for who, solve in solvers.items():
                if bits and who == "llmcompressor":
                    continue
                seconds = []
                begun = time.perf_counter()
                while len(seconds) < flags.runs and (not seconds or time.perf_counter() - begun < flags.seconds):
                    wait(device)
                    start = time.perf_counter()
                    try:
                        pruned = solve(weight, hessian, pattern)
                        wait(device)
                    except RuntimeError as error:
                        # Out of memory, or a library that does not go so far.
                        reason = str(error).splitlines()[0]
                        print(f"{who}, {rows} x {cols}, {pattern}: {reason}", file=sys.stderr)
                        say(kind="failed", who=who, rows=rows, cols=cols, pattern=pattern, reason=reason)
                        break
                    seconds.append(time.perf_counter() - start)
                    zeros = (pruned == 0).float().mean().item()
                    # Not less than was asked for; levels may be zero besides.
                    if not (zeros > sparsity - 0.01 and (bits or zeros < sparsity + 0.01)):
                        sys.exit(f"{who}, {pattern}: {zeros:.4f} of the weights are zero")
                    del pruned
                if seconds:
                    median = statistics.median(seconds)
                    say(
                        kind="layer", who=who, rows=rows, cols=cols, pattern=pattern, seconds=median, runs=len(seconds),
                        first=seconds[0],
                    )
        del weight, hessian
        if device.type == "cuda":
            torch.cuda.empty_cache()


def least(device, work):
    """Seconds: the least of three, after one that warms up."""
    times = []
    for _ in range(4):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def rates(flags, device):
    sizes = [int(size) for size in flags.sizes.split(",")]
    for size in sizes:
        a = torch.rand(size, size, device=device) * 2 - 1
        b = torch.rand(size, size, device=device) * 2 - 1
        for who, dtype, tf32 in [("fp32", torch.float32, False), ("TF32", torch.float32, True), ("bf16", torch.bfloat16, False)]:
            if tf32 and device.type != "cuda":
                continue
            torch.backends.cuda.matmul.allow_tf32 = tf32
            x, y = a.to(dtype), b.to(dtype)
            seconds = least(device, lambda: x @ y)
            say(kind="rate", who=f"PyTorch, {who}", what="product", size=size, per_second=2 * size**3 / seconds)
        torch.backends.cuda.matmul.allow_tf32 = False
        # By cuSOLVER: the one factorization that ours is to be compared with, a copy of the matrix included as there.
        a.diagonal().fill_(size)
        seconds = least(device, lambda: torch.linalg.cholesky_ex(a))
        say(kind="rate", who="PyTorch, cuSOLVER", what="factor", size=size, per_second=size**3 / 3 / seconds)
    to = torch.empty_like(a)
    # Read and written.
    seconds = least(device, lambda: to.copy_(a)) / 2
    say(kind="rate", who="PyTorch", what="copy", size=size, per_second=4 * size**2 / seconds)


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--rates", action="store_true")
    flags.add_argument("--shapes", help="rows x columns, as 2048x2048,4096x11008")
    flags.add_argument("--patterns", default="50%,2:4,50%+4bit")
    flags.add_argument("--llmcompressor", type=pathlib.Path, metavar="FOLDER")
    flags.add_argument("--runs", type=int, default=3)
    flags.add_argument("--seconds", type=float, default=10, help="after so many no further run of a pattern begins")
    flags.add_argument("--tokens", type=int, default=8192)
    flags.add_argument("--sizes", default="4096,8192", help="products whose rate is measured")
    flags.add_argument("--device", type=torch.device, default="cuda")
    flags = flags.parse_args()
    if flags.device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if flags.device.type == "cuda":
        torch.backends.cuda.preferred_linalg_library("cusolver")
    name = torch.cuda.get_device_name(flags.device) if flags.device.type == "cuda" else "the processor"
    say(kind="torch", version=torch.__version__, device=name)
    if flags.rates:
        rates(flags, flags.device)
    if flags.shapes:
        layers(flags, flags.device)


if __name__ == "__main__":
    main()
