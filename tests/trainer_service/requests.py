"""Requests that tests send."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from prompttuning.v1 import tuning_pb2 as pb

from tests.trainer_service.conftest import RunningTrainer

NUM_EXAMPLES = 20


def generation_examples(num_examples: int = NUM_EXAMPLES) -> list[pb.Example]:
    return [pb.Example(input=f"number {n}", output=f"it is {n}") for n in range(num_examples)]


def classification_examples(num_examples: int = NUM_EXAMPLES) -> list[pb.Example]:
    return [pb.Example(input=f"number {n}", label=["even", "odd"][n % 2]) for n in range(num_examples)]


def chat_examples(num_examples: int = NUM_EXAMPLES) -> list[pb.Example]:
    def conversation(n: int) -> pb.Conversation:
        turns = [
            pb.Conversation().messages.add(role="user", content=f"number {n}"),
            pb.Conversation().messages.add(role="assistant", content="yes"),
        ]
        return pb.Conversation(messages=turns)

    return [pb.Example(conversation=conversation(n)) for n in range(num_examples)]


def inline(examples: list[pb.Example]) -> pb.DatasetSource:
    return pb.DatasetSource(inline=pb.InlineDataset(examples=examples))


def tuning_spec(**fields: Any) -> pb.TuningSpec:
    """A valid spec with some fields replaced."""
    return pb.TuningSpec(**{"prompt": "support-tone", "dataset": inline(generation_examples()), **fields})


async def create_job(trainer: RunningTrainer, request_id: str = "", **fields: Any) -> pb.TuningJob:
    response = await trainer.tuning.CreateTuningJob(
        pb.CreateTuningJobRequest(spec=tuning_spec(**fields), request_id=request_id)
    )
    job: pb.TuningJob = response.job
    return job


def json_lines(num_examples: int = NUM_EXAMPLES) -> bytes:
    return b"".join(
        json.dumps({"input": f"number {n}", "output": f"it is {n}"}).encode() + b"\n" for n in range(num_examples)
    )


def upload_of(data: bytes, chunk_bytes: int = 1 << 16, **header: Any) -> Iterator[pb.UploadDatasetRequest]:
    """The messages of a correct upload; `header` overrides announced fields."""
    announced = {"size_bytes": len(data), "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", **header}
    yield pb.UploadDatasetRequest(header=pb.DatasetHeader(**announced))
    for start in range(0, len(data), chunk_bytes):
        yield pb.UploadDatasetRequest(chunk=data[start : start + chunk_bytes])


async def first_step(tuning: Any, name: str, attempt: int = 1) -> pb.TuningEvent:
    """The first progress event of this attempt; events of an earlier attempt may still arrive before it."""
    watch = tuning.WatchTuningJob(pb.WatchTuningJobRequest(name=name))
    begun = False
    while True:
        event: pb.TuningEvent = (await watch.read()).event
        begun = begun or event.state_changed.attempt == attempt
        if begun and event.progress.step > 0:
            watch.cancel()
            return event
