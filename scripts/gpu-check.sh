#!/usr/bin/env bash
# Proves and measures the CUDA backend on a machine with a GPU, in less than 9 minutes: the device suite, compute-sanitizer,
# the benchmarks with their rivals. Needs the driver, python3 with PyTorch, and what scripts/gpu-pack.sh has gathered (by
# default data-local/gpu-pack, or the folder this file lies in); no Rust, no CUDA toolkit.
#
#     scripts/gpu-check.sh [--out FOLDER] [--pack FOLDER] [--seconds N] [--dry-run]
#
# Every step has its own time, so that one that fails or hangs costs its own figures alone. Logs, raw figures and tables.md
# (for docs/benchmarks.md) go to the folder of --out (default: gpu-results). Ends with a summary; exit code 0 if every step
# passed, 1 if one did not, 3 without a GPU. --seconds is when everything must be done (default: 525); what the tables need
# most comes first.
#
# --dry-run goes through the same steps without a GPU, at tiny sizes, the emulator and the processor in its place: it shows
# that the script works, and its figures are those of no GPU.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
pack=$here
[[ -x $pack/layers ]] || pack=$here/../data-local/gpu-pack
out=gpu-results
dry=
total=525
while [[ $# -gt 0 ]]; do
    case $1 in
        --out | --pack | --seconds)
            [[ $# -ge 2 ]] || { echo "$1 needs a value" >&2; exit 2; }
            case $1 in
                --out) out=$2 ;;
                --pack) pack=$2 ;;
                *) total=$2 ;;
            esac
            shift 2
            ;;
        --dry-run) dry=1; shift ;;
        --help) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "unknown: $1 (--out, --pack, --seconds, --dry-run, --help)" >&2; exit 2 ;;
    esac
done
[[ $total =~ ^[0-9]+$ ]] || { echo "--seconds $total: a whole number of seconds is expected" >&2; exit 2; }
python=${PYTHON:-python3}
for file in device layers torch_loop.py report.py; do
    [[ -e $pack/$file ]] || { echo "$pack/$file is not there: run scripts/gpu-pack.sh where there is Rust" >&2; exit 2; }
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
pack=$(cd "$pack" && pwd)
for step in bits suite corpus rates layers rivals libraries memcheck racecheck; do
    rm -f "$out/$step"{,-*}.{jsonl,log}
done

summary=()
measured=()
failed=0

# step NAME SECONDS COMMAND...: standard output to NAME.jsonl, both to the log.
step() {
    local name=$1 limit=$2 left=$((total - SECONDS)) start=$SECONDS code=0
    shift 2
    [[ $limit -le $left ]] || limit=$left
    if [[ $limit -lt 5 ]]; then
        summary+=("$name | not run: no time is left")
        failed=1
        return 1
    fi
    printf '\n=== %s (at most %d s)\n' "$name" "$limit"
    timeout --kill-after=5 "$limit" "$@" 2> >(tee "$out/$name.log" >&2) >"$out/$name.jsonl" || code=$?
    case $code in
        0) summary+=("$name | passed in $((SECONDS - start)) s") ;;
        124 | 137) summary+=("$name | stopped after $limit s; what it had measured by then counts"); failed=1 ;;
        *)
            summary+=("$name | FAILED with exit code $code")
            failed=1
            tail -n 30 "$out/$name.jsonl"
            ;;
    esac
    return "$code"
}

skip() { summary+=("$1 | skipped: $2"); }

# Sets `tool` to the command of compute-sanitizer: this machine's own, or the one that was carried along.
tool=()
find_sanitizer() {
    local wheel root=$out/sanitizer/nvidia/cuda_sanitizer_api
    if command -v compute-sanitizer >/dev/null; then
        tool=(compute-sanitizer)
        return
    fi
    for wheel in "$pack"/wheels/nvidia_cuda_sanitizer_api*.whl; do
        "$python" -m zipfile -e "$wheel" "$out/sanitizer" && chmod +x "$root/bin/compute-sanitizer" &&
            tool=("$root/bin/compute-sanitizer" --injection-path "$root/lib")
    done
}

