#!/usr/bin/env bash
# Makes the Python environment of the peer benchmarks in the folder given (default: target/peers). Needs Python 3.11
# or later, and the network once.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${1:-target/peers}
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.15.0 transformers==5.23.0 safetensors gguf accelerate numpy \
    datasets loguru pydantic nvidia-ml-py auto-round
# llmcompressor 0.14.0 asks for an older torch; its layer function runs with this one, on the same footing as
# the figures of the project.
"$venv/bin/pip" install --quiet --no-deps llmcompressor==0.14.0 compressed-tensors
"$venv/bin/python" -c 'from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight' 2>/dev/null
echo "ready: $venv/bin/python benches/peers/layer.py"
