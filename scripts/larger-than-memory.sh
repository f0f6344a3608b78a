#!/usr/bin/env bash
# Prunes a synthetic checkpoint that is larger than the memory the process may have: 12 GB of f32 in shards, with at most
# 4 GiB of data (prlimit --data, which the kernel enforces: an allocation beyond it fails). Prints a row of the table in docs/scaling.md.
#     larger-than-memory.sh [--gigabytes N] [--dtype f32|bf16] [--limit GIB] [-- FLAGS OF prune]
# The result is bf16. On the disk stand the checkpoint, the kept blocks and the result: twice the size of an f32 checkpoint, three times
# that of a bf16 one. All of it is removed again. TMPDIR says where.
set -euo pipefail
cd "$(dirname "$0")/.."

gigabytes=12 dtype=f32 limit=4
while [ $# -gt 0 ]; do
    case $1 in
    --gigabytes) gigabytes=$2 ;;
    --dtype) dtype=$2 ;;
    --limit) limit=$2 ;;
    --) break ;;
    *)
        echo "unknown: $1" >&2
        exit 2
        ;;
    esac
    shift 2
done
[ "${1:-}" = -- ] && shift
[ $# -gt 0 ] || set -- --method sparsegpt --pattern 50%

sparsegpt=${SPARSEGPT:-}
if [ -z "$sparsegpt" ]; then
    cargo build --release --quiet -p sparsegpt-cli
    sparsegpt=${CARGO_TARGET_DIR:-target}/release/sparsegpt
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

copies=$([ "$dtype" = f32 ] && echo 2.1 || echo 3.1)
free=$(df --output=avail -B1 "$work" | tail -1)
if awk "BEGIN { exit !($free < $copies * $gigabytes * 1e9) }"; then
    echo "$gigabytes GB in $dtype need $copies times that on the disk, of which $((free / 1000000000)) GB are free: give --gigabytes" >&2
    exit 1
fi
python3 scripts/synthetic-checkpoint.py "$work/model" --gigabytes "$gigabytes" --dtype "$dtype" >&2
size=$(du -scB1 "$work"/model/*.safetensors | awk 'END { print $1 }')

start=$SECONDS
prlimit --data=$((limit << 30)) "$sparsegpt" prune "$work/model" --calibration "$work/model/tokens.safetensors" \
    --dtype bf16 --out "$work/out" --json "$@" >"$work/report.json" &
pid=$!
own=0 files=0 kib=0
while kill -0 $pid 2>/dev/null; do
    while read -r name kib _; do
        case $name in
        RssAnon:) own=$((kib > own ? kib : own)) ;;
        RssFile:) files=$((kib > files ? kib : files)) ;;
        esac
    done < <(cat /proc/$pid/status 2>/dev/null || true)
    sleep 0.1
done
wait $pid
python3 - "$work/report.json" "$size" "$own" "$files" "$limit" $((SECONDS - start)) <<'END'
import json, sys
run = json.load(open(sys.argv[1]))
size, own, files, limit, seconds = map(int, sys.argv[2:])
print("| checkpoint | layers | zeros | RssAnon, most | allowed | RssFile, most | the whole command |")
print("|---|---|---|---|---|---|---|")
zeros = 100 * run["zeros"] / run["weights"]
print(f"| {size / 1e9:.2f} GB | {len(run['layers'])} | {zeros:.2f} % | {own / 2**20:.2f} GiB | {limit} GiB "
      f"| {files / 2**20:.2f} GiB | {seconds} s |")
END
