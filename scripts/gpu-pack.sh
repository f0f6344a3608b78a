#!/usr/bin/env bash
# Gathers what scripts/gpu-check.sh needs on a machine without Rust and without a network: the device suite and the layer
# benchmark (release, stripped; the conformance corpus is inside), the reference's layers where they lie beside the
# repository, the scripts, and Python packages, into data-local/gpu-pack, at most 35 MiB. The binaries need a C library no
# older than this machine's.
set -euo pipefail
cd "$(dirname "$0")/.."

pack=data-local/gpu-pack
most=$((35 << 20))
rm -rf "$pack"
mkdir -p "$pack/wheels"

# The file that cargo built for a target.
built() {
    cargo "$@" --no-run --message-format=json-render-diagnostics | python3 -c '
import json, sys
artifacts = map(json.loads, filter(str.strip, sys.stdin))
files = [line["executable"] for line in artifacts if line.get("executable")]
assert len(files) == 1, files
print(files[0])'
}
strip -o "$pack/device" "$(built test --release -p sparsegpt-cuda --test device)"
strip -o "$pack/layers" "$(built bench -p sparsegpt-cuda --bench layers)"
cp benches/gpu/torch_loop.py benches/gpu/report.py scripts/gpu-check.sh "$pack"
layers=${SPARSEGPT_SHARED:-../shared}/golden/layers
if [[ -d $layers ]]; then
    mkdir -p "$pack/shared/golden"
    cp -r "$layers" "$pack/shared/golden"
else
    echo "$layers is not there: the device suite will skip the reference's layers"
fi

# compute-sanitizer is NVIDIA's, under its own licence: downloaded, and never part of this repository.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$pack/wheels" \
    --platform manylinux_2_25_x86_64 --platform any --require-hashes --requirement benches/gpu/requirements.txt

size=$(du -sb "$pack" | cut -f1)
du -ab "$pack" | sort -n | tail -12
[[ $size -le $most ]] || { echo "$pack is $size bytes, more than $most" >&2; exit 1; }
echo "$pack: $size bytes. On the machine with the GPU: $pack/gpu-check.sh"
