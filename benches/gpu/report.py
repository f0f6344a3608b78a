"""Tables for docs/benchmarks.md out of the lines that `layers` and `torch_loop.py` print.

    report.py FILE...
"""

import json
import pathlib
import sys

OURS = ("ours, device", "ours, libraries")
RIVALS = ("PyTorch loop", "llmcompressor")
STAGES = ("factor", "select", "grid", "sweep", "trailing", "transfer")


def flops(line):
    """Of the look-back form: the products of the blocks and the factorization."""
    rows, cols = line["rows"], line["cols"]
    return rows * cols**2 + cols**3 / 3


def table(heading, rows):
    if rows:
        print("| " + " | ".join(heading) + " |")
        print("|---" * len(heading) + "|")
        for row in rows:
            print("| " + " | ".join(row) + " |")
        print()


def seconds(value):
    return "" if value is None else f"{value:.4f}"


def times(value, over):
    return "" if value is None or not over else f"{value / over:.1f}"


class Results:
    def __init__(self, files):
        self.devices, self.rates, self.layers, self.failed = [], [], {}, {}
        for file in files:
            for text in pathlib.Path(file).read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    # The last line of a step that was stopped.
                    continue
                kind = line.get("kind") if isinstance(line, dict) else None
                key = kind in ("layer", "failed") and (line["who"], line["rows"], line["cols"], line["pattern"])
                if kind in ("device", "torch"):
                    words = line["device"] if kind == "device" else f"PyTorch {line['version']} on {line['device']}"
                    if words not in self.devices:
                        self.devices.append(words)
                elif kind == "rate":
                    self.rates.append(line)
                elif kind == "layer":
                    self.layers[key] = line
                elif kind == "failed":
                    self.failed[key] = line["reason"].replace("|", "/")
        shapes = {(rows, cols) for _, rows, cols, _ in [*self.layers, *self.failed]}
        self.shapes = sorted(shapes, key=lambda shape: shape[0] * shape[1] ** 2 + shape[1] ** 3 / 3)
        self.patterns = list(dict.fromkeys(pattern for *_, pattern in self.layers))

    def lines(self, who):
        for rows, cols in self.shapes:
            for pattern in self.patterns:
                line = self.layers.get((who, rows, cols, pattern))
                if line:
                    yield line

    def rate(self, who):
        """The best rate of products, flops a second."""
        found = [line["per_second"] for line in self.rates if line["what"] == "product" and line["who"] == who]
        return max(found, default=None)


def name(line):
    return [f"{line['rows']} x {line['cols']}", line["pattern"]]


def print_rates(results):
    rows = []
    for line in results.rates:
        if line["what"] == "factor":
            continue
        product = line["what"] == "product"
        figure = f"{line['per_second'] / 1e12:.1f} Tflop/s" if product else f"{line['per_second'] / 1e9:.1f} GB/s"
        size = str(line["size"])
        rows.append([line["who"], line["what"], size, figure])
    table(["who", "what", "size", "rate"], rows)


def print_factors(results):
    """A factorization whole, with the inverses of its blocks where it is ours, and a copy of the matrix."""
    lines = [line for line in results.rates if line["what"] == "factor"]
    who = list(dict.fromkeys(line["who"] for line in lines))
    took = {(line["size"], line["who"]): line["size"] ** 3 / 3 / line["per_second"] for line in lines}
    rows = []
    for size in sorted({size for size, _ in took}):
        rows.append([str(size), *(f"{1000 * took[size, name]:.2f}" if (size, name) in took else "" for name in who)])
    table(["factor, ms", *who], rows)


def print_stages(results):
    """Seconds per stage, and the share of the floor: what the products alone would take at a measured rate."""
    for who in OURS:
        bounds = {"own": who, "fp32": "PyTorch, fp32", "TF32": "PyTorch, TF32"}
        bounds = {short: results.rate(rate) for short, rate in bounds.items()}
        rows = []
        for line in results.lines(who):
            shares = [f"{100 * flops(line) / rate / line['on_device']:.0f} %" if rate else "" for rate in bounds.values()]
            stages = [seconds(line["stages"][stage]) for stage in STAGES]
            rows.append([*name(line), seconds(line["seconds"]), seconds(line["first"]), seconds(line["on_device"]), *stages, *shares])
        floors = [f"floor, {short}" for short in bounds]
        table([who, "pattern", "total", "first", "on device", *STAGES, *floors], rows)


def print_hessians(results):
    rows = []
    for line in {line["cols"]: line for line in results.lines(OURS[0])}.values():
        cols, tokens, took = line["cols"], line["hessian"]["tokens"], line["hessian"]["seconds"]
        # Half of the square, each product a multiplication and an addition.
        rows.append([str(cols), str(tokens), seconds(took), f"{tokens * cols**2 / took / 1e12:.1f}"])
    table(["Hessian, columns", "tokens (bf16)", "seconds, copies included", "Tflop/s"], rows)


def print_rivals(results):
    rows = []
    for line in results.lines(OURS[0]):
        row = [*name(line), seconds(line["seconds"]), seconds(line["on_device"])]
        for who in RIVALS:
            key = (who, line["rows"], line["cols"], line["pattern"])
            rival = results.layers.get(key, {}).get("seconds")
            why = results.failed.get(key)
            row += [f"failed: {why}"[:60] if why else seconds(rival), times(rival, line["seconds"]), times(rival, line["on_device"])]
        rows.append(row)
    heading = ["layer", "pattern", "ours", "ours, on device"]
    for who in RIVALS:
        heading += [who, "times faster", "on device"]
    table(heading, rows)


def print_opt_175b(results):
    """96 blocks: q, k, v and out are 12288 x 12288, fc1 is 49152 x 12288, fc2 12288 x 49152; q, k and v share a factor."""
    rows = []
    for who in (*OURS, *RIVALS):
        for pattern in results.patterns:
            square, up, down = (results.layers.get((who, *shape, pattern)) for shape in [(12288, 12288), (49152, 12288), (12288, 49152)])
            if not (square and up and down):
                continue
            # A rival factors anew for each layer.
            shared = square["stages"]["factor"] if "stages" in square else 0
            block = 4 * square["seconds"] - 2 * shared + up["seconds"] + down["seconds"]
            rows.append([who, pattern, f"{block:.2f}", f"{96 * block / 60:.1f}"])
    table(["OPT-175B, solver alone", "pattern", "seconds a block", "minutes, 96 blocks"], rows)


def main():
    results = Results(sys.argv[1:])
    if not results.layers and not results.rates:
        sys.exit("nothing was measured")
    for device in results.devices:
        print(device + "\n")
    for part in (print_rates, print_factors, print_stages, print_hessians, print_rivals, print_opt_175b):
        part(results)


main()
