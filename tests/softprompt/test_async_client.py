"""The asynchronous client against fakes on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from prompttuning.v1 import generation_pb2

from shared.errors import (
    Conflict,
    DeadlineExceeded,
    FieldViolation,
    InvalidInput,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from shared.values.enums import LoadedState, TaskKind
from shared.values.generation import FinishReason
from softprompt import AliasTarget, AsyncClient, Example, JobState, Message, Sampling, TokenIds, TuningSpec
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


async def test_overload_is_tried_again_and_then_raised(client: AsyncClient, trainer: FakeTrainer) -> None:
    trainer.fail_next = [Overloaded("the queue is full", retry_after_seconds=0.25)] * 4
    with pytest.raises(Overloaded) as caught:
        await client.create_job(TuningSpec("tone", DATASET))
    assert caught.value.retry_after_seconds == 0.25
    assert trainer.fail_next == []


async def test_invalid_input_comes_back_with_its_fields(client: AsyncClient, trainer: FakeTrainer) -> None:
    trainer.fail_next = [InvalidInput.of("spec.hyperparameters.learning_rate", "must be above 0")]
    with pytest.raises(InvalidInput) as caught:
        await client.create_job(TuningSpec("tone", DATASET))
    assert [violation.field for violation in caught.value.violations] == ["spec.hyperparameters.learning_rate"]


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


async def test_prompts_versions_and_aliases(client: AsyncClient) -> None:
    assert (await client.list_prompts())[0].aliases[0].targets == (AliasTarget(2, 1.0),)
    assert (await client.get_prompt("tone")).latest_version == 2
    assert [version.name for version in await client.list_versions("tone")] == [
        "prompts/tone/versions/2",
        "prompts/tone/versions/1",
    ]
    assert (await client.get_version("tone@2")).recipe == {"num_steps": 10}
    moved = await client.set_alias("tone", "canary", [AliasTarget(1, 0.9), AliasTarget(2, 0.1)], expected_version=2)
    assert [target.weight for target in moved.targets] == [0.9, 0.1]


async def test_a_lost_race_for_an_alias_tells_the_current_value(client: AsyncClient) -> None:
    with pytest.raises(Conflict) as caught:
        await client.set_alias("tone", "default", 3, expected_version=1)
    assert caught.value.metadata["current"] == "2"


async def test_a_whole_answer(client: AsyncClient, inference: FakeInference) -> None:
    answer = await client.generate("hi", prompt="tone@2", sampling=Sampling(temperature=0, max_new_tokens=5))
    assert (answer.text, answer.start.version, answer.end.finish_reason) == (
        "Hello wide world",
        "prompts/tone/versions/2",
        FinishReason.EOS,
    )
    assert answer.end.first_token_time_seconds == 0.031
    sent = inference.requests[0]
    assert (sent.input.text, sent.sampling.max_new_tokens, sent.sampling.HasField("temperature")) == ("hi", 5, True)
    assert not sent.sampling.HasField("top_k")


async def test_inputs_of_every_kind(client: AsyncClient, inference: FakeInference) -> None:
    await client.count_tokens("text", prompt="tone")
    await client.count_tokens([Message("user", "hi")], prompt="tone")
    await client.count_tokens(TokenIds((1, 2)))
    kinds = [request.input.WhichOneof("content") for request in inference.requests]
    assert kinds == ["text", "chat", "token_ids"]
    assert list(inference.requests[2].input.token_ids.ids) == [1, 2]


async def test_a_stream_has_a_start_deltas_and_an_end(client: AsyncClient) -> None:
    stream = client.stream("hi", prompt="tone")
    assert (await stream.started()).seed == 11
    assert "".join([delta.text async for delta in stream]) == "Hello wide world"
    assert stream.end.output_tokens == 3


async def test_breaking_out_of_a_stream_cancels_it(client: AsyncClient, inference: FakeInference) -> None:
    inference.endless = True
    async for delta in client.stream("hi"):
        assert delta.text == "Hello"
        break
    await inference.stream_ended.wait()


async def test_leaving_a_stream_that_only_started_cancels_it(client: AsyncClient, inference: FakeInference) -> None:
    inference.endless = True
    async with client.stream("hi") as stream:
        await stream.started()
    await inference.stream_ended.wait()


async def test_a_cancelled_reader_cancels_the_stream(client: AsyncClient, inference: FakeInference) -> None:
    inference.endless = True

    async def read() -> None:
        async for _ in client.stream("hi"):
            pass

    task = asyncio.create_task(read())
    while not inference.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await inference.stream_ended.wait()


async def test_a_deadline_ends_a_stream(client: AsyncClient, inference: FakeInference) -> None:
    inference.endless = True
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        async for _ in client.stream("hi", timeout_seconds=0.3):
            pass


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "the stream ended before its first message"),
        (
            [{"end": {"finish_reason": "FINISH_REASON_DEADLINE"}}],
            r"begins with its end \(finish reason DEADLINE\), not with what it is",
        ),
        ([{"delta": {"text": "a"}}, {"end": {}}], "begins with its text, not with what it is generated from"),
        ([{}], "begins with its unknown part"),
        ([{"start": {"seed": 1}}, {"delta": {"text": "a"}}], "ended before the answer's end"),
        ([{"start": {"seed": 1}}], "ended before the answer's end"),
    ],
)
async def test_an_answer_without_its_beginning_or_its_end_says_so(
    client: AsyncClient, inference: FakeInference, parts: list[dict[str, Any]], message: str
) -> None:
    inference.script = [ParseDict(part, generation_pb2.GenerateStreamResponse()) for part in parts]
    stream = client.stream("hi")
    with pytest.raises(Unavailable, match=message):
        async for _ in stream:
            pass
    assert (stream.end is not None) is ("begins with its end" in message)


async def test_an_unknown_prompt_is_an_error_of_the_stream(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="unknown"):
        await client.stream("hi", prompt="unknown").started()


async def test_scores_and_the_best_label(client: AsyncClient) -> None:
    scores = await client.score("great", prompt="tone", candidates=["bad", "good"])
    assert [score.candidate for score in scores.scores] == ["bad", "good"]
    assert (await client.classify("great", prompt="tone")).candidate == "positive"


async def test_waiting_until_served(client: AsyncClient, inference: FakeInference) -> None:
    version = "prompts/tone/versions/3"
    inference.loaded = [
        None,
        [],
        [generation_pb2.LoadedPrompt(version=version, state=generation_pb2.LoadedPrompt.STATE_LOADED)],
    ]
    loaded = await client.wait_until_served("tone@3")
    assert (loaded.version, loaded.state) == (version, LoadedState.LOADED)


async def test_a_refused_version_ends_the_wait_with_its_reason(client: AsyncClient, inference: FakeInference) -> None:
    state = generation_pb2.LoadedPrompt.STATE_QUARANTINED
    inference.loaded = [
        [generation_pb2.LoadedPrompt(version="prompts/tone/versions/3", state=state, reason="not finite")]
    ]
    with pytest.raises(PreconditionFailed, match="not finite"):
        await client.wait_until_served("tone@3")


async def test_waiting_for_a_version_that_never_comes_ends(client: AsyncClient) -> None:
    with pytest.raises(DeadlineExceeded, match="not served after"):
        await client.wait_until_served("tone@3", timeout_seconds=0.2)


@pytest.mark.usefixtures("quick_retries")
async def test_no_server_there_is_unavailable_with_the_address() -> None:
    async with AsyncClient("127.0.0.1:1", "127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"inference service can't be reached at 127\.0\.0\.1:1"):
            await client.generate("hi")


@pytest.mark.usefixtures("quick_retries")
async def test_a_service_that_is_unavailable_itself_keeps_its_own_words(
    client: AsyncClient, trainer: FakeTrainer
) -> None:
    trainer.fail_next = [Unavailable("the store is unavailable")] * 4
    with pytest.raises(Unavailable, match=r"^the store is unavailable$"):
        await client.get_job(JOB)


async def test_errors_keep_their_cause(client: AsyncClient) -> None:
    with pytest.raises(NotFound) as caught:
        await client.get_job("tuningJobs/none")
    assert isinstance(caught.value.__cause__, grpc.aio.AioRpcError)
