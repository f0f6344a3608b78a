#!/usr/bin/env python3
"""Holds `sparsegpt eval --tasks` against lm-evaluation-harness, question by question.

    check-zero-shot.py MODEL --data DIR [--limit 200] [--tasks LIST] [--binary target/release/sparsegpt]

MODEL is a HuggingFace folder with float32 weights, DIR a folder with the files of lambada, piqa, arc_easy, arc_challenge,
hellaswag, winogrande, boolq and openbookqa as llm-foundry (HellaSwag: six lines a question) and the authors (PIQA, LAMBADA)
have them. Both sides read the same files; the harness gets its fields from them, its own templates, and the model through
transformers. Counted are equal decisions: the choice by log-likelihood, for LAMBADA whether the word is the likeliest.
Builds nothing. Needs lm_eval with torch and transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

TASKS = ["lambada", "piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq", "openbookqa"]
# Those whose choices the harness also compares by log-likelihood a character.
NORMALIZED = ["piqa", "arc_easy", "arc_challenge", "hellaswag", "openbookqa"]
LETTERS = "ABCDEFGH"


def parse():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model")
    flags.add_argument("--data", required=True)
    flags.add_argument("--limit", type=int, default=200)
    flags.add_argument("--tasks", default=",".join(TASKS))
    flags.add_argument("--binary", default="target/release/sparsegpt")
    flags.add_argument("--answers", help="keep the harness's answers in this file, and ask only for those it lacks")
    return flags.parse_args()


def lines(path, limit):
    with open(path, newline="", encoding="utf-8") as file:
        yield from islice((json.loads(line) for line in file), limit)


def labelled(record):
    """The harness's `choices` and `answerKey`."""
    labels = LETTERS[: len(record["choices"])]
    return {"choices": {"text": record["choices"], "label": list(labels)}, "answerKey": labels[record["gold"]]}


def arc(record):
    return {"question": record["query"].removeprefix("Question: "), **labelled(record)}


def boolq(record):
    passage, question = record["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
    return {"passage": passage, "question": question.removesuffix("?"), "label": record["gold"]}


def hellaswag(path, limit):
    with open(path, newline="\n", encoding="utf-8") as file:
        rows = [line.rstrip("\n") for line in islice(file, 6 * limit)]
    for at in range(0, len(rows), 6):
        yield {"query": rows[at], "label": int(rows[at + 1]), "choices": rows[at + 2 : at + 6]}


def piqa(path, limit):
    labels = path.with_name("valid-labels.lst").read_text().split()
    for record, label in zip(lines(path, limit), labels):
        yield {**record, "label": int(label)}


def documents(task, folder, limit):
    """The file that both sides read, and its records with the harness's fields."""
    folder = Path(folder)
    as_they_are = lambda record: record
    name, convert = {
        "lambada": ("lambada/lambada_test.jsonl", as_they_are),
        "piqa": ("piqa/valid.jsonl", None),
        "arc_easy": ("arc/arc_easy_test.jsonl", arc),
        "arc_challenge": ("arc/arc_challenge_test.jsonl", arc),
        "hellaswag": ("hellaswag/hellaswag_val_every5th.txt", None),
        "winogrande": ("winogrande/winogrande_dev.jsonl", as_they_are),
        "boolq": ("boolq/boolq_val_first1000.jsonl", boolq),
        "openbookqa": ("openbookqa/openbookqa_test.jsonl", lambda r: {"question_stem": r["query"], **labelled(r)}),
    }[task]
    path = folder / name
    if task == "piqa":
        return path, list(piqa(path, limit))
    if task == "hellaswag":
        return path, list(hellaswag(path, limit))
    return path, [convert(record) for record in lines(path, limit)]


# Templates of lm-evaluation-harness's own tasks (winogrande: its scheme, on texts that are parted already).
ANSWERS = {"doc_to_target": "{{choices.label.index(answerKey.lstrip())}}", "doc_to_choice": "{{choices.text}}"}
TEMPLATES = {
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
    },
    "piqa": {
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
    },
    "arc_easy": {"doc_to_text": "Question: {{question}}\nAnswer:", **ANSWERS},
    "arc_challenge": {"doc_to_text": "Question: {{question}}\nAnswer:", **ANSWERS},
    "hellaswag": {"doc_to_text": "{{query}}", "doc_to_target": "{{label}}", "doc_to_choice": "choices"},
    "winogrande": {
        "doc_to_text": lambda doc: doc["gold"],
        "doc_to_target": lambda doc: doc["continuation"],
        "doc_to_choice": lambda doc: doc["context_options"],
    },
    "boolq": {
        "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": ["no", "yes"],
    },
    "openbookqa": {"doc_to_text": "question_stem", **ANSWERS},
}


