"""The sparse runtime against what else multiplies by a layer on this processor: PyTorch, numpy, SciPy, faer, candle,
DeepSparse, and llama.cpp for a whole model.

All take turns in one run, so that a noisy machine is noisy for all. A turn is as many products as fit into --seconds;
its time is their median, and the table has the median of the turns. Layers are rows x columns, output x input features.
They are measured on copies that together are four times the last-level cache, one after the other (cycled), as in
`sparsegpt bench --layer`, and on one copy, as their users' benchmarks do. A turn of ours has runs of the dense kernel, the
sparse one and the floor in turn, or on one copy after each other. What is not installed or not built is left out, but for ours. Run from the repository's root:

    cargo build --release
    cargo bench -p sparsegpt-runtime --bench turns --no-run
    cargo bench -p sparsegpt-models --bench crates --no-run
    benches/runtime/setup.sh
    target/peers/bin/python benches/runtime/peers.py --deepsparse target/deepsparse/bin/python

A whole model, pruned, and the same as a GGUF file of F16, from which one of Q4_0 is made for the run:

    target/peers/bin/python benches/runtime/peers.py --layers '' --model PRUNED --gguf PRUNED.gguf
"""

import argparse
import ctypes
import glob
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path


def commas(convert):
    return lambda text: [convert(part) for part in text.split(",") if part]


def shape(text):
    rows, cols = map(int, text.split("x"))
    return rows, cols


flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flags.add_argument("--layers", type=commas(shape), default="4096x4096,4096x11008", help="rows x columns")
flags.add_argument("--sparsities", type=commas(int), default="50,60,70,80", help="percent of zeros")
flags.add_argument("--tokens", type=commas(int), default="1,400")
flags.add_argument("--dtypes", type=commas(str), default="f32,bf16")
flags.add_argument("--peers", type=commas(str), default="torch,numpy,torch-csr,scipy,faer,candle,deepsparse,llama.cpp")
flags.add_argument("--ways", type=commas(str), default="one,cycled", help="copies that all are measured on")
flags.add_argument("--deepsparse", metavar="PYTHON", help="the Python that has DeepSparse")
flags.add_argument("--model", action="append", default=[], help="a pruned or packed model for `sparsegpt bench`")
flags.add_argument("--gguf", type=Path, help="the same as F16, for llama.cpp")
flags.add_argument("--prompt-tokens", type=int, default=32)
flags.add_argument("--new-tokens", type=int, default=32)
flags.add_argument("--turns", type=int, default=7)
flags.add_argument("--seconds", type=float, default=0.2, help="of a turn on a layer")
flags.add_argument("--threads", type=int, default=os.cpu_count())
flags.add_argument("--give-up", type=float, default=8, help="one product alone of peers that are so many times slower")
flags.add_argument("--sparsegpt", default=f"{os.environ.get('CARGO_TARGET_DIR', 'target')}/release/sparsegpt")
flags.add_argument("--json", type=Path, metavar="FILE", help="also write every turn's time")
flags = flags.parse_args()

# Before any of them is loaded, as they read these then.
for name in ("OMP", "MKL", "OPENBLAS", "RAYON"):
    os.environ[f"{name}_NUM_THREADS"] = str(flags.threads)

import numpy as np  # noqa: E402

from layers import Cycle, copies, deviation, inputs, weights  # noqa: E402

# The other's threads, which spin for a while, go to sleep meanwhile.
PAUSE = 0.1
# Largest difference from numpy's f32 product over the largest value.
ALLOWED = {"f32": 1e-4, "bf16": 3e-2}


def load(peer, module):
    """The module, unless the peer is not wanted or not installed, which is told."""
    if peer not in flags.peers:
        return None
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"left out: {peer} ({error})", file=sys.stderr)
        return None


torch = load("torch", "torch") or load("torch-csr", "torch")
sparse = load("scipy", "scipy.sparse") or load("torch-csr", "scipy.sparse")
if torch:
    torch.set_num_threads(flags.threads)
    torch.set_grad_enabled(False)
    # That its sparse tensors are young, and not checked.
    warnings.filterwarnings("ignore", message="Sparse")


