"""Searches the kernels for races without running them, with sentryward (which must be importable).

    races.py [KERNEL...]

A case is a kernel with a launch of fixed size; the verdict holds for every schedule of that launch and every content of the
matrices. Kernels whose way depends on what they read cannot be modelled; they stand in UNMODELLED with the reason, and the
emulator, which watches for races as it runs, covers them. Controls: each barrier's kernel is also checked without it, and a
kernel with all threads writing one value; those must come back as races, or the check says nothing.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import sys
import tempfile
import time

from sentryward import verify

KERNELS = pathlib.Path("crates/sparsegpt-cuda/src/kernels")

# More than two slabs of 16 depths, so that both buffers are written anew.
PRODUCT = dict(
    a_row=44, a_depth=1, b_depth=8, b_col=1, source_ld=8, c_ld=8, rows=5, cols=6, depth=40, alpha=1.0, beta=1.0,
    a_form=0, b_form=0, b_shift=0, c_form=0,
)
# Kernel: grid, the scalar parameters. An address of None is 0 (absent); the others are memory of their own.
CASES = {
    "combine": ((2, 2), dict(target_ld=160, other_ld=192, rows=11, cols=140, alpha=1.0, beta=2.0)),
    "read_diagonal": ((2, 1), dict(matrix_ld=304, count=300)),
    "write_diagonal": ((2, 1), dict(matrix_ld=304, count=300)),
    "permute": ((2, 1), dict(h_ld=64, to_ld=64, count=12)),
    "mirror": ((2, 2), dict(h_ld=64, count=40)),
    "mirror_double": ((2, 2), dict(h_ld=64, to_ld=40, count=40)),
    "narrow_upper": ((2, 1), dict(from_ld=40, to_ld=64, count=12)),
    "add_energies": ((1, 1), dict(w_ld=64, product_ld=64, rows=5, cols=40)),
    "gemm": ((1, 1), PRODUCT),
    "gemm_double": ((1, 1), PRODUCT | dict(b_form=1, c_form=1)),
    "gemm_tensor": ((1, 1), PRODUCT | dict(a_form=1)),
    "gram_16": ((1, 1), dict(x_ld=8, h_ld=8, cols=8, tokens=64, alpha=1.0, beta=1.0, brain=1)),
    "fit_range": ((1, 1), dict(weights_ld=64, rows=5, width=40, unit_rows=1, units=5)),
    "fit_errors": (
        (1, 1),
        dict(
            weights_ld=64, rows=5, width=40, unit_rows=1, units=5, range_step=1, candidates=80, symmetric=0,
            middle=8.0, max_code=15.0,
        ),
    ),
    "update_rows": (
        (1, 1),
        dict(
            weights_ld=64, factor_ld=64, errors_ld=64, rows=8, width=8, prune=1, mask_ld=64, zeros=0, group=0, grid=1,
            scale_ld=1, groups=None, first_group=0, max_code=15.0, levels=None, level_count=0,
        ),
    ),
}

UNMODELLED = {
    "factor_leaf": "ends early at a pivot that is not positive",
    "factor_leaf_double": "ends early at a pivot that is not positive",
    "fit_choice": "keeps the best candidate by predicated moves on errors it has read",
    "select_lowest": "its loops depend on the counts of digits it has read",
    "select_groups": "counts ranks by predicated additions on weights it has read",
}

BARRIER = re.compile(r"^\s*bar\.sync[^;]*;", re.M)

# A kernel in which every thread is made to write the same value.
ONE_ADDRESS = ("read_diagonal", "mov.u32 %i, %tid.x;", "mov.u32 %i, 0;")


def kernels():
    """Each kernel's module text, and where its own part begins and ends."""
    found = {}
    for file in sorted(KERNELS.glob("*.ptx")):
        text = file.read_text()
        starts = [(match[1], match.start()) for match in re.finditer(r"^\.visible \.entry (\w+)\(", text, re.M)]
        ends = [start for _, start in starts[1:]] + [len(text)]
        found |= {name: (text, start, end) for (name, start), end in zip(starts, ends)}
    return found


