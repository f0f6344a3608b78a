"""Writes model.safetensors: two random layers, and inputs whose features depend on each other."""

import json
import struct

import numpy as np

random = np.random.default_rng(1)
width, inner, tokens = 32, 64, 256
mixing = random.standard_normal((6, width))
tensors = {
    "up": random.standard_normal((inner, width)) / np.sqrt(width),
    "down": random.standard_normal((width, inner)) / np.sqrt(inner),
    "inputs": random.standard_normal((tokens, 6)) @ mixing + 0.3 * random.standard_normal((tokens, width)),
}
header, data = {}, b""
for name, tensor in tensors.items():
    values = tensor.astype("<f4").tobytes()
    header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": (len(data), len(data) + len(values))}
    data += values
header = json.dumps(header).encode()
header += b" " * (-len(header) % 8)
with open("model.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header + data)
