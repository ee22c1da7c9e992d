"""Memory and time that a worker takes to read, tokenize and train on a large dataset for a few steps.

    python -m benchmarks.data [--megabytes 1000] [--tokenizer DIRECTORY]

The production worker runs in its own process with a tiny model; the operating system reports its peak memory. Two jobs
train on the same file and must share one copy. Without `--tokenizer`, every byte is a token, which is the worst case
for memory. Writes benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from trainer_service.cluster.settings import WorkerSettings

RESULTS = Path(__file__).parents[1] / "results" / "data.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"
NUM_WORDS = 240
NUM_STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--tokenizer", type=Path, help="directory of the model that provides the tokenizer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "data.jsonl"
        num_examples, digest = write_dataset(path, arguments.megabytes * 1_000_000)
        forked = multiprocessing.get_context("fork")  # before torch is imported, so that the child is a fresh process
        receiver, sender = forked.Pipe(duplex=False)
        process = forked.Process(
            target=train, args=(path, digest, arguments.tokenizer, Path(scratch) / "model", sender)
        )
        process.start()
        sender.close()
        measured: dict[str, Any] = receiver.recv()
        process.join()
        results = {
            "machine": machine() | {"load": os.getloadavg()},
            "tokenizer": "bytes" if arguments.tokenizer is None else arguments.tokenizer.name,
            "dataset_bytes": path.stat().st_size,
            "examples": num_examples,
            **measured,
        }
    print(json.dumps(results, indent=2))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def write_dataset(path: Path, num_bytes: int) -> tuple[int, str]:
    """Writes distinct examples of random words. Returns their number and the file's digest."""
    words, rnd = DOCUMENT.read_text().split(), random.Random(0)
    num_examples, digest, written = 0, hashlib.sha256(), 0
    with path.open("wb") as file:
        while written < num_bytes:
            text = f"{num_examples} " + " ".join(rnd.choices(words, k=NUM_WORDS))
            line = (
                json.dumps({"input": text, "output": " ".join(rnd.choices(words, k=NUM_WORDS // 4))}).encode() + b"\n"
            )
            digest.update(line)
            written += file.write(line)
            num_examples += 1
    return num_examples, digest.hexdigest()


def train(path: Path, digest: str, tokenizer: Path | None, model: Path, sender: Any) -> None:
    """Runs two jobs on the same file in the worker's process and returns the measurements."""
    from tests.tiny_models import save_tiny_llama
    from trainer_service.cluster.worker import Worker
    from trainer_service.cluster.worker_init import WorkerSpec, load_trainer
    from trainer_service.training.events import (
        DatasetFile,
        Failed,
        Finished,
        Preparing,
        Started,
        TaskData,
        TrainingTask,
    )

    shape: dict[str, Any] = {"max_position_embeddings": 8192}
    if tokenizer is not None:
        shape["vocab_size"] = json.loads((tokenizer / "config.json").read_text())["vocab_size"]
    save_tiny_llama(model, **shape)
    for file in tokenizer.glob("*token*") if tokenizer is not None else ():
        shutil.copy(file, model)
    worker = Worker(lambda: load_trainer(WorkerSpec("tiny", str(model), WorkerSettings(dtype="float32", device="cpu"))))
    while not worker.poll(0, 1.0).ready:
        continue
    before = peak_bytes()
    data = TaskData(DatasetFile(digest, str(path), path.stat().st_size), None, 0.001, seed=0)
    begun, since = time.monotonic(), 0
    report: dict[str, Any] = {"peak_bytes_before": before}
    for job in ("first", "second"):
        worker.add(TrainingTask(job, 1, training_spec(), data=data))
    finished = 0
    while finished < 2:
        polled = worker.poll(since, 5)
        since = polled.last
        for event in polled.events:
            seconds = round(time.monotonic() - begun, 1)
            if isinstance(event, Failed):
                raise RuntimeError(f"{event.code}: {event.message}")
            if isinstance(event, Preparing):
                print(
                    f"{seconds} s: {event.num_prepared} of {event.num_examples}, {peak_bytes() / 1e9:.2f} GB",
                    flush=True,
                )
            if isinstance(event, Started):
                report[f"{event.job_id}_job_started_seconds"] = seconds
                report[f"peak_bytes_at_start_of_{event.job_id}"] = peak_bytes()
            if isinstance(event, Finished):
                finished += 1
    sender.send(report | {"finished_seconds": round(time.monotonic() - begun, 1), "peak_bytes": peak_bytes()})
    os._exit(0)


def training_spec() -> Any:
    from tests.trainer_service.builders import effective_spec
    from trainer_service.training.spec import Init, InitMethod

    init = Init(method=InitMethod.RANDOM)
    return effective_spec(
        num_virtual_tokens=8,
        init=init,
        batch_size=2,
        num_steps=NUM_STEPS,
        evaluation_interval_steps=NUM_STEPS,
        seed=0,
    ).training


def peak_bytes() -> int:
    """This process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
