#!/usr/bin/env bash
# Makes the Python environments of the runtime's peers: PyTorch, SciPy and llama.cpp in the first folder given (default:
# target/peers, which the other peer benchmarks use too), DeepSparse in the second (default: target/deepsparse), as it
# wants an older numpy. Needs Python 3.11, a C++ compiler for llama.cpp, and the network once. llama.cpp and DeepSparse
# are left out, with a line that says so, where they cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${1:-target/peers}
deepsparse=${2:-target/deepsparse}

left_out() {
    echo "left out: $1 could not be installed" >&2
}

[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.15.0 numpy scipy
# Built from source for this processor, without its parts for images; the longest step.
CMAKE_ARGS=-DLLAVA_BUILD=OFF "$venv/bin/pip" install --quiet llama-cpp-python || left_out llama.cpp

# For evaluation only. Its licence is not that of the project, no file of it belongs here.
[[ -x $deepsparse/bin/python ]] || python3 -m venv "$deepsparse"
"$deepsparse/bin/pip" install --quiet deepsparse==1.8.0 || left_out DeepSparse
echo "ready: $venv/bin/python benches/runtime/peers.py --deepsparse $deepsparse/bin/python"
