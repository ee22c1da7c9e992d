"""How early the training losses of a search's candidates predict which one will be the best.

    python -m benchmarks.train.candidates --model DIR --data DIR --set NAME --output FILE

Trains the six candidates of a search as six jobs of one cohort to the end: the same batches in the same order, so that
their losses can be compared step by step. Writes each candidate's training losses and its losses on test rows as JSON,
and prints for several rules which candidate they would have kept.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.quality.scoring import Prefixed
from benchmarks.quality.sets import load_sets
from shared.model.base_model import load
from shared.model.options import ModelOptions
from shared.process.allocator import tune_allocator
from shared.text.template import InputEncoder, Template
from trainer_service.training.attention.packing import Row
from trainer_service.training.cohort import Cohort
from trainer_service.training.data.encoding import encode_dataset
from trainer_service.training.events import Failed, Finished, StepDone, TrainingTask
from trainer_service.training.precision import pick_training_dtype
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.search import candidates
from trainer_service.training.spec import Hyperparameters, TrainingSpec

PARTS = 32
RULES: dict[str, Sequence[tuple[int, int]]] = {
    "6>3 at 1/32, 2 at 2/32, 1 at 4/32": [(1, 3), (2, 2), (4, 1)],
    "6>2 at 1/32, 1 at 5/32": [(1, 2), (5, 1)],
    "6>1 at 2/32": [(2, 1)],
    "6>3 at 1/32, 1 at 3/32": [(1, 3), (3, 1)],
    "6>3 at 2/32, 2 at 4/32, 1 at 8/32": [(2, 3), (4, 2), (8, 1)],
}
"""Rungs: 32nds of the steps, and the number of candidates kept then."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train.candidates", description=__doc__)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument(
        "--data", type=Path, required=True, help="a directory with NAME.train.jsonl and NAME.test.jsonl"
    )
    parser.add_argument("--set", required=True, help="the name of a dataset")
    parser.add_argument("--template", default="{input}\nAnswer:")
    parser.add_argument("--size", type=int, default=128, help="training examples")
    parser.add_argument("--test", type=int, default=128, help="rows of the test file that are scored")
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--virtual-tokens", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file; if it exists, nothing is trained")
    arguments = parser.parse_args()
    if not arguments.output.is_file():
        arguments.output.write_text(json.dumps(train(arguments)) + "\n")
    for line in judged(json.loads(arguments.output.read_text())):
        sys.stdout.write(line + "\n")


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains every candidate to the end, and scores it on rows of the test file."""
    tune_allocator()
    base = load(arguments.model, ModelOptions(dtype=pick_training_dtype("auto", torch.device("cpu"))))
    (data,) = load_sets(arguments.data, [arguments.set], arguments.test)
    examples = data.sample(arguments.size, arguments.seed)[0]
    template = Template(text=arguments.template)
    request = Hyperparameters(
        num_virtual_tokens=arguments.virtual_tokens, num_steps=arguments.steps, seed=arguments.seed, search=True
    )
    filled = fill(request, data.task, len(examples), base.info, template, data.labels)
    spec = TrainingSpec(task=data.task, template=template, labels=data.labels, hyperparameters=filled)
    encoder = InputEncoder(base.tokenizer, template)
    test = encode_dataset([row.example for row in data.test], encoder, spec, base.info.max_positions)
    rows = [
        Row(example.input_ids, test.label_ids[example.label_index] if test.label_ids else example.target_ids)
        for example in test.examples
    ]
    cohort, found = Cohort(base), dict[str, dict[str, Any]]()
    for index, candidate in enumerate(candidates(spec)):
        chosen = {"learning_rate": candidate.learning_rate, "init": candidate.init, "search": False}
        own = spec.model_copy(update={"hyperparameters": filled.model_copy(update=chosen)})
        cohort.add(TrainingTask(str(index), 1, own, examples))
        found[str(index)] = {"rate": candidate.learning_rate, "init": str(candidate.init.method), "losses": []}
    while not cohort.is_idle:
        for event in cohort.step():
            if isinstance(event, Failed):
                raise SystemExit(f"training failed: {event.message}")
            if isinstance(event, StepDone):
                found[event.job_id]["losses"].append(event.loss)
            if isinstance(event, Finished):
                scores = Prefixed(base, cohort.forward, event.result.prefix).score_rows(rows)
                found[event.job_id]["test_losses"] = [-score.log_probability / score.num_targets for score in scores]
                sys.stderr.write(f"candidate {event.job_id} is trained\n")
    options = {name: str(value) for name, value in vars(arguments).items() if name not in ("model", "data", "output")}
    return {"machine": machine(), "options": options, "num_train": len(examples), "candidates": list(found.values())}


def judged(found: dict[str, Any]) -> list[str]:
    """The candidates, best first, and the candidate that each rule keeps."""
    tried = found["candidates"]
    quality = [statistics.mean(one["test_losses"]) for one in tried]
    order = sorted(range(len(tried)), key=quality.__getitem__)
    lines = list[str]()
    for place, index in enumerate(order):
        pairs = zip(tried[index]["test_losses"], tried[order[0]]["test_losses"], strict=True)
        differences = [one - best for one, best in pairs]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        lines.append(
            f"{place + 1}. candidate {index}: rate {tried[index]['rate']:g}, {tried[index]['init']}: "
            f"{quality[index]:.4f}, {statistics.mean(differences):.4f} above the best (standard error {error:.4f})"
        )
    for name, rule in RULES.items():
        for memory in ("window", "since start", "half window", "decayed 0.8"):
            kept = _kept([one["losses"] for one in tried], rule, memory)
            lines.append(
                f"{name} ({memory}; work {_work(rule, len(tried)):.2f}): candidate {kept}, "
                f"place {order.index(kept) + 1}, "
                f"{quality[kept] - quality[order[0]]:.4f} above the best"
            )
    return lines


def _kept(losses: Sequence[Sequence[float]], rule: Sequence[tuple[int, int]], memory: str) -> int:
    left, before, num_steps = list(range(len(losses))), 0, len(losses[0])
    for part, num_kept in rule:
        step = max(1, num_steps * part // PARTS)

        def value(index: int, before: int = before, step: int = step) -> float:
            some = losses[index][:step]
            if memory == "decayed 0.8":
                weights = [0.8 ** (step - 1 - at) for at in range(step)]
                return sum(w * x for w, x in zip(weights, some, strict=True)) / sum(weights)
            start = {"window": before, "since start": 0, "half window": (before + step) // 2}[memory]
            return sum(some[start:]) / len(some[start:])

        left, before = sorted(left, key=value)[:num_kept], step
    return left[0]


def _work(rule: Sequence[tuple[int, int]], num_candidates: int) -> float:
    work, before, num = 0.0, 0, num_candidates
    for part, num_kept in rule:
        work, before, num = work + num * (part - before), part, num_kept
    return (work + PARTS - before) / PARTS


if __name__ == "__main__":
    main()
