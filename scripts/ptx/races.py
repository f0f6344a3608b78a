"""Searches the kernels for races without running them, with sentryward (which must be importable).

    races.py [KERNEL...]

A case is a kernel with a launch of fixed size; the verdict holds for every schedule of that launch and every content of the
matrices. A kernel whose way depends on what it reads cannot be modelled; its case gives the reason, must come back as
unsupported, and is covered by the emulator, which watches for races as it runs. Controls: each kernel with a barrier is also
checked without it, and one kernel with all threads writing one value; those must come back as races, or the check says nothing.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import sys
import tempfile
import time
import typing

from sentryward import verify

KERNELS = pathlib.Path("crates/sparsegpt-cuda/src/kernels")

# More than two slabs of 16 depths, so that both buffers are written anew.
PRODUCT = dict(
    a_row=44, a_depth=1, b_depth=8, b_col=1, source_ld=8, c_ld=8, rows=5, cols=6, depth=40, alpha=1.0, beta=1.0,
    a_form=0, b_form=0, b_shift=0, c_form=0,
)
SWEEP = dict(
    weights_ld=64, factor_ld=64, errors_ld=64, rows=8, width=8, prune=1, mask_ld=64, zeros=0, group=0, grid=1, scale_ld=1,
    groups=None, first_group=0, max_code=15.0, levels=None, level_count=0,
)
LEAF = dict(h_ld=64, first=0, cols=4)


class Case(typing.NamedTuple):
    kernel: str
    grid: tuple
    # The scalar parameters. An address of None is 0 (absent); those that are not named are memory of their own.
    values: dict
    # Why it cannot be modelled, if it cannot.
    reason: str = ""


CASES = [
    Case("combine", (2, 2), dict(target_ld=160, other_ld=192, rows=11, cols=140, alpha=1.0, beta=2.0)),
    Case("read_diagonal", (2, 1), dict(matrix_ld=304, count=300)),
    Case("write_diagonal", (2, 1), dict(matrix_ld=304, count=300)),
    Case("permute", (2, 1), dict(h_ld=64, to_ld=64, count=12)),
    Case("mirror", (2, 2), dict(h_ld=64, count=40)),
    Case("mirror_double", (2, 2), dict(h_ld=64, to_ld=40, count=40)),
    Case("turn", (2, 1), dict(h_ld=64, to_ld=64, count=12)),
    Case("reflect", (2, 2), dict(from_ld=64, h_ld=64, count=40)),
    Case("pack_mask", (2, 1), dict(count=260, last=19)),
    Case("narrow_upper", (2, 1), dict(from_ld=40, to_ld=64, count=12)),
    Case("add_energies", (1, 1), dict(w_ld=64, product_ld=64, rows=5, cols=40)),
    Case("project", (2, 2), dict(sums_ld=160, duals_ld=160, dense_ld=192, mask_ld=140, rows=11, cols=140)),
    Case("refit_begin", (1, 1), dict(residual_ld=64, direction_ld=64, mask_ld=40, rows=5, cols=40)),
    Case(
        "refit_step",
        (1, 1),
        dict(weights_ld=64, residual_ld=64, direction_ld=64, product_ld=64, mask_ld=40, rows=5, cols=40),
        "a row stops by what it has read",
    ),
    Case("gemm", (1, 1), PRODUCT),
    Case("gemm_double", (1, 1), PRODUCT | dict(b_form=1, c_form=1)),
    Case("gemm_tensor", (1, 1), PRODUCT | dict(a_form=1)),
    Case("gram_16", (1, 1), dict(x_ld=8, h_ld=8, cols=8, tokens=64, alpha=1.0, beta=1.0, brain=1)),
    Case("fit_range", (1, 1), dict(weights_ld=64, rows=5, width=40, unit_rows=1, units=5)),
    Case(
        "fit_errors",
        (1, 1),
        dict(
            weights_ld=64, rows=5, width=40, unit_rows=1, units=5, range_step=1, candidates=80, symmetric=0,
            middle=8.0, max_code=15.0,
        ),
    ),
    Case("update_rows", (1, 1), SWEEP),
    Case(
        "update_rows",
        (1, 1),
        SWEEP | dict(prune=2, zeros=2, group=4),
        "with N:M it picks the least salient weights by comparisons of what it has read",
    ),
    Case("factor_leaf", (1, 1), LEAF, "ends early once a pivot, its own or an earlier one, is not positive"),
    Case("factor_leaf_double", (1, 1), LEAF, "ends early once a pivot, its own or an earlier one, is not positive"),
    Case("invert_triangles", (2, 1), dict(h_ld=64), "its loops go as far as the triangles that it reads the bounds of"),
    Case(
        "fit_choice",
        (1, 1),
        dict(units=5, candidates=80, warp_units=1, warp_rows=1, rows=5, scale_ld=1, zero_ld=1),
        "keeps the best candidate by predicated moves on errors it has read",
    ),
    Case(
        "select_lowest",
        (1, 1),
        dict(
            weights_ld=64, forced=None, protected=None, rows=4, width=64, segment=64, counts=None, count=10, state=None,
            digit=0, previous=0, position_digit=5,
        ),
        "its counts, by predicated additions, and its loops depend on what it has read",
    ),
    Case(
        "select_groups",
        (1, 1),
        dict(weights_ld=64, forced=None, protected=None, groups=32, in_row=16, zeros=2, group=4),
        "counts ranks by predicated additions on weights it has read",
    ),
]

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


def check(case, text):
    """The verdict on a case, with the seconds it took."""
    head = text[text.index(f".entry {case.kernel}(") :]
    head = head[: head.index("{")]
    threads = int(re.search(r"\.reqntid (\d+)", head)[1])
    arguments, addresses, left = [], [], dict(case.values)
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
    launch = {
        "schema": "spverify.kernel-input/v1",
        "launch": {"grid_dim": [*case.grid, 1], "block_dim": [threads, 1, 1]},
        "entry": case.kernel,
        "arguments": arguments,
        "declarations": addresses,
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source, config = pathlib.Path(folder, "kernel.ptx"), pathlib.Path(folder, "input.json")
        source.write_text(text)
        config.write_text(json.dumps(launch))
        # The exit code of the tool says nothing; a verdict is in `result`.
        answer = verify(source, input=config, timeout_seconds=1200)
    verdict = answer["result"]
    if verdict not in ("race_free", "potential_race"):
        found = answer.get("diagnostics") or [{}]
        line = found[0].get("details", {}).get("location", {}).get("line")
        verdict += f": {found[0].get('message', found[0])}" + (f", line {line}" if line else "")
    return verdict, time.monotonic() - start


def tasks(known, chosen):
    """What is to be checked: a title, the case, the module's text, the verdict that is right."""
    for case in CASES:
        kernel = case.kernel
        if kernel not in chosen:
            continue
        text, start, end = known[kernel]
        if case.reason:
            yield f"{kernel}, {case.reason}", case, text, "unsupported"
            continue
        yield kernel, case, text, "race_free"
        # The first barrier orders what is written before what is read.
        barrier = BARRIER.search(text, start, end)
        if barrier:
            without = text[: barrier.start()] + text[barrier.end() :]
            yield f"{kernel} without its first bar.sync", case, without, "potential_race"
        if kernel == ONE_ADDRESS[0]:
            part = text[start:end].replace(*ONE_ADDRESS[1:])
            yield f"{kernel} with one address for all", case, text[:start] + part + text[end:], "potential_race"


def main():
    known = kernels()
    cases = {case.kernel for case in CASES}
    if known.keys() != cases:
        sys.exit(f"kernels without a case: {sorted(known.keys() - cases)}; cases without a kernel: {sorted(cases - known.keys())}")
    chosen = set(sys.argv[1:]) or cases
    if chosen - cases:
        sys.exit(f"no such kernels: {sorted(chosen - cases)}")
    begun = time.monotonic()
    wrong, modelled = [], 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # The longest first.
        order = sorted(tasks(known, chosen), key=lambda task: len(task[2]), reverse=True)
        verdicts = pool.map(lambda task: check(task[1], task[2]), order)
        for (title, _, _, right), (verdict, seconds) in zip(order, verdicts):
            print(f"{title}: {verdict} ({seconds:.1f} s)", flush=True)
            modelled += right == "race_free"
            if verdict.split(":")[0] != right:
                wrong.append(f"{title}: {verdict}, expected {right}")
    if wrong:
        sys.exit("\n".join(["", *wrong]))
    print(f"races: none in {modelled} kernels, every planted one found, {time.monotonic() - begun:.0f} s")
    print("Those that are unsupported run in the emulator alone, which watches for races.")


main()
