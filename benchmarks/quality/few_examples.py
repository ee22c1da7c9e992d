"""Finds how long to train on 5, 20 or 50 examples: the recipe with 40 and with 320 steps, scored on test examples.

`--data` names a directory of data sets (`benchmarks.quality.sets`). The first examples after a shuffle by the seed are
used; a tenth of them is held out as in the service. Writes JSON after each result. Takes an hour and a half on two
cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from benchmarks.quality.sets import DataSet, load_sets
from shared.model.base_model import BaseModel, load
from shared.process.allocator import tune_allocator
from shared.text.template import Template, default_format, pinned
from trainer_service.training.cohort import Cohort
from trainer_service.training.data.dataset import split_validation
from trainer_service.training.events import Evaluated, Failed, TrainingTask
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import Example, Hyperparameters, TrainingSpec

NUM_TEST = 128
HELD_OUT_FRACTION = 0.1
EVALUATION_STEPS = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.few_examples", description=__doc__)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument(
        "--data", type=Path, required=True, help="a directory with NAME.train.jsonl and NAME.test.jsonl"
    )
    parser.add_argument("--sets", nargs="*", help="names of datasets; default: all")
    parser.add_argument("--sizes", type=int, nargs="*", default=[5, 20, 50])
    parser.add_argument("--steps", type=int, nargs="*", default=[40, 320])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/few-examples.json"))
    arguments = parser.parse_args()
    tune_allocator()
    base = load(arguments.model)
    sets = load_sets(arguments.data, arguments.sets, NUM_TEST)
    results: dict[str, Any] = {"model": base.info.id, "dtype": str(base.dtype), "num_test": NUM_TEST, "runs": []}
    for seed in arguments.seeds:
        for data in sets:
            for size in arguments.sizes:
                some = list(data.train)
                random.Random(seed).shuffle(some)
                results["runs"] += _train(base, data, seed, some[:size], arguments.steps)
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    for line in summary(results["runs"]):
        print(line)


def summary(runs: list[dict[str, Any]]) -> list[str]:
    """Means over the seeds: the model with the template alone, the best evaluation, and the last one."""
    lines = []
    for key in sorted({(run["set"], run["size"], run["steps"]) for run in runs}):
        some = [run for run in runs if (run["set"], run["size"], run["steps"]) == key]
        metric = "accuracy" if "accuracy" in some[0]["curve"][0][1] else "loss"
        best = max if metric == "accuracy" else min
        columns = {
            "untuned": [run["curve"][0][1][metric] for run in some],
            "best": [best(point[metric] for _, point in run["curve"][1:]) for run in some],
            "last": [run["curve"][-1][1][metric] for run in some],
        }
        shown = "  ".join(f"{title} {statistics.mean(values):.3f}" for title, values in columns.items())
        lines.append(f"{key[0]}, {key[1]} examples, {key[2]} steps: {metric} {shown} ({len(some)} seeds)")
    return lines


def _train(
    base: BaseModel, data: DataSet, seed: int, examples: list[Example], steps: list[int]
) -> list[dict[str, Any]]:
    """The curve of each number of steps, all trained in one cohort."""
    test = tuple(row.example for row in data.test)
    template = pinned(Template(format=default_format(base.tokenizer)), base.tokenizer)
    train, _ = split_validation(examples, max(HELD_OUT_FRACTION, 1 / len(examples)), seed)
    cohort, runs = Cohort(base), dict[str, dict[str, Any]]()
    for num_steps in steps:
        request = Hyperparameters(num_steps=num_steps, seed=seed, evaluation_interval_steps=EVALUATION_STEPS)
        filled = fill(request, data.task, len(train), base.info, template, data.labels)
        spec = TrainingSpec(task=data.task, template=template, labels=data.labels, hyperparameters=filled)
        run = {"set": data.name, "size": len(examples), "num_train": len(train), "steps": num_steps, "seed": seed}
        runs[str(num_steps)] = run | {"hyperparameters": filled.model_dump(mode="json"), "curve": []}
        cohort.add(TrainingTask(str(num_steps), 1, spec, train, test))
    while not cohort.is_idle:
        for event in cohort.step():
            if isinstance(event, Failed):
                raise SystemExit(f"training failed: {event.message}")
            if isinstance(event, Evaluated):
                runs[event.job_id]["curve"].append((event.step, dict(event.metrics)))
                shown = "  ".join(f"{metric} {value:.3f}" for metric, value in event.metrics.items())
                print(
                    f"{data.name}, {len(examples)} examples, seed {seed}, step {event.step} of {event.job_id}: {shown}",
                    flush=True,
                )
    return list(runs.values())


if __name__ == "__main__":
    main()
