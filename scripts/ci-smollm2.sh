#!/usr/bin/env bash
# A reduced SmolLM2 case: 8 calibration sequences, 4 evaluation chunks. Checks the order of the methods and
# that the counts are exact; scripts/measure-smollm2.sh measures the whole table.
set -euo pipefail
cd "$(dirname "$0")/.."

model=${SPARSEGPT_SMOLLM2:-data-local/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}
shared=${SPARSEGPT_SHARED:-../shared}
tokens=$shared/golden/smollm2/expected.safetensors
text=$shared/data/wikitext2/wiki.test.raw
for file in "$model" "$tokens" "$text"; do
    [ -f "$file" ] || { echo "skipped: $file is not there"; exit 0; }
done
cargo build --release --quiet -p sparsegpt-cli
sparsegpt=${CARGO_TARGET_DIR:-target}/release/sparsegpt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

perplexity() {
    "$sparsegpt" eval "$1" --text "$text" --recipe raw --sequence-length 1024 --limit 4 --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["perplexity"])'
}
prune() {
    local name=$1
    shift
    "$sparsegpt" prune "$model" --calibration "$tokens" --samples 8 --out "$work/$name" --json "$@" >"$work/$name.json"
}

prune half --pattern 50%
prune wanda --pattern 50% --method wanda
dense=$(perplexity "$model")
half=$(perplexity "$work/half")
wanda=$(perplexity "$work/wanda")
echo "perplexity, 4 chunks: dense $dense, SparseGPT 50 % $half, Wanda 50 % $wanda"
python3 - "$dense" "$half" "$wanda" "$work/half/sparsegpt_report.json" <<'PY'
import json, sys
dense, half, wanda = map(float, sys.argv[1:4])
assert 15 < dense < half < 4 * dense, "SparseGPT's perplexity is out of its range"
assert half < wanda, "SparseGPT should lose less than Wanda"
def layers(node):
    if isinstance(node, dict):
        if "pruned" in node and "rows" in node:
            yield node
        for value in node.values():
            yield from layers(value)
    elif isinstance(node, list):
        for value in node:
            yield from layers(value)
found = list(layers(json.load(open(sys.argv[4]))))
assert len(found) == 210, f"{len(found)} layers in the report, 210 expected"
assert all(l["pruned"] == l["rows"] * l["cols"] // 2 for l in found), "a count is not exact"
print(f"{len(found)} layers, every count exact")
PY
