#!/usr/bin/env bash
# Packs `sparsegpt` as for publishing and compiles what was packed. It takes versions and profile from the workspace, so that
# the dependencies are those that its lints have been checked with, where `cargo package` would compile them anew.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
place=$target/package/checked
rm -rf "$place" "$target"/package/sparsegpt-[0-9]*.crate
cargo package -p sparsegpt --allow-dirty --no-verify --quiet
mkdir -p "$place/sparsegpt"
tar -xzf "$target"/package/sparsegpt-[0-9]*.crate --strip-components=1 -C "$place/sparsegpt"
cp Cargo.lock "$place"
{
    printf '[workspace]\nresolver = "3"\nmembers = ["sparsegpt"]\n\n'
    sed -n '/^\[profile/,$p' Cargo.toml
} >"$place/Cargo.toml"
cargo check --quiet --manifest-path "$place/Cargo.toml" --target-dir "$target"
