#!/usr/bin/env bash
# A reduced SmolLM2 case: 8 calibration sequences, 2 evaluation chunks. Checks that the loss stays in range and
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
# As `cargo test --workspace` has built it, optimized too: a build of its own would take longer than all of this.
sparsegpt=${CARGO_TARGET_DIR:-target}/debug/sparsegpt
[ -x "$sparsegpt" ] || cargo build --quiet -p sparsegpt-cli
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

perplexity() {
    "$sparsegpt" eval "$1" --text "$text" --recipe raw --sequence-length 1024 --limit 2 --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["perplexity"])'
}
prune() {
    local name=$1
    shift
    "$sparsegpt" prune "$model" --calibration "$tokens" --samples 8 --out "$work/$name" --json "$@" >"$work/$name.json"
}

prune half --pattern 50%
dense=$(perplexity "$model")
half=$(perplexity "$work/half")
echo "perplexity, 2 chunks: dense $dense, SparseGPT 50 % $half"
python3 - "$dense" "$half" "$work/half/sparsegpt_report.json" <<'PY'
import json, sys
dense, half = map(float, sys.argv[1:3])
assert 5 < dense < half < 6 * dense, "SparseGPT's perplexity is out of its range"
def layers(node):
    if isinstance(node, dict):
        if "pruned" in node and "rows" in node:
            yield node
        for value in node.values():
            yield from layers(value)
    elif isinstance(node, list):
        for value in node:
            yield from layers(value)
found = list(layers(json.load(open(sys.argv[3]))))
assert len(found) == 210, f"{len(found)} layers in the report, 210 expected"
assert all(l["pruned"] == l["rows"] * l["cols"] // 2 for l in found), "a count is not exact"
print(f"{len(found)} layers, every count exact")
PY
