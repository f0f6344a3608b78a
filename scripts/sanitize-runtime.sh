#!/usr/bin/env bash
# The tests of the sparse runtime under the address sanitizer: the kernels read and write through pointers, and the sanitizer
# sees every access outside of an array. It needs a nightly toolchain; without one this says so and ends with 0, unless
# SPARSEGPT_REQUIRE_SANITIZER is 1. What it cannot see are reads in a mapped file behind a layer's arrays; the
# container's checks are there for those.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "skipped: the address sanitizer needs a nightly toolchain (rustup toolchain install nightly)" >&2
    exit "${SPARSEGPT_REQUIRE_SANITIZER:-0}"
fi
target=$(rustc -vV | sed -n 's/^host: //p')
# A target of its own, so that build scripts and macros are not sanitized. Doc tests need flags of their own. Memory that no machine
# has is refused, as elsewhere, where the sanitizer would abort.
ASAN_OPTIONS="allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}" \
    RUSTFLAGS="-Zsanitizer=address" PROPTEST_CASES="${PROPTEST_CASES:-16}" \
    cargo +nightly test -p sparsegpt-runtime --target "$target" --target-dir target/sanitizer \
    --lib --test it "$@"
