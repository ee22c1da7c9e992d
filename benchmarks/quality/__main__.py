"""Trains our recipe (hyperparameters left out) and PEFT's on the same split for each seed, and scores the test set. Writes JSON as it goes.

Takes two hours on two cores. `--seeds` and `--only` run a part, and replace that part in the output file; after an interruption, `--resume`
runs only what isn't there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.peft_recipes import BATCH_SIZE, RECIPES, train_peft
from benchmarks.quality.reviews import LABELS, Reviews, load_reviews
from shared.allocator import tune_allocator
from shared.base_model import BaseModel, load
from shared.template import InputEncoder, Template
from trainer_service.training.cohort import Cohort
from trainer_service.training.compute import score
from trainer_service.training.encoding import EncodedDataset, encode_dataset
from trainer_service.training.evaluate import evaluate
from trainer_service.training.events import Failed, Finished, TrainingTask
from trainer_service.training.forward import choose_forward
from trainer_service.training.recipe import fill
from trainer_service.training.spec import HyperparameterRequest, TaskKind, TrainingSpec

TEMPLATE = Template(text="Review: {input}\nSentiment:")
OURS, SEARCH, BARE = "recipe (nothing given)", "search", "bare model"
WANTED = 0.90


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="names of contestants, or beginnings of them")
    parser.add_argument("--resume", action="store_true", help="leave out what the output file has already")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/softprompt/benchmarks").expanduser())
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality.json"))
    arguments = parser.parse_args()
    tune_allocator()
    reviews = load_reviews(arguments.cache)
    base = load(arguments.model, dtype=arguments.dtype)
    test = encode_dataset(
        reviews.test, InputEncoder(base.tokenizer, TEMPLATE), _spec(base, reviews, 0, search=False), base.info.max_positions
    )
    results: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    runs: dict[str, dict[str, Any]] = results.setdefault("runs", {})
    results |= {"dtype": str(base.dtype), "num_train": len(reviews.train), "num_test": len(reviews.test), "wanted": WANTED}
    for seed in arguments.seeds:
        for name, train in _contestants(arguments.model, base, reviews, seed).items():
            wanted = not arguments.only or any(name.startswith(beginning) for beginning in arguments.only)
            if not wanted or (arguments.resume and str(seed) in runs.get(name, {})):
                continue
            started = time.perf_counter()
            matrix = train()
            seconds = time.perf_counter() - started
            prompt = None if matrix is None else matrix.to(base.dtype)
            metrics = _test(base, prompt, test)
            runs.setdefault(name, {})[str(seed)] = metrics | {"train_seconds": seconds}
            print(f"seed {seed}, {name}: accuracy {metrics['accuracy']:.3f}, trained in {seconds:.0f} s", flush=True)
            results["mean_accuracy"] = {key: statistics.mean(run["accuracy"] for run in by_seed.values()) for key, by_seed in runs.items()}
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    for name, mean in results.get("mean_accuracy", {}).items():
        print(f"{name}: mean accuracy {mean:.3f} over {len(runs[name])} seeds")


def _contestants(source: str, base: BaseModel, reviews: Reviews, seed: int) -> dict[str, Callable[[], torch.Tensor | None]]:
    spec = _spec(base, reviews, seed, search=False)
    data = encode_dataset(reviews.train, InputEncoder(base.tokenizer, TEMPLATE), spec, base.info.max_positions)
    found: dict[str, Callable[[], torch.Tensor | None]] = {
        BARE: lambda: None,
        OURS: lambda: _train_ours(base, reviews, spec),
        SEARCH: lambda: _train_ours(base, reviews, _spec(base, reviews, seed, search=True)),
    }
    peft_steps = spec.hyperparameters.num_steps * spec.hyperparameters.batch_size // BATCH_SIZE  # as many examples
    text = f"Classify the review as {LABELS[0]} or {LABELS[1]}."
    for recipe in RECIPES:
        found[recipe.name] = lambda recipe=recipe: train_peft(base, data, recipe, text, source, seed, peft_steps)  # type: ignore[misc]
    return found


def _spec(base: BaseModel, reviews: Reviews, seed: int, *, search: bool) -> TrainingSpec:
    request = HyperparameterRequest(seed=seed, search=search)
    hyperparameters = fill(request, TaskKind.CLASSIFICATION, len(reviews.train), base.info, TEMPLATE, LABELS)
    return TrainingSpec(task=TaskKind.CLASSIFICATION, template=TEMPLATE, labels=LABELS, hyperparameters=hyperparameters)


def _train_ours(base: BaseModel, reviews: Reviews, spec: TrainingSpec) -> torch.Tensor:
    cohort = Cohort(base)
    cohort.add(TrainingTask("quality", 1, spec, reviews.train, reviews.validation))
    while not cohort.is_idle:
        for event in cohort.step():
            if isinstance(event, Failed):
                raise SystemExit(f"training failed: {event.message}")
            if isinstance(event, Finished):
                return event.result.soft_prompt.embeddings.to(base.device)
    raise SystemExit("training ended without a result")


def _test(base: BaseModel, prompt: torch.Tensor | None, data: EncodedDataset) -> dict[str, float]:
    forward, evaluation = choose_forward(base), evaluate(prompt, data)
    work = next(evaluation)
    while True:
        try:
            work = evaluation.send(score(base, forward, [work])[0])  # type: ignore[list-item]
        except StopIteration as done:
            metrics: dict[str, float] = done.value
            return metrics


if __name__ == "__main__":
    main()
