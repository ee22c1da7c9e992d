"""The asynchronous client against fakes on real sockets: prompts, answers, and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from prompttuning.v1 import generation_pb2

from shared.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from shared.values.enums import LoadedState
from shared.values.generation import FinishReason
from softprompt import AliasTarget, AsyncClient, Message, Sampling, TokenIds, TuningSpec
from tests.softprompt.fakes import DATASET, JOB, FakeInference, FakeTrainer


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