layers=("$pack/layers")
torch=("$python" -u "$pack/torch_loop.py")
if [[ $dry ]]; then
    echo "dry run: no GPU is used, the figures mean nothing"
    layers+=(--emulator --tokens 64 --runs 1)
    torch+=(--device cpu --tokens 512 --runs 1)
    small=32x48 shapes=(32x48 16x40) sizes=64
else
    [[ -x $(command -v nvidia-smi) ]] && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    if ! "${layers[@]}" --device; then
        echo "This machine has no GPU that the backend can use: nothing was checked and nothing measured." >&2
        exit 3
    fi
    small=192x320 sizes=1024,4096,8192,12288
    shapes=(2048x2048 4096x4096 4096x11008 12288x12288 49152x12288 12288x49152)
fi

export SPARSEGPT_REQUIRE_DEVICE=1 SPARSEGPT_SHARED=$pack/shared
if [[ $dry ]]; then
    skip suite "dry run"
    skip bits "dry run"
    skip corpus "dry run"
else
    # Small cases first: if the first one hangs, the rest need not be waited for.
    step bits 60 "$pack/device" same_bits_as_the_emulator
    step suite 120 "$pack/device" --skip the_emulator
fi

# check NAME TOOL FLAGS...: a small layer under compute-sanitizer.
check() {
    local name=$1 kind=$2
    shift 2
    if [[ $dry ]]; then
        skip "$name" "dry run"
    elif [[ ${#tool[@]} -eq 0 ]]; then
        skip "$name" "no compute-sanitizer, which is a failure here"
        failed=1
    else
        step "$name" 40 "${tool[@]}" --tool "$kind" --error-exitcode 9 "${layers[@]}" --shapes "$small" --tokens 256 --runs 1 "$@"
    fi
}
[[ $dry ]] || find_sanitizer

for products in device ordinary tensor libraries; do
    step "rates-$products" 20 "${layers[@]}" --rates --sizes "$sizes" --products "$products"
done
# A step of PyTorch's. On a machine with a GPU its absence is a failure: there would be nothing to compare with.
by_torch() {
    if [[ $dry ]] && ! "$python" -c 'import torch' 2>/dev/null; then
        skip "$1" "dry run, no PyTorch"
    else
        step "$1" "$2" "${torch[@]}" "${@:3}"
    fi
}
# The first start of PyTorch reads it from the disk.
by_torch rates-torch 60 --rates --sizes "$sizes"

# What the tables need most comes first, and the small layers before the large ones.
for shape in "${shapes[@]}"; do
    step "layers-$shape" 60 "${layers[@]}" --shapes "$shape" --seconds 4
done
rivals=()
for wheel in "$pack"/wheels/llmcompressor-*.whl; do
    [[ -e $wheel ]] && rivals=(--llmcompressor "$pack/wheels")
done
for shape in "${shapes[@]}"; do
    by_torch "rivals-$shape" 100 --shapes "$shape" --seconds 4 "${rivals[@]}"
done
for shape in "${shapes[@]}"; do
    step "libraries-$shape" 40 "${layers[@]}" --shapes "$shape" --seconds 2 --patterns 50% --products libraries
done
check memcheck memcheck
check racecheck racecheck
# The kernels for ordinary units, where the device's own are those for tensor cores.
check memcheck-ordinary memcheck --products ordinary
# And those that stand around a library's factorization.
check memcheck-libraries memcheck --products libraries --shapes 192x768
check racecheck-ordinary racecheck --products ordinary
check racecheck-libraries racecheck --products libraries --shapes 64x768 --patterns 2:4
# Last, as the emulator takes minutes.
[[ $dry ]] || step corpus 200 "$pack/device" corpus_beside_the_emulator

echo
# Not what ran under compute-sanitizer.
for file in "$out"/{rates,layers,libraries,rivals}-*.jsonl; do
    [[ -e $file ]] && measured+=("$file")
done
"$python" "$pack/report.py" "${measured[@]}" | tee "$out/tables.md"
[[ ${PIPESTATUS[0]} -eq 0 ]] || failed=1
printf '\n| step | outcome |\n|---|---|\n'
printf '| %s |\n' "${summary[@]}"
echo
if [[ $failed -eq 0 ]]; then
    echo "gpu-check: every step passed, $SECONDS s"
else
    echo "gpu-check: NOT every step passed, $SECONDS s"
fi
exit "$failed"
