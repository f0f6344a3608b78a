#!/usr/bin/env bash
# The tables of docs/scaling.md: plans for models that no machine here could load, from their config.json alone. The rates are
# given, so that they come out the same everywhere.
set -euo pipefail
cd "$(dirname "$0")/.."

sparsegpt=${SPARSEGPT:-}
if [ -z "$sparsegpt" ]; then
    cargo build --release --quiet -p sparsegpt-cli
    sparsegpt=${CARGO_TARGET_DIR:-target}/release/sparsegpt
fi
models="opt-175b bloom-176b llama-3.1-405b moe-256"
# Two cores of an AMD EPYC with AVX2, docs/benchmarks.md: SmolLM2's passes, and a layer of 8192 x 8192.
forward=forward=110G
cpu=$forward,hessian=85G,factor=115G,products=122G,sweep=167M,transfer=127M

plan() { # the model, then flags
    local model=$1
    shift
    "$sparsegpt" prune "docs/scaling/$model.json" --pattern 50% --dry-run --json "$@" 2>/dev/null
}
row='
import json, sys
plan, name, what = json.load(sys.stdin), sys.argv[1], sys.argv[2]
GiB = 2.0**30
def time(seconds):
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
of = {stage["stage"]: stage["seconds"] for stage in plan["stages"]}
memory, disk = plan["memory"], plan["disk"]
size = lambda bytes: f"{bytes / GiB:.1f}"
if what == "memory":
    device = memory.get("device")
    cells = [size(memory[key]) for key in ("hidden_states", "embedding", "block_weights", "hessians", "forward", "solving", "own")]
    cells += [size(device["hessians"]), size(device["layer"]), size(sum(device.values()))] if device else ["", "", ""]
elif what == "time":
    stages = ("forward", "upload", "hessian", "factor", "products", "measure", "sweep", "transfer", "files")
    cells = [time(of[stage]) if stage in of else "" for stage in stages] + [time(plan["seconds"])]
else:
    dense = disk["dense"]
    share = lambda key: f"{size(disk[key])} ({100 * disk[key] / dense:.0f} %)"
    cells = [size(disk["dense"])] + [share(key) for key in ("bitmask", "two_of_four", "bitmask_4bit", "gptq_4bit")]
print("| " + " | ".join([name] + cells) + " |")
'
table() { # what, heading, then flags
    local what=$1 heading=$2
    shift 2
    printf '%s\n' "$heading"
    printf '%s\n' "$heading" | sed 's/[^|]/-/g; s/|-*/|---/g; s/---$//'
    for model in $models; do
        plan "$model" "$@" | python3 -c "$row" "$model" "$what"
    done
    printf '\n'
}
memory='| GiB | hidden states | embeddings | block | Hessians | forward | solving | host in all | device: Hessians | layer | in all |'
time='| | forward | upload | hessian | factor | products | measure | sweep | transfer | files | in all |'

echo "This processor:"
table memory "$memory" --plan-rates "$cpu"
table time "$time" --plan-rates "$cpu"
echo "With a GPU of 80 GB:"
table memory "$memory" --plan-for h100 --plan-rates "$forward"
table time "$time" --plan-for h100 --plan-rates "$forward"
echo "If forward passes ran on the GPU too:"
table time "$time" --plan-for h100 --plan-rates forward=400T
echo "On disk:"
table disk '| GiB | dense, or with zeros | bit mask | 2:4 | bit mask and 4 bits | GPTQ, 4 bits |' --plan-rates "$cpu"