@dataclass
class Series:
    """The times of one contender on one layer, one a turn."""

    who: str
    dtype: str
    # Percent; None: it multiplies by the dense layer, whatever is zero.
    zeros: int | None
    way: str
    seconds: list = field(default_factory=list)
    # Its first product took so long that there were no more.
    once: bool = False

    def median(self):
        return statistics.median(self.seconds)


def bench(*arguments):
    """What `sparsegpt bench` reports."""
    command = [flags.sparsegpt, "--json", "--quiet", "--threads", str(flags.threads), "bench", *map(str, arguments)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return json.loads(run.stdout)


def newest(bench):
    """The newest build of a bench, if there is one."""
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    paths = glob.glob(f"{target}/release/deps/{bench}-*")
    return max((path for path in paths if os.access(path, os.X_OK)), key=os.path.getmtime, default=None)


class Process:
    """A program that keeps layers, and answers a line with a line."""

    def __init__(self, who, command):
        self.who = who
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        """The answer; None if the program has ended."""
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return None
        return self.process.stdout.readline() or None

    def answer(self, line):
        answer = self.ask(line)
        if answer is None:
            sys.exit(f"{self.who} ended early")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def our_process():
    """Of the newest build of `turns.rs`, the runtime's bench."""
    binary = newest("turns")
    if not binary:
        sys.exit("not built: cargo bench -p sparsegpt-runtime --bench turns --no-run")
    return Process("our process", [binary])


class Ours:
    """Dense and sparse kernels, and what the machine allows the sparse ones, in one turn."""

    KINDS = ("ours", "ours, dense", "floor of ours")

    def __init__(self, process, rows, cols, tokens, dtype, zeros, way):
        self.process, self.key = process, f"{rows}x{cols},{tokens},{dtype},{zeros},{way}"
        copies = 1 if way == "one" else 0
        process.answer(f"make {self.key} {dtype} {rows}x{cols} {zeros / 100} {tokens} {copies}")
        # The floor reads memory, in which one copy need not stay.
        kinds = self.KINDS[:2] if way == "one" else self.KINDS
        self.series = {who: Series(who, dtype, zeros, way) for who in kinds}

    def turn(self):
        medians = self.process.answer(f"turn {self.key} {flags.seconds}")
        for series, seconds in zip(self.series.values(), medians.split()):
            series.seconds.append(float(seconds))

    def drop(self):
        self.process.answer(f"drop {self.key}")


class Peer:
    """A library's products in one of the ways; `turn(seconds, least)` is a turn's time."""

    def __init__(self, who, dtype, zeros, way, turn):
        self.series = {"": Series(who, dtype, zeros, way)}
        self.timed = turn

    def only(self):
        return self.series[""]

    def turn(self):
        if not self.only().once:
            self.only().seconds.append(self.timed(flags.seconds))


def check(who, dtype, difference):
    if not difference <= ALLOWED[dtype]:
        sys.exit(f"{who}: {difference:.1e} of the largest value off numpy's product, allowed are {ALLOWED[dtype]}")


def counts(size):
    """Copies of the layer by way."""
    return {way: 1 if way == "one" else copies(size) for way in flags.ways}


def in_process(who, dtype, zeros, size, make, expected):
    """`make` gives a product on a copy of the weights, `size` bytes each."""
    products = [make() for _ in range(max(counts(size).values()))]
    found = products[0]()
    check(who, dtype, deviation(found.float().numpy() if torch and torch.is_tensor(found) else found, expected))
    return [Peer(who, dtype, zeros, way, Cycle(products[:count]).turn) for way, count in counts(size).items()]


def dense_peers(weight, x):
    peers, expected = [], x @ weight.T
    if torch and "torch" in flags.peers:
        for dtype, kind in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
            if dtype not in flags.dtypes:
                continue
            source, tokens = torch.from_numpy(weight).to(kind), torch.from_numpy(x).to(kind)

            def make(source=source, tokens=tokens):
                weight = source.clone()
                return lambda: torch.nn.functional.linear(tokens, weight)

            peers += in_process("PyTorch, dense", dtype, None, source.nbytes, make, expected)
    if "numpy" in flags.peers and "f32" in flags.dtypes:

        def make():
            copy = weight.copy()
            return lambda: x @ copy.T

        peers += in_process("numpy, dense", "f32", None, weight.nbytes, make, expected)
    return peers


def crate_products():
    """The newest build of `benches/crates.rs`, which multiplies with faer and candle."""
    if not {"faer", "candle"} & set(flags.peers) or not flags.layers:
        return None
    binary = newest("crates")
    if not binary:
        print("left out: faer and candle (`cargo bench` did not build benches/crates.rs)", file=sys.stderr)
    return binary


def crate_peers(binary, rows, cols, tokens):
    """Dense products of Rust crates, each turn a process of its own, whose memory is new to it."""
    peers = []
    for name in ("faer", "candle"):
        if not binary or name not in flags.peers or "f32" not in flags.dtypes:
            continue
        for way, count in counts(rows * cols * 4).items():

            def turn(seconds, least=None, who=name, count=count):
                command = [binary, who, f"{rows}x{cols}", str(tokens), str(count), str(seconds)]
                run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if run.returncode:
                    sys.exit(f"failed: {' '.join(command)}")
                took, difference = map(float, run.stdout.split())
                check(who, "f32", difference)
                return took

            peers.append(Peer(f"{name}, dense", "f32", None, way, turn))
    return peers


def csr_peers(weight, x, zeros):
    """Sparse times dense, with the tokens as columns, as both have it; they are transposed beforehand."""
    if not sparse:
        return []
    # One token is a vector to both.
    source, columns = sparse.csr_matrix(weight), np.ascontiguousarray(x.T if len(x) > 1 else x[0])
    peers, expected = [], weight @ columns
    # Values, and indices of 32 bits.
    size = source.nnz * 8

    def scipy_product():
        copy = source.copy()
        return lambda: copy @ columns

    def torch_product():
        parts = [torch.from_numpy(part.copy()) for part in (source.indptr, source.indices, source.data)]
        copy, tokens = torch.sparse_csr_tensor(*parts, size=source.shape), torch.from_numpy(columns)
        return lambda: copy @ tokens

    if torch and "torch-csr" in flags.peers:
        peers += in_process("PyTorch, CSR", "f32", zeros, size, torch_product, expected)
    if "scipy" in flags.peers:
        peers += in_process("SciPy, CSR (1 thread)", "f32", zeros, size, scipy_product, expected)
    return peers


class DeepSparse:
    """The engine in a Python of its own."""

    def __init__(self):
        self.process = None
        if "deepsparse" not in flags.peers or "f32" not in flags.dtypes or not flags.layers:
            return
        if not flags.deepsparse:
            print("left out: deepsparse (no --deepsparse PYTHON)", file=sys.stderr)
            return
        script = Path(__file__).with_name("deepsparse_layers.py")
        self.process = Process("DeepSparse's process", [flags.deepsparse, script])
        if self.process.ask(json.dumps({"drop": "nothing"})) is None:
            print("left out: deepsparse (its process ended)", file=sys.stderr)
            self.process = None

    def answer(self, **request):
        return json.loads(self.process.answer(json.dumps(request)))

    def peers(self, rows, cols, tokens, zeros):
        if not self.process:
            return []
        who = "DeepSparse" if zeros else "DeepSparse, dense"
        key = f"{rows}x{cols}, {tokens}, {zeros}"
        # Its own format is not told; values alone are no more than that.
        by_way = counts(int(rows * cols * 4 * (1 - zeros / 100)))
        made = self.answer(
            make=key,
            rows=rows,
            cols=cols,
            zeros=zeros / 100,
            tokens=tokens,
            threads=flags.threads,
            copies=max(by_way.values()),
        )
        check(who, "f32", made["deviation"])

        def turn(count):
            return lambda seconds, **least: self.answer(turn=key, copies=count, seconds=seconds, **least)["seconds"]

        return [Peer(who, "f32", zeros or None, way, turn(count)) for way, count in by_way.items()]

    def drop(self, rows, cols, tokens, zeros):
        if self.process:
            self.answer(drop=f"{rows}x{cols}, {tokens}, {zeros}")

    def close(self):
        if self.process:
            self.process.close()


def warm_up(contenders):
    """A first product of each, which is not counted, and which says who is too slow to be given turns."""
    ours = [contender for contender in contenders if isinstance(contender, Ours)]
    for own in ours:
        own.turn()
    slowest = max(own.series["ours"].median() for own in ours)
    slow = {}
    for contender in contenders:
        if isinstance(contender, Ours):
            for series in contender.series.values():
                series.seconds.clear()
            continue
        series = contender.only()
        kind = (series.who, series.zeros)
        first = slow.get(kind) or contender.timed(0, least=1)
        # What fits into a turn costs nothing; and the first product may only have met a noise.
        limit = max(flags.give_up * slowest, flags.seconds)
        if first > limit and kind not in slow:
            first = min(first, *(contender.timed(0, least=1) for _ in range(2)))
        if first > limit:
            series.once, series.seconds, slow[kind] = True, [first], first


def measure(rows, cols, tokens, process, crates, deepsparse):
    """The series of one layer and number of tokens. Dense layers stay for all sparsities; the others' copies are given back, as together they
    would not fit in memory, and systems take back what is not used for a while."""
    x = inputs(tokens, cols)
    dense = dense_peers(weights(rows, cols, 0), x) + crate_peers(crates, rows, cols, tokens)
    dense += deepsparse.peers(rows, cols, tokens, 0)
    table = [series for contender in dense for series in contender.series.values()]
    for zeros in flags.sparsities:
        ours = [
            Ours(process, rows, cols, tokens, dtype, zeros, way)
            for dtype, way in itertools.product(flags.dtypes, flags.ways)
        ]
        sparse_peers = []
        if "f32" in flags.dtypes:
            sparse_peers += csr_peers(weights(rows, cols, zeros / 100), x, zeros)
            sparse_peers += deepsparse.peers(rows, cols, tokens, zeros)
        # Ours between the peers', or a noise that lasts some seconds would meet only either.
        contenders = dense + ours + sparse_peers
        warm_up(contenders)
        for _ in range(flags.turns):
            for contender in contenders:
                time.sleep(PAUSE)
                contender.turn()
        table += [series for contender in ours + sparse_peers for series in contender.series.values()]
        deepsparse.drop(rows, cols, tokens, zeros)
        for own in ours:
            own.drop()
    deepsparse.drop(rows, cols, tokens, 0)
    return table


def print_layer(rows, cols, tokens, table):
    """Rows by zeros and type, ours first; the two ways side by side."""
    for zeros, dtype in itertools.product(flags.sparsities, flags.dtypes):
        here = [series for series in table if series.dtype == dtype and series.zeros in (zeros, None)]
        here.sort(key=lambda series: "ours" not in series.who)
        own = {series.way: series.median() for series in here if series.who == Ours.KINDS[0]}
        for who in dict.fromkeys(series.who for series in here):
            cells = [f"{rows} x {cols}", str(tokens), f"{zeros} %", dtype, who]
            for way in ("cycled", "one"):
                series = next((series for series in here if (series.who, series.way) == (who, way)), None)
                if series is None:
                    cells += ["", ""]
                    continue
                seconds, once = series.median(), " (once)" if series.once else ""
                cells += [f"{seconds * 1e3:.3f}{once}", f"{seconds / own[way]:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def layers():
    print("| layer | tokens | zeros | dtype | who | ms, cycled | times ours | ms, one copy | times ours |")
    print("|---" * 9 + "|", flush=True)
    process, crates, deepsparse, report = our_process(), crate_products(), DeepSparse(), []
    for (rows, cols), tokens in itertools.product(flags.layers, flags.tokens):
        table = measure(rows, cols, tokens, process, crates, deepsparse)
        print_layer(rows, cols, tokens, table)
        report += [{"rows": rows, "cols": cols, "tokens": tokens, **vars(series)} for series in table]
    process.close()
    deepsparse.close()
    return report


class LlamaCpp:
    """A GGUF file in llama.cpp, with the same numbers of arbitrary tokens as `sparsegpt bench` takes."""

    def __init__(self, name, path, llama_cpp):
        self.name, self.times = f"llama.cpp, {name}", {"prefill": [], "decode": []}
        self.model = llama_cpp.Llama(
            str(path), n_ctx=2048, n_threads=flags.threads, n_threads_batch=flags.threads, verbose=False
        )
        count = flags.prompt_tokens + flags.new_tokens
        self.tokens = [index * 7919 % self.model.n_vocab() for index in range(1, count + 1)]

    def turn(self):
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(self.tokens[: flags.prompt_tokens])
        middle = time.perf_counter()
        for token in self.tokens[flags.prompt_tokens :]:
            self.model.eval([token])
        end = time.perf_counter()
        self.times["prefill"].append((middle - start) / flags.prompt_tokens)
        self.times["decode"].append((end - middle) / flags.new_tokens)


class OurModel:
    """Dense and sparse kernels in one turn."""

    def __init__(self, path):
        self.path = path
        self.times = {kernels: {"prefill": [], "decode": []} for kernels in ("sparse", "dense")}

    def turn(self):
        numbers = ["--prompt-tokens", flags.prompt_tokens, "--new-tokens", flags.new_tokens]
        report = bench(self.path, *numbers, "--seconds", 0)
        for kernels, times in self.times.items():
            for what, seconds in times.items():
                seconds.append(1 / report[kernels][f"{what}_tokens_per_second"])


def quantized(source, path, llama_cpp):
    """Q4_0 of a GGUF file."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    settings.nthread = flags.threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings)):
        sys.exit(f"llama.cpp could not quantize {source}")
    return path


def models():
    llama_cpp = load("llama.cpp", "llama_cpp") if flags.gguf else None
    with tempfile.TemporaryDirectory() as folder:
        ours, peers = [OurModel(path) for path in flags.model], []
        if llama_cpp:
            quarter = quantized(flags.gguf, f"{folder}/q4_0.gguf", llama_cpp)
            peers = [LlamaCpp("F16", flags.gguf, llama_cpp), LlamaCpp("Q4_0", quarter, llama_cpp)]
        for peer in peers:
            peer.turn()
            peer.times = {"prefill": [], "decode": []}
        for _ in range(flags.turns):
            for contender in [*ours, *peers]:
                time.sleep(PAUSE)
                contender.turn()
    rows = [(f"{own.path}, {kernels}", times) for own in ours for kernels, times in own.times.items()]
    rows += [(peer.name, peer.times) for peer in peers]
    own = statistics.median(rows[0][1]["decode"])
    print("\n| who | prefill, tokens/s | decode, tokens/s | ms a token | times ours |\n|---|---|---|---|---|")
    for who, times in rows:
        prefill, decode = (statistics.median(times[what]) for what in ("prefill", "decode"))
        print(f"| {who} | {1 / prefill:.1f} | {1 / decode:.1f} | {decode * 1e3:.3f} | {decode / own:.2f} |")
    return [{"who": who, **times} for who, times in rows]


began = time.perf_counter()
versions = [f"numpy {np.__version__}"] + ([f"torch {torch.__version__}"] if torch else [])
print(f"{', '.join(versions)}; {flags.threads} threads, medians of {flags.turns} alternating turns\n")
report = {"threads": flags.threads}
report["layers"] = layers() if flags.layers else []
report["models"] = models() if flags.model else []
if flags.json:
    flags.json.write_text(json.dumps(report, indent=1) + "\n")
print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
