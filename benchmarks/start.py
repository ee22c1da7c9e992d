"""Time until a replica with many aliased versions is ready: loading recently used versions first, or all of them.

    python -m benchmarks.start [--versions 1000] [--rounds 3]

The model is tiny, so that the time is that of loading versions: fetching, checking, computing keys and values, and
replaying. In each round, both ways start from the same store, one after the other. Also measures the first answer of a
version that its first request loads. Writes benchmarks/results/start.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from benchmarks.machine import machine
from inference_service.config import InferenceSettings
from inference_service.engine.engine import load_engine
from inference_service.generation import Call
from inference_service.inputs import InputRequest
from inference_service.server import build
from shared.model.base_model import inspect
from shared.names import PromptReference
from shared.prompt.blob import encode_blob
from shared.prompt.manifest import Manifest, utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import open_store
from shared.text.template import Template
from shared.values.sampling import Sampling
from tests.tiny_models import save_tiny_llama

RESULTS = Path(__file__).parent / "results" / "start.json"
NUM_VIRTUAL_TOKENS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = save_tiny_llama(Path(scratch) / "model")
        fill(Path(scratch) / "store", model, arguments.versions)
        rounds = [asyncio.run(one_round(Path(scratch) / "store", model)) for _ in range(arguments.rounds)]
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    results = {
        "machine": machine(),
        "versions": arguments.versions,
        "rounds": rounds,
        "median": {
            **medians,
            "ready_ratio": statistics.median(found["all_seconds"] / found["ready_seconds"] for found in rounds),
        },
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results["median"], indent=2) + "\n")


def fill(directory: Path, model: Path, num_versions: int) -> None:
    """Fills a store with prompts that each have one version, named by the default alias."""
    store, info = open_store(str(directory)), inspect(model, id="tiny")
    generator = torch.Generator().manual_seed(0)
    for number in range(num_versions):
        soft_prompt = SoftPrompt(torch.randn(NUM_VIRTUAL_TOKENS, info.hidden_size, generator=generator))
        manifest = Manifest(
            prompt=name_of(number),
            base_model=info,
            template=Template(),
            num_virtual_tokens=NUM_VIRTUAL_TOKENS,
            hidden_size=info.hidden_size,
            created_at=utc_now(),
        )
        store.publish(name_of(number), encode_blob(soft_prompt, manifest), job=f"tuningJobs/{number}", alias="default")
    store.close()


def name_of(number: int) -> str:
    return f"prompt-{number:05}"


async def one_round(store: Path, model: Path) -> dict[str, float]:
    """Times in seconds."""
    everything, _ = await start(store, model, 0)
    ready, first_answer = await start(store, model, 64)
    return {"all_seconds": everything, "ready_seconds": ready, "first_answer_seconds": first_answer}


async def start(store_dir: Path, model: Path, start_versions: int) -> tuple[float, float]:
    """Seconds until the watcher is ready, and then until the first answer of the version that was published first."""
    settings = InferenceSettings(
        base_model=str(model), store_url=str(store_dir), start_versions=start_versions, start_seconds=3600
    )
    engine, store = load_engine(model, id="tiny", config=settings.engine), open_store(str(store_dir))
    replica = build(settings, engine, store, CollectorRegistry())
    replica.engine.start()
    begun = time.perf_counter()
    await replica.watcher.start()
    ready = time.perf_counter() - begun
    begun = time.perf_counter()
    await answer(replica, PromptReference.parse(name_of(0)))
    first_answer = time.perf_counter() - begun
    await replica.loads.close()
    await replica.engine.stop()
    replica.backend.service.close()
    store.close()
    return ready, first_answer


async def answer(replica: Any, reference: PromptReference) -> Sequence[object]:
    input, sampling = InputRequest("hello", reference), Sampling(temperature=0.0, max_new_tokens=1)
    return [part async for part in replica.backend.service.stream(input, sampling, Call("benchmark"))]


if __name__ == "__main__":
    main()
