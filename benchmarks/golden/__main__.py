"""Trains many short, sharp prompts and replays each in every dtype and kernel, without and with faults.

    python -m benchmarks.golden --model DIR [--prompts 200] [--resume]

Replays without faults run in transformers with and without oneDNN's kernels, and in the serving engine, in float32,
bfloat16 and float16. The measured quantity is the ratio of a replay's divergence to the recorded one; a log-normal tail
gives the rate of false refusals. Faults are computed in bfloat16, where rounding hides them best. Writes
benchmarks/results/golden.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.golden.sets import NUM_TRAIN, SETS, Set
from benchmarks.machine import machine
from inference_service.engine.async_engine import AsyncEngine
from inference_service.engine.core.config import EngineConfig
from inference_service.engine.engine import Engine
from inference_service.prompts.golden import BAND, allowed_nats
from shared.model.base_model import BaseModel, load
from shared.model.options import ModelOptions
from shared.model.precision import computed_in
from shared.prompt.divergence import divergence_nats
from shared.prompt.manifest import GoldenRecord
from shared.prompt.soft_prompt import SoftPrompt
from shared.text.golden_inputs import golden_input_ids
from shared.text.template import InputEncoder
from trainer_service.training.cohort import Cohort
from trainer_service.training.evaluation.golden import golden_records
from trainer_service.training.events import Failed, Finished, TrainingTask
from trainer_service.training.recipe.defaults import fill
from trainer_service.training.spec import Hyperparameters, TrainingSpec

RESULTS = Path(__file__).parents[1] / "results" / "golden.json"
LEARNING_RATES = (0.01, 0.03, 0.06, 0.12)
TOGETHER = 6
REPLAYED = 20
WEIGHT_CHANGES = (10, 100, 1000)
"""Change of one weight, in standard deviations of its matrix."""
BF16 = torch.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument(
        "--resume", action="store_true", help="keep the results in the output file and compute only the missing ones"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[str, Any] = (
        json.loads(arguments.output.read_text())["prompts"] if arguments.resume and arguments.output.exists() else {}
    )
    asyncio.run(_measure(arguments.model, arguments.prompts, found, arguments.output))


async def _measure(source: str, count: int, found: dict[str, Any], output: Path) -> None:
    base = load(source, ModelOptions(dtype="bfloat16", device="cpu"))
    engines = {dtype: _engine(source, dtype) for dtype in ("bfloat16", "float32")}
    before: SoftPrompt | None = None
    try:
        missing = [number for number in range(count) if str(number) not in found]
        for first in range(0, len(missing), TOGETHER):
            for number, soft_prompt in _trained(base, missing[first : first + TOGETHER]):
                found[str(number)] = await _measured(base, engines, number, soft_prompt, before)
                before = soft_prompt
                _write(output, source, found)
                print(f"{number}: {_shown(found[str(number)])}", flush=True)
    finally:
        for engine in engines.values():
            await engine.stop()


def _engine(source: str, dtype: Any) -> AsyncEngine:
    config = EngineConfig(
        max_running=8, max_length=512, max_tokens_per_step=256, kv_cache_bytes=1 << 26, prefix_kv_bytes=1 << 26
    )
    engine = AsyncEngine(Engine.from_base_model(load(source, ModelOptions(dtype=dtype, device="cpu")), config))
    engine.start()
    return engine


def _set_of(number: int) -> Set:
    return SETS[number % len(SETS)]


def _trained(base: BaseModel, numbers: Sequence[int]) -> Iterator[tuple[int, SoftPrompt]]:
    cohort = Cohort(base)
    for number in numbers:
        some = _set_of(number)
        request = Hyperparameters(
            num_steps=24,
            num_virtual_tokens=12,
            batch_size=4,
            evaluation_interval_steps=24,
            seed=number,
            learning_rate=LEARNING_RATES[number // len(SETS) % len(LEARNING_RATES)],
        )
        hyperparameters = fill(request, some.task, NUM_TRAIN, base.info, some.template, some.labels)
        spec = TrainingSpec(task=some.task, template=some.template, labels=some.labels, hyperparameters=hyperparameters)
        examples = some.examples(number)
        cohort.add(TrainingTask(str(number), 1, spec, examples[:NUM_TRAIN], examples[NUM_TRAIN:]))
    while not cohort.is_idle:
        for event in cohort.step():
            if isinstance(event, Failed):
                raise SystemExit(f"training {event.job_id} failed: {event.message}")
            if isinstance(event, Finished):
                yield int(event.job_id), SoftPrompt.from_tensors(event.result.prefix.tensors())


async def _measured(
    base: BaseModel, engines: dict[str, AsyncEngine], number: int, soft_prompt: SoftPrompt, other: SoftPrompt | None
) -> dict[str, Any]:
    """Divergences in nats, mean over the inputs."""
    encoder = InputEncoder(base.tokenizer, _set_of(number).template)
    records = golden_records(base, soft_prompt, encoder)
    inputs = [record.input_ids for record in records]

    def apart(
        matrix: torch.Tensor | None,
        dtype: torch.dtype = BF16,
        inputs: Sequence[tuple[int, ...]] = inputs,
        shift: int = 0,
    ) -> float:
        answers = [_answer(base, matrix, ids, dtype, shift) for ids in inputs]
        return statistics.mean(map(_divergence, records, answers))

    matrix = soft_prompt.embeddings
    sound = {"transformers, bfloat16": apart(matrix), "transformers, float16": apart(matrix, torch.float16)}
    with torch.backends.mkldnn.flags(enabled=False):
        sound["transformers without oneDNN, bfloat16"] = apart(matrix)
    for dtype, engine in engines.items():
        await engine.load_prefix("prompt", soft_prompt)
        answers = await asyncio.gather(*(engine.top_logprobs("prompt", ids, REPLAYED) for ids in inputs))
        sound[f"engine, {dtype}"] = statistics.mean(map(_divergence, records, map(dict, answers)))
        await engine.unload_prefix("prompt")
    spaced = replace(_set_of(number).template, text=_set_of(number).template.text + " ")
    faults = {
        "not applied": apart(None),
        "half as long vectors": apart(matrix * 0.5),
        "vectors in reverse": apart(matrix.flip(0)),
        "a vector missing": apart(matrix[1:]),
        "positions one off": apart(matrix, shift=1),
        "positions without the prompt's": apart(matrix, shift=-soft_prompt.num_virtual_tokens),
        "a space more in the template": apart(matrix, inputs=golden_input_ids(InputEncoder(base.tokenizer, spaced))),
    }
    if other is not None:
        faults["another prompt"] = apart(other.embeddings)
    for change in WEIGHT_CHANGES:
        with _changed_weight(base, change, number):
            for computed in (torch.float32, BF16):
                name = str(computed).removeprefix("torch.")
                faults[f"one weight changed by {change} standard deviations, {name}"] = apart(matrix, computed)
    return {
        "rounding": statistics.mean(record.rounding_nats or 0.0 for record in records),
        "allowed": {
            dtype: allowed_nats([record.model_copy(update={"dtype": "float32"}) for record in records], dtype)
            for dtype in ("float32", "float16", "bfloat16")
        },
        "sound": sound,
        "faults": faults,
    }


@torch.no_grad()
def _answer(
    base: BaseModel, matrix: torch.Tensor | None, ids: Sequence[int], dtype: torch.dtype, shift: int
) -> dict[int, float]:
    with computed_in(base.model, dtype):
        embedded = base.model.get_input_embeddings()(torch.tensor(ids)).to(dtype)  # [T, hidden_size]
        whole = embedded if matrix is None else torch.cat([matrix.to(dtype), embedded])
        positions = torch.arange(len(whole))
        positions[len(whole) - len(ids) :] += shift
        logits = base.model(inputs_embeds=whole[None], position_ids=positions[None], use_cache=False).logits[0, -1]
    top = logits.float().log_softmax(-1).topk(REPLAYED)
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _divergence(record: GoldenRecord, answer: dict[int, float]) -> float:
    return divergence_nats(record.top_token_ids, record.top_logprobs, answer)


@contextmanager
def _changed_weight(base: BaseModel, change: float, seed: int) -> Iterator[None]:
    generator = random.Random(f"{seed} {change}")
    matrices = [value for name, value in base.model.named_parameters() if value.dim() == 2 and "embed" not in name]
    weight = generator.choice(matrices)
    row, column = (generator.randrange(size) for size in weight.shape)
    before = weight[row, column].clone()
    with torch.no_grad():
        weight[row, column] += change * weight.float().std()
        yield
        weight[row, column] = before


def _shown(one: dict[str, Any]) -> str:
    worst = max(value / one["rounding"] for name, value in one["sound"].items() if "bfloat16" in name)
    least = min(one["faults"], key=one["faults"].get)
    sound = f"rounding {one['rounding']:.2g}, sound replays up to {worst:.2g} times that"
    return f"{sound}; smallest fault: {least}, {one['faults'][least]:.2g}"


def _write(output: Path, source: str, found: dict[str, Any]) -> None:
    ratios = {
        name: [one["sound"][name] / one["rounding"] for one in found.values()]
        for name in next(iter(found.values()))["sound"]
        if "float32" not in name
    }
    result = {
        "machine": machine(),
        "model": Path(source).name,
        "num_prompts": len(found),
        "band": BAND,
        "sound": {name: _tail(values) for name, values in ratios.items()},
        "refused_sound": _refused(found, "sound"),
        "refused_faults": _refused(found, "faults"),
        "prompts": found,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")


def _refused(found: dict[str, Any], part: str) -> dict[str, str]:
    """Number of prompts that a replica would refuse; in bfloat16 unless the fault names a dtype."""
    counts: dict[str, list[bool]] = {}
    for one in found.values():
        for name, nats in one[part].items():
            dtype = next((dtype for dtype in one["allowed"] if name.endswith(f", {dtype}")), "bfloat16")
            counts.setdefault(name, []).append(nats > one["allowed"][dtype])
    return {name: f"{sum(refused)} of {len(refused)}" for name, refused in sorted(counts.items())}


def _tail(ratios: Sequence[float]) -> dict[str, float]:
    """Ratios of a replay's divergence to the recorded one. `one_in_10000`: the quantile 0.9999 of a log-normal fit."""
    logs = [math.log(max(ratio, 1e-6)) for ratio in ratios]
    spread = statistics.stdev(logs) if len(logs) > 1 else 0.0
    beyond = statistics.NormalDist().inv_cdf(1 - 1e-4)
    return {
        "median": round(statistics.median(ratios), 4),
        "largest": round(max(ratios), 4),
        "one_in_10000": round(math.exp(statistics.mean(logs) + beyond * spread), 4),
    }


if __name__ == "__main__":
    main()