def check(kernel, text, head):
    """The verdict on a case, with the seconds it took; `head` is the kernel's parameters and directives."""
    (columns, rows), values = CASES[kernel]
    threads = int(re.search(r"\.reqntid (\d+)", head)[1])
    arguments, addresses, left = [], [], dict(values)
    for index, (kind, name) in enumerate(re.findall(r"\.param \.(\w+) (\w+)", head)):
        if kind == "u64" and name not in left:
            addresses.append({"parameter": index, "type": "pointer", "space": "global", "object": name})
            continue
        if name not in left:
            return f"the case has no value for {name}", 0
        value = left.pop(name)
        arguments.append({"parameter": index, "type": "pointer" if value is None else kind, "value": value})
    if left:
        return f"the case has values for {', '.join(left)}, the kernel has no such parameters", 0
    case = {
        "schema": "spverify.kernel-input/v1",
        "launch": {"grid_dim": [columns, rows, 1], "block_dim": [threads, 1, 1]},
        "entry": kernel,
        "arguments": arguments,
        "declarations": addresses,
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source, config = pathlib.Path(folder, "kernel.ptx"), pathlib.Path(folder, "input.json")
        source.write_text(text)
        config.write_text(json.dumps(case))
        # The exit code of the tool says nothing; a verdict is in `result`.
        answer = verify(source, input=config, timeout_seconds=1200)
    verdict = answer["result"]
    if verdict not in ("race_free", "potential_race"):
        verdict += ": " + json.dumps(answer.get("diagnostics"))[:300]
    return verdict, time.monotonic() - start


def tasks(known, chosen):
    """What is to be checked: a title, the kernel, the module's text, the verdict that is right."""
    for kernel in chosen:
        text, start, end = known[kernel]
        yield kernel, kernel, text, "race_free"
        # The first barrier orders what is written before what is read.
        barrier = BARRIER.search(text, start, end)
        if barrier:
            yield f"{kernel} without its first bar.sync", kernel, text[: barrier.start()] + text[barrier.end() :], "potential_race"
        if kernel == ONE_ADDRESS[0]:
            part = text[start:end].replace(*ONE_ADDRESS[1:])
            yield f"{kernel} with one address for all", kernel, text[:start] + part + text[end:], "potential_race"


def main():
    known = kernels()
    forgotten = known.keys() - CASES.keys() - UNMODELLED.keys()
    gone = (CASES.keys() | UNMODELLED.keys()) - known.keys()
    if forgotten or gone:
        sys.exit(f"neither a case nor a reason: {sorted(forgotten)}; no such kernels any more: {sorted(gone)}")
    chosen = sys.argv[1:] or list(CASES)
    if unknown := [kernel for kernel in chosen if kernel not in CASES]:
        sys.exit(f"no case for {unknown}")
    wrong = []
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def judge(task):
            title, kernel, text, right = task
            head = text[text.index(f".entry {kernel}(") :]
            verdict, seconds = check(kernel, text, head[: head.index("{")])
            return title, verdict, right, seconds

        # The longest first.
        order = sorted(tasks(known, chosen), key=lambda task: len(known[task[1]][0]), reverse=True)
        for title, verdict, right, seconds in pool.map(judge, order):
            print(f"{title}: {verdict} ({seconds:.1f} s)", flush=True)
            if verdict != right:
                wrong.append(f"{title}: {verdict}, expected {right}")
    if wrong:
        sys.exit("\n".join(["", *wrong]))
    print("\nnot modelled, run in the emulator, which watches for races:")
    for kernel, reason in UNMODELLED.items():
        print(f"  {kernel}: {reason}")
    print(f"races: none in {len(chosen)} kernels ({time.monotonic() - begun:.0f} s), every planted one found")


main()
