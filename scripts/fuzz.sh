#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (60), two at a time, from the corpus in fuzz/corpus. Needs a nightly compiler;
# without one this says so and ends with 0, unless SPARSEGPT_REQUIRE_FUZZING is 1. Installs cargo-fuzz below target/. What is
# found lies in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "skipped: fuzzing needs a nightly toolchain (rustup toolchain install nightly)" >&2
    exit "${SPARSEGPT_REQUIRE_FUZZING:-0}"
fi
tools=$PWD/../target/tools
[ -x "$tools/bin/cargo-fuzz" ] || cargo install --quiet --locked cargo-fuzz --root "$tools"
export PATH=$tools/bin:$PATH CARGO_TARGET_DIR=$PWD/../target/fuzz
# The same versions as the workspace's.
cp ../Cargo.lock Cargo.lock
cargo +nightly fuzz build --dev
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
run() {
    local target=$1 new
    new=$(mktemp -d -p "$logs")
    mkdir -p "corpus/$target"
    # New inputs go to a folder of their own, so that the seeds stay as they are.
    if cargo +nightly fuzz run --dev "$target" "$new" "corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 >"$logs/$target.log" 2>&1; then
        echo "$target: $(grep -E '^Done [0-9]+ runs' "$logs/$target.log" || echo 'no count of runs')"
    else
        tail -n 40 "$logs/$target.log"
        echo "$target: FAILED"
        return 1
    fi
}
export -f run
export logs seconds
cargo +nightly fuzz list | xargs -P 2 -I '{}' bash -c 'run {}'
