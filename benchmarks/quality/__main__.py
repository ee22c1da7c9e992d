"""Measures quality on your own datasets: `python -m benchmarks.quality --model DIR --data DIR`.

For each dataset and each number of examples, compares the bare, instructed and few-shot model, PEFT's methods and
ours, over several seeds, with intervals. Writes JSON after every run and skips runs that are in the output file. All
datasets, sizes and seeds take days on two cores; `--sets`, `--sizes`, `--seeds`, `--only` and `--test` select a part.
`--variants` also trains other hyperparameters.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.quality.contestants import BARE, FEW_SHOT, INSTRUCTED, NAMES, OURS, PEFT, Arena, variant
from benchmarks.quality.report import differences, table
from benchmarks.quality.scoring import Prefixed, Tuned, chrf, score_test
from benchmarks.quality.sets import DataSet, load_sets
from shared.model.base_model import load
from shared.model.options import ModelOptions
from shared.process.allocator import tune_allocator
from shared.text.template import TemplateFormat
from trainer_service.training.attention.forward import choose_forward
from trainer_service.training.data.encoding import EncodedDataset
from trainer_service.training.precision import pick_training_dtype
from trainer_service.training.spec import Hyperparameters

ALL = 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument(
        "--data", type=Path, required=True, help="a directory with NAME.train.jsonl and NAME.test.jsonl"
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--sets", nargs="*", help="names of datasets; default: all")
    parser.add_argument(
        "--sizes", nargs="*", type=_size, default=[16, 64, 256, ALL], help="numbers of training examples, or `all`"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="contestants to run")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=[],
        help="hyperparameters to train in addition to the recipe: TOKENS:RATE[:STEPS[:INIT[:KIND]]]",
    )
    parser.add_argument(
        "--format",
        type=TemplateFormat,
        choices=list(TemplateFormat),
        help="template format; default: the service's choice",
    )
    parser.add_argument("--test", type=int, default=500, help="test rows, drawn at random; 0: all")
    parser.add_argument(
        "--generate", type=int, default=0, help="rows of generation sets whose answers are generated for chrF"
    )
    parser.add_argument(
        "--few-shot-tokens", type=int, default=1024, help="maximum tokens of the examples in front of an input"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/quality-sets.json"))
    arguments = parser.parse_args()
    tune_allocator()
    base = load(arguments.model, ModelOptions(dtype=pick_training_dtype(arguments.dtype, torch.device("cpu"))))
    bench = _Bench(Arena(base, arguments.model, arguments.format, arguments.few_shot_tokens), arguments)
    for seed in arguments.seeds:
        for size in arguments.sizes:
            for data in load_sets(arguments.data, arguments.sets, arguments.test):
                bench.run(data, size, seed)
    for line in (*table(bench.runs), *differences(bench.runs)):
        print(line)


class _Bench:
    def __init__(self, arena: Arena, arguments: argparse.Namespace) -> None:
        self._arena, self._arguments, self._output = arena, arguments, arguments.output
        self._forward = choose_forward(arena.base)
        self.runs: list[dict[str, Any]] = json.loads(self._output.read_text()) if self._output.is_file() else []

    def run(self, data: DataSet, size: int, seed: int) -> None:
        base_key: dict[str, Any] = {
            "model": self._arena.base.info.id,
            "dtype": str(self._arena.base.dtype),
            "format": self._arena.format.value,
        }
        base_key |= {"set": data.name, "num_test": len(data.test)}
        only = self._arguments.only
        untuned = Prefixed(self._arena.base, self._forward, None)
        for name, template in ((BARE, None), (INSTRUCTED, self._arena.instructed(data))):
            key = base_key | {"size": 0, "seed": 0, "contestant": name}  # these two don't depend on training examples
            if name in only and not self._is_there(key):
                self._score(key, data, untuned, self._arena.test(data, template))
        key = base_key | {"size": size or len(data.train), "seed": seed}
        if size > len(data.train):
            print(f"{data.name} has {len(data.train)} examples, not {size}", flush=True)
            return
        train, held = data.sample(size, seed)
        if FEW_SHOT in only and not self._is_there(key | {"contestant": FEW_SHOT}):
            test, shown = self._arena.few_shot(data, train)
            self._score(key | {"contestant": FEW_SHOT}, data, untuned, test, shown=shown)

        def train_peft(name: str) -> tuple[Tuned, dict[str, Any]]:
            adapter, steps, batch = self._arena.train_peft(name, data, train, seed)
            return adapter, {"num_steps": steps, "batch_size": batch}

        def train_ours(request: Hyperparameters) -> tuple[Tuned, dict[str, Any]]:
            prefix, hyper = self._arena.train_ours(data, train, held, request)
            return Prefixed(self._arena.base, self._forward, prefix), hyper.model_dump(mode="json")

        work: dict[str, Callable[[], tuple[Tuned, dict[str, Any]]]] = {}
        work |= {name: partial(train_peft, name) for name in PEFT if name in only}
        requests = {name: replace(request, seed=seed) for name, request in OURS.items() if name in only}
        requests |= {f"ours {text}": variant(text, seed) for text in self._arguments.variants}
        work |= {name: partial(train_ours, request) for name, request in requests.items()}
        for name, training in work.items():
            if self._is_there(key | {"contestant": name}):
                continue
            started, started_processor = time.perf_counter(), time.process_time()
            tuned, chosen = training()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_processor
            size_of = {"parameters": tuned.num_parameters, "bytes": tuned.num_bytes}
            more = {"hyperparameters": chosen, "seconds": seconds, "cpu_seconds": cpu_seconds}
            self._score(key | {"contestant": name}, data, tuned, self._arena.test(data), **size_of, **more)

    def _score(self, key: dict[str, Any], data: DataSet, tuned: Tuned, test: EncodedDataset, **more: Any) -> None:
        found = key | score_test(tuned, test).as_json() | {"machine": machine()} | more
        if count := min(len(test), self._arguments.generate if not data.labels else 0):
            stops = {test.examples[0].target_ids[-1], *self._arena.base.stop_token_ids}
            references = [row.references for row in data.test[:count]]
            found |= {"chrf": chrf(tuned, test.examples[:count], references, stops), "num_generated": count}
        self.runs.append(found)
        self._output.parent.mkdir(parents=True, exist_ok=True)
        self._output.write_text("[\n" + ",\n".join(json.dumps(run) for run in self.runs) + "\n]\n")
        shown = {
            name: value
            for name, value in found.items()
            if name not in ("right", "hyperparameters", "machine", "model", "dtype", "num_test")
        }
        print(json.dumps(shown), flush=True)

    def _is_there(self, key: dict[str, Any]) -> bool:
        return any(all(run.get(name) == value for name, value in key.items()) for run in self.runs)


def _size(text: str) -> int:
    return ALL if text == "all" else int(text)


if __name__ == "__main__":
    main()
