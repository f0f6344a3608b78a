#!/usr/bin/env bash
# Instructions of one sweep (valgrind's callgrind, one thread): what a run with two sweeps executes more than one
# with one. The counts do not depend on what else the machine does. Needs valgrind, which has no AVX-512: on every
# machine these are the counts of the AVX2 code.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || { echo "valgrind is not installed" >&2; exit 1; }
cargo bench --quiet -p sparsegpt --bench sweep --no-run
target=${CARGO_TARGET_DIR:-target}
binary=$(find "$target/release/deps" -name 'sweep-*' -perm -u+x -type f -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

instructions() { # rows, width, rule, sweeps
    valgrind --tool=callgrind --callgrind-out-file="$work/out" "$binary" "$@" 2>"$work/log" ||
        { cat "$work/log" >&2; exit 1; }
    awk '/^summary:/ {print $2}' "$work/out"
}

printf '| sweep | rule | instructions | for each weight |\n|---|---|---|---|\n'
for shape in "768 128" "4096 128"; do
    read -r rows width <<<"$shape"
    for rule in fixed 2:4 2:4+4bit; do
        once=$(instructions "$rows" "$width" "$rule" 1)
        twice=$(instructions "$rows" "$width" "$rule" 2)
        count=$((twice - once))
        printf '| %s x %s | %s | %s | %s |\n' "$rows" "$width" "$rule" "$count" \
            "$(awk -v a="$count" -v b="$((rows * width))" 'BEGIN {printf "%.1f", a / b}')"
    done
done
