#!/usr/bin/env python3
"""The SparseGPT paper's studies (Frantar & Alistarh 2023, section 4 and appendix A) as tables: sparsity, block size of the mask
selection, damping, calibration samples, seeds, partial 2:4, error over exact reconstruction; and how much it matters on which text
one calibrates (perplexity, and how often the pruned model chooses as the dense one).

    scripts/study.py [--model FOLDER --calibration FILE --text FILE] [--methods LIST] [STUDY...]

Without a model, the bundled one with its own texts. Builds nothing: takes target/release/sparsegpt, or --binary. Error is the
geometric mean over the layers of tr(dW H dW^T) over tr(W H W^T); perplexity stands behind it.
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

BUNDLED = "crates/sparsegpt-cli/assets/jargon"


def parse():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("studies", nargs="*", choices=[*STUDIES, []], metavar="STUDY", help=", ".join(STUDIES))
    flags.add_argument("--binary", default="target/release/sparsegpt")
    flags.add_argument("--model", default=BUNDLED)
    flags.add_argument("--calibration", default=f"{BUNDLED}/calibration.txt")
    flags.add_argument("--text", default=f"{BUNDLED}/heldout.txt")
    flags.add_argument("--samples", type=int, default=32)
    flags.add_argument("--sequence-length", type=int, default=256)
    flags.add_argument("--chunk-length", type=int, default=256)
    flags.add_argument("--limit", type=int, default=40)
    flags.add_argument("--sources", default=f"{BUNDLED}/calibration.txt", help="files to calibrate on, of the study of sources")
    flags.add_argument("--seeds", type=int, default=2, help="of each file that the study of sources calibrates on")
    flags.add_argument("--tasks", help="zero-shot tasks, with commas between, that the study of sources asks too; of an English model")
    flags.add_argument("--data", default="../shared/data", help="the folder with their questions")
    flags.add_argument("--questions", type=int, default=200, help="of each task")
    flags.add_argument("--patterns", help="of the studies of settings, with commas between, in place of each one's own")
    flags.add_argument("--values", help="of the studies of block sizes and samples, with commas between, in place of their own")
    flags.add_argument("--methods", default="magnitude,adaprune,wanda,sparsegpt,quality", help="of the study of sparsity")
    return flags.parse_args()


def run(command):
    """What the command prints, or the end of this script."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return done.stdout


def compare(flags, methods, patterns, *more, samples=None):
    """The dense perplexity and (error, perplexity) by pattern and method."""
    command = [
        flags.binary, "compare", flags.model, "--calibration", flags.calibration, "--text", flags.text,
        "--samples", samples or flags.samples, "--sequence-length", flags.sequence_length,
        "--chunk-length", flags.chunk_length, "--limit", flags.limit, "--methods", methods, "--json", "--quiet",
    ]
    command += [part for pattern in patterns for part in ("--pattern", pattern)] + list(more)
    found = json.loads(run(command))
    rows = {(row["pattern"], row["method"]): (row["relative_error"], row["perplexity"]["perplexity"]) for row in found["rows"]}
    return found["dense"]["perplexity"], rows


def table(head, rows):
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print()


def cell(result):
    error, perplexity = result
    return f"{error:.4f}, {perplexity:.2f}"


def sparsity(flags):
    patterns = [f"{percent}%" for percent in range(10, 90, 10)]
    dense, rows = compare(flags, flags.methods, patterns)
    print(f"Sparsity; the dense model has {dense:.2f}\n")
    methods = flags.methods.split(",")
    table(["sparsity", *methods], ([p, *(cell(rows[p, method]) for method in methods)] for p in patterns))


def one_by_one(flags, name, values, of, patterns=("50%", "2:4")):
    """SparseGPT for each value of a setting."""
    patterns = flags.patterns.split(",") if flags.patterns else patterns

    def line(value):
        _, rows = compare(flags, "sparsegpt", patterns, *of(value))
        return [str(value), *(cell(rows[p, "sparsegpt"]) for p in patterns)]

    table([name, *patterns], map(line, values))


def whole_numbers(flags, own):
    return [int(value) for value in flags.values.split(",")] if flags.values else own


def block_size(flags):
    print("Columns whose zeros are chosen together\n")
    sizes = whole_numbers(flags, [1, 8, 32, 64, 128, 256, 512])
    one_by_one(flags, "columns", sizes, lambda size: ["--mask-block-size", size, "--block-size", size], ["50%", "60%"])


def damping(flags):
    print("Damping, a fraction of the mean diagonal\n")
    one_by_one(flags, "damping", [0.0001, 0.001, 0.01, 0.1, 1], lambda value: ["--damping", value])


def samples(flags):
    print(f"Calibration sequences of {flags.sequence_length} tokens\n")
    counts = whole_numbers(flags, [1, 2, 4, 8, 16, 32, 64])

    def line(count):
        _, rows = compare(flags, "sparsegpt,quality", ["50%"], samples=count)
        return [str(count), cell(rows["50%", "sparsegpt"]), cell(rows["50%", "quality"])]

    table(["sequences", "sparsegpt 50%", "quality 50%"], map(line, counts))


