"""Time from a version's publication to its first token on a replica: a soft prompt, and its own keys and values.

    python -m benchmarks.publish --model DIR [--rounds 20] [--virtual-tokens 20 100]

Both have the same effect on every answer and carry golden records, which the replica replays before it serves them. A
soft prompt's keys and values are computed, those of a PREFIX are read. In each round one of each is published to a
running replica, the order alternates, and both are asked for by number, as soon as the store has them. Writes
benchmarks/results/publish.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
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
from shared.errors import NotFound
from shared.model.base_model import BaseModel, load
from shared.model.options import ModelOptions
from shared.names import PromptReference
from shared.prompt.blob import encode_blob
from shared.prompt.lift import key_values_of
from shared.prompt.manifest import Manifest, utc_now
from shared.prompt.prefix import Prefix
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import PromptStore, open_store
from shared.text.template import InputEncoder, Template
from shared.values.sampling import Sampling
from trainer_service.training.evaluation.golden import golden_records

RESULTS = Path(__file__).parent / "results" / "publish.json"
LONGEST_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--virtual-tokens", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    trainers = load(arguments.model, ModelOptions(dtype="float32", device="cpu"))
    blobs = {length: blobs_of(trainers, length, arguments.rounds + 1) for length in arguments.virtual_tokens}
    del trainers
    results = {"machine": machine(), "model": Path(arguments.model).name, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        results |= asyncio.run(measure(Path(scratch) / "store", arguments.model, blobs))
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


def blobs_of(base: BaseModel, num_virtual_tokens: int, count: int) -> list[dict[str, bytes]]:
    """Pairs of versions with the same effect, by kind."""
    generator = torch.Generator().manual_seed(num_virtual_tokens)
    pairs = []
    for _ in range(count):
        ids = torch.randint(0, min(10_000, base.info.vocab_size), (num_virtual_tokens,), generator=generator)
        embeddings = base.model.get_input_embeddings()(ids).detach().float()
        kinds: tuple[Prefix, Prefix] = SoftPrompt(embeddings), key_values_of(base, embeddings).rounded()
        pairs.append({str(prefix.kind): blob_of(base, prefix) for prefix in kinds})
    return pairs


def blob_of(base: BaseModel, prefix: Prefix) -> bytes:
    template = Template(text="{input}")
    manifest = Manifest(
        prompt=prefix.kind.lower(),
        base_model=base.info,
        template=template,
        kind=prefix.kind,
        num_virtual_tokens=prefix.num_virtual_tokens,
        hidden_size=base.info.hidden_size,
        golden=golden_records(base, prefix, InputEncoder(base.tokenizer, template)),
        created_at=utc_now(),
    )
    return encode_blob(prefix, manifest)


async def measure(
    store_dir: Path, model: str, blobs: dict[int, list[dict[str, bytes]]]
) -> dict[str, dict[str, object]]:
    """By number of virtual tokens: milliseconds of each kind, and their ratio."""
    settings = InferenceSettings(base_model=model, store_url=str(store_dir))
    engine, store = load_engine(model, config=settings.engine), open_store(str(store_dir))
    replica = build(settings, engine, store, CollectorRegistry())
    replica.engine.start()
    await replica.watcher.start()
    watching = asyncio.create_task(replica.watcher.run())
    found = dict[str, object]()
    writer = open_store(str(store_dir))
    for length, pairs in blobs.items():
        times: dict[str, list[float]] = {kind: [] for kind in pairs[0]}
        for number, pair in enumerate(pairs):
            for kind in sorted(pair, reverse=bool(number % 2)):
                seconds = await publish_to_first_token(replica, writer, kind, pair[kind])
                if number:  # the first pair warms up
                    times[kind].append(1000 * seconds)
        found[str(length)] = {
            **{f"{kind}_bytes": len(pairs[0][kind]) for kind in times},
            **{f"{kind}_ms": spread(values) for kind, values in times.items()},
            "ratio_of_medians": round(statistics.median(times["PREFIX"]) / statistics.median(times["PROMPT"]), 3),
        }
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await replica.loads.close()
    await replica.engine.stop()
    replica.backend.service.close()
    store.close()
    writer.close()
    return {"by_virtual_tokens": found}


async def publish_to_first_token(replica: Any, store: PromptStore, kind: str, blob: bytes) -> float:
    """Seconds from the return of `publish` to the first token of the new version. No alias names it before."""
    publish: Callable[[], Any] = partial(
        store.publish, kind.lower(), blob, job=f"tuningJobs/{store.index().revision}", alias=None
    )
    record = await asyncio.to_thread(publish)
    begun = time.perf_counter()
    reference = PromptReference(record.prompt, None, record.version)
    while True:
        try:
            await answer(replica, reference)
            return time.perf_counter() - begun
        except NotFound:  # the watcher has not read the log yet
            if time.perf_counter() - begun > LONGEST_SECONDS:
                raise
            await asyncio.sleep(0.002)


async def answer(replica: Any, reference: PromptReference) -> Sequence[object]:
    input, sampling = InputRequest("hello", reference), Sampling(temperature=0.0, max_new_tokens=1)
    return [part async for part in replica.backend.service.stream(input, sampling, Call("benchmark"))]


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 1),
        "p90": round(ordered[int(0.9 * (len(ordered) - 1))], 1),
        "max": round(ordered[-1], 1),
    }


if __name__ == "__main__":
    main()
