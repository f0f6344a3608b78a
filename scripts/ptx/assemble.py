"""Assembles every kernel for every architecture: no warning, no spill, no local memory, and no surprise in the registers.

    assemble.py PTXAS [--update]

Registers and static shared memory are compared with crates/sparsegpt-cuda/kernels.txt; --update writes it. Each run first
plants a spill, a use of local memory and a changed table, and fails if they go unnoticed.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
CRATE = pathlib.Path("crates/sparsegpt-cuda")
TABLE = CRATE / "kernels.txt"
HEADER = """\
# Registers a thread / bytes of static shared memory a block, as ptxas 12.9.86 assembles the kernels.
# scripts/check-ptx.sh compares; `scripts/check-ptx.sh assemble --update` writes.
"""
FLAGS = ["-v", "--warn-on-spills", "--warn-on-local-memory-usage", "--warning-as-error"]

LOCAL_MEMORY = """\
.version 7.0
.target sm_80
.address_size 64
.visible .entry planted(.param .u64 to, .param .u32 at)
{
	.local .align 4 .b8 values[64];
	.reg .u64 %to;
	.reg .u32 %at, %values, %x;
	ld.param.u64 %to, [to];
	ld.param.u32 %at, [at];
	mov.u32 %values, values;
	add.u32 %at, %at, %values;
	st.local.u32 [%at], %at;
	ld.local.u32 %x, [values];
	st.global.u32 [%to], %x;
	ret;
}
"""


def assemble(ptxas, text, architecture):
    """What was printed, and for each kernel its registers and its bytes of shared memory; None if it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "kernel.ptx"
        source.write_text(text)
        command = [ptxas, *FLAGS, f"-arch={architecture}", "-o", source.with_suffix(".cubin"), source]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = run.stdout.replace(str(source), "line ")
    if run.returncode:
        return output, None
    kernels = {}
    for kernel, block in re.findall(r"Compiling entry function '(\w+)'(.*?Used .*?)$", output, re.S | re.M):
        # What the flags should have turned into an error.
        spills = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads|lmem)", block)
        if not spills or any(map(int, spills)):
            return output, None
        shared = re.search(r"(\d+) bytes smem", block)
        kernels[kernel] = (int(re.search(r"Used (\d+) registers", block)[1]), int(shared[1]) if shared else 0)
    return output, kernels


def differences(found, table):
    for kernel in sorted(found.keys() | table.keys()):
        if kernel not in table:
            yield f"{kernel} is not in the table"
        elif kernel not in found:
            yield f"{kernel} is in the table and in no file"
        else:
            for architecture, now, before in zip(ARCHITECTURES, found[kernel], table[kernel], strict=True):
                if now != before:
                    yield f"{kernel}, {architecture}: {now}, in the table {before}"


def read_table():
    lines = [line.split() for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    heading, rows = lines[0], lines[1:]
    if heading[1:] != ARCHITECTURES:
        sys.exit(f"{TABLE} has the architectures {heading[1:]}, expected were {ARCHITECTURES}: --update writes it anew")
    return {row[0]: tuple(row[1:]) for row in rows}


def write_table(found):
    rows = [("kernel", *ARCHITECTURES), *((kernel, *cells) for kernel, cells in found.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    TABLE.write_text(HEADER + "\n".join(lines) + "\n")


def self_test(ptxas, texts, found):
    spill = re.sub(r"\.minnctapersm \d+\n", "", texts["gemm"]).replace(".reqntid 256, 1, 1", ".reqntid 256, 1, 1\n.maxnreg 48")
    kernel = next(iter(found))
    changed = {**found, kernel: ("1/1", *found[kernel][1:])}

    def refused(text, reason):
        output, kernels = assemble(ptxas, text, "sm_80")
        return kernels is None and reason in output.lower()

    planted = {
        "a spill": refused(spill, "registers are spilled"),
        "local memory": refused(LOCAL_MEMORY, "local memory used"),
        "a changed table": any(differences(found, changed)),
        "a missing line": any(differences(found, {k: v for k, v in found.items() if k != kernel})),
    }
    unnoticed = [what for what, noticed in planted.items() if not noticed]
    if unnoticed:
        sys.exit(f"the check itself is broken, unnoticed go: {', '.join(unnoticed)}")


def main():
    ptxas, *flags = sys.argv[1:]
    if flags not in ([], ["--update"]):
        sys.exit(__doc__)
    texts = {file.stem: file.read_text() for file in sorted((CRATE / "src/kernels").glob("*.ptx"))}
    cells, refused = {}, 0
    for name, text in texts.items():
        for architecture in ARCHITECTURES:
            output, kernels = assemble(ptxas, text, architecture)
            if kernels is None:
                refused += 1
                print(f"{name}.ptx for {architecture}:\n{output}")
                continue
            if set(kernels) != set(re.findall(r"\.entry (\w+)", text)):
                sys.exit(f"{name}.ptx for {architecture}: not every kernel is reported:\n{output}")
            for kernel, (registers, shared) in kernels.items():
                cells.setdefault((name, kernel), []).append(f"{registers}/{shared}")
    if refused:
        sys.exit(f"{refused} of {len(texts) * len(ARCHITECTURES)} assemblies failed")
    found = {kernel: tuple(values) for (_, kernel), values in sorted(cells.items())}
    self_test(ptxas, texts, found)
    if flags:
        write_table(found)
    wrong = list(differences(found, read_table()))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if wrong:
        sys.exit("registers or shared memory differ from crates/sparsegpt-cuda/kernels.txt: --update writes what is so now")
    print(f"ptxas: {len(found)} kernels for {', '.join(ARCHITECTURES)}: no warning, no spill, as in {TABLE}")


main()
