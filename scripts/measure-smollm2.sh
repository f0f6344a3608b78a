#!/usr/bin/env bash
# The table of docs/benchmarks.md and the README: SmolLM2-135M, calibrated on the 32 x 512 tokens of the golden
# files, WikiText-2 raw test, first 32 chunks of 1024 tokens. Takes about 40 minutes on two cores. 2:4, which scatters most, is
# run with five dampings that differ in the fourth digit: the row is their median, and all five are printed.
# `measure-smollm2.sh scatter` prints how far the figures move when only the order of rounding changes.
# `measure-smollm2.sh zero-shot [FLAGS OF eval]` asks the dense and three pruned models the questions of all zero-shot tasks.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${SPARSEGPT_SMOLLM2:-data-local/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}
shared=${SPARSEGPT_SHARED:-../shared}
tokens=$shared/golden/smollm2/expected.safetensors
text=$shared/data/wikitext2/wiki.test.raw
cargo build --release --quiet -p sparsegpt-cli
sparsegpt=${CARGO_TARGET_DIR:-target}/release/sparsegpt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

number() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
evaluate() {
    "$sparsegpt" eval "$1" --text "$text" --recipe raw --sequence-length 1024 --limit 32 --json >"$work/eval.json"
    number "$work/eval.json" perplexity
}
row() { # label, published, then the flags of prune
    local label=$1 published=$2 start=$SECONDS peak
    shift 2
    "$sparsegpt" prune "$model" --calibration "$tokens" --out "$work/out" --force --json "$@" >"$work/run.json" &
    local pid=$!
    # The kernel's own high-water mark of resident memory, read while the process lives.
    while kill -0 $pid 2>/dev/null; do
        peak=$(awk '/VmHWM/ {print int($2 / 1024)}' /proc/$pid/status 2>/dev/null || true)
        [ -n "$peak" ] && echo "$peak" >"$work/peak"
        sleep 0.2
    done
    wait $pid
    local seconds=$((SECONDS - start))
    result=$(evaluate "$work/out")
    printf '| %s | %.2f | %s | %s s | %s MiB |\n' "$label" "$result" "$published" "$seconds" "$(cat "$work/peak")"
}
rows_and_median() { # as row
    local label=$1 published=$2 damping results=()
    shift 2
    for damping in 0.01 0.010001 0.009999 0.010002 0.009998; do
        row "$label, damping $damping" "$published" --damping "$damping" "$@"
        results+=("$result")
    done
    printf '| %s, median of five | %.2f | %s | | |\n' "$label" "$(printf '%s\n' "${results[@]}" | sort -g | sed -n 3p)" "$published"
}

if [ "${1:-}" = zero-shot ]; then
    for spec in 'sparsegpt-50:--pattern 50%' 'sparsegpt-2-4:--pattern 2:4' 'sparsegpt-50-4bit:--pattern 50% --bits 4'; do
        # Several flags each.
        # shellcheck disable=SC2086
        "$sparsegpt" prune "$model" --calibration "$tokens" --out "$work/${spec%%:*}" ${spec#*:} --quiet >&2
    done
    "$sparsegpt" eval "$model" "$work"/sparsegpt-{50,2-4,50-4bit} --tasks all --data "$shared/data" "${@:2}"
    exit
fi
if [ "${1:-}" = scatter ]; then
    printf '| SmolLM2-135M | perplexity | published reference | prune | peak memory |\n|---|---|---|---|---|\n'
    for block in 256 512; do
        row "SparseGPT 50 %, block size $block" 49.30 --pattern 50% --block-size $block
        row "SparseGPT 2:4, block size $block" 98.65 --pattern 2:4 --block-size $block
        row "SparseGPT 50 % + 4 bit, block size $block" 79.62 --pattern 50% --bits 4 --block-size $block
    done
    exit
fi
printf '| SmolLM2-135M | perplexity | published reference | prune | peak memory |\n|---|---|---|---|---|\n'
printf '| dense | %.2f | 23.94 | | |\n' "$(evaluate "$model")"
row 'SparseGPT 50 %' 49.30 --pattern 50%
rows_and_median 'SparseGPT 2:4' 98.65 --pattern 2:4
row 'SparseGPT 50 % + 4 bit' 79.62 --pattern 50% --bits 4
row 'Wanda 50 %' 53.55 --pattern 50% --method wanda
row 'magnitude 50 %' 528 --pattern 50% --method magnitude
row 'quality 50 %' - --pattern 50% --method quality
row 'quality 2:4' - --pattern 2:4 --method quality
row 'quality 50 % + 4 bit' - --pattern 50% --bits 4 --method quality
