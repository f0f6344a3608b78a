#!/usr/bin/env bash
# Runs every fuzz target for so many seconds (60), from the corpus in fuzz/corpus. Needs a nightly compiler and installs
# cargo-fuzz below target/. What is found lies in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
tools=$PWD/../target/tools
[ -x "$tools/bin/cargo-fuzz" ] || cargo install --quiet cargo-fuzz --root "$tools"
export PATH=$tools/bin:$PATH CARGO_TARGET_DIR=../target/fuzz
# The same versions as the workspace's.
cp ../Cargo.lock Cargo.lock
for target in $(cargo +nightly fuzz list); do
    echo "=== $target"
    found=$(mktemp -d)
    # New inputs go to a folder of their own, so that the seeds stay as they are.
    cargo +nightly fuzz run --dev "$target" "$found" "corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20
    rm -r "$found"
done
