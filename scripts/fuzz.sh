#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (30), two at a time, from the corpus in fuzz/corpus. Needs a nightly compiler;
# without one this says so and ends with 0, unless SPARSEGPT_REQUIRE_FUZZING is 1. What is found lies in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-30}
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "skipped: fuzzing needs a nightly toolchain (rustup toolchain install nightly)" >&2
    exit "${SPARSEGPT_REQUIRE_FUZZING:-0}"
fi
host=$(rustc -vV | sed -n 's/^host: //p')
built=$PWD/../target/fuzz/$host/fuzz
# As cargo-fuzz 0.13 builds targets, which takes longer to install than this: the address sanitizer, and the counters,
# comparisons and stack depth that steer libFuzzer.
flags=(
    -Zsanitizer=address
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-sanitizer-coverage-stack-depth
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0
)
# The host is named, or build scripts and macros would get the flags too.
RUSTFLAGS="${flags[*]}" cargo +nightly build --package sparsegpt-fuzz --profile fuzz --target "$host" --target-dir ../target/fuzz
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
run() {
    local target=$1 new
    new=$(mktemp -d -p "$logs")
    mkdir -p "corpus/$target" "artifacts/$target"
    # New inputs go to a folder of their own, so that the seeds stay as they are.
    if "$built/$target" -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 \
        "$new" "corpus/$target" >"$logs/$target.log" 2>&1; then
        echo "$target: $(grep -E '^Done [0-9]+ runs' "$logs/$target.log" || echo 'no count of runs')"
    else
        tail -n 40 "$logs/$target.log"
        echo "$target: FAILED"
        return 1
    fi
}
export -f run
export built logs seconds
# Every target has its counters, where the sanitizer would see one thing defined twice.
export ASAN_OPTIONS=detect_odr_violation=0
basename -a -s .rs fuzz_targets/*.rs | xargs -P 2 -I '{}' bash -c 'run {}'