class Harness:
    """lm-evaluation-harness with a model."""

    def __init__(self, model):
        from lm_eval.models.huggingface import HFLM

        self.model = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=8)

    def answers(self, task, records):
        """Log-likelihoods and greedy marks, question by question."""
        import lm_eval

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{task}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
            config = {
                "task": f"own_{task}",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(path)}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "num_fewshot": 0,
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
                **TEMPLATES[task],
            }
            found = lm_eval.simple_evaluate(model=self.model, tasks=[config], log_samples=True, bootstrap_iters=0)
        samples = sorted(found["samples"][f"own_{task}"], key=lambda sample: sample["doc_id"])
        return [[tuple(pair) for pair in sample["filtered_resps"]] for sample in samples]


def theirs(flags, tasks):
    """The harness's answers by task; those that are kept are not asked for again."""
    kept = Path(flags.answers) if flags.answers else None
    answers = json.loads(kept.read_text()) if kept and kept.exists() else {}
    harness = None
    for task, records in tasks.items():
        if len(answers.get(task, [])) != len(records):
            harness = harness or Harness(flags.model)
            answers[task] = harness.answers(task, records)
            if kept:
                kept.write_text(json.dumps(answers))
    return answers


def ours(flags, files):
    command = [flags.binary, "eval", flags.model, "--json", "--tasks", ",".join(files), "--limit", str(flags.limit)]
    for task, path in files.items():
        command += ["--data", f"{task}={path}"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    (model,) = json.loads(run.stdout)["models"]
    return {task["task"]: task["decisions"] for task in model["tasks"]}


def first_of_highest(values):
    return max(range(len(values)), key=lambda at: (values[at], -at))


def lengths(task, record):
    """What the harness divides by for acc_norm."""
    choices = {
        "piqa": lambda r: [r["sol1"], r["sol2"]],
        "hellaswag": lambda r: r["choices"],
    }.get(task, lambda r: r["choices"]["text"])(record)
    return [len(choice) for choice in choices]


def main():
    flags = parse()
    tasks = flags.tasks.split(",")
    # Everything is at hand; nothing is to be looked for elsewhere.
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    found = {task: documents(task, flags.data, flags.limit) for task in tasks}
    answers = theirs(flags, {task: records for task, (_, records) in found.items()})
    own = ours(flags, {task: path for task, (path, _) in found.items()})

    print("| task | questions | equal decisions | equal by acc_norm | acc here, harness | largest difference of a log-likelihood |")
    print("|---|---|---|---|---|---|")
    equal_in_all = asked_in_all = 0
    for task in tasks:
        records = found[task][1]
        assert len(own[task]) == len(answers[task]) == len(records), task
        equal = equal_norm = right = right_there = 0
        largest = 0.0
        for decision, pairs, record in zip(own[task], answers[task], records):
            scores = [score for score, _ in pairs]
            differences = [abs(a - b) for a, b in zip(decision["log_likelihoods"], scores, strict=True)]
            largest = max(largest, *differences)
            if task == "lambada":
                chosen, here = bool(pairs[0][1]), decision["correct"]
                right_there += chosen
            else:
                chosen, here = first_of_highest(scores), decision["chosen"]
                right_there += chosen == decision["gold"]
            equal += chosen == here
            right += decision["correct"]
            if task in NORMALIZED:
                by_length = [score / length for score, length in zip(scores, lengths(task, record))]
                equal_norm += first_of_highest(by_length) == decision["chosen_norm"]
        count = len(records)
        norm = f"{100 * equal_norm / count:.1f} %" if task in NORMALIZED else ""
        print(
            f"| {task} | {count} | {100 * equal / count:.1f} % | {norm} | {right / count:.4f}, {right_there / count:.4f}"
            f" | {largest:.1e} |"
        )
        equal_in_all += equal
        asked_in_all += count
    share = equal_in_all / asked_in_all
    print(f"| all | {asked_in_all} | {100 * share:.2f} % | | | |")
    if share < 0.99:
        sys.exit("expected at least 99 % of the decisions to be equal")


if __name__ == "__main__":
    main()
