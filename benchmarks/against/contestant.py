"""Training or serving as one tree of this project has it: `contestant.py train|serve MODEL DTYPE`.

`PYTHONPATH` names the tree. Reads a case's number and a seed per line, and answers each with one line `RATE number`:
training examples or generated tokens per second. It uses only what the benchmarks of older commits have, too.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import time
from pathlib import Path
from typing import Any

STREAMS = (1, 16)
"""Concurrent streams in each serving case."""


async def main() -> None:
    way, model, dtype = sys.argv[1:]
    await (train if way == "train" else serve)(model, dtype)


async def train(model: str, dtype: str) -> None:
    from benchmarks.train.contestants import CONTESTANTS
    from benchmarks.train.workload import CASES, load_model, make_rows

    frozen: Any = load_model(model, dtype, "cpu")
    vocab_size = frozen.get_input_embeddings().weight.shape[0]
    jobs = {number: CONTESTANTS["shared"](frozen, case) for number, case in enumerate(CASES[:3])}
    for line in sys.stdin:
        number, seed = map(int, line.split())
        rows = make_rows(CASES[number], vocab_size, seed)
        begun = time.perf_counter()
        jobs[number].step(rows)
        answer(sum(map(len, rows)) / (time.perf_counter() - begun))


async def serve(model: str, dtype: str) -> None:
    from benchmarks.serve.workload import Workload

    ours: Any = importlib.import_module("benchmarks.serve.engine")
    config = ours.EngineConfig
    if "linear_kernel" in inspect.signature(config).parameters:  # a measured choice may differ from run to run
        ours.EngineConfig = lambda **fields: config(linear_kernel="native", **fields)
    contestant = ours.EngineContestant()
    await contestant.start(Path(model))
    workload = Workload.make(contestant.table, max(STREAMS))
    await contestant.load(workload, "prompt-")
    for line in sys.stdin:
        number, seed = map(int, line.split())
        fresh = Workload(workload.prompts, Workload.make(contestant.table, max(STREAMS), 1, seed).inputs)
        answer(await contestant.tokens_per_second(fresh, "prompt-", STREAMS[number]))
    await contestant.stop()


def answer(rate: float) -> None:
    print(f"RATE {rate}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
