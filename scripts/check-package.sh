#!/usr/bin/env bash
# Packs `sparsegpt`, and what it is made of, as for publishing, and compiles what was packed. It takes versions and profile from
# the workspace, so that the dependencies are those that its lints have been checked with, where `cargo package` would compile
# them anew. To pack crates that depend on each other takes cargo 1.90.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
place=$target/package/checked
crates=(sparsegpt-threads sparsegpt)
rm -rf "$target/package"
cargo package "${crates[@]/#/--package=}" --allow-dirty --no-verify --quiet
for crate in "${crates[@]}"; do
    mkdir -p "$place/$crate"
    tar -xzf "$target/package/$crate"-[0-9]*.crate --strip-components=1 -C "$place/$crate"
done
cp Cargo.lock "$place"
{
    printf '[workspace]\nresolver = "3"\nmembers = ["sparsegpt"]\n\n'
    # Packed crates depend on each other's published versions.
    printf '[patch.crates-io]\nsparsegpt-threads = { path = "sparsegpt-threads" }\n\n'
    sed -n '/^\[profile/,$p' Cargo.toml
} >"$place/Cargo.toml"
cargo check --quiet --manifest-path "$place/Cargo.toml" --target-dir "$target"
