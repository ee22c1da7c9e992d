"""The asynchronous client against fakes on real sockets: datasets and jobs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import (
    FieldViolation,
    InvalidInput,
    NotFound,
    Unavailable,
)
from shared.values.enums import TaskKind
from softprompt import AsyncClient, Example, JobState, Message, TuningSpec
from softprompt.errors import JobFailed
from softprompt.types.events import CheckpointStored, Evaluated, Note, ProgressMade, StateChanged
from tests.ports import free_port
from tests.softprompt.fakes import DATASET, JOB, FakeInference, FakeTrainer, failed_job, finished_events, serving


async def test_a_file_is_uploaded_in_pieces_under_its_digest(
    client: AsyncClient, trainer: FakeTrainer, tmp_path: Path
) -> None:
    content = b'{"input": "a", "output": "b"}\n' * 60_000
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    uploaded = await client.upload_dataset(path, labels=["x"])
    header, received = trainer.uploads[0]
    assert received == content
    assert (header.size_bytes, header.digest, list(header.labels)) == (
        len(content),
        f"sha256:{hashlib.sha256(content).hexdigest()}",
        ["x"],
    )
    assert (uploaded.dataset, uploaded.num_examples, uploaded.task) == (DATASET, 60_000, TaskKind.GENERATION)


async def test_examples_become_json_lines(client: AsyncClient, trainer: FakeTrainer) -> None:
    conversation = (Message("user", "hi"), Message("assistant", "hello"))
    uploads: list[list[Any]] = [
        [Example("a", output="ä"), {"input": "b", "output": "c"}],
        [Example("b", label="x")],
        [Example(messages=conversation)],
    ]
    for examples in uploads:
        await client.upload_dataset(examples)
    lines = [json.loads(line) for _, content in trainer.uploads for line in content.decode().splitlines()]
    assert lines == [
        {"input": "a", "output": "ä"},
        {"input": "b", "output": "c"},
        {"input": "b", "label": "x"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    ]


async def test_what_the_service_finds_wrong_is_named_by_its_place_with_the_caller(
    client: AsyncClient, trainer: FakeTrainer, tmp_path: Path
) -> None:
    path = tmp_path / "train.csv"
    path.write_text('question,answer\n"two\nlines",b\n\nc,d\n')
    wrong = [("dataset line 2 output", "is too long"), ("spec.prompt", "is taken")]
    trainer.fail_next = [InvalidInput([FieldViolation(*item) for item in wrong])]
    with pytest.raises(InvalidInput) as caught:
        await client.create_job(TuningSpec("tone", path))
    assert [violation.field for violation in caught.value.violations] == ["dataset line 5 output", "spec.prompt"]
    trainer.fail_next = [InvalidInput.of("dataset line 2", "is too long")]
    with pytest.raises(InvalidInput, match=r"validation dataset\[1\]: is too long"):
        await client.create_job(
            TuningSpec("tone", DATASET, validation_dataset=[Example("a", output="b"), Example("c", output="d")])
        )


@pytest.mark.parametrize(
    ("field", "known"),
    [("header.size_bytes", "dataset"), ("header.labels", "labels"), ("header.labels[2]", "labels[2]")],
)
async def test_the_header_of_an_upload_is_named_as_its_caller_knows_it(
    field: str, known: str, client: AsyncClient, trainer: FakeTrainer
) -> None:
    trainer.fail_next = [InvalidInput.of(field, "is not good")]
    with pytest.raises(InvalidInput, match=f"^{re.escape(known)}: is not good"):
        await client.upload_dataset([Example("a", output="b")])


async def test_dataclasses_may_be_mappings(client: AsyncClient, trainer: FakeTrainer) -> None:
    chosen = {"num_steps": np.int64(3), "init": {"text": "be kind"}}
    made = {"prompt": "tone", "dataset": DATASET, "hyperparameters": chosen, "template": {"text": "{input}"}}
    await client.create_job(TuningSpec(**made))  # type: ignore[arg-type]
    await client.create_job(made)  # type: ignore[arg-type]
    await client.clone_job(JOB, hyperparameters={"num_steps": 3})
    specs = trainer.specs
    assert [spec.hyperparameters.num_steps for spec in specs] == [3, 3, 3]
    assert specs[0].hyperparameters.init.text == specs[1].hyperparameters.init.text == "be kind"
    assert specs[0].template.text == "{input}"
    for wrong, said in (
        ({"steps": 3}, "spec.hyperparameters.steps: is not a field of Hyperparameters; do you mean 'num_steps'"),
        ({5: 3}, "spec.hyperparameters.5: is not a field"),
        ({"init": {"txt": ""}}, "spec.hyperparameters.init.txt: is not a field of Init; do you mean 'text'"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(said)):
            await client.create_job({**made, "hyperparameters": wrong})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"spec\.dataset: is missing"):
        await client.create_job({"prompt": "tone"})  # type: ignore[arg-type]
    for change in ({"hyperparameters": {"steps": 3}}, {"hyperparameters": 3}):
        for again in (client.clone_job, client.continue_job):
            with pytest.raises(InvalidInput, match="hyperparameters"):
                await again(JOB, **change)
    with pytest.raises(InvalidInput, match=r"spec\.colour: is not a field of TuningSpec"):
        await client.distill("a text", "tone", colour="red")


async def test_a_job_with_data_that_is_there_uploads_nothing(client: AsyncClient, trainer: FakeTrainer) -> None:
    job = await client.create_job(
        TuningSpec("tone", DATASET, validation_dataset="file:///data/held.jsonl"), request_id="mine"
    )
    assert (job.name, job.state, trainer.uploads, trainer.request_ids) == (JOB, JobState.QUEUED, [], ["mine"])
    assert trainer.specs[0].validation_dataset.uri == "file:///data/held.jsonl"


async def test_a_missing_file_is_named(client: AsyncClient, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await client.create_job(TuningSpec("tone", tmp_path / "nowhere.jsonl"))


async def test_a_retried_creation_carries_the_same_request_id(client: AsyncClient, trainer: FakeTrainer) -> None:
    trainer.fail_next = [Unavailable("the database is unavailable")]
    await client.create_job(TuningSpec("tone", DATASET))
    assert len(trainer.request_ids) == 1
    assert trainer.request_ids[0]


async def test_tuning_waits_for_the_result_and_shows_every_event(client: AsyncClient) -> None:
    events: list[Any] = []
    job = await client.tune(TuningSpec("tone", [Example("a", output="b")]), on_event=events.append)
    assert job.state is JobState.SUCCEEDED
    assert job.result.version == "prompts/tone/versions/1"
    assert [type(event) for event in events] == [
        StateChanged,
        ProgressMade,
        Evaluated,
        CheckpointStored,
        Note,
        StateChanged,
    ]
    assert events[1].progress.examples_per_second == 12.5


async def test_a_failed_job_raises_with_its_reason(client: AsyncClient, trainer: FakeTrainer) -> None:
    trainer.events = finished_events(failed_job())
    with pytest.raises(
        JobFailed, match=r"NAN_LOSS: the loss is not a number .see spec.hyperparameters.learning_rate"
    ) as caught:
        await client.wait_for_job(JOB)
    assert caught.value.job.state is JobState.FAILED


async def test_a_watch_that_is_cut_goes_on_after_the_last_event(client: AsyncClient, trainer: FakeTrainer) -> None:
    trainer.cut_watch_after = [2, 4]
    numbers = [event.number async for event in client.watch_job(JOB)]
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert trainer.watched_after == [0, 2, 4]


async def test_a_watch_outlives_a_restart_of_the_trainer(trainer: FakeTrainer, inference: FakeInference) -> None:
    trainer.hold_watch = asyncio.Event()
    events, trainer.events = trainer.events, trainer.events[:3]
    seen, port = list[int](), free_port()
    async with serving(trainer, port) as endpoint:
        client = AsyncClient(endpoint)
        watch = client.watch_job(JOB)
        seen = [(await anext(watch)).number for _ in range(3)]
    trainer.events, trainer.hold_watch = events, None
    async with serving(trainer, port):
        seen += [event.number async for event in watch]
    await client.close()
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_a_watch_after_the_end_is_empty(client: AsyncClient) -> None:
    assert [event async for event in client.watch_job(JOB, after=6)] == []


@pytest.mark.usefixtures("quick_retries")
async def test_a_watch_gives_up_on_a_trainer_that_stays_away() -> None:
    client = AsyncClient("127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"the trainer can't be reached at 127\.0\.0\.1:1"):
        async for _ in client.watch_job(JOB, reconnect_seconds=0):
            pass
    await client.close()


async def test_an_unknown_job_is_not_found(client: AsyncClient) -> None:
    with pytest.raises(NotFound) as caught:
        await client.get_job("tuningJobs/none")
    assert (caught.value.kind, caught.value.name) == ("tuning job", "tuningJobs/none")


async def test_listing_jobs_fetches_every_page(client: AsyncClient) -> None:
    assert len(await client.list_jobs()) == 450
    assert len(await client.list_jobs(limit=7)) == 7
    assert {job.state for job in await client.list_jobs(states=[JobState.FAILED], limit=3)} == {JobState.FAILED}


async def test_steering_a_job(client: AsyncClient) -> None:
    assert (await client.cancel_job(JOB)).state is JobState.CANCELLING
    assert (await client.pause_job(JOB)).state is JobState.PAUSED
    assert (await client.resume_job(JOB)).state is JobState.QUEUED
