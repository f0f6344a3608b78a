#!/usr/bin/env bash
# The runtime's products and the solver's kernels compiled for AArch64 (NEON) and run in QEMU's user mode: that they are right,
# not how fast they are. Needs `rustup target add aarch64-unknown-linux-gnu`, and of the system gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross and qemu-user (Debian's names).
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
for program in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v "$program" >/dev/null || { echo "skipped: no $program"; exit 0; }
done
rustc --print target-libdir --target "$target" | xargs ls >/dev/null 2>&1 || {
    echo "skipped: rustup target add $target"
    exit 0
}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
cargo test --target "$target" -p sparsegpt-runtime
cargo test --target "$target" -p sparsegpt --test it -- kernels products