def seeds(flags):
    print("Seeds of the calibration windows\n")
    patterns = flags.patterns.split(",") if flags.patterns else ["50%", "2:4"]
    found = [compare(flags, "sparsegpt", patterns, "--seed", seed)[1] for seed in range(5)]

    def line(pattern):
        values = [rows[pattern, "sparsegpt"][1] for rows in found]
        listed = ", ".join(f"{value:.2f}" for value in values)
        return [pattern, listed, f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"]

    table(["pattern", "perplexities", "mean and deviation"], map(line, patterns))


def partial(flags):
    print("2:4 in a part of the layers, the others dense\n")
    with open(f"{flags.model}/config.json") as config:
        blocks = json.load(config)["num_hidden_layers"]
    third = blocks // 3
    parts = {
        "all": [],
        "without the first third": ["--first", third],
        "without the last third": ["--last", third],
        "without attention": ["--skip", "*self_attn*"],
        "without feed-forward": ["--skip", "*mlp*"],
    }
    one_by_one(flags, "layers", parts, lambda name: parts[name], ["2:4"])


def prune(flags, patterns, *more):
    """The layers of each pattern's report. Several patterns share the dense model's Hessians, and so do two runs of them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            flags.binary, "prune", flags.model, "--calibration", flags.calibration, "--samples", flags.samples,
            "--sequence-length", flags.sequence_length, "--out", f"{folder}/out", "--quiet", *more,
        ]
        command += [part for pattern in patterns for part in ("--pattern", pattern)]
        run(command)
        found = {}
        for file in pathlib.Path(folder).glob("out/*/sparsegpt_report.json"):
            report = json.loads(file.read_text())
            if report["propagation"] != "dense":
                sys.exit("the runs have no Hessians in common")
            found[report["pattern"]] = {layer["layer"]: layer["relative_error"] for layer in report["layers"]}
    return found


def reconstruction(flags):
    print("SparseGPT's error over that of the best weights on its own mask, by block\n")
    patterns = ["50%", "2:4"]
    swept = prune(flags, patterns, "--method", "sparsegpt")
    exact = prune(flags, patterns, "--method", "sparsegpt", "--refit", "exact")
    for pattern in patterns:
        ratios = {name: error / exact[pattern][name] for name, error in swept[pattern].items()}
        blocks = {}
        for name, ratio in ratios.items():
            # model.layers.3.mlp.up_proj
            block, kind = re.search(r"\.(\d+)\.(.*)$", name).groups()
            blocks.setdefault(int(block), {})[kind.rsplit(".", 1)[-1]] = ratio
        kinds = list(blocks[0])
        print(f"{pattern}: {statistics.geometric_mean(ratios.values()):.3f} in the geometric mean, {max(ratios.values()):.3f} at most\n")
        rows = ([str(block), *(f"{found[kind]:.3f}" for kind in kinds)] for block, found in sorted(blocks.items()))
        table(["block", *kinds], rows)


def sources(flags):
    print("SparseGPT at 50 % by what it was calibrated on: perplexity, the part of next tokens chosen as by the dense model, and the\n"
          "divergence from its distributions (KL, nats)\n")

    def zero_shot(model):
        """Per cent of right answers, by task and on the average."""
        if not flags.tasks:
            return []
        found = json.loads(run([
            flags.binary, "eval", model, "--tasks", flags.tasks, "--data", flags.data, "--limit", flags.questions, "--json", "--quiet",
        ]))["models"][0]
        scores = [task["acc"]["value"] for task in found["tasks"]] + [found["average"]]
        return [f"{100 * score:.1f}" for score in scores]

    def line(source, seed):
        with tempfile.TemporaryDirectory() as folder:
            run([
                flags.binary, "prune", flags.model, "--calibration", source, "--samples", flags.samples, "--sequence-length",
                flags.sequence_length, "--seed", seed, "--pattern", "50%", "--out", f"{folder}/out", "--quiet",
            ])
            found = json.loads(run([
                flags.binary, "eval", f"{folder}/out", "--text", flags.text, "--sequence-length", flags.chunk_length, "--limit", flags.limit,
                "--against", flags.model, "--json", "--quiet",
            ]))
            scores = zero_shot(f"{folder}/out")
        choice, divergence = (found["against"][key] for key in ("same_choice", "divergence"))
        return [
            pathlib.Path(source).name, str(seed), f"{found['perplexity']:.2f}", f"{choice['value']:.3f} ± {choice['standard_error']:.3f}",
            f"{divergence['value']:.3f} ± {divergence['standard_error']:.3f}", *scores,
        ]

    asked = [*flags.tasks.split(","), "average"] if flags.tasks else []
    if asked:
        print(f"zero-shot: per cent of {flags.questions} questions each; the dense model {', '.join(zero_shot(flags.model))}\n")
    rows = (line(source, seed) for source in flags.sources.split(",") for seed in range(flags.seeds))
    table(["calibrated on", "seed", "perplexity", "same choice", "divergence", *asked], rows)


STUDIES = {
    "sparsity": sparsity, "block-size": block_size, "damping": damping, "samples": samples, "seeds": seeds,
    "partial": partial, "reconstruction": reconstruction, "sources": sources,
}

if __name__ == "__main__":
    given = parse()
    for study in given.studies or STUDIES:
        STUDIES[study](given)
