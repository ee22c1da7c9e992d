"""Measures the prompt store on a local directory: publishing, fetching, cold start and idle poll with many versions,
and a fleet's lag.

    python -m benchmarks.store [--directory DIRECTORY] [--prompts 1000] [--versions 10]

Writes are as durable as in production: every file and folder is synced. Only the large store is filled without syncing.
Each publication is compared with a lower bound: writing and syncing one file of the same size, and syncing its folder.
Writes benchmarks/results/store.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch

from benchmarks.machine import machine
from shared.names import PromptReference
from shared.prompt.blob import encode_blob
from shared.prompt.manifest import Manifest, utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import PromptStore, StoreWatcher, open_store
from shared.store.layout import LOG, SNAPSHOTS, log_key
from shared.text.template import Template
from shared.values.base_model import BaseModelInfo

RESULTS = Path(__file__).parent / "results" / "store.json"
HIDDEN_SIZE = 576


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, default=Path("build"), help="directory for the stores; its file system is measured"
    )
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=10)
    parser.add_argument("--watchers", type=int, default=100)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        root = Path(scratch)
        results = {
            "machine": machine(),
            "one_megabyte": publish_and_fetch(root / "one-megabyte"),
            "large_store": large_store(root / "large", arguments.prompts, arguments.versions),
            "fleet": asyncio.run(fleet(root / "fleet", arguments.watchers)),
        }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


def make_blob(prompt: str, seed: int, num_virtual_tokens: int) -> bytes:
    """A version with a manifest of typical size."""
    matrix = torch.randn(num_virtual_tokens, HIDDEN_SIZE, generator=torch.Generator().manual_seed(seed))
    base = BaseModelInfo(
        id="smollm2-135m-instruct",
        fingerprint="sha256:" + "f" * 64,
        tokenizer_digest="sha256:" + "e" * 64,
        architecture="LlamaForCausalLM",
        hidden_size=HIDDEN_SIZE,
        vocab_size=49152,
        num_layers=30,
        max_positions=8192,
    )
    manifest = Manifest(
        prompt=prompt,
        job=f"tuningJobs/{seed}",
        base_model=base,
        template=Template(),
        num_virtual_tokens=num_virtual_tokens,
        hidden_size=HIDDEN_SIZE,
        metrics={"loss": 0.25, "accuracy": 0.9, "bare_loss": 2.5, "chrf": 61.2},
        created_at=utc_now(),
    )
    return encode_blob(SoftPrompt(matrix), manifest)


def publish_and_fetch(root: Path) -> dict[str, object]:
    """Times for versions of one megabyte, in milliseconds."""
    store = open_store(str(root))
    blobs = [make_blob("support-tone", seed, num_virtual_tokens=455) for seed in range(60)]
    publish, floor = [], []
    for seed, blob in enumerate(blobs):
        floor.append(milliseconds(partial(synced_file, root / "floor", blob)))
        publish.append(milliseconds(partial(store.publish, "support-tone", blob, job=f"job-{seed}")))
    fetch = [milliseconds(partial(store.fetch, record.digest)) for record in store.index().versions()]
    return {
        "size_bytes": len(blobs[0]),
        "publish_ms": spread(publish),
        "fetch_ms": spread(fetch),
        "one_synced_file_ms": spread(floor),
    }


def large_store(root: Path, num_prompts: int, num_versions: int) -> dict[str, object]:
    """The cost of a store with many versions that a replica does not load."""
    fill(root, num_prompts, num_versions)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    held = open_store(str(root))
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    total = num_prompts * num_versions

    cold = [milliseconds(lambda: open_store(str(root))) for _ in range(5)]
    idle = [milliseconds(held.refresh) for _ in range(2000)]
    reference = PromptReference.parse("prompt-0")
    resolve = [milliseconds(lambda: held.index().resolve(reference)) for _ in range(2000)]
    snapshot = max(info.size_bytes for info in held.backend.list(SNAPSHOTS))
    next_entry_bytes = len(held.backend.get(log_key(held.index().revision), 1 << 20) or b"")
    for info in held.backend.list(SNAPSHOTS):
        held.backend.delete(info.key)
    replay = milliseconds(lambda: open_store(str(root)))
    return {
        "prompts": num_prompts,
        "versions": total,
        "log_entries": len(held.backend.list(LOG)),
        "snapshot_bytes": snapshot,
        "log_entry_bytes": next_entry_bytes,
        "cold_index_ms": spread(cold),
        "cold_index_without_snapshot_ms": round(replay, 1),
        "idle_poll_microseconds": spread([value * 1000 for value in idle]),
        "resolve_microseconds": spread([value * 1000 for value in resolve]),
        "memory_per_known_version_bytes": round((after - before) / total),
    }


def fill(root: Path, num_prompts: int, num_versions: int) -> PromptStore:
    with mock.patch("os.fsync"):
        store = open_store(str(root))
        for version in range(num_versions):
            for prompt in range(num_prompts):
                name = f"prompt-{prompt}"
                store.publish(
                    name, make_blob(name, version, num_virtual_tokens=1), job=f"tuningJobs/{prompt}-{version}"
                )
        store.write_snapshot()
    return store


async def fleet(root: Path, num_watchers: int, rounds: int = 20) -> dict[str, object]:
    """Milliseconds from the return of `publish` until each watcher, with its own store object, has the version."""
    writer = open_store(str(root))
    seen: list[float] = []
    arrived = asyncio.Condition()

    async def follow() -> None:
        async for _ in StoreWatcher(open_store(str(root)), since=0):
            async with arrived:
                seen.append(time.perf_counter())
                arrived.notify_all()

    tasks = [asyncio.create_task(follow()) for _ in range(num_watchers)]
    worst, lags = [], []
    for number in range(rounds):
        await asyncio.sleep(0.5)
        blob = make_blob("support-tone", number, num_virtual_tokens=20)
        await asyncio.to_thread(writer.publish, "support-tone", blob, job=f"job-{number}")
        published_at = time.perf_counter()
        async with arrived, asyncio.timeout(30):
            await arrived.wait_for(lambda: len(seen) == num_watchers)
            late = [max(0.0, 1000 * (at - published_at)) for at in seen]
            seen.clear()
        lags.extend(late)
        worst.append(max(late))
    for task in tasks:
        task.cancel()
    return {"watchers": num_watchers, "lag_ms": spread(lags), "slowest_watcher_ms": spread(worst)}


def synced_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(handle)
    os.close(handle)
    path.unlink()


def milliseconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - start)


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "max": round(ordered[-1], 3),
    }


if __name__ == "__main__":
    main()
