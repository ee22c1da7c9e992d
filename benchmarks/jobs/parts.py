"""Parts that several measurements share: a spec, an admission without checks, a pool without workers, percentiles."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from shared.text.template import Template
from shared.values.base_model import BaseModelInfo
from trainer_service.cluster.interface import WorkerHandle, WorkerPool
from trainer_service.jobs.admission import SpecAdmission
from trainer_service.jobs.model import EffectiveSpec, StoredSpec
from trainer_service.training.events import DatasetFile
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import Hyperparameters, TaskKind, TrainingSpec

AT_ONCE = 16
"""Concurrent calls of `a_second`."""
UNKNOWN = BaseModelInfo(
    id="none",
    fingerprint="sha256:" + "0" * 64,
    tokenizer_digest="sha256:" + "0" * 64,
    architecture="LlamaForCausalLM",
    hidden_size=576,
    vocab_size=49152,
    num_layers=30,
    max_positions=2048,
)


class NoWorkers(WorkerPool):
    """A pool without workers: jobs stay queued."""

    async def start(self) -> None: ...

    async def launch(self, base_model: str) -> WorkerHandle:
        await asyncio.Event().wait()
        raise AssertionError("never")

    async def close(self) -> None: ...


class Examples:
    """Returns the same dataset for every name."""

    def __init__(self, directory: Path) -> None:
        lines = (json.dumps({"input": f"question {line}", "output": f"answer {line}"}) + "\n" for line in range(1, 65))
        data = "".join(lines).encode()
        path = directory / "examples.jsonl"
        path.write_bytes(data)
        self._file = DatasetFile(hashlib.sha256(data).hexdigest(), str(path), len(data))

    def file(self, name: str) -> DatasetFile:
        return self._file


class Admission(SpecAdmission):
    def __init__(self, info: BaseModelInfo) -> None:
        self._info = info

    async def check(self, spec: StoredSpec, unstored: object = None) -> EffectiveSpec:
        hyperparameters = fill(spec.hyperparameters, TaskKind.GENERATION, 48, self._info, Template())
        training = TrainingSpec(task=TaskKind.GENERATION, template=Template(), hyperparameters=hyperparameters)
        return EffectiveSpec(
            base_model=self._info, training=training, validation_fraction=0.25, max_runtime_seconds=3600
        )

    async def check_form(self, spec: StoredSpec) -> None:
        """Nothing is refused."""


def spec(number: int, **hyperparameters: Any) -> StoredSpec:
    return StoredSpec(
        prompt=f"prompt-{number % 100}",
        dataset="datasets/sha256-" + "0" * 64,
        annotations={"team": f"team-{number % 50}"},
        hyperparameters=Hyperparameters(**hyperparameters),
    )


def spread(samples: Sequence[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {"median": round(statistics.median(ordered), 2), "p99": round(ordered[int(len(ordered) * 0.99)], 2)}


async def timed(call: Callable[[int], Awaitable[Any]], count: int) -> dict[str, float]:
    """Latencies of sequential calls, in milliseconds."""
    samples = []
    for number in range(count):
        started = time.perf_counter()
        await call(number)
        samples.append((time.perf_counter() - started) * 1000)
    return spread(samples)


async def a_second(call: Callable[[int], Awaitable[Any]], count: int) -> float:
    """Calls per second with `AT_ONCE` concurrent calls."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await call(number)

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return round(count / (time.perf_counter() - started), 1)
