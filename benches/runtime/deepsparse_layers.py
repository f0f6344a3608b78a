"""DeepSparse on one-layer ONNX files, for turns that `peers.py` asks for, a JSON line each on stdin and stdout.

    {"make": KEY, "rows": R, "cols": C, "zeros": Z, "tokens": T, "threads": N, "copies": K}   ->  {"deviation": D}
    {"turn": KEY, "copies": K, "seconds": S, "least": L}                                      ->  {"seconds": MEDIAN}
    {"drop": KEY}                                                                             ->  {}
"""

import json
import os
import sys
import tempfile

# The answers alone go to stdout; the engine prints there too.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# It would tell its makers of each run.
os.environ["NM_DISABLE_ANALYTICS"] = "True"

import numpy as np  # noqa: E402
import onnx  # noqa: E402
from deepsparse import Engine  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from layers import Cycle, deviation, inputs, weights  # noqa: E402

# What the engine's parser takes.
OPSET, IR_VERSION = 13, 7


def one_layer(weight, tokens, path):
    """y = x W^T, written as an ONNX file."""
    rows, cols = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, cols])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [tokens, rows])],
        [numpy_helper.from_array(weight.T.copy(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)


def make(rows, cols, zeros, tokens, threads, copies):
    """The layer's engines, and how far their products are from numpy's."""
    weight, x = weights(rows, cols, zeros), inputs(tokens, cols)
    expected = x @ weight.T
    engines, difference = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/layer.onnx"
        for turned in range(copies):
            # Engines share the memory of equal weights, so that copies would be none: each has its rows in an order of its own.
            one_layer(np.roll(weight, turned, axis=0), tokens, path)
            engine = Engine(path, batch_size=tokens, num_cores=threads)
            difference = max(difference, deviation(engine([x])[0], np.roll(expected, turned, axis=1)))
            engines.append(engine)
    return [lambda engine=engine: engine([x]) for engine in engines], difference


def main():
    cycles = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        if key := request.pop("make", None):
            products, answer["deviation"] = make(**request)
            cycles[key] = {count: Cycle(products[:count]) for count in {1, len(products)}}
        elif key := request.pop("turn", None):
            cycle = cycles[key][request.pop("copies")]
            answer["seconds"] = cycle.turn(**request)
        elif key := request.pop("drop", None):
            cycles.pop(key, None)
        print(json.dumps(answer), file=answers, flush=True)


main()
